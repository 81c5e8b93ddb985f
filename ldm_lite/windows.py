"""Pictures that are larger than a model was trained for, or than fit into memory, by overlapping windows.

Each window goes through the network by itself, and their results are blended with weights that fall towards the borders
of a window (Rombach et al. 2022, section 4.3.2 and appendix D; the original's `split_input_params`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from .condition import Condition
from .config import InputError, one_or_more


def starts(length: int, window: int, overlap: int) -> list[int]:
    """Where windows begin along a side, evenly and overlapping by at least `overlap`; one window if it is enough."""
    if length <= window:
        return [0]
    many = -(-(length - overlap) // (window - overlap))
    return [round(i * (length - window) / (many - 1)) for i in range(many)]


def ramp(window: int, overlap: int) -> Tensor:
    """(window,) weights: 1 in the middle, falling in a straight line over `overlap` at either end, never to 0."""
    at = torch.arange(window) + 0.5
    return (torch.minimum(at, window - at) / max(overlap, 0.5)).clamp(max=1.0)


def places(h: int, w: int, window: int, overlap: int) -> Iterator[tuple[slice, slice]]:
    """The windows of a map, row by row."""
    one_or_more(window=window)
    if not 0 <= overlap < window:
        raise InputError(f"overlap: {overlap} is not from 0 to below the window, {window}")
    for y, x in product(starts(h, window, overlap), starts(w, window, overlap)):
        yield slice(y, min(y + window, h)), slice(x, min(x + window, w))


def blended(
    run: Callable[[slice, slice], Tensor], h: int, w: int, window: int, overlap: int, scale: float = 1
) -> Tensor:
    """The windows' results, run(rows, columns) -> (B, C, scale x, scale x), as one map (B, C, scale h, scale w)."""
    total = weight = None
    for rows, columns in places(h, w, window, overlap):
        part = run(rows, columns)
        there = [slice(round(s.start * scale), round(s.stop * scale)) for s in (rows, columns)]
        wide = round(overlap * scale)
        if total is None:
            total = part.new_zeros(*part.shape[:2], round(h * scale), round(w * scale))
            weight = torch.zeros_like(total[:1, :1])
        mask = (ramp(part.shape[2], wide)[:, None] * ramp(part.shape[3], wide)).to(part)
        total[..., there[0], there[1]] += part * mask
        weight[..., there[0], there[1]] += mask
    return total / weight


def windowed(
    denoiser: Callable[[Tensor, Tensor, Condition], Tensor], window: int, overlap: int
) -> Callable[[Tensor, Tensor, Condition], Tensor]:
    """The denoiser, of latents of any size by windows of `window` x `window`. Maps beside the latent are cut with it;
    tokens and vectors are told to each window alike: places in the picture, such as those of boxes, would be wrong."""

    def called(z: Tensor, clock: Tensor, cond: Condition) -> Tensor:
        def run(rows: slice, columns: slice) -> Tensor:
            maps = None if cond.concat is None else cond.concat[..., rows, columns]
            return denoiser(z[..., rows, columns], clock, replace(cond, concat=maps))

        return blended(run, *z.shape[2:], window, overlap)

    return called
