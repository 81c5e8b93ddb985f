"""Blocks that the UNet, the autoencoder and the conditioners share.

Feature maps are h (B, C, y, x), tokens (B, N, C), the time embedding emb (B, E). Names stay near the original's so that
its weights load by short rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def sinusoidal(clock: Tensor, width: int) -> Tensor:
    """(B,) clock -> (B, width): cosines, then sines, of clock at wavelengths from 2 pi to 2 pi 10000 (Vaswani 2017)."""
    frequency = torch.exp(-math.log(10000) * torch.arange(width // 2, device=clock.device) / (width // 2))
    angle = clock[:, None].float() * frequency
    return F.pad(torch.cat([angle.cos(), angle.sin()], 1), (0, width % 2))


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all weights zero: a residual branch that starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class GroupNorm(nn.GroupNorm):
    """PyTorch's, with its sums in another order where code is compiled for a GPU in half precision: `by_channels`."""

    def forward(self, h: Tensor) -> Tensor:
        if h.is_cuda and h.dtype in (torch.bfloat16, torch.float16) and torch.compiler.is_compiling():
            return by_channels(h, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(h)


def by_channels(h: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """GroupNorm (Wu and He 2018) of h (B, C, y, x), from means of each channel's values and squares in float32.

    A GPU's convolutions want channels side by side in memory, where a group of few lies in pieces: sums channel by
    channel read it in order, and the compiler joins them to what is around. What float32 loses between the mean of
    squares and the square of the mean is far below the rounding of a half-precision h."""
    wide = h.float()
    mean, square = (
        rearrange(t.mean((2, 3)), "b (groups c) -> b groups c", groups=groups).mean(2, keepdim=True)
        for t in (wide, wide.square())
    )
    weight, bias = (rearrange(t, "(groups c) -> groups c", groups=groups) for t in (weight, bias))
    scale = weight * ((square - mean.square()).clamp(min=0) + eps).rsqrt()
    scale, shift = (rearrange(t, "b groups c -> b (groups c) 1 1") for t in (scale, bias - mean * scale))
    return (wide * scale + shift).to(h.dtype)


def norm(width: int, eps: float) -> nn.GroupNorm:
    """32 groups as the original from 128 channels up, below it four channels to a group; fewer to divide the width."""
    return GroupNorm(math.gcd(32 if width >= 128 else max(1, width // 4), width), width, eps)


def channels_last(h: Tensor) -> Tensor:
    """h with its channels side by side in memory: a CPU's convolutions then copy less. A network of them passes it on.

    Left as it is to train in bf16, where GroupNorm's backward pass is ten times slower in this layout (torch 2.15)."""
    slower = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
    return h if h.device.type != "cpu" or slower else h.contiguous(memory_format=torch.channels_last)


class Downsample(nn.Module):
    """Half the size by a strided 3x3 convolution. The autoencoder pads right and bottom only, the UNet all around."""

    def __init__(self, width: int, one_sided: bool):
        super().__init__()
        self.pad = (0, 1, 0, 1) if one_sided else (1, 1, 1, 1)
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, h: Tensor, emb: Tensor | None = None) -> Tensor:
        return self.conv(F.pad(h, self.pad))


class Upsample(nn.Module):
    """Twice the size: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor, emb: Tensor | None = None) -> Tensor:
        return self.conv(F.interpolate(h, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """norm, SiLU, conv, (+ emb), norm, SiLU, conv, and the input added (He et al. 2016; Ho et al. 2020, appendix B).

    emb: width of the time embedding, None in the autoencoder. film: emb scales and shifts the second norm instead of
    being added before it. resample: "up" or "down" doubles or halves the size inside the block (BigGAN).
    eps: of the GroupNorms, 1e-5 in the UNet and 1e-6 in the autoencoder. zero: start as the identity."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        emb: int | None = None,
        film: bool = False,
        dropout: float = 0.0,
        eps: float = 1e-5,
        resample: Literal["up", "down"] | None = None,
        zero: bool = True,
    ):
        super().__init__()
        self.film, self.dropout, self.resample = film, dropout, resample
        self.norm1, self.conv1 = norm(c_in, eps), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(emb, c_out * (2 if film else 1)) if emb else None
        self.norm2, self.conv2 = norm(c_out, eps), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        if zero:
            zeroed(self.conv2)

    def resized(self, h: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(h, scale_factor=2, mode="nearest")
        return F.avg_pool2d(h, 2) if self.resample == "down" else h

    def forward(self, h: Tensor, emb: Tensor | None = None) -> Tensor:
        x = self.conv1(self.resized(F.silu(self.norm1(h))))
        if self.emb is None:
            x = self.norm2(x)
        elif self.film:
            scale, shift = rearrange(self.emb(F.silu(emb)), "b (two c) -> two b c 1 1", two=2)
            x = self.norm2(x) * (1 + scale) + shift
        else:
            x = self.norm2(x + rearrange(self.emb(F.silu(emb)), "b c -> b c 1 1"))
        x = self.conv2(F.dropout(F.silu(x), self.dropout, self.training))
        return self.skip(self.resized(h)) + x


class SelfAttention(nn.Module):
    """Every position of a map attends to every other, and the input is added.

    q, k and v lie head by head in one projection, the original's "legacy" order; with one head it is q, k, v."""

    def __init__(self, width: int, heads: int = 1, eps: float = 1e-5, zero: bool = True):
        super().__init__()
        self.heads = heads
        self.norm = norm(width, eps)
        self.qkv, self.proj_out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        if zero:
            zeroed(self.proj_out)

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        qkv = rearrange(self.qkv(self.norm(h)), "b c y x -> b (y x) c")  # first, for its gradient to be channels last
        qkv = rearrange(qkv, "b n (heads three d) -> three b heads n d", heads=self.heads, three=3)
        few = torch.is_grad_enabled() and h.shape[2] * h.shape[3] < 128
        if qkv.stride(-1) != 1 if h.is_cuda else h.device.type == "cpu" and not few:
            qkv = qkv.contiguous()  # for other strides it is not fused, which on a CPU is faster for few tokens in bf16
        x = F.scaled_dot_product_attention(*qkv)
        return h + self.proj_out(rearrange(x, "b heads (y x) d -> b (heads d) y x", y=h.shape[2]))


class CrossAttention(nn.Module):
    """Queries from tokens x (B, N, width), keys and values from context (B, L, context), x itself where it is None.

    heads x head_channels is the inner width; it may differ from width (Rombach et al. 2022, section 3.3). watch: where
    it is set, it is called with the weights (B, heads, N, L)."""

    watch: Callable[[Tensor], None] | None = None

    def __init__(self, width: int, context: int | None, heads: int, head_channels: int):
        super().__init__()
        self.heads, inner = heads, heads * head_channels
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context or width, inner, bias=False)
        self.to_v = nn.Linear(context or width, inner, bias=False)
        self.to_out = nn.Linear(inner, width)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        seen = x if context is None else context
        q, k, v = (
            rearrange(t, "b n (heads d) -> b heads n d", heads=self.heads)
            for t in (self.to_q(x), self.to_k(seen), self.to_v(seen))
        )
        if self.watch is not None:
            self.watch((q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(-1))
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)"))


class GEGLU(nn.Module):
    """Feed-forward with a gated GELU, four times wider inside (Shazeer 2020)."""

    def __init__(self, width: int):
        super().__init__()
        self.proj, self.out = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, on normed tokens and added: the code's order, not table 16's."""

    def __init__(self, width: int, context: int, heads: int, head_channels: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1 = CrossAttention(width, None, heads, head_channels)
        self.attn2 = CrossAttention(width, context, heads, head_channels)
        self.ff = GEGLU(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A map as tokens through `depth` transformer blocks that see the context, and the input added."""

    def __init__(self, width: int, context: int, heads: int, head_channels: int, depth: int):
        super().__init__()
        inner = heads * head_channels
        self.norm, self.proj_in = norm(width, 1e-6), nn.Conv2d(width, inner, 1)
        self.blocks = nn.ModuleList(TransformerBlock(inner, context, heads, head_channels) for _ in range(depth))
        self.proj_out = zeroed(nn.Conv2d(inner, width, 1))

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        x = rearrange(self.proj_in(self.norm(h)), "b c y x -> b (y x) c")
        for block in self.blocks:
            x = block(x, context)
        return h + self.proj_out(rearrange(x, "b (y x) c -> b c y x", y=h.shape[2]))


class EncoderBlock(nn.Module):
    """Self-attention and a feed-forward layer, on normed tokens and added. heads x head_channels need not be width."""

    def __init__(self, width: int, heads: int, head_channels: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), CrossAttention(width, None, heads, head_channels)
        self.norm2 = nn.LayerNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ff(self.norm2(x))


class TokenEncoder(nn.Module):
    """tokens (B, length) -> (B, length, width): embeddings of token and place, blocks, a norm.

    The original's encoder of captions and layouts, x-transformers' with its defaults; no token is masked. ValueError
    for sequences of another length."""

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int, head_channels: int):
        super().__init__()
        self.length = length
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        for embedding in (self.token, self.place):
            nn.init.normal_(embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(EncoderBlock(width, heads, head_channels) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    @property
    def device(self) -> torch.device:
        return self.token.weight.device

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] != self.length:
            raise ValueError(f"{tokens.shape[1]} tokens in place of {self.length}")
        x = self.embedded(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def embedded(self, tokens: Tensor) -> Tensor:
        return self.token(tokens) + self.place.weight


class SetEncoder(TokenEncoder):
    """tokens (B, length) -> (B, length / 3, width): each three are one thing, joined by a linear map before the blocks.

    Things have no place among each other: in another order they are the same."""

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int, head_channels: int):
        super().__init__(vocabulary, length, width, depth, heads, head_channels)
        del self.place
        self.join = nn.Linear(3 * width, width)

    def embedded(self, tokens: Tensor) -> Tensor:
        return self.join(rearrange(self.token(tokens), "b (things three) c -> b things (three c)", three=3))
