"""Quality against evaluations of the denoiser: python benchmarks/steps.py [MODEL] [SAMPLES]

FID (scenes features, no guidance, the classes in turn) of samples of scenes-ldm4 by each sampler at 5 … 200 evaluations
a sample, against held-out scenes; and of the first stage's reconstructions of other scenes, which no denoiser in these
latents can be expected to beat. Every sampler starts from the same noise. A number in brackets is what it asked for
instead. Writes pictures/steps.png."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ldm_lite.data import Scenes
from ldm_lite.features import Features
from ldm_lite.latent import LatentDiffusion
from ldm_lite.metrics import fid
from ldm_lite.runs import looked_at, pictures, reconstructed, steady_allocator
from ldm_lite.training import autocast, device, precision

EVALUATIONS = (5, 10, 20, 50, 200)
SAMPLERS = {  # name: sampler, its arguments
    "DDPM (DDIM, eta 1)": ("ddim", {"eta": 1.0}),
    "DDIM": ("ddim", {}),
    "Heun": ("heun", {}),
    "DPM-Solver++(2M)": ("dpm_solver", {}),
    "DDIM, quadratic grid": ("ddim", {"grid": "quadratic"}),
    "DPM-Solver++(2M), quadratic grid": ("dpm_solver", {"grid": "quadratic"}),
}


@torch.no_grad()
def main(name: str = "scenes-ldm4", samples: str = "512") -> None:
    steady_allocator()
    model, n = LatentDiffusion.load(name).to(device()), int(samples)
    features, label = Features("scenes").to(device()), torch.arange(n) % len(model.conditioner.names)
    seen = partial(looked_at, features)
    scenes = Scenes("validation")
    real = seen(pictures(scenes, range(2048)))
    others = pictures(scenes, range(2048, 2048 + n))
    print(f"{n} samples, against 2048 scenes; {n} other scenes: {fid(real, seen(others)):.2f}", end="; ")
    print(f"their reconstructions: {fid(real, seen(reconstructed(model.first_stage, others))):.2f}\n")
    print("| sampler | " + " | ".join(str(k) for k in EVALUATIONS) + " |")
    print("|---|" + "---|" * len(EVALUATIONS), flush=True)
    found = {}
    asked: list[int] = []  # rows of each call of the denoiser
    model.denoiser.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    for title, (sampler, own) in SAMPLERS.items():
        row, spent = [], []
        for evaluations in EVALUATIONS:
            # Heun asks twice, but once in the first step from almost pure noise and once in the last: 2 k - 2 times
            steps = evaluations // 2 + 1 if sampler == "heun" else evaluations
            asked.clear()
            with autocast(model.device, precision("auto", model.device)):
                images = model.sample({"label": label}, sampler=sampler, steps=steps, guidance=1.0, **own)
            row.append(fid(real, seen(images)))
            spent.append(sum(asked) // n)
        cells = (f"{v:.2f}" + f" ({k})" * (k != asked_for) for v, k, asked_for in zip(row, spent, EVALUATIONS))
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
        found[title] = (spent, row)
    picture(found)


def picture(found: dict[str, tuple[list[int], list[float]]]) -> None:
    """pictures/steps.png from {sampler: (evaluations, FID)}."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for title, (spent, row) in found.items():
        axis.plot(spent, row, "o-", label=title)
    axis.set(xscale="log", yscale="log", xlabel="evaluations of the denoiser a sample", ylabel="FID, scenes features")
    axis.set_xticks(EVALUATIONS, [str(k) for k in EVALUATIONS])
    axis.minorticks_off()
    axis.set_yticks(ticks := (3, 4, 5, 7, 10, 15), [str(k) for k in ticks])
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(Path(__file__).parent / "pictures" / "steps.png", dpi=120)


if __name__ == "__main__":
    main(*sys.argv[1:])
