"""From noise to data: every sampler integrates dz = z0 dalpha + eps dsigma along a grid of times.

A sampler is a generator, sampler(predict, z, times, schedule, **own) -> Iterator[Step]; all it knows of the model is
predict(z, t) -> Estimate(z0, eps). Guidance, inpainting and clipping are wrappers around predict. During a step ddim
takes both estimates for constant, heun and plms a better mean of eps, dpm_solver a better one of z0."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .condition import Condition
from .config import InputError, suggest
from .diffusion import Diffusion, Estimate, Schedule

Predict = Callable[[Tensor, Tensor], Estimate]
Noise = Callable[[Tensor], Tensor]


class Step(NamedTuple):
    """Where the sampler stands after a step: z at time t, and the clean latent z0 it was aiming at."""

    z: Tensor
    z0: Tensor
    t: Tensor


class Start(NamedTuple):
    """Where a sampler may begin: z at the first of the times."""

    z: Tensor
    times: Tensor


class Place(NamedTuple):
    """A time of the grid and its alpha and sigma, as plain numbers: a step multiplies tensors by them as they are."""

    t: Tensor
    alpha: float
    sigma: float


def last(steps: Iterator[Step]) -> Tensor:
    """The final latent, for who only wants the picture."""
    return deque(steps, maxlen=1).pop().z


def legs(times: Tensor, schedule: Schedule) -> Iterator[tuple[Place, Place]]:
    """From each time of the grid to the next. The schedule is asked once, for all."""
    alpha, sigma = (c.tolist() for c in schedule(times))
    return pairwise(map(Place, times, alpha, sigma))


# Predict ------------------------------------------------------------------------------------------------------------


def predictor(
    model: Callable[[Tensor, Tensor, Condition], Tensor],
    diffusion: Diffusion,
    cond: Condition,
    null: Condition | Sequence[Condition] | None = None,
    guidance: float | Sequence[float] = 1.0,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Predict:
    """predict(z, t) for a denoiser under a condition, with classifier-free guidance (Ho and Salimans 2022, eq. 6).

    output = null + guidance (cond - null): 1 is the plain conditional model, 0 the unconditional one. Guiding
    the output guides eps and z0 alike, because both are linear in it.
    Several scales: null has as many conditions, each told more than the one before, and cond is told all; then
    output = null_1 + guidance_1 (null_2 - null_1) + … + guidance_n (cond - null_n) (Brooks et al. 2023, eq. 3).
    rescale: how much of the deviation that guidance adds to each sample is taken back, 0 … 1 (Lin et al. 2023,
    section 3.4). interval: the times at which guidance acts, ends included (Kynkaanniemi et al. 2024, who give noise
    levels); outside, the network is asked for the conditional half alone.
    InputError for guidance without a null condition, and for numbers out of range."""
    scales = [float(guidance)] if isinstance(guidance, (int, float)) else [float(scale) for scale in guidance]
    nulls = [null] if isinstance(null, Condition) else list(null or ())
    plain = all(scale == 1 for scale in scales)
    if not plain and not nulls:
        raise InputError(f"guidance {guidance} needs the null condition; 1 does without")
    if not plain and len(scales) != len(nulls):
        raise InputError(f"guidance: {len(scales)} scales, and {len(nulls)} conditions that can be left out")
    if not 0 <= rescale <= 1:
        raise InputError(f"rescale: {rescale} is not between 0 and 1")
    early, late = interval
    if not 0 <= early <= late <= 1:
        raise InputError(f"interval: {early} {late} are not two times, the smaller one first, between 0 and 1")

    def predict(z: Tensor, t: Tensor) -> Estimate:
        clock = diffusion.schedule.clock(t).to(z.device, torch.float32).expand(len(z))
        if plain or not early <= float(t) <= late:
            output = model(z, clock, cond)
        else:
            n = len(nulls) + 1
            outputs = model(torch.cat([z] * n), clock.repeat(n), Condition.stack([*nulls, cond])).float().chunk(n)
            output, told = outputs[0], outputs[-1]
            for scale, less, more in zip(scales, outputs, outputs[1:]):
                output = output + scale * (more - less)
            if rescale:
                less = deviation(told) / deviation(output).clamp(min=1e-12)  # a new network's output is 0
                output = output * (1 - rescale + rescale * less)
        return diffusion.estimate(output.to(z.dtype), z, t)

    return predict


def deviation(x: Tensor) -> Tensor:
    """(B, 1, …) the standard deviation of each sample over all its numbers."""
    return x.std(dim=tuple(range(1, x.ndim)), keepdim=True)


def keep_known(predict: Predict, known: Tensor, keep: Tensor, schedule: Schedule) -> Predict:
    """Inpainting by replacement: where keep is 1 the clean estimate is the known latent, elsewhere the model's.

    known: (B, C, h, w) clean; keep: broadcastable, 1 = keep, 0 = fill. eps follows from z_t = alpha z0 + sigma eps, so
    any sampler brings the kept part to `known` at t = 0."""

    def wrapped(z: Tensor, t: Tensor) -> Estimate:
        free = predict(z, t)
        alpha, sigma = map(float, schedule(t))
        z0 = keep * known + (1 - keep) * free.z0
        return Estimate(z0, torch.where(keep.bool(), (z - alpha * z0) / sigma, free.eps))

    return wrapped


def clipped(predict: Predict, schedule: Schedule, limit: float = 1.0) -> Predict:
    """Clean estimates within -limit … limit, as pixel models have it, and the eps that goes with them.

    Latents have no such limit: the original clips none of its latent models."""

    def wrapped(z: Tensor, t: Tensor) -> Estimate:
        alpha, sigma = map(float, schedule(t))
        z0 = predict(z, t).z0.clamp(-limit, limit)
        return Estimate(z0, (z - alpha * z0) / sigma)

    return wrapped


# Samplers -----------------------------------------------------------------------------------------------------------


def ddim(
    predict: Predict,
    z: Tensor,
    times: Tensor,
    schedule: Schedule,
    eta: float = 0.0,
    noise: Noise = torch.randn_like,
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, eq. 12 and 16); eta = 1 is ancestral DDPM, eta = 0 the Euler step of the ODE.

    On a rectified flow the Euler step is the usual one, z + (s - t) dz/dt.
    times: decreasing, from 1 to 0. noise(z): fresh noise of z's shape, asked for only when eta > 0. The original stops
    at the chain's first step and keeps a little noise (`original` below); our grids end at t = 0, clean."""
    for (t, alpha, sigma), (s, alpha_s, sigma_s) in legs(times, schedule):
        z0, eps = predict(z, t)
        # of the noise at s, what is drawn anew; rounding must not make its square negative
        fresh = eta * sigma_s * math.sqrt(max(0.0, 1 - (alpha * sigma_s / (alpha_s * sigma)) ** 2))
        z = alpha_s * z0 + math.sqrt(max(0.0, sigma_s**2 - fresh**2)) * eps
        if fresh > 0:
            z = z + fresh * noise(z)
        yield Step(z, z0, s)


def heun(predict: Predict, z: Tensor, times: Tensor, schedule: Schedule) -> Iterator[Step]:
    """Heun's method (Karras et al. 2022, algorithm 1), order 2: eps is the mean of both ends of the step.

    In z / alpha against sigma / alpha the ODE reads d(z / alpha) = eps d(sigma / alpha). Two evaluations a step. The
    step to t = 0, where not every prediction has a meaning, is Euler's, and so is one from all but pure noise.
    On a chain sigma falls to 0 as sqrt(t): there this last step of a uniform grid costs an error of first order, and
    the grids that are finer towards the data do not."""
    for (t, alpha, sigma), (s, alpha_s, sigma_s) in legs(times, schedule):
        z0, eps = predict(z, t)
        if heard(alpha, alpha_s) and sigma_s > 0:
            eps = (eps + predict(alpha_s * z0 + sigma_s * eps, s).eps) / 2
            z0 = (z - sigma * eps) / alpha
        z = alpha_s * z0 + sigma_s * eps
        yield Step(z, z0, s)


def heard(alpha: float, alpha_s: float) -> bool:
    """Whether z holds enough signal for a mean of eps to say what z0 is; where not, the step is Euler's.

    A step multiplies what is wrong with eps by alpha_s / alpha. Where sigma / alpha falls from thousands to tens, as at
    the noisy end of the cosine schedule, a mean of both ends is worse than either, and the first step spoils all."""
    return alpha > 0.1 * alpha_s


def dpm_solver(predict: Predict, z: Tensor, times: Tensor, schedule: Schedule) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), order 2 with one evaluation a step.

    In z / sigma against alpha / sigma the ODE reads d(z / sigma) = z0 d(alpha / sigma), and z0 is drawn on from this
    step and the one before, linearly in lambda = log(alpha / sigma), to the middle of the step. The first step is
    DDIM's, and so is the last where lambda ends at infinity or of fewer than 15 (diffusers' lower_order_final)."""
    before: tuple[Tensor, float] | None = None
    for i, ((t, alpha, sigma), (s, alpha_s, sigma_s)) in enumerate(legs(times, schedule), start=1):
        z0, _ = predict(z, t)
        aim, here = z0, log_ratio(alpha, sigma)
        short = sigma_s == 0 or i == len(times) - 1 < 15
        if before is not None and not short:
            previous, there = before
            aim = z0 + (log_ratio(alpha_s, sigma_s) - here) / (2 * (here - there)) * (z0 - previous)
        z = sigma_s / sigma * z + (alpha_s - alpha * sigma_s / sigma) * aim
        before = z0, here
        yield Step(z, aim, s)


def log_ratio(alpha: float, sigma: float) -> float:
    """log(alpha / sigma), half the logarithm of the SNR; infinite at both ends."""
    if alpha == 0 or sigma == 0:
        return -math.inf if alpha == 0 else math.inf
    return math.log(alpha / sigma)


# Adams-Bashforth: the mean of eps over the coming step, from eps now and before
ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(predict: Predict, z: Tensor, times: Tensor, schedule: Schedule) -> Iterator[Step]:
    """PLMS, the linear multistep part of PNDM (Liu et al. 2022, section 3), as in the original.

    eps over a step is drawn on from up to four steps by Adams-Bashforth; the first step is a pseudo improved Euler
    step, with a second evaluation. The coefficients suppose equal steps: in time as the uniform and the original's grid
    have them, or in the root of time as the quadratic one, where notebook 08 finds it nearer the converged latents."""
    held: deque[Tensor] = deque(maxlen=len(ADAMS))
    for (t, alpha, sigma), (s, alpha_s, sigma_s) in legs(times, schedule):
        z0, eps = predict(z, t)
        held.appendleft(eps)
        if heard(alpha, alpha_s):
            if len(held) > 1:
                eps = sum(c * e for c, e in zip(ADAMS[len(held) - 1], held, strict=True))
            elif sigma_s > 0:
                eps = (eps + predict(alpha_s * z0 + sigma_s * eps, s).eps) / 2
            z0 = (z - sigma * eps) / alpha
        z = alpha_s * z0 + sigma_s * eps
        yield Step(z, z0, s)


# From a picture -----------------------------------------------------------------------------------------------------


def encode(predict: Predict, z: Tensor, times: Tensor, schedule: Schedule, iterations: int = 1) -> Iterator[Step]:
    """DDIM inversion: from the clean latent z to the noise that `ddim` makes it of (Song et al. 2021, section 4.3).

    times: the sampler's grid, run backwards. The inverse of a step asks for the estimate at its noisy end, which is not
    known yet: the clean end stands in for it. More iterations put each answer in again and converge to the exact
    inverse (Pan et al. 2023)."""
    for (_, alpha, sigma), (s, alpha_s, sigma_s) in legs(times.flip(0), schedule):
        here = z
        for _ in range(iterations):
            z0, eps = predict(z, s)
            if alpha_s > 0:
                z0 = (here - sigma * eps) / alpha
            elif sigma > 0:  # at pure noise eps is z itself, and z0 the one that says something
                eps = (here - alpha * z0) / sigma
            z = alpha_s * z0 + sigma_s * eps
        yield Step(z, z0, s)


def partly_noised(z0: Tensor, eps: Tensor, times: Tensor, strength: float, schedule: Schedule) -> Start:
    """Image to image (Meng et al. 2022, SDEdit): z0 noised to where the last `strength` of the grid begins.

    strength: the share of the steps that are run, in (0, 1]; 1 keeps next to nothing of z0. InputError outside."""
    if not 0 < strength <= 1:
        raise InputError(f"strength: {strength} is not above 0 and at most 1")
    steps = len(times) - 1
    times = times[steps - max(1, round(strength * steps)) :]
    alpha, sigma = map(float, schedule(times[0]))
    return Start(alpha * z0 + sigma * eps, times)


# Grids --------------------------------------------------------------------------------------------------------------


def first(schedule: Schedule) -> float:
    """The time at which the network's clock reads 0: it was not trained before. A chain's first step; 0 in a flow."""
    zero, one = schedule.clock(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    return -zero / (one - zero)


def uniform(schedule: Schedule, steps: int) -> Tensor:
    """Equally spaced, on the steps of the chain."""
    return schedule.grid(steps)


def quadratic(schedule: Schedule, steps: int) -> Tensor:
    """Equally spaced in the square root of time, finer towards the data (Song et al. 2021, appendix D)."""
    begin = first(schedule)
    times = begin + (1 - begin) * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2
    times[-1] = 0
    return times


def karras(schedule: Schedule, steps: int, rho: float = 7.0, least: float = 0.002, most: float = 80.0) -> Tensor:
    """Equally spaced in (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5), then the step to 0.

    From the ratio at t = 1 to that where the network's clock reads 0. A schedule without a finite ratio at one of its
    ends has the paper's `least` or `most` there, and begins at t = 1 all the same."""
    alpha, sigma = schedule(torch.tensor([first(schedule), 1.0], dtype=torch.float64))
    low, high = (sigma / alpha).tolist()
    low, high = low if low > 0 else least, high if high < math.inf else most
    times = times_of(torch.linspace(high ** (1 / rho), low ** (1 / rho), steps, dtype=torch.float64) ** rho, schedule)
    times[0] = 1
    return torch.cat([times, times.new_zeros(1)])


def original(schedule: Schedule, steps: int) -> Tensor:
    """That of the original, for parity: its step numbers are range(0, T, T // steps) + 1.

    It begins below t = 1 and ends at the chain's first step, so that a little noise stays (deviation 0.04). Where
    `steps` does not divide T there are more (400 of 1000 are 500). Where the original runs over the end of its table
    (599 of the 1000 possible numbers) the last step of the table is taken."""
    if not hasattr(schedule, "steps"):
        raise InputError("grid: original is a grid on the steps of a chain; take uniform, quadratic or karras")
    numbers = (torch.arange(0, schedule.steps, schedule.steps // steps) + 1).clamp(max=schedule.steps - 1).unique()
    # its step number n is our time (n + 1) / T
    return torch.cat([numbers.flip(0) + 1, torch.ones(1)]).double() / schedule.steps


GRIDS: dict[str, Callable[[Schedule, int], Tensor]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "karras": karras,
    "original": original,
}


def grid(name: str, schedule: Schedule, steps: int) -> Tensor:
    """The times of a grid by its name, decreasing, float64. InputError for an unknown one and steps that cannot be."""
    if name not in GRIDS:
        raise suggest(name, GRIDS, "grid")
    schedule.grid(steps)  # refuses a number of steps
    return GRIDS[name](schedule, steps)


def falling(times: Tensor) -> Tensor:
    """The times of somebody's own grid, as float64 on the CPU. InputError for what no sampler can follow."""
    times = times.detach().cpu().double()
    if times.ndim != 1 or len(times) < 2:
        raise InputError(f"grid: two times or more in a row are needed, not the shape {tuple(times.shape)}")
    if not (times.diff() < 0).all() or not times[0] <= 1:
        raise InputError("grid: the times do not decrease from 1 or less, each below the one before")
    if times[-1] != 0:
        raise InputError(f"grid: the last time is {float(times[-1]):g}; it must be 0, where the data is")
    return times


def times_of(ratio: Tensor, schedule: Schedule) -> Tensor:
    """The times at which sigma / alpha is this, found by halving [0, 1]: any schedule will do."""
    low, high = torch.zeros_like(ratio), torch.ones_like(ratio)
    for _ in range(60):
        middle = (low + high) / 2
        alpha, sigma = schedule(middle)
        noisy = sigma > ratio * alpha
        low, high = torch.where(noisy, low, middle), torch.where(noisy, middle, high)
    return (low + high) / 2
