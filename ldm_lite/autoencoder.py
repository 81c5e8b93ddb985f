"""First stages: encode(image) -> z of about unit variance, f times smaller on a side, and decode(z) -> image.

The original architecture (Rombach et al. 2022, appendix G.1; Esser et al. 2021), with two bottlenecks: kl draws z from
a Gaussian per position that a slight KL term keeps near N(0, 1); vq snaps it to a codebook. Pixels is f = 1."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import InputError
from .layers import Downsample, ResBlock, SelfAttention, Upsample, channels_last, norm

EPS = 1e-6  # of the GroupNorms here; 1e-5 in the UNet


@dataclass(frozen=True)
class AutoencoderConfig:
    """f = 2 ** (len(mult) - 1)."""

    channels: int = 3  # of z
    width: int = 128  # at full size; level i has mult[i] times as many
    mult: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2  # residual blocks per level, one more in the decoder
    attend_at: tuple[int, ...] = ()  # downsampling factors with attention
    mid_attention: bool = True
    bottleneck: Literal["kl", "vq"] = "kl"
    codes: int = 8192  # size of the codebook (vq)
    image_channels: int = 3

    def __post_init__(self) -> None:
        factors = [2**i for i in range(len(self.mult))]
        for f in self.attend_at:
            if f not in factors:
                raise InputError(f"attend_at: {f} is not a downsampling factor of {len(self.mult)} levels ({factors})")
        if self.bottleneck not in ("kl", "vq"):
            raise InputError(f"bottleneck: {self.bottleneck} is not kl or vq")


class Code(NamedTuple):
    """What a bottleneck makes of an image.

    z (B, C, h, w): what the decoder reads, a sample (kl) or the snapped latent (vq)
    mean (B, C, h, w): what diffusion learns, the posterior's mean (kl) or the latent before snapping (vq)
    penalty (B,): KL to N(0, 1) in nats per image (kl), or codebook plus commitment loss per element (vq)
    index (B, h, w): the chosen codes (vq), else None"""

    z: Tensor
    mean: Tensor
    penalty: Tensor
    index: Tensor | None = None


class Gaussian(nn.Module):
    """h (B, 2C, h, w) is mean and log variance of a diagonal Gaussian, clamped to [-30, 20] as the original."""

    @staticmethod
    def moments(h: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log variance), each (B, C, h, w)."""
        mean, logvar = h.float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def forward(self, h: Tensor, sample: bool = True) -> Code:
        mean, logvar = self.moments(h)
        z = mean + torch.exp(logvar / 2) * torch.randn_like(mean) if sample else mean
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)
        return Code(z, mean, kl)


class Codebook(nn.Module):
    """Snaps each position to the nearest of `codes` vectors; the gradient passes straight through (Oord et al. 2017).

    penalty = commitment + 0.25 codebook: the weights every published model was trained with (CompVis's "legacy" beta
    sits on the codebook term), kept so that losses compare."""

    def __init__(self, codes: int, channels: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, h: Tensor, sample: bool = True) -> Code:
        h = h.float()
        flat, codes = rearrange(h, "b c y x -> (b y x) c"), self.embedding.weight.float()
        kind = h.device.type  # in bf16 a third of all places would get another code than the nearest
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            index = ((codes**2).sum(1) - 2 * flat @ codes.T).argmin(1)
        snapped = rearrange(F.embedding(index, codes), "(b y x) c -> b c y x", y=h.shape[2], x=h.shape[3])
        commitment = ((snapped.detach() - h) ** 2).flatten(1).mean(1)
        codebook = ((snapped - h.detach()) ** 2).flatten(1).mean(1)
        index = rearrange(index, "(b y x) -> b y x", y=h.shape[2], x=h.shape[3])
        return Code(h + (snapped - h).detach(), h, commitment + 0.25 * codebook, index)

    def embed(self, index: Tensor) -> Tensor:
        """index (B, h, w) -> the snapped latent (B, C, h, w), unscaled. InputError for an index that is no code's."""
        codes = len(self.embedding.weight)
        if index.is_floating_point() or (index.numel() and not 0 <= int(index.min()) <= int(index.max()) < codes):
            raise InputError(f"index: from {index.min()} to {index.max()}; integers from 0 to {codes - 1} are needed")
        return rearrange(self.embedding(index), "b y x c -> b c y x")

    @torch.no_grad()
    def restart(self, dead: Tensor, latents: Tensor) -> None:
        """Moves the dead codes (K,) to latents (B, C, h, w) drawn at random, the same on every rank."""
        flat = rearrange(latents, "b c y x -> (b y x) c")
        drawn = flat[torch.randint(len(flat), (len(dead),)).to(flat.device)].to(self.embedding.weight.dtype)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(drawn, 0)
        self.embedding.weight[dead] = drawn


class Usage(NamedTuple):
    """How a codebook is used: the share of its codes that appear, and the perplexity, as if so many were equally often.

    With a perplexity p, an index holds log2 p bits."""

    share: float
    perplexity: float


def usage(index: Tensor, codes: int) -> Usage:
    """Usage of a codebook of so many codes in indices of any shape."""
    p = torch.bincount(index.flatten(), minlength=codes).double() / index.numel()
    return Usage(float((p > 0).double().mean()), float(torch.special.entr(p).sum().exp()))


def _res(c_in: int, c_out: int) -> ResBlock:
    return ResBlock(c_in, c_out, eps=EPS, zero=False)


def _attention(width: int) -> SelfAttention:
    return SelfAttention(width, eps=EPS, zero=False)


class Level(nn.Module):
    """Residual blocks, each followed by attention where the level has it, then a change of size."""

    def __init__(self, c_in: int, c_out: int, blocks: int, attend: bool, resample: nn.Module | None):
        super().__init__()
        self.block = nn.ModuleList(_res(c_in if i == 0 else c_out, c_out) for i in range(blocks))
        self.attn = nn.ModuleList(_attention(c_out) for _ in range(blocks if attend else 0))
        self.resample = resample

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h = block(h)
            if len(self.attn):
                h = self.attn[i](h)
        return h if self.resample is None else self.resample(h)


class Middle(nn.Sequential):
    def __init__(self, width: int, attend: bool):
        super().__init__(_res(width, width), _attention(width) if attend else nn.Identity(), _res(width, width))


class Encoder(nn.Module):
    """image (B, 3, H, W) -> (B, c_out, H/f, W/f)."""

    def __init__(self, c: AutoencoderConfig, c_out: int):
        super().__init__()
        widths = [c.width * m for m in c.mult]
        self.conv_in, h = nn.Conv2d(c.image_channels, c.width, 3, padding=1), c.width
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            smaller = Downsample(width, one_sided=True) if i < len(widths) - 1 else None
            self.down.append(Level(h, width, c.blocks, 2**i in c.attend_at, smaller))
            h = width
        self.mid = Middle(h, c.mid_attention)
        self.norm_out, self.conv_out = norm(h, EPS), nn.Conv2d(h, c_out, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        h = self.conv_in(channels_last(image))
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h)))).contiguous()


class Decoder(nn.Module):
    """(B, C, h, w) -> image (B, 3, f h, f w). `up` runs from the smallest size to the largest."""

    def __init__(self, c: AutoencoderConfig):
        super().__init__()
        widths = [c.width * m for m in c.mult]
        h = widths[-1]
        self.conv_in, self.mid = nn.Conv2d(c.channels, h, 3, padding=1), Middle(h, c.mid_attention)
        self.up = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            self.up.append(Level(h, width, c.blocks + 1, 2**i in c.attend_at, Upsample(width) if i else None))
            h = width
        self.norm_out, self.conv_out = norm(h, EPS), nn.Conv2d(h, c.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(channels_last(z)))
        for level in self.up:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h))).contiguous()


def checked(image: Tensor, f: int, channels: int = 3) -> Tensor:
    """The image, if a first stage can take it. InputError for a wrong size, number of channels or range."""
    if image.ndim != 4 or image.shape[1] != channels:
        raise InputError(f"image: shape {tuple(image.shape)}; (B, {channels}, H, W) is needed")
    if image.shape[2] % f or image.shape[3] % f:
        raise InputError(f"image: {image.shape[2]} x {image.shape[3]} is not divisible by f = {f}; resize or crop it")
    low, high = float(image.amin()), float(image.amax())
    if not -1.001 <= low <= high <= 1.001:
        raise InputError(f"image: values from {low:.3g} to {high:.3g}; [-1, 1] is needed")
    if low >= 0 and len(image) > 1:  # no dark pixel in several pictures: allowed, but hardly meant
        warnings.warn(f"image: values from {low:.3g} to {high:.3g}; if these are in [0, 1], give 2 x - 1", stacklevel=3)
    return image


class Autoencoder(nn.Module):
    """One class, two bottlenecks. `scale` brings the latents it was measured on to unit variance; it is saved."""

    scale: Tensor

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config, c = config, config
        self.f, self.channels = 2 ** (len(c.mult) - 1), c.channels
        wide = c.channels * (2 if c.bottleneck == "kl" else 1)
        self.encoder, self.decoder = Encoder(c, wide), Decoder(c)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(wide, wide, 1), nn.Conv2d(c.channels, c.channels, 1)
        self.bottleneck = Gaussian() if c.bottleneck == "kl" else Codebook(c.codes, c.channels)
        self.register_buffer("scale", torch.ones(()))

    def code(self, image: Tensor, sample: bool = True) -> Code:
        """The bottleneck's view of image (B, 3, H, W), not scaled."""
        return self.bottleneck(self.quant_conv(self.encoder(image)), sample)

    def picture(self, z: Tensor) -> Tensor:
        """The image of an unscaled, already snapped z."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, image: Tensor, sample: bool = True) -> tuple[Tensor, Code]:
        """Training's one pass: the reconstruction and the code. No range or size is checked."""
        code = self.code(image, sample)
        return self.picture(code.z), code

    def encode(self, image: Tensor, sample: bool = False) -> Tensor:
        """image (B, 3, H, W) in [-1, 1] -> z (B, C, H/f, W/f), the posterior's mean (kl) or a sample of it.

        VQ gives the latent before snapping, which is what the paper's models diffuse. InputError for other images."""
        code = self.code(checked(image, self.f, self.config.image_channels), sample)
        return (code.z if sample and self.config.bottleneck == "kl" else code.mean) * self.scale

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """(mean, standard deviation) of z, each (B, C, H/f, W/f) in the latent's scale; of VQ there is no deviation."""
        h = self.quant_conv(self.encoder(checked(image, self.f, self.config.image_channels)))
        if self.config.bottleneck == "vq":
            return h.float() * self.scale, None
        mean, logvar = self.bottleneck.moments(h)
        return mean * self.scale, (logvar / 2).exp() * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """z (B, C, h, w) -> image (B, 3, f h, f w) in about [-1, 1], not clipped. VQ snaps z first."""
        z = z / self.scale
        return self.picture(self.bottleneck(z, False).z if self.config.bottleneck == "vq" else z)

    @torch.no_grad()
    def measure_scale(self, images: Iterable[Tensor]) -> float:
        """Sets scale to 1 / standard deviation of all elements of the latents of `images`, over all ranks; returns it.

        Batches (B, 3, H, W) in [-1, 1] on the model's device (Rombach et al. 2022, appendix G)."""
        self.scale.fill_(1)
        total = torch.zeros(3, dtype=torch.float64)
        for image in images:
            z = self.encode(image, sample=True).cpu().double()
            total += torch.stack([torch.tensor(float(z.numel()), dtype=torch.float64), z.sum(), (z**2).sum()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shared = total.to(self.scale.device)
            torch.distributed.all_reduce(shared)
            total = shared.cpu()
        n, first, second = total.tolist()
        if n == 0:
            raise InputError("no images to measure the latent scale on")
        self.scale.fill_((second / n - (first / n) ** 2) ** -0.5)
        return float(self.scale)


@dataclass(frozen=True)
class PixelsConfig:
    channels: int = 3


class Pixels(nn.Module):
    """The first stage of f = 1: the image is the latent. It also serves latents that were cached beforehand."""

    f = 1

    def __init__(self, config: PixelsConfig = PixelsConfig()):
        super().__init__()
        self.config, self.channels = config, config.channels

    def encode(self, image: Tensor, sample: bool = False) -> Tensor:
        return image

    def decode(self, z: Tensor) -> Tensor:
        return z
