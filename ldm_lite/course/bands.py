"""Bands: where the numbers of a healthy training run lie. bands.json holds them, for each notebook and mode.

A band is made of runs with several seeds and then widened, so that another machine and another seed lie inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..config import InputError, read, suggest

FILE = Path(__file__).with_suffix(".json")


class Band(NamedTuple):
    """times: in [0, 1]; low, high: of the loss there. runs: what it was made of. shipped: the shipped model's loss.

    settings: of the training, by their names in the notebook."""

    times: list[float]
    low: list[float]
    high: list[float]
    runs: list[list[float]]
    shipped: list[float]
    settings: dict[str, Any]

    def holds(self, values: Sequence[float]) -> list[bool]:
        """For each time whether the value there lies inside. InputError for another number of values."""
        if len(values) != len(self.times):
            raise InputError(f"values: {len(values)} for the {len(self.times)} times of the band")
        return [low <= value <= high for low, value, high in zip(self.low, values, self.high)]


def band(notebook: str, mode: str) -> Band:
    """The band of a notebook, by its name, in "fast" or "full" mode. InputError lists what there is."""
    stored = read(FILE)
    if notebook not in stored:
        raise suggest(notebook, stored, "band")
    found = stored[notebook]
    if mode not in found["modes"]:
        raise suggest(mode, found["modes"], "mode")
    return Band(times=found["times"], shipped=found["shipped"], **found["modes"][mode])


def widened(runs: Sequence[Sequence[float]], least: float = 0.15) -> tuple[list[float], list[float]]:
    """low and high around positive curves of equal length, one for each seed, at each place.

    The spread of the seeds, in logarithms, is made three times as wide, and never less than `least` to either side of
    their middle. InputError for fewer than three runs: two say nothing about a spread."""
    if len(runs) < 3:
        raise InputError(f"runs: {len(runs)}; three seeds or more are needed")
    low, high = [], []
    for values in zip(*runs, strict=True):
        logs = [math.log(value) for value in values]
        middle = (min(logs) + max(logs)) / 2
        reach = max(least, 3 * (max(logs) - min(logs)) / 2)
        low.append(math.exp(middle - reach))
        high.append(math.exp(middle + reach))
    return low, high
