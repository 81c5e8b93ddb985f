"""From a recipe to a folder: data, training, the latent scale, held-out metrics, and weights with a card.

out/run.json, checkpoint.pt, log.csv, samples/ are the loop's (training.py); skipped.txt has what could not be decoded,
scale.json the scale of the latents where the first stage had none; out/model/ has model.safetensors, config.json,
metrics.json and card.md, which is written last: where it stands, the run is finished."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from . import __version__, folders, processes
from .autoencoder import usage
from .budget import CARDS, budget, stage_first
from .conditioners import epochs
from .config import InputError, from_dict, read, to_dict, whole, write
from .data.cache import SCALE, SKIPPED
from .features import SEGMENTS, Features
from .latent import LatentDiffusion, mix, restored
from .losses import LPIPS
from .metrics import fid, high_frequency, psnr, ssim
from .presets import (
    FIRST_STAGES,
    PRESETS,
    AutoencoderRecipe,
    DataConfig,
    DiffusionRecipe,
    FinderRecipe,
    ReaderRecipe,
    Recipe,
    begin,
    dataset,
    load_first_stage,
    named_columns,
)
from .training import (
    AutoencoderTask,
    DiffusionTask,
    Drawn,
    FinderTask,
    ReaderTask,
    autocast,
    claimed,
    device,
    fit,
    joined,
    logged,
    moved,
    precision,
    record,
    save_grid,
    seconds,
)
from .training import begun as stepped

STAGE = "first_stage_weights"  # in run.json
BATCH = 32  # images at a time, where they are measured and judged
MEASURED = 1024  # images that the latent scale is measured on
JUDGED = 256  # images and samples that a denoiser's held-out metrics, and a demo's, are means of
RECONSTRUCTED = 2048  # images that a first stage's are: an FID of few images is too large
GUIDANCE, STEPS = 2.0, 30  # how samples are judged


def finished(out: str | Path) -> bool:
    return (Path(out) / "model" / "card.md").is_file()


def train(recipe: Recipe, out: str | Path, command: str = "", judged: int | None = None) -> Path:
    """Runs a recipe into `out`, or resumes it; returns out/model. command: what the user typed, for the card. judged:
    how many held-out images a first stage reconstructs, by default RECONSTRUCTED.

    A first stage that the recipe names by preset is trained beside `out` if it has not been."""
    out = Path(out)
    commit()  # asked now: the code may change while the run goes on
    steady_allocator()
    with processes.joined(), going_on():
        processes.agreed({"out": str(out)} | to_dict(recipe), "settings")
        with held(out):
            if isinstance(recipe, AutoencoderRecipe):
                return train_first_stage(recipe, out, command, judged)
            if isinstance(recipe, (ReaderRecipe, FinderRecipe)):
                return train_reader(recipe, out, command)
            return train_denoiser(recipe, out, command)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Inside, no other command of this machine runs into `out`. InputError where one does."""
    from filelock import FileLock, Timeout

    name = hashlib.sha256(os.fsencode(os.path.normcase(os.path.realpath(out)))).hexdigest()[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"ldm_lite-{name}.lock")
    try:
        with suppress(PermissionError):  # another user's: then `out` may not be written either
            lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out}: another command is at work in it; wait for it, or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def held(out: Path) -> Iterator[None]:
    """`locked` by the first of several processes."""
    with ExitStack() as stack:
        processes.alone(lambda: stack.enter_context(locked(out)))
        yield


@contextmanager
def going_on() -> Iterator[None]:
    """Says what an interruption inside leaves, where nothing else has said it."""
    try:
        yield
    except KeyboardInterrupt as error:
        if str(error):
            raise
        raise KeyboardInterrupt("stopped; the same command goes on from what is there") from None


def unfinished(out: Path) -> bool:
    """As rank 0 sees it, before any rank goes on."""
    return not processes.shared(finished, out)


def train_first_stage(recipe: AutoencoderRecipe, out: Path, command: str = "", judged: int | None = None) -> Path:
    torch.manual_seed(mix(recipe.train.seed))
    model, images = recipe.build().to(device()), processes.first(lambda: dataset(recipe.data))
    begin_with(model, recipe)
    task = AutoencoderTask(model, recipe.train, recipe.loss)
    with skipping(images, out):
        fit(task, images, recipe.train, out, about(recipe))
    if unfinished(out):
        with task.descent.averaged(), torch.no_grad(), task.descent.autocast():
            measure_scale(model, images, recipe.train.seed)

        def judge() -> None:
            task.save(out / "model")
            held_out, stage = dataset(recipe.data, "validation"), load_first_stage(out).to(device())
            numbers = first_stage_metrics(stage, held_out, recipe.data, out, judged or RECONSTRUCTED)
            card(out, model, recipe, task.config, command, numbers)

        processes.alone(judge)
    return out / "model"


def train_denoiser(recipe: DiffusionRecipe, out: Path, command: str = "") -> Path:
    stage = first_stage_of(recipe, out).to(device())
    weights = processes.shared(weights_mark, out, recipe, stage)
    images = processes.first(recipe.images)  # rank 0 asks whether to fetch, and fetches
    named = recipe.named(images)
    torch.manual_seed(mix(recipe.train.seed))
    model = named.build(stage).to(device())
    begin_with(model, recipe)
    scale_latents(stage, images, recipe, out, weights)
    if recipe.cache and not recipe.data.stream and unfinished(out):
        from .data.cache import Balanced, cache_latents

        processes.alone(claimed, out, recipe.train, about(recipe) | weights)
        settings = {"also": model.conditioner.encodes, "spread": recipe.spread, "epochs": epochs(recipe.condition)}
        settings |= {"progress": processes.rank() == 0, "strict": bool(recipe.latents), "workers": recipe.train.workers}
        with skipping(images, out):
            latents = cache_latents(stage, images, recipe.latents or out / "latents", **settings)
        processes.alone(without, latents.lost, recipe.data.strict, images, out)
        images = Balanced(latents, recipe.balance) if recipe.balance else latents
    task = DiffusionTask(model, recipe.train, recipe.dropout)
    with skipping(images, out):
        fit(task, images, recipe.train, out, about(recipe) | weights)

    def judge() -> None:
        held_out = recipe.images("validation")
        numbers = denoiser_metrics(LatentDiffusion.load(out).to(device()), held_out, named, out)
        card(out, model, recipe, task.config, command, numbers)

    if unfinished(out):
        processes.alone(judge)
    return out / "model"


def measure_scale(stage: nn.Module, images: Any, seed: int = 0) -> int:
    """Gives a first stage the scale of its latents of MEASURED images, whole batches on each rank; returns how many.

    They are spread over the dataset: neighbours in a folder may be alike. Of a stream they are the first. The noise of
    the posterior is each batch's own, so that the scale is the same of any number of processes."""
    images = images.take(MEASURED) if getattr(images, "streaming", False) else images
    rows = torch.linspace(0, len(images) - 1, min(len(images), MEASURED)).long().tolist()
    firsts = range(0, len(rows), BATCH)

    def own() -> Iterator[Tensor]:
        for k in range(processes.rank(), len(firsts), processes.count()):
            some = pictures(images, rows[firsts[k] : firsts[k] + BATCH])
            torch.manual_seed(mix(seed, k))
            yield some.to(home(stage))

    stage.measure_scale(own())
    return len(rows)


def scaleless(stage: nn.Module) -> bool:
    """Whether it is a KL first stage without a scale of its latents, such as a converted one."""
    return getattr(getattr(stage, "config", None), "bottleneck", "") == "kl" and float(stage.scale) == 1


def measured(stage: nn.Module, images: Any) -> int:
    """measure_scale on all ranks, to the last bit: the scale is in the name of what is encoded."""
    place = home(stage)
    forked = torch.random.fork_rng([place] if place.type == "cuda" else [])
    with forked, torch.no_grad(), autocast(place, precision("auto", place)):
        n = measure_scale(stage, images)
    stage.scale.fill_(processes.shared(float, stage.scale))
    return n


def scale_of_folder(stage: nn.Module, images: Any, folder: Path) -> int:
    """Gives a first stage without a scale the one of the latents in a folder, or of its latents to be, and writes it
    there for all who take them; returns on how many images it was measured. Of several at once, the first to write it
    is right. InputError for latents in none, or of other images."""
    from .data.cache import fingerprint, identity, latents_alone, others

    latents_alone(folder)
    of = hashlib.sha256(f"{len(images)} {identity(images)}".encode()).hexdigest()
    mark, own = folder / SCALE, {STAGE: fingerprint(stage), "data": of}

    def held() -> dict[str, Any]:
        there = read(mark) if mark.is_file() else {}
        if not isinstance(there, dict) or (there and not isinstance(there.get("scale"), float)):
            raise InputError(f"{mark}: is no scale of latents; choose another folder")
        if all(there.get(name) == value for name, value in own.items()):
            return there
        if any(folder.glob("[0-9]*.safetensors")):
            raise others(folder, ", or in no scale")
        return {}

    def settled(n: int) -> dict[str, Any]:
        there = held()
        if not there:
            write(mark, there := {"scale": float(stage.scale), "images": n} | own)
        return there

    there = processes.shared(held) or processes.shared(settled, measured(stage, images))
    stage.scale.fill_(there["scale"])
    return there["images"]


def scale_latents(stage: nn.Module, images: Any, recipe: DiffusionRecipe, out: Path, weights: dict[str, str]) -> None:
    """Gives a KL first stage without a scale that of its latents of the training data, or of the folder they are in.

    It is written to out/scale.json before anything is encoded: a run that goes on reads it there, and one that began
    without goes on without."""
    if not scaleless(stage) or recipe.init:
        return  # what `init` names has learned in the scale of this very first stage
    mark, about_it = out / SCALE, weights | {"data": to_dict(recipe.data)}

    def held() -> tuple[bool, float | None]:
        there = read(mark) if mark.is_file() else {}
        same = stepped(out) or all(there.get(name) == value for name, value in about_it.items())
        return stepped(out), there.get("scale") if same else None

    goes_on, scale = processes.shared(held)
    encodes_for_others = recipe.latents and recipe.cache and not recipe.data.stream
    if scale is not None and (goes_on or not encodes_for_others):
        stage.scale.fill_(scale)
        return
    if goes_on:
        return
    processes.alone(claimed, out, recipe.train, about(recipe) | weights)
    with skipping(images, out):
        if encodes_for_others:
            n = scale_of_folder(stage, images, Path(recipe.latents))
        else:
            n = measured(stage, images)
    scale = float(stage.scale)
    processes.alone(write, mark, {"scale": scale, "images": n} | about_it)
    if processes.rank() == 0:
        print(f"{recipe.first_stage} has no scale of its latents: {scale:.5g}, measured on {n} images", flush=True)


def train_reader(recipe: ReaderRecipe | FinderRecipe, out: Path, command: str = "") -> Path:
    from .data.scenes import Census, Quiz

    finds = isinstance(recipe, FinderRecipe)
    learns, asks, judges = (FinderTask, Census, finder_metrics) if finds else (ReaderTask, Quiz, reader_metrics)
    torch.manual_seed(mix(recipe.train.seed))
    model, size = recipe.build().to(device()), recipe.data.size
    task = learns(model, recipe.train)
    fit(task, asks("train", size, count=recipe.data.count), recipe.train, out, about(recipe))

    def judge() -> None:
        numbers = judges(restored(out).to(device()), asks("validation", size))
        card(out, model, recipe, task.config, command, numbers)

    if unfinished(out):
        processes.alone(judge)
    return out / "model"


def first_stage_of(recipe: DiffusionRecipe, out: Path) -> nn.Module:
    """The recipe's trained first stage; one that is a preset is trained first, beside `out`, unless it is there: as a
    finished run, as a model's folder that was put there, such as a converted one, or, for the data that it learned
    from, as weights that ship."""
    name = recipe.first_stage
    if (preset := stage_first(recipe)) is not None:
        beside, own = out.parent / name, PRESETS[name].data
        if not processes.shared(lambda: finished(beside) or (beside / "config.json").is_file()):
            if recipe.data.path == own.path and name in folders.shipped():
                return load_first_stage(name)
            # pictures that are missing, and settings that do not fit, are said before the work, not after
            fitting = recipe.named(processes.first(recipe.images))
            with torch.device("meta"):
                fitting.build()
            if processes.rank() == 0:
                fetch = f"; or stop, and fetch the published one: ldm-lite convert {name} {beside} --yes"
                fetch = fetch if name in FIRST_STAGES else ""
                print(f"{name} comes first: training it in {beside}{fetch}", flush=True)
            command = ["ldm-lite", "train", name]
            if recipe.data.path != own.path:
                named = named_columns(recipe.data)
                theirs = dataclasses.replace(preset.data, path=recipe.data.path, **named)
                preset = dataclasses.replace(preset, data=theirs)
                command += ["--data", recipe.data.path]
                command += chain.from_iterable((f"--data.{key}", value) for key, value in named.items())
            if preset.data.size < own.size:
                command += ["--data.size", str(preset.data.size)]
            with held(beside):
                train_first_stage(preset, beside, shlex.join(command))
        return load_first_stage(beside)
    try:
        return load_first_stage(name)
    except InputError as error:
        raise InputError(f"first_stage: {error}; train one with: ldm-lite train autoencoder --data PATH") from None


def begin_with(model: nn.Module, recipe: AutoencoderRecipe | DiffusionRecipe) -> None:
    """With what the recipe begins. A run that goes on takes its own weights afterwards."""
    if recipe.init:
        what = begin(model, recipe.init)
        if processes.rank() == 0:
            print(what, flush=True)


def claim(out: Path, recipe: Recipe) -> None:
    """InputError, before any work, when `out` holds something else than this run."""
    claimed(out, recipe.train, about(recipe) | weights_mark(out, recipe))


def weights_mark(out: Path, recipe: Recipe, stage: nn.Module | None = None) -> dict[str, str]:
    """What run.json says of the first stage's weights: its name alone would let a run go on with another of that name.

    A run that is older than this mark goes on without. InputError for a stage that is not the one it began with."""
    from .data.cache import fingerprint

    own = {} if stage is None else {STAGE: fingerprint(stage)}
    if not ((mark := out / "run.json").is_file() and stepped(out)):
        return own
    there = record(mark)["about"]
    held = {STAGE: there[STAGE]} if STAGE in there else {}
    name = getattr(recipe, "first_stage", "")
    if own and held and own != held and there["first_stage"] == name and not finished(out):
        raise InputError(
            f"{out}: the first stage {name} has changed since it began; put the old one back, or --restart"
        )
    return held


@contextmanager
def skipping(images: Any, out: Path) -> Iterator[None]:
    """Lists in out/skipped.txt what could not be decoded inside, also where that is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        list_skipped(getattr(images, "skipped", []), out)
        raise
    list_skipped(getattr(images, "skipped", []), out)


def without(lost: Sequence[str], strict: bool, images: Any, out: Path) -> None:
    """Lists what latents lack that others may have encoded, unless it is known. InputError where strict."""
    if lost and strict:
        others = f", nor are {len(lost) - 1} others" if len(lost) > 1 else ""
        raise InputError(
            f"{lost[0]}: is not among the latents, as it could not be decoded{others}; "
            f"remove {'them' if others else 'it'}, or do without --data.strict"
        )
    if not getattr(images, "skipped", []):
        list_skipped(lost, out)


def list_skipped(names: Sequence[str], out: Path) -> None:
    held = skipped(out)
    if new := [name for name in names if name not in held]:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / SKIPPED, "a", encoding="utf-8", errors="surrogateescape") as file:  # each rank adds its own
            file.write("".join(f"{name}\n" for name in new))


def skipped(out: Path) -> set[str]:
    """The pictures that were left out of a run so far."""
    path = out / SKIPPED
    return set(path.read_text("utf-8", "surrogateescape").splitlines()) if path.is_file() else set()


def about(recipe: Recipe) -> dict[str, Any]:
    """What makes this run another than one with the same training settings."""
    return {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name != "train"}


def batches(data: Any, rows: Sequence[int], size: int = BATCH) -> Iterator[dict[str, Any]]:
    """Some rows of a dataset, as training sees them in its first epoch."""
    for i in range(0, len(rows), size):
        yield Drawn(data).__getitems__([(row, 0) for row in rows[i : i + size]])


def home(module: nn.Module) -> torch.device:
    """The device of a module; the CPU for one without weights."""
    return next(module.parameters(), torch.zeros(())).device


def pictures(data: Any, rows: Sequence[int]) -> Tensor:
    """The images (B, 3, H, W) in [-1, 1] of some rows of a dataset."""
    return torch.cat([batch["image"] for batch in batches(data, rows)])


def status(out: str | Path, last: int = 100) -> list[str]:
    """Lines that say how far a run is, whether it goes on or not: steps, loss, rate of the last steps, time left.

    InputError for a folder without a run."""
    out = Path(out)
    if not (out / "run.json").is_file():
        raise InputError(f"{out}: holds no run; one that was started has run.json")
    run = record(out / "run.json")
    train = run["train"]
    if not (rows := logged(out)):
        return [f"{out.name}: no step yet; latents may be encoded first"]
    step, steps = int(rows[-1]["step"]), train["steps"] if train["minutes"] is None else run.get("steps")
    total = f"{step:,} of {steps:,} ({100 * step / steps:.0f} %)" if steps else f"{step:,}"
    mean, over = mean_of(rows[-last:], "loss"), min(last, len(rows))
    lines = [f"{out.name}: step {total}, loss {mean:.4f}, as a mean of the last {over} steps"]
    if len(rows) > 1:
        some = rows[-last - 1 :]
        taken = float(some[-1]["seconds"]) - float(some[0]["seconds"])
        rate = (len(some) - 1) / max(taken, 1e-9)
        lines.append(
            f"rate: {rate:.2f} steps/s, {rate * train['batch']:.1f} images/s; {clock(some[-1]['seconds'])} so far"
        )
        if steps and step < steps:
            lines[-1] += f", {clock((steps - step) / rate)} left at this rate"
        lines += reached(run, rate * train["batch"])
    if rows[-1].get("memory"):  # a run may go on without a GPU
        lines.append(f"memory: {float(rows[-1]['memory']):.1f} GiB of the GPU at most")
    saved, grids = out / "checkpoint.pt", sorted((out / "samples").glob("*.png"))
    if saved.is_file():
        lines.append(f"last checkpoint: {clock(time.time() - saved.stat().st_mtime)} ago")
    if grids:
        lines.append(f"last samples: {grids[-1]}")
    if left_out := skipped(out):
        lines.append(f"skipped: {len(left_out)} pictures that could not be decoded: {out / SKIPPED}")
    if finished(out):
        lines.append(f"finished: {out / 'model' / 'card.md'}")
    return lines


def reached(run: dict[str, Any], rate: float) -> list[str]:
    """A line with the share of its card's stated rate that a run's training computes; none on another device, nor where
    the operations cannot be counted. run: what is in run.json. rate: images a second, of all its processes."""
    card = next((card for card in CARDS if re.search(rf"\b{card}\b", run.get("card") or "")), None)
    if card is None:
        return []
    kind = DiffusionRecipe if "first_stage" in run["about"] else AutoencoderRecipe
    about = {f.name: run["about"][f.name] for f in dataclasses.fields(kind) if f.name in run["about"]}
    with suppress(InputError, OSError):
        cost = budget(from_dict(kind, about | {"train": {"steps": run["train"]["steps"]}}))
        share = rate * cost.each / (CARDS[card] * run["processes"])
        return [f"{100 * share:.0f} % of {'a' if card == 'T4' else 'an'} {card}'s stated rate"]
    return []


def mean_of(rows: Sequence[dict[str, str]], name: str) -> float:
    return sum(float(row[name]) for row in rows) / len(rows)


def clock(seconds: float | str) -> str:
    """3725 -> 1 h 2 min"""
    minutes = int(float(seconds) // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {int(float(seconds) % 60)} s"


# Held-out metrics ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def reconstructed(stage: nn.Module, images: Tensor, batch: int = 32) -> Tensor:
    """(B, 3, H, W) in [-1, 1] what a first stage makes of images, by the mean of its posterior."""
    place = home(stage)
    parts = [stage.decode(stage.encode(part.to(place))).float().clamp(-1, 1).cpu() for part in images.split(batch)]
    return torch.cat(parts)


def first_stage_metrics(
    stage: nn.Module, held_out: Any, data: DataConfig, out: Path | None = None, n: int | None = None
) -> dict[str, Any]:
    """How like n (by default JUDGED) held-out images their reconstructions are, and how much room a latent takes.

    On the built-in scenes, psnr also against the same scenes drawn without texture. lpips and rfid look with
    Features("scenes"). out: the folder for reconstructions.png, eight of them below their images."""
    rows = range(min(n or JUDGED, len(held_out)))
    images = pictures(held_out, rows)
    result = reconstructed(stage, images)
    numbers: dict[str, Any] = {"images": len(images), "psnr": mean(psnr(result, images))}
    if data.path == "scenes":
        from .data import Scenes

        plain = pictures(Scenes("validation", data.size, texture=0), rows)
        numbers["psnr_without_texture"] = mean(psnr(result, plain))
    numbers |= likeness(images, result, home(stage)) | latent_metrics(stage, images)
    if out is not None:
        save_grid(torch.cat([images[:8], result[:8]]), out / "reconstructions.png", 8)
    return numbers


@torch.no_grad()
def looked_at(features: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    """(n, D) what a network sees in images (n, 3, H, W), wherever the two are; on the CPU."""
    place = home(features)
    return torch.cat([features(part.to(place)).cpu() for part in images.split(batch)])


@torch.no_grad()
def likeness(images: Tensor, others: Tensor, place: torch.device) -> dict[str, float]:
    """ssim, lpips, rfid, and what is left of the images' share of fine texture in the others (n, 3, H, W)."""
    features = Features("scenes").to(place)
    distance = LPIPS(features)
    pairs = [(a.to(place), b.to(place)) for a, b in zip(images.split(64), others.split(64))]
    real, fake = looked_at(features, images), looked_at(features, others)
    numbers = {
        "ssim": round(float(torch.cat([ssim(a, b).cpu() for a, b in pairs]).mean()), 4),
        "lpips": round(float(torch.cat([distance(a, b).cpu() for a, b in pairs]).mean()), 4),
    }
    if len(images) > 1:
        numbers["rfid"] = round(fid(real, fake), 4)
    fine = high_frequency(images).mean()
    if fine > 0:  # there is some to be kept
        numbers["texture_kept"] = round(float(high_frequency(others).mean() / fine), 3)
    return numbers


@torch.no_grad()
def latent_metrics(stage: nn.Module, images: Tensor) -> dict[str, Any]:
    """Standard deviation and size of latents: float16 numbers for KL, indices for VQ, and how the codes are used."""
    place = home(stage)
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        torch.manual_seed(0)  # the same draws of the posterior each time
        z = torch.cat([stage.encode(part.to(place), sample=True).cpu() for part in images.split(32)])
    numbers: dict[str, Any] = {"latent_std": round(float(z.std()), 3), "latent_bytes": 2 * z[0].numel()}
    if getattr(stage.config, "bottleneck", "") == "vq":
        codes = stage.config.codes
        index = torch.cat([stage.code(part.to(place)).index.cpu() for part in images.split(32)])
        used = usage(index, codes)
        numbers["latent_bytes"] = math.ceil(index[0].numel() * math.log2(codes) / 8)
        numbers |= {"codes_used": round(used.share, 4), "perplexity": round(used.perplexity, 1)}
    return numbers


@torch.no_grad()
def reader_metrics(reader: nn.Module, quiz: Any, n: int = 2048) -> dict[str, Any]:
    """Shares of right labels and counts, and the mean over the classes of intersection over union, of n scenes."""
    place = next(reader.parameters()).device
    right, counted, confusion = 0.0, 0.0, torch.zeros(SEGMENTS, SEGMENTS, dtype=torch.int64)
    for i in range(0, n, 64):
        batch = quiz.batch(range(i, min(i + 64, n)))
        said = [part.cpu() for part in reader((batch["image"].float() / 127.5 - 1).to(place))]
        right += float((said[0].argmax(1) == batch["label"]).sum())
        counted += float((said[1].argmax(2) == batch["counts"]).float().mean(1).sum())
        confusion += confused(batch["segmentation"].long(), said[2].argmax(1))
    return {
        "images": n,
        "label_accuracy": round(right / n, 4),
        "counts_accuracy": round(counted / n, 4),
        "miou": round(float(ious(confusion).mean()), 4),
    }


def finder_metrics(network: nn.Module, census: Any, n: int = 2048) -> dict[str, Any]:
    """Shares of the objects of n scenes that are found, and of what is found that is there: by kind, at an IoU of 0.5;
    the mean IoU of those, the share of right colours, and the share of captions' objects that are heard."""
    from .data.scenes import COLOURS, OBJECTS
    from .reading import heard, placed, things, wanted

    there = found = shown = 0
    overlaps, painted, asked, right = [], [], 0, 0
    for i in range(0, n, 64):
        rows = range(i, min(i + 64, n))
        batch, plan = census.batch(rows), census.plan(rows)
        seen = things(batch["image"].float() / 127.5 - 1, network)
        for row, mine in enumerate(seen):
            real = batch["kinds"][row] >= 0
            boxes, kinds = batch["boxes"][row][real], [OBJECTS[k] for k in batch["kinds"][row][real].tolist()]
            pairs = placed(boxes, kinds, mine)
            good = [value for value, alike in pairs if alike and value >= 0.5]
            there, found, shown = there + len(kinds), found + len(good), shown + len(mine)
            overlaps += good
            heard_, all_ = heard(wanted(plan.caption(row)), mine)
            right, asked = right + heard_, asked + all_
            for box, kind, colour in zip(boxes, kinds, batch["colours"][row][real].tolist()):
                if kind in ("house", "boat"):
                    best = max(mine, key=lambda t: placed(box[None], [kind], [t])[0][0], default=None)
                    painted.append(best is not None and best.colour == COLOURS[colour])
    return {
        "images": n,
        "recall": round(found / there, 4),
        "precision": round(found / shown, 4) if shown else 0.0,
        "iou": round(sum(overlaps) / max(len(overlaps), 1), 4),
        "colour_accuracy": round(sum(painted) / max(len(painted), 1), 4),
        "heard": round(right / asked, 4),
    }


def denoiser_metrics(model: LatentDiffusion, held_out: Any, recipe: DiffusionRecipe, out: Path) -> dict[str, Any]:
    """The first stage's metrics, the loss on held-out images and, on labelled scenes, the share that reads back.

    out: the folder for samples.png, a row for each class."""
    numbers = {} if recipe.first_stage == "pixels" else first_stage_metrics(model.first_stage, held_out, recipe.data)
    rows = range(min(JUDGED, len(held_out)))
    total = 0.0
    with torch.no_grad():
        for i, batch in enumerate(batches(held_out, rows)):
            torch.manual_seed(32 * i)
            # times in even steps: the mean over them has less noise than over drawn ones
            times = (torch.arange(len(batch["image"])) + 0.5).double() / 32
            total += float(model(moved(batch, model.device), times=times).sum())
    numbers["validation_loss"] = round(total / len(rows), 4)
    if recipe.condition is not None:
        numbers |= told_metrics(model, held_out, recipe.data, out)
    elif recipe.labels and recipe.data.path == "scenes":
        samples, labels = sampled(model, JUDGED, recipe.data.size, GUIDANCE, STEPS)
        numbers |= obedience(samples, labels) | {"guidance": GUIDANCE, "sampler_steps": STEPS}
        by_class, columns = classes_in_rows(samples, len(recipe.labels))
        save_grid(by_class, out / "samples.png", columns)
    return numbers


def told_metrics(
    model: LatentDiffusion,
    held_out: Any,
    data: DataConfig,
    out: Path | None = None,
    n: int | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How far n samples (by default JUDGED) follow what held-out images were said to show.

    out: the folder for samples.png: what the model was told, where that is a picture, its sample and the image."""
    guidance, steps = GUIDANCE if guidance is None else guidance, steps or STEPS
    given = whole_batch(held_out, range(min(n or JUDGED, len(held_out))))
    samples = told_samples(model, given, data.size, guidance, steps, seed)
    if out is not None:
        save_grid(beside(model, given, samples), out / "samples.png", 8)
    numbers: dict[str, Any] = {"samples": len(samples), "sampler_steps": steps}
    if model.conditioner.blank(given) is not given:
        numbers["guidance"] = guidance
    return numbers | obeyed(model, given, samples, data.path == "scenes")


def whole_batch(data: Any, rows: Sequence[int]) -> dict[str, Any]:
    """Some rows of a dataset as one batch."""
    return joined(list(batches(data, rows)))


def told_samples(
    model: LatentDiffusion,
    given: dict[str, Any],
    size: int,
    guidance: float,
    steps: int,
    seed: int = 0,
    sampler: str = "ddim",
) -> Tensor:
    """A sample (n, 3, size, size) for each row of a batch of conditions; holes are filled, the rest is kept."""
    told = {key: given[key] for key in model.conditioner.keys}
    with autocast(model.device, precision("auto", model.device)):
        n = len(given["image"])
        settings = {"sampler": sampler, "steps": steps, "guidance": guidance, "size": size}
        samples = model.sample(told, n=n, seed=seed, **settings)
    return torch.where(given["mask"].bool(), given["image"], samples) if "mask" in told else samples


def beside(model: LatentDiffusion, given: dict[str, Any], samples: Tensor, n: int = 8) -> Tensor:
    """Rows of n for a grid: what the model was told, as far as it is a picture, the samples, the images."""
    image, told = given["image"][:n], []
    keys = model.conditioner.keys
    if "low" in keys:
        told.append(F.interpolate(given["low"][:n], image.shape[2:], mode="nearest"))
    if "masked" in keys:
        told.append(given["masked"][:n])
    if "segmentation" in keys:
        count = int(given["segmentation"].max()) + 1
        told.append(palette(count)[given["segmentation"][:n].long()].permute(0, 3, 1, 2))
    if "boxes" in keys:
        told.append(outlined(image, given["boxes"][:n]))
    return torch.cat([*told, samples[:n], image])


def palette(n: int) -> Tensor:
    """(n, 3) colours in [-1, 1] that differ."""
    k = torch.arange(n).float()
    return torch.stack([torch.cos(k * 2.4 + phase) for phase in (0.0, 2.1, 4.2)], 1) * 0.8


def outlined(images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """The frames of boxes on grey, one colour for each."""
    out, (h, w) = torch.zeros_like(images), images.shape[2:]
    for picture, some in zip(out, boxes):
        for colour, box in zip(palette(len(some)), torch.as_tensor(some)):
            x0, y0, x1, y1 = (box * torch.tensor([w, h, w, h])).round().long().tolist()
            x1, y1 = min(max(x1, x0 + 1), w) - 1, min(max(y1, y0 + 1), h) - 1
            for rows, columns in (
                (slice(y0, y1 + 1), [x0, x1]),
                ([y0, y1], slice(x0, x1 + 1)),
            ):
                picture[:, rows, columns] = colour.view(3, 1, 1)
    return out


@torch.no_grad()
def obeyed(model: LatentDiffusion, given: dict[str, Any], samples: Tensor, scenes: bool = True) -> dict[str, Any]:
    """Numbers for what the model was told of the batch `given`; of captions, layouts and maps those of scenes only."""
    from .data.scenes import OBJECTS
    from .reading import finder, heard, placed, things, wanted

    keys, place, numbers = model.conditioner.keys, model.device, {}
    if scenes and ("caption" in keys or "boxes" in keys):
        found = things(samples, finder().to(place))
    if scenes and "caption" in keys:
        pairs = [heard(wanted(caption), shown) for caption, shown in zip(given["caption"], found)]
        numbers["heard"] = round(sum(a for a, _ in pairs) / sum(b for _, b in pairs), 4)
    if scenes and "boxes" in keys:
        rows = zip(given["boxes"], given["box_labels"], found)
        each = [pair for boxes, kinds, shown in rows for pair in placed(boxes, [OBJECTS[k] for k in kinds], shown)]
        numbers["iou"] = round(sum(v for v, _ in each) / max(len(each), 1), 4)
        numbers["kinds"] = round(sum(kind for _, kind in each) / max(len(each), 1), 4)
    if scenes and "segmentation" in keys:
        features = Features("scenes").to(place)
        read = [features.read(part.to(place)).segmentation.cpu() for part in samples.split(64)]
        numbers["miou"] = miou(given["segmentation"].long(), torch.cat(read))
    if "low" in keys:
        size = samples.shape[2:]
        bicubic = F.interpolate(given["low"], size, mode="bicubic").clamp(-1, 1)
        for name, made in (("", samples), ("bicubic_", bicubic)):
            numbers[f"{name}psnr_to_image"] = mean(psnr(made, given["image"]))
            numbers |= {f"{name}{k}_to_image": v for k, v in likeness(given["image"], made, place).items()}
    if "mask" in keys:
        numbers |= {f"{k}_to_image": v for k, v in likeness(given["image"], samples, place).items()}
    return numbers


def confused(asked: Tensor, shown: Tensor) -> Tensor:
    """(SEGMENTS, SEGMENTS) how many pixels of two maps (B, H, W) are asked to be the one segment and show the other."""
    return torch.bincount((asked * SEGMENTS + shown).flatten(), minlength=SEGMENTS**2).view(SEGMENTS, SEGMENTS)


def ious(confusion: Tensor) -> Tensor:
    """(SEGMENTS,) intersection over union of each segment."""
    hit = confusion.diag().double()
    return hit / (confusion.sum(0) + confusion.sum(1) - hit)


def miou(asked: Tensor, shown: Tensor) -> float:
    """The mean over the segments that are asked for of intersection over union of two maps (B, H, W)."""
    confusion = confused(asked, shown)
    return round(float(ious(confusion)[confusion.sum(1) > 0].mean()), 4)


def classes_in_rows(samples: Tensor, classes: int, most: int = 8) -> tuple[Tensor, int]:
    """What `sampled` drew, ordered for a grid with a row for each class, and the number of its columns."""
    columns = min(most, len(samples) // classes)
    return rearrange(samples[: columns * classes], "(n k) c y x -> (k n) c y x", k=classes), columns


def obedience(samples: Tensor, labels: Tensor) -> dict[str, Any]:
    """The share of samples (n, 3, H, W) whose sky and ground read back as the label (n,) that was asked for."""
    from .data.scenes import read_label

    return {"samples": len(samples), "label_read_back": round(float((read_label(samples) == labels).float().mean()), 4)}


def sampled(
    model: LatentDiffusion,
    n: int,
    size: int,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    seed: int = 0,
    sampler: str = "ddim",
) -> tuple[Tensor, Tensor]:
    """n samples (n, 3, size, size) and their labels (n,), the model's classes in turn."""
    labels = torch.arange(n) % len(model.conditioner.names)
    parts = []
    for i in range(0, n, 64):
        some = labels[i : i + 64]
        with autocast(model.device, precision("auto", model.device)):
            settings = {"sampler": sampler, "steps": steps, "guidance": guidance, "size": size}
            parts.append(model.sample({"label": some}, seed=mix(seed, i), **settings))
    return torch.cat(parts), labels


def mean(values: Tensor) -> float:
    return round(float(values.mean()), 2)


# The card -----------------------------------------------------------------------------------------------------------

MEANING = {
    "images": "held out",
    "psnr": "dB",
    "psnr_without_texture": "dB, against the same scenes drawn without texture",
    "latent_std": "of held-out latents",
    "validation_loss": "of the denoiser",
    "samples": "drawn; where a class is told, the classes in turn",
    "ssim": "1 for equal pictures",
    "lpips": 'on Features("scenes"), 0 for equal pictures',
    "rfid": 'on Features("scenes"), of the reconstructions',
    "texture_kept": "share of the variance in waves below four pixels, against the images' share",
    "latent_bytes": "an image: float16 numbers, or indices",
    "codes_used": "share of the codebook",
    "perplexity": "of the codes",
    "label_read_back": "share of the samples whose sky and ground read back as their class",
    "label_accuracy": "share of scenes",
    "counts_accuracy": "share of kinds of object whose number is right",
    "recall": "share of the objects that are found, of the right kind, at an IoU of 0.5 or more",
    "precision": "share of what is found that is there",
    "iou": "mean of boxes there and found",
    "colour_accuracy": "share of houses and boats",
    "heard": "share of the objects of captions that are found in the picture as the caption says",
    "kinds": "share of the boxes asked for whose object is of the right kind",
    "miou": "mean over the 13 segments of intersection over union",
}
for _name in ("psnr", "ssim", "lpips", "rfid", "texture_kept"):
    MEANING[f"{_name}_to_image"] = "of the samples, to the images"
    MEANING[f"bicubic_{_name}_to_image"] = "of the small pictures enlarged"


def card(out: Path, model: nn.Module, recipe: Recipe, config: Any, command: str, numbers: dict[str, Any]) -> None:
    """Writes model/metrics.json, then model/card.md: what these weights are, where from, and how good."""
    place = next(model.parameters()).device
    spent, world = seconds(out), processes.count()
    on = machine(place) if world == 1 else f"{world} processes, each on {machine(place)}"
    facts = {
        "command": f"`{command}`" if command else "(from Python)",
        "version": f"ldm_lite {__version__}, {commit()}",
        "data": f"{recipe.data.path} at {recipe.data.size} px"
        + (f", the first {recipe.data.count}" if recipe.data.count else "")
        + (f", random squares of 1 / {recipe.data.zoom:g} to all of each" if recipe.data.zoom > 1 else ""),
        "training": f"{config.steps} steps of {config.batch * world} images in {spent:.0f} s on {on}",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "licence": "MIT, like the code",
    }
    facts |= begun(getattr(recipe, "init", ""))
    if (out / SCALE).is_file():
        there = read(out / SCALE)
        facts["latents"] = f"scaled by {there['scale']:.5g}, measured on {there['images']} images of the data"
    if left_out := skipped(out):
        facts["skipped"] = f"{len(left_out)} pictures that could not be decoded, of those met; {SKIPPED} lists them"
    rows = [f"| {k.replace('_', ' ')} | {v} | {MEANING.get(k, '')} |" for k, v in numbers.items()]
    lines = [
        f"# {out.name}",
        "",
        *(f"- {k}: {v}" for k, v in facts.items()),
        "",
        "Metrics on held-out images, by the averaged weights where there are some:",
        "",
        "| metric | value | |",
        "|---|---|---|",
        *rows,
        "",
    ]
    training = {"size": recipe.data.size, "training_steps": config.steps, "seconds": round(spent, 1)}
    write(out / "model" / "metrics.json", numbers | training)
    with whole(out / "model" / "card.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def begun(init: str) -> dict[str, str]:
    """For the card of a run that did not begin at random: the command and the training of what it began with."""
    if not init:
        return {}
    with suppress(InputError, OSError):
        lines = (folders.found(init) / "card.md").read_text(encoding="utf-8").splitlines()
        said = [line.split(": ", 1)[1] for line in lines if line.startswith(("- command: ", "- training: "))]
        return {"begun with": ", ".join((init, *said))}
    return {"begun with": init}


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
