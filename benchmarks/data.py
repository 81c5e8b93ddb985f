"""How fast pictures arrive: python benchmarks/data.py [--pictures 2000] [--workers 0 1 2]

Scenes at 256 pixels, as a folder of JPEG, as Parquet in four files (indexed and as a stream) and as LSUN's lmdb of
WebP; decoded, cropped and resized to 256 by our datasets through the training's loader, in images/s. The peers, with
the same work in the same run: torchvision's ImageFolder, and the stream of `datasets`. Then what of it is decoding,
how far workers should work ahead of steps that are not all alike, and cached latents of 3 x 64 x 64, by random rows."""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader

from ldm_lite.autoencoder import Pixels
from ldm_lite.data import LSUN, HubImages, ImageFolder, Scenes, cache_latents
from ldm_lite.data.folder import decoded
from ldm_lite.training import Drawn, TrainConfig, as_is, batches

SIZE = 256
FILES = 4  # of Parquet: no more workers share a stream


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
    for k in range(FILES):
        shard = table.shard(FILES, k, contiguous=True)
        shard.to_parquet(str(folder / "parquet" / "data" / f"train-0000{k}-of-0000{FILES}.parquet"))
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


def without_end(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def work() -> Any:
    from torchvision.transforms import v2

    return v2.Compose(
        [v2.CenterCrop(256), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    )


def peer(folder: Path, config: TrainConfig) -> Iterator[Any]:
    from torchvision import datasets

    data = datasets.ImageFolder(str(folder), transform=work())
    return without_end(DataLoader(data, config.batch, shuffle=True, num_workers=config.workers))


def worked(row: dict[str, Any], transform: Any) -> dict[str, Any]:
    return {"image": transform(row["image"].convert("RGB"))}


def peer_stream(folder: Path, config: TrainConfig) -> Iterator[Any]:
    import datasets

    data = datasets.load_dataset(str(folder), split="train", streaming=True).shuffle(seed=0, buffer_size=1000)
    data = data.map(partial(worked, transform=work()))
    return without_end(DataLoader(data, config.batch, num_workers=config.workers))


def decoding(files: list[bytes]) -> float:
    """Pictures/s that are decoded, and nothing else."""
    began = time.perf_counter()
    for file in files:
        decoded(io.BytesIO(file), SIZE)
    return len(files) / (time.perf_counter() - began)


def waiting(data: Any, config: TrainConfig, ahead: int, step: float, steps: int) -> float:
    """The share of the time that a trainer waits for pictures. Its device takes `step` seconds for a step, and every
    twentieth time as long as for ten: a checkpoint, or a grid of samples."""
    loader = DataLoader(
        Drawn(data),
        batch_sampler=[[(row % len(data), 0) for row in range(i, i + 32)] for i in range(0, 32 * (steps + 1), 32)],
        collate_fn=as_is,
        num_workers=config.workers,
        prefetch_factor=ahead,
    )
    source, waited = iter(loader), 0.0
    next(source)
    began = time.perf_counter()
    for k in range(steps):
        asked = time.perf_counter()
        next(source)
        waited += time.perf_counter() - asked
        time.sleep(step * (10 if k % 20 == 19 else 1))
    return waited / (time.perf_counter() - began)


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
        for title, draw in (
            ("the stream of `datasets`", lambda c: peer_stream(folder / "parquet", c)),
            ("Parquet of JPEG, as a stream", lambda c: batches(streamed, 0, c)),
        ):
            row = [rate(draw(replace(config, workers=w)), n) for w in asked.workers]
            print(f"| {title} | " + " | ".join(f"{v:.0f}" for v in row) + " |", flush=True)

        for kind in ("jpeg", "webp"):
            print(f"\n{kind}: {decoding(list(encoded(n // 4, kind))):.0f} pictures/s are decoded by one process")

        two = replace(config, workers=2)
        step = 1.25 * 32 / rate(batches(sets["a folder of JPEG"], 0, two), n)
        print(
            f"\nsteps of {1000 * step:.0f} ms, every twentieth ten times as long; two workers, from a folder of JPEG\n"
        )
        print("| batches ahead, for each worker | the trainer waits |\n|---|---|", flush=True)
        for ahead in (1, 2, 4, 8):
            share = waiting(sets["a folder of JPEG"], two, ahead, step, 200)
            print(f"| {ahead} | {100 * share:.1f} % of the time |", flush=True)

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
