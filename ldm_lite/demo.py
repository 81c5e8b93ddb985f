"""The main job: a latent diffusion model of the built-in scenes, learned from nothing in a budget of minutes.

First stage, latent scale, cached latents, denoiser, samples, metrics, report. Interrupted, the same command goes on."""

from __future__ import annotations

import base64
import html
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .config import InputError, read, whole, write

# Shares of the budget. The rest draws and encodes the scenes, samples and judges; a little is kept in reserve.
FIRST_STAGE, DENOISER, REST = 0.36, 0.50, 0.14


@dataclass(frozen=True)
class DemoConfig:
    minutes: float | None = None  # in all; by default 10 on a CPU and 1 on a GPU
    seed: int = 0

    def __post_init__(self) -> None:
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"minutes: {self.minutes} is not above 0")


def run(config: DemoConfig, out: Path) -> int:
    """Fills `out`: reconstructions.png, samples.png, loss.png, metrics.json, report.html, model/. Returns 0."""
    from . import runs
    from .training import device

    if config.minutes is None:
        config = replace(config, minutes=1.0 if device().type == "cuda" else 10.0)
    with runs.locked(out):
        return learned(config, out)


def learned(config: DemoConfig, out: Path) -> int:
    from . import runs
    from .presets import PRESETS
    from .training import device

    began = time.monotonic()
    claim(config, out)
    if (out / "report.html").is_file():
        print(f"{out} is finished: open {out / 'report.html'}; --restart learns it anew")
        return 0
    kinds = len(PRESETS["demo-ldm4"].labels)
    print(f"A latent diffusion model of {kinds} kinds of landscape, in {config.minutes:g} minutes")
    budget = config.minutes * 60

    recipe = PRESETS["demo-kl4"]
    settings = replace(recipe.train, minutes=config.minutes * FIRST_STAGE, seed=config.seed)
    print("1/3 the first stage learns to compress pictures 4 times on a side", flush=True)
    runs.train(replace(recipe, train=settings), out / "first_stage", "ldm-lite demo", runs.JUDGED)

    # what is left is known only now; it is written down, so that a resumed run is the same run
    plan = out / "denoiser.json"
    if not plan.is_file():
        left = budget - (time.monotonic() - began)
        write(plan, {"minutes": round(max(min(DENOISER * budget, left - REST * budget), 0.1 * budget) / 60, 3)})
    recipe = PRESETS["demo-ldm4"]
    settings = replace(recipe.train, minutes=read(plan)["minutes"], seed=config.seed)
    recipe = replace(recipe, train=settings, first_stage=str(out / "first_stage"))
    print("2/3 the denoiser learns their latents", flush=True)
    model = runs.train(recipe, out / "denoiser", "ldm-lite demo")

    print("3/3 the report", flush=True)
    shutil.copytree(model, out / "model", dirs_exist_ok=True)
    shutil.copyfile(out / "first_stage" / "reconstructions.png", out / "reconstructions.png")
    shutil.copyfile(out / "denoiser" / "samples.png", out / "samples.png")
    losses(out)
    numbers = read(model / "metrics.json")
    first = read(out / "first_stage" / "model" / "metrics.json")
    numbers = {
        "psnr": first["psnr"],
        "psnr_without_texture": first["psnr_without_texture"],
        "label_read_back": numbers["label_read_back"],
        "samples": numbers["samples"],
        "guidance": numbers["guidance"],
        "sampler_steps": numbers["sampler_steps"],
        "latent_std": first["latent_std"],
        "validation_loss": numbers["validation_loss"],
        "first_stage_steps": first["training_steps"],
        "denoiser_steps": numbers["training_steps"],
        "first_stage_seconds": first["seconds"],
        "denoiser_seconds": numbers["seconds"],
        "minutes": config.minutes,
    }
    write(out / "metrics.json", numbers)
    with whole(out / "report.html") as temporary:
        temporary.write_text(report(out, numbers, runs.machine(device())), encoding="utf-8")
    print(f"PSNR {numbers['psnr_without_texture']} dB, {numbers['label_read_back']:.0%} of samples show their label")
    print(f"{time.monotonic() - began:.0f} s; open {out / 'report.html'}")
    return 0


def claim(config: DemoConfig, out: Path) -> None:
    """Writes out/demo.json. InputError when `out` holds something else, or a demo with other settings."""
    mark = out / "demo.json"
    this = {"minutes": config.minutes, "seed": config.seed}
    if mark.is_file():
        there = read(mark)
        if there != this:
            raise InputError(f"{out}: holds a demo with {there}, not {this}; choose another --out or --restart")
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty and holds no demo; choose another --out")
    else:
        write(mark, this)


def losses(out: Path) -> None:
    """loss.png: both losses, and their running means, against the step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from .training import logged

    figure = Figure(figsize=(9, 3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (name, title) in zip(
        figure.subplots(1, 2),
        (("first_stage", "first stage: mean |x − x'| + KL term"), ("denoiser", "denoiser: mean (v − v')²")),
    ):
        rows = logged(out / name)
        steps, values = [int(r["step"]) for r in rows], [float(r["loss"]) for r in rows]
        smooth, mean = [], values[0]
        for i, value in enumerate(values):
            mean += (value - mean) / min(i + 1, 50)
            smooth.append(mean)
        axis.plot(steps, values, color="#c9d3e6", linewidth=0.7)
        axis.plot(steps, smooth, color="#24478f", linewidth=1.6)
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3, which="both", linewidth=0.5)
    with whole(out / "loss.png") as temporary:
        figure.savefig(temporary, format="png")


def report(out: Path, numbers: dict[str, Any], machine: str) -> str:
    """The page of demo.html, with its numbers and pictures inside."""
    from .presets import PRESETS

    def picture(name: str) -> str:
        return "data:image/png;base64," + base64.b64encode((out / name).read_bytes()).decode()

    names = PRESETS["demo-ldm4"].labels
    page = Path(__file__).with_name("demo.html").read_text(encoding="utf-8")
    return page.format(
        **{k: v for k, v in numbers.items() if k != "samples"},
        samples_n=numbers["samples"],
        classes=len(names),
        labels="".join(f"<span>{html.escape(name)}</span>" for name in names),
        machine=html.escape(machine),
        out=html.escape(out.as_posix()),
        samples=picture("samples.png"),
        reconstructions=picture("reconstructions.png"),
        loss=picture("loss.png"),
    )
