"""What a sampler costs beside the denoiser it asks: python benchmarks/samplers.py [SECONDS]

The UNet of scenes-ldm4 at batch 16, on a CPU. A sampler runs on its own for SECONDS (5), with a denoiser that answers
at once; what it takes per evaluation is set against one evaluation of the UNet. Goal: at most 2 %."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from ldm_lite.latent import SAMPLERS, LatentDiffusion, Noise
from ldm_lite.samplers import clipped, keep_known, last, predictor

BATCH, STEPS, SIDE = 16, 20, 16


def least(work: Callable[[], object], seconds: float) -> float:
    """The shortest of the repeats, in seconds: what is added to it is somebody else's."""
    work()
    began, shortest = time.perf_counter(), float("inf")
    while time.perf_counter() - began < seconds:
        before = time.perf_counter()
        work()
        shortest = min(shortest, time.perf_counter() - before)
    return shortest


@torch.no_grad()
def main(seconds: float) -> None:
    torch.set_num_threads(1)
    model = LatentDiffusion.load("scenes-ldm4")
    channels = model.first_stage.channels
    told, blank = model.conditions({"label": torch.arange(BATCH) % len(model.conditioner.names)})
    z, clock = torch.randn(BATCH, channels, SIDE, SIDE), torch.full((BATCH,), 500.0)
    forward = least(lambda: model.denoiser(z, clock, told), seconds)
    answer = torch.randn(2 * BATCH, channels, SIDE, SIDE)
    silent = lambda z, clock, cond: answer[: len(z)]
    schedule, noise = model.diffusion.schedule, Noise(1, tuple(z.shape))
    plain = predictor(silent, model.diffusion, told)
    guided = predictor(silent, model.diffusion, told, blank, 2.0, 0.7)
    half = torch.zeros(1, 1, SIDE, SIDE)
    half[..., : SIDE // 2] = 1

    rows = [(name, plain, {}) for name in SAMPLERS]
    rows += [
        ("ddim, eta 1", plain, {"eta": 1.0, "noise": noise}),
        ("ddim, guided and rescaled", guided, {}),
        ("ddim, keep_known", keep_known(plain, z, half, schedule), {}),
        ("ddim, clipped", clipped(plain, schedule), {}),
    ]
    print(f"UNet of scenes-ldm4, batch {BATCH}, {channels} x {SIDE} x {SIDE}: {1e3 * forward:.1f} ms\n")
    print("| sampler | µs per evaluation | of the UNet's time | goal |\n|---|---|---|---|")
    for name, predict, own in rows:
        sampler, asked = SAMPLERS[name.split(",")[0]], []
        counted = lambda z, t, predict=predict, asked=asked: asked.append(1) or predict(z, t)
        last(sampler(counted, z, schedule.grid(STEPS), schedule, **own))
        run = lambda: last(sampler(predict, z, schedule.grid(STEPS), schedule, **own))  # noqa: B023
        each = least(run, seconds) / len(asked)
        # guidance evaluates both halves
        share = each / (forward * (2 if predict is guided else 1))
        print(f"| {name} | {1e6 * each:.0f} | {100 * share:.2f} % | ≤ 2 % |")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
