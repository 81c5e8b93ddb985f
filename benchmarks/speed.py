"""Speed, as ratios where there is a peer: python benchmarks/speed.py

Import time against torch's, drawing scenes, and the time `ldm-lite sample` takes with its imports."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def took(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def imports(rounds: int = 7) -> None:
    """In turns, so that both meet the same machine."""
    times: dict[str, list[float]] = {"torch": [], "ldm_lite": [], "ldm_lite.latent": []}
    for _ in range(rounds):
        for name, found in times.items():
            found.append(took(sys.executable, "-c", f"import {name}"))
    base = statistics.median(times["torch"])
    for name, found in times.items():
        middle = statistics.median(found)
        print(f"import {name:<16} {middle:6.2f} s   {middle / base:5.2f} x import torch")


def drawing(count: int = 1280) -> None:
    import torch

    from ldm_lite.data import Scenes

    torch.set_num_threads(1)
    for size in (32, 64, 128, 256):
        scenes, n = Scenes(size=size), count * 32**2 // size**2
        scenes.batch(range(16))
        began = time.perf_counter()
        scenes.batch(range(n))
        print(f"Scenes at {size:>3} px     {n / (time.perf_counter() - began):8.0f} images/s on one core")


def sampling() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.png")
        line = [
            sys.executable,
            "-m",
            "ldm_lite.cli",
            "sample",
            "scenes-ldm4",
            "--label",
            "night snow",
            "-n",
            "16",
            "-o",
            out,
        ]
        print(f"ldm-lite sample, 16 pictures, 30 steps, imports included: {took(*line):.1f} s")


if __name__ == "__main__":
    imports()
    drawing()
    sampling()
