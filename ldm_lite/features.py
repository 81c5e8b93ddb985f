"""Networks that look at pictures: maps for a perceptual loss, vectors for FID and, on the built-in scenes, answers.

Features("scenes") is small, ships with the package and knows the built-in scenes; Features("inception") and
Features("vgg16") are the field's networks for photographs and are downloaded once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import InputError, suggest
from .folders import load_weights, unpickled, weights_folder

KINDS = ("scenes", "inception", "vgg16")
SEGMENTS, OBJECTS, LABELS, MOST, COLOURS = (
    13,
    5,
    16,
    4,
    4,
)  # of the built-in scenes; a test compares them with data/scenes.py


class Answers(NamedTuple):
    """What a reader says of images (B, 3, H, W), as logits.

    label (B, 16) · counts (B, 5, 5): of each kind of object none, one, … four · segmentation (B, 13, H, W)"""

    label: Tensor
    counts: Tensor
    segmentation: Tensor


@dataclass(frozen=True)
class SceneReaderConfig:
    widths: tuple[int, ...] = (16, 32, 64, 128)  # of the maps at factor 1, 2, 4, …


def _conv(c_in: int, c_out: int, size: int = 3) -> nn.Sequential:
    # BatchNorm: in eval mode it costs nothing, and each picture is looked at by itself
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)
    )


class SceneReader(nn.Module):
    """Reads a scene back: label, how many of each object, and what every pixel shows (Ronneberger et al. 2015).

    `maps` stops half way and gives what a perceptual loss compares."""

    def __init__(self, config: SceneReaderConfig = SceneReaderConfig()):
        super().__init__()
        self.config, widths = config, config.widths
        before = (3, *widths[:-1])
        self.down = nn.ModuleList(nn.Sequential(_conv(a, b), _conv(b, b)) for a, b in zip(before, widths))
        self.up = nn.ModuleList(_conv(a + b, a) for a, b in pairwise(widths))
        self.segment = nn.Conv2d(widths[0], SEGMENTS, 1)
        self.say = nn.Linear(sum(widths), LABELS + OBJECTS * (MOST + 1))

    def maps(self, image: Tensor) -> list[Tensor]:
        """image (B, 3, H, W) in [-1, 1] -> maps (B, C, H / 2^i, W / 2^i), fine to coarse."""
        return descended(self.down, image)

    def forward(self, image: Tensor) -> Answers:
        maps = self.maps(image)
        said = self.say(pooled(maps))
        counts = said[:, LABELS:].unflatten(1, (OBJECTS, MOST + 1))
        return Answers(said[:, :LABELS], counts, self.segment(ascended(self.up, maps)))


def descended(levels: nn.ModuleList, image: Tensor) -> list[Tensor]:
    """The maps of each level, fine to coarse, each half as large as the one before."""
    maps = [levels[0](image)]
    for level in levels[1:]:
        maps.append(level(F.max_pool2d(maps[-1], 2)))
    return maps


def ascended(merges: nn.ModuleList, maps: list[Tensor]) -> Tensor:
    """The coarsest map, merged with each finer one on the way back."""
    h = maps[-1]
    for finer, merge in zip(reversed(maps[:-1]), reversed(merges)):
        h = merge(torch.cat([finer, F.interpolate(h, finer.shape[2:], mode="nearest")], 1))
    return h


class Places(NamedTuple):
    """What a finder says of images (B, 3, H, W), for each cell of h = H / 2 by w = W / 2.

    heat (B, 5, h, w): logits of an object of each kind whose middle is here · box (B, 4, h, w): its middle from that of
    the cell, and its width and height, in shares of the picture · colour (B, 4, h, w): logits"""

    heat: Tensor
    box: Tensor
    colour: Tensor


@dataclass(frozen=True)
class ObjectFinderConfig:
    widths: tuple[int, ...] = (16, 32, 64, 96)  # of the maps at factor 1, 2, 4, …


class ObjectFinder(nn.Module):
    """Finds the objects of a scene by their middles (CenterNet; Zhou et al. 2019): what tells two that touch apart."""

    def __init__(self, config: ObjectFinderConfig = ObjectFinderConfig()):
        super().__init__()
        self.config, widths = config, config.widths
        before = (3, *widths[:-1])
        self.down = nn.ModuleList(nn.Sequential(_conv(a, b), _conv(b, b)) for a, b in zip(before, widths))
        self.up = nn.ModuleList(_conv(a + b, a) for a, b in pairwise(widths[1:]))
        self.say = nn.Sequential(_conv(widths[1], 2 * widths[1]), nn.Conv2d(2 * widths[1], OBJECTS + 4 + COLOURS, 1))
        nn.init.constant_(self.say[1].bias[:OBJECTS], -4.0)  # most cells have no middle

    def forward(self, image: Tensor) -> Places:
        h = ascended(self.up, descended(self.down, image)[1:])
        return Places(*self.say(h).split((OBJECTS, 4, COLOURS), 1))


def pooled(maps: list[Tensor]) -> Tensor:
    """(B, sum of channels): the mean of every map over the picture."""
    return torch.cat([h.float().mean((2, 3)) for h in maps], 1)


class Reading(NamedTuple):
    """What a picture shows. label (B,), counts (B, 5) of each kind of object, segmentation (B, H, W): integers."""

    label: Tensor
    counts: Tensor
    segmentation: Tensor


class VGG16(nn.Module):
    """The convolutions of VGG16 (Simonyan and Zisserman 2015), cut after relu1_2, 2_2, 3_3, 4_3 and 5_3."""

    CUTS = (4, 9, 16, 23, 30)  # in torchvision's numbering

    def __init__(self, weights: Path | None):
        super().__init__()
        from torchvision.models import vgg16

        with torch.device("meta"):  # the classifier, nine tenths of the whole, is never made
            self.features = vgg16(weights=None).features
        strictly(self.features, _vgg16_weights(weights), weights)
        for module in self.features:
            if isinstance(module, nn.ReLU):
                module.inplace = False  # a map that was handed out stays as it is
        # of LPIPS (Zhang et al. 2018): for images in [-1, 1] about ImageNet's mean and standard deviation
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("spread", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def maps(self, image: Tensor) -> list[Tensor]:
        h, found = (image - self.shift) / self.spread, []
        for i, module in enumerate(self.features, 1):
            h = module(h)
            if i in self.CUTS:
                found.append(h)
        return found


def _vgg16_weights(path: Path | None) -> dict[str, Tensor]:
    if path is None:
        from torchvision.models import VGG16_Weights

        known = VGG16_Weights.IMAGENET1K_V1
        state = _fetched("vgg16", lambda: known.get_state_dict(progress=True, check_hash=True), _kept(known.url))
    else:
        state = _read(path)
    return {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}


def strictly(module: nn.Module, state: dict[str, Tensor], path: Path | None) -> None:
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise _foreign(path, error) from None


def _foreign(path: Path | None, error: RuntimeError) -> InputError:
    return InputError(f"{path}: weights of another network ({str(error).splitlines()[1].strip()[:80]})")


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict of plain tensors. No code in the file is run. InputError for anything else."""
    try:
        return unpickled(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:
        raise InputError(f"{path}: not a file of weights ({str(error).splitlines()[0][:80]})") from None


def _kept(url: str) -> Path:
    """Where torch keeps what it fetches."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def _fetched(name: str, fetch: Any, path: Path) -> Any:
    """What `fetch` gives, which leaves it at `path`. InputError where it cannot be had, or is another file."""
    try:
        return fetch()
    except (OSError, RuntimeError) as error:  # torch raises the latter for a wrong hash
        what = "came as another file than it is" if isinstance(error, RuntimeError) else "could not be downloaded"
        raise InputError(
            f"{name}: its weights {what} ({error}); put their file at {path}, give it with weights= "
            '(ldm-lite evaluate: --weights), or use "scenes", which ships with the package'
        ) from None


class Inception(nn.Module):
    """torch-fidelity's Inception v3, the one that published FIDs are computed with: 2048 numbers, 1008 classes."""

    def __init__(self, weights: Path | None):
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except ImportError:
            raise InputError("inception needs torch-fidelity: pip install ldm-lite[eval]") from None
        if weights is None:
            weights = _kept(URL_INCEPTION_V3)
            if not weights.exists():
                weights.parent.mkdir(parents=True, exist_ok=True)
                settings = {"hash_prefix": weights.stem.rsplit("-", 1)[1]}
                fetch = partial(torch.hub.download_url_to_file, URL_INCEPTION_V3, str(weights), **settings)
                _fetched("inception", fetch, weights)
        _read(weights)  # torch-fidelity would run code in the file; what is read here has none
        try:
            self.network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(weights))
        except RuntimeError as error:
            raise _foreign(weights, error) from None

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        # truncated as the original's pictures are when they are saved: ((x + 1) 127.5) to uint8
        return self.network(((image.clamp(-1, 1) + 1) * 127.5).to(torch.uint8))


class Features(nn.Module):
    """A frozen network that turns images (B, 3, H, W) in [-1, 1] into vectors (B, dim), by name.

    scenes: 240 means of the reader's maps. inception: 2048, for the FID, precision and recall of papers. vgg16: 512.
    weights: a file, or for scenes a folder, in place of what ships or is downloaded.
    InputError for an unknown name and for weights that cannot be had."""

    def __init__(self, name: Literal["scenes", "inception", "vgg16"] = "scenes", weights: str | Path | None = None):
        super().__init__()
        if name not in KINDS:
            raise suggest(name, KINDS, "features")
        self.name, given = name, Path(weights) if weights is not None else None
        if name == "scenes":
            self.network: nn.Module = _reader(given or weights_folder("scenes-features"))
        else:
            self.network = VGG16(given) if name == "vgg16" else Inception(given)
        self.dim = {"scenes": sum(getattr(self.network, "config", SceneReaderConfig()).widths), "vgg16": 512}.get(
            name, 2048
        )
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Features:
        """Stays in eval mode: what measures must not change."""
        return super().train(False)

    def maps(self, image: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w), fine to coarse, through which gradients flow. InputError for inception."""
        if self.name == "inception":
            raise InputError("features: inception has no maps; use scenes or vgg16")
        return self.network.maps(image)

    def forward(self, image: Tensor) -> Tensor:
        if self.name == "inception":
            return self.network(image)[0]
        maps = self.maps(image)
        return pooled(maps if self.name == "scenes" else maps[-1:])

    def probabilities(self, image: Tensor) -> Tensor:
        """(B, K) of the classes, for the inception score: 16 kinds of scene, or Inception's 1008."""
        if self.name == "vgg16":
            raise InputError("features: vgg16 has no classes here; use scenes or inception")
        logits = self.network(image).label if self.name == "scenes" else self.network(image)[1]
        return logits.float().softmax(1)

    def read(self, image: Tensor) -> Reading:
        """What the images show. InputError for networks that do not know scenes."""
        if self.name != "scenes":
            raise InputError(f"features: {self.name} cannot read scenes; use scenes")
        said = self.network(image)
        return Reading(said.label.argmax(1), said.counts.argmax(2), said.segmentation.argmax(1))


def _reader(folder: Path) -> SceneReader:
    from .config import from_dict, read

    values = {k: v for k, v in read(folder / "config.json").items() if k != "type"}
    network = SceneReader(from_dict(SceneReaderConfig, values))
    load_weights(network, folder / "model.safetensors")
    return network
