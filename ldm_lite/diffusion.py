"""The forward process and what a network may be asked to predict about it.

z_t = alpha_t z_0 + sigma_t eps, t in [0, 1]; t = 0 is data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import InputError

Prediction = Literal["eps", "z0", "v", "flow"]
Kind = Literal["scaled_linear", "linear", "cosine"]


class Estimate(NamedTuple):
    """What a denoiser believes about z_t: the clean latent and the noise, both of z's shape."""

    z0: Tensor
    eps: Tensor


class Schedule(Protocol):
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]: ...
    def clock(self, t: Tensor) -> Tensor: ...
    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor: ...
    def grid(self, k: int) -> Tensor: ...


@dataclass(frozen=True)
class VariancePreserving:
    """alpha^2 + sigma^2 = 1 on the T-step chain of DDPM (Ho et al. 2020, eq. 4), made continuous.

    kind: scaled_linear is linear in sqrt(beta), the paper's (CompVis calls it "linear"); linear is linear in beta
    (DDPM, guided diffusion); cosine is Nichol and Dhariwal 2021, eq. 17 (start and end unused).
    zero_terminal: alpha is shifted and stretched so that the last step is pure noise and the first stays what it is
    (Lin et al. 2023, algorithm 1). No schedule of the original does so: of a picture's mean brightness, some is left.
    One table of log alpha_bar holds everything: entry 0 is exactly clean, entry n is step n of the chain, t = n / T,
    and between entries log alpha_bar is linear (alpha is, in a last interval that ends at -inf). Times are float64
    inside; alpha and sigma come back in float64 on t's device (float32 where the device has no float64)."""

    kind: Kind = "scaled_linear"
    start: float = 0.0015
    end: float = 0.0195
    steps: int = 1000
    zero_terminal: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("scaled_linear", "linear", "cosine"):
            raise InputError(f"kind: {self.kind} is not scaled_linear, linear or cosine")
        if not 0 < self.start <= self.end < 1 or self.steps < 1:
            raise InputError(f"start, end, steps: 0 < {self.start} <= {self.end} < 1 and {self.steps} >= 1 are needed")
        if self.zero_terminal and self.steps < 2:
            raise InputError(
                "zero_terminal: one step cannot be both the first and pure noise; 2 steps or more are needed"
            )
        object.__setattr__(self, "_table", self._log_alpha_bar())

    def _log_alpha_bar(self) -> Tensor:
        n = torch.arange(self.steps + 1, dtype=torch.float64)
        if self.kind == "cosine":
            bar = torch.cos((n / self.steps + 0.008) / 1.008 * torch.pi / 2) ** 2
            beta = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
        elif self.kind == "linear":
            beta = torch.linspace(self.start, self.end, self.steps, dtype=torch.float64)
        else:
            beta = torch.linspace(self.start**0.5, self.end**0.5, self.steps, dtype=torch.float64) ** 2
        log = torch.log1p(-beta).cumsum(0)
        if self.zero_terminal:
            alpha = torch.exp(log / 2)
            log = 2 * torch.log((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1])))
        return torch.cat([torch.zeros(1, dtype=torch.float64), log])

    def log_alpha_bar(self, t: Tensor) -> Tensor:
        """log alpha_bar at times t of any shape, float64."""
        n = t.cpu().double().clamp(0, 1) * self.steps
        below = n.floor().clamp(max=self.steps - 1).long()
        log, following = self._table[below], self._table[below + 1]
        return torch.where(following.isinf(), log + 2 * torch.log1p(below - n), torch.lerp(log, following, n - below))

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log = self.log_alpha_bar(t)
        # expm1 keeps small sigmas exact; abs turns the -0.0 of the clean end into 0.0, whose logarithm is -inf, not NaN
        alpha, sigma = torch.exp(log / 2), torch.expm1(log).abs().sqrt()
        wide = torch.float32 if t.device.type == "mps" else torch.float64
        return alpha.to(t.device, wide), sigma.to(t.device, wide)

    def clock(self, t: Tensor) -> Tensor:
        """What the network's time embedding reads: the original's step number, 0 … T - 1."""
        return self.steps * t - 1

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n training times, uniform on the T steps of the chain: 1/T … 1."""
        return torch.randint(1, self.steps + 1, (n,), generator=generator).double() / self.steps

    def grid(self, k: int) -> Tensor:
        """k + 1 sampling times from 1 down to 0, equally spaced on the chain where k divides T."""
        if not 1 <= k <= self.steps:
            raise InputError(f"steps: {k} is not between 1 and {self.steps}")
        return (torch.linspace(self.steps, 0, k + 1, dtype=torch.float64)).round() / self.steps


@dataclass(frozen=True)
class RectifiedFlow:
    """z_t = (1 - t) z_0 + t eps: a straight line from data to noise (Liu et al. 2022; Lipman et al. 2023)."""

    clock_scale: float = 1000.0  # the time embedding was designed for step numbers, not for [0, 1]

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def clock(self, t: Tensor) -> Tensor:
        return self.clock_scale * t

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Logit-normal times (Esser et al. 2024, section 3.1): most effort in the middle, none at the ends."""
        return torch.sigmoid(torch.randn(n, generator=generator, dtype=torch.float64))

    def grid(self, k: int) -> Tensor:
        if k < 1:
            raise InputError(f"steps: {k} is not 1 or more")
        return torch.linspace(1, 0, k + 1, dtype=torch.float64)


def row(predicts: Prediction, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) such that the network outputs a z_0 + b eps."""
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    rows: dict[str, tuple[Tensor, Tensor]] = {
        "eps": (zero, one),
        "z0": (one, zero),
        "v": (-sigma, alpha),  # Salimans and Ho 2022, appendix D
        "flow": (-one, one),  # dz/dt of the rectified flow
    }
    return rows[predicts]


@dataclass(frozen=True)
class Diffusion:
    """A schedule and what the network predicts about it: the second row of a 2x2 system.

        z_t    = alpha z_0 + sigma eps
        output = a     z_0 + b     eps

    One inversion serves eps, z0, v and flow under every schedule. It is singular only where the output says nothing
    about the other unknown (eps at pure noise, z0 at clean data, where `noised` says nothing new either).
    loss: l2 or l1, a mean over all but the batch (Rombach et al. 2022, eq. 2; the original uses l1 for some models).
    snr_cap: weigh a sample's loss as Hang et al. 2023 (min-SNR-gamma, eq. 8), in the units of z0; None as the paper."""

    schedule: VariancePreserving | RectifiedFlow
    predicts: Prediction = "eps"
    distance: Literal["l2", "l1"] = "l2"
    snr_cap: float | None = None

    def __post_init__(self) -> None:
        if self.predicts not in ("eps", "z0", "v", "flow"):
            raise InputError(f"predicts: {self.predicts} is not eps, z0, v or flow")
        if self.predicts == "eps" and getattr(self.schedule, "zero_terminal", False):
            raise InputError("predicts: eps says nothing about z0 in the pure noise of a zero_terminal schedule; use v")
        if self.distance not in ("l2", "l1"):
            raise InputError(f"distance: {self.distance} is not l2 or l1")

    def coefficients(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma, a, b shaped to multiply z, in its dtype. t: () or (B,)."""
        alpha, sigma = self.schedule(t)
        four = (alpha, sigma, *row(self.predicts, alpha, sigma))
        shape = (-1, *[1] * (z.ndim - 1))
        alpha, sigma, a, b = (c.to(z.device).view(shape).to(z.dtype) for c in four)
        return alpha, sigma, a, b

    def noised(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t. z0, eps: (B, …); t: (B,) or ()."""
        alpha, sigma, _, _ = self.coefficients(z0, t)
        return alpha * z0 + sigma * eps

    def target(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should output at t."""
        _, _, a, b = self.coefficients(z0, t)
        return a * z0 + b * eps

    def estimate(self, output: Tensor, z: Tensor, t: Tensor) -> Estimate:
        """z_0 and eps from the network's output at z = z_t."""
        alpha, sigma, a, b = self.coefficients(z, t)
        determinant = alpha * b - sigma * a
        z0 = (b * z - sigma * output) / determinant
        eps = (alpha * output - a * z) / determinant
        return Estimate(z0, eps)

    def loss(self, model: Callable[[Tensor, Tensor], Tensor], z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """(B,) the error of model(z_t, clock) at times t (B,)."""
        z, target = self.noised(z0, eps, t), self.target(z0, eps, t)
        output = model(z, self.schedule.clock(t).to(z.device, torch.float32))
        error = F.mse_loss if self.distance == "l2" else F.l1_loss
        return self.weight(t).to(z.device) * error(output.float(), target.float(), reduction="none").flatten(1).mean(1)

    def weight(self, t: Tensor) -> Tensor:
        """(B,) what a sample's loss counts at time t. With snr_cap g, a z0-error counts min(SNR, g)."""
        if self.snr_cap is None:
            return torch.ones(len(t))
        alpha, sigma = self.schedule(t)
        return (((alpha / sigma) ** 2).clamp(max=self.snr_cap) / self.gain(alpha, sigma) ** 2).float()

    def gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """d output / d z0 at fixed z_t: what a mistake of one in z0 is in the units of the output."""
        a, b = row(self.predicts, alpha, sigma)
        return torch.where(b == 0, a, a - b * alpha / sigma)  # z0 has a gain of 1 at clean data too

    def bound_weights(self) -> Tensor:
        """(T,) what the squared error of the output, summed over a sample, counts in each term of the bound, in nats.

        Entry n - 1 is that of step n of the chain, KL(q(z_{n-1} | z_n, z_0) || p(z_{n-1} | z_n)) where p has the
        posterior's variance: (SNR_{n-1} - SNR_n) / 2 for an error in z0 (Kingma et al. 2021, eq. 14), which for one in
        eps is beta_n^2 / (2 variance_n alpha_n (1 - alpha_bar_n)) (Ho et al. 2020, eq. 12). The first term has no
        posterior, it is -log p(z_0 | z_1) with variance beta_1. The objective of both papers (eq. 14 there, eq. 2 of
        Rombach et al. 2022) drops these weights: most of the bound is in details at little noise, which nobody sees."""
        if not isinstance(self.schedule, VariancePreserving):
            raise InputError(
                f"bound_weights: {type(self.schedule).__name__} has no chain of steps and no terms to weigh"
            )
        n = torch.arange(1, self.schedule.steps + 1, dtype=torch.float64)
        alpha, sigma = self.schedule(n / self.schedule.steps)
        snr = (alpha / sigma) ** 2
        before = torch.cat([snr[:1] + 1 / sigma[:1] ** 2, snr[:-1]])
        return (before - snr) / 2 / self.gain(alpha, sigma) ** 2
