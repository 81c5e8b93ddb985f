"""From a batch to a Condition, one class for each thing a model can be told.

A conditioner gives conditioner(batch) -> Condition and blank(batch) -> the batch with its conditions emptied, so that
`null = self ∘ blank`: one line defines dropout in training and the other half of guidance. What sets maps beside the
latent (SemanticMap, LowRes, Inpainting) has no null: its `blank` is the batch itself. Nor has a published model that
never met one: of layouts (`BoxesConfig.null`), or of classes, whose null is then of zeros."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .condition import Condition, of_segments
from .config import InputError, one_or_more, suggest
from .layers import SetEncoder, TokenEncoder
from .tokens import BytePairs, Words

Batch = dict[str, Any]


def needed(batch: Batch, key: str, who: str) -> Any:
    if key not in batch:
        raise InputError(f"{who} needs the key {key}; the batch has {', '.join(batch)}")
    return batch[key]


class Conditioner(nn.Module):
    """keys: of the batch, that it reads. encodes: those of them that are images (B, 3, H, W) which it wants as latents;
    LatentDiffusion puts them through the first stage and adds them to the batch as KEY_z."""

    keys: tuple[str, ...] = ()
    encodes: tuple[str, ...] = ()

    def forward(self, batch: Batch) -> Condition:
        raise NotImplementedError

    def blank(self, batch: Batch) -> Batch:
        return batch

    def dropped(self, batch: Batch, share: float) -> Batch:
        """The batch with the conditions of a random share of its rows emptied: what guidance needs in training."""
        blank = self.blank(batch)
        emptied = {key: value for key, value in blank.items() if value is not batch[key]}
        if not emptied or not share:
            return batch
        rows = torch.rand(len(next(iter(emptied.values())))) < share
        return batch | {key: mixed(rows, value, batch[key]) for key, value in emptied.items()}

    def need(self, batch: Batch, key: str) -> Any:
        return needed(batch, key, type(self).__name__)


def place(name: str, names: tuple[str, ...], what: str) -> int:
    """The number of a name. InputError lists the names."""
    if name not in names:
        raise suggest(name, names, what)
    return names.index(name)


def mixed(rows: Tensor, some: Any, others: Any) -> Any:
    """Rows of `some` where rows (B,) is True, rows of `others` elsewhere; of tensors or of lists."""
    if isinstance(some, Tensor) and isinstance(others, Tensor):
        return torch.where(rows.to(some.device).view(-1, *[1] * (some.ndim - 1)), some, others)
    return [a if row else b for row, a, b in zip(rows.tolist(), some, others, strict=True)]


# Nothing, and classes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnconditionalConfig:
    pass


class Unconditional(Conditioner):
    """All doors shut."""

    def __init__(self, config: UnconditionalConfig = UnconditionalConfig()):
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Condition:
        return Condition()


@dataclass(frozen=True)
class LabelsConfig:
    names: tuple[str, ...]  # of the classes, in order
    width: int = 512
    door: Literal["context", "vector"] = "context"

    def __post_init__(self) -> None:
        if self.door not in ("context", "vector"):
            raise ValueError(f"door: {self.door} is not context or vector")


class Labels(Conditioner):
    """batch["label"] (B,) -> one learned token (context) or a vector.

    The number after the last class's, how many there are, is the null class: no class at all. A negative label is it
    too, so that rows without a label teach it. A null of zeros, as some originals' weights have it here, was never
    trained: such a model has no blank, and cannot be guided. InputError, outside training, for larger numbers."""

    keys = ("label",)

    def __init__(self, config: LabelsConfig):
        super().__init__()
        self.config, self.names, self.null = config, config.names, len(config.names)
        self.embedding = nn.Embedding(self.null + 1, config.width)

    def forward(self, batch: Batch) -> Condition:
        label = self.need(batch, "label")
        if not self.training and (label > self.null).any():  # in training a GPU would have to be waited for
            raise InputError(f"label: {int(label.max())}; there are {self.null} classes, and {self.null} is no class")
        token = self.embedding(torch.where(label < 0, self.null, label))
        return Condition(vector=token) if self.config.door == "vector" else Condition(context=token[:, None])

    def blank(self, batch: Batch) -> Batch:
        if not self.training and not self.embedding.weight[self.null].any():
            return batch
        return batch | {"label": torch.full_like(self.need(batch, "label"), self.null)}

    def index(self, name: str) -> int:
        """The number of a class. InputError lists the names."""
        return place(name, self.names, "label")


# Sequences of tokens ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextConfig:
    """The paper's text encoder is width 1280, depth 32, heads 8, 77 tokens (its table 17); this one is for captions."""

    width: int = 128  # of the tokens that cross-attention sees
    depth: int = 2  # transformer blocks
    heads: int = 4
    head_channels: int = 32
    length: int = 32  # tokens; a longer caption is cut in training and refused in a prompt
    vocabulary: int = 512  # of the byte pairs that are learned from the captions before training; 257 is bytes alone
    merges: tuple[tuple[int, int], ...] = ()  # the byte pairs
    tokenizer: str = ""  # one of transformers' in place of byte pairs, such as the original's, bert-base-uncased

    def __post_init__(self) -> None:
        one_or_more(width=self.width, depth=self.depth, heads=self.heads, length=self.length)
        if self.vocabulary < 257 and not self.tokenizer:
            raise InputError(f"vocabulary: {self.vocabulary} is less than the 256 bytes and the end")


class Captions(Conditioner):
    """What conditioners on text share: batch["caption"] is B strings, and the empty caption is the null condition."""

    keys = ("caption",)
    length: int  # tokens

    def blank(self, batch: Batch) -> Batch:
        return batch | {"caption": [""] * len(self.need(batch, "caption"))}

    def count(self, words: str) -> int:
        """How many tokens they are."""
        raise NotImplementedError

    def captions(self, batch: Batch) -> list[str]:
        """The batch's. A warning, outside training, where the end of one is not read."""
        captions = list(self.need(batch, "caption"))
        if not self.training and (most := max(map(self.count, captions), default=0)) > self.length:
            warnings.warn(
                f"caption: {most} tokens, and the model reads {self.length}; the rest is left out", stacklevel=2
            )
        return captions

    def prompt(self, words: str, option: str = "prompt") -> str:
        """The words, if they can be told. InputError, by the option, for none, too many, and for what is no text."""
        try:
            words.encode()
        except UnicodeEncodeError:
            raise InputError(f"{option}: has bytes that are no UTF-8 text; type it again") from None
        if not words.strip():
            raise InputError(f"{option}: is empty; say what the picture shows, such as: two pines in the snow at dawn")
        if (n := self.count(words)) > self.length:
            raise InputError(f"{option}: {n} tokens, and the model reads {self.length}; say it in fewer words")
        return words


class Text(Captions):
    """Captions -> context (B, length, width): a transformer over byte pairs, trained with the UNet.

    Short captions are padded with the end token, and cross-attention sees the padding too, as in the original."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config, self.length, c = config, config.length, config
        self.tokens = Words(c.tokenizer) if c.tokenizer else BytePairs(c.merges)
        size = c.vocabulary if isinstance(self.tokens, Words) else max(c.vocabulary, self.tokens.size)
        self.encoder = TokenEncoder(size, c.length, c.width, c.depth, c.heads, c.head_channels)

    def forward(self, batch: Batch) -> Condition:
        rows = [self.tokens.row(caption, self.length) for caption in self.captions(batch)]
        return Condition(context=self.encoder(torch.tensor(rows, device=self.encoder.device)))

    def count(self, words: str) -> int:
        return len(self.tokens.encode(words))

    def places(self, caption: str, word: str) -> list[int]:
        """Which tokens of a caption make up a word of it, to read attention maps by. InputError where it is absent."""
        caption = caption.lower()
        found = re.search(rf"\b{re.escape(word.lower())}", caption) if word else None
        if found is None:
            raise InputError(f"word: {word!r} is not in the caption {caption!r}")
        first, after = (len(caption[:end].encode()) for end in found.span())
        spans = self.tokens.spans(caption)[: self.config.length]
        return [k for k, (a, b) in enumerate(spans) if a < after and b > first]


@dataclass(frozen=True)
class PretrainedTextConfig:
    """Stable Diffusion's is openai/clip-vit-large-patch14, 768 wide, 77 tokens, frozen."""

    encoder: str  # a folder, or a name on the hub, of transformers' layout: CLIP's text encoder, BERT, …; or diffusers'
    width: int = 768  # of its tokens
    length: int = 77  # tokens
    trained: bool = False  # with the UNet; otherwise it stays as it is, and is not saved with the model

    def __post_init__(self) -> None:
        one_or_more(width=self.width, length=self.length)


class PretrainedText(Captions):
    """Captions -> context (B, length, width): the last hidden states of an encoder of the transformers library.

    InputError without that library, for an encoder that cannot be had, and for one of another width."""

    def __init__(self, config: PretrainedTextConfig):
        super().__init__()
        self.config, self.length = config, config.length
        self.tokenizer, encoder = pretrained(config.encoder)
        if encoder.config.hidden_size != config.width:
            raise InputError(
                f"width: {config.width}, and {config.encoder}'s tokens are {encoder.config.hidden_size} wide"
            )
        self.masks = "clip" not in encoder.config.model_type  # CLIP's looks back only, and was trained without a mask
        if config.trained:
            self.encoder = encoder
        else:  # not one of the module's parts: neither trained, nor averaged, nor saved
            self.__dict__["encoder"] = encoder.requires_grad_(False).eval()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if not self.config.trained:
            self.encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, batch: Batch) -> Condition:
        captions, settings = self.captions(batch), {"max_length": self.length, "return_tensors": "pt"}
        rows = self.tokenizer(captions, padding="max_length", truncation=True, **settings)
        place = next(self.encoder.parameters()).device
        mask = rows["attention_mask"].to(place) if self.masks else None
        return Condition(context=self.encoder(rows["input_ids"].to(place), attention_mask=mask).last_hidden_state)

    def count(self, words: str) -> int:
        return len(self.tokenizer(words, verbose=False)["input_ids"])


def pretrained(name: str) -> tuple[Any, nn.Module]:
    """A tokenizer and an encoder of the transformers library, from a folder or, once, from the hub.

    A folder of diffusers has each in a folder of its own."""
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPTextModel
    except ImportError:
        raise InputError(f"encoder: {name} needs transformers: pip install ldm-lite[text]") from None
    apart = (Path(name) / "text_encoder").is_dir()
    of_words, of_context = (f"{name}/tokenizer", f"{name}/text_encoder") if apart else (name, name)
    try:
        clip = AutoConfig.from_pretrained(of_context).model_type.startswith("clip")
        encoder = (CLIPTextModel if clip else AutoModel).from_pretrained(of_context)
        return AutoTokenizer.from_pretrained(of_words), encoder
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:90]
        where = "give a folder in transformers' layout (convert: --encoder; train: --condition.encoder)"
        raise InputError(f"encoder: {name} cannot be had ({reason}); {where}") from None


@dataclass(frozen=True)
class BoxesConfig:
    """The paper's layout encoder is width 512, depth 16, heads 8 x 64, vocabulary 8192, grid 90, 30 boxes, crop."""

    names: tuple[str, ...] = ()  # of the kinds of object, in order; none are the data's
    width: int = 128
    depth: int = 2
    heads: int = 4
    head_channels: int = 32
    most: int = 30  # boxes
    grid: int = 32  # places of a corner along each side
    vocabulary: int = 0  # tokens; 0 is what the grid, or the kinds, and the padding need
    crop: bool = False  # two more tokens say which part of the whole the picture shows
    # one token a box in place of three, and corners that begin as waves (as GLIGEN, Li et al. 2023): which corners and
    # kind belong together, and which places are neighbours, has then not to be learned
    joined: bool = False
    null: bool = True  # some layouts were left out in training, so that there is something to guide with

    def __post_init__(self) -> None:
        one_or_more(width=self.width, depth=self.depth, heads=self.heads, most=self.most, grid=self.grid)
        if self.joined and self.crop:
            raise InputError("joined: a crop's two tokens are no box; leave crop or joined out")
        least = max(self.grid**2, len(self.names)) + 1
        if 0 < self.vocabulary < least:
            raise InputError(f"vocabulary: {self.vocabulary} is less than the {least} that the grid and kinds need")

    @property
    def tokens(self) -> int:
        return self.vocabulary or max(self.grid**2, len(self.names)) + 1

    @property
    def length(self) -> int:
        return 3 * self.most + 2 * self.crop


def waves(grid: int, width: int) -> Tensor:
    """(grid * grid, width) the places of a grid, row by row, as sines and cosines of y and of x: from half a wave on a
    side to one on four places. The last few of a width that is not divisible by four are 0."""
    k = width // 4
    angle = math.pi * torch.linspace(0, 1, grid)[:, None] * torch.logspace(0, math.log2(grid / 2), k, 2)
    line = torch.cat([angle.sin(), angle.cos()], 1)
    both = torch.cat([line[:, None].expand(-1, grid, -1), line.expand(grid, -1, -1)], 2).flatten(0, 1)
    return F.pad(both, (0, width - 4 * k))


class Boxes(Conditioner):
    """batch["boxes"], B times (K, 4) as x0 y0 x1 y1 in [0, 1], and batch["box_labels"], B times (K,) -> context.

    Three tokens a box (Rombach et al. 2022, appendix E; taming-transformers' builder): its kind, its upper left and its
    lower right corner on a grid. The order is shuffled in training, the rest padded; the empty layout is the null
    condition, but of a published model that never met it (config.null), which cannot be guided. InputError for boxes
    outside the picture, inverted, of unknown kinds or too many; training takes `most` of too many by chance."""

    keys = ("boxes", "box_labels")

    def __init__(self, config: BoxesConfig):
        super().__init__()
        self.config, c = config, config
        self.names, self.none = c.names, c.tokens - 1
        encoder = SetEncoder if c.joined else TokenEncoder
        self.encoder = encoder(c.tokens, c.length, c.width, c.depth, c.heads, c.head_channels)
        if c.joined:
            table, kinds = nn.init.normal_(self.encoder.token.weight), len(c.names)  # numbers that are kinds as well
            with torch.no_grad():
                table[kinds : c.grid**2] = 2**0.5 * waves(c.grid, c.width)[kinds:]

    def forward(self, batch: Batch) -> Condition:
        boxes, kinds = self.need(batch, "boxes"), self.need(batch, "box_labels")
        crops = batch.get("crop", [(0.0, 0.0, 1.0, 1.0)] * len(boxes))
        rows = [self.row(*three) for three in zip(boxes, kinds, crops, strict=True)]
        return Condition(context=self.encoder(torch.tensor(rows, device=self.encoder.device)))

    def row(self, boxes: Any, kinds: Any, crop: Any = (0.0, 0.0, 1.0, 1.0)) -> list[int]:
        """The tokens of one layout."""
        boxes = torch.as_tensor(boxes, dtype=torch.float64).reshape(-1, 4).tolist()
        kinds = torch.as_tensor(kinds, dtype=torch.long).reshape(-1).tolist()
        self.check(boxes, kinds)
        order = torch.randperm(len(boxes)).tolist()[: self.config.most] if self.training else range(len(boxes))
        tokens: list[int] = []
        for i in order:
            tokens += kinds[i], self.corner(*boxes[i][:2]), self.corner(*boxes[i][2:])
        tokens += [self.none] * (3 * self.config.most - len(tokens))
        ends = torch.as_tensor(crop, dtype=torch.float64).tolist()
        return tokens + ([self.corner(*ends[:2]), self.corner(*ends[2:])] if self.config.crop else [])

    def corner(self, x: float, y: float) -> int:
        """The token of a point in [0, 1]²: the original rounds, y first."""
        last = self.config.grid - 1
        return round(y * last) * self.config.grid + round(x * last)

    def check(self, boxes: Sequence[Sequence[float]], kinds: Sequence[int]) -> None:
        most, names = self.config.most, self.names
        if len(boxes) != len(kinds):
            raise InputError(f"boxes: {len(boxes)}, and {len(kinds)} kinds; each box needs one")
        if len(boxes) > most and not self.training:
            raise InputError(f"boxes: {len(boxes)}, and the model was trained with at most {most}; leave some out")
        shown = lambda i: f"number {i + 1} ({' '.join(f'{v:g}' for v in boxes[i])})"
        for i, (box, kind) in enumerate(zip(boxes, kinds)):
            if not all(0 <= v <= 1 for v in box):
                raise InputError(f"boxes: {shown(i)} is not inside [0, 1]; give shares of the picture")
            if box[0] >= box[2] or box[1] >= box[3]:
                raise InputError(f"boxes: {shown(i)} is empty or inverted; give x0 y0 x1 y1")
            if not 0 <= kind < len(names):
                raise InputError(f"box_labels: number {i + 1} is {kind}; there are 0 to {len(names) - 1}")

    def blank(self, batch: Batch) -> Batch:
        rows = len(self.need(batch, "boxes"))
        if not self.training and not self.config.null:
            return batch
        empty = {"boxes": [torch.zeros(0, 4)] * rows, "box_labels": [torch.zeros(0, dtype=torch.long)] * rows}
        return batch | empty

    def index(self, name: str) -> int:
        """The number of a kind of object. InputError lists the names."""
        return place(name, self.names, "kind of object")


# Maps beside the latent ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SemanticMapConfig:
    names: tuple[str, ...] = ()  # of the segments, in order; none are the data's
    f: int = 4  # of the first stage: a map is as large as the image
    channels: int = 3

    def __post_init__(self) -> None:
        one_or_more(f=self.f, channels=self.channels)


class SemanticMap(Conditioner):
    """batch["segmentation"] (B, H, W), numbers of segments -> concat (B, channels, H / f, W / f).

    Shares of the segments in each cell of the latent, through a learned 1x1 convolution without bias: the original's
    SpatialRescaler, whose bilinear halvings are means over 2 x 2. Of 255, where there are not so many, nothing is told.
    InputError for other numbers of no segment."""

    keys = ("segmentation",)

    def __init__(self, config: SemanticMapConfig):
        super().__init__()
        self.config, self.names = config, config.names
        self.channel_mapper = nn.Conv2d(len(config.names), config.channels, 1, bias=False)

    def forward(self, batch: Batch) -> Condition:
        segments = self.need(batch, "segmentation")
        n, f = len(self.names), self.config.f
        if segments.ndim != 3 or segments.shape[1] % f or segments.shape[2] % f:
            raise InputError(f"segmentation: {tuple(segments.shape)} is not (B, H, W) with sides divisible by {f}")
        known = of_segments(segments, n)
        if len(known) and (known.min() < 0 or known.max() >= n):
            wrong = int(known.max() if known.max() >= n else known.min())
            raise InputError(f"segmentation: {wrong} is no segment; there are 0 to {n - 1}: {', '.join(self.names)}")
        weight = self.channel_mapper.weight
        shares = torch.stack([(segments == k).to(weight.dtype) for k in range(n)], 1)
        return Condition(concat=self.channel_mapper(F.avg_pool2d(shares, f)))


@dataclass(frozen=True)
class LowResConfig:
    factor: int = 4  # by which the picture grows
    f: int = 4  # of the first stage
    degradation: Literal["bicubic", "bsr"] = "bicubic"  # how the small pictures to learn from are made
    noise: float = 0.0  # in training, up to so much is added to the small picture, and the model is told how much

    def __post_init__(self) -> None:
        one_or_more(factor=self.factor, f=self.f)
        for name in ("factor", "f"):
            if (value := getattr(self, name)) & (value - 1):
                raise InputError(f"{name}: {value} is not a power of 2")
        if self.noise < 0:
            raise InputError(f"noise: {self.noise} is below 0")

    @property
    def channels(self) -> int:
        """Of the door."""
        return 3 * max(1, self.f // self.factor) ** 2 + (self.noise > 0)


class LowRes(Conditioner):
    """batch["low"] (B, 3, H / factor, W / factor) in [-1, 1] -> concat, at the size of the latent and not encoded.

    With factor = f, as in the paper, it is as large as the latent. A larger picture lies in it pixel by pixel (f /
    factor squared of them in a cell), a smaller one is repeated. noise: augmentation as in cascaded diffusion (Ho et
    al. 2022); batch["low_noise"] (B,) says how much was added, 0 if it is absent."""

    keys = ("low",)

    def __init__(self, config: LowResConfig):
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Condition:
        c, low = self.config, self.need(batch, "low")
        if low.ndim != 4 or low.shape[1] != 3:
            raise InputError(f"low: {tuple(low.shape)} is not (B, 3, h, w)")
        level = torch.as_tensor(batch.get("low_noise", 0.0)).to(low).expand(len(low))
        if c.noise and self.training:
            level = c.noise * torch.rand(len(low)).to(low)
            low = low + level.view(-1, 1, 1, 1) * torch.randn_like(low)
        if c.factor < c.f:
            low = F.pixel_unshuffle(low, c.f // c.factor)
        elif c.factor > c.f:
            low = F.interpolate(low, scale_factor=c.factor // c.f, mode="nearest")
        told = (level / c.noise).view(-1, 1, 1, 1).expand(-1, 1, *low.shape[2:]) if c.noise else low[:, :0]
        return Condition(concat=torch.cat([low, told], 1))


@dataclass(frozen=True)
class InpaintingConfig:
    channels: int = 3  # of the latent
    f: int = 4  # of the first stage

    def __post_init__(self) -> None:
        one_or_more(channels=self.channels, f=self.f)


class Inpainting(Conditioner):
    """batch["masked"] (B, 3, H, W), the image with its hole at -1, and batch["mask"] (B, 1, H, W), 1 = keep -> concat.

    The latent of the masked image and, in one more channel, the mask by its nearest pixels, 1 in the hole and -1
    outside, as the original's weights have it (their files say 1 = hole; here 1 = keep everywhere). InputError for
    other shapes and, outside training, for values between."""

    keys = ("masked", "mask")
    encodes = ("masked",)

    def __init__(self, config: InpaintingConfig):
        super().__init__()
        self.config = config

    def forward(self, batch: Batch) -> Condition:
        z = self.need(batch, "masked_z" if "masked" in batch or "masked_z" in batch else "masked")
        mask = self.need(batch, "mask")
        if mask.ndim != 4 or mask.shape[1] != 1:
            raise InputError(f"mask: {tuple(mask.shape)} is not (B, 1, H, W)")
        if any(m != s * self.config.f for m, s in zip(mask.shape[2:], z.shape[2:])):
            raise InputError(f"mask: {tuple(mask.shape[2:])} is of another size than its image")
        if not self.training and not ((mask == 0) | (mask == 1)).all():  # as for labels
            raise InputError("mask: has values other than 1, which is kept, and 0, which is drawn; take mask > 0.5")
        hole = 1 - 2 * F.interpolate(mask.to(z), z.shape[2:], mode="nearest")
        return Condition(concat=torch.cat([z, hole], 1))


# Several at once ----------------------------------------------------------------------------------------------------

One = (
    TextConfig | PretrainedTextConfig | BoxesConfig | SemanticMapConfig | LowResConfig | InpaintingConfig | LabelsConfig
)  # where JSON does not say which, the one whose fields fit


@dataclass(frozen=True)
class TogetherConfig:
    parts: tuple[One, ...]

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise InputError("parts: two conditions or more are needed")


class Together(Conditioner):
    """Several conditioners: tokens after tokens, channels after channels, features after features.

    Each is dropped by itself in training, so that any of them can be left out, or guided by a scale of its own."""

    def __init__(self, config: TogetherConfig):
        super().__init__()
        self.config, self.parts = config, nn.ModuleList(build(part) for part in config.parts)
        self.keys = tuple(dict.fromkeys(chain.from_iterable(part.keys for part in self.parts)))
        self.encodes = tuple(dict.fromkeys(chain.from_iterable(part.encodes for part in self.parts)))

    def forward(self, batch: Batch) -> Condition:
        both = Condition()
        for part in self.parts:
            both = both | part(batch)
        return both

    def blank(self, batch: Batch) -> Batch:
        for part in self.parts:
            batch = part.blank(batch)
        return batch

    def dropped(self, batch: Batch, share: float) -> Batch:
        for part in self.parts:
            batch = part.dropped(batch, share)
        return batch

    def without(self, batch: Batch, blank: Batch | None = None) -> list[Batch]:
        """The batch without any condition, then with the first that can be left out, the first two, and so on, but not
        all: what scales for each are measured from. blank: the batch without any, or what takes its place."""
        blank = self.blank(batch) if blank is None else blank
        some = [part for part in self.parts if part.blank(batch) is not batch]
        rows = [blank] if some else []
        for i in range(1, len(some)):
            keys = {key for part in some[i:] for key in part.keys}
            rows.append(batch | {k: v for k, v in blank.items() if k.removesuffix("_z") in keys})
        return rows


CONDITIONERS: Mapping[type, type[Conditioner]] = {
    UnconditionalConfig: Unconditional,
    LabelsConfig: Labels,
    TextConfig: Text,
    PretrainedTextConfig: PretrainedText,
    BoxesConfig: Boxes,
    SemanticMapConfig: SemanticMap,
    LowResConfig: LowRes,
    InpaintingConfig: Inpainting,
    TogetherConfig: Together,
}


def parts(config: Any) -> tuple[Any, ...]:
    """The configs of the conditions that come together in one; itself alone if it is one."""
    return config.parts if isinstance(config, TogetherConfig) else () if config is None else (config,)


def epochs(config: Any) -> int:
    """How many epochs of a dataset its cached latents hold: some where what a model is told of a picture is drawn at
    random, such as holes, so that it sees several of each; otherwise one."""
    bsr = lambda part: isinstance(part, LowResConfig) and part.degradation == "bsr"
    return 4 if any(isinstance(part, InpaintingConfig) or bsr(part) for part in parts(config)) else 1


def widths(config: Any) -> dict[str, int]:
    """How wide the doors are that a condition opens, by their names in UNetConfig."""
    if isinstance(config, TogetherConfig):
        total: dict[str, int] = {}
        for part in config.parts:
            for door, width in widths(part).items():
                before = total.get(door, 0)  # tokens stand one after the other, the rest side by side
                if door == "context" and before not in (0, width):
                    raise InputError(f"width: {before} and {width}; tokens that come together need one width")
                total[door] = width if door == "context" else before + width
        return total
    if isinstance(config, LabelsConfig):
        return {config.door: config.width}
    if isinstance(config, (TextConfig, PretrainedTextConfig, BoxesConfig)):
        return {"context": config.width}
    if isinstance(config, InpaintingConfig):
        return {"concat": config.channels + 1}
    return {"concat": config.channels} if isinstance(config, (SemanticMapConfig, LowResConfig)) else {}


def build(config: Any) -> Conditioner:
    """The conditioner of a config, with random weights."""
    return CONDITIONERS[type(config)](config)
