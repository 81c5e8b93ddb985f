"""Checks of exercises: one line that says right, still open, or why it is wrong. None of them stops the notebook.

with check("noising", "noised() still returns ...") as c:
    c.close(noised(z0, eps, alpha, sigma), expected, "why anything else is wrong")

An answer that is still ... or None leaves the exercise open. LDM_LITE_CHECKS=strict raises unless it is right."""

from __future__ import annotations

import linecache
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

State = Literal["right", "open", "wrong"]
MARKS: dict[State, str] = {"right": "✔", "open": "○", "wrong": "✘"}


@dataclass(frozen=True)
class Result:
    name: str
    state: State
    message: str

    def __str__(self) -> str:
        head = {"right": "right.", "open": "still open.", "wrong": "not yet."}[self.state]
        return f"{MARKS[self.state]} {self.name}: {head} {self.message}".rstrip()


RESULTS: dict[str, Result] = {}  # the latest of each exercise, in the order they were first tried


class Open(Exception):
    """The exercise has not been tried."""


class Wrong(Exception):
    """The answer is wrong, and this is why."""


class check:
    """A context whose methods stop at the first thing that is wrong. The result is printed and kept in RESULTS.

    missing: what the learner has to do, said while the answer is still `...`. praise: said when it is right."""

    def __init__(self, name: str, missing: str = "Replace the ... with your answer.", praise: str = ""):
        self.name, self.missing, self.praise = name, missing, praise

    def __enter__(self) -> check:
        return self

    def answered(self, value: Any) -> None:
        """Stops, and leaves the exercise open, if value is `...` or None."""
        if value is ... or value is None:
            raise Open

    def that(self, holds: Any, why: str) -> None:
        """A condition; why: what is wrong, and where to look, when it does not hold."""
        self.answered(holds)
        if not bool(holds):
            raise Wrong(why)

    def close(
        self,
        mine: Any,
        expected: Any,
        why: str,
        rtol: float = 1e-4,
        atol: float = 1e-5,
        mistakes: Mapping[str, Any] | None = None,
    ) -> None:
        """Numbers or tensors that must agree in shape and value. mistakes: what to say of an error -> its value."""
        self.answered(mine)
        mine, expected = tensor(mine), tensor(expected)
        if mine.shape != expected.shape:
            raise Wrong(f"The shape is {tuple(mine.shape)}, it should be {tuple(expected.shape)}. {why}")
        if torch.allclose(mine, expected, rtol=rtol, atol=atol):
            return
        for name, value in (mistakes or {}).items():
            if mine.shape == tensor(value).shape and torch.allclose(mine, tensor(value), rtol=rtol, atol=atol):
                raise Wrong(name)
        off = (mine - expected).abs().max()
        raise Wrong(f"{why} ({f'{mine:.4g} is not it' if mine.ndim == 0 else f'the largest error is {off:.2g}'})")

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is not None and not isinstance(error, Exception):
            return False  # an interrupt is not an answer
        result = Result(self.name, *self.judged(error, trace))
        RESULTS[self.name] = result
        print(result)
        if os.environ.get("LDM_LITE_CHECKS") == "strict" and result.state != "right":
            raise AssertionError(str(result)) from error
        return True

    def judged(self, error: Exception | None, trace: TracebackType | None) -> tuple[State, str]:
        if error is None:
            return "right", self.praise
        if isinstance(error, Open):
            return "open", self.missing
        if isinstance(error, Wrong):
            return "wrong", str(error)
        # ... in the middle of a formula: not tried yet, and Python's word for it would confuse
        if "ellipsis" in str(error).lower() or "NoneType" in str(error):
            return "open", self.missing
        where = line(trace)
        return "wrong", f"It stops with {type(error).__name__}: {error}" + (f", at `{where}`" if where else "")


def tensor(value: Any) -> Tensor:
    value = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(value)
    return value.double()


def line(trace: TracebackType | None) -> str:
    """The learner's line where it stopped: the deepest one that is not in a file of a package."""
    found = ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "site-packages" not in name and "ldm_lite" not in name.replace("\\", "/").split("/")[:-1]:
            found = linecache.getline(name, trace.tb_lineno).strip() or found
        trace = trace.tb_next
    return found
