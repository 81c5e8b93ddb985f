"""The time-conditional UNet: z (B, C, h, w), clock (B,), Condition -> output of z's shape (Rombach et al. 2022, 3.3).

Guided diffusion's network (Dhariwal and Nichol 2021): residual blocks told the time, attention at chosen levels, and
skips from every block on the way down to one on the way up. It does not know its schedule."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .condition import Condition
from .config import InputError, one_or_more
from .layers import Downsample, ResBlock, SelfAttention, SpatialTransformer, Upsample, norm, sinusoidal, zeroed


@dataclass(frozen=True)
class UNetConfig:
    """The doors `concat`, `context` and `vector` are open when their width is not 0."""

    channels: int = 3  # of z
    width: int = 128  # at full size; level i has mult[i] times as many channels
    mult: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2  # residual blocks per level, one more on the way up
    attend_at: tuple[int, ...] = ()  # downsampling factors of the latent, not sizes: 2 is half the latent's size
    heads: int | None = None  # the number of heads, or else
    head_channels: int | None = None  # the channels of each head
    context: int = 0  # width of the tokens that cross-attention sees
    depth: int = 1  # transformer blocks where it attends
    concat: int = 0  # channels of the maps set beside z
    vector: int = 0  # features added to the time embedding
    film: bool = False  # the time scales and shifts instead of being added
    resblock_updown: bool = False  # residual blocks change the size instead of bare convolutions
    dropout: float = 0.0
    checkpoint: bool = False  # recompute activations in the backward pass: less memory, more time

    def __post_init__(self) -> None:
        for name in ("channels", "width", "blocks", "heads", "head_channels", "depth"):
            one_or_more(**{name: getattr(self, name)})
        one_or_more(mult=min(self.mult, default=0))
        for name in ("context", "concat", "vector"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)} is below 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: {self.dropout} is not in [0, 1)")
        factors = [2**i for i in range(len(self.mult))]
        for f in self.attend_at:
            if f not in factors:
                raise InputError(f"attend_at: {f} is not a downsampling factor of {len(self.mult)} levels ({factors})")
        if (self.heads is None) == (self.head_channels is None):
            raise InputError("heads, head_channels: give exactly one of them")
        for m in self.mult:
            self.split(self.width * m)

    @property
    def factor(self) -> int:
        """Latent sizes must be divisible by this."""
        return 2 ** (len(self.mult) - 1)

    def split(self, width: int) -> tuple[int, int]:
        """(heads, head_channels) at a level of this width."""
        heads = self.heads or max(1, width // (self.head_channels or width))
        if width % heads:
            raise InputError(f"heads, head_channels: {width} channels cannot be split into {heads} heads")
        return heads, width // heads


class Block(nn.Module):
    """A residual block, attention if this level has it, and a change of size if it ends its level."""

    def __init__(self, res: ResBlock, attend: nn.Module | None = None, resample: nn.Module | None = None):
        super().__init__()
        self.res, self.attend, self.resample = res, attend, resample

    def forward(self, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        h = self.res(h, emb)
        if self.attend is not None:
            h = self.attend(h, context)
        return h if self.resample is None else self.resample(h, emb)


class UNet(nn.Module):
    """(z, clock, cond) -> output of z's shape. It compiles as one graph (`unet.compile(fullgraph=True)`).

    InputError names the door that the condition opens or leaves shut against the config, and a z that does not fit."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config, c = config, config
        emb = 4 * c.width
        self.time = nn.Sequential(nn.Linear(c.width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.vector = nn.Sequential(nn.Linear(c.vector, emb), nn.SiLU(), nn.Linear(emb, emb)) if c.vector else None
        self.stem = nn.Conv2d(c.channels + c.concat, c.width, 3, padding=1)

        def res(c_in: int, c_out: int, resample: str | None = None) -> ResBlock:
            return ResBlock(c_in, c_out, emb, c.film, c.dropout, resample=resample)

        def attention(width: int, factor: int | None) -> nn.Module | None:
            if factor is not None and factor not in c.attend_at:
                return None
            heads, head_channels = c.split(width)
            if c.context:
                return SpatialTransformer(width, c.context, heads, head_channels, c.depth)
            return SelfAttention(width, heads)

        widths, factors = [c.width * m for m in c.mult], [2**i for i in range(len(c.mult))]
        h, skips = c.width, [c.width]
        self.down = nn.ModuleList()
        for width, factor in zip(widths, factors, strict=True):
            for _ in range(c.blocks):
                self.down.append(Block(res(h, width), attention(width, factor)))
                h = width
                skips.append(h)
            if factor != factors[-1]:
                self.down.append(res(h, h, "down") if c.resblock_updown else Downsample(h, one_sided=False))
                skips.append(h)
        self.mid = nn.ModuleList([Block(res(h, h), attention(h, None)), Block(res(h, h))])
        self.up = nn.ModuleList()
        for width, factor in zip(widths[::-1], factors[::-1], strict=True):
            for i in range(c.blocks + 1):
                larger = None
                if i == c.blocks and factor > 1:
                    larger = res(width, width, "up") if c.resblock_updown else Upsample(width)
                self.up.append(Block(res(h + skips.pop(), width), attention(width, factor), larger))
                h = width
        self.norm_out, self.conv_out = norm(h, 1e-5), zeroed(nn.Conv2d(h, c.channels, 3, padding=1))

    def forward(self, z: Tensor, clock: Tensor, cond: Condition) -> Tensor:
        self.check(z, cond)
        emb = self.time(sinusoidal(clock, self.config.width).to(self.time[0].weight.dtype))
        if self.vector is not None:
            emb = emb + self.vector(cond.vector)
        h = self.stem(z if cond.concat is None else torch.cat([z, cond.concat], 1))
        skips = [h]
        for block in self.down:
            h = self.run(block, h, emb, cond.context)
            skips.append(h)
        for block in self.mid:
            h = self.run(block, h, emb, cond.context)
        for block in self.up:
            h = self.run(block, torch.cat([h, skips.pop()], 1), emb, cond.context)
        return self.conv_out(nn.functional.silu(self.norm_out(h)))

    def run(self, block: nn.Module, h: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        arguments = (h, emb, context) if isinstance(block, Block) else (h, emb)
        if self.config.checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def check(self, z: Tensor, cond: Condition) -> None:
        c, opened = self.config, cond.open()
        for door, axis, shape in (
            ("context", 2, "(B, L, {})"),
            ("concat", 1, "(B, {}, h, w)"),
            ("vector", 1, "(B, {})"),
        ):
            wanted = getattr(c, door)
            given = opened[door].shape[axis] if door in opened else 0
            if wanted != given:
                fix = f"{shape.format(wanted)} is needed" if wanted else "leave it out"
                raise InputError(f"{door}: the UNet was built for width {wanted}, the condition has {given}; {fix}")
        if z.ndim != 4 or z.shape[1] != c.channels:
            raise InputError(f"z: a latent of (B, {c.channels}, h, w) is needed, not {tuple(z.shape)}")
        if z.shape[2] % c.factor or z.shape[3] % c.factor:
            size = f"{z.shape[2]} x {z.shape[3]}"
            raise InputError(f"z: a latent of {size} is not divisible by {c.factor}; crop or pad it")
        if cond.concat is not None and cond.concat.shape[2:] != z.shape[2:]:
            raise InputError(f"concat: maps of {tuple(cond.concat.shape[2:])} do not fit z's {tuple(z.shape[2:])}")
