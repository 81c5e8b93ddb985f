"""Diffusion in pixels and in latents, for equally long: python benchmarks/race.py run OUT [--minutes 6] [--seed 0]

Models of equal parameters (within 6 %), one for each first stage: pixels (LDM-1), then f = 2, 4, 8; told a class, or
with --task inpaint a picture with a hole. Each trains for the same seconds of its own steps at a constant rate;
evaluating, reading data and encoding it do not count, and the first stages are given. FID of samples of the averaged
weights (12 steps of DPM-Solver++, no guidance; holes filled, the rest kept) against held-out images, by
Features("scenes"), at eighths of the time; for a hole also LPIPS to the picture that had none. OUT/STAGE-SEED.json and
a grid are what is left.

    python benchmarks/race.py show OUT      the table, the curves and the last samples of the runs in OUT"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm_lite.conditioners import InpaintingConfig
from ldm_lite.config import read, write
from ldm_lite.data import cache_latents
from ldm_lite.features import Features
from ldm_lite.latent import mix
from ldm_lite.losses import LPIPS
from ldm_lite.metrics import fid
from ldm_lite.presets import DataConfig, DiffusionRecipe, dataset, load_first_stage
from ldm_lite.runs import looked_at, pictures, sampled, steady_allocator, told_samples, whole_batch
from ldm_lite.training import DiffusionTask, TrainConfig, batches, device, moved, save_grid
from ldm_lite.unet import UNetConfig

STAGES = ("pixels", "scenes-kl-f2", "scenes-kl-f4", "scenes-kl-f8")
UNETS = {  # by the side of the latent: 4.46, 4.72, 4.72 and 4.57 million parameters
    64: {"width": 48, "mult": (1, 1, 2, 3), "attend_at": (4, 8)},
    32: {"width": 64, "mult": (1, 2, 2), "attend_at": (2, 4)},
    16: {"width": 64, "mult": (1, 2, 2), "attend_at": (2, 4)},
    8: {"width": 80, "mult": (1, 2), "attend_at": (1, 2)},
    4: {"width": 80, "mult": (1, 2), "attend_at": (1, 2)},
}
MARKS = (1 / 8, 1 / 4, 1 / 2, 1)  # of the time, where samples are judged
TRAIN = TrainConfig(steps=10**9, batch=32, lr=5e-4, betas=(0.9, 0.99), weight_decay=0.0, ema=0.999)


def race(task_name: str, stage_name: str, data: DataConfig, minutes: float, seed: int, samples: int, out: Path) -> None:
    name = stage_name.replace("/", "-")
    written = out / f"{name}-{seed}.json"
    if written.exists():
        return
    stage = load_first_stage(stage_name).to(device())
    unet = UNetConfig(stage.channels, blocks=1, heads=4, vector=64, **UNETS[data.size // stage.f])
    train = replace(TRAIN, seed=seed)
    recipe = DiffusionRecipe(stage_name, unet, predicts="v", data=data, train=train)
    if task_name == "inpaint":
        unet, condition = replace(unet, vector=0), InpaintingConfig(stage.channels, stage.f)
        recipe = replace(recipe, model=unet, condition=condition)
    else:
        recipe = replace(recipe, labels=tuple(dataset(data).label_names))
    images, held_out = recipe.images(), recipe.images("validation")
    torch.manual_seed(mix(seed))
    model = recipe.build(stage).to(device())
    began = time.perf_counter()
    images = cache_latents(stage, images, out / f"{name}-latents", also=model.conditioner.encodes)
    encoding = time.perf_counter() - began
    features = Features("scenes").to(device())
    real, distance = looked_at(features, pictures(held_out, range(min(2048, len(held_out))))), LPIPS(features)
    given = whole_batch(held_out, range(len(held_out) - samples, len(held_out))) if task_name == "inpaint" else {}
    alone = device().type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter  # the first does not count what other programs take
    task, source = DiffusionTask(model, train), batches(images, 0, train)
    points, spent, step, marks = [], 0.0, 0, [mark * minutes * 60 for mark in MARKS]
    while marks:
        batch = moved(next(source), model.device)
        torch.manual_seed(mix(seed, step))
        began = clock()
        task.step(batch, step)
        spent, step = spent + clock() - began, step + 1
        if spent >= marks[0]:
            marks.pop(0)
            with task.descent.averaged():
                began = clock()
                if given:
                    drawn = told_samples(model, given, data.size, 1.0, 12, 7, "dpm_solver")
                else:
                    drawn, _ = sampled(model, samples, data.size, 1.0, 12, 7, "dpm_solver")
                rate = samples / (clock() - began)
            point = {
                "seconds": round(spent, 1),
                "steps": step,
                "fid": round(fid(real, looked_at(features, drawn)), 3),
                "samples_per_second": round(rate, 2),
            }
            if given:
                pairs = [(a.to(device()), b.to(device())) for a, b in zip(drawn.split(64), given["image"].split(64))]
                point["lpips"] = round(float(torch.cat([distance(a, b) for a, b in pairs]).mean()), 4)
            points.append(point)
            print(stage_name, seed, points[-1], flush=True)
    save_grid(drawn[:32], written.with_suffix(".png"), 8)
    run = {
        "stage": stage_name,
        "f": stage.f,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.denoiser.parameters()),
        "minutes": minutes,
        "threads": torch.get_num_threads(),
        "samples": samples,
        "encoding_seconds": round(encoding, 1),
        "points": points,
    }
    write(written, run)


def show(out: Path) -> None:
    """The table by stage, means over the seeds with their standard deviation; race.png and samples.jpg in OUT."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    runs: dict[int, list[dict[str, Any]]] = {}
    for path in sorted(out.glob("*.json")):
        run = read(path)
        runs.setdefault(run["f"], []).append(run)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    filled = any("lpips" in run["points"][-1] for some in runs.values() for run in some)
    print(
        "| f | parameters | seeds | steps | samples/s | "
        + " | ".join(f"FID at {m:.4g} of the time" for m in MARKS[:-1])
        + (" | FID | LPIPS |" if filled else " | FID |")
    )
    print("|---|---|---|---|---|" + "---|" * (len(MARKS) + filled))
    for f, some in sorted(runs.items()):
        fids = torch.tensor([[point["fid"] for point in run["points"]] for run in some])
        last = [run["points"][-1] for run in some]
        spread = fids.std(0) if len(some) > 1 else torch.zeros(fids.shape[1])
        scatter = [f" ± {s:.2f}" if len(some) > 1 else "" for s in spread.tolist()]
        cells = " | ".join(f"{m:.2f}{s}" for m, s in zip(fids.mean(0).tolist(), scatter))
        steps = sum(point["steps"] for point in last) / len(last)
        rate = sum(point["samples_per_second"] for point in last) / len(last)
        far = [point["lpips"] for point in last if "lpips" in point]
        cells += f" | {sum(far) / len(far):.4f}" if far else ""
        print(f"| {f} | {some[0]['parameters'] / 1e6:.2f} M | {len(some)} | {steps:,.0f} | {rate:.1f} | {cells} |")
        minutes = [mark * some[0]["minutes"] for mark in MARKS]
        axis.errorbar(minutes, fids.mean(0), spread, marker="o", capsize=3, label=f"f = {f}")
    grids = [
        Image.open(next(out.glob(f"{some[0]['stage'].replace('/', '-')}-*.png"))) for _, some in sorted(runs.items())
    ]
    wide, tall = grids[0].size
    samples = Image.new("RGB", (2 * wide, -(-len(grids) // 2) * tall))
    for i, grid in enumerate(grids):
        samples.paste(grid, (i % 2 * wide, i // 2 * tall))
    samples.convert("RGB").save(out / "samples.jpg", quality=90)
    axis.set(xlabel="minutes of training", ylabel="FID, scenes features", xscale="log", yscale="log")
    axis.set_xticks(minutes, [f"{m:.2g}" for m in minutes])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(out / "race.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", choices=("class", "inpaint"), default="class")
    parser.add_argument("--stages", nargs="*", default=STAGES)
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=512)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.what == "show":
        return show(asked.out)
    steady_allocator()
    data = DataConfig(asked.data, asked.size, asked.count)
    for stage in asked.stages:
        race(asked.task, stage, data, asked.minutes, asked.seed, asked.samples, asked.out)


if __name__ == "__main__":
    main()
