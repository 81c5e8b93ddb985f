"""Whether the shipped models draw what they are told: python benchmarks/tasks.py TASK… [--samples 1000]

Held-out scenes say what to draw, and Features("scenes") and scenes-objects look at what was drawn; each number stands
beside that of the real scenes, read in the same way. TASK: class, text, layout, map, upscale, holes, canvas."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from memory import grown
from torch import Tensor

from ldm_lite.attention import recorded
from ldm_lite.condition import Condition
from ldm_lite.data import Scenes, with_low_res
from ldm_lite.data.scenes import OBJECTS
from ldm_lite.editing import inpainted
from ldm_lite.features import Features
from ldm_lite.latent import LatentDiffusion
from ldm_lite.losses import LPIPS
from ldm_lite.metrics import fid, high_frequency, precision_recall, psnr, ssim
from ldm_lite.presets import DataConfig, recipe, told_images
from ldm_lite.reading import finder, heard, placed, things, wanted
from ldm_lite.runs import looked_at, miou, obedience, pictures, steady_allocator, told_samples, whole_batch
from ldm_lite.training import Descent, TrainConfig, autocast, batches, device, learning_rate, moved, precision
from ldm_lite.unet import UNet, UNetConfig

STEPS = 30
PIXEL_STEPS = 6_000  # about as long as scenes-upscale took
LEARNED_FROM = 120_000  # of the first training scenes, by scenes-text


def table(*names: str) -> None:
    print("| " + " | ".join(names) + " |")
    print("|---" * len(names) + "|", flush=True)


def row(*cells: Any) -> None:
    print("| " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |", flush=True)


class Judge:
    """The networks that look, and what they see in real scenes."""

    def __init__(self) -> None:
        self.features, self.finder = Features("scenes").to(device()), finder().to(device())
        self.real = looked_at(self.features, pictures(Scenes("validation"), range(2048, 4096)))

    def fid(self, images: Tensor) -> float:
        return fid(self.real, looked_at(self.features, images))

    def read(self, images: Tensor) -> Tensor:
        return torch.cat([self.features.read(part.to(device())).segmentation.cpu() for part in images.split(64)])


def given(name: str, n: int) -> tuple[LatentDiffusion, dict[str, Any]]:
    """A shipped model, and n held-out scenes with all that it is told."""
    model = LatentDiffusion.load(name).to(device())
    return model, whole_batch(told_images(DataConfig(), model.conditioner.config, "validation"), range(n))


def of_class(n: int, judge: Judge) -> None:
    model = LatentDiffusion.load("scenes-ldm4").to(device())
    labels = torch.arange(n) % len(model.conditioner.names)
    table("guidance", "label read back", "FID", "precision", "recall")
    for guidance in (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0):
        images = told_samples(model, {"label": labels, "image": labels}, 64, guidance, STEPS)
        seen = looked_at(judge.features, images)
        row(
            guidance,
            obedience(images, labels)["label_read_back"],
            judge.fid(images),
            *precision_recall(judge.real, seen),
        )


def unseen(n: int) -> dict[str, Any]:
    """n scenes after those that scenes-text learned from, with captions that none of those had."""
    scenes, rows = Scenes("train", keys=("image", "caption")), []

    def captions(first: int) -> list[str]:
        plan = scenes.plan(range(first, first + 500))
        return [plan.caption(i) for i in range(500)]

    known = {caption for first in range(0, LEARNED_FROM, 500) for caption in captions(first)}
    for first in range(LEARNED_FROM, len(scenes), 500):
        rows += [first + i for i, caption in enumerate(captions(first)) if caption not in known]
        if len(rows) >= n:
            break
    return whole_batch(scenes, rows[:n])


def said(captions: list[str], shown: list[Any]) -> float:
    pairs = [heard(wanted(caption), mine) for caption, mine in zip(captions, shown)]
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs)


def text(n: int, judge: Judge) -> None:
    model, both = LatentDiffusion.load("scenes-text").to(device()), unseen(3 * n)
    batch, others = {k: v[:n] for k, v in both.items()}, both["image"][n:]
    judge.real = looked_at(judge.features, others)  # scenes of rare captions: they have more objects than most
    table("guidance", "objects heard", "FID", "a noun's attention peaks inside", "its phrase's")
    row("real scenes", said(batch["caption"], things(batch["image"], judge.finder)), judge.fid(batch["image"]), "", "")
    for guidance in (1.0, 2.0, 4.0, 6.0):
        images = told_samples(model, batch, 64, guidance, STEPS)
        heard_ = said(batch["caption"], things(images, judge.finder))
        row(guidance, heard_, judge.fid(images), *peaks(model, batch["caption"][:200], guidance, judge))


def peaks(model: LatentDiffusion, captions: list[str], guidance: float, judge: Judge) -> tuple[float, float]:
    """The share of nouns, and of nouns with their number and colour ("two cacti", "a red house"), whose attention, a
    mean over the layers with the finest maps and the steps, peaks inside such an object. What was not drawn at all does
    not count."""
    told, nouns, phrases = model.conditioner, [], []
    with recorded(model.denoiser) as maps, autocast(model.device, precision("auto", model.device)):
        images = model.sample({"caption": captions}, steps=STEPS, guidance=guidance)
    mean = maps.mean(16, least=max(maps.calls[0][0].shape[1:3]))
    for caption, where, shown in zip(captions, mean, things(images, judge.finder)):
        for one in wanted(caption):
            if boxes := [thing.box for thing in shown if one.means(thing)]:
                phrase = told.places(caption, one.phrase)
                noun = phrase[-told.count(f" {one.word}") :]  # this one's: there may be two boats
                for tokens, hits in ((noun, nouns), (phrase, phrases)):
                    y, x = divmod(int(where[..., tokens].sum(-1).argmax()), 16)
                    x, y = (x + 0.5) / 16, (y + 0.5) / 16
                    hits.append(any(b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in boxes))
    return sum(nouns) / len(nouns), sum(phrases) / len(phrases)


def layout(n: int, judge: Judge) -> None:
    model, batch = given("scenes-layout", n)
    table("guidance", "mean IoU", "right kind", "FID")

    def score(images: Tensor) -> tuple[float, float, float]:
        rows = zip(batch["boxes"], batch["box_labels"], things(images, judge.finder))
        each = [pair for boxes, kinds, shown in rows for pair in placed(boxes, [OBJECTS[k] for k in kinds], shown)]
        return sum(v for v, _ in each) / len(each), sum(k for _, k in each) / len(each), judge.fid(images)

    row("real scenes", *score(batch["image"]))
    for guidance in (1.0, 2.0, 4.0):
        row(guidance, *score(told_samples(model, batch, 64, guidance, STEPS)))


def semantic(n: int, judge: Judge) -> None:
    model, batch = given("scenes-map", n)
    table("pictures", "mIoU of the map asked and the map read", "FID")
    for name, images in (("real scenes", batch["image"]), ("samples", told_samples(model, batch, 64, 1.0, STEPS))):
        row(name, miou(batch["segmentation"].long(), judge.read(images)), judge.fid(images))


def regression(model: LatentDiffusion, steps: int, batch: int = 32) -> Callable[[Tensor], Tensor]:
    """low -> image by a network of the same size that learned for as many steps what one picture is most likely, in the
    sense of L1: it is asked for the latent at once, without noise."""
    train = TrainConfig(steps=steps, batch=batch, lr=1e-3, decay="cosine", ema=0.999)
    torch.manual_seed(0)
    network, stage = UNet(model.denoiser.config).to(device()), model.first_stage
    descent = Descent(network, train)

    def guess(low: Tensor) -> Tensor:
        blank = torch.zeros(len(low), stage.channels, *low.shape[2:], device=low.device)
        return network(blank, torch.zeros(len(low), device=low.device), Condition(concat=low))

    def loss(part: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        error = (guess(part["low"]) - part["z"]).abs().mean()
        return error, {"loss": error}

    source: Iterator[dict[str, Any]] = batches(with_low_res(Scenes("train", count=60_000), 4), 0, train)
    for step, part in enumerate(source):
        part = moved(part, device())
        with torch.no_grad():
            part["z"] = stage.encode(part.pop("image"))
        descent.step(part, learning_rate(step, train), loss)

    def image(low: Tensor) -> Tensor:
        with descent.averaged(), torch.no_grad():
            return torch.cat([stage.decode(guess(x.to(device()))).clamp(-1, 1).cpu() for x in low.split(64)])

    return image


def in_pixels(steps: int, batch: int = 8) -> Callable[[Tensor], Tensor]:
    """The same without a first stage: a network of as many weights adds to the bicubic picture, by L1, what it lacks
    (the regression of Saharia et al. 2021, with which the paper compares)."""
    train = TrainConfig(steps=steps, batch=batch, lr=1e-3, decay="cosine", ema=0.999)
    torch.manual_seed(0)
    network = UNet(UNetConfig(width=32, mult=(1, 1, 2, 3), blocks=1, attend_at=(4, 8), heads=4)).to(device())
    descent = Descent(network, train)

    def guess(low: Tensor) -> Tensor:
        wide = F.interpolate(low, scale_factor=4, mode="bicubic")
        return wide + network(wide, torch.zeros(len(low), device=low.device), Condition())

    def loss(part: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        error = (guess(part["low"]) - part["image"]).abs().mean()
        return error, {"loss": error}

    source: Iterator[dict[str, Any]] = batches(with_low_res(Scenes("train", count=60_000), 4), 0, train)
    for step, part in enumerate(source):
        descent.step(moved(part, device()), learning_rate(step, train), loss)

    def image(low: Tensor) -> Tensor:
        with descent.averaged(), torch.no_grad():
            return torch.cat([guess(x.to(device())).clamp(-1, 1).cpu() for x in low.split(64)])

    return image


def upscale(n: int, judge: Judge) -> None:
    model, batch = given("scenes-upscale", n)
    steps = recipe("scenes-upscale").train.steps
    table("x 4", "PSNR", "SSIM", "LPIPS", "FID", "texture kept")
    distance = LPIPS(judge.features)
    made = {
        "bicubic": F.interpolate(batch["low"], (64, 64), mode="bicubic").clamp(-1, 1),
        f"L1 regression, {steps:,} steps": regression(model, steps)(batch["low"]),
        f"L1 regression of pixels, {PIXEL_STEPS:,} steps of 8": in_pixels(PIXEL_STEPS)(batch["low"]),
        "samples": told_samples(model, batch, 64, 1.0, STEPS),
    }
    for name, images in made.items():
        pairs = [(a.to(device()), b.to(device())) for a, b in zip(batch["image"].split(64), images.split(64))]
        far = torch.cat([distance(a, b).cpu() for a, b in pairs]).mean()
        image = batch["image"]
        seen = float(psnr(images, image).mean()), float(ssim(images, image).mean()), float(far), judge.fid(images)
        row(name, *seen, float(high_frequency(images).mean() / high_frequency(image).mean()))


def holes(n: int, judge: Judge) -> None:
    """Distance: LPIPS of the hole alone, its bounding box of 16 pixels or more a side. kept: by how much a pixel that
    the mask keeps differs from what it was, at most, in 255ths."""
    model, batch = given("scenes-inpaint", n)
    keep, image, distance = batch["mask"].bool(), batch["image"], LPIPS(judge.features)
    size, settings = 64, {"steps": STEPS, "batch_size": 64}
    with autocast(model.device, precision("auto", model.device)):
        parts = [(a.to(device()), b.to(device())) for a, b in zip(image.split(64), keep.float().split(64))]
        filled = torch.cat([inpainted(model, *part, size, **settings).cpu() for part in parts])
    grey = torch.where(keep, image, torch.zeros(()))
    table("holes", "LPIPS in the hole", "FID of the whole", "kept")
    for name, images in (("grey", grey), ("filled", filled)):
        far = [distance(*(cut(x[None], k).to(device()) for x in (a, b))).item() for a, b, k in zip(image, images, keep)]
        changed = ((images - image).abs() * keep).max() * 127.5
        row(name, sum(far) / n, judge.fid(images), float(changed))


def cut(image: Tensor, keep: Tensor, least: int = 16) -> Tensor:
    """The part of an image around its hole."""
    sides = []
    for at in ((~keep[0]).any(1), (~keep[0]).any(0)):
        where = at.nonzero()
        side = max(least, int(where.max() - where.min()) + 1)
        first = min(int(where.min()), len(at) - side)
        sides.append(slice(first, first + side))
    return image[..., sides[0], sides[1]]


CANVASES = (((64, 64), 0), ((64, 128), 0), ((128, 128), 0), ((64, 128), 64), ((128, 128), 64), ((512, 512), 64))


def canvas(n: int, judge: Judge) -> None:
    """Larger pictures from the class-conditional model: FID of all their crops of 64 px, as many for each size; and the
    memory that drawing four of them takes beyond the model's, in a process of its own."""
    table("pixels", "how", "FID of crops", "MiB for four")
    for size, window in CANVASES:
        parts = size[0] * size[1] // 64**2
        if n < 4 * parts:  # of too few canvases
            row(f"{size[1]} x {size[0]}", "windows" if window else "at once", "", memory(size, window))
            continue
        crops = crop(drawn(size, window, max(1, n // parts)))
        row(f"{size[1]} x {size[0]}", "windows" if window else "at once", judge.fid(crops), memory(size, window))


def drawn(size: tuple[int, int], window: int, n: int, steps: int = STEPS) -> Tensor:
    model = LatentDiffusion.load("scenes-ldm4").to(device())
    labels = torch.arange(n) % len(model.conditioner.names)
    settings = {"steps": steps, "guidance": 2.0, "size": size, "batch_size": 16} | whole(window)
    with autocast(model.device, precision("auto", model.device)):
        return model.sample({"label": labels}, **settings)


def whole(window: int) -> dict[str, int]:
    return {"window": window} if window else {}


def crop(images: Tensor) -> Tensor:
    h, w = images.shape[2:]
    return torch.cat([images[..., y : y + 64, x : x + 64] for y in range(0, h, 64) for x in range(0, w, 64)])


def memory(size: tuple[int, int], window: int) -> int:
    """MiB that this process grows by, at its largest, while it draws four pictures after one of 64 px."""
    command = [sys.executable, __file__, "grow", str(size[0]), str(size[1]), str(window)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def grow(height: int, width: int, window: int) -> None:
    """Prints it; two steps take as much memory as thirty."""
    drawn((64, 64), 0, 1, 1)
    print(grown(lambda: drawn((height, width), window, 4, 2)))


TASKS = {
    "class": of_class,
    "text": text,
    "layout": layout,
    "map": semantic,
    "upscale": upscale,
    "holes": holes,
    "canvas": canvas,
}


def main() -> None:
    if sys.argv[1:2] == ["grow"]:
        return grow(*map(int, sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--samples", type=int, default=1000)
    asked = parser.parse_args()
    steady_allocator()
    judge = Judge()
    for task in asked.tasks:
        print(f"\n{task}, {asked.samples} samples\n")
        TASKS[task](asked.samples, judge)


if __name__ == "__main__":
    main()
