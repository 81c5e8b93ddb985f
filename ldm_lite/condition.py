"""What a denoiser is told besides z and t: three doors, each a tensor or shut.

context (B, L, D)     tokens for cross-attention
concat  (B, C, h, w)  maps set beside the latent
vector  (B, E)        features added to the time embedding"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

VOID = 255  # in a map of fewer segments: a pixel of none
DIMENSIONS = {"context": 3, "concat": 4, "vector": 2}


@dataclass(frozen=True)
class Condition:
    """The three doors. ValueError for a tensor of the wrong number of dimensions, or batches that differ."""

    context: Tensor | None = None
    concat: Tensor | None = None
    vector: Tensor | None = None

    def __post_init__(self) -> None:
        for door, tensor in self.open().items():
            if tensor.ndim != DIMENSIONS[door]:
                raise ValueError(f"{door} has shape {tuple(tensor.shape)}: {DIMENSIONS[door]} dimensions are needed")
        if len({len(tensor) for tensor in self.open().values()}) > 1:
            raise ValueError("batches differ: " + ", ".join(f"{d} {len(t)}" for d, t in self.open().items()))

    def open(self) -> dict[str, Tensor]:
        """The doors that are not shut, by name."""
        return {f.name: t for f in fields(self) if (t := getattr(self, f.name)) is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        return Condition(**{door: function(tensor) for door, tensor in self.open().items()})

    def where(self, mask: Tensor, other: Condition) -> Condition:
        """Rows of self where mask (B,) is True, rows of other elsewhere."""
        mine, theirs = self.open(), matching((self, other))[1]

        def rows(a: Tensor, b: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b)

        return Condition(**{door: rows(mine[door], theirs[door]) for door in mine})

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> Condition:
        """One batch from several: rows of the first, then of the second, and so on."""
        rows = matching(conditions)
        return Condition(**{door: torch.cat([r[door] for r in rows]) for door in rows[0]})

    def __or__(self, other: Condition) -> Condition:
        """Both at once: tokens after tokens, channels after channels, features after features."""
        mine, theirs, axis = self.open(), other.open(), {"context": 1, "concat": 1, "vector": 1}
        both = {d: torch.cat([mine[d], theirs[d]], axis[d]) for d in mine if d in theirs}
        return Condition(**(mine | theirs | both))


def matching(conditions: Sequence[Condition]) -> list[dict[str, Tensor]]:
    """The open doors of each. ValueError when they differ: a denoiser cannot serve both."""
    doors = [c.open() for c in conditions]
    for d in doors[1:]:
        if d.keys() != doors[0].keys():
            names = " against ".join(", ".join(x) or "none" for x in (doors[0], d))
            raise ValueError(f"open doors differ: {names}")
    return doors


def of_segments(numbers: Tensor, many: int) -> Tensor:
    """Those numbers of a map that have to be of one of so many segments: without VOID."""
    return numbers[numbers != VOID] if many <= VOID else numbers
