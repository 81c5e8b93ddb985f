"""Cost as work grows: python benchmarks/growth.py [--seconds 4]

A training step and a sampling step of scenes-ldm4's UNet (its first stage has f = 4) for pictures of 64, 128, 256 and
512 pixels and batches of 1 to 64: ms, and MiB beyond the model's. Last, the exponents: time ~ pixels^a batch^b, by
least squares of the logarithms, pixels being all of a picture's. 1 is what convolutions cost; self-attention over all
cells of a picture costs 2, and what is below 1 was not busy. Each memory is of a process of its own, looked at every
2 ms; on a GPU it is the card's own count. What is more than LIMIT is left out."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from memory import grown

from ldm_lite.condition import Condition
from ldm_lite.presets import recipe
from ldm_lite.training import autocast, device, precision
from ldm_lite.unet import UNet

SIZES, BATCHES = (64, 128, 256, 512), (1, 4, 16, 64)
LIMIT = 16 * 256**2  # pixels in a batch: 16 images of 256, 4 of 512


def works(pixels: int, batch: int) -> dict[str, Callable[[], None]]:
    """A step of training and one of sampling."""
    place = device()
    net = UNet(recipe("scenes-ldm4").model).to(place)  # type: ignore[union-attr]
    z, clock = torch.randn(batch, 3, pixels // 4, pixels // 4, device=place), torch.rand(batch, device=place)
    told = Condition(vector=torch.randn(batch, 64, device=place))

    def train() -> None:
        with autocast(place, precision("auto", place)):
            loss = net(z, clock, told).float().square().mean()
        loss.backward()
        net.zero_grad(set_to_none=True)

    def sample() -> None:
        with torch.no_grad(), autocast(place, precision("auto", place)):
            net(z, clock, told)

    return {"training": train, "sampling": sample}


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], None], seconds: float) -> float:
    work()
    wait()
    began, times = time.perf_counter(), []
    while len(times) < 3 or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - before)
    return sorted(times)[len(times) // 2]


def taken(kind: str, pixels: int, batch: int) -> int:
    """MiB, at its largest, beyond what a step of one small picture took."""
    works(64, 1)[kind]()
    return grown(works(pixels, batch)[kind])


def exponents(rows: list[tuple[int, int, float]]) -> tuple[float, float]:
    """a, b of value ~ pixels^a batch^b for rows of (side, batch, value)."""
    table = torch.tensor(rows, dtype=torch.float64)
    known = torch.stack([torch.ones(len(table)).double(), 2 * table[:, 0].log(), table[:, 1].log()], 1)
    found = torch.linalg.lstsq(known, table[:, 2].log()[:, None]).solution[:, 0]
    return float(found[1]), float(found[2])


def main() -> None:
    if sys.argv[1:2] == ["grown"]:
        print(taken(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4)
    seconds = parser.parse_args().seconds
    for kind in ("training", "sampling"):
        print(f"\n{kind}: ms, MiB\n\n| pixels | " + " | ".join(f"batch {b}" for b in BATCHES) + " |")
        print("|---" * (len(BATCHES) + 1) + "|", flush=True)
        times, memories = [], []
        for pixels in SIZES:
            cells = []
            for batch in BATCHES:
                if pixels**2 * batch > LIMIT:
                    cells.append("")
                    continue
                spent = timed(works(pixels, batch)[kind], seconds)
                command = [sys.executable, __file__, "grown", kind, str(pixels), str(batch)]
                held = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                times.append((pixels, batch, spent))
                memories.append((pixels, batch, float(max(held, 1))))
                cells.append(f"{1e3 * spent:.0f}, {held}")
            print(f"| {pixels} | " + " | ".join(cells) + " |", flush=True)
        for name, rows in (("time", times), ("memory", memories)):
            print("\n{}: pixels^{:.2f}, batch^{:.2f}".format(name, *exponents(rows)))


if __name__ == "__main__":
    main()
