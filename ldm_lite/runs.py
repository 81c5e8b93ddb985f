"""From a recipe to a folder: data, training, the latent scale, held-out metrics, and weights with a card.

out/run.json, checkpoint.pt, log.csv, samples/ are the loop's (training.py); out/model/ has model.safetensors,
config.json, metrics.json and card.md, which is written last: where it stands, the run is finished."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import __version__
from .config import InputError, whole, write
from .latent import LatentDiffusion, mix
from .metrics import psnr
from .presets import PRESETS, AutoencoderRecipe, DiffusionRecipe, Recipe, dataset, load_first_stage
from .training import AutoencoderTask, DiffusionTask, Drawn, device, fit, precision, seconds

MEASURED = 1024  # images that the latent scale is measured on
JUDGED = 256  # images and samples that held-out metrics are means of
GUIDANCE, STEPS = 2.0, 30  # how samples are judged


def finished(out: str | Path) -> bool:
    return (Path(out) / "model" / "card.md").is_file()


def train(recipe: Recipe, out: str | Path, command: str = "") -> Path:
    """Runs a recipe into `out`, or resumes it; returns out/model. command: what the user typed, for the card.

    A first stage that the recipe names by preset is trained beside `out` if it has not been."""
    out = Path(out)
    commit()  # asked now: the code may change while the run goes on
    steady_allocator()
    if isinstance(recipe, AutoencoderRecipe):
        return train_first_stage(recipe, out, command)
    return train_denoiser(recipe, out, command)


def train_first_stage(recipe: AutoencoderRecipe, out: Path, command: str = "") -> Path:
    torch.manual_seed(mix(recipe.train.seed))
    model, images = recipe.build().to(device()), dataset(recipe.data)
    task = AutoencoderTask(model, recipe.train, recipe.kl_weight)
    fit(task, images, recipe.train, out, about(recipe))
    if not finished(out):
        torch.manual_seed(mix(recipe.train.seed, task.config.steps))
        with task.descent.averaged(), torch.no_grad(), task.descent.autocast():
            # spread over the dataset: neighbours in a folder may be alike
            rows = torch.linspace(0, len(images) - 1, min(len(images), MEASURED)).long().tolist()
            model.measure_scale(image.to(device()) for image in pictures(images, rows))
        task.save(out / "model")
        stage = load_first_stage(out)
        numbers = first_stage_metrics(stage, recipe)
        images, result = held_out_pictures(stage, recipe, 8)
        save_grid(torch.cat([images, result]), out / "reconstructions.png", 8)
        card(out, model, recipe, task.config, command, numbers)
    return out / "model"


def train_denoiser(recipe: DiffusionRecipe, out: Path, command: str = "") -> Path:
    stage = first_stage_of(recipe, out).to(device())
    images = dataset(recipe.data)
    torch.manual_seed(mix(recipe.train.seed))
    model = recipe.build(stage).to(device())
    if recipe.cache and not finished(out):
        from .data import cache_latents

        claim(out, recipe)
        images = cache_latents(stage, images, out / "latents")
    task = DiffusionTask(model, recipe.train, recipe.dropout)
    fit(task, images, recipe.train, out, about(recipe))
    if not finished(out):
        numbers = denoiser_metrics(LatentDiffusion.load(out).to(device()), recipe, out)
        card(out, model, recipe, task.config, command, numbers)
    return out / "model"


def first_stage_of(recipe: DiffusionRecipe, out: Path) -> nn.Module:
    """The recipe's trained first stage; one that is a preset is trained first, beside `out`."""
    name = recipe.first_stage
    preset = PRESETS.get(name)
    if isinstance(preset, AutoencoderRecipe):
        with torch.device("meta"):  # settings that do not fit are said before the work, not after
            recipe.build()
        beside = out.parent / name
        if not finished(beside):
            print(f"{name} comes first: training it in {beside}", flush=True)
            preset = dataclasses.replace(preset, data=dataclasses.replace(preset.data, path=recipe.data.path))
            train_first_stage(preset, beside, f"ldm-lite train {name}")
        return load_first_stage(beside)
    try:
        return load_first_stage(name)
    except InputError as error:
        raise InputError(f"first_stage: {error}; train one with: ldm-lite train autoencoder --data PATH") from None


def claim(out: Path, recipe: Recipe) -> None:
    """InputError, before any work, when `out` holds something else than this run."""
    from .training import claimed

    claimed(out, recipe.train, about(recipe))


def about(recipe: Recipe) -> dict[str, Any]:
    """What makes this run another than one with the same training settings."""
    return {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name != "train"}


def pictures(images: Any, rows: list[int], size: int = 32) -> Iterator[Tensor]:
    """Batches (b, 3, H, W) in [-1, 1] of some rows of a dataset."""
    for i in range(0, len(rows), size):
        yield Drawn(images).__getitems__([(row, 0) for row in rows[i : i + size]])["image"]


# Held-out metrics ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def reconstructed(stage: nn.Module, images: Tensor, batch: int = 32) -> Tensor:
    """(B, 3, H, W) in [-1, 1] what a first stage makes of images, by the mean of its posterior."""
    place = next(stage.parameters(), torch.zeros(())).device
    parts = [stage.decode(stage.encode(part.to(place))).float().clamp(-1, 1).cpu() for part in images.split(batch)]
    return torch.cat(parts)


def held_out_pictures(stage: nn.Module, recipe: Recipe, n: int) -> tuple[Tensor, Tensor]:
    """The first n held-out images (n, 3, H, W) and their reconstructions."""
    held_out = dataset(recipe.data, "validation")
    images = torch.cat(list(pictures(held_out, list(range(min(n, len(held_out)))))))
    return images, reconstructed(stage.to(device()), images)


def first_stage_metrics(stage: nn.Module, recipe: AutoencoderRecipe | DiffusionRecipe) -> dict[str, Any]:
    """psnr against held-out images, and on the built-in scenes against the same scenes drawn without texture."""
    images, result = held_out_pictures(stage, recipe, JUDGED)
    numbers: dict[str, Any] = {"images": len(images), "psnr": mean(psnr(result, images))}
    if recipe.data.path == "scenes":
        from .data import Scenes

        plain = Scenes("validation", recipe.data.size, texture=0).batch(range(len(images)))["image"].float() / 127.5 - 1
        numbers["psnr_without_texture"] = mean(psnr(result, plain))
    with torch.no_grad():
        latents = torch.cat([stage.encode(part.to(device()), sample=True).cpu() for part in images.split(32)])
    numbers["latent_std"] = round(float(latents.std()), 3)
    return numbers


def denoiser_metrics(model: LatentDiffusion, recipe: DiffusionRecipe, out: Path | None = None) -> dict[str, Any]:
    """The first stage's metrics, the loss on held-out images and, on labelled scenes, the share that reads back."""
    numbers = first_stage_metrics(model.first_stage, recipe) if recipe.first_stage != "pixels" else {}
    held_out = dataset(recipe.data, "validation")
    rows = list(range(min(JUDGED, len(held_out))))
    total = 0.0
    with torch.no_grad():
        for i in range(0, len(rows), 32):
            batch = Drawn(held_out).__getitems__([(row, 0) for row in rows[i : i + 32]])
            batch = {k: v.to(device()) for k, v in batch.items() if isinstance(v, Tensor)}
            torch.manual_seed(i)
            # times in even steps: the mean over them has less noise than over drawn ones
            times = (torch.arange(i, i + len(batch["image"])) % 32 + 0.5).double() / 32
            total += float(model(batch, times=times).sum())
    numbers["validation_loss"] = round(total / len(rows), 4)
    if recipe.labels and recipe.data.path == "scenes":
        samples, labels = sampled(model, JUDGED, recipe.data.size, GUIDANCE, STEPS)
        numbers |= obedience(samples, labels) | {"guidance": GUIDANCE, "sampler_steps": STEPS}
        if out is not None:
            k = len(model.conditioner.names)
            some = max(1, min(8, JUDGED // k))
            rows = [
                row for label in range(k) for row in range(label, min(k * some, JUDGED), k)
            ]  # a row of pictures for each class
            save_grid(samples[rows], out / "samples.png", some)
    return numbers


def obedience(samples: Tensor, labels: Tensor) -> dict[str, Any]:
    """The share of samples (n, 3, H, W) whose sky and ground read back as the label (n,) that was asked for."""
    from .data.scenes import read_label

    return {"samples": len(samples), "label_read_back": round(float((read_label(samples) == labels).float().mean()), 4)}


def sampled(
    model: LatentDiffusion, n: int, size: int, guidance: float = GUIDANCE, steps: int = STEPS, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """n samples (n, 3, size, size) and their labels (n,), the model's classes in turn."""
    labels = torch.arange(n) % len(model.conditioner.names)
    parts = []
    for i in range(0, n, 64):
        some = labels[i : i + 64]
        with autocast(model.device):
            parts.append(model.sample({"label": some}, steps=steps, guidance=guidance, size=size, seed=mix(seed, i)))
    return torch.cat(parts), labels


def autocast(place: torch.device) -> Any:
    """Mixed precision where the device is faster in it, as in training."""
    dtype = precision("auto", place)
    return torch.autocast(place.type, dtype, enabled=dtype != torch.float32)


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Images (n, 3, H, W) in [-1, 1] as one picture, whole or not at all."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    kind = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}.get(path.suffix.lower()[1:], "PNG")
    with whole(path) as temporary:
        to_pil_image(make_grid((images.clamp(-1, 1) + 1) / 2, nrow=columns, padding=2)).save(temporary, kind)


def mean(values: Tensor) -> float:
    return round(float(values.mean()), 2)


# The card -----------------------------------------------------------------------------------------------------------


def card(out: Path, model: nn.Module, recipe: Recipe, config: Any, command: str, numbers: dict[str, Any]) -> None:
    """Writes model/metrics.json, then model/card.md: what these weights are, where from, and how good."""
    place = next(model.parameters()).device
    spent = seconds(out)
    facts = {
        "command": f"`{command}`" if command else "(from Python)",
        "version": f"ldm_lite {__version__}, {commit()}",
        "data": f"{recipe.data.path} at {recipe.data.size} px"
        + (f", the first {recipe.data.count}" if recipe.data.count else ""),
        "training": f"{config.steps} steps of {config.batch} images in {spent:.0f} s on {machine(place)}",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "licence": "MIT, like the code",
    }
    rows = [f"| {k.replace('_', ' ')} | {v} |" for k, v in numbers.items()]
    lines = [
        f"# {out.name}",
        "",
        *(f"- {k}: {v}" for k, v in facts.items()),
        "",
        "Held-out metrics, by the averaged weights (psnr in dB; `label read back` is the share of guided samples whose",
        "sky and ground read back as the label asked for):",
        "",
        "| metric | value |",
        "|---|---|",
        *rows,
        "",
    ]
    training = {"size": recipe.data.size, "training_steps": config.steps, "seconds": round(spent, 1)}
    write(out / "model" / "metrics.json", numbers | training)
    with whole(out / "model" / "card.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


@functools.cache
def commit() -> str:
    """The code's commit, with a mark when files differ from it; "no commit" outside a clone."""
    try:
        here = Path(__file__).parent
        options: dict[str, Any] = {"cwd": here, "capture_output": True, "text": True, "check": True, "timeout": 10}
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--", "."], **options).stdout.strip()
        return f"commit {head}" + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "no commit"


def machine(place: torch.device) -> str:
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return f"{torch.get_num_threads()} CPU threads ({platform.machine()})"


def steady_allocator() -> None:
    """Keeps glibc from returning every large activation to the kernel: 10 to 20 % of a training step on a CPU."""
    if sys.platform == "linux" and not torch.cuda.is_available():
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        except (OSError, AttributeError):  # another C library
            pass
