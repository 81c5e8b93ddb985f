"""Every model by name: the paper's, the ones the notebooks use, and generic recipes for your own photographs.

A recipe is a frozen dataclass: data, model and training. `ldm-lite train NAME` runs it, with any field overridden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .autoencoder import Autoencoder, AutoencoderConfig, Pixels
from .conditioners import (
    CONDITIONERS,
    BoxesConfig,
    InpaintingConfig,
    LabelsConfig,
    LowResConfig,
    PretrainedTextConfig,
    SemanticMapConfig,
    TextConfig,
    TogetherConfig,
    UnconditionalConfig,
    parts,
    widths,
)
from .conditioners import build as build_conditioner
from .config import InputError, one_or_more, suggest
from .diffusion import Diffusion, VariancePreserving
from .features import ObjectFinder, ObjectFinderConfig, SceneReader, SceneReaderConfig
from .latent import LatentDiffusion, restored
from .losses import LossConfig
from .training import TrainConfig
from .unet import UNet, UNetConfig

HELD_OUT = 2048  # of a stream, that are kept in memory
CAPTIONS = 2000  # of a dataset, from which the byte pairs of a text encoder are learned


@dataclass(frozen=True)
class DataConfig:
    """Which images."""

    # the built-in scenes; a folder of images or LSUN's lmdb; Parquet; celebahq, lsun-churches, lsun-bedrooms; another
    # dataset of the hub as hub:owner/name
    path: str = "scenes"
    size: int = 64  # pixels
    count: int | None = None  # only the first so many
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    zoom: float = 1.0  # to learn from random squares of down to 1 / zoom of a picture's side, as large as all of it
    strict: bool = False  # an unreadable image stops the run instead of being skipped
    stream: bool = False  # a dataset of the hub, as it arrives: nothing is kept on the disk, nor cached as latents
    # the columns of a dataset of the hub or Parquet, where they are not found by type and name
    image_key: str | None = None
    label_key: str | None = None
    caption_key: str | None = None

    def __post_init__(self) -> None:
        one_or_more(size=self.size, count=self.count)
        if not self.path.removeprefix("hub:").strip():
            raise InputError("data: the name of a dataset is missing: a folder, a file, or hub:owner/name")
        if not 1 <= self.zoom <= 16:
            raise InputError(f"zoom: {self.zoom:g} is not from 1 to 16")
        if self.zoom > 1 and self.stream:
            raise InputError("zoom: a stream's pictures are taken as they are; leave --data.zoom or --data.stream out")


def named_columns(config: Any) -> dict[str, str]:
    """The columns that a DataConfig, or a command's settings, names."""
    keys = ("image_key", "label_key", "caption_key")
    return {key: value for key in keys if (value := getattr(config, key)) is not None}


def dataset(config: DataConfig, split: str = "train", keys: Sequence[str] = ()) -> Any:
    """The dataset that a DataConfig names. Where it has no split validation, every twentieth image is kept for it.

    keys: what the items of the built-in scenes hold besides image and label."""
    from . import data

    named = named_columns(config)
    if named and not config.path.startswith("hub:") and not data.hub.tabular(config.path):
        raise InputError(f"{min(named)}: {config.path} has no columns; leave it out")
    if config.zoom > 1 and split == "train":
        if untrue := {"boxes", "segmentation", "caption"} & set(keys):
            raise InputError(f"zoom: of a part of a picture its {min(untrue)} would not be true; leave --data.zoom out")
        larger = replace(config, size=round(config.size * config.zoom), zoom=1.0)
        return data.with_crops(dataset(larger, split, keys), config.size, config.zoom)
    if config.path == "scenes":
        both = tuple(dict.fromkeys(("image", "label", *(key for key in keys if key in data.scenes.KEYS))))
        return data.Scenes(split, config.size, count=config.count if split == "train" else None, keys=both)
    if config.path == "photographs" and not Path(config.path).exists():
        raise InputError("data.path: whose photographs? give a folder with --data PATH")
    if config.path.startswith("hub:"):
        data.catalogue.agreed_to_id(config.path.removeprefix("hub:"))
    settings: dict[str, Any] = {"size": config.size, "crop": config.crop, "flip": config.flip, "strict": config.strict}
    if config.stream:
        return streamed(config, split, settings)
    if (Path(config.path) / data.lsun.FILE).is_file():  # LSUN's, of which the other split may lie beside it
        other = Path(config.path.replace("_train_lmdb", "_val_lmdb"))
        if str(other) != config.path and (other / data.lsun.FILE).is_file():
            root = config.path if split == "train" else other
            return data.LSUN(root, **settings, count=config.count if split == "train" else None)
        images = data.LSUN(config.path, **settings)
    elif config.path in data.KNOWN and not Path(config.path).exists():
        images = data.known(config.path, split, **settings)
        return Part(images, range(len(images))[: config.count if split == "train" else None])
    elif config.path.startswith("hub:") or data.hub.tabular(config.path):
        source = config.path.removeprefix("hub:")
        own, theirs = theirs_of(source, split)
        images = data.HubImages(source, theirs, **settings, **named)
        if own:
            return Part(images, range(len(images))[: config.count if split == "train" else None])
    elif data.lsun.named(config.path):
        images = data.LSUN(config.path, **settings)  # which says where its file is to be had
    else:
        images = data.ImageFolder(config.path, **settings)
    kept = [row for row in range(len(images)) if (row % 20 == 19) == (split != "train")]
    rows = kept or range(len(images))  # too few to keep any
    return Part(images, list(rows)[: config.count if split == "train" else None])


def streamed(config: DataConfig, split: str, settings: dict[str, Any]) -> Any:
    """A dataset as it arrives, or what is held out of it in memory. InputError for what is not on the hub."""
    from . import data

    if config.path in data.KNOWN and not Path(config.path).exists():
        images = data.known(config.path, split, streaming=True, **settings)
        return images if split == "train" else images.take(HELD_OUT)
    source = config.path.removeprefix("hub:")
    if (
        source == config.path
        and Path(source).suffix.lower() != ".parquet"
        and not any(Path(source).glob("**/*.parquet"))
    ):
        raise InputError(f"stream: {config.path} is neither on the hub nor Parquet; leave --data.stream out")
    own, theirs = theirs_of(source, split)
    images = data.HubImages(source, theirs, streaming=True, **settings, **named_columns(config))
    part = images if own else images.twentieth(kept=split != "train")
    if split == "train":
        return part
    held_out = part.take(HELD_OUT)
    return held_out if own or len(held_out) else images.take(HELD_OUT)  # too few to keep any


def theirs_of(source: str, split: str) -> tuple[bool, str]:
    """Whether a dataset of the hub, or in its layout, has this split, and which of its splits it is otherwise a part
    of. What it trains on is its own only where what is held out is too."""
    from . import data

    names = data.hub.splits(source)
    own = split in names and len(names) > 1 and (split != "train" or "validation" in names)
    return own, split if own else names[0] if len(names) == 1 else "train"


class Part:
    """Some rows of a dataset, as a dataset."""

    def __init__(self, data: Any, rows: Sequence[int]):
        self.data, self.rows = data, rows
        for names in ("label_names", "box_names", "segment_names"):
            setattr(self, names, getattr(data, names, ()))

    def __repr__(self) -> str:
        return f"Part({self.data!r}, {len(self.rows)} rows from {self.rows[0]} to {self.rows[-1]})"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def skipped(self) -> list[str]:
        """The broken pictures met so far, of the whole dataset."""
        return getattr(self.data, "skipped", [])

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.data[self.rows[row]]

    def draw(self, row: int, epoch: int) -> dict[str, Any]:
        return self.data.draw(self.rows[row], epoch)


@dataclass(frozen=True)
class AutoencoderRecipe:
    """A first stage: images in, Autoencoder out."""

    model: AutoencoderConfig = AutoencoderConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    init: str = ""  # a trained model to begin with, of the same shape: a run, a model's folder or a shipped name

    def build(self) -> Autoencoder:
        """The model with random weights. InputError when the images' size is not divisible by its f."""
        model, layers = Autoencoder(self.model), self.loss.critic_layers
        if self.data.size % model.f:
            raise InputError(f"size: {self.data.size} is not divisible by f = {model.f}")
        meets = self.loss.adversarial and (self.train.minutes is not None or self.train.steps > self.loss.start)
        if meets and self.data.size < 3 * 2**layers:
            raise InputError(
                f"critic_layers: {layers} need pictures of {3 * 2**layers} pixels or more, not {self.data.size}; "
                f"give --loss.critic_layers {max(1, layers - 1)}, or --loss.adversarial 0"
            )
        return model


def told_images(data: DataConfig, condition: Any, split: str = "train") -> Any:
    """The dataset of a DataConfig, with all that a conditioner of this config reads. InputError for keys it lacks."""
    from .data import with_low_res, with_mask

    keys = [key for part in parts(condition) for key in CONDITIONERS[type(part)].keys]
    images = dataset(data, split, keys)
    for part in parts(condition):
        if isinstance(part, LowResConfig):
            images = with_low_res(images, part.factor, part.degradation)
        elif isinstance(part, InpaintingConfig):
            images = with_mask(images)
    first = next(iter(images), {}) if data.stream else images[0] if len(images) else {}
    held = first if keys else {}
    for key in keys if held else ():
        if key not in held:
            raise InputError(f"{key}: {data.path} has none; its items have {', '.join(held)}")
    return images


Told = (
    TextConfig
    | PretrainedTextConfig
    | BoxesConfig
    | SemanticMapConfig
    | LowResConfig
    | InpaintingConfig
    | TogetherConfig
)


@dataclass(frozen=True)
class DiffusionRecipe:
    """A denoiser in the latents of a first stage: a run's or a model's folder, "pixels", or a preset that is trained
    first if it has not been; one that ships serves as it is for the data that it learned from."""

    first_stage: str
    model: UNetConfig = UNetConfig(head_channels=32)
    schedule: VariancePreserving = VariancePreserving()
    predicts: Literal["eps", "z0", "v"] = "eps"
    distance: Literal["l2", "l1"] = "l2"
    snr_cap: float | None = None
    labels: tuple[str, ...] = ()  # names of the classes; none for an unconditional model
    classes: bool = False  # the labels are the data's: its folders, or the names of its label column
    condition: Told | None = None  # what the model is told, besides labels
    dropout: float = 0.1  # share of conditions blanked in training, for guidance
    cache: bool = True  # encode every image once, before training
    latents: str = ""  # the folder for them, which several runs may share; by default the run has its own
    spread: bool = False  # each step draws a latent from the first stage's posterior, as the original; else its mean
    balance: Literal["label", "caption"] | None = None  # each is drawn equally often, however many images have it
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    init: str = ""  # a trained model to begin with, of the same shape: a run, a model's folder or a shipped name

    def __post_init__(self) -> None:
        if self.balance and (not self.cache or self.data.stream):
            raise InputError("balance: is counted in cached latents; leave out --cache and --data.stream")

    def build(self, first_stage: nn.Module | None = None) -> LatentDiffusion:
        """The model with a random denoiser, around a given first stage, else the recipe's with random weights."""
        stage = first_stage or self._blank_stage()
        if stage.channels != self.model.channels:
            raise InputError(
                f"channels: the first stage has {stage.channels}, the denoiser {self.model.channels}; "
                f"give --model.channels {stage.channels}, or another --first_stage"
            )
        side = self.data.size // stage.f
        if self.data.size % stage.f or side % self.model.factor:
            raise InputError(f"size: {self.data.size} is not divisible by {stage.f * self.model.factor}")
        diffusion = Diffusion(self.schedule, self.predicts, self.distance, self.snr_cap)
        told = self.told(stage)
        unet = UNet(replace(self.model, **widths(told)))
        return LatentDiffusion(stage, unet, diffusion, build_conditioner(told))

    def told(self, stage: nn.Module) -> Any:
        """The config of the conditioner: labels, the condition as the first stage needs it, or both together."""
        told: list[Any] = []
        if self.labels:
            door: Literal["context", "vector"] = "vector" if self.model.vector else "context"
            told.append(LabelsConfig(self.labels, self.model.vector or self.model.context, door))
        for part in parts(self.condition):
            if isinstance(part, (SemanticMapConfig, LowResConfig)):
                part = replace(part, f=stage.f)
            elif isinstance(part, InpaintingConfig):
                part = replace(part, f=stage.f, channels=stage.channels)
            told.append(part)
        if len(told) > 1:
            return TogetherConfig(tuple(told))
        return told[0] if told else UnconditionalConfig()

    def images(self, split: str = "train") -> Any:
        """The recipe's dataset, with what the condition adds to its items. InputError for keys that it lacks."""
        return told_images(self.data, self.condition, split)

    def named(self, images: Any) -> DiffusionRecipe:
        """The recipe with what a dataset knows: its classes, where `classes` asks for them, the names of its objects or
        segments, and the byte pairs of its captions. InputError for classes or names that it does not have."""
        recipe = self._classified(images)
        named = tuple(self._named(part, images) for part in parts(self.condition))
        if not named:
            return recipe
        return replace(recipe, condition=TogetherConfig(named) if len(named) > 1 else named[0])

    def _named(self, part: Any, images: Any) -> Any:
        if isinstance(part, TextConfig) and not part.merges and not part.tokenizer:
            from .tokens import learned

            if self.init and isinstance(model := restored(self.init), LatentDiffusion):
                for known in parts(getattr(model.conditioner, "config", None)):
                    if isinstance(known, TextConfig) and known.merges:
                        return replace(part, merges=known.merges)  # what it knows are tokens, and no words
            images = images.take(CAPTIONS) if self.data.stream else images
            some = (images[row]["caption"] for row in range(min(len(images), CAPTIONS)))
            return replace(part, merges=learned(some, part.vocabulary))
        for kind, names in ((BoxesConfig, "box_names"), (SemanticMapConfig, "segment_names")):
            if isinstance(part, kind) and not part.names:
                if not (found := tuple(getattr(images, names, ()))):
                    raise InputError(f"condition.names: {self.data.path} does not say them; give them")
                return replace(part, names=found)
        return part

    def _classified(self, images: Any) -> DiffusionRecipe:
        if not self.classes or self.labels:
            return self
        names = tuple(getattr(images, "label_names", ()))
        if not names:
            raise InputError(
                f"classes: {self.data.path} has none; one folder for each class is needed, or a label column"
            )
        vector = self.model.vector or (0 if self.model.context else self.model.width)
        return replace(self, labels=names, model=replace(self.model, vector=vector))

    def _blank_stage(self) -> nn.Module:
        if self.first_stage == "pixels":
            return Pixels()
        recipe = PRESETS.get(self.first_stage)
        return recipe.build() if isinstance(recipe, AutoencoderRecipe) else load_first_stage(self.first_stage)


@dataclass(frozen=True)
class ReaderRecipe:
    """The network behind Features("scenes"): it learns to read built-in scenes back."""

    model: SceneReaderConfig = SceneReaderConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    def build(self) -> SceneReader:
        return SceneReader(self.model)


@dataclass(frozen=True)
class FinderRecipe:
    """The network that finds the objects of built-in scenes, to see whether a model drew what it was told."""

    model: ObjectFinderConfig = ObjectFinderConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    def build(self) -> ObjectFinder:
        return ObjectFinder(self.model)


Recipe = AutoencoderRecipe | DiffusionRecipe | ReaderRecipe | FinderRecipe


def load_first_stage(name: str | Path) -> nn.Module:
    """A trained first stage from a folder or shipped weights; that of a whole model serves too. In eval mode."""
    if str(name) == "pixels":
        return Pixels()
    model = restored(name)
    if isinstance(model, (SceneReader, ObjectFinder)):
        raise InputError(f"{name}: reads scenes, and is no first stage")
    return model.first_stage if isinstance(model, LatentDiffusion) else model


def begin(model: nn.Module, name: str | Path) -> str:
    """The weights of a trained model, from a folder or shipped, into one of the same shape; returns what was taken.

    Where a denoiser is told something else, what fits of its conditioner is taken. InputError for another first stage,
    or another shape."""
    other = restored(name) if isinstance(model, LatentDiffusion) else load_first_stage(name)
    if not isinstance(other, type(model)):
        raise InputError(f"init: {name} is of another kind, {type(other).__name__}")
    new = 0
    if isinstance(model, LatentDiffusion):
        assert isinstance(other, LatentDiffusion)
        stages = model.first_stage.state_dict(), other.first_stage.state_dict()
        if unfit(*stages) or unlike(*stages):
            raise InputError(f"init: {name} learned in the latents of another first stage; give --first_stage {name}")
        mine, theirs = model.conditioner.state_dict(), other.conditioner.state_dict()
        anew = {key for key in mine if key not in theirs or theirs[key].shape != mine[key].shape}
        model.conditioner.load_state_dict({key: mine[key] if key in anew else theirs[key] for key in mine})
        new, model, other = len(anew), model.denoiser, other.denoiser
    if wrong := unfit(model.state_dict(), other.state_dict()):
        raise InputError(f"init: {name} has another shape, at {wrong}; give the settings of the model that it is")
    model.load_state_dict(other.state_dict())
    return f"it begins with the weights of {name}" + (f", but for {new} of what it is told" if new else "")


def unfit(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """The first name of a tensor that one has and the other lacks, or has in another shape; "" if there is none."""
    names = dict.fromkeys((*mine, *theirs))
    return next((k for k in names if k not in mine or k not in theirs or mine[k].shape != theirs[k].shape), "")


def unlike(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Whether weights differ by more than what half precision rounds away."""
    return any(not torch.allclose(mine[k].cpu(), theirs[k].cpu(), rtol=1e-2, atol=1e-3) for k in mine)


def build(name: str) -> nn.Module:
    """The model of a preset with random weights. InputError lists the presets."""
    return recipe(name).build()


def recipe(name: str) -> Recipe:
    if name not in PRESETS:
        raise suggest(name, PRESETS, "preset")
    return PRESETS[name]


def _scene_labels() -> tuple[str, ...]:
    times, grounds = ("dawn", "day", "dusk", "night"), ("grass", "snow", "sand", "water")
    return tuple(f"{time} {ground}" for time in times for ground in grounds)


# The published first stages (ldm-facts: the released configurations; width 128, 2 blocks, trained on OpenImages) ------


def _published(loss: LossConfig, steps: int, **model: Any) -> AutoencoderRecipe:
    train = replace(PAPER_AE, steps=steps)
    return AutoencoderRecipe(AutoencoderConfig(**model), DataConfig("photographs", 256, crop="random"), train, loss)


def _vq(start: int, weight: float = 0.75, layers: int = 3) -> LossConfig:
    return LossConfig(perceptual=1.0, adversarial=weight, start=start, critic_layers=layers)


# 4.5e-6 for each of a step's 2 x 12 images; the steps are those that the original's page of models states
PAPER_AE = TrainConfig(
    batch=24, accumulate=2, lr=1.08e-4, betas=(0.5, 0.9), weight_decay=0.0, warmup=0, ema=0.0, clip=0.0
)
_KL = LossConfig(kl=1e-6, perceptual=1.0, adversarial=0.5, start=50_001)
FIRST_STAGES = {
    "kl-f4": _published(_KL, 176_991, channels=3, mult=(1, 2, 4)),
    "kl-f8": _published(_KL, 246_803, channels=4, mult=(1, 2, 4, 4)),
    "kl-f16": _published(_KL, 442_998, channels=16, mult=(1, 1, 2, 2, 4), attend_at=(16,)),
    "kl-f32": _published(_KL, 406_763, channels=64, mult=(1, 1, 2, 2, 4, 4), attend_at=(16, 32)),
    # the small starts are the published settings; they look like those of runs that were continued
    "vq-f4": _published(_vq(0), 533_066, bottleneck="vq", channels=3, mult=(1, 2, 4), codes=8192),
    "vq-f4-noattn": _published(
        _vq(11), 658_131, bottleneck="vq", channels=3, mult=(1, 2, 4), codes=8192, mid_attention=False
    ),
    "vq-f8": _published(
        _vq(1, 0.6, 2), 971_043, bottleneck="vq", channels=4, mult=(1, 2, 2, 4), attend_at=(8,), codes=16384
    ),
    "vq-f8-n256": _published(
        _vq(250_001), 1_608_649, bottleneck="vq", channels=4, mult=(1, 2, 2, 4), attend_at=(8,), codes=256
    ),
    "vq-f16": _published(
        _vq(250_001, layers=2),
        1_101_166,
        bottleneck="vq",
        channels=8,
        mult=(1, 1, 2, 2, 4),
        attend_at=(16,),
        codes=16384,
    ),
}

# The published denoisers, with what the checkpoints were trained with (ldm-facts: the released configurations) --------

_FACES = UNetConfig(channels=3, width=224, mult=(1, 2, 3, 4), attend_at=(2, 4, 8), head_channels=32)
# Of cin256, text2img256 and layout2img256 the configurations say 32 channels a head. They were trained with one head:
# the code of their time passed the setting over, and the paper's tables 13 and 15 say 1. Both load without a complaint.
_IMAGENET = UNetConfig(channels=3, width=192, mult=(1, 2, 3, 5), attend_at=(2, 4, 8), heads=1, context=512)
_TEXT = UNetConfig(channels=4, width=320, mult=(1, 2, 4, 4), attend_at=(1, 2, 4), heads=8, context=1280)
PIXELS = {"sd-v1": 512, "rdm768": 768}  # a side of what they draw; of all the others, 256
UNETS: dict[str, UNetConfig] = {
    "celebahq-ldm4": _FACES,
    "ffhq-ldm4": _FACES,
    "lsun-bedrooms-ldm4": _FACES,
    "lsun-churches-ldm8": UNetConfig(
        channels=4, width=192, mult=(1, 2, 2, 4, 4), attend_at=(1, 2, 4, 8), heads=8, film=True, resblock_updown=True
    ),
    "cin256": UNetConfig(channels=4, width=256, mult=(1, 2, 4), attend_at=(1, 2, 4), heads=1, context=512),
    "cin256-v2": _IMAGENET,
    "text2img256": replace(_IMAGENET, context=640),
    "txt2img-1p4b": _TEXT,
    "sd-v1": replace(_TEXT, context=768),
    "layout2img256": UNetConfig(
        channels=3, width=128, mult=(1, 2, 3, 4), attend_at=(2, 4, 8), heads=1, context=512, depth=3
    ),
    # its configuration asks for attention at 8, 16 and 32, which its levels (1, 2, 4) never reach: the middle has it
    "semantic256": UNetConfig(channels=3, concat=3, width=128, mult=(1, 4, 8), heads=8),
    # and this one's at 8 and 16: the deepest level is 8
    "bsr-sr": UNetConfig(channels=3, concat=3, width=160, mult=(1, 2, 2, 4), attend_at=(8,), head_channels=32),
    "inpainting": UNetConfig(
        channels=3, concat=4, width=256, mult=(1, 2, 3, 4), attend_at=(2, 4, 8), heads=8, resblock_updown=True
    ),
    # retrieval-augmented; the number of heads is its configuration's, of the code of the time nothing is known
    "rdm768": UNetConfig(channels=16, width=448, mult=(1, 2, 3, 4), attend_at=(1, 2, 4), head_channels=32, context=768),
}

# The paper's models whose conditions are there (its tables 12, 13 and 15) ---------------------------------------------


def _paper(steps: int, batch: int, lr: float, warmup: int = 0) -> TrainConfig:
    """The original limits no gradient."""
    return TrainConfig(steps=steps, batch=batch, lr=lr, warmup=warmup, clip=0.0)


def _unconditional(name: str, batch: int, lr: float, steps: int, **data: Any) -> DiffusionRecipe:
    train = _paper(steps, batch, lr)
    data = {"path": "photographs", "size": 256} | data
    return DiffusionRecipe("vq-f4", UNETS[name], data=DataConfig(**data), train=train)


PAPER: dict[str, DiffusionRecipe] = {
    "celebahq-ldm4": _unconditional("celebahq-ldm4", 48, 9.6e-5, 410_000, path="celebahq"),
    "ffhq-ldm4": _unconditional("ffhq-ldm4", 42, 8.4e-5, 635_000),
    "lsun-bedrooms-ldm4": _unconditional("lsun-bedrooms-ldm4", 48, 9.6e-5, 1_900_000, path="lsun-bedrooms", flip=True),
    "lsun-churches-ldm8": DiffusionRecipe(
        "kl-f8",
        UNETS["lsun-churches-ldm8"],
        VariancePreserving(end=0.0155),
        distance="l1",
        spread=True,
        data=DataConfig("lsun-churches", 256, flip=True),
        train=_paper(500_000, 96, 5e-5, 10_000),
    ),
    # ImageNet: a folder for each class, whose name is the label. The first was trained without a null class; how often
    # the second's labels were dropped is not published.
    "cin256": DiffusionRecipe(
        "vq-f8",
        UNETS["cin256"],
        classes=True,
        dropout=0.0,
        data=DataConfig("photographs", 256),
        train=_paper(2_900_000, 64, 6.4e-5),
    ),
    "cin256-v2": DiffusionRecipe(
        "vq-f4",
        UNETS["cin256-v2"],
        classes=True,
        data=DataConfig("photographs", 256),
        train=_paper(178_000, 1200, 1e-4),
    ),
}

_LATE = VariancePreserving(end=0.0205)


def _conditional(
    name: str,
    condition: Told,
    schedule: VariancePreserving,
    distance: Literal["l2", "l1"],
    train: TrainConfig,
    **data: Any,
) -> DiffusionRecipe:
    stage = "vq-f4-noattn" if name == "inpainting" else "vq-f4"
    photographs = DataConfig("photographs", 256, **data)
    return DiffusionRecipe(
        stage, UNETS[name], schedule, "eps", distance, condition=condition, data=photographs, train=train
    )


# Table 15, and where it and the released configurations differ, the latter. Their text encoder reads BERT's tokens,
# this one learns byte pairs from the captions. The data: captions, boxes or maps beside photographs (COCO, Landscapes);
# for the last two any photographs (OpenImages, Places).
PAPER |= {
    "text2img256": _conditional(
        "text2img256",
        TextConfig(640, 32, 8, 64, 77, 30_522),
        VariancePreserving(),
        "l2",
        _paper(390_000, 28, 5.6e-5),
    ),
    "layout2img256": _conditional(
        "layout2img256",
        BoxesConfig(width=512, depth=16, heads=8, head_channels=64, most=30, grid=90, vocabulary=8192, crop=True),
        _LATE,
        "l1",
        _paper(4_400_000, 24, 4.8e-5),
    ),
    "semantic256": _conditional(
        "semantic256",
        SemanticMapConfig(tuple(map(str, range(182)))),
        _LATE,
        "l1",
        _paper(360_000, 48, 4.8e-5),
    ),
    "bsr-sr": _conditional(
        "bsr-sr",
        LowResConfig(4, degradation="bsr"),
        VariancePreserving(end=0.0155),
        "l2",
        _paper(860_000, 64, 6.4e-5),
        crop="random",
        zoom=2.0,
    ),
    "inpainting": _conditional(
        "inpainting",
        InpaintingConfig(),
        _LATE,
        "l1",
        _paper(360_000, 128, 1e-6, 1000),
        crop="random",
    ),
}

# Two without a published checkpoint. For layouts of COCO table 15 says 345 million parameters. Table 17 has one column
# for all layouts, whose encoder of 16 blocks would make 371 with its output layer: 8 make 345. Maps at 512 pixels:
# the released configuration, which names no number of steps.
PAPER |= {
    "layout2img-coco256": replace(
        PAPER["layout2img256"],
        first_stage="vq-f8",
        model=UNetConfig(
            channels=4,
            width=192,
            mult=(1, 2, 4),
            attend_at=(1, 2, 4),
            heads=1,
            context=512,
            depth=2,
            dropout=0.1,
        ),
        condition=replace(PAPER["layout2img256"].condition, depth=8),
        train=_paper(170_000, 48, 4.8e-5),
    ),
    "semantic512": replace(
        PAPER["semantic256"],
        data=DataConfig("photographs", 512, crop="random"),
        train=_paper(360_000, 8, 8e-6),
    ),
}

# They are long: sixteen samples now and then show what the loss does not.
PAPER = {name: replace(each, train=replace(each.train, sample_every=5_000)) for name, each in PAPER.items()}

# On the built-in scenes, at sizes that a laptop trains --------------------------------------------------------------

_SCENES_UNET = UNetConfig(channels=3, width=64, mult=(1, 2, 2), blocks=1, attend_at=(2, 4), head_channels=32, vector=64)


def _quick(steps: int, batch: int, lr: float, ema: float, **more: Any) -> TrainConfig:
    """Few steps at a high rate that falls to zero: for minutes instead of days."""
    return TrainConfig(
        steps=steps, batch=batch, lr=lr, ema=ema, decay="cosine", betas=(0.9, 0.99), weight_decay=0.0, **more
    )


_OBJECTS = ("house", "tree", "pine", "cactus", "boat")
_SEGMENTS = ("sky", "sun", "moon", "mountain", "grass", "snow", "sand", "water", *_OBJECTS)


def _told(condition: Told, steps: int, width: int = 48) -> DiffusionRecipe:
    """A model of the scenes that is told something else than a class."""
    return DiffusionRecipe(
        "scenes-kl-f4",
        replace(_SCENES_UNET, width=width, head_channels=width // 2, vector=0),
        predicts="v",
        condition=condition,
        data=DataConfig(count=60_000),
        train=_quick(steps, 32, 1e-3, 0.9995, sample_every=1000),
    )


SCENES = {
    "scenes-ldm4": DiffusionRecipe(
        "scenes-kl-f4",
        _SCENES_UNET,
        predicts="v",
        labels=_scene_labels(),
        data=DataConfig(count=60_000),
        train=_quick(12_000, 32, 1e-3, 0.9995, sample_every=1000),
    ),
    "scenes-text": _told(TextConfig(width=96, heads=3, length=40), 12_000),
    "scenes-layout": _told(BoxesConfig(_OBJECTS, width=96, heads=3, most=4, joined=True), 12_000),
    "scenes-map": _told(SemanticMapConfig(_SEGMENTS), 8_000, width=40),
    "scenes-upscale": _told(LowResConfig(4), 8_000, width=40),
    "scenes-inpaint": _told(InpaintingConfig(), 10_000),
    # what Features("scenes") looks at pictures with
    "scenes-features": ReaderRecipe(train=_quick(6_000, 32, 3e-3, 0.0, clip=10.0)),
    # what finds the objects in them
    "scenes-objects": FinderRecipe(train=_quick(4_000, 32, 3e-3, 0.0, clip=10.0)),
    # what `ldm-lite demo` trains, each for its share of the minutes
    "demo-kl4": AutoencoderRecipe(
        AutoencoderConfig(channels=4, width=16, mult=(1, 2, 4), blocks=1, mid_attention=False),
        DataConfig(),
        _quick(3_000, 8, 2e-3, 0.997),
        loss=LossConfig(kl=1e-3),
    ),
    "demo-ldm4": DiffusionRecipe(
        "demo-kl4",
        replace(_SCENES_UNET, channels=4),
        predicts="v",
        labels=_scene_labels(),
        data=DataConfig(count=10_000),
        train=_quick(2_500, 16, 1e-3, 0.997),
    ),
}

# First stages of the built-in scenes, to compare: every f at equal compute (steps times operations of a step), and
# three of one f that differ in the loss alone.

_SHARP = LossConfig(
    kl=1e-3, restart=200, perceptual=1.0, trunk="scenes", adversarial=0.3, start=2_400, critic_width=32, critic_layers=2
)


def _small(
    steps: int, channels: int, mult: tuple[int, ...], loss: LossConfig = _SHARP, **model: Any
) -> AutoencoderRecipe:
    config = AutoencoderConfig(channels, width=16, mult=mult, blocks=1, mid_attention=False, codes=512, **model)
    train = TrainConfig(
        steps=steps, batch=8, lr=2e-3, ema=0.998, decay="cosine", betas=(0.5, 0.9), weight_decay=0.0, sample_every=1000
    )  # the first beta of 0.5 is the original's: with more momentum the critic lags behind
    return AutoencoderRecipe(config, train=train, loss=loss)


COMPARED = {
    "scenes-kl-f2": _small(4_900, 2, (1, 2)),
    "scenes-kl-f4": _small(4_000, 3, (1, 2, 4)),
    "scenes-kl-f8": _small(4_250, 4, (1, 2, 4, 4)),
    "scenes-kl-f16": _small(4_300, 16, (1, 2, 4, 4, 4)),
    "scenes-vq-f4": _small(4_000, 3, (1, 2, 4), bottleneck="vq"),
    "scenes-vq-f8": _small(4_250, 4, (1, 2, 4, 4), bottleneck="vq"),
    "scenes-kl-f4-l1": _small(4_000, 3, (1, 2, 4), replace(_SHARP, perceptual=0.0, adversarial=0.0)),
    "scenes-kl-f4-lpips": _small(4_000, 3, (1, 2, 4), replace(_SHARP, adversarial=0.0)),
}

# Your own photographs: `ldm-lite train autoencoder --data FOLDER`, then `ldm-lite train ldm --data FOLDER`, or one of
# ldm-text, -layout and -map with a metadata.jsonl that says what is in them (data.notes), or -upscale and -inpaint ----

GENERIC: dict[str, Recipe] = {
    "autoencoder": AutoencoderRecipe(
        AutoencoderConfig(channels=4, width=64, mult=(1, 2, 4)),
        DataConfig("photographs", 64, crop="random", flip=True),
        TrainConfig(
            steps=50_000, batch=16, lr=2e-4, decay="cosine", betas=(0.5, 0.9), weight_decay=0.0, ema=0.999, workers=2
        ),
        # the trunk that ships; with a network and an hour more, --loss.trunk vgg16 sees photographs better
        LossConfig(perceptual=1.0, trunk="scenes", adversarial=0.3, start=25_000),
    ),
    "ldm": DiffusionRecipe(
        "runs/autoencoder",
        UNetConfig(channels=4, width=128, mult=(1, 2, 3), attend_at=(2, 4), head_channels=32),
        data=DataConfig("photographs", 64, flip=True),
        train=TrainConfig(steps=200_000, batch=64, lr=2e-4, warmup=1000),
    ),
}


def _own(condition: Told, **data: Any) -> DiffusionRecipe:
    """The recipe ldm, told something."""
    ldm = GENERIC["ldm"]
    assert isinstance(ldm, DiffusionRecipe)
    return replace(ldm, condition=condition, data=replace(ldm.data, **data))


GENERIC |= {
    "ldm-text": _own(TextConfig(width=256, depth=4, length=64, vocabulary=2048), flip=False),  # captions tell the sides
    "ldm-layout": _own(BoxesConfig(width=256, depth=4)),
    "ldm-map": _own(SemanticMapConfig()),
    "ldm-upscale": _own(LowResConfig(4, degradation="bsr")),
    "ldm-inpaint": _own(InpaintingConfig()),
}

PRESETS: dict[str, Recipe] = SCENES | COMPARED | GENERIC | FIRST_STAGES | PAPER
