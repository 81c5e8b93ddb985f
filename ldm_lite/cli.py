"""ldm-lite train | sample | evaluate | encode | convert | demo. Options are made from the dataclasses by tyro.

A mistake in the input is one line and exit status 2, with nothing overwritten."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .config import InputError, one_or_more, suggest

COMMANDS = {
    "train": "train a preset: ldm-lite train PRESET [--data PATH] [--train.steps N] …",
    "sample": 'pictures from a model: ldm-lite sample MODEL --label "night snow" -n 16 -o out.png',
    "evaluate": "held-out metrics of a model: ldm-lite evaluate MODEL",
    "encode": "latents of a folder of images: ldm-lite encode MODEL FOLDER -o latents.safetensors",
    "convert": "a model in another precision or layout, CompVis's and diffusers' too: ldm-lite convert MODEL FOLDER",
    "demo": "learn a small latent diffusion model from nothing: ldm-lite demo [--minutes M]",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 2 for a mistake in the input, 1 for a failed run, 130 if interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(f"usage: ldm-lite COMMAND …   (ldm-lite COMMAND --help)\n\n{listed(COMMANDS)}")
            return 0
        command, rest = arguments[0], arguments[1:]
        if command == "--version":
            from . import __version__

            print(__version__)
            return 0
        if command not in COMMANDS:
            raise suggest(command, COMMANDS, "command")
        return globals()[command](rest) or 0
    except InputError as error:
        print(f"ldm-lite: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"ldm-lite: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\nldm-lite: {error or 'stopped'}", file=sys.stderr)
        return 130


def listed(rows: dict[str, str]) -> str:
    return "\n".join(f"  {name:<20} {what}" for name, what in rows.items())


# Options ------------------------------------------------------------------------------------------------------------


def options(cls: Any, default: Any, arguments: list[str], program: str, about: str = "") -> Any:
    """A dataclass read from the command line by tyro. InputError, in one line, for what it does not take."""
    import tyro

    known = flags(default)
    for argument in arguments:
        name = argument.split("=")[0]
        if name.startswith("--") and name != "--help" and name not in known:
            raise suggest(name, known, f"option of {program}")
    # options keep their underscores: they are the names of the fields
    screen = io.StringIO()
    try:
        with contextlib.redirect_stderr(screen):
            # of a field that may be one of several dataclasses the values are set; a file (--config) chooses another
            return tyro.cli(
                cls, args=arguments, default=default, prog=program, description=about, use_underscores=True,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands), add_help=True,
            )  # fmt: skip
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(one_line(screen.getvalue())) from None
    except ValueError as error:  # a config that checks itself
        raise InputError(str(error)) from None


def one_line(screen: str) -> str:
    """What tyro's framed message says, without the frame."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen)
    words = [line.strip("│╭╮╰╯─ \t") for line in plain.splitlines()]
    noise = ("For full helptext", "usage:", "Value error", "Parsing error", "Argument helptext", "--", "(default")
    kept = [word for word in words if word and not word.startswith(noise)]
    return re.sub(r"Error parsing [\w.-]+: (?=\w+: )", "", "; ".join(kept)) or "the options could not be read"


def flags(settings: Any, prefix: str = "--") -> list[str]:
    """The options of a dataclass and of the dataclasses in it."""
    names = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value is None and field.name == "condition":  # there is nothing to set
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names += flags(value, f"{prefix}{field.name}.")
        else:
            names.append(prefix + field.name)
    return names


def taken(arguments: list[str], program: str, what: str, many: int) -> tuple[list[str], list[str]]:
    """The leading arguments that are no options, and the rest. InputError when there are not `many`."""
    first = next((i for i, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    if "--help" in arguments or "-h" in arguments:
        return arguments[:first], ["--help"]
    if first != many:
        raise InputError(f"{program} needs {what}")
    return arguments[:first], arguments[first:]


def replaced(arguments: list[str], short: dict[str, str]) -> list[str]:
    """The arguments with short names written out: -n as --n, --data as --data.path."""
    out = []
    for argument in arguments:
        name, sign, value = argument.partition("=")
        out.append(short.get(name, name) + sign + value)
    return out


# Commands -----------------------------------------------------------------------------------------------------------


def train(arguments: list[str]) -> None:
    from . import runs
    from .presets import PRESETS, recipe

    names, rest = taken(arguments, "ldm-lite train", f"a preset: {', '.join(PRESETS)}", 1)
    if rest == ["--help"] and not names:
        print(
            f"usage: ldm-lite train PRESET [--out FOLDER] [--restart] [--config FILE] [options]\n\n{presets_listed()}"
        )
        print("\nldm-lite train PRESET --help lists a preset's options.")
        return
    chosen, name = recipe(names[0]), names[0]
    rest, out, restart, file = own(rest, Path("runs") / name)
    if file is not None:
        from .config import from_dict, read

        chosen = from_dict(type(chosen), read(file), str(file))
    if rest != ["--help"]:
        rest = replaced(rest, {"--data": "--data.path", "--steps": "--train.steps", "--minutes": "--train.minutes"})
    chosen = options(
        type(chosen), chosen, rest, f"ldm-lite train {name}", "Also: --out FOLDER, --restart, --config FILE."
    )
    emptied(out, restart)
    if runs.finished(out):
        runs.claim(out, chosen)
        print(f"{out} is finished: {out / 'model' / 'card.md'}; --restart trains it anew")
        return
    model = runs.train(chosen, out, shlex.join(["ldm-lite", "train", *arguments]))
    print((model / "card.md").read_text(encoding="utf-8"))
    print(f"weights: {model}")


def presets_listed() -> str:
    from .presets import PRESETS, AutoencoderRecipe, DiffusionRecipe

    def about(recipe: Any) -> str:
        kind = "first stage" if isinstance(recipe, AutoencoderRecipe) else "features"
        kind = f"diffusion in {recipe.first_stage}" if isinstance(recipe, DiffusionRecipe) else kind
        return f"{kind}, on {recipe.data.path} at {recipe.data.size} px"

    return listed({name: about(recipe) for name, recipe in PRESETS.items()})


def own(arguments: list[str], out: Path) -> tuple[list[str], Path, bool, Path | None]:
    """Takes --out, --restart and --config, which are of the command and not of the recipe, from the arguments."""
    rest, restart, file = [], False, None
    waiting = iter(arguments)
    for argument in waiting:
        name, _, value = argument.partition("=")
        if name == "--restart":
            restart = True
        elif name in ("--out", "-o", "--config"):
            value = value or next(waiting, "")
            if not value:
                raise InputError(f"{name}: a path is needed after it")
            out, file = (out, Path(value)) if name == "--config" else (Path(value), file)
        else:
            rest.append(argument)
    return rest, out, restart, file


def emptied(out: Path, restart: bool) -> None:
    """Removes the run in `out` when a restart is asked for. InputError when `out` holds something else."""
    if restart and out.exists() and any(out.iterdir()):
        if not any((out / mark).is_file() for mark in ("run.json", "demo.json")):
            raise InputError(f"{out}: holds no run of ours, so --restart does not remove it; choose another --out")
        shutil.rmtree(out)


@dataclass(frozen=True)
class SampleConfig:
    label: tuple[str, ...] = ()  # of the classes; several are drawn in turn, none draws all in turn
    n: int = 16  # pictures; also -n
    steps: int = 30  # of the sampler
    guidance: float = 2.0  # 1 is none
    rescale: float = 0.0  # how much of the contrast that guidance adds is taken back, 0 to 1
    interval: tuple[float, float] = (0.0, 1.0)  # the times at which guidance acts; 1 is noise
    sampler: str = "ddim"  # or heun, dpm_solver, plms
    grid: str = "uniform"  # of times; or quadratic, karras, original
    eta: float = 0.0  # of ddim: 0 is DDIM, 1 is DDPM
    size: int = 0  # pixels; 0 is the size that the model was trained at
    seed: int = 0
    columns: int = 0  # of the grid; 0 chooses
    output: Path = Path("samples.png")  # also -o

    def __post_init__(self) -> None:
        one_or_more(n=self.n, steps=self.steps)
        for name in ("size", "columns"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)} is below 0")
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta: {self.eta:g} is not between 0 and 1")


def sample(arguments: list[str]) -> None:
    from .latent import SAMPLERS, LatentDiffusion
    from .samplers import grid

    names, rest = taken(arguments, "ldm-lite sample", "a model: a run's folder or shipped weights", 1)
    rest = replaced(rest, {"-n": "--n", "-o": "--output", "--out": "--output"})
    settings = options(SampleConfig, SampleConfig(), rest, "ldm-lite sample MODEL", sample_help(names))
    if settings.sampler not in SAMPLERS:
        raise suggest(settings.sampler, SAMPLERS, "sampler")
    writable(settings.output)
    model = LatentDiffusion.load(names[0])
    classes = getattr(model.conditioner, "names", ())
    chosen = [model.conditioner.index(label) for label in settings.label] if classes else []
    if settings.label and not classes:
        raise InputError(f"label: {names[0]} is an unconditional model")
    if not classes and (settings.rescale or settings.interval != (0, 1)):
        raise InputError(f"rescale, interval: {names[0]} is an unconditional model, without guidance")
    steps = len(grid(settings.grid, model.diffusion.schedule, settings.steps)) - 1  # the original's may be others

    import torch
    from tqdm.auto import tqdm

    from .runs import steady_allocator
    from .training import autocast, device, precision, save_grid

    steady_allocator()
    model = model.to(device())
    chosen = chosen or list(range(len(classes)))
    batch = {"label": torch.tensor([chosen[i % len(chosen)] for i in range(settings.n)])} if chosen else {}
    size, guidance = settings.size or trained_size(names[0]), settings.guidance if classes else 1.0
    with autocast(model.device, precision("auto", model.device)):
        images = model.sample(
            batch, n=settings.n, sampler=settings.sampler, steps=settings.steps, size=size, seed=settings.seed,
            guidance=guidance, rescale=settings.rescale, interval=settings.interval,
            grid=settings.grid, watch=partial(tqdm, total=steps, unit="step", desc="sample", leave=False, disable=None),
            **({"eta": settings.eta} if settings.eta else {}),
        )  # fmt: skip
    columns = settings.columns or min(8, max(1, round(settings.n**0.5 * 1.3)))
    save_grid(images, settings.output, columns)
    print(f"{settings.output}: {settings.n} samples, {steps} steps, guidance {guidance:g}")


def sample_help(names: list[str]) -> str:
    """The description in --help: the labels of the model that is named, or of all shipped weights."""
    from .config import read
    from .folders import found, shipped

    lines = []
    for name in names or shipped():
        labels = read(found(name) / "config.json").get("conditioner", {}).get("names", [])
        lines.append(f"Labels of {name}: {', '.join(labels) or 'none, it is unconditional'}.")
    return "\n\n".join(lines or ["No weights are shipped; train some with: ldm-lite train scenes-ldm4"])


def trained_size(name: str) -> int:
    """The size in pixels that a model was trained at, from the metrics beside it; 64 when there are none."""
    from .config import read
    from .folders import found

    beside = found(name) / "metrics.json"
    return int(read(beside).get("size", 64)) if beside.is_file() else 64


def writable(path: Path) -> None:
    """InputError, before any work, when a picture cannot be written there."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"output: {path} is not a .png, .jpg or .webp file")
    from .config import whole

    held = whole(path)
    held.__enter__().unlink()


@dataclass(frozen=True)
class EvaluateConfig:
    images: int = 2048  # held out, that are reconstructed
    n: int = 256  # samples that are read back
    steps: int = 30
    guidance: float = 2.0
    data: str = "scenes"  # or a folder of images, Parquet files, a hub id
    size: int = 0  # pixels; 0 is the size that the model was trained at
    seed: int = 0
    output: Path | None = None  # a .json file for the numbers; also -o

    def __post_init__(self) -> None:
        one_or_more(images=self.images, n=self.n, steps=self.steps, size=self.size or None)


def evaluate(arguments: list[str]) -> None:
    """How well a first stage reconstructs held-out images and, on the built-in scenes, what samples show."""
    import json

    from . import runs
    from .features import SceneReader
    from .latent import LatentDiffusion, restored
    from .presets import DataConfig, dataset
    from .training import device

    about = (
        "Reconstruction of held-out images and, for built-in scenes, the share of guided samples that show their label."
    )
    names, rest = taken(arguments, "ldm-lite evaluate", "a model: a run's folder or shipped weights", 1)
    rest = replaced(rest, {"-n": "--n", "-o": "--output", "--out": "--output"})
    settings = options(EvaluateConfig, EvaluateConfig(), rest, "ldm-lite evaluate MODEL", about)
    model, data = restored(names[0]).to(device()), DataConfig(settings.data, settings.size or trained_size(names[0]))
    whole = isinstance(model, LatentDiffusion)
    if isinstance(model, SceneReader):
        from .data.scenes import Quiz

        numbers = runs.reader_metrics(model, Quiz("validation", data.size), settings.images)
    else:
        stage, held_out = model.first_stage if whole else model, dataset(data, "validation")
        numbers = runs.first_stage_metrics(stage, held_out, data, n=settings.images)
    if whole and getattr(model.conditioner, "names", ()) and data.path == "scenes":
        drawn = runs.sampled(model, settings.n, data.size, settings.guidance, settings.steps, settings.seed)
        numbers |= runs.obedience(*drawn) | {"guidance": settings.guidance, "sampler_steps": settings.steps}
    if settings.output is not None:
        from .config import write

        write(settings.output, numbers)
    print(json.dumps(numbers, indent=2))


@dataclass(frozen=True)
class EncodeConfig:
    size: int = 64  # pixels; images are resized and cropped to it
    output: Path = Path("latents.safetensors")  # also -o
    picture: Path | None = None  # a grid of the first images above their reconstructions


def encode(arguments: list[str]) -> None:
    from .data import ImageFolder, cache_latents
    from .presets import load_first_stage
    from .runs import reconstructed
    from .training import device, save_grid

    about = (
        "Writes z (N, C, H/f, W/f), the means of the posterior in the model's scale, in the order of the sorted files."
    )
    names, rest = taken(arguments, "ldm-lite encode", "a model and a folder of images", 2)
    rest = replaced(rest, {"-o": "--output", "--out": "--output"})
    settings = options(EncodeConfig, EncodeConfig(), rest, "ldm-lite encode MODEL FOLDER", about)
    if settings.output.suffix != ".safetensors":
        raise InputError(f"output: {settings.output} is not a .safetensors file")
    stage = load_first_stage(names[0]).to(device())
    if settings.size % stage.f:
        raise InputError(f"size: {settings.size} is not divisible by f = {stage.f}")
    images = ImageFolder(names[1], size=settings.size)
    latents = cache_latents(stage, images)
    z = latents.batch(list(range(len(latents))))["z"].contiguous()
    from safetensors.torch import save_file

    from .config import whole

    with whole(settings.output) as temporary:
        save_file({"z": z}, temporary)
    if settings.picture is not None:
        import torch

        some = torch.stack([images[i]["image"] for i in range(min(8, len(images)))])
        save_grid(torch.cat([some, reconstructed(stage, some)]), settings.picture, len(some))
    print(f"{settings.output}: z {tuple(z.shape)}, mean {z.mean():.3f}, standard deviation {z.std():.3f}")


# What `convert` may overwrite in a folder, by layout
PUBLISHED = {
    "ldm-lite": ("model.safetensors", "config.json", "metrics.json", "card.md"),
    "diffusers": (
        "diffusion_pytorch_model.safetensors",
        "config.json",
        "model_index.json",
        "unet",
        "vqvae",
        "scheduler",
    ),
    "compvis": (),
}


@dataclass(frozen=True)
class ConvertConfig:
    dtype: str = "fp16"  # of the weights in the file: fp32, fp16 or bf16
    layout: str = "ldm-lite"  # or diffusers (a folder) or compvis (a .ckpt or .safetensors file)
    part: str | None = None  # first_stage or denoiser of a whole model, alone
    expect: str | None = None  # the published model that a CompVis file holds, such as kl-f8; a denoiser needs its name
    scale: float | None = None  # of the latents of a foreign model, where its file does not say
    labels: tuple[str, ...] = ()  # the names of a CompVis model's classes; none for ImageNet's 1000
    predicts: str = "eps"  # what the denoiser of a CompVis file was trained to: eps, z0 or v
    size: int = 256  # pixels of the images that a pipeline of diffusers draws

    def __post_init__(self) -> None:
        one_or_more(size=self.size)
        for field, known in (
            ("dtype", ("fp32", "fp16", "bf16")),
            ("layout", tuple(PUBLISHED)),
            ("part", (None, "first_stage", "denoiser")),
            ("predicts", ("eps", "z0", "v")),
        ):
            if getattr(self, field) not in known:
                names = ", ".join(name for name in known if name)
                raise InputError(f"{field}: {getattr(self, field)} is not one of {names}")


def foreign(source: Path, settings: ConvertConfig) -> Any:
    """The model in a CompVis file or a folder of diffusers, None for anything else."""
    from .checkpoints import load_compvis, load_diffusers
    from .config import read

    if source.is_file():
        s = settings
        return load_compvis(source, s.expect, s.part, s.scale, s.labels or None, predicts=s.predicts)
    if settings.expect is None:
        configs = [source / part / "config.json" for part in ("", "vae", "vqvae", "unet")]
        found = any(config.is_file() and "_class_name" in read(config) for config in configs)
        if found or (source / "model_index.json").is_file():
            return load_diffusers(source, settings.scale)
    if settings.expect is not None or settings.scale is not None:
        raise InputError(f"{source}: has a configuration and scale of its own; leave --expect and --scale out")
    return None


def convert(arguments: list[str]) -> None:
    import torch

    from .checkpoints import save_compvis, save_diffusers
    from .folders import found
    from .latent import LatentDiffusion, restored, store

    about = "Copies a model, with its card, in another precision or layout. MODEL may be CompVis's (a .ckpt or "
    about += ".safetensors file) or diffusers' (a folder): convert model.ckpt runs/faces --expect celebahq-ldm4"
    names, rest = taken(arguments, "ldm-lite convert", "a model and where to write it", 2)
    settings = options(ConvertConfig, ConvertConfig(), rest, "ldm-lite convert MODEL FOLDER", about)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[settings.dtype]
    target, may = Path(names[1]), PUBLISHED[settings.layout]
    if target.is_dir() and any(p.name not in may for p in target.iterdir()):
        raise InputError(f"{target}: holds something other than a model; choose another folder")
    theirs = foreign(Path(names[0]), settings)
    model = restored(names[0]) if theirs is None else theirs
    whole = isinstance(model, LatentDiffusion)
    if settings.part and whole:
        model = getattr(model, settings.part)
    elif settings.part and not Path(names[0]).is_file():
        raise InputError(f"{names[0]}: is {type(model).__name__} and has no parts; leave --part out")
    if settings.layout == "diffusers":
        save_diffusers(model, target, dtype, settings.size)
    elif settings.layout == "compvis":
        save_compvis(model, target, dtype)
    else:
        store(model, target, dtype)
        for name in ("metrics.json", "card.md") if theirs is None and not (settings.part and whole) else ():
            if (found(names[0]) / name).is_file():
                shutil.copyfile(found(names[0]) / name, target / name)
    files = [path for path in target.rglob("*") if path.is_file()] if target.is_dir() else [target]
    print(f"{target}: {settings.dtype}, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")


def demo(arguments: list[str]) -> int:
    from .demo import DemoConfig, run

    rest, out, restart, _ = own(arguments, Path("runs/demo"))
    about = "Learns a latent diffusion model on the built-in scenes, end to end. Also: --out FOLDER, --restart."
    settings = options(DemoConfig, DemoConfig(), rest, "ldm-lite demo", about)
    emptied(out, restart)
    return run(settings, out)


if __name__ == "__main__":
    sys.exit(main())
