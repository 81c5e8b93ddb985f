"""Where cross-attention looks: its weights, recorded while a model draws.

    with recorded(model.denoiser) as maps:
        images = model.sample({"caption": [caption]}, guidance=4.0)
    where = maps.mean(16)[0, ..., model.conditioner.places(caption, "house")].sum(-1)     # (16, 16)

Nothing is computed or kept outside the `with`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from .config import InputError
from .layers import SpatialTransformer


class Maps:
    """calls[i]: what each layer's cross-attention looked at in the i-th call of the denoiser, (B, h, w, L) on the CPU:
    for each place of the map how its attention, a mean over the heads, is shared among the L tokens. Of what a model's
    `sample` draws, all its samples are one call, in whatever batches they are drawn, and guidance's other half is left
    out: B is how many there are."""

    def __init__(self) -> None:
        self.calls: list[list[Tensor]] = []

    def joined(self, denoiser: Callable[..., Tensor], rows: int) -> Callable[..., Tensor]:
        """The denoiser, of which the calls that one call of it makes are recorded as one, by their last rows alone."""

        def called(*inputs: Any) -> Tensor:
            first = len(self.calls)
            output = denoiser(*inputs)
            self.calls[first:] = [[torch.cat(parts)[-rows:] for parts in zip(*self.calls[first:])]]
            return output

        return called

    def mean(self, side: int | tuple[int, int], calls: slice = slice(None), least: int = 1) -> Tensor:
        """(B, side, side, L): over the layers and some of the calls, each map at this size. InputError without any.

        least: leaves out maps of fewer places on a side, where one place may hold a whole object and its neighbours."""
        size = (side, side) if isinstance(side, int) else side
        some = [layer for call in self.calls[calls] for layer in call if min(layer.shape[1:3]) >= least]
        if not some:
            few = f", or none of {least} places on a side" if least > 1 else ""
            raise InputError(f"maps: none were recorded; the model has no cross-attention{few}, or drew nothing")
        total = torch.zeros(())
        for layer in some:
            maps = rearrange(layer, "b y x l -> b l y x")
            total = total + F.interpolate(maps, size, mode="bilinear", antialias=True)
        return rearrange(total / len(some), "b l y x -> b y x l")


@contextmanager
def recorded(denoiser: nn.Module) -> Iterator[Maps]:
    """Records the cross-attention of a UNet's calls."""
    maps = Maps()
    with ExitStack() as undo:
        denoiser.recording = maps
        undo.callback(delattr, denoiser, "recording")

        def hook(module: nn.Module, before: Any) -> None:
            undo.callback(module.register_forward_pre_hook(before).remove)

        hook(denoiser, lambda module, inputs: maps.calls.append([]))
        for layer in denoiser.modules():
            if isinstance(layer, SpatialTransformer):
                size: list[int] = []  # of the map that the layer's tokens come from
                hook(layer, lambda module, inputs, size=size: size.__setitem__(slice(None), inputs[0].shape[2:]))
                for block in layer.blocks:
                    block.attn2.watch = partial(_keep, maps, size)
                    undo.callback(setattr, block.attn2, "watch", None)
        yield maps


def _keep(maps: Maps, size: list[int], weights: Tensor) -> None:
    mean = reduce(weights.detach().float(), "b heads (y x) l -> b y x l", "mean", y=size[0], x=size[1])
    maps.calls[-1].append(mean.cpu())
