"""How fast pictures arrive: python benchmarks/data.py [--pictures 2000] [--workers 0 1 2]

Scenes at 256 pixels, as a folder of JPEG, as Parquet (indexed and as a stream) and as LSUN's lmdb of WebP; decoded,
cropped and resized to 256 by our datasets through the training's loader, in images/s. The peer is torchvision's
ImageFolder with the same work, in the same run. Then cached latents of 3 x 64 x 64 in files, by random rows."""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm_lite.autoencoder import Pixels
from ldm_lite.data import LSUN, HubImages, ImageFolder, Scenes, cache_latents
from ldm_lite.training import TrainConfig, batches

SIZE = 256


def encoded(n: int, kind: str) -> Iterator[bytes]:
    """Pictures of 341 x 256, as the encoder `kind` writes them."""
    scenes = Scenes("test", size=SIZE)
    for row in range(n):
        array = ((scenes[row]["image"].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
        held = io.BytesIO()
        Image.fromarray(array).resize((341, 256)).save(held, kind, quality=90)
        yield held.getvalue()


def written(folder: Path, n: int) -> None:
    import datasets
    import lmdb

    (folder / "jpeg" / "one").mkdir(parents=True)
    jpegs = list(encoded(n, "jpeg"))
    for i, data in enumerate(jpegs):
        (folder / "jpeg" / "one" / f"{i:05}.jpg").write_bytes(data)
    (folder / "parquet" / "data").mkdir(parents=True)
    kinds = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None} for data in jpegs]}, features=kinds)
    table.to_parquet(str(folder / "parquet" / "data" / "train-00000-of-00001.parquet"))
    environment = lmdb.open(str(folder / "x_train_lmdb"), map_size=2**32)
    with environment.begin(write=True) as transaction:
        for i, data in enumerate(encoded(n, "webp")):
            transaction.put(f"{i:040x}".encode(), data)
    environment.close()


def rate(source: Iterator[Any], count: int) -> float:
    """Images/s of `count` images, after a first batch that starts the workers."""
    next(source)
    began, seen = time.perf_counter(), 0
    while seen < count:
        batch = next(source)
        seen += len(batch["image"] if isinstance(batch, dict) else batch[0])
    return seen / (time.perf_counter() - began)


def peer(folder: Path, config: TrainConfig) -> Iterator[Any]:
    from torchvision import datasets
    from torchvision.transforms import v2

    work = v2.Compose(
        [v2.CenterCrop(256), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    )
    data = datasets.ImageFolder(str(folder), transform=work)
    while True:
        yield from torch.utils.data.DataLoader(data, config.batch, shuffle=True, num_workers=config.workers)


def stream(data: HubImages, batch: int) -> Iterator[dict[str, Any]]:
    epoch = 0
    while True:
        part = []
        for item in data.stream(epoch):
            part.append(item["image"])
            if len(part) == batch:
                yield {"image": torch.stack(part)}
                part = []
        epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="*", default=(0, 1, 2))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    n, config = asked.pictures, TrainConfig(steps=10**6, batch=32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder, n)
        sets = {
            "a folder of JPEG": ImageFolder(folder / "jpeg", size=SIZE),
            "Parquet of JPEG": HubImages(folder / "parquet", size=SIZE),
            "LSUN's lmdb of WebP": LSUN(folder / "x_train_lmdb", size=SIZE),
        }
        print("| images/s | " + " | ".join(f"{w} workers" for w in asked.workers) + " |")
        print("|---" * (len(asked.workers) + 1) + "|", flush=True)
        row = [rate(peer(folder / "jpeg", replace(config, workers=w)), n) for w in asked.workers]
        print("| torchvision's ImageFolder | " + " | ".join(f"{v:.0f}" for v in row) + " |", flush=True)
        for title, data in sets.items():
            row = [rate(batches(data, 0, replace(config, workers=w)), n) for w in asked.workers]
            print(f"| {title} | " + " | ".join(f"{v:.0f}" for v in row) + " |", flush=True)
        streamed = HubImages(folder / "parquet", size=SIZE, streaming=True)
        cells = [f"{rate(stream(streamed, 32), n // 2):.0f}", *[""] * (len(asked.workers) - 1)]
        print("| Parquet of JPEG, as a stream | " + " | ".join(cells) + " |", flush=True)

        z = Scenes("train", size=64, count=20_000)  # pixels in the place of latents: as large, and quickly made
        latents = cache_latents(Pixels(), z, folder / "latents", progress=False)
        order = torch.randperm(len(latents))
        for _ in range(2):  # the first time maps the pages
            began = time.perf_counter()
            for rows in order.split(64):
                latents.batch(rows.tolist())
            spent = time.perf_counter() - began
        print(f"\ncached latents of 3 x 64 x 64, 64 random rows at a time: {len(latents) / spent:,.0f}/s")


if __name__ == "__main__":
    main()
