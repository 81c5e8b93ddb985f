"""Pictures made from pictures: larger ones, and ones with a hole filled, at any size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conditioners import Conditioner, Inpainting, LowRes, Together
from .config import InputError
from .latent import LatentDiffusion


def part(model: LatentDiffusion, kind: type[Conditioner]) -> Any:
    """The model's conditioner of a kind, alone or among several; None without one."""
    told = model.conditioner
    parts: list[nn.Module] = list(told.parts) if isinstance(told, Together) else [told]
    return next((one for one in parts if isinstance(one, kind)), None)


def upscaled(model: LatentDiffusion, low: Tensor, window: int = 64, batch: Any = None, **settings: Any) -> Tensor:
    """Images (B, 3, factor h, factor w) in [-1, 1] from small ones (B, 3, h, w) in [-1, 1], of any size.

    window: pixels of a picture that the model was trained on; larger ones are drawn by windows of this side. batch:
    what else the model is told. settings: of `LatentDiffusion.sample`. InputError for a model of another task."""
    told = part(model, LowRes)
    if told is None:
        raise InputError("upscale: the model was not trained for it; scenes-upscale was")
    factor = told.config.factor
    unit = max(1, model.unit // factor)
    fitted, (h, w) = extended(low, unit)
    size = (fitted.shape[2] * factor, fitted.shape[3] * factor)
    drawn = model.sample((batch or {}) | {"low": fitted}, size=size, **windows(model, size, window, settings))
    return drawn[..., : h * factor, : w * factor]


def inpainted(
    model: LatentDiffusion, image: Tensor, mask: Tensor, window: int = 64, batch: Any = None, **settings: Any
) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] with what is masked drawn anew, the rest exactly as it was.

    image: (B, 3, H, W) in [-1, 1]; mask: (B, 1, H, W), or (1, 1, H, W) for all, 1 = keep, 0 = fill; what lies in the
    hole is not looked at.
    window, batch, settings: as in `upscaled`. InputError for a model of another task, and for a mask that is not
    binary or of another size."""
    if part(model, Inpainting) is None:
        raise InputError("inpaint: the model was not trained for it; scenes-inpaint was")
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != image.shape[2:]:
        raise InputError(f"mask: {tuple(mask.shape[2:])} is of another size than the image, {tuple(image.shape[2:])}")
    if len(mask) not in (1, len(image)):
        raise InputError(f"mask: {len(mask)} masks, and {len(image)} images; give one, or {len(image)}")
    if not ((mask == 0) | (mask == 1)).all():
        raise InputError("mask: has other values than 1, keep, and 0, fill; make it black and white")
    keep = mask.bool().expand(len(image), -1, -1, -1)
    fitted, (h, w) = extended(torch.where(keep, image, -1.0), model.unit)
    kept, _ = extended(keep.float(), model.unit)
    size = tuple(fitted.shape[2:])
    given = (batch or {}) | {"masked": fitted, "mask": kept}
    drawn = model.sample(given, size=size, **windows(model, size, window, settings))[..., :h, :w]
    return torch.where(keep, image, drawn)


def windows(model: LatentDiffusion, size: tuple[int, ...], window: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the windows that a picture of this size is drawn by, and without where it fits into one."""
    if settings.get("overlap") is not None:
        model.windows(window, settings["overlap"])  # what cannot be is told of small pictures too
    if max(size) > window:
        return settings | {"window": window}
    return {name: value for name, value in settings.items() if name != "overlap"}


def extended(image: Tensor, unit: int) -> tuple[Tensor, tuple[int, int]]:
    """The image with its right and lower edge repeated until its sides are divisible by `unit`, and its own size."""
    h, w = image.shape[2:]
    return F.pad(image, (0, -w % unit, 0, -h % unit), mode="replicate"), (h, w)
