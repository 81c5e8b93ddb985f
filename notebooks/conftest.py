"""What nbval lacks: a `slow` tag, limits for single cells (timeout-N), a stop at the first failure.

pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=120 notebooks [--run-slow]"""

import re

import pytest

# nbval reads comments too, and ignores one with a word too many in silence: tags only
MARKER = re.compile(r"^\s*#\s*(NBVAL_\w+|PYTEST_VALIDATE_\w+)", re.M)


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="run cells tagged slow, too")


def tags(item):
    return item.cell.metadata.get("tags", [])


def pytest_collection_modifyitems(config, items):
    for item in items:
        if not hasattr(item, "cell"):
            continue
        if marker := MARKER.search(item.cell.source):
            raise pytest.UsageError(f"{item.nodeid}: use a tag in place of the comment {marker[1]}")
        if "slow" in tags(item) and not config.getoption("--run-slow"):
            item.options["skip"] = True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if not hasattr(item, "cell"):
        return
    if failed := getattr(item.parent, "first_failure", None):
        pytest.skip(f"{failed} of this notebook failed")
    options = item.config.option
    if not hasattr(options, "nbval_every_cell_timeout"):
        options.nbval_every_cell_timeout = options.nbval_cell_timeout
    limits = [int(found[1]) for tag in tags(item) if (found := re.fullmatch(r"timeout-(\d+)", tag))]
    options.nbval_cell_timeout = limits[0] if limits else options.nbval_every_cell_timeout


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.failed and hasattr(item, "cell"):
        item.parent.first_failure = item.name
