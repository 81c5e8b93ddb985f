"""What a first stage minimises: how far a reconstruction is from its image to the eye, and to a critic of patches.

    loss = mean |x - x'| + perceptual LPIPS(x, x') + lambda g + penalty,    g = -mean critic(x')

LPIPS (Zhang et al. 2018), the patch critic (Isola et al. 2017) and lambda, which balances their gradients (Esser et
al. 2021, eq. 7), as in Rombach et al. 2022, eq. 25. The original adds sums over an image for KL and means for VQ, which
is the same up to one factor; here all are means. Its `logvar`, a learned weight of the first two terms, never reaches
an optimiser there and stays 0: it is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autoencoder import Code
from .config import InputError, one_or_more
from .features import Features


@dataclass(frozen=True)
class LossConfig:
    """The weights of the terms. Those of 0 are not computed."""

    kl: float = 1e-6  # of the KL term, in nats per element of an image (the original's units)
    codebook: float = 1.0  # of the codebook term (vq)
    restart: int = 0  # steps after which an unused code is moved to where latents are (vq); 0 for never
    perceptual: float = 0.0
    trunk: Literal["scenes", "vgg16"] = "vgg16"  # what LPIPS sees with: scenes ships, vgg16 is downloaded
    adversarial: float = 0.0  # of the critic's term, once its gradient is balanced against the others'
    start: int = 50_001  # the first step with a critic: before, reconstructions tell it nothing
    form: Literal["hinge", "vanilla"] = "hinge"
    critic_width: int = 64
    critic_layers: int = 3
    critic_rate: float = 1.0  # its learning rate, as a share of the autoencoder's

    def __post_init__(self) -> None:
        for name in ("kl", "codebook", "restart", "perceptual", "adversarial", "start", "critic_rate"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: {getattr(self, name)} is below 0")
        for name, allowed in (("trunk", ("scenes", "vgg16")), ("form", ("hinge", "vanilla"))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: {getattr(self, name)} is not {' or '.join(allowed)}")
        one_or_more(critic_width=self.critic_width, critic_layers=self.critic_layers)


# Perceptual distance ------------------------------------------------------------------------------------------------


def unit(h: Tensor) -> Tensor:
    """Maps (B, C, h, w) with the channels at every position scaled to length 1, and nothing left as it is."""
    # vector_norm, unlike a square root, has a gradient where everything is 0
    return h / (torch.linalg.vector_norm(h, dim=1, keepdim=True) + 1e-10)


class LPIPS(nn.Module):
    """(B,) perceptual distance of images (B, 3, H, W) in [-1, 1] (Zhang et al. 2018, eq. 1).

    In each map of the trunk: the squared difference of unit vectors, weighted by channel, and its mean over positions;
    then the sum over maps. On vgg16 the weights are the published heads (v0.1). On scenes, where nobody's judgement was
    asked, all are 1 and the maps count alike: the mean of |a - b|^2, from 0 to 4."""

    def __init__(self, trunk: Features):
        super().__init__()
        self.trunk, self.heads = trunk, None
        if trunk.name == "vgg16":
            from safetensors.torch import load_file

            heads = load_file(Path(__file__).with_name("lpips_vgg16.safetensors"))
            self.heads = nn.ParameterList(heads[str(i)].view(-1, 1, 1) for i in range(5)).requires_grad_(False)

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        both = zip(self.trunk.maps(image), self.trunk.maps(other))
        distances = [(unit(a.float()) - unit(b.float())) ** 2 for a, b in both]
        if self.heads is None:
            return sum(d.sum(1).mean((1, 2)) for d in distances) / len(distances)
        return sum((w * d).sum(1).mean((1, 2)) for w, d in zip(self.heads, distances))


# The critic ---------------------------------------------------------------------------------------------------------


class PatchDiscriminator(nn.Module):
    """image (B, 3, H, W) -> logits (B, 1, h, w), each about one patch: positive for real (Isola et al. 2017).

    4x4 convolutions, the first `layers` of stride 2, with BatchNorm but in the first and the last, as the original. A
    logit of three layers sees 70 x 70 pixels, of two 34 x 34."""

    def __init__(self, width: int = 64, layers: int = 3, channels: int = 3):
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        main: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            conv = nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=False)
            main += [conv, nn.BatchNorm2d(widths[i]), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*main, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        return self.main(image)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """What the critic minimises: real logits above 1, fake ones below -1, and nothing beyond (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """Half the cross-entropy of real against fake (Goodfellow et al. 2014)."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"hinge": hinge, "vanilla": vanilla}


def balance(likeness: Tensor, g: Tensor, last_layer: Tensor, scale: float = 1.0) -> Tensor:
    """lambda = |d likeness / d L| / (|d g / d L| + 1e-4), at most 1e4, for the decoder's last layer L, detached.

    With it the critic's term moves the last layer as much as the others do together (Esser et al. 2021, eq. 7; the
    1e-4 is their code's). scale: multiplies the losses before their gradients are taken, which so survive fp16; less
    where they overflow, for a scaler tries whether a larger scale still fits."""
    of = lambda loss: torch.autograd.grad(scale * loss, last_layer, retain_graph=True)[0].float().norm() / scale
    a, b = of(likeness), of(g)
    while scale > 1 and not (a + b).isfinite():
        scale = max(scale / 16, 1.0)
        a, b = of(likeness), of(g)
    return (a / (b + 1e-4)).clamp(0, 1e4).detach()


class Objective(nn.Module):
    """The loss of an autoencoder, for both bottlenecks, with the networks it needs: a frozen trunk, a critic."""

    def __init__(self, config: LossConfig):
        super().__init__()
        self.config, self.form = config, FORMS[config.form]
        self.lpips = LPIPS(Features(config.trunk)) if config.perceptual else None
        self.critic = PatchDiscriminator(config.critic_width, config.critic_layers) if config.adversarial else None

    def forward(
        self, image: Tensor, reconstruction: Tensor, code: Code, last_layer: Tensor, step: int, scale: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The autoencoder's loss and its terms. last_layer: the weight of the decoder's last convolution."""
        c, reconstruction = self.config, reconstruction.float()
        l1 = F.l1_loss(reconstruction, image)
        terms, likeness = {"l1": l1}, l1
        if self.lpips is not None:
            terms["lpips"] = self.lpips(image, reconstruction).mean()
            likeness = likeness + c.perceptual * terms["lpips"]
        vq = code.index is not None
        # a sum over the latent for KL, in the units of a mean over the image; for VQ a mean over the latent
        terms["penalty"] = c.codebook * code.penalty.mean() if vq else c.kl * code.penalty.mean() / image[0].numel()
        loss = likeness + terms["penalty"]
        if self.judging(step):
            self.critic.requires_grad_(False)  # this loss is not its own
            terms["g"] = -self.critic(reconstruction).float().mean()
            terms["balance"] = balance(likeness, terms["g"], last_layer, scale)
            loss = loss + c.adversarial * terms["balance"] * terms["g"]
            self.critic.requires_grad_(True)
        elif self.critic is not None:  # a log has its columns from the first step on
            terms |= {"g": torch.zeros(()), "balance": torch.zeros(())}
        return loss, {"loss": loss, **terms}

    def judging(self, step: int) -> bool:
        return self.critic is not None and step >= self.config.start

    def judged(self, critic: nn.Module, image: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss and its mean logits. reconstruction: detached. critic: self.critic, or its replica."""
        real, fake = critic(image).float(), critic(reconstruction).float()
        return self.form(real, fake), {"critic": self.form(real, fake), "real": real.mean(), "fake": fake.mean()}
