"""What pictures of the built-in scenes show, object by object, and how much of what was asked for is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import InputError
from .data.scenes import COLOURS, OBJECTS
from .features import ObjectFinder
from .latent import restored

PAINTED = ("house", "boat")
SIDES = (0.38, 0.62)  # left of the first, right of the second, in the middle between: a caption's


class Thing(NamedTuple):
    """kind: of OBJECTS. colour: of COLOURS; None for kinds without one. box: x0 y0 x1 y1 in [0, 1]."""

    kind: str
    colour: str | None
    box: tuple[float, float, float, float]

    @property
    def x(self) -> float:
        return (self.box[0] + self.box[2]) / 2


def finder(name: str = "scenes-objects") -> ObjectFinder:
    """The network that finds objects: the shipped one, or another by its folder. InputError for anything else."""
    model = restored(name)
    if not isinstance(model, ObjectFinder):
        raise InputError(f"{name}: finds no objects; scenes-objects does")
    return model


@torch.no_grad()
def things(images: Tensor, network: nn.Module, least: float = 0.4, batch: int = 64) -> list[list[Thing]]:
    """The objects in images (B, 3, H, W) in [-1, 1]. least: how sure the network is of each, 0 to 1."""
    place, found = next(network.parameters()).device, []
    for part in images.split(batch):
        said = network(part.to(place))
        heat = said.heat.sigmoid()
        heat = heat.amax(1) * (F.max_pool2d(heat.amax(1), 3, 1, 1) == heat.amax(1)), heat.argmax(1)
        h, w = heat[0].shape[1:]
        for b in range(len(part)):
            mine = []
            for y, x in (heat[0][b] > least).nonzero().tolist():
                dx, dy, wide, tall = said.box[b, :, y, x].tolist()
                cx, cy, kind = (x + 0.5) / w + dx, (y + 0.5) / h + dy, OBJECTS[int(heat[1][b, y, x])]
                corners = (cx - wide / 2, cy - tall / 2, cx + wide / 2, cy + tall / 2)
                colour = COLOURS[int(said.colour[b, :, y, x].argmax())] if kind in PAINTED else None
                mine.append(Thing(kind, colour, tuple(min(max(v, 0.0), 1.0) for v in corners)))
            found.append(mine)
    return found


# What was asked for -------------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """n of a kind; its colour, and its side if there is one, where the caption says them."""

    n: int
    kind: str
    colour: str | None = None
    side: str | None = None

    @property
    def word(self) -> str:
        """The noun, as captions have it: "house", "cacti"."""
        return self.kind if self.n == 1 else "cacti" if self.kind == "cactus" else f"{self.kind}s"

    @property
    def phrase(self) -> str:
        """The noun with what belongs to it, as captions have it, but for the side: "a red house", "two cacti"."""
        many = next(word for word, n in NUMBERS.items() if n == self.n)
        return " ".join(filter(None, (many, self.colour, self.word)))

    def means(self, thing: Thing) -> bool:
        """Whether a thing is of this kind and colour."""
        return thing.kind == self.kind and self.colour in (None, thing.colour)


NUMBERS = {"a": 1, "two": 2, "three": 3, "four": 4}
PHRASE = re.compile(
    rf"\b({'|'.join(NUMBERS)}) (?:({'|'.join(COLOURS)}) )?({'|'.join(OBJECTS)}|cacti)s?\b"
    r"(?: (?:on the|in the) (left|right|middle))?"
)


def wanted(caption: str) -> list[Wanted]:
    """What a caption in the words of the built-in scenes asks for. InputError when it names no object."""
    found = [
        Wanted(NUMBERS[many], "cactus" if kind == "cacti" else kind, colour or None, side or None)
        for many, colour, kind, side in PHRASE.findall(caption)
    ]
    if not found:
        raise InputError(f"caption: {caption!r} names no object of the scenes")
    return found


def on(side: str | None, x: float, slack: float = 0.0) -> bool:
    """Whether x lies on a side as captions have it; slack: how far beyond its border still counts."""
    if side is None:
        return True
    low, high = {"left": (0.0, SIDES[0]), "middle": SIDES, "right": (SIDES[1], 1.0)}[side]
    return low - slack <= x <= high + slack


def heard(asked: Sequence[Wanted], shown: Sequence[Thing], slack: float = 0.02) -> tuple[int, int]:
    """(right, all): of the objects asked for, those shown with their kind, colour, number and side.

    Of a phrase for n objects of which m are there, min(n, m) are right, less those that are too many."""
    right = 0
    for one in asked:
        alike = [thing for thing in shown if one.means(thing)]
        there = [t for t in alike if on(one.side, t.x, slack)]
        right += max(0, min(one.n, len(there)) - max(0, len(alike) - one.n))
    return right, sum(one.n for one in asked)


def iou(a: Any, b: Any) -> Tensor:
    """(K, L) intersection over union of boxes (K, 4) and (L, 4)."""
    a, b = (torch.as_tensor(x, dtype=torch.float64).reshape(-1, 4) for x in (a, b))
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clamp(min=0).prod(2)
    area = lambda x: (x[:, 2:] - x[:, :2]).prod(1)
    return both / (area(a)[:, None] + area(b)[None] - both)


def placed(boxes: Any, kinds: Sequence[str], shown: Sequence[Thing]) -> list[tuple[float, bool]]:
    """For each box asked for: its IoU with a thing that is shown, each taken once, best pairs first, and whether that
    is of the kind that was asked for; (0, False) where there is none."""
    overlap = iou(boxes, [t.box for t in shown])
    pairs = sorted(((float(v), i, j) for i, row in enumerate(overlap) for j, v in enumerate(row)), reverse=True)
    found: dict[int, tuple[float, bool]] = {}
    taken: set[int] = set()
    for value, i, j in pairs:
        if value > 0 and i not in found and j not in taken:
            found[i] = (value, shown[j].kind == kinds[i])
            taken.add(j)
    return [found.get(i, (0.0, False)) for i in range(len(kinds))]
