"""What the notebooks share: checks, figures, widgets, the set-up cell and the build."""

import base64
import builtins
import io
import json
import math
import shutil
import subprocess
import sys
import types

import pytest
import torch
from PIL import Image

from ldm_lite import course
from ldm_lite.config import InputError
from ldm_lite.course import bands, build, checks, figures, widgets
from ldm_lite.course.checks import check


@pytest.fixture(autouse=True)
def no_results(monkeypatch):
    monkeypatch.setattr(checks, "RESULTS", {})
    monkeypatch.delenv("LDM_LITE_CHECKS", raising=False)


# Checks -------------------------------------------------------------------------------------------------------------


def judged(answer, **settings):
    with check("it", "Write it.", "Well done.") as c:
        c.close(answer() if callable(answer) else answer, torch.tensor([1.0, 2.0]), "It is off.", **settings)
    return checks.RESULTS["it"]


def test_a_right_answer_is_praised(capsys):
    assert judged(torch.tensor([1.0, 2.0])) == checks.Result("it", "right", "Well done.")
    assert capsys.readouterr().out == "✔ it: right. Well done.\n"


@pytest.mark.parametrize("stub", [..., None, lambda: 2 * ..., lambda: (...).mean(), lambda: torch.ones(2) + ...])
def test_an_untouched_stub_is_open_and_says_what_is_missing(stub, capsys):
    assert judged(stub) == checks.Result("it", "open", "Write it.")
    assert capsys.readouterr().out == "○ it: still open. Write it.\n"


def test_a_wrong_answer_is_told_why_and_by_how_much():
    result = judged(torch.tensor([1.0, 2.5]))
    assert result.state == "wrong" and result.message == "It is off. (the largest error is 0.5)"


def test_a_known_mistake_is_called_by_its_name():
    mistakes = {"You forgot to take half.": torch.tensor([2.0, 4.0]), "Other.": torch.zeros(2)}
    assert judged(torch.tensor([2.0, 4.0]), mistakes=mistakes).message == "You forgot to take half."


def test_a_shape_that_would_broadcast_is_wrong():
    assert "(1, 2)" in judged(torch.tensor([[1.0, 2.0]])).message


def test_a_nan_is_wrong():
    assert judged(torch.tensor([1.0, float("nan")])).state == "wrong"


def test_an_error_in_the_answer_is_reported_with_its_line_and_does_not_stop_the_notebook():
    def answer():
        return torch.zeros(2)[5]

    result = judged(answer)
    assert result.state == "wrong"
    assert "IndexError" in result.message and "return torch.zeros(2)[5]" in result.message


def test_a_condition_says_why_it_does_not_hold():
    with check("it") as c:
        c.that(1 > 2, "One is not more than two.")
    assert checks.RESULTS["it"] == checks.Result("it", "wrong", "One is not more than two.")


def test_the_first_wrong_thing_stops_the_check():
    with check("it") as c:
        c.that(False, "first")
        raise KeyboardInterrupt
    assert checks.RESULTS["it"].message == "first"


def test_an_interrupt_is_not_an_answer():
    with pytest.raises(KeyboardInterrupt), check("it"):
        raise KeyboardInterrupt
    assert not checks.RESULTS


@pytest.mark.parametrize("answer", [..., torch.zeros(2)])
def test_strict_checks_raise_unless_the_answer_is_right(answer, monkeypatch):
    monkeypatch.setenv("LDM_LITE_CHECKS", "strict")
    with pytest.raises(AssertionError, match="it: "):
        judged(answer)
    assert judged(torch.tensor([1.0, 2.0])).state == "right"


# Figures ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def displayed(monkeypatch):
    """What a notebook's front end would get: a list of (data, metadata)."""
    from IPython import display

    calls = []
    monkeypatch.setattr(figures, "interactive", lambda: True)
    monkeypatch.setattr(
        display, "display", lambda data, raw, metadata=None: calls.append((data, metadata or {})), raising=True
    )
    return calls


def picture(bundle):
    return Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))


def test_a_figure_carries_its_words_as_alt_text_and_below_it(displayed):
    figure, axis = figures.canvas(3, 2)
    axis.plot([1, 2], [3, 4])
    figures.show(figure, "A line that\n rises by_one.")
    (image, metadata), (below, _) = displayed
    assert metadata == {"image/png": {"alt": "A line that rises by_one."}}
    assert picture(image).size == (300, 200)  # 100 dots per inch
    assert below["text/markdown"] == r"*A line that rises by\_one.*"


def test_a_figure_without_words_is_refused():
    figure, _ = figures.canvas(3, 2)
    with pytest.raises(ValueError, match="words"):
        figures.show(figure, " ")


def test_outside_of_a_notebook_a_figure_is_its_words(capsys):
    figure, _ = figures.canvas(3, 2)
    figures.show(figure, "An empty plot.")
    assert capsys.readouterr().out == "[figure] An empty plot.\n"


def test_every_pixel_of_an_image_becomes_a_square_of_its_colour(displayed):
    images = (torch.randint(0, 128, (6, 3, 5, 7)) * 2).float() / 127.5 - 1
    figures.pictures(images, "Noise.", columns=3, scale=4)
    shown = torch.from_numpy(__import__("numpy").array(picture(displayed[0][0])))
    for i in range(6):
        y, x = 8 + i // 3 * (5 * 4 + 6), 8 + i % 3 * (7 * 4 + 6)
        block = shown[y : y + 20, x : x + 28].view(5, 4, 7, 4, 3)
        assert torch.equal(block, block[:, :1, :, :1].expand_as(block))
        colours = ((images[i] + 1) * 127.5).round().permute(1, 2, 0)
        stored = torch.where(colours > 253, 255, (colours + 2) // 4 * 4)  # in steps of 4
        assert torch.equal(block[:, 0, :, 0], stored.byte())


def test_rows_of_different_sizes_are_shown_at_one_size(displayed):
    rows = [torch.zeros(3, 3, 32, 32), torch.zeros(3, 3, 8, 8)]
    figures.pictures(rows, "Grey.", above=("a", "b", "c"), left=("large", "small"))
    assert picture(displayed[0][0]).size[0] > 3 * 128


def test_a_latent_is_drawn_with_its_channels_in_a_square():
    z = torch.zeros(2, 4, 3, 5)
    z[1, 1], z[1, 2] = 9.0, -9.0
    drawn = figures.latent(z, side=10)
    assert drawn.shape == (2, 3, 6, 10)
    assert (drawn[0] == 1).all() and (drawn[1, :, :3, :5] == 1).all()  # nothing is white
    assert drawn[1, 0, 0, 5] > drawn[1, 2, 0, 5]  # the second channel, above right, is warm
    assert drawn[1, 0, 3, 0] < drawn[1, 2, 3, 0]  # the third, below left, is cool


@pytest.mark.parametrize("channels, across", [(1, 1), (3, 2), (5, 3), (16, 4)])
def test_a_latent_of_any_number_of_channels_can_be_drawn(channels, across, displayed):
    z = torch.randn(2, channels, 4, 6)
    drawn = figures.latent(z)
    assert drawn.shape[-1] == 128 // (6 * across) * 6 * across and drawn.abs().max() <= 1
    figures.pictures([drawn, torch.zeros(2, 3, 40, 64)], "A latent above grey.")


@pytest.mark.parametrize("notebook", course.SYLLABUS, ids=lambda n: n.number)
def test_the_pipeline_can_be_drawn_for_every_notebook(notebook, displayed):
    figures.pipeline(notebook.number)
    alt = displayed[0][1]["image/png"]["alt"]
    assert notebook.parts == course.EVERYTHING or alt.endswith(f"takes apart: {', '.join(notebook.parts)}.")
    assert set(notebook.parts) <= set(figures.PLACES)


def test_the_outline_has_eighteen_notebooks_in_order():
    assert [n.number for n in course.SYLLABUS] == [f"{i:02d}" for i in range(18)]
    assert all(figures.by_part().values()), "a part of the model that no notebook takes apart"


# Widgets ------------------------------------------------------------------------------------------------------------

CHOICES = {"label": ("day", "night"), "steps": (1, 2, 4)}
ROWS = [{"label": "day", "steps": 2}, {"steps": 4}]


@pytest.fixture
def drawn(monkeypatch):
    """The settings that were drawn, in order; and no fast mode."""
    monkeypatch.delenv("LDM_LITE_FAST", raising=False)
    monkeypatch.delenv("LDM_LITE_WIDGETS", raising=False)
    calls = []

    def draw(label, steps):
        calls.append((label, steps))
        return torch.zeros(3, 3, 8, 8)

    draw.calls = calls
    return draw


def test_without_ipywidgets_the_fixed_grid_is_all_there_is(drawn, displayed, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.split(".")[0] == "ipywidgets":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert widgets.knobs(drawn, CHOICES, ROWS, "Two rows.") is None
    assert drawn.calls == [("day", 2), ("day", 4)]
    assert [set(data) for data, _ in displayed] == [{"image/png", "text/plain"}, {"text/markdown", "text/plain"}]


@pytest.mark.parametrize("variable, value", [("LDM_LITE_FAST", "1"), ("LDM_LITE_WIDGETS", "0")])
def test_fast_and_stored_notebooks_have_the_fixed_grid_only(drawn, displayed, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert widgets.knobs(drawn, CHOICES, ROWS, "Two rows.") is None
    assert len(drawn.calls) == 2


def test_turning_a_knob_draws_what_it_says(drawn):
    pytest.importorskip("ipywidgets")
    label, steps, image, text = widgets.controls(drawn, CHOICES, ROWS[0]).children
    first = bytes(image.value)
    assert drawn.calls == [("day", 2)] and text.value == "label day, steps 2" and first.startswith(b"\x89PNG")
    steps.value = 4
    label.value = "night"
    assert drawn.calls[1:] == [("day", 4), ("night", 4)] and text.value == "label night, steps 4"


def test_a_line_to_type_in_draws_what_was_typed_and_says_what_cannot_be_drawn(drawn):
    pytest.importorskip("ipywidgets")

    def told(prompt, steps):
        if not prompt:
            raise InputError("prompt: is empty; say what to draw")
        return drawn(prompt, steps)

    prompt, steps, image, text = widgets.controls(told, {"prompt": "a house", "steps": (1, 2, 4)}, {}).children
    assert drawn.calls == [("a house", 1)]
    prompt.value = "two boats"
    assert drawn.calls[1:] == [("two boats", 1)] and text.value.startswith("prompt two boats")
    before = bytes(image.value)
    prompt.value = ""
    assert text.value == "prompt: is empty; say what to draw" and bytes(image.value) == before
    steps.value = 4
    assert len(drawn.calls) == 2
    prompt.value = "a boat"
    assert drawn.calls[2:] == [("a boat", 4)]


def test_a_row_with_a_knob_that_does_not_exist_is_refused(drawn):
    with pytest.raises(ValueError, match="widht: not one of the knobs label, steps"):
        widgets.knobs(drawn, CHOICES, [{"widht": 3}], "Two rows.")


# Painting -----------------------------------------------------------------------------------------------------------

START = torch.tensor([[0, 0, 1, 2, 2], [0, 1, 1, 2, 0], [1, 1, 1, 1, 2]])
COLOURS, NAMES = ("#ff0000", "#00ff00", "#0000ff"), ("red", "green", "blue")


def test_without_anywidget_nobody_paints_and_a_line_says_how_to(drawn, displayed, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "anywidget", None)  # import raises ImportError
    painting = widgets.painter(START, COLOURS, NAMES, "Three colours.")
    assert painting.canvas is None and torch.equal(painting.labels, START)
    assert [set(data) for data, _ in displayed] == [{"image/png", "text/plain"}, {"text/markdown", "text/plain"}]
    (line,) = capsys.readouterr().out.splitlines()
    assert "pip install anywidget" in line and "output.enable_custom_widget_manager()" in line


@pytest.mark.parametrize("variable, value", [("LDM_LITE_FAST", "1"), ("LDM_LITE_WIDGETS", "0")])
def test_fast_and_stored_notebooks_have_no_canvas(drawn, displayed, monkeypatch, capsys, variable, value):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(widgets, "easel", None)  # would raise if it were called
    assert torch.equal(widgets.painter(START, COLOURS, NAMES, "Three colours.").labels, START)
    assert "pip install anywidget" in capsys.readouterr().out


def test_what_is_painted_is_what_the_notebook_reads(monkeypatch, drawn, capsys):
    pytest.importorskip("anywidget", reason="anywidget is optional: it brings the canvas")
    from IPython import display

    shown = []
    monkeypatch.setattr(figures, "interactive", lambda: True)
    monkeypatch.setattr(display, "display", lambda data, **_: shown.append(data))
    painting = widgets.painter(START, COLOURS, NAMES, "Three colours.", under=torch.zeros(3, 3, 5))
    assert shown[-1] is painting.canvas and not capsys.readouterr().out
    assert torch.equal(painting.labels, START) and painting.canvas.size == [3, 5]
    assert Image.open(io.BytesIO(base64.b64decode(painting.canvas.under))).size == (5, 3)
    painted = START.flatten().tolist()
    painted[7], painted[14] = 2, 0
    painting.canvas.labels = base64.b64encode(bytes(painted)).decode()  # as the browser sets it
    assert painting.labels.flatten().tolist() == painted and painting.labels.dtype == torch.int64
    assert torch.equal(painting.start, START)


NODE = """
const el = (kind, style = {}) => ({ kind, style, children: [], appendChild(e) { this.children.push(e); return e; },
  setPointerCapture() {}, getContext: () => ({ fillRect() {}, drawImage() {} }),
  getBoundingClientRect: () => ({ left: 10, top: 20, width: 90, height: 70 }) });
globalThis.document = { createElement: el };
globalThis.Image = class {};
const state = STATE;
const model = { get: (k) => state[k], set: (k, v) => { state[k] = v; }, save_changes() {} };
const root = el("div");
render({ model, el: root });
const [canvas, row, tools] = root.children;
const size = tools.children[0].children[0];
const at = (x, y) => ({ clientX: 10 + 10 * x, clientY: 20 + 10 * y, pointerId: 1 });
size.value = 1;
row.children[2].onclick();
canvas.onpointermove(at(2.5, 6.5));
canvas.onpointerdown(at(0.5, 0.5)); canvas.onpointermove(at(8.5, 0.5)); canvas.onpointerup(at(8.5, 0.5));
canvas.onpointermove(at(0.5, 6.5)); canvas.onpointerup(at(0.5, 6.5));
size.value = 4;
canvas.onpointerdown(at(4.5, 4.5)); canvas.onpointerup(at(4.5, 4.5));
console.log(state.labels);
tools.children[1].onclick();
console.log(state.labels);
"""


def test_a_brush_paints_lines_and_discs_of_its_width_and_start_again_takes_them_back(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which runs the canvas's JavaScript")
    start = (torch.arange(63) % 2).view(7, 9)
    first = base64.b64encode(bytes(start.flatten().tolist())).decode()
    state = {"size": [7, 9], "colours": COLOURS, "names": NAMES, "labels": first, "brush": 1, "under": ""}
    code = widgets.PAINTER.replace("export default { render };", NODE.replace("STATE", json.dumps(state)))
    (tmp_path / "painter.mjs").write_text(code, encoding="utf-8")
    painted, again = subprocess.check_output([node, tmp_path / "painter.mjs"], text=True).split()
    expected = start.clone()
    expected[0] = 2
    y, x = torch.arange(7)[:, None], torch.arange(9)
    expected[(y - 4) ** 2 + (x - 4) ** 2 <= 2**2] = 2
    assert list(base64.b64decode(painted)) == expected.flatten().tolist()
    assert again == first


def test_labels_without_a_colour_or_a_name_are_refused():
    with pytest.raises(ValueError, match="labels 0 to 2; names and colours: one for each"):
        widgets.painter(START, COLOURS[:2], NAMES[:2], "Two colours.")
    with pytest.raises(ValueError, match="one for each"):
        widgets.painter(START, COLOURS, NAMES[:2], "Two names.")


def test_labels_are_coloured_over_white_or_over_a_picture():
    under = torch.linspace(-1, 1, 45).view(3, 3, 5)
    solid = widgets.coloured(START, COLOURS)
    assert (
        solid.shape == (3, 3, 5) and solid[:, 0, 2].tolist() == [-1, 1, -1] and solid[:, 1, 3].tolist() == [-1, -1, 1]
    )
    clear = widgets.coloured(START, ("#ff0000", "#00000000", "#0000ff80"), under)
    assert torch.equal(clear[:, START == 1], under[:, START == 1])
    assert torch.equal(clear[:, START == 0], solid[:, START == 0])
    half = 128 / 255
    torch.testing.assert_close(clear[:, 1, 3], half * solid[:, 1, 3] + (1 - half) * under[:, 1, 3])
    assert torch.equal(widgets.coloured(START.expand(2, 3, 5), COLOURS)[1], solid)


@pytest.mark.parametrize(
    "form, points, share",
    [
        (("rectangle",), (0.2, 0.1, 0.7, 0.9), 0.5 * 0.8),
        (("ellipse",), (0.2, 0.1, 0.7, 0.9), math.pi / 4 * 0.5 * 0.8),
        (("polygon",), (0.1, 0.1, 0.9, 0.2, 0.3, 0.8), 0.5 * (0.8 * 0.7 - 0.1 * 0.2)),
        # a bar and, at its ends, two halves of a disc; widths and heights in shares of a picture twice as wide as tall
        (("stroke", 0.2), (0.2, 0.5, 0.8, 0.5), 0.6 * 0.2 + math.pi * 0.1**2 / 2),
        (("stroke", 0.4), (0.5, 0.5), math.pi * 0.2**2 / 2),
    ],
)
def test_a_shape_covers_its_area(form, points, share):
    name, *width = form
    drawn = widgets.shapes(torch.zeros(150, 300), [(name, 3, points, *width)])
    assert drawn.unique().tolist() == [0, 3]
    assert float((drawn == 3).float().mean()) == pytest.approx(share, rel=0.01)


def test_shapes_are_drawn_one_over_the_other_where_a_pixel_s_middle_is_inside():
    drawn = widgets.shapes(START, [("rectangle", 7, (0, 0, 0.4, 1)), ("rectangle", 8, (0.2, 0.34, 0.6, 1))])
    assert drawn.tolist() == [[7, 7, 1, 2, 2], [7, 8, 8, 2, 0], [7, 8, 8, 1, 2]]
    assert START.tolist()[0] == [0, 0, 1, 2, 2]


def test_a_shape_of_another_form_is_refused():
    with pytest.raises(ValueError, match="form: star is not rectangle, ellipse, polygon or stroke"):
        widgets.shapes(START, [("star", 1, (0, 0, 1, 1))])


# The set-up cell ----------------------------------------------------------------------------------------------------


def set_up(monkeypatch, importable, colab):
    """Runs the cell as IPython would; returns what it asked %pip to do."""
    asked = []
    shell = types.SimpleNamespace(run_line_magic=lambda name, line: asked.append((name, line)))
    found = object() if importable else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    code = build.SETUP.replace("%pip ", "get_ipython().run_line_magic('pip', r'''") + ""
    code = "\n".join(line + "''')" if "run_line_magic" in line else line for line in code.split("\n"))
    names = {"get_ipython": lambda: shell}
    exec(code, names)
    return asked, names


def test_on_colab_the_set_up_cell_installs_the_package_from_its_one_address(monkeypatch):
    asked, _ = set_up(monkeypatch, importable=False, colab=True)
    assert asked == [("pip", f'install -q "ldm-lite @ git+{course.REPOSITORY}"')]
    for name in ("torch", "numpy", "--upgrade", "-U"):  # what is there stays: a new numpy needs a restart
        assert name not in asked[0][1]


@pytest.mark.parametrize("colab", [True, False])
def test_where_the_package_is_importable_nothing_is_installed(monkeypatch, colab, capsys):
    asked, names = set_up(monkeypatch, importable=True, colab=colab)
    assert not asked
    assert names["device"] == course.device() and isinstance(names["fast"], bool)
    assert f"torch {torch.__version__}" in capsys.readouterr().out


def test_elsewhere_a_missing_package_is_an_error_that_says_what_to_do(monkeypatch):
    with pytest.raises(AssertionError, match="make lab"):
        set_up(monkeypatch, importable=False, colab=False)


@pytest.mark.parametrize("value, expected", [("1", True), ("yes", True), ("0", False), ("", False), (None, False)])
def test_fast_mode_is_asked_for_by_environment(monkeypatch, value, expected, capsys):
    monkeypatch.delenv("LDM_LITE_FAST", raising=False)
    if value is not None:
        monkeypatch.setenv("LDM_LITE_FAST", value)
    assert course.setup()[1] is expected
    assert ("fast mode" in capsys.readouterr().out) is expected


def test_the_course_imports_nothing_heavy():
    heavy = ("matplotlib", "ipywidgets", "IPython", "nbformat", "nbclient")
    code = (
        "import sys; from ldm_lite.course import build, checks, figures, widgets; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# The build ----------------------------------------------------------------------------------------------------------

FRONT = '''r"""
title: Ants
goal: Count ants
needs: nothing
memory: none
download: none
result: a number
objectives:
  - count
"""
'''
BODY = '''
# %% why [markdown]
r"""
Ants are many.
"""

# %% count tags=check,timeout-9
ants = 7
print(ants)

# %% double [exercise] title="Twice as many" difficulty=2 minutes=3
r"""
Double $n$.
"""

# %% [stub]
def double(n):
    return ...

# %% [check]
from ldm_lite.course.checks import check

with check("Twice as many") as c:
    c.close(double(3), 6, "Twice 3 is 6.")

# %% [solution]
def double(n):
    return 2 * n

# %% [wrong]
def double(n):
    return n**2
'''


@pytest.fixture
def source(tmp_path):
    """A function that writes notebooks/sources/00_ants.py and reads it."""
    (tmp_path / "notebooks" / "sources").mkdir(parents=True)

    def write(text=FRONT + BODY):
        path = tmp_path / "notebooks" / "sources" / "00_ants.py"
        path.write_text(text, encoding="utf-8")
        return build.read(path)

    return write


def test_a_source_becomes_the_frame_the_cells_and_the_exercise(source):
    cells = build.cells(source())
    assert [cell.id for cell in cells] == [
        *("title", "objectives", "setup", "where-we-are", "why", "count", "double", "double-try", "double-solution")
    ]
    by_id = {cell.id: cell for cell in cells}
    assert by_id["setup"].text == build.SETUP
    assert by_id["count"].text == "ants = 7\nprint(ants)" and by_id["count"].tags == ("check", "timeout-9")
    assert by_id["double"].text.startswith("### Exercise 1: Twice as many\n\n★★☆ about 3 minutes\n\nDouble $n$.")
    assert by_id["double-try"].text.startswith("def double(n):\n    return ...\n\n\nfrom ldm_lite")
    assert "<details>" in by_id["double-solution"].text and "return 2 * n" in by_id["double-solution"].text
    assert "n**2" not in "".join(cell.text for cell in cells)


@pytest.mark.parametrize("answer, state", [("stub", "open"), ("wrong", "wrong"), ("solution", "right")])
def test_the_check_judges_all_three_answers_of_an_exercise(source, answer, state):
    exec(source().exercises[0].code(answer), {})
    assert checks.RESULTS["Twice as many"].state == state


def test_building_twice_changes_nothing(source):
    path = build.build(source())
    first = path.read_bytes()
    build.build(source())
    assert path.read_bytes() == first and build.agrees(source())


def test_the_build_is_what_jupyter_would_write(source):
    nbformat = pytest.importorskip("nbformat")
    path = build.build(source())
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert nbformat.writes(notebook) + "\n" == path.read_text(encoding="utf-8")


def with_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for i, cell in enumerate(c for c in notebook["cells"] if c["cell_type"] == "code"):
        cell |= {"execution_count": i + 1, "outputs": [{"output_type": "stream", "name": "stdout", "text": [f"{i}\n"]}]}
    notebook["metadata"]["ldm_lite"] = {"mode": "full"}
    build.save(notebook, path)


def test_outputs_do_not_count_as_a_difference_and_survive_a_change_of_text(source):
    path = build.build(source())
    with_outputs(path)
    assert build.agrees(source())
    changed = source((FRONT + BODY).replace("Ants are many.", "Ants are few."))
    assert not build.agrees(changed)
    build.build(changed)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "few" in str(notebook) and notebook["metadata"]["ldm_lite"] == {"mode": "full"}
    assert [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"] == [1, 2, 3, 4]


def test_outputs_of_other_code_are_dropped(source):
    path = build.build(source())
    with_outputs(path)
    build.build(source((FRONT + BODY).replace("ants = 7", "ants = 8")))
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert all(not c["outputs"] for c in notebook["cells"] if c["cell_type"] == "code")
    assert "ldm_lite" not in notebook["metadata"]


def test_a_hand_edited_notebook_is_found(source):
    path = build.build(source())
    path.write_text(path.read_text(encoding="utf-8").replace("ants = 7", "ants = 9"), encoding="utf-8")
    assert not build.agrees(source())


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("goal:", "gaol:", r"00_ants.py: the front matter needs title, goal"),
        ("# %% count tags=check", "# %% count tags=chekc", r"00_ants.py:17: tag chekc is not one of"),
        ("# %% count", "# %% why", r"two cells are called why"),
        ("# %% count", "# %% Count!", r"00_ants.py:17: a cell needs an id"),
        ("why [markdown]", "why [text]", r"00_ants.py:12: text is not markdown"),
        ("# %% [wrong]", "# %% [wrongs]", r"wrongs is not markdown"),
        ("# %% [solution]\ndef double(n):\n    return 2 * n\n\n", "", r"00_ants.py:21: an exercise has"),
        ('r"""\nAnts are many.\n"""', "Ants are many.", r"00_ants.py:12: one string is needed"),
    ],
)
def test_a_mistake_in_a_source_is_named_with_its_line(source, old, new, message):
    assert old in FRONT + BODY
    with pytest.raises(InputError, match=message):
        source((FRONT + BODY).replace(old, new))


def test_the_card_states_measured_times_only(source):
    assert "| **Time to run** | not measured yet |" in build.cells(source())[0].text
    build.record(source(), "full", 200.0)
    build.record(source(), "fast", 31.4)
    full, fast = (f"{mode} mode on {course.hardware()}" for mode in ("full", "fast"))
    assert f"| **Time to run** | 3 min in {full}; 30 s in {fast} |" in build.cells(source())[0].text


def test_the_command_finds_a_stale_notebook_and_an_unknown_name(source, tmp_path, monkeypatch, capsys):
    source()
    monkeypatch.setattr(build, "root", lambda: tmp_path / "notebooks")
    assert build.main(["--check"]) == 1
    assert "00_ants.ipynb is not what" in capsys.readouterr().err
    assert build.main(["00"]) == 0
    assert build.main(["--check", "00_ants"]) == 0
    assert build.main(["07"]) == 2
    assert "07: no such notebook; there are 00_ants" in capsys.readouterr().err


def test_executing_stores_outputs_and_what_made_them(source, tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    monkeypatch.setattr(build, "SETUP", "import os\nprint(os.environ['LDM_LITE_FAST'])")
    monkeypatch.setattr(build, "root", lambda: tmp_path / "notebooks")
    text = (FRONT + BODY).split("# %% double")[0]
    source(text)
    assert build.main(["--execute"]) == 0
    notebook = json.loads((tmp_path / "notebooks" / "00_ants.ipynb").read_text(encoding="utf-8"))
    setup, _, count = (c for c in notebook["cells"] if c["cell_type"] == "code")
    assert [setup["execution_count"], count["execution_count"]] == [1, 3]
    assert setup["outputs"][0]["text"] == ["0\n"] and count["outputs"][0]["text"] == ["7\n"]
    assert notebook["metadata"]["ldm_lite"]["mode"] == "full" and "widgets" not in notebook["metadata"]
    assert set(build.times(tmp_path / "notebooks" / "sources")["00_ants"]) == {
        f"{mode} mode on {course.hardware()}" for mode in ("full", "fast")
    }
    assert build.agrees(build.sources()[0])


def test_a_cell_that_warns_stores_nothing(source, tmp_path, monkeypatch, capsys):
    pytest.importorskip("nbclient")
    monkeypatch.setattr(build, "SETUP", "import sys; print('careful', file=sys.stderr)")
    monkeypatch.setattr(build, "root", lambda: tmp_path / "notebooks")
    source((FRONT + BODY).split("# %% count")[0])
    assert build.main(["--execute"]) == 2
    assert "cell setup writes to stderr in fast mode: careful" in capsys.readouterr().err
    assert not (tmp_path / "notebooks" / "00_ants.ipynb").exists()


# Bands --------------------------------------------------------------------------------------------------------------


def test_a_band_reaches_15_per_cent_or_three_times_the_spread_around_the_middle_of_its_runs():
    low, high = bands.widened([[1.0, 1.0], [1.01, 2.0], [0.99, 4.0]])
    assert low[0] == pytest.approx((0.99 * 1.01) ** 0.5 / math.exp(0.15))
    assert (low[1], high[1]) == (pytest.approx(2 / 8), pytest.approx(2 * 8))


def test_a_band_of_two_runs_is_refused():
    with pytest.raises(InputError, match="three seeds"):
        bands.widened([[1.0], [1.1]])


def test_a_band_says_for_each_time_whether_a_value_lies_inside():
    one = bands.Band([0.1, 0.5, 1.0], [1, 1, 1], [2, 2, 2], [], [], {})
    assert one.holds([1.0, 2.5, 0.5]) == [True, False, False]
    with pytest.raises(InputError, match="2 for the 3 times"):
        one.holds([1.0, 1.0])


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_the_stored_band_of_notebook_07_is_its_three_runs_widened(mode):
    one = bands.band("07_latent_diffusion", mode)
    low, high = bands.widened(one.runs)
    assert one.low == pytest.approx(low, abs=1e-4) and one.high == pytest.approx(high, abs=1e-4)
    assert all(all(one.holds(run)) for run in one.runs)
    assert len(one.times) == len(one.shipped) == len(one.low) and one.settings["steps"] > 0


def test_longer_trainings_and_the_shipped_model_lie_below_the_band_of_a_short_one():
    fast, full = (bands.band("07_latent_diffusion", mode) for mode in ("fast", "full"))
    for run in (*full.runs, full.shipped):
        assert all(loss < low for loss, low in zip(run, fast.low))


def test_an_unknown_band_is_refused_with_a_proposal():
    with pytest.raises(InputError, match="07_latent_diffusion"):
        bands.band("07_latent_difusion", "fast")
