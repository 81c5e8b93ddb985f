"""The nbval hooks of notebooks/conftest.py, tried on notebooks made for the purpose."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ldm_lite.course import build

CONFTEST = build.root() / "conftest.py"
COMMAND = (
    "-m",
    "pytest",
    "-v",
    "--nbval-lax",
    "--nbval-current-env",
    "--nbval-cell-timeout=60",
    "-p",
    "no:cacheprovider",
)


def notebook(path, *cells):
    """A notebook of (source, tag, …) cells."""
    entries = [
        {
            "cell_type": "code",
            "id": f"c{i}",
            "metadata": {"tags": tags},
            "source": text,
            "outputs": [],
            "execution_count": None,
        }
        for i, (text, *tags) in enumerate(cells)
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": entries, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{(notebook, cell): outcome} of one run of pytest."""
    folder = tmp_path_factory.mktemp("notebooks")
    notebook(
        folder / "a.ipynb",
        ["x = 1"],
        ["raise RuntimeError('takes hours')", "slow"],
        ["import time; time.sleep(50)", "timeout-1"],
        ["y = x"],
    )
    notebook(folder / "b.ipynb", ["x = 1"], ["assert x == 2, 'one is not two'"], ["z = x"], ["z"])
    shutil.copy(CONFTEST, folder)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run([sys.executable, *COMMAND, "."], cwd=folder, env=environment, capture_output=True, text=True)
    found = re.findall(r"^(\w+)::ipynb::Cell (\d+) (\w+)", done.stdout, re.M)
    return {(name, int(cell)): outcome for name, cell, outcome in found}


def test_a_slow_cell_is_left_out(results):
    assert results["a", 0] == "PASSED"
    assert results["a", 1] == "SKIPPED"


def test_a_cell_that_runs_longer_than_its_tag_allows_fails(results):
    assert results["a", 2] == "FAILED"


def test_a_notebook_stops_at_its_first_failure_and_the_next_one_runs(results):
    assert results["a", 3] == "SKIPPED"
    assert [results["b", i] for i in range(4)] == ["PASSED", "FAILED", "SKIPPED", "SKIPPED"]


def test_a_marker_comment_is_refused():
    """nbval would ignore this one in silence, because of the words behind it."""
    spec = importlib.util.spec_from_file_location("nbval_hooks", CONFTEST)
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    cell = SimpleNamespace(source="# NBVAL_SKIP because it is slow\nx = 1", metadata={})
    item = SimpleNamespace(cell=cell, nodeid="c.ipynb::Cell 0", options={})
    with pytest.raises(pytest.UsageError, match="NBVAL_SKIP"):
        hooks.pytest_collection_modifyitems(None, [item])
