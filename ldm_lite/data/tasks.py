"""A dataset with the input of a task added to its items: a small version of each picture, or one with a hole.

What is added is a function of (seed, row, epoch): every epoch has other holes, and a resumed run the same ones. Cached
latents hold those of the first few epochs (`conditioners.epochs`), which come again."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..config import InputError, suggest

DEGRADATIONS = ("bicubic", "bsr")


class Task(Dataset):
    """The items of `data` with what `added` makes of a batch's images (B, 3, H, W) in [-1, 1]."""

    def __init__(self, data: Any, seed: int = 0):
        self.data, self.seed = data, seed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("data", "batch", "draw", "identity"):  # what differs here
            raise AttributeError(name)
        return getattr(self.data, name)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.one(self.data[row], row, 0)

    def draws(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """A batch of (row, epoch) pairs."""
        from ..training import Drawn

        batch = Drawn(self.data).__getitems__(list(pairs))
        return batch | self.added(batch["image"], pairs)

    def one(self, item: dict[str, Any], row: int, epoch: int) -> dict[str, Any]:
        added = self.added(item["image"][None], [(row, epoch)])
        return item | {key: value[0] for key, value in added.items()}

    def added(self, images: Tensor, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        raise NotImplementedError

    def random(self, row: int, epoch: int) -> np.random.Generator:
        from ..latent import mix

        return np.random.default_rng(mix(self.seed, row, epoch))


class with_crops(Task):
    """A random square of each picture in its place, `size` pixels a side: of 1 / zoom to all of the picture's side, any
    side being as likely. So a model learns things at more than one size (the paper's ImageNetSR, with zoom = 2).

    Give pictures of zoom * size pixels: then none is enlarged. Boxes, maps and captions would not be true of it."""

    def __init__(self, data: Any, size: int, zoom: float = 2.0, seed: int = 0):
        super().__init__(data, seed)
        self.size, self.zoom = size, zoom

    def added(self, images: Tensor, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        return {"image": torch.stack([self.cut(x, self.random(*pair)) for x, pair in zip(images, pairs, strict=True)])}

    def cut(self, image: Tensor, random: np.random.Generator) -> Tensor:
        short = min(image.shape[1:])
        side = round(short * random.uniform(1 / self.zoom, 1))
        y, x = (int(random.integers(0, n - side, endpoint=True)) for n in image.shape[1:])
        part = (image.float() / 127.5 - 1 if image.dtype == torch.uint8 else image)[None, :, y : y + side, x : x + side]
        return F.interpolate(part, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)[0]


class with_low_res(Task):
    """Adds low (3, H / factor, W / factor) in [-1, 1].

    bicubic: with antialiasing, as the paper's. bsr: blur, resizing, noise and JPEG in a random order, for photographs
    from anywhere (BSRGAN, Zhang et al. 2021, in the light form of the original's code)."""

    def __init__(self, data: Any, factor: int = 4, degradation: Literal["bicubic", "bsr"] = "bicubic", seed: int = 0):
        super().__init__(data, seed)
        if degradation not in DEGRADATIONS:
            raise suggest(degradation, DEGRADATIONS, "degradation")
        self.factor, self.degradation = factor, degradation

    def added(self, images: Tensor, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        if images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise InputError(f"low: images of {tuple(images.shape[2:])} are not divisible by {self.factor}")
        if self.degradation == "bicubic":
            return {"low": smaller(images, self.factor)}
        low = [bsr((x + 1) / 2, self.factor, self.random(*pair)) for x, pair in zip(images, pairs, strict=True)]
        return {"low": torch.stack(low) * 2 - 1}


class with_mask(Task):
    """Adds mask (1, H, W) bool, True = keep, and masked (3, H, W): the image with its hole at -1.

    The holes are thick strokes or boxes (LaMa, Suvorov et al. 2022, section 2.3)."""

    def added(self, images: Tensor, pairs: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        h, w = images.shape[2:]
        keep = torch.from_numpy(np.stack([random_mask(h, w, self.random(*pair)) for pair in pairs]))[:, None]
        return {"mask": keep, "masked": torch.where(keep, images, -1.0)}


def smaller(images: Tensor, factor: int) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] by a factor smaller: bicubic, with antialiasing."""
    size = (images.shape[2] // factor, images.shape[3] // factor)
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)


def random_mask(h: int, w: int, random: np.random.Generator) -> np.ndarray:
    """(h, w) bool, False in the hole: up to four boxes, or strokes of a brush, half the time each."""
    from PIL import Image, ImageDraw

    hole = Image.new("1", (w, h))
    pen, side = ImageDraw.Draw(hole), min(h, w)
    if random.random() < 0.5:
        for _ in range(random.integers(1, 4, endpoint=True)):
            a, b = (int(side * s) for s in random.uniform(0.15, 0.5, 2))
            x, y = random.integers(0, w - a, endpoint=True), random.integers(0, h - b, endpoint=True)
            pen.rectangle((int(x), int(y), int(x) + a - 1, int(y) + b - 1), fill=1)
    else:
        for _ in range(random.integers(1, 3, endpoint=True)):
            wide, angle = side * random.uniform(0.06, 0.18), random.uniform(0, 2 * math.pi)
            points = [(random.uniform(0, w), random.uniform(0, h))]
            for _ in range(random.integers(2, 6, endpoint=True)):
                angle += random.uniform(-1.2, 1.2)
                step = side * random.uniform(0.1, 0.4)
                points.append((points[-1][0] + step * math.cos(angle), points[-1][1] + step * math.sin(angle)))
            pen.line(points, fill=1, width=max(1, round(wide)))
            for x, y in points:
                pen.ellipse((x - wide / 2, y - wide / 2, x + wide / 2, y + wide / 2), fill=1)
    keep = ~np.array(hole, dtype=bool)
    return keep if not keep.all() else random_mask(h, w, random)  # a stroke beside the picture leaves no hole


def bsr(image: Tensor, factor: int, random: np.random.Generator) -> Tensor:
    """A photograph (3, H, W) in [0, 1] as it may come from anywhere, by a factor smaller: the original's "light" form.

    Blur, two resizings (in this order), noise and JPEG in a random order; JPEG again at the end."""
    h, w = image.shape[1] // factor, image.shape[2] // factor
    x = image[None]
    if factor == 4 and random.random() < 0.25:
        x = resized(x, (x.shape[2] // 2, x.shape[3] // 2), random)
    steps = list(random.permutation(["blur", "shrink", "fit", "noise", "jpeg"]))
    first, second = sorted((steps.index("shrink"), steps.index("fit")))
    steps[first], steps[second] = "shrink", "fit"
    for step in steps:
        if step == "blur":
            x = blurred(x, random.uniform(0.1, 0.6 * factor / 2), random.uniform(0.1, 0.6 * factor / 2))
        elif step == "shrink" and random.random() < 0.8:
            scale = 1 / random.uniform(1, 2 * factor)
            x = resized(
                x, (max(h // 2, 8, round(x.shape[2] * scale)), max(w // 2, 8, round(x.shape[3] * scale))), random
            )
        elif step == "shrink":
            x = blurred(x, 0.4 * factor, 0.4 * factor)[..., ::2, ::2]
        elif step == "fit":
            x = resized(x, (h, w), random)
        elif step == "noise":
            noise = torch.from_numpy(random.standard_normal(tuple(x.shape), np.float32))
            x = (x + noise.to(x) * random.uniform(1, 2) / 255).clamp(0, 1)
        elif random.random() < 0.9:
            x = jpeg(x, int(random.integers(80, 95, endpoint=True)))
    return jpeg(x, int(random.integers(80, 95, endpoint=True)))[0]


def resized(x: Tensor, size: tuple[int, int], random: np.random.Generator) -> Tensor:
    mode = str(random.choice(["bilinear", "bicubic", "area"]))
    more = {} if mode == "area" else {"antialias": True}
    return F.interpolate(x, size, mode=mode, **more).clamp(0, 1)


def blurred(x: Tensor, down: float, across: float) -> Tensor:
    """Gaussian blur with a standard deviation, in pixels, for each direction."""
    for sigma, axis in ((down, 2), (across, 3)):
        reach = min(max(1, math.ceil(3 * sigma)), x.shape[axis] - 1)
        at = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        kernel = torch.exp(-(at**2) / (2 * sigma**2))
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        kernel = (kernel / kernel.sum()).view(shape).expand(x.shape[1], -1, -1, -1)
        x = F.conv2d(F.pad(x, pad, mode="reflect"), kernel, groups=x.shape[1])
    return x


def jpeg(x: Tensor, quality: int) -> Tensor:
    """(1, 3, H, W) in [0, 1] after JPEG of a quality."""
    from PIL import Image

    pixels = (x[0] * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "jpeg", quality=quality)
    back = torch.from_numpy(np.asarray(Image.open(held), dtype=np.float32) / 255)
    return back.permute(2, 0, 1)[None].to(x)
