"""Drawings that notebooks share: a UNet's plan, heat maps side by side, bars and marks.

`unet` and `heat` show a figure of their own, with its words; `bars` and `marks` draw on axes that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..unet import UNetConfig
from . import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Box(NamedTuple):
    """One step of a UNet: a box at `level` (0 is the full size) with its channels and what sort of step it is."""

    level: int
    channels: int
    kind: str  # end, block, attention or halving
    skip: int | None  # the place of the box that receives what this one sends


def plan(config: UNetConfig) -> list[Box]:
    """The steps of a UNet in the order in which they run, the first and the last convolution included."""
    c, last = config, len(config.mult) - 1

    def kind(level: int) -> str:
        return "attention" if 2**level in c.attend_at else "block"

    down = [(0, c.width, "end")]
    for level, m in enumerate(c.mult):
        down += [(level, c.width * m, kind(level))] * c.blocks
        down += [(level + 1, c.width * m, "halving")] * (level < last)
    middle = [(last, c.width * c.mult[-1], name) for name in ("attention", "block")]
    up = [(level, c.width * c.mult[level], kind(level)) for level in range(last, -1, -1) for _ in range(c.blocks + 1)]
    boxes = [*down, *middle, *up, (0, c.channels, "end")]
    return [Box(*box, len(boxes) - 2 - i if i < len(down) else None) for i, box in enumerate(boxes)]


def unet(config: UNetConfig, side: int, words: str) -> None:
    """Shows the plan for a latent of side x side: a box for each step, lower where its map is smaller, and skips."""
    look = {"end": figures.LINE, "block": figures.BLUE, "attention": figures.PURPLE, "halving": figures.ORANGE}
    boxes = plan(config)
    skips = sum(box.skip is not None for box in boxes)
    figure, axis = figures.canvas(10.8, 1.6 + 0.35 * len(config.mult) + 0.13 * skips)
    for x, (level, channels, kind, to) in enumerate(boxes):
        ink = figures.INK if kind == "end" else "white"
        axis.bar(x, 0.72, 0.76, bottom=-level - 0.36, color=look[kind])
        axis.text(x, -level, f"{channels}\n{side // 2**level}²", ha="center", va="center", color=ink, fontsize=8.5)
        if to is not None:
            top, end = 0.6 + 0.2 * (skips - 1 - x), 0.37 - boxes[to].level
            axis.plot([x, x, to], [0.37 - level, top, top], color=figures.SOFT, lw=1)
            arrow = {"arrowstyle": "-|>", "color": figures.SOFT, "shrinkA": 0}
            axis.annotate("", (to, end), (to, top), arrowprops=arrow)
    axis.set(xlim=(-0.6, len(boxes) - 0.4), ylim=(-len(config.mult) + 0.5, 0.6 + 0.2 * skips))
    axis.axis("off")
    figures.show(figure, words)


def heat(maps: Mapping[str, Tensor], words: str, label: str = "", **limits: float) -> None:
    """Shows maps (h, w) side by side under their titles, in one scale of colours. limits: vmin, vmax."""
    values = torch.stack([m.detach().float().cpu() for m in maps.values()])
    limits = {"vmin": float(values.amin()), "vmax": float(values.amax())} | limits
    figure, axes = figures.canvas(10.8, 1.0 + 9.2 / len(maps), columns=len(maps), squeeze=False)
    for axis, title, value in zip(axes[0], maps, values):
        drawn = axis.imshow(value.numpy(), interpolation="nearest", **limits)
        axis.set(title=title, xticks=[], yticks=[])
        axis.grid(False)
    figure.colorbar(drawn, ax=list(axes[0]), label=label, shrink=0.8)
    figures.show(figure, words)


def bars(axis: Axes, names: Sequence[str], parts: Mapping[str, Sequence[float]], stacked: bool = False) -> None:
    """Bars of each part at each name: side by side and upright, or stacked and lying, the first name on top."""
    places, below, width = np.arange(len(names)), np.zeros(len(names)), 0.8 / len(parts)
    for i, (label, sizes) in enumerate(parts.items()):
        sizes = torch.as_tensor(sizes).cpu().numpy()
        if stacked:
            axis.barh(-places, sizes, left=below, label=label)
            below = below + sizes
        else:
            axis.bar(places + (i - (len(parts) - 1) / 2) * width, sizes, width, label=label)
    ticks: dict[str, Any] = {"yticks": -places, "yticklabels": names} if stacked else {"xticks": places}
    axis.set(**ticks if stacked else ticks | {"xticklabels": names})
    axis.set_axisbelow(True)


def marks(
    axis: Axes, rows: Mapping[str, Sequence[bool]], columns: Sequence[str], yes: str = "passes", no: str = "stopped"
) -> None:
    """A table of yes and no, in words and in colours."""
    for i, row in enumerate(rows.values()):
        for j, good in enumerate(row):
            axis.barh(-i, 0.92, 0.84, left=j - 0.46, color=figures.GREEN if good else figures.RED)
            axis.text(j, -i, yes if good else no, color="white", ha="center", va="center", fontsize=8)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks([-i for i in range(len(rows))], list(rows))
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.grid(False)
