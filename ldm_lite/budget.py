"""What training a recipe costs: operations, counted on tensors without memory, and from them hours on a card.

    hours = operations / (3600 x the card's stated rate x the fraction of it that is reached)

Counted are matrix products and convolutions, two operations for each multiplication with addition, of one image's
forward and backward pass as the recipe trains; nothing is computed. The fraction is an assumption until it is measured
on the card (benchmarks/gpu.py); data that come too slowly are not in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .autoencoder import Autoencoder
from .condition import Condition
from .conditioners import epochs
from .config import InputError, suggest
from .data.catalogue import KNOWN
from .features import VGG16, Features
from .folders import found
from .latent import LatentDiffusion
from .layers import TokenEncoder
from .losses import LPIPS, Objective
from .presets import PAPER, PRESETS, AutoencoderRecipe, DiffusionRecipe, Recipe, load_first_stage

# Operations a second that NVIDIA's data sheets state for dense products of fp16 (T4, which has no bf16) or bf16 with
# sums in fp32: T4 2018, A100 2020, H100 SXM 2023 (1,979 with sparsity, and half of it without), H200, the same chip.
CARDS = {"T4": 65e12, "A100": 312e12, "H100": 989e12, "H200": 989e12}
FRACTION = 0.25  # of that rate: the CelebA-HQ UNet reached 0.34 of an H200's (benchmarks/RESULTS.md); else assumed


@dataclass(frozen=True)
class Budget:
    """Operations are of one image, and a mean over the run where a part of the loss begins late."""

    parameters: int  # that are trained, the critic's not among them
    steps: int
    batch: int  # images a step
    training: float  # operations, forward and backward, where latents are there
    encoding: float  # operations of the first stage for an image and what else of it is encoded
    pictures: int | None  # that are encoded once, mirrored ones too; 0 where each step encodes, None where it depends

    @property
    def images(self) -> int:
        """That the run sees, one as often as it comes."""
        return self.steps * self.batch

    @property
    def each(self) -> float:
        """Operations of one image in a step."""
        return self.training + (self.encoding if self.pictures == 0 else 0)

    @property
    def operations(self) -> float:
        """Of the whole run; without encoding once, where it depends on the data."""
        return self.images * self.each + (self.pictures or 0) * self.encoding

    def hours(self, card: str, fraction: float = FRACTION) -> float:
        """On one card of CARDS. InputError for an unknown one, and for a fraction outside (0, 1]."""
        return self.operations / (3600 * reached(card, fraction))

    def steps_within(self, hours: float, card: str, fraction: float = FRACTION) -> int:
        """How many of the steps so many hours are enough for, at most all; encoding comes first."""
        left = 3600 * hours * reached(card, fraction) - (self.pictures or 0) * self.encoding
        return max(0, min(self.steps, int(left / (self.batch * self.each))))


def reached(card: str, fraction: float = FRACTION) -> float:
    """Operations a second."""
    if card not in CARDS:
        raise suggest(card, CARDS, "card")
    if not 0 < fraction <= 1:
        raise InputError(f"fraction: {fraction:g} is not above 0 and at most 1")
    return CARDS[card] * fraction


# What was published -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """Rombach et al. 2022, arXiv 2112.10752v2. fid is what the paper reports, not what a run is promised to reach:
    users' threads about the original hold no LSUN or FFHQ figure that somebody's own training reproduced."""

    fid: float | None
    where: str  # its table, and how the samples were drawn; where there is no number, why
    days: float | None = None  # of a V100, table 18; the paper takes an A100 for 2.2 of them
    steps: int | None = None  # of DDIM on the original's grid, without guidance; None where PROTOCOL was not followed
    eta: float = 0.0  # of DDIM; 0 too where nothing is said of it

    def settings(self, name: str) -> dict[str, Any]:
        """How the samples were drawn, by the names of evaluate's options; nothing where PROTOCOL was not followed."""
        if self.steps is None:
            return {}
        told = {"guidance": 1.0} if isinstance(PRESETS[name], DiffusionRecipe) and PRESETS[name].classes else {}
        return {"sampler": "ddim", "steps": self.steps, "grid": "original", "eta": self.eta} | told

    def line(self, name: str) -> str | None:
        """The command that draws and measures as the paper did."""
        if not (drawn := self.settings(name)):
            return None
        eta = f" --eta {self.eta:g}" if self.eta else ""
        told = f" --guidance {drawn['guidance']:g}" if "guidance" in drawn else ""
        return f"ldm-lite evaluate {name} --fid 50000 --grid {drawn['grid']} --steps {self.steps}{eta}{told}"


PROTOCOL = (
    "50,000 samples against the whole training set, the real images through the same preprocessing as in training; "
    "torch-fidelity's Inception (appendix E.3.1)"
)
PUBLISHED = {
    "celebahq-ldm4": Published(5.11, "table 1, 500 DDIM steps; figure 28 says 5.15 for them", 14.4, 500),
    "ffhq-ldm4": Published(4.98, "table 1, 200 steps, eta 1", 26.0, 200, 1.0),
    "lsun-bedrooms-ldm4": Published(2.95, "table 1, 200 steps, eta 1", 60.0, 200, 1.0),
    "lsun-churches-ldm8": Published(4.02, "table 1, 200 steps; the days are those of 410,000 training steps", 18, 200),
    "cin256": Published(17.41, "table 10, 200 DDIM steps, without guidance", 79.0, 200),
    "cin256-v2": Published(10.56, "table 10, 250 DDIM steps, without guidance; 3.60 with a guidance of 1.5", 271, 250),
    "text2img256": Published(None, "no table has it; table 2 is about the model of 1.45 billion, trained on LAION"),
    "layout2img256": Published(32.02, "table 9, OpenImages: 2,048 images, and not the protocol above"),
    "layout2img-coco256": Published(42.06, "table 9, COCO, 100 steps: 2,048 images, and not the protocol above"),
    "semantic256": Published(None, "no table has it"),
    "semantic512": Published(None, "no table has it"),
    "bsr-sr": Published(None, "no table has it; table 5 is about another model, of 169 million, and bicubic pictures"),
    "inpainting": Published(
        2.40, "table 7, 30,000 crops of Places at 512 pixels, and not the protocol above; 1.50 after fine-tuning there"
    ),
}


def presets_of(name: str, model: LatentDiffusion, path: str) -> list[str]:
    """Which of PUBLISHED's presets a model may be of: the one that it is called by, that its card's command trained or
    that its folder is named after; else all whose denoiser is the same, by where its pictures are where that decides.

    name: a preset, or the folder of a run or a model. path: of the pictures."""
    if name in PUBLISHED:
        return [name]
    folder = found(name).absolute()
    card = folder / "card.md"
    said = card.read_text(encoding="utf-8") if card.is_file() else ""
    if command := re.search(r"^- command: `ldm-lite train ([\w-]+)", said, re.MULTILINE):
        return [command[1]] if command[1] in PUBLISHED else []
    own = folder.parent.name if folder.name == "model" else folder.name
    if own in PUBLISHED:
        return [own]
    same = [preset for preset in PUBLISHED if PAPER[preset].model == model.denoiser.config]
    return [preset for preset in same if PAPER[preset].data.path == path] or same


# Counting -----------------------------------------------------------------------------------------------------------


class Counter(TorchDispatchMode):
    """torch's FlopCounterMode without its table by module, whose hooks refuse the gradient that `balance` takes."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:  # what it is made of
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.operations += formula(*args, **kwargs, out_val=out)
        return out


def counted(call: Callable[[], Any]) -> int:
    """The operations of what `call` does: matrix products, convolutions and attention, and their gradients."""
    with Counter() as counter:
        call()
    return counter.operations


def budget(recipe: Recipe) -> Budget:
    """What training the recipe costs. No weights are made; a first stage that is no preset is looked up by its name."""
    train = recipe.train
    if isinstance(recipe, DiffusionRecipe):
        stage = blank_stage(recipe.first_stage)
        with torch.device("meta"):
            model = recipe.build(stage)
            training = counted(lambda: denoised(model, recipe))
            encoding = encoded(stage, recipe.data.size) * (1 + len(model.conditioner.encodes))
        pictures: int | None = 0
        if recipe.cache and not recipe.data.stream:
            rows = recipe.data.count or (KNOWN[recipe.data.path].rows["train"] if recipe.data.path in KNOWN else None)
            many = epochs(recipe.condition)
            pictures = rows and rows * (many if many > 1 else 2 if recipe.data.flip else 1)
    else:
        encoding, pictures = 0, 0
        with torch.device("meta"):
            model = recipe.build()
            if isinstance(recipe, AutoencoderRecipe):
                training = reconstructed(model, recipe)
            else:
                image = torch.zeros(2, 3, recipe.data.size, recipe.data.size)
                training = counted(lambda: sum(said.sum() for said in model(image)).backward()) / 2
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Budget(parameters, train.steps, train.batch, training, encoding, pictures)


def stage_first(recipe: Recipe) -> AutoencoderRecipe | None:
    """The preset that is trained before a recipe that names it, unless it is there: on pictures no larger."""
    preset = PRESETS.get(recipe.first_stage) if isinstance(recipe, DiffusionRecipe) else None
    if not isinstance(preset, AutoencoderRecipe):
        return None
    return replace(preset, data=replace(preset.data, size=min(preset.data.size, recipe.data.size)))


def blank_stage(name: str) -> nn.Module:
    """A first stage for counting: without memory where it is a preset, or a run of one, and else as it is."""
    preset = PRESETS.get(name) or PRESETS.get(Path(name).name)
    if isinstance(preset, AutoencoderRecipe):
        with torch.device("meta"):
            return preset.build()
    return load_first_stage(name).to("meta")


def denoised(model: LatentDiffusion, recipe: DiffusionRecipe) -> None:
    """One image's forward and backward pass from its latent, with all that is trained."""
    unet, side = model.denoiser, recipe.data.size // model.first_stage.f
    c, encoders = unet.config, [m for m in model.conditioner.modules() if isinstance(m, TokenEncoder)]
    tokens = [encoder(torch.zeros(1, encoder.length, dtype=torch.long)) for encoder in encoders]
    if c.context and (recipe.labels or recipe.classes or not tokens):  # a class is one token, and is learned
        tokens.append(torch.zeros(1, 1, c.context, requires_grad=True))
    told = Condition(
        torch.cat(tokens, 1) if tokens else None,
        torch.zeros(1, c.concat, side, side) if c.concat else None,
        torch.zeros(1, c.vector, requires_grad=True) if c.vector else None,
    )
    unet.train()(torch.zeros(1, c.channels, side, side), torch.zeros(1), told).sum().backward()


@torch.no_grad()
def encoded(stage: nn.Module, size: int) -> int:
    """Operations of encoding one image; of pixels as they are, none."""
    if not isinstance(stage, Autoencoder):
        return 0
    return counted(lambda: stage.code(torch.zeros(1, 3, size, size), False))


def reconstructed(model: Autoencoder, recipe: AutoencoderRecipe) -> float:
    """Operations of a first stage's step for one image: before the critic's first step and after, as a mean."""
    loss, size = recipe.loss, recipe.data.size
    objective = Objective(replace(loss, perceptual=0.0))  # its trunk would come with weights that are fetched
    if loss.perceptual:
        objective.config, objective.lpips = loss, LPIPS(blank_trunk(loss.trunk)).to("meta")
    image = torch.zeros(1, 3, size, size)

    def step(now: int) -> None:
        reconstruction, code = model(image)
        objective(image, reconstruction, code, model.decoder.conv_out.weight, now)[0].backward()
        if objective.judging(now):
            objective.judged(objective.critic, image, reconstruction.detach())[0].backward()

    alone = min(loss.start, recipe.train.steps) / recipe.train.steps if objective.critic is not None else 1.0
    parts = [(alone, 0), (1 - alone, loss.start)]  # shares of the steps, and one of them
    return sum(share * counted(partial(step, now)) for share, now in parts if share)


def blank_trunk(name: str) -> nn.Module:
    """What LPIPS sees with, without weights where they would be fetched."""
    with torch.device("cpu"):
        if name != "vgg16":
            return Features("scenes")
    trunk = nn.Module()
    trunk.name, trunk.maps = name, BlankVGG16().maps
    return trunk


class BlankVGG16(VGG16):
    def __init__(self) -> None:
        from torchvision.models import vgg16

        nn.Module.__init__(self)
        with torch.device("meta"):  # its 138 million would take seconds to draw
            self.features = vgg16(weights=None, init_weights=False).features
        self.shift, self.spread = torch.zeros(()), torch.ones(())
        self.requires_grad_(False)
