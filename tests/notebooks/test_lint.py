"""What every notebook must be: reference/course-standards, sections D.1, D.4 and D.5, as far as a program can tell."""

import ast
import json
import re
import statistics

import nbformat
import pytest

from ldm_lite.course import build, figures

SOURCES = build.sources()
pytestmark = pytest.mark.parametrize("source", SOURCES, ids=[source.name for source in SOURCES])
ABSOLUTE = re.compile(r"(?<![\w.:/])(/(home|root|Users|work|tmp|content|mnt|data|usr|opt|var)/|[A-Z]:\\)")


def stored(source):
    return json.loads(source.notebook.read_text(encoding="utf-8"))


def code(source):
    return [cell for cell in build.cells(source) if cell.kind == "code"]


def python(cell):
    """The cell's syntax tree, without the set-up cell's magic."""
    return ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", cell.text, flags=re.M) if "setup" in cell.tags else cell.text)


def texts(source):
    return [cell for cell in build.cells(source) if cell.kind == "markdown"]


def words(text):
    """How many words of prose: without code, tables, formulas, links' targets and HTML."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$|<[^>]*>|\]\([^)]*\)", " ", text, flags=re.S)
    return len([word for line in text.splitlines() if not line.startswith("|") for word in line.split()])


def outputs(source):
    return [(cell, out) for cell in stored(source)["cells"] if cell["cell_type"] == "code" for out in cell["outputs"]]


def pngs(source):
    return [(cell, out) for cell, out in outputs(source) if "image/png" in out.get("data", {})]


# The file -----------------------------------------------------------------------------------------------------------


def test_the_notebook_is_what_its_source_says(source):
    assert build.agrees(source), "run python -m ldm_lite.course.build"


def test_the_file_is_valid_and_asks_for_the_kernel_that_everybody_has(source):
    nbformat.validate(nbformat.read(source.notebook, as_version=4))
    metadata = stored(source)["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert "widgets" not in metadata
    assert ("accelerator" in metadata) == bool(source.front.get("gpu"))


def test_the_file_is_small(source):
    assert source.notebook.stat().st_size <= 1.5e6


def test_outputs_are_stored_and_say_what_made_them(source):
    counts = [cell["execution_count"] for cell in stored(source)["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run python -m ldm_lite.course.build --execute"
    assert {"mode", "device", "date", "torch", "python"} <= set(stored(source)["metadata"]["ldm_lite"])
    assert stored(source)["metadata"]["ldm_lite"]["mode"] == "full"


def test_no_output_is_an_error_a_warning_or_a_widget(source):
    for cell, out in outputs(source):
        assert out["output_type"] != "error", cell["id"]
        assert out.get("name") != "stderr", cell["id"]
        kinds = set(out.get("data", {}))
        assert kinds <= {"text/plain", "text/markdown", "image/png"}, f"{cell['id']} has {kinds}"


def test_nothing_names_a_place_on_somebodys_machine(source):
    for cell in build.cells(source):
        assert not ABSOLUTE.search(cell.text), cell.id
    for cell, out in outputs(source):
        said = "".join(out.get("text", [])) + "".join("".join(out.get("data", {}).get("text/plain", [])))
        assert not ABSOLUTE.search(said), cell["id"]


# The code -----------------------------------------------------------------------------------------------------------


def test_the_set_up_cell_comes_first_and_only_it_talks_to_the_shell(source):
    first, *others = code(source)
    assert first.text == build.SETUP
    for cell in others:
        assert not re.search(r"^\s*[!%]", cell.text, re.M), cell.id


def test_tags_are_from_the_list_and_markers_are_tags(source):
    for cell in build.cells(source):
        for tag in cell.tags:
            assert tag in build.TAGS or re.fullmatch(r"timeout-\d+", tag), f"{cell.id}: {tag}"
        assert "NBVAL_" not in cell.text, cell.id


def test_imports_are_by_name_and_devices_and_figures_are_ours(source):
    for cell in code(source):
        for node in ast.walk(python(cell)):
            if isinstance(node, ast.ImportFrom):
                assert node.names[0].name != "*", cell.id
        assert ".cuda()" not in cell.text, f"{cell.id}: .to(device)"
        assert "pyplot" not in cell.text, f"{cell.id}: figures.canvas and figures.show, which ask for words"


def test_cells_are_short(source):
    lines = sorted(len(cell.text.splitlines()) for cell in code(source))
    assert lines[-1] <= 40
    assert lines[int(0.9 * (len(lines) - 1))] <= 25
    assert statistics.median(lines) <= 12
    for cell in code(source):
        assert max(map(len, cell.text.splitlines())) <= 100, cell.id


def test_claims_are_asserted_with_a_message_that_teaches(source):
    claims = 0
    for cell in code(source):
        for node in ast.walk(python(cell)):
            if isinstance(node, ast.Assert) and "setup" not in cell.tags:
                assert node.msg is not None, f"{cell.id}, line {node.lineno}: an assert without a message"
                claims += 1
            claims += isinstance(node, ast.Attribute) and node.attr == "assert_close"
    assert claims >= 5


# The text -----------------------------------------------------------------------------------------------------------


def test_the_frame_is_complete(source):
    whole = "\n".join(cell.text for cell in texts(source))
    for heading in ("## Exercises", "## Summary", "**What next.**", "## References", "**Predict before you run.**"):
        assert heading in whole, heading
    assert 3 <= len(source.exercises) <= 5
    assert 3 <= len(source.front["objectives"]) <= 5
    assert 3 <= len(re.findall(r"^\d+\. ", texts(source)[-1].text, re.M)) <= 6, "references"


def test_text_comes_in_portions(source):
    for cell in texts(source):
        assert words(cell.text) <= 150, f"{cell.id} has {words(cell.text)} words"
    assert 1500 <= sum(words(cell.text) for cell in texts(source)) <= 3000
    assert 20 <= len(code(source)) <= 40
    assert 25 <= len(texts(source)) <= 50


def test_never_more_than_three_code_cells_without_text(source):
    kinds = "".join("c" if cell.kind == "code" else "t" for cell in build.cells(source))
    assert "cccc" not in kinds


def test_an_equation_is_followed_by_its_code(source):
    cells = build.cells(source)
    equations = [i for i, cell in enumerate(cells) if cell.kind == "markdown" and "$$" in cell.text]
    assert 2 <= sum(cells[i].text.count("$$") for i in equations) / 2 <= 6
    for i in equations:
        assert cells[i + 1].kind == "code", f"{cells[i].id} has an equation and no code below it"


# The figures --------------------------------------------------------------------------------------------------------


def test_there_are_ten_to_sixteen_figures_each_with_its_tag(source):
    cells = {cell.id: cell for cell in code(source)}
    drawn = [cell["id"] for cell, _ in pngs(source)]
    assert 10 <= len(drawn) <= 16
    assert set(drawn) == {name for name, cell in cells.items() if "figure" in cell.tags}


def test_every_figure_has_words_in_the_file_and_under_the_picture(source):
    for cell, out in pngs(source):
        alt = out["metadata"]["image/png"]["alt"]
        assert len(alt.split()) >= 8, cell["id"]
        below = cell["outputs"][cell["outputs"].index(out) + 1]
        assert "".join(below["data"]["text/markdown"]) == figures.caption(alt)
    for cell in texts(source):
        assert not re.search(r"!\[\s*\]", cell.text), f"{cell.id} has an image without alt text"
        assert "data:image" not in cell.text and "<img" not in cell.text, cell.id


def test_figures_are_png_of_a_size_that_fits_a_page(source):
    for cell, out in pngs(source):
        data = __import__("base64").b64decode("".join(out["data"]["image/png"]))
        width = int.from_bytes(data[16:20], "big")
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and width <= 1110, f"{cell['id']} is {width} wide"


def test_between_two_figures_somebody_says_what_to_see(source):
    cells = build.cells(source)
    drawn = [i for i, cell in enumerate(cells) if "figure" in cell.tags]
    for i, following in zip(drawn, [*drawn[1:], len(cells)]):
        assert any(cell.kind == "markdown" for cell in cells[i + 1 : following]), cells[i].id
    assert sum("**What to see.**" in cell.text for cell in texts(source)) >= 6
