"""Each exercise, as the learner meets it, with a wrong answer and with the solution: its check must tell them apart."""

import ast
import builtins

import pytest

from ldm_lite.course import build, checks, figures

SOURCES = build.sources()


def bound(tree):
    """The names that a cell defines."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
    return names


def used(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(dir(builtins))


def needed(source):
    """The cells before the exercises that they depend on, and the exercises, in order."""
    exercises = {f"{exercise.id}-try": exercise for exercise in source.exercises}
    chosen, wanted = [], set()
    for cell in reversed([cell for cell in build.cells(source) if cell.kind == "code"]):
        if cell.id in exercises:
            exercise = exercises[cell.id]
            wanted |= set().union(*(used(ast.parse(exercise.code(a))) for a in ("stub", "solution", "wrong")))
            chosen.append(exercise)
            continue
        if cell.tags == ("setup",):
            chosen.append("from ldm_lite.course import setup\ndevice, fast = setup()")
        elif bound(ast.parse(cell.text)) & wanted:
            wanted |= used(ast.parse(cell.text))
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
