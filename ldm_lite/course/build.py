"""Makes notebooks/*.ipynb from notebooks/sources/*.py, and runs them.

    python -m ldm_lite.course.build               write the notebooks; outputs stay where no code cell has changed
    python -m ldm_lite.course.build --check       exit status 1 when a notebook is not what its source says
    python -m ldm_lite.course.build --execute     run every notebook in full mode and store its outputs

Names (00, 00_tour) choose notebooks. A source is Python in percent format: a docstring with the front matter, then

    # %% id [markdown]        a raw string with the text
    # %% id tags=a,b          code
    # %% id [exercise] title="..." difficulty=1 minutes=5
                              a raw string with the task, then the cells [stub], [check], [solution] and [wrong]

Title, card, objectives, set-up and the figure "where we are" come from the front matter, and `<!-- syllabus -->` in
a text becomes the outline. In the notebook stub and check share one cell, and the solution is folded below it."""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config import InputError, whole
from . import REPOSITORY, SYLLABUS, hardware

TAGS = ("slow", "nbval-check-output", "check", "exercise", "solution", "setup", "figure")  # and timeout-N
TIMES = "times.json"  # beside the sources: how long each notebook took, by mode and device
MODES = ("fast", "full")

SETUP = f"""\
# The same in every notebook: on Colab it installs the package, elsewhere it installs nothing.
import importlib.util
import sys

if importlib.util.find_spec("ldm_lite") is None:
    assert "google.colab" in sys.modules, "ldm_lite is missing: run `make lab` in a clone"
    %pip install -q "ldm-lite @ git+{REPOSITORY}"

from ldm_lite.course import setup

device, fast = setup()"""


@dataclass(frozen=True)
class Cell:
    id: str
    kind: Literal["markdown", "code"]
    text: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exercise:
    """One definition; `code` puts the stub, the solution or the wrong answer before the check."""

    id: str
    title: str
    difficulty: int  # 1 to 3
    minutes: int
    task: str
    stub: str
    check: str
    solution: str
    wrong: str

    def code(self, answer: Literal["stub", "solution", "wrong"] = "stub") -> str:
        mine = getattr(self, answer)
        indented = mine.splitlines()[-1][:1].isspace()  # after a function, two lines: as ruff formats it
        return mine + ("\n\n\n" if indented else "\n\n") + self.check

    def cells(self, number: int) -> list[Cell]:
        stars = "★" * self.difficulty + "☆" * (3 - self.difficulty)
        head = f"### Exercise {number}: {self.title}\n\n{stars} about {self.minutes} minutes\n\n"
        folded = f"<details>\n<summary>Solution</summary>\n\n```python\n{self.solution}\n```\n\n</details>"
        return [
            Cell(self.id, "markdown", head + self.task, ("exercise",)),
            Cell(f"{self.id}-try", "code", self.code(), ("exercise", "check")),
            Cell(f"{self.id}-solution", "markdown", folded, ("solution",)),
        ]


@dataclass(frozen=True)
class Source:
    path: Path
    front: dict[str, Any]
    items: tuple[Cell | Exercise, ...]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> str:
        return self.name[:2]

    @property
    def notebook(self) -> Path:
        return self.path.parent.parent / f"{self.name}.ipynb"

    @property
    def exercises(self) -> list[Exercise]:
        return [item for item in self.items if isinstance(item, Exercise)]


# Reading a source ---------------------------------------------------------------------------------------------------


def root() -> Path:
    """The notebooks folder of the clone this package is in. InputError for an installed package: it has no sources."""
    folder = Path(__file__).parents[2] / "notebooks"
    if not (folder / "sources").is_dir():
        raise InputError(f"{folder / 'sources'}: no such folder; notebooks are built in a clone of {REPOSITORY}")
    return folder


def sources(names: Sequence[str] = (), folder: Path | None = None) -> list[Source]:
    """All sources in order, or those with these names or numbers. InputError for a name that is none."""
    paths = sorted(((folder or root()) / "sources").glob("[0-9][0-9]_*.py"))
    for name in names:
        if name not in {n for path in paths for n in (path.stem, path.stem[:2])}:
            raise InputError(f"{name}: no such notebook; there are {', '.join(path.stem for path in paths)}")
    return [read(path) for path in paths if not names or path.stem in names or path.stem[:2] in names]


def read(path: Path) -> Source:
    """InputError names the file, the line and what is wrong with it."""
    import yaml

    front, *rest = re.split(r"^(# %%.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    values = yaml.safe_load(text(front, f"{path}: the front matter"))
    wanted = ("title", "goal", "needs", "memory", "download", "result", "objectives")
    if not isinstance(values, dict) or set(values) - {"gpu"} != set(wanted):
        raise InputError(f"{path}: the front matter needs {', '.join(wanted)} (and may have gpu: true)")
    line, blocks = 1 + front.count("\n"), []
    for header, body in zip(rest[::2], rest[1::2], strict=True):
        blocks.append((f"{path}:{line}", *parsed(header, f"{path}:{line}"), body.strip("\n")))
        line += body.count("\n")
    items = tuple(assembled(blocks))
    ids = [cell.id for item in items for cell in (item.cells(1) if isinstance(item, Exercise) else [item])]
    for i, name in enumerate(ids):
        if name in ids[:i] or name in ("title", "objectives", "setup", "where-we-are"):
            raise InputError(f"{path}: two cells are called {name}")
    return Source(path, values, items)


def parsed(header: str, where: str) -> tuple[str, str, dict[str, str]]:
    """`# %% id [kind] a=b` -> (id, kind, {a: b})."""
    words = shlex.split(header.removeprefix("# %%"))
    kinds = [word.strip("[]") for word in words if word.startswith("[")] or ["code"]
    names = [word for word in words if not word.startswith("[") and "=" not in word] or [""]
    if kinds[0] not in ("code", "markdown", "exercise", "stub", "check", "solution", "wrong"):
        raise InputError(f"{where}: {kinds[0]} is not markdown, exercise, stub, check, solution or wrong")
    if kinds[0] in ("code", "markdown", "exercise") and not re.fullmatch(r"[a-z0-9-]{1,48}", names[0]):
        raise InputError(f"{where}: a cell needs an id of small letters, digits and -, not {names[0]!r}")
    return names[0], kinds[0], dict(word.split("=", 1) for word in words if "=" in word)


def assembled(blocks: list[tuple[str, str, str, dict[str, str], str]]) -> Iterator[Cell | Exercise]:
    parts = ("stub", "check", "solution", "wrong")
    i = 0
    while i < len(blocks):
        where, name, kind, settings, body = blocks[i]
        if kind in parts:
            raise InputError(f"{where}: [{kind}] stands outside of an exercise")
        if kind != "exercise":
            tags = tuple(t for t in settings.get("tags", "").split(",") if t)
            for tag in tags:
                if tag not in TAGS and not re.fullmatch(r"timeout-\d+", tag):
                    raise InputError(f"{where}: tag {tag} is not one of {', '.join(TAGS)}, timeout-N")
            yield Cell(name, kind, text(body, where) if kind == "markdown" else body, tags)  # type: ignore[arg-type]
            i += 1
            continue
        found = {block[2]: block[4] for block in blocks[i + 1 : i + 5]}
        if tuple(found) != parts or not {"title", "difficulty", "minutes"} <= set(settings):
            raise InputError(
                f"{where}: an exercise has title, difficulty, minutes, then [{'], ['.join(parts)}] in order"
            )
        level, minutes = int(settings["difficulty"]), int(settings["minutes"])
        yield Exercise(name, settings["title"], level, minutes, text(body, where), **found)
        i += 5


def text(body: str, where: str) -> str:
    """The string that a cell consists of."""
    try:
        value = ast.literal_eval(body.strip())
    except (SyntaxError, ValueError):
        value = None
    if not isinstance(value, str):
        raise InputError(f'{where}: one string is needed, r"""…"""')
    return value.strip("\n")


# Writing a notebook -------------------------------------------------------------------------------------------------


def cells(source: Source) -> list[Cell]:
    """The whole notebook: the frame's cells, then the source's."""
    made = [
        Cell("title", "markdown", title(source)),
        Cell("objectives", "markdown", objectives(source)),
        Cell("setup", "code", SETUP, ("setup",)),
        Cell(
            "where-we-are",
            "code",
            f'from ldm_lite.course import figures\n\nfigures.pipeline("{source.number}")',
            ("figure",),
        ),
    ]
    exercises = 0
    for item in source.items:
        if isinstance(item, Exercise):
            exercises += 1
            made += item.cells(exercises)
        elif item.kind == "markdown":
            made.append(
                Cell(
                    item.id, "markdown", item.text.replace("<!-- syllabus -->", syllabus(source.path.parent)), item.tags
                )
            )
        else:
            made.append(item)
    return made


def title(source: Source) -> str:
    colab = (
        f"https://colab.research.google.com/github/{REPOSITORY.removeprefix('https://github.com/')}/blob/main/notebooks"
    )
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}/{source.name}.ipynb)"
    front = source.front
    card = {
        "Goal": front["goal"],
        "You need": front["needs"],
        "Time to run": durations(source),
        "Memory": front["memory"],
        "Download": front["download"],
        "At the end": front["result"],
    }
    rows = "\n".join(f"| **{name}** | {value} |" for name, value in card.items())
    return f"# {source.number} · {front['title']}\n\n{badge}\n\n| | |\n|---|---|\n{rows}"


def durations(source: Source) -> str:
    """What was measured, from times.json: the card promises nothing that nobody has run."""
    records = times(source.path.parent).get(source.name, {})
    said = [f"{spoken(records[key])} in {key}" for key in sorted(records, reverse=True)]
    return "; ".join(said) or "not measured yet"


def times(folder: Path) -> dict[str, dict[str, float]]:
    """{notebook: {"full mode on 2 CPU cores": seconds}}."""
    path = folder / TIMES
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def spoken(seconds: float) -> str:
    if seconds < 100:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{seconds / 60:.0f} min"


def objectives(source: Source) -> str:
    return "After this notebook you can\n\n" + "\n".join(f"- {line}" for line in source.front["objectives"])


def syllabus(folder: Path) -> str:
    """The outline as a table; a notebook that exists is a link."""
    rows = ["| | notebook | the question |", "|---|---|---|"]
    for n in SYLLABUS:
        here = (folder / f"{n.number}_{n.name}.py").is_file()
        rows.append(f"| {n.number} | {f'[{n.title}]({n.number}_{n.name}.ipynb)' if here else n.title} | {n.question} |")
    return "\n".join(rows)


def document(source: Source) -> dict[str, Any]:
    """The notebook without outputs, as nbformat 4.5 has it."""
    written = []
    for cell in cells(source):
        entry: dict[str, Any] = {
            "cell_type": cell.kind,
            "id": cell.id,
            "metadata": {"tags": list(cell.tags)} if cell.tags else {},
        }
        if cell.kind == "code":
            entry |= {"execution_count": None, "outputs": []}
        written.append(entry | {"source": cell.text.splitlines(keepends=True)})
    metadata: dict[str, Any] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
    }
    if source.front.get("gpu"):
        metadata["accelerator"] = "GPU"
    return {"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def stripped(notebook: dict[str, Any]) -> dict[str, Any]:
    """What of a notebook is decided by its source: all but outputs, counts and the record of the run."""
    metadata = {k: v for k, v in notebook["metadata"].items() if k != "ldm_lite"}
    bare = [{k: v for k, v in cell.items() if k not in ("outputs", "execution_count")} for cell in notebook["cells"]]
    return notebook | {"metadata": metadata, "cells": bare}


def stored(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise InputError(f"{path}: not a notebook; delete it and build again") from None


def agrees(source: Source) -> bool:
    """Whether the notebook on disk is what its source says."""
    old = stored(source.notebook)
    return old is not None and stripped(old) == stripped(document(source))


def build(source: Source) -> Path:
    """Writes the notebook. Outputs are kept when all code cells are what they were."""
    new, old = document(source), stored(source.notebook)
    if old is not None and code(old) == code(new):
        outputs = {cell["id"]: cell for cell in old["cells"] if cell["cell_type"] == "code"}
        for cell in new["cells"]:
            if cell["cell_type"] == "code":
                cell |= {key: outputs[cell["id"]][key] for key in ("execution_count", "outputs")}
        if "ldm_lite" in old["metadata"]:
            new["metadata"]["ldm_lite"] = old["metadata"]["ldm_lite"]
    save(new, source.notebook)
    return source.notebook


def code(notebook: dict[str, Any]) -> list[tuple[str, str]]:
    return [(c["id"], "".join(c["source"])) for c in notebook["cells"] if c["cell_type"] == "code"]


def save(notebook: dict[str, Any], path: Path) -> None:
    with whole(path) as temporary:
        lines = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
        temporary.write_text(lines + "\n", encoding="utf-8", newline="\n")


# Running a notebook -------------------------------------------------------------------------------------------------


def execute(source: Source, timeout: int = 1800) -> None:
    """Runs the notebook in both modes, each in a fresh kernel; records the times, stores the full mode's outputs.

    Nothing is stored when a cell raises (nbclient's CellExecutionError) or writes to stderr (InputError)."""
    import torch

    for mode in MODES:
        result, seconds = ran(source, mode, timeout)
        record(source, mode, seconds)
    run = {
        "mode": mode,
        "device": hardware(),
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    new = document(source)  # its card says how long it took
    outputs = {cell["id"]: cell for cell in result["cells"]}
    for cell in new["cells"]:
        if cell["cell_type"] == "code":
            cell |= {key: outputs[cell["id"]][key] for key in ("execution_count", "outputs")}
    new["metadata"]["ldm_lite"] = run
    save(new, source.notebook)


def ran(source: Source, mode: str, timeout: int) -> tuple[dict[str, Any], float]:
    """The notebook with outputs, and seconds."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.reads(json.dumps(document(source)), as_version=4)
    place = {"metadata": {"path": str(source.notebook.parent)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", store_widget_state=False, resources=place)
    ours = {"LDM_LITE_FAST": "1" if mode == "fast" else "0", "LDM_LITE_WIDGETS": "0"}
    environment = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "LDM_LITE_CHECKS")} | ours
    started = time.monotonic()
    client.execute(env=environment)
    seconds = time.monotonic() - started
    result = json.loads(nbformat.writes(notebook, version=4))
    for cell in result["cells"]:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                said = "".join(output["text"])[:300]
                raise InputError(f"{source.path}: cell {cell['id']} writes to stderr in {mode} mode: {said}")
    return result, seconds


def record(source: Source, mode: str, seconds: float) -> None:
    path = source.path.parent / TIMES
    known = times(source.path.parent)
    known.setdefault(source.name, {})[f"{mode} mode on {hardware()}"] = round(seconds)
    with whole(path) as temporary:
        temporary.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ldm_lite.course.build", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="00 or 00_tour; all when none is named")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 when a notebook is stale")
    parser.add_argument("--execute", action="store_true", help="run the notebooks, store outputs and times")
    options = parser.parse_args(arguments)
    try:
        chosen = sources(options.names)
        if options.check:
            stale = [source.name for source in chosen if not agrees(source)]
            for name in stale:
                print(
                    f"{name}.ipynb is not what sources/{name}.py says: run python -m ldm_lite.course.build",
                    file=sys.stderr,
                )
            return bool(stale)
        for source in chosen:
            if options.execute:  # a run that fails leaves the notebook as it was
                execute(source)
                print(f"{source.notebook}: {durations(source)}")
            else:
                print(build(source))
        return 0
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
