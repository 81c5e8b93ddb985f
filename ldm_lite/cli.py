"""The commands, which `ldm-lite --help` lists. Options are made from the dataclasses by tyro.

A mistake in the input is one line and exit status 2, with nothing overwritten."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from .config import InputError, LostError, one_or_more, shares, suggest

COMMANDS = {
    "train": "train a preset: ldm-lite train PRESET [--data PATH] [--train.steps N] …",
    "budget": "what a preset's training costs: ldm-lite budget [PRESET] [--card A100] [--hours 24] [options]",
    "status": "how far a run is: ldm-lite status RUN",
    "sample": 'pictures from a model: ldm-lite sample MODEL --label "night snow" -n 16 -o out.png',
    "upscale": "larger pictures from small ones: ldm-lite upscale MODEL IN OUT (a picture, or a folder of them)",
    "inpaint": "draw what a mask leaves out anew: ldm-lite inpaint MODEL IMAGE MASK OUT (white keeps; or folders)",
    "evaluate": "held-out metrics of a model: ldm-lite evaluate MODEL",
    "notes": "COCO's annotations as the notes of a folder: ldm-lite notes FOLDER instances.json captions.json",
    "encode": "latents of images, to a file or to the shards of a folder: ldm-lite encode MODEL DATA -o FOLDER",
    "convert": "a model in another precision or layout, CompVis's and diffusers' too: ldm-lite convert MODEL FOLDER",
    "demo": "learn a small latent diffusion model from nothing: ldm-lite demo [--minutes M]",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 2 for a mistake in the input, 1 for a failed run, 130 if interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    quiet = os.environ.get("RANK", "0") != "0"  # the first of several processes says what all of them know
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(f"usage: ldm-lite COMMAND …   (ldm-lite COMMAND --help)\n\n{listed(COMMANDS)}")
            print(
                "\nEvery command takes --device cuda, mps or cpu, and --yes, which agrees to terms of what is fetched."
            )
            return 0
        command, rest = arguments[0], everywhere(arguments[1:])
        if command == "--version":
            from . import __version__

            print(__version__)
            return 0
        if command not in COMMANDS:
            raise suggest(command, COMMANDS, "command")
        with terminable():
            return globals()[command](rest) or 0
    except InputError as error:
        if not getattr(error, "told", False):  # by another process of the same run
            print(f"ldm-lite: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        if not quiet:
            print(f"ldm-lite: {error}", file=sys.stderr)
        return 1
    except LostError as error:  # the first process may be the one that is lost
        print(f"\nldm-lite: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        if not quiet:
            print(f"\nldm-lite: {str(error) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads has read enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # of the system, such as a folder that may not be read
        if error.filename is None:
            raise
        if not quiet:
            print(f"ldm-lite: {os.fsdecode(error.filename)}: {error.strerror}", file=sys.stderr)
        return 2
    except Exception as error:
        torch = sys.modules.get("torch")  # which a command may do without
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        smaller = "take fewer at once (-n, --batch), smaller ones (--size), parts (--window), or --device cpu"
        print(f"ldm-lite: memory: there is no room for this on the device; {smaller}", file=sys.stderr)
        return 1


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM, by which batch systems and torchrun end a program, is as Ctrl-C: what is open is closed, and
    what is half written is gone. The training loop has its own way with both."""

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not the main thread, which no signal reaches
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def everywhere(arguments: list[str]) -> list[str]:
    """Takes what every command has from its arguments, into the environment: other processes of a run see it too."""
    rest, waiting = [], iter(arguments)
    for argument in waiting:
        name, _, value = argument.partition("=")
        if argument == "--yes":  # the terms of what is fetched are agreed to
            os.environ["LDM_LITE_YES"] = "1"
        elif name == "--device":
            os.environ["LDM_LITE_DEVICE"] = value or next(waiting, "")
            if not os.environ["LDM_LITE_DEVICE"]:
                raise InputError("device: cuda, mps or cpu is needed after --device")
        else:
            rest.append(argument)
    return rest


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
        with redirect_stderr(screen):
            # of a field that may be one of several dataclasses the values are set; a file (--config) chooses another
            return tyro.cli(
                cls, args=arguments, default=default, prog=program, description=about, use_underscores=True,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands), add_help=True,
            )  # fmt: skip
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(reason(stop) or one_line(screen.getvalue())) from None
    except ValueError as error:  # a config that checks itself
        raise InputError(str(error)) from None


def reason(stop: BaseException | None) -> str:
    """What a config that checks itself said of a field before tyro framed and wrapped it; nothing where none did."""
    while stop is not None and not (isinstance(stop, InputError) and re.match(r"\w+: ", str(stop))):
        stop = stop.__cause__ or stop.__context__
    return str(stop or "")


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


def picked(arguments: list[str], names: list[str]) -> tuple[list[str], list[str]]:
    """The options of these names, each with its value, and the others."""
    those, others, waiting = [], [], iter(arguments)
    for argument in waiting:
        name, sign, _ = argument.partition("=")
        if name in names:
            those += [argument] if sign else [argument, *islice(waiting, 1)]
        else:
            others.append(argument)
    return those, others


SHORT = {"--data": "--data.path", "--steps": "--train.steps", "--minutes": "--train.minutes"}
UNITS = {"": 1.0, "gib": 1.0, "gb": 1e9 / 2**30}


def sized(arguments: list[str], option: str) -> list[str]:
    """The arguments with that option's size as a number of GiB: 15, 15GiB, 15GB. InputError for what is no size."""
    out, waiting = [], iter(arguments)
    for argument in waiting:
        name, _, value = argument.partition("=")
        if name == option:
            value = value or next(waiting, "")
            found = re.fullmatch(r"(\d+\.?\d*|\.\d+) *([a-z]*)", value.lower())
            if found is None or found[2] not in UNITS:
                raise InputError(f"memory: {value or 'nothing'} is no size; 15GB, 15GiB and 15 (GiB) are")
            argument = f"{option}={float(found[1]) * UNITS[found[2]]:.6g}"
        out.append(argument)
    return out


# Commands -----------------------------------------------------------------------------------------------------------


def train(arguments: list[str]) -> None:
    from . import processes, runs
    from .presets import PRESETS, recipe
    from .training import device

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
        rest = sized(replaced(rest, SHORT | {"--memory": "--train.memory"}), "--train.memory")
    about = "Also: --out FOLDER, --restart, --config FILE, --memory 15GB (of the GPU)."
    chosen = options(type(chosen), chosen, rest, f"ldm-lite train {name}", about)
    device()  # one that is not there is told of before anything is fetched
    with processes.joined():
        if chosen.train.memory and device().type != "cuda" and processes.rank() == 0:
            print(f"memory: is of a CUDA device, and this is {device().type}: the batch stays in the parts it has")
        processes.alone(emptied, out, restart)
        if not runs.unfinished(out):
            processes.alone(runs.claim, out, chosen)
            said = f"{out} is finished: {out / 'model' / 'card.md'}; --restart trains it anew"
        else:
            model = runs.train(chosen, out, shlex.join(["ldm-lite", "train", *arguments]))
            said = f"{(model / 'card.md').read_text(encoding='utf-8')}\nweights: {model}"
        if processes.rank() == 0:
            print(said)


@dataclass(frozen=True)
class BudgetConfig:
    card: str = ""  # T4, A100, H100 or H200; all of them where it is left out
    hours: float = 0.0  # of that card: how many of the preset's steps they are enough for
    fraction: float = 0.25  # of the card's stated rate that is reached: an assumption until it is measured

    def __post_init__(self) -> None:
        if self.hours < 0:
            raise InputError(f"hours: {self.hours:g} is below 0")
        if not math.isfinite(self.hours):
            raise InputError(f"hours: {self.hours:g} is no number of hours")
        if self.hours and not self.card:
            raise InputError("hours: of which card? give --card too")


def budget(arguments: list[str]) -> None:
    """Steps, images, operations and hours of a preset, or of each of the paper's, with what was published of it."""
    from .budget import CARDS, PROTOCOL, PUBLISHED, budget, reached, stage_first
    from .originals import ORIGINALS
    from .presets import PAPER, recipe

    many = 1 if arguments and not arguments[0].startswith("-") else 0
    names, rest = taken(arguments, "ldm-lite budget", "a preset, or none for all of the paper's", many)
    about = "Operations of a run, counted, and hours of one card from its stated rate times an assumed fraction."
    chosen = {name: recipe(name) for name in names or PAPER}
    if names:
        about += " Also: the preset's settings, as for ldm-lite train, such as --model.width 128."
        ours = flags(BudgetConfig())
        rest, others = picked(replaced(rest, SHORT), [*ours, "--help"])
        for argument in others:
            if (option := argument.split("=")[0]).startswith("--") and option not in flags(chosen[names[0]]):
                raise suggest(option, [*ours, *flags(chosen[names[0]])], "option of ldm-lite budget")
        chosen = {name: options(type(each), each, others, "ldm-lite budget") for name, each in chosen.items()}
    s = options(BudgetConfig, BudgetConfig(), rest, "ldm-lite budget [PRESET]", about)
    cards = [s.card] if s.card else list(CARDS)
    for card in cards:
        reached(card, s.fraction)
    told = lambda b: ", ".join(f"{card} {b.hours(card, s.fraction):,.3g}" for card in cards)
    stages: dict[Any, str] = {}  # the hours of those that come first; several recipes have the same
    for name, each in chosen.items():
        b, known = budget(each), PUBLISHED.get(name) if each == recipe(name) else None
        print(f"{name}: {b.parameters / 1e6:.1f} M parameters are trained, {b.steps:,} steps of {b.batch} = ", end="")
        print(f"{b.images / 1e6:.2f} M images of {each.data.size} px")
        often = "at every step" if b.pictures == 0 else f"once for {b.pictures:,} pictures" if b.pictures else "once"
        print(f"  {b.training / 1e9:,.1f} GFLOP an image and step, forward and backward", end="")
        print(f"; {b.encoding / 1e9:,.1f} to encode it, {often}" if b.encoding else "")
        print(f"  {b.operations:.2e} operations; hours: {told(b)}")
        if (stage := stage_first(each)) is not None:
            first = each.first_stage
            stages[stage] = stages.get(stage) or told(budget(stage))
            print(f"  before it its first stage, {first}, unless runs/{first} is there; hours: {stages[stage]}")
            if first in ORIGINALS:
                print(f"  or the published one: ldm-lite convert {first} runs/{first} --yes")
        if s.hours:
            done = b.steps_within(s.hours, s.card, s.fraction)
            print(f"  {s.hours:g} hours: {done:,} of the {b.steps:,} steps ({100 * done / b.steps:.0f} %)")
        if known is not None:
            fid = f"FID {known.fid:.2f}, {known.where}" if known.fid else f"no FID: {known.where}"
            days = f"; {known.days:g} days of a V100 (table 18)" if known.days else ""
            print(f"  published: {fid}{days}", flush=True)
            if line := known.line(name):
                print(f"  measured as there: {line}")
    percent = f"{100 * s.fraction:g} %"
    print(f"\nHours are those of one card at {percent} of its stated dense fp16 or bf16 rate.")
    print("celebahq-ldm4 reached 34 % of an H200's, and 18 % without compilation; elsewhere it is an assumption, which")
    print("python benchmarks/gpu.py measures on yours. Data that come too slowly cost more.")
    if any(name in PUBLISHED and each == recipe(name) for name, each in chosen.items()):
        print(f"Published FIDs are reported by the paper, and promised to nobody. {PROTOCOL}.")


def status(arguments: list[str]) -> None:
    from .runs import status

    names, rest = taken(arguments, "ldm-lite status", "the folder of a run", 1)
    if rest == ["--help"] or not names:
        print("usage: ldm-lite status RUN\n\nHow far a run is, at what rate, and how long it still takes.")
        return
    if rest:
        raise InputError(f"{rest[0]}: ldm-lite status takes the folder of a run alone")
    print("\n".join(status(names[0])))


@dataclass(frozen=True)
class NotesConfig:
    maps: Path | None = None  # the folder of COCO-Stuff's pixel maps, NAME.png for each picture


def notes(arguments: list[str]) -> None:
    from .data import coco

    first = next((i for i, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    about = (
        "Writes FOLDER/metadata.jsonl, captions and boxes of the pictures in FOLDER, from files of annotations in "
        "COCO's layout: instances_train2017.json, stuff_train2017.json, captions_train2017.json."
    )
    settings = options(NotesConfig, NotesConfig(), arguments[first:], "ldm-lite notes FOLDER FILE [FILE …]", about)
    if first < 2:
        raise InputError("ldm-lite notes needs a folder of pictures and one or more files of annotations")
    folder, *files = arguments[:first]
    found = coco.note(folder, files, settings.maps)
    print(f"{Path(folder) / 'metadata.jsonl'}: {', '.join(f'{many:,} {what}' for what, many in found.items())}")


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
    from .runs import locked

    if restart and out.exists() and any(out.iterdir()):
        if not any((out / mark).is_file() for mark in ("run.json", "demo.json")):
            raise InputError(f"{out}: holds no run of ours, so --restart does not remove it; choose another --out")
        with locked(out):
            shutil.rmtree(out)


@dataclass(frozen=True)
class SampleConfig:
    label: tuple[str, ...] = ()  # of the classes; several are drawn in turn, none draws all in turn
    prompt: tuple[str, ...] = ()  # what the picture shows, in words; several are drawn in turn
    negative: str = ""  # what guidance leads away from, in words
    boxes: Path | None = None  # a .json file: [{"kind": "house", "box": [x0, y0, x1, y1]}, …], shares of the picture
    map: Path | None = None  # a picture whose pixels are numbers of segments
    n: int = 16  # pictures; also -n
    steps: int = 30  # of the sampler
    guidance: tuple[float, ...] = (2.0,)  # 1 is none; or a scale for each thing that the model is told, in order
    rescale: float = 0.0  # how much of the contrast that guidance adds is taken back, 0 to 1
    interval: tuple[float, float] = (0.0, 1.0)  # the times at which guidance acts; 1 is noise
    sampler: str = "ddim"  # or heun, dpm_solver, plms
    grid: str = "uniform"  # of times; or quadratic, karras, original
    eta: float = 0.0  # of ddim: 0 is DDIM, 1 is DDPM
    size: tuple[int, ...] = ()  # pixels, one number or height and width; none is the size it was trained at
    window: int = 0  # larger pictures are drawn by windows of this side; 0 draws them at once
    overlap: int = -1  # of the windows, in pixels; -1 is a quarter
    seed: int = 0
    columns: int = 0  # of the grid; 0 chooses
    output: Path = Path("samples.png")  # also -o

    def __post_init__(self) -> None:
        one_or_more(n=self.n, steps=self.steps)
        if not self.guidance:
            raise InputError("guidance: give one scale, or one for each thing that the model is told")
        for name in ("window", "columns"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)} is below 0")
        if self.overlap < -1:
            raise InputError(f"overlap: {self.overlap} is below 0")
        if self.overlap >= 0 and not self.window:
            raise InputError("overlap: of which windows? give --window too")
        if len(self.size) > 2 or any(side < 1 for side in self.size):
            raise InputError(f"size: {' '.join(map(str, self.size))} is not one number of pixels, or height and width")
        shares(eta=self.eta)


def sample(arguments: list[str]) -> None:
    from .conditioners import Inpainting, LowRes
    from .editing import part
    from .inputs import apart, writable
    from .latent import SAMPLERS, LatentDiffusion
    from .samplers import grid

    names, rest = taken(arguments, "ldm-lite sample", "a model: a run's folder or shipped weights", 1)
    rest = replaced(rest, {"-n": "--n", "-o": "--output", "--out": "--output"})
    settings = options(SampleConfig, SampleConfig(), rest, "ldm-lite sample MODEL", sample_help(names))
    if settings.sampler not in SAMPLERS:
        raise suggest(settings.sampler, SAMPLERS, "sampler")
    apart([settings.output], [settings.map] if settings.map else [])
    writable(settings.output)
    model = LatentDiffusion.load(names[0])
    for kind, command in ((LowRes, "upscale"), (Inpainting, "inpaint")):
        if part(model, kind) is not None:
            raise InputError(f"{names[0]}: is for ldm-lite {command}")
    told, negative = conditions(model, settings, names[0], settings.n)
    guided = model.conditioner.blank(told) is not told
    asked = settings.guidance not in ((1.0,), SampleConfig().guidance)
    if not guided and (asked or settings.rescale or settings.interval != (0, 1)):
        raise InputError(
            f"guidance, rescale, interval: {names[0]} is told nothing that it can do without; leave them out"
        )
    steps = len(grid(settings.grid, model.diffusion.schedule, settings.steps)) - 1  # the original's may be others

    from tqdm.auto import tqdm

    from .runs import steady_allocator
    from .training import autocast, device, precision, save_grid

    steady_allocator()
    model = model.to(device())
    drawn = tuple(told["segmentation"].shape[1:]) if "segmentation" in told else (trained_size(names[0]),) * 2
    size = (settings.size * 2)[:2] or drawn
    if settings.map and size != drawn:
        sizes = f"{size[0]} x {size[1]}, and {settings.map} is {drawn[0]} x {drawn[1]}"
        raise InputError(f"size: {sizes}; leave --size out, or give another map")
    scales = settings.guidance if guided else (1.0,)
    guidance = scales[0] if len(scales) == 1 else scales
    more: dict[str, Any] = {"eta": settings.eta} if settings.eta else {}
    more |= {"window": settings.window} if settings.window else {}
    more |= {"overlap": settings.overlap} if settings.overlap >= 0 else {}
    with autocast(model.device, precision("auto", model.device)):
        images = model.sample(
            told, n=settings.n, negative=negative, sampler=settings.sampler, steps=settings.steps, size=size,
            seed=settings.seed, guidance=guidance, rescale=settings.rescale, interval=settings.interval,
            grid=settings.grid, watch=partial(tqdm, total=steps, unit="step", desc="sample", leave=False, disable=None),
            **more,
        )  # fmt: skip
    columns = settings.columns or min(8, max(1, round(settings.n**0.5 * 1.3)))
    save_grid(images, settings.output, columns)
    print(f"{settings.output}: {settings.n} samples, {steps} steps, guidance {' '.join(f'{g:g}' for g in scales)}")


def conditions(
    model: Any, settings: SampleConfig | EditConfig, name: str, n: int
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the model is told besides a picture: a batch of n, and the batch that guidance leads away from.

    InputError for what is missing and for what this model cannot be told."""
    import torch

    from . import inputs
    from .conditioners import Boxes, Captions, Labels, SemanticMap
    from .editing import part

    batch: dict[str, Any] = {}
    negative: dict[str, Any] | None = None
    takes = {
        field: part(model, kind)
        for field, kind in (("label", Labels), ("prompt", Captions), ("boxes", Boxes), ("map", SemanticMap))
    }
    for field, conditioner in takes.items():
        if conditioner is None and getattr(settings, field):
            able = ", ".join(f"--{other}" for other, it in takes.items() if it is not None)
            other = "told a picture alone" if isinstance(settings, EditConfig) else "an unconditional model"
            raise InputError(f"{field}: {name} is {f'told by {able}' if able else other}")
    turn = lambda values: [values[i % len(values)] for i in range(n)]
    if labels := takes["label"]:
        if isinstance(settings, EditConfig) and not settings.label:
            raise InputError(f"label: say what the pictures show: --label with one of {', '.join(labels.names)}")
        chosen = [labels.index(label) for label in settings.label] or list(range(len(labels.names)))
        batch["label"] = torch.tensor(turn(chosen))
    if text := takes["prompt"]:
        if not settings.prompt:
            raise InputError('prompt: say what the picture shows, such as --prompt "two pines in the snow at dawn"')
        batch["caption"] = turn([text.prompt(words) for words in settings.prompt])
    if settings.negative:
        if not text:
            raise InputError(f"negative: {name} takes no words")
        negative = {"caption": [text.prompt(settings.negative, "negative")] * n}
    if boxes := takes["boxes"]:
        kinds, corners = inputs.layout(boxes, settings.boxes)
        batch |= {"boxes": [corners] * n, "box_labels": [kinds] * n}
    if segments := takes["map"]:
        drawn = inputs.segment_map(segments, settings.map)
        batch["segmentation"] = drawn.expand(n, -1, -1)
    return batch, negative


@dataclass(frozen=True)
class EditConfig:
    label: tuple[str, ...] = ()  # of a model that is told more than the picture: the class of all pictures
    prompt: tuple[str, ...] = ()  # or what they show, in words
    negative: str = ""  # what guidance leads away from, in words
    boxes: Path | None = None  # or a .json file of things and their places, as for sample
    map: Path | None = None  # or a picture whose pixels are numbers of segments
    guidance: tuple[float, ...] = (1.0,)  # 1 is none; or a scale for each thing that the model can do without, in order
    steps: int = 30  # of the sampler
    sampler: str = "ddim"  # or heun, dpm_solver, plms
    eta: float = 0.0  # of ddim: 0 is DDIM, 1 is DDPM
    window: int = 0  # pixels of the windows that larger pictures are drawn by; 0 is the size it was trained at
    overlap: int = -1  # of the windows, in pixels; -1 is a quarter
    seed: int = 0

    def __post_init__(self) -> None:
        one_or_more(steps=self.steps)
        shares(eta=self.eta)
        for name in ("label", "prompt"):
            if len(getattr(self, name)) > 1:
                raise InputError(f"{name}: {len(getattr(self, name))} are given; give one, which is for all pictures")
        if not self.guidance:
            raise InputError("guidance: give one scale, or one for each thing that the model is told")
        if self.window < 0:
            raise InputError(f"window: {self.window} is below 0")
        if self.overlap < -1:
            raise InputError(f"overlap: {self.overlap} is below 0")


def upscale(arguments: list[str]) -> None:
    from .editing import upscaled
    from .inputs import colours, pairs, ready

    names, rest = taken(arguments, "ldm-lite upscale", "a model, a picture or a folder, and where to write", 3)
    about = "Larger pictures from small ones of any size; larger ones than the model learned from go by windows."
    settings = options(EditConfig, EditConfig(), rest, "ldm-lite upscale MODEL IN OUT", about)
    files = pairs(Path(names[1]), Path(names[2]))
    ready(files)
    edited(names[0], files, settings, lambda model, path, own: upscaled(model, colours(path), **own))


def inpaint(arguments: list[str]) -> None:
    from .editing import inpainted
    from .inputs import black_or_white, colours, mask_of, pairs, ready

    what = "a model, a picture, its mask (or two folders with the same names) and where to write"
    names, rest = taken(arguments, "ldm-lite inpaint", what, 4)
    about = "Draws anew what is black in the mask; what is white stays exactly as it is."
    settings = options(EditConfig, EditConfig(), rest, "ldm-lite inpaint MODEL IMAGE MASK OUT", about)
    image, masks = Path(names[1]), Path(names[2])
    if image.is_dir() != masks.is_dir():
        raise InputError(f"{masks}: a folder of masks goes with a folder of pictures, and a file with a file")
    files = pairs(image, Path(names[3]))
    found = {path: mask_of(path, masks) for path, _ in files}
    ready(files, list(found.values()), lossless=True)
    mask = {path: black_or_white(found[path], path) for path in found}
    edited(names[0], files, settings, lambda model, path, own: inpainted(model, colours(path), mask[path], **own))


def edited(name: str, files: list[tuple[Path, Path]], settings: EditConfig, edit: Any) -> None:
    """Each picture through the model, one after the other, with progress."""
    from tqdm.auto import tqdm

    from .inputs import saved
    from .latent import SAMPLERS, LatentDiffusion
    from .runs import steady_allocator
    from .training import autocast, device, precision

    if settings.sampler not in SAMPLERS:
        raise suggest(settings.sampler, SAMPLERS, "sampler")
    steady_allocator()
    model = LatentDiffusion.load(name)
    told, negative = conditions(model, settings, name, 1)
    if set(settings.guidance) != {1.0} and model.conditioner.blank(told) is told:
        raise InputError(f"guidance: {name} is told a picture alone, and nothing that it can do without; leave it out")
    model = model.to(device())
    own: dict[str, Any] = {"steps": settings.steps, "sampler": settings.sampler, "seed": settings.seed}
    own |= {"guidance": settings.guidance[0] if len(settings.guidance) == 1 else settings.guidance}
    own |= {"batch": told, "negative": negative}
    own |= {"eta": settings.eta} if settings.eta else {}
    own |= {"overlap": settings.overlap} if settings.overlap >= 0 else {}
    own |= {"window": settings.window or trained_size(name)}
    several = len(files) > 1
    for path, to in tqdm(files, unit="picture", leave=False, disable=None if several else True):
        with autocast(model.device, precision("auto", model.device)):
            bar = partial(tqdm, total=settings.steps, unit="step", desc=path.name, leave=False, disable=None)
            made = edit(model, path, own | ({} if several else {"watch": bar}))
        saved(made, to)
        print(f"{to}: {made.shape[3]} x {made.shape[2]}")


def sample_help(names: list[str]) -> str:
    """The description in --help: what the model that is named, or each of the shipped ones, can be told."""
    from .config import read
    from .folders import found, shipped

    tells = {"Text": "--prompt", "PretrainedText": "--prompt", "Boxes": "--boxes", "SemanticMap": "--map"}
    tells |= {"LowRes": "ldm-lite upscale", "Inpainting": "ldm-lite inpaint", "Together": "several of these"}
    lines = []
    for name in names or shipped():
        told = read(found(name) / "config.json").get("conditioner")
        if told is None:
            continue
        kind, known = told["type"], ", ".join(told.get("names", []))
        if kind in tells:
            lines.append(f"{name}: {tells[kind]}{f' ({known})' if known else ''}.")
        else:
            lines.append(f"Labels of {name}: {known or 'none, it is unconditional'}.")
    return "\n\n".join(lines or ["No weights are shipped; train some with: ldm-lite train scenes-ldm4"])


def trained_size(name: str) -> int:
    """The size in pixels that a model was trained at, from the metrics beside it; 64 when there are none."""
    from .config import read
    from .folders import found

    beside = found(name) / "metrics.json"
    return int(read(beside).get("size", 64)) if beside.is_file() else 64


@dataclass(frozen=True)
class EvaluateConfig:
    images: int = 2048  # held out, that are reconstructed
    n: int = 256  # samples that are read back
    steps: int = 30  # with fid, of a model of the paper's: as published, and guidance, sampler, grid and eta too
    guidance: float = 2.0
    data: str = ""  # as for train: scenes, a folder, Parquet, hub:owner/name, …; a run's own where it is left out
    # of data: its columns, as for train (--data.image_key …)
    image_key: str | None = None
    label_key: str | None = None
    caption_key: str | None = None
    size: int = 0  # pixels; 0 is the size that the model was trained at
    seed: int = 0
    fid: int = 0  # instead of all that: so many samples against the whole training set, by the papers' protocol
    features: str = "inception"  # of the protocol: the network that looks; or scenes
    weights: Path | None = None  # of the protocol: the file of that network's weights, in place of what is downloaded
    sampler: str = "ddim"  # of the protocol
    grid: str = "uniform"  # of the protocol: the sampler's times
    eta: float = 0.0  # of the protocol, for ddim: 0 is DDIM, 1 is DDPM
    compile: bool = False  # of the protocol: the networks that draw; on a GPU that pays from some thousand samples on
    count: int | None = None  # of the protocol: only the first so many images of the training set
    # of the protocol: where it keeps what it saw, to go on from; by default `fid` in a run's folder, NAME-fid beside
    # another model's, and runs/NAME-fid for shipped weights
    keep: Path | None = None
    output: Path | None = None  # a .json file for the numbers; also -o

    def __post_init__(self) -> None:
        one_or_more(images=self.images, n=self.n, steps=self.steps, size=self.size or None, fid=self.fid or None)


def evaluate(arguments: list[str]) -> None:
    from . import processes

    with processes.joined():
        evaluated(arguments)


def evaluated(arguments: list[str]) -> None:
    """How well a first stage reconstructs held-out images and, on the built-in scenes, what samples show."""
    import json

    from . import processes, runs
    from .conditioners import Labels, Unconditional
    from .features import ObjectFinder, SceneReader
    from .latent import LatentDiffusion, restored
    from .presets import dataset, named_columns, told_images
    from .training import device

    about = "Reconstruction of held-out images, and how far samples show what they were told to. MODEL: a run's "
    about += "folder, a model's, shipped weights, or a preset's name for the run in runs/."
    names, rest = taken(arguments, "ldm-lite evaluate", "a model: a run's folder or shipped weights", 1)
    rest = replaced(rest, {"-n": "--n", "-o": "--output", "--out": "--output"})
    settings = options(EvaluateConfig, EvaluateConfig(), rest, "ldm-lite evaluate MODEL", about)
    name = trained(names[0])
    model = restored(name).to(device())
    path = "scenes" if isinstance(model, (SceneReader, ObjectFinder)) else settings.data
    data = data_of(name, path, settings.size or trained_size(name), named_columns(settings))
    whole = isinstance(model, LatentDiffusion)
    if settings.fid:
        given = {argument.partition("=")[0].removeprefix("--") for argument in rest}
        settings = as_published(names[0], name, model, settings, given, data.path)
        numbers = by_protocol(name, model, settings, data)
    elif isinstance(model, SceneReader):
        from .data.scenes import Quiz

        numbers = runs.reader_metrics(model, Quiz("validation", data.size), settings.images)
    elif isinstance(model, ObjectFinder):
        from .data.scenes import Census

        numbers = runs.finder_metrics(model, Census("validation", data.size), settings.images)
    else:
        stage, held_out = model.first_stage if whole else model, dataset(data, "validation")
        numbers = runs.first_stage_metrics(stage, held_out, data, n=settings.images)
    if settings.fid:
        pass
    elif whole and isinstance(model.conditioner, Labels) and data.path == "scenes":
        drawn = runs.sampled(model, settings.n, data.size, settings.guidance, settings.steps, settings.seed)
        numbers |= runs.obedience(*drawn) | {"guidance": settings.guidance, "sampler_steps": settings.steps}
    elif whole and not isinstance(model.conditioner, (Labels, Unconditional)):
        held_out = told_images(data, model.conditioner.config, "validation")
        own = {"n": settings.n, "guidance": settings.guidance, "steps": settings.steps, "seed": settings.seed}
        numbers |= runs.told_metrics(model, held_out, data, **own)
    if processes.rank() == 0:
        if settings.output is not None:
            from .config import write

            write(settings.output, numbers)
        print(json.dumps(numbers, indent=2))


def trained(name: str) -> str:
    """The model's folder or shipped name; for a preset that neither is, its run. InputError before it has a model."""
    from .folders import found, shipped
    from .presets import PRESETS

    if Path(name).exists() or name in shipped() or name not in PRESETS:
        return name
    run = Path("runs") / name
    try:
        found(run)
    except InputError:
        raise InputError(f"{name}: {run} has no model yet; first: ldm-lite train {name}") from None
    return str(run)


def run_of(name: str) -> Path | None:
    """The folder of the run that a model came from, if it still lies in it."""
    from .folders import found

    folder = found(name).absolute()
    places = (folder, folder.parent) if folder.name == "model" else (folder,)
    return next((p for p in places if any((p / mark).is_file() for mark in ("run.json", "demo.json"))), None)


def data_of(name: str, path: str, size: int, columns: dict[str, str]) -> Any:
    """The pictures that a model is judged by: those at `path`, else those that it learned from, not mirrored or zoomed.

    InputError where it is not known which they were."""
    from .config import from_dict, read
    from .folders import found, shipped, weights_folder
    from .presets import DataConfig

    folder, run = found(name), run_of(name)
    if not path and run is not None and (run / "run.json").is_file():
        mark = run / "run.json"
        values = (read(mark).get("about") or {}).get("data")
        if values is not None:
            data = from_dict(DataConfig, values, str(mark))
            return dataclasses.replace(data, size=size, flip=False, zoom=1.0, stream=False)
    ours = folder.name in shipped() and folder.samefile(weights_folder(folder.name))
    if not path and (ours or (run is not None and (run / "demo.json").is_file())):
        path = "scenes"
    if not path:
        raise InputError(f"data: {name} does not say what it learned from; give --data (a folder of images, or scenes)")
    return DataConfig(path, size, **columns)


def kept(name: str) -> Path:
    """Where the protocol keeps what it saw of a model."""
    from .folders import found

    if not Path(name).exists():
        return Path("runs") / f"{name}-fid"
    run, folder = run_of(name), found(name).absolute()
    return run / "fid" if run is not None else folder.with_name(f"{folder.name}-fid")


def by_protocol(name: str, model: Any, settings: EvaluateConfig, data: Any) -> dict[str, Any]:
    """FID and its kin as papers report them; in several processes, if torchrun started some."""
    from dataclasses import replace

    from .latent import LatentDiffusion
    from .presets import dataset
    from .protocol import Protocol, measured
    from .runs import going_on

    if not isinstance(model, LatentDiffusion):
        raise InputError(f"fid: {name} holds {type(model).__name__}, which draws no samples")
    s = settings
    guidance = s.guidance if model.conditioner.keys else 1.0  # told nothing, it is led nowhere
    protocol = Protocol(s.fid, s.features, data.size, s.sampler, s.steps, guidance, s.seed, s.grid, s.eta)  # type: ignore[arg-type]
    chosen = data if s.count is None else replace(data, count=s.count)
    with going_on():
        return measured(model, dataset(chosen), protocol, s.keep or kept(name), s.weights, s.compile)


def as_published(asked: str, name: str, model: Any, s: EvaluateConfig, given: set[str], path: str) -> EvaluateConfig:
    """The settings with those of the sampler that were not given as the paper drew, where it says how; says so.

    asked: what the user calls the model, and name: what it lies under. path: of the pictures."""
    from . import processes
    from .budget import PUBLISHED, presets_of
    from .latent import LatentDiffusion

    of = presets_of(asked if asked in PUBLISHED else name, model, path) if isinstance(model, LatentDiffusion) else []
    ways = {preset: known for preset in of if (known := PUBLISHED[preset].settings(preset))}
    if not ways or (s.sampler != "ddim" and "sampler" in given):  # another sampler's steps are others
        return s
    published = next(iter(ways.values()))
    if any(way != published for way in ways.values()):
        said = f"{name} may be {' or '.join(ways)}, which were not drawn alike: it is drawn as the options say; "
        said += f"ldm-lite budget {next(iter(ways))} says how it was published"
    else:
        s = dataclasses.replace(s, **{field: value for field, value in published.items() if field not in given})
        other = [field for field, value in published.items() if getattr(s, field) != value]
        told = f", guidance {s.guidance:g}" if "guidance" in published else ""
        said = f"as published of {' or '.join(ways)}{', but for ' if other else ''}{', '.join(other)}: "
        said += f"{s.sampler}, {s.steps} steps, {s.grid} grid, eta {s.eta:g}{told}"
    if processes.rank() == 0:
        print(said, file=sys.stderr, flush=True)  # the numbers alone go to stdout
    return s


@dataclass(frozen=True)
class EncodeConfig:
    size: int = 64  # pixels; images are resized and cropped to it
    output: Path = Path("latents.safetensors")  # or a folder; also -o
    picture: Path | None = None  # a grid of the first images above their reconstructions
    # of a folder:
    split: Literal["train", "validation"] = "train"
    flip: bool = False  # each image mirrored too
    count: int | None = None  # only the first so many
    spread: bool = False  # the posterior's standard deviation too, for a recipe with --spread
    batch: int = 64  # images at a time
    workers: int = 0  # processes that prepare images
    verify: bool = True  # read all of it once it is there
    # the columns of a dataset of the hub or Parquet, as for train (--data.image_key …)
    image_key: str | None = None
    label_key: str | None = None
    caption_key: str | None = None

    def __post_init__(self) -> None:
        one_or_more(size=self.size, batch=self.batch, count=self.count)
        if self.workers < 0:
            raise InputError(f"workers: {self.workers} is below 0")
        of_folder = [f for f in dataclasses.fields(self) if f.name not in ("size", "output", "picture")]
        given = [f.name for f in of_folder if getattr(self, f.name) != f.default]
        if self.output.suffix == ".safetensors" and given:
            raise InputError(f"{', '.join(given)}: of a folder, not of one file; give a folder with -o")
        if self.output.suffix not in (".safetensors", ""):
            raise InputError(f"output: {self.output} is no folder and no .safetensors file")


def encode(arguments: list[str]) -> None:
    from . import processes
    from .data import ImageFolder
    from .presets import DataConfig, dataset, load_first_stage, named_columns
    from .runs import reconstructed
    from .training import device, save_grid

    about = (
        "To a .safetensors file: z (N, C, H/f, W/f), the means of the posterior in the model's scale, of a folder's "
    )
    about += "images in the order of the sorted files. To a folder: files of some thousand latents, of what a recipe "
    about += "learns from (DATA as for train: --data), which ldm-lite train PRESET --latents FOLDER takes in place of "
    about += "encoding, where it crops at the centre and is told neither small pictures nor holes; in the scale that a "
    about += "KL first stage without one has on these images (scale.json). The same "
    about += "command goes on where it was stopped, and torchrun shares the work."
    names, rest = taken(arguments, "ldm-lite encode", "a model and a folder of images", 2)
    rest = replaced(rest, {"-o": "--output", "--out": "--output"})
    s = options(EncodeConfig, EncodeConfig(), rest, "ldm-lite encode MODEL DATA", about)
    single = s.output.suffix == ".safetensors"
    with processes.joined():
        stage = load_first_stage(names[0]).to(device())
        if s.size % stage.f:
            raise InputError(f"size: {s.size} is not divisible by f = {stage.f}")
        if single:
            images: Any = ImageFolder(names[1], size=s.size)
        else:
            config = DataConfig(names[1], s.size, s.count, flip=s.flip, **named_columns(s))
            images = processes.first(lambda: dataset(config, s.split))
        said = to_file(stage, images, s) if single else to_shards(stage, images, s)
        if processes.rank():
            return
        if s.picture is not None:
            import torch

            some = torch.stack([images[i]["image"] for i in range(min(8, len(images)))])
            save_grid(torch.cat([some, reconstructed(stage, some)]), s.picture, len(some))
        print(f"{s.output}: {said}")


def to_file(stage: Any, images: Any, settings: EncodeConfig) -> str:
    """All in memory, then in one file; returns what it holds."""
    from safetensors.torch import save_file

    from .config import whole
    from .data import cache_latents

    latents = cache_latents(stage, images)
    z = latents.batch(list(range(len(latents))))["z"].contiguous()
    with whole(settings.output) as temporary:
        save_file({"z": z}, temporary)
    return f"z {tuple(z.shape)}, mean {z.mean():.3f}, standard deviation {z.std():.3f}"


def to_shards(stage: Any, images: Any, settings: EncodeConfig) -> str:
    """In the files of a folder, each written whole; returns what they hold. InputError for a folder of other things."""
    from . import processes
    from .data import cache_latents
    from .runs import going_on, scale_of_folder, scaleless, skipped, skipping

    folder, s, scaled = settings.output, settings, ""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output: {folder} is no folder; choose another")
    own = {"batch": s.batch, "workers": s.workers, "spread": s.spread, "progress": processes.rank() == 0}
    with going_on():
        if scaleless(stage):
            n = scale_of_folder(stage, images, folder)
            scaled = f", scaled by {float(stage.scale):.5g} as measured on {n} images"
        with skipping(images, folder):
            latents: Any = cache_latents(stage, images, folder, strict=True, **own)
    if s.verify:
        processes.alone(latents.verify)
    held = f"{len(latents.paths)} files, {len(latents):,} items of z {tuple(latents[0]['z'].shape)}"
    held += scaled + (", each mirrored too" if latents.turns > 1 else "")
    if left_out := skipped(folder):
        held += f"; left out, as they cannot be read: {len(left_out)} (skipped.txt)"
    return held + (", read and verified" if s.verify else "")


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
    # of a CompVis model that reads captions: a folder in transformers' layout, of CLIP for Stable Diffusion, of a
    # tokenizer for the others; left out, they are had from the hub
    encoder: str = ""
    predicts: str = "eps"  # what the denoiser of a CompVis file was trained to: eps, z0 or v
    size: int = 0  # pixels of the images that the model draws; 0 is what it was trained at, or 256 for others' models

    def __post_init__(self) -> None:
        one_or_more(size=self.size or None)
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
        own = {"labels": s.labels or None, "predicts": s.predicts, "encoder": s.encoder}
        return load_compvis(source, s.expect, s.part, s.scale, **own)
    if settings.expect is None and not settings.encoder:
        configs = [source / part / "config.json" for part in ("", "vae", "vqvae", "unet")]
        found = any(config.is_file() and "_class_name" in read(config) for config in configs)
        if found or (source / "model_index.json").is_file():
            return load_diffusers(source, settings.scale)
    if settings.expect is not None or settings.scale is not None or settings.encoder:
        what = "a configuration and scale of its own; leave --expect, --scale and --encoder out"
        raise InputError(f"{source}: has {what}")
    return None


def convert(arguments: list[str]) -> None:
    import torch

    from .checkpoints import save_compvis, save_diffusers
    from .config import write
    from .folders import found
    from .latent import LatentDiffusion, restored, store
    from .originals import ORIGINALS, original
    from .presets import PIXELS

    about = "Copies a model, with its card, in another precision or layout. MODEL may be CompVis's (a .ckpt or "
    about += ".safetensors file) or diffusers' (a folder): convert model.ckpt runs/faces --expect celebahq-ldm4; or a "
    about += f"published one's name, which is fetched first: {', '.join(ORIGINALS)}"
    if arguments == ["--list"]:
        print("\n".join(f"{name}: {about.said()}" for name, about in ORIGINALS.items()))
        return
    about += " (--list alone shows their sizes, sources, checksums and terms)"
    names, rest = taken(arguments, "ldm-lite convert", "a model and where to write it", 2)
    settings = options(ConvertConfig, ConvertConfig(), rest, "ldm-lite convert MODEL FOLDER", about)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[settings.dtype]
    target, may = Path(names[1]), PUBLISHED[settings.layout]
    if names[0] in ORIGINALS and not Path(names[0]).exists():
        names[0], settings = str(original(names[0])), dataclasses.replace(settings, expect=settings.expect or names[0])
    if target.is_dir() and any(p.name not in may for p in target.iterdir()):
        raise InputError(f"{target}: holds something other than a model; choose another folder")
    theirs = foreign(Path(names[0]), settings)
    model = restored(names[0]) if theirs is None else theirs
    whole = isinstance(model, LatentDiffusion)
    if settings.part and whole:
        model = getattr(model, settings.part)
    elif settings.part and not Path(names[0]).is_file():
        raise InputError(f"{names[0]}: is {type(model).__name__} and has no parts; leave --part out")
    size = settings.size or (PIXELS.get(settings.expect or "", 256) if theirs is not None else trained_size(names[0]))
    if settings.layout == "diffusers":
        save_diffusers(model, target, dtype, size)
    elif settings.layout == "compvis":
        save_compvis(model, target, dtype)
    else:
        store(model, target, dtype)
        for name in ("metrics.json", "card.md") if theirs is None and not (settings.part and whole) else ():
            if (found(names[0]) / name).is_file():
                shutil.copyfile(found(names[0]) / name, target / name)
        if theirs is not None:
            write(target / "metrics.json", {"size": size})
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
