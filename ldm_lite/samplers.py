"""From noise to data: every sampler integrates dz = z0 dalpha + eps dsigma along a grid of times.

A sampler is a generator, sampler(predict, z, times, schedule, **own) -> Iterator[Step]; all it knows of the model is
predict(z, t) -> Estimate(z0, eps). Guidance, inpainting and clipping are wrappers around predict."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .condition import Condition
from .diffusion import Diffusion, Estimate, Schedule

Predict = Callable[[Tensor, Tensor], Estimate]
Noise = Callable[[Tensor], Tensor]


class Step(NamedTuple):
    """Where the sampler stands after a step: z at time t, and the clean latent z0 it was aiming at."""

    z: Tensor
    z0: Tensor
    t: Tensor


def last(steps: Iterator[Step]) -> Tensor:
    """The final latent, for who only wants the picture."""
    return deque(steps, maxlen=1).pop().z


def predictor(
    model: Callable[[Tensor, Tensor, Condition], Tensor],
    diffusion: Diffusion,
    cond: Condition,
    null: Condition | None = None,
    guidance: float = 1.0,
) -> Predict:
    """predict(z, t) for a denoiser under a condition, with classifier-free guidance (Ho and Salimans 2022, eq. 6).

    output = null + guidance (cond - null): 1 is the plain conditional model, 0 the unconditional one. Guiding
    the output guides eps and z0 alike, because both are linear in it."""
    if guidance != 1 and null is None:
        raise ValueError(f"guidance {guidance} needs the null condition")

    def predict(z: Tensor, t: Tensor) -> Estimate:
        clock = diffusion.schedule.clock(t).to(z.device, torch.float32).expand(len(z))
        if guidance == 1:
            output = model(z, clock, cond)
        else:
            both = model(torch.cat([z, z]), torch.cat([clock, clock]), Condition.stack([null, cond]))
            without, told = both.float().chunk(2)
            output = without + guidance * (told - without)
        return diffusion.estimate(output.to(z.dtype), z, t)

    return predict


def keep_known(predict: Predict, known: Tensor, keep: Tensor, schedule: Schedule) -> Predict:
    """Inpainting by replacement: where keep is 1 the clean estimate is the known latent, elsewhere the model's.

    known: (B, C, h, w) clean; keep: broadcastable, 1 = keep, 0 = fill. eps follows from z_t = alpha z0 + sigma eps, so
    any sampler brings the kept part to exactly `known` at t = 0."""

    def wrapped(z: Tensor, t: Tensor) -> Estimate:
        free = predict(z, t)
        alpha, sigma = (c.to(z.device, z.dtype) for c in schedule(t))
        z0 = keep * known + (1 - keep) * free.z0
        return Estimate(z0, torch.where(keep.bool(), (z - alpha * z0) / sigma, free.eps))

    return wrapped


def ddim(
    predict: Predict,
    z: Tensor,
    times: Tensor,
    schedule: Schedule,
    eta: float = 0.0,
    noise: Noise = torch.randn_like,
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, eq. 12 and 16); eta = 1 is ancestral DDPM, eta = 0 the Euler step of the ODE.

    times: decreasing, from 1 to 0. noise(z): fresh noise of z's shape, asked for only when eta > 0. The last step of
    the original stops at the chain's first step and keeps a little noise; ours ends at t = 0, clean."""
    for t, s in pairwise(times):
        z0, eps = predict(z, t)
        alpha, sigma = schedule(t)
        alpha_s, sigma_s = schedule(s)
        fresh = eta * sigma_s * (1 - (alpha * sigma_s / (alpha_s * sigma)) ** 2).clamp(min=0).sqrt()
        kept = (sigma_s**2 - fresh**2).clamp(min=0).sqrt()
        z = float(alpha_s) * z0 + float(kept) * eps
        if fresh > 0:
            z = z + float(fresh) * noise(z)
        yield Step(z, z0, s)
