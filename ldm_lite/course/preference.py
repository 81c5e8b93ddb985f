"""Which of two pictures somebody prefers: pairs in a random order that the judge is not told, votes, and what they say.

The protocol is that of the paper's study (Rombach et al. 2022, table 4, after Saharia et al. 2021): what was given, and
beside it two answers, of which one has to be chosen. A judge is a person at the panel of `ask`, or a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import figures
from .widgets import live

Judge = Callable[[Tensor, Tensor], bool]  # two pictures (3, H, W), left and right -> whether the left one is better


class Share(NamedTuple):
    """Of how many votes what share, and the interval in which it may lie, all from 0 to 1."""

    share: float
    low: float
    high: float
    votes: int

    def __str__(self) -> str:
        return f"{self.share:.0%} of {self.votes} votes, from {self.low:.0%} to {self.high:.0%} at 95 %"


def wilson(chosen: int, votes: int, confidence: float = 0.95) -> tuple[float, float]:
    """The shares p of all voters, in [0, 1], that `chosen` of so many votes do not speak against (Wilson 1927).

    They are those with |chosen / votes - p| <= z sqrt(p (1 - p) / votes), z the normal quantile of the confidence. With
    few votes, and near 0 and 1, it keeps its promise where share +- z sqrt(share (1 - share) / votes) does not.
    ValueError for counts that cannot be."""
    if not 0 <= chosen <= votes or votes < 1:
        raise ValueError(f"chosen, votes: {chosen} of {votes} cannot be")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence} is not between 0 and 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, slack = chosen / votes, z * z / votes
    middle = (share + slack / 2) / (1 + slack)
    half = z / (1 + slack) * math.sqrt(share * (1 - share) / votes + slack / (4 * votes))
    return max(0.0, middle - half), min(1.0, middle + half)


class Vote(NamedTuple):
    row: int  # which of the pairs
    chosen: str  # the maker of the picture that was preferred
    left: bool  # whether it stood on the left


class Study:
    """Pairs of pictures by two makers, to be judged one after the other.

    first, second: (N, 3, H, W) in [-1, 1], row i of both an answer to the same question; given: (N, 3, H, W), what was
    asked, if the judge may see it. names: of the two makers, which no judge is shown. The rows come in random order,
    and each maker stands on the left half of the time (of an odd number, one more or less), so that a judge who always
    says left prefers nobody. ValueError for shapes or names that do not fit."""

    def __init__(
        self,
        first: Tensor,
        second: Tensor,
        names: tuple[str, str] = ("first", "second"),
        given: Tensor | None = None,
        seed: int = 0,
    ):
        if first.ndim != 4 or first.shape != second.shape or not len(first):
            raise ValueError(f"first, second: shapes {tuple(first.shape)} and {tuple(second.shape)} are not pairs")
        if given is not None and len(given) != len(first):
            raise ValueError(f"given: {len(given)} pictures, and there are {len(first)} pairs")
        if len(set(names)) != 2:
            raise ValueError(f"names: {', '.join(names)} are not two names")
        self.first, self.second, self.names, self.given = first, second, tuple(names), given
        generator = torch.Generator().manual_seed(seed)
        n = len(first)
        self.order = torch.randperm(n, generator=generator).tolist()
        half = torch.arange(n) < n // 2 + n % 2 * int(torch.randint(2, (), generator=generator))
        self.swapped = half[torch.randperm(n, generator=generator)].tolist()  # by row: the second on the left
        self.votes: list[Vote] = []

    def __len__(self) -> int:
        return len(self.order)

    @property
    def row(self) -> int | None:
        """The pair to be judged next; None after the last."""
        return self.order[len(self.votes)] if len(self.votes) < len(self) else None

    def pair(self, row: int) -> tuple[Tensor, Tensor]:
        """Its pictures (3, H, W), left and right, as a judge sees them."""
        both = self.first[row], self.second[row]
        return both[::-1] if self.swapped[row] else both

    def vote(self, left: bool) -> None:
        """Records that of the next pair the left picture is preferred, or else the right one. ValueError at the end."""
        if self.row is None:
            raise ValueError(f"vote: all {len(self)} pairs have been judged")
        self.votes.append(Vote(self.row, self.names[bool(left) == self.swapped[self.row]], bool(left)))

    def asked(self, judge: Judge) -> Share:
        """What a function says of all pairs that are left, without a person. It sees what a person sees."""
        while self.row is not None:
            self.vote(judge(*self.pair(self.row)))
        return self.result()

    def result(self, confidence: float = 0.95) -> Share:
        """How often the first maker's pictures were preferred. ValueError before the first vote."""
        return self._share([vote.chosen == self.names[0] for vote in self.votes], confidence)

    def leftness(self, confidence: float = 0.95) -> Share:
        """How often the left picture was: far from a half, the judge did not look."""
        return self._share([vote.left for vote in self.votes], confidence)

    def _share(self, yes: Sequence[bool], confidence: float) -> Share:
        if not yes:
            raise ValueError("result: nobody has voted yet")
        return Share(sum(yes) / len(yes), *wilson(sum(yes), len(yes), confidence), len(yes))

    def rows(self, rows: Sequence[int]) -> list[Tensor]:
        """For a grid: what was given, if it may be seen, then the left and the right pictures of these rows."""
        left, right = (torch.stack(side) for side in zip(*(self.pair(row) for row in rows)))
        if self.given is None:
            return [left, right]
        return [figures.enlarged(self.given[list(rows)], *left.shape[2:]), left, right]


def ask(study: Study, words: str, question: str = "Which is the better picture?", shown: int = 4) -> Any:
    """Shows the first pairs as they would be judged and, where somebody may be there to judge, a panel with buttons.

    words: of the fixed grid, in which a column is a pair. Returns the panel, or None where there is none: see
    `widgets.live`. Votes are in the study, and stay there when the cell is left."""
    rows = study.rows(study.order[:shown])
    figures.pictures(rows, words, left=["given", "left", "right"][-len(rows) :])
    panel = controls(study, question) if live() else None
    if panel is not None:
        from IPython.display import display

        display(panel)
    return panel


def controls(study: Study, question: str) -> Any:
    """One pair after the other, two buttons, and after the last the share with its interval."""
    import ipywidgets

    picture, text = ipywidgets.Image(format="png"), ipywidgets.Label()
    buttons = [ipywidgets.Button(description=name) for name in ("left", "right")]

    def draw() -> None:
        if study.row is None:
            text.value = f"{study.names[0]} preferred to {study.names[1]}: {study.result()}"
            picture.layout.display = "none"
            for button in buttons:
                button.disabled = True
            return
        sides = ["given", "left", "right"][-(2 if study.given is None else 3) :]
        figure = figures.grid(torch.cat(study.rows([study.row])), above=sides)
        width, height = figure.get_size_inches()
        picture.value = figures.png(figure)
        picture.layout.width, picture.layout.height = f"{width * figures.DPI:.0f}px", f"{height * figures.DPI:.0f}px"
        text.value = f"{question} ({len(study.votes) + 1} of {len(study)})"

    def press(button: Any) -> None:
        if study.row is not None:
            study.vote(button is buttons[0])
        draw()

    for button in buttons:
        button.on_click(press)
    draw()
    return ipywidgets.VBox([text, picture, ipywidgets.HBox(buttons)])
