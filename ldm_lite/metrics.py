"""How good pictures are, as numbers: pure functions of images."""

from __future__ import annotations

from torch import Tensor


def psnr(image: Tensor, other: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB of images (B, …) in [-1, 1]: 10 log10(2^2 / mean squared error).

    Infinite for equal images. ValueError for shapes that differ."""
    if image.shape != other.shape:
        raise ValueError(f"shapes differ: {tuple(image.shape)} and {tuple(other.shape)}")
    error = (image.double() - other.double()).square().flatten(1).mean(1)
    return (10 * (4 / error).log10()).float()
