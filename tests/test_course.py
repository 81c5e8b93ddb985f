"""What the notebooks share: checks, figures, widgets, the set-up cell and the build."""

import base64
import builtins
import io
import json
import math
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


def test_a_row_with_a_knob_that_does_not_exist_is_refused(drawn):
    with pytest.raises(ValueError, match="widht: not one of the knobs label, steps"):
        widgets.knobs(drawn, CHOICES, [{"widht": 3}], "Two rows.")


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
