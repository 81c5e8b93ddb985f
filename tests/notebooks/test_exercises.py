"""Each exercise, as the learner meets it, with a wrong answer and with the solution: its check must tell them apart."""

import builtins
import symtable

import pytest

from ldm_lite.course import build, checks, figures

SOURCES = build.sources()


def bound(code):
    """The names that a cell defines."""
    return {
        s.get_name() for s in symtable.symtable(code, "", "exec").get_symbols() if s.is_assigned() or s.is_imported()
    }


def used(code):
    """The names that a cell, or a function in it, takes from the notebook."""

    def walk(table):
        names = {s.get_name() for s in table.get_symbols() if s.is_referenced() and s.is_global()}
        return names.union(*map(walk, table.get_children()))

    top = symtable.symtable(code, "", "exec")
    names = walk(top) | {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    return names - bound(code) - set(dir(builtins))


def needed(source):
    """The exercises, and of the cells before them those that define what they use, in order."""
    exercises = {f"{exercise.id}-try": exercise for exercise in source.exercises}
    chosen, wanted = [], set()
    for cell in reversed([cell for cell in build.cells(source) if cell.kind == "code"]):
        if cell.id in exercises:
            wanted = wanted.union(*(used(exercises[cell.id].code(answer)) for answer in ("stub", "solution", "wrong")))
            chosen.append(exercises[cell.id])
        elif cell.tags == ("setup",):
            chosen.append("from ldm_lite.course import setup\ndevice, fast = setup()")
        elif bound(cell.text) & wanted:
            wanted = wanted - bound(cell.text) | used(cell.text)
            chosen.append(cell.text)
    return chosen[::-1]


@pytest.mark.parametrize("source", SOURCES, ids=[source.name for source in SOURCES])
def test_a_check_leaves_the_stub_open_fails_the_wrong_answer_and_passes_the_solution(source, monkeypatch):
    monkeypatch.setenv("LDM_LITE_FAST", "1")
    monkeypatch.delenv("LDM_LITE_CHECKS", raising=False)
    monkeypatch.setattr(figures, "show", lambda figure, words: None)
    monkeypatch.setattr(checks, "RESULTS", {})
    names = {"__name__": "__main__"}

    def state(exercise, answer):
        checks.RESULTS.clear()
        exec(compile(exercise.code(answer), f"<{exercise.id}, {answer}>", "exec"), names)
        assert len(checks.RESULTS) == 1, f"{exercise.id} has {len(checks.RESULTS)} checks"
        return next(iter(checks.RESULTS.values()))

    for item in needed(source):
        if isinstance(item, str):
            exec(compile(item, "<cell>", "exec"), names)
            continue
        assert state(item, "stub").state == "open", item.id
        wrong = state(item, "wrong")
        assert wrong.state == "wrong" and len(wrong.message) > 20, f"{item.id}: {wrong}"
        assert state(item, "solution").state == "right", item.id


def test_there_is_an_exercise_to_check():
    assert all(source.exercises for source in SOURCES) and SOURCES
