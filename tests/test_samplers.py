"""Samplers on a denoiser that is known exactly, and step by step against diffusers."""

import math

import pytest
import torch

from ldm_lite.condition import Condition
from ldm_lite.config import InputError
from ldm_lite.diffusion import Diffusion, Estimate, RectifiedFlow, VariancePreserving
from ldm_lite.samplers import (
    GRIDS,
    Step,
    clipped,
    ddim,
    dpm_solver,
    encode,
    falling,
    grid,
    heun,
    keep_known,
    last,
    partly_noised,
    plms,
    predictor,
    times_of,
)

PAPER, FLOW = VariancePreserving(), RectifiedFlow()
SCHEDULES = pytest.mark.parametrize("schedule", [PAPER, VariancePreserving("cosine"), FLOW], ids=str)
PREDICTS = pytest.mark.parametrize("predicts", ["eps", "z0", "v", "flow"])


def z(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def exact(schedule, mean: float, std: float):
    """predict for data from N(mean, std^2), by Bayes' rule."""

    def predict(z, t):
        alpha, sigma = (float(c) for c in schedule(t))
        z0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (z - alpha * mean)
        return Estimate(z0, (z - alpha * z0) / sigma)

    return predict


def network(z, clock, cond):
    """Some smooth function of all that a denoiser is told; float32, like a real one."""
    told = 0 if cond.vector is None else cond.vector[:, :1, None, None]
    return (torch.sin(3 * z + told) + clock.view(-1, 1, 1, 1) / 1000).float()


# A known answer -----------------------------------------------------------------------------------------------------


@SCHEDULES
def test_ddim_carries_noise_to_the_data_with_an_error_of_first_order(schedule):
    mean, std, noise = 1.7, 0.4, z(500)
    alpha, sigma = (float(c) for c in schedule(torch.tensor(1.0, dtype=torch.float64)))
    target = mean + std * (noise - alpha * mean) / math.hypot(alpha * std, sigma)

    def error(steps):
        result = last(ddim(exact(schedule, mean, std), noise, schedule.grid(steps), schedule))
        return float((result - target).abs().max())

    coarse, fine = error(500), error(1000)
    assert fine < 0.02
    assert coarse / fine == pytest.approx(2, abs=0.25)


@SCHEDULES
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_samples_have_the_mean_and_the_deviation_of_the_data(schedule, eta):
    result = last(ddim(exact(schedule, 1.7, 0.4), z(4000), schedule.grid(400), schedule, eta))
    assert float(result.mean()) == pytest.approx(1.7, abs=0.03)
    assert float(result.std()) == pytest.approx(0.4, abs=0.02)


def test_on_a_straight_path_one_step_of_a_flow_is_enough():
    """Data in one point: the flow does not bend."""
    noise = z(3, 2, 5)
    (step,) = ddim(exact(FLOW, 1.7, 0.0), noise, FLOW.grid(1), FLOW)
    torch.testing.assert_close(step.z, torch.full_like(noise, 1.7))


# A mixture of three Gaussians in the plane: its score is known, and its paths by a solution that is very fine
MEANS = torch.tensor([[1.0, 0.5], [-1.0, -0.2], [0.3, -1.1]], dtype=torch.float64)
SHARES, STD = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), 0.4


def believed(z, alpha: float, sigma: float) -> Estimate:
    variance = (alpha * STD) ** 2 + sigma**2
    away = z[:, None] - alpha * MEANS
    share = (SHARES.log() - away.square().sum(-1) / (2 * variance)).softmax(1)[..., None]
    z0 = (share * (MEANS + alpha * STD**2 / variance * away)).sum(1)
    return Estimate(z0, sigma / variance * (share * away).sum(1))


def mixture(schedule):
    return lambda z, t: believed(z, *map(float, schedule(t)))


def solution(z, schedule, begin: float, end: float, steps: int = 1000):
    """Where z goes from begin to end: Runge and Kutta's fourth order in the angle phi, alpha : sigma = cos : sin.

    A path has no other parameter than this angle and the length of (alpha, sigma), so that no grid or table enters."""
    here, there = (tuple(map(float, schedule(torch.tensor(t, dtype=torch.float64)))) for t in (begin, end))
    slope = lambda z, phi: (lambda e: math.cos(phi) * e.eps - math.sin(phi) * e.z0)(
        believed(z, math.cos(phi), math.sin(phi))
    )
    phi, z = math.atan2(*here[::-1]), z / math.hypot(*here)
    h = (math.atan2(*there[::-1]) - phi) / steps
    for _ in range(steps):
        a = slope(z, phi)
        b = slope(z + h / 2 * a, phi + h / 2)
        c = slope(z + h / 2 * b, phi + h / 2)
        d = slope(z + h * c, phi + h)
        z, phi = z + h / 6 * (a + 2 * b + 2 * c + d), phi + h
    return z * math.hypot(*there)


def order(sampler, schedule, begin: float, end: float, fine: int) -> float:
    """log2 of what doubling an even grid to `fine` steps makes of the error."""
    start, errors = z(100, 2), []
    for steps in (fine // 2, fine):
        times = torch.linspace(begin, end, steps + 1, dtype=torch.float64)
        result = last(sampler(mixture(schedule), start, times, schedule))
        errors.append(float((result - solution(start, schedule, begin, end)).square().mean()) ** 0.5)
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize(("sampler", "expected"), [(ddim, 1), (heun, 2), (dpm_solver, 2), (plms, 2)])
# 450 of the paper's steps lie in 0.1 … 1: the grid falls on its table, where the kinks between them are not seen
@pytest.mark.parametrize(("schedule", "begin", "end", "fine"), [(PAPER, 1.0, 0.1, 450), (FLOW, 0.9, 0.1, 400)], ids=str)
def test_the_order_of_convergence_is_what_the_papers_promise(sampler, expected, schedule, begin, end, fine):
    assert order(sampler, schedule, begin, end, fine) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(("sampler", "expected"), [(ddim, 1), (heun, 2), (plms, 2)])
def test_the_order_is_kept_from_pure_noise_to_clean_data(sampler, expected):
    assert order(sampler, FLOW, 1.0, 0.0, 400) == pytest.approx(expected, abs=0.15)


def test_the_uniform_grid_of_a_chain_loses_an_order_in_its_last_step():
    """sigma falls as sqrt(t) there, and the step to t = 0 is Euler's."""
    assert order(heun, PAPER, 1.0, 0.0, 500) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("sampler", [ddim, heun, dpm_solver, plms])
@pytest.mark.parametrize("schedule", [PAPER, VariancePreserving("cosine"), FLOW], ids=str)
def test_mean_and_covariance_of_a_mixture_are_recovered(sampler, schedule):
    result = last(sampler(mixture(schedule), z(10_000, 2), schedule.grid(100), schedule))
    mean = SHARES @ MEANS
    covariance = (SHARES * (MEANS - mean).T) @ (MEANS - mean) + STD**2 * torch.eye(2, dtype=torch.float64)
    # sampling alone errs by 0.01; the paper's chain does not begin at pure noise
    torch.testing.assert_close(result.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(result.T.cov(), covariance, rtol=0, atol=0.03)


# Authorities --------------------------------------------------------------------------------------------------------


def peer(predicts: str, name: str = "DDIMScheduler", **settings):
    import diffusers

    kind = {"eps": "epsilon", "z0": "sample", "v": "v_prediction"}[predicts]
    if name not in ("PNDMScheduler", "DPMSolverMultistepScheduler"):  # the others clip unless told not to
        settings["clip_sample"] = False
    return getattr(diffusers, name)(
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0195,
        prediction_type=kind,
        **({"timestep_spacing": "trailing"} | settings),
    )


def doubled(scheduler):
    """The peer, with its chain in float64: its own table is float32."""
    bar = PAPER.log_alpha_bar(torch.arange(1, 1001).double() / 1000).exp()
    scheduler.alphas = bar / torch.cat([bar.new_ones(1), bar[:-1]])
    scheduler.alphas_cumprod, scheduler.betas = bar, 1 - scheduler.alphas
    if len(getattr(scheduler, "sigmas", ())) > 1:  # of its grid, each twice in their Heun, and 0
        scheduler.sigmas = torch.cat([(1 / bar - 1).sqrt()[scheduler.timesteps.long()], bar.new_zeros(1)])
    return scheduler


def denoiser(predicts: str, schedule=PAPER):
    """A network that has learned data of two values, in float64: sampling it does not magnify rounding."""

    def model(z, clock, cond=None):
        alpha, sigma = schedule(((clock + 1) / 1000 if schedule is PAPER else clock / 1000).double())
        alpha, sigma = (c.view(-1, *[1] * (z.ndim - 1)) for c in (alpha, sigma))
        spread = (alpha * 0.3) ** 2 + sigma**2
        near, far = z + 0.5 * alpha, z - 1.2 * alpha
        z0 = 0.09 * alpha / spread * z + (1 - 0.09 * alpha**2 / spread) * (
            0.35 + 0.85 * torch.tanh((near**2 - far**2) / (4 * spread))
        )
        eps = (z - alpha * z0) / sigma.clamp(min=1e-9)
        return {"eps": eps, "z0": z0, "v": alpha * eps - sigma * z0, "flow": eps - z0}[predicts]

    return model


def ours(predicts: str, schedule=PAPER):
    """predict for the network above. The clock of a real network is float32; here it is exact."""
    model, d = denoiser(predicts, schedule), Diffusion(schedule, predicts)
    return lambda z, t: d.estimate(model(z, schedule.clock(t).expand(len(z))), z, t)


def close(a, b, tolerance: float = 1e-6):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


STEPS = pytest.mark.parametrize("steps", [10, 20, 50])


@pytest.mark.parametrize("predicts", ["eps", "z0", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 10, 20, 50])
def test_ddim_is_that_of_diffusers(predicts, eta, steps):
    start, noises = z(3, 2, 5, 7), [z(3, 2, 5, 7) for _ in range(steps)]
    scheduler = doubled(peer(predicts, set_alpha_to_one=True))
    scheduler.set_timesteps(steps)
    fresh = iter(noises)
    path = list(ddim(ours(predicts), start, PAPER.grid(steps), PAPER, eta, noise=lambda z: next(fresh)))

    theirs = start
    for n, step, noise in zip(scheduler.timesteps, path, noises, strict=True):
        output = denoiser(predicts)(theirs, n.expand(3))
        theirs, z0 = scheduler.step(output, n, theirs, eta=eta, variance_noise=noise, return_dict=False)
        close(step.z, theirs)
        close(step.z0, z0)


@STEPS
def test_plms_is_that_of_diffusers(steps):
    """For eps: their PNDM draws on v itself where v is predicted, the original and ours on the eps it stands for."""
    scheduler = doubled(peer("eps", "PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=True))
    scheduler.set_timesteps(steps)
    theirs = start = z(3, 2, 5, 7)
    for n in scheduler.timesteps:
        theirs = scheduler.step(denoiser("eps")(theirs, n.expand(3)), n, theirs).prev_sample
    close(last(plms(ours("eps"), start, PAPER.grid(steps), PAPER)), theirs)


@pytest.mark.parametrize("predicts", ["eps", "z0", "v"])
@STEPS
def test_heun_is_that_of_diffusers(predicts, steps):
    scheduler = peer(predicts, "HeunDiscreteScheduler")
    scheduler.set_timesteps(steps)
    start = z(3, 2, 5, 7)
    theirs = start / PAPER(torch.tensor(1.0))[0]  # theirs moves z / alpha
    for n in (scheduler := doubled(scheduler)).timesteps:
        output = denoiser(predicts)(scheduler.scale_model_input(theirs, n), n.expand(3))
        theirs = scheduler.step(output, n, theirs).prev_sample
    close(last(heun(ours(predicts), start, PAPER.grid(steps), PAPER)), theirs)


@pytest.mark.parametrize("predicts", ["eps", "z0", "v"])
@STEPS
def test_dpm_solver_is_that_of_diffusers(predicts, steps):
    scheduler = peer(predicts, "DPMSolverMultistepScheduler")
    scheduler.set_timesteps(steps)
    theirs = start = z(3, 2, 5, 7)
    for n in (scheduler := doubled(scheduler)).timesteps:
        theirs = scheduler.step(denoiser(predicts)(theirs, n.expand(3)), n, theirs.double()).prev_sample
    # their step rounds to float32
    close(last(dpm_solver(ours(predicts), start, PAPER.grid(steps), PAPER)), theirs)


@STEPS
def test_ddim_on_a_flow_is_the_euler_of_diffusers(steps):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=FLOW.grid(steps)[:-1].tolist())
    scheduler.sigmas = FLOW.grid(steps)
    theirs = start = z(3, 2, 5, 7)
    for n, t in zip(scheduler.timesteps, FLOW.grid(steps), strict=False):
        output = denoiser("flow", FLOW)(theirs, FLOW.clock(t).expand(3))
        theirs = scheduler.step(output, n, theirs).prev_sample
    close(last(ddim(ours("flow", FLOW), start, FLOW.grid(steps), FLOW)), theirs)


def test_all_steps_with_eta_one_are_those_of_diffusers_ddpm():
    start, noise = z(3, 2, 5, 7), torch.Generator().manual_seed(4)
    same, theirs = noise.clone_state(), start
    scheduler = doubled(peer("eps", "DDPMScheduler", variance_type="fixed_small"))
    for n in range(999, -1, -1):
        output = denoiser("eps")(theirs, torch.full((3,), n))
        theirs = scheduler.step(output, n, theirs, generator=same).prev_sample
    drawn = lambda like: torch.randn(like.shape, generator=noise, dtype=like.dtype)
    close(last(ddim(ours("eps"), start, PAPER.grid(1000), PAPER, eta=1.0, noise=drawn)), theirs, 5e-5)


@pytest.mark.parametrize("n", [1, 2, 400, 1000])
def test_with_eta_one_a_step_of_the_chain_is_ddpms_posterior(n):
    start, noise = z(3, 2, 5, 7).float(), torch.Generator().manual_seed(4)
    scheduler = peer("eps", "DDPMScheduler", variance_type="fixed_small")
    output = network(start, torch.full((3,), n - 1.0), Condition())
    theirs = scheduler.step(output, n - 1, start, generator=noise.clone_state()).prev_sample

    predict = predictor(network, Diffusion(PAPER, "eps"), Condition())
    times = torch.tensor([n, n - 1], dtype=torch.float64) / 1000
    drawn = lambda like: torch.randn(like.shape, generator=noise)
    (ours,) = ddim(predict, start, times, PAPER, eta=1.0, noise=drawn)
    torch.testing.assert_close(ours.z, theirs, rtol=1e-4, atol=1e-4)


def test_a_step_of_a_flow_is_eulers():
    start, times = z(3, 2, 5, 7), torch.tensor([0.8, 0.55], dtype=torch.float64)
    (step,) = ddim(predictor(network, Diffusion(FLOW, "flow"), Condition()), start, times, FLOW)
    velocity = network(start, torch.full((3,), 800.0), Condition())
    torch.testing.assert_close(step.z, start + (0.55 - 0.8) * velocity)


# What every sampler keeps -------------------------------------------------------------------------------------------


ALL = {
    "ddim": ddim,
    "ddpm": lambda *a: ddim(*a, eta=1.0),
    "heun": heun,
    "dpm_solver": dpm_solver,
    "plms": plms,
}
SAMPLERS = pytest.mark.parametrize("sampler", ALL.values(), ids=ALL)


@SCHEDULES
@PREDICTS
@SAMPLERS
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_all_steps_are_finite_and_the_last_is_the_clean_latent_it_aimed_at(schedule, predicts, sampler, steps):
    start = z(3, 2, 5, 7).float()
    if predicts == "eps" and schedule is FLOW:
        pytest.skip("eps says nothing about z0 where there is no signal")
    grid = schedule.grid(steps)
    path = list(sampler(predictor(network, Diffusion(schedule, predicts), Condition()), start, grid, schedule))
    assert [float(step.t) for step in path] == grid[1:].tolist()
    assert all(step.z.isfinite().all() and step.z0.isfinite().all() for step in path)
    assert all(step.z.dtype == torch.float32 for step in path)
    assert torch.equal(path[-1].z, path[-1].z0)


@SAMPLERS
def test_what_is_predicted_makes_no_difference_to_a_sampler(sampler):
    start, grid = z(3, 2, 5, 7), PAPER.grid(9)
    drawn = []
    for predicts in ("eps", "z0", "v"):
        torch.manual_seed(1)
        drawn.append(last(sampler(ours(predicts), start, grid, PAPER)))
    close(drawn[1], drawn[0], 1e-9)
    close(drawn[2], drawn[0], 1e-9)


@pytest.mark.parametrize(
    ("sampler", "evaluations"), [(ddim, [1, 6]), (heun, [1, 11]), (dpm_solver, [1, 6]), (plms, [1, 7])]
)
def test_a_sampler_evaluates_as_often_as_it_says_and_never_at_the_clean_end(sampler, evaluations):
    for steps, expected in zip((1, 6), evaluations, strict=True):
        seen = []
        predict = lambda z, t: seen.append(float(t)) or ours("v")(z, t)  # noqa: B023
        last(sampler(predict, z(3, 2), PAPER.grid(steps), PAPER))
        assert len(seen) == expected and min(seen) > 0


@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("sampler", [heun, dpm_solver, plms])
def test_a_cosine_schedules_first_step_does_not_make_a_better_sampler_worse(sampler, steps):
    """alpha grows from 5e-5 by the thousand: a mean of eps over that step would be off by 50."""
    start, schedule = z(100, 2), VariancePreserving("cosine")
    exact = solution(start, schedule, 1.0, 0.0)
    error = lambda f: float((last(f(mixture(schedule), start, schedule.grid(steps), schedule)) - exact).norm())
    assert error(sampler) < 0.75 * error(ddim)


@SAMPLERS
def test_a_schedule_that_all_but_reaches_pure_noise_does_not_blow_rounding_up(sampler):
    """cos(pi / 2) is 6e-17, not 0."""

    def turn(t):
        return torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)

    path = list(sampler(mixture(turn), z(50, 2), FLOW.grid(20), turn))
    assert max(float(step.z.abs().max()) for step in path) < 6


def test_eta_zero_asks_for_no_noise_and_eta_one_for_none_at_the_end():
    asked = []
    noise = lambda z: asked.append(1) or torch.zeros_like(z)
    predict = predictor(network, Diffusion(PAPER, "v"), Condition())
    last(ddim(predict, z(3, 2, 5, 7), PAPER.grid(6), PAPER, noise=noise))
    assert len(asked) == 0
    last(ddim(predict, z(3, 2, 5, 7), PAPER.grid(6), PAPER, eta=1.0, noise=noise))
    assert len(asked) == 5


def test_last_is_the_final_latent():
    steps = [Step(torch.tensor(float(i)), torch.tensor(9.0), torch.tensor(0.0)) for i in range(3)]
    assert last(iter(steps)) == 2


# Guidance -----------------------------------------------------------------------------------------------------------

TOLD, NULL = Condition(vector=torch.tensor([[0.5], [1.0], [-2.0]])), Condition(vector=torch.zeros(3, 1))


def guided(weight: float, predicts: str, z, t) -> Estimate:
    return predictor(network, Diffusion(PAPER, predicts), TOLD, NULL, weight)(z, t)


@PREDICTS
def test_guidance_one_is_the_plain_model_and_zero_the_unconditional_one(predicts):
    at, t = z(3, 4, 5, 7), torch.tensor(0.6, dtype=torch.float64)
    d = Diffusion(PAPER, predicts)
    torch.testing.assert_close(guided(1.0, predicts, at, t), predictor(network, d, TOLD)(at, t))
    torch.testing.assert_close(guided(0.0, predicts, at, t), predictor(network, d, NULL)(at, t))


@PREDICTS
def test_guidance_moves_eps_and_z0_of_every_channel_in_proportion(predicts):
    at, t = z(3, 4, 5, 7), torch.tensor(0.6, dtype=torch.float64)
    null, plain, strong = (guided(w, predicts, at, t) for w in (0.0, 1.0, 3.5))
    for name in ("z0", "eps"):
        a, b, c = (getattr(e, name) for e in (null, plain, strong))
        assert ((b - a).flatten(2).norm(dim=2) > 1e-3).all()
        torch.testing.assert_close(c - a, 3.5 * (b - a), rtol=1e-4, atol=1e-5)


def test_guidance_calls_the_network_once_for_both_halves():
    sizes = []

    def counted(z, clock, cond):
        sizes.append((len(z), len(clock), len(cond.vector)))
        return network(z, clock, cond)

    predictor(counted, Diffusion(PAPER, "v"), TOLD, NULL, 2.0)(z(3, 4, 5, 7), torch.tensor(0.6))
    predictor(counted, Diffusion(PAPER, "v"), TOLD, NULL, 1.0)(z(3, 4, 5, 7), torch.tensor(0.6))
    assert sizes == [(6, 6, 6), (3, 3, 3)]


def test_several_scales_lead_from_each_condition_to_the_next():
    at, t, d = z(3, 4, 5, 7), torch.tensor(0.6), Diffusion(PAPER, "v")
    half = TOLD.map(lambda v: v / 2)
    none, some, all_ = (predictor(network, d, cond)(at, t).z0 for cond in (NULL, half, TOLD))
    guided = predictor(network, d, TOLD, [NULL, half], (3.0, 0.5))(at, t).z0
    torch.testing.assert_close(guided, none + 3.0 * (some - none) + 0.5 * (all_ - some), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"^guidance: 1 scales, and 2 conditions that can be left out$"):
        predictor(network, d, TOLD, [NULL, half], 2.0)


def test_guidance_without_the_null_condition_is_refused():
    with pytest.raises(InputError, match=r"guidance 2\.0 needs the null condition; 1 does without"):
        predictor(network, Diffusion(PAPER), TOLD, None, 2.0)


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_rescaled_guidance_has_so_much_less_of_the_deviation_that_guidance_adds(rescale):
    at, t, d = z(3, 4, 5, 7), torch.tensor(0.6, dtype=torch.float64), Diffusion(PAPER, "v")
    clock = PAPER.clock(t).float().expand(3)
    without, told = network(at, clock, NULL), network(at, clock, TOLD)
    rows = []
    for plain, guided in zip(told, without + 4 * (told - without), strict=True):  # each sample by itself
        rows.append(rescale * guided * (plain.std() / guided.std()) + (1 - rescale) * guided)
    estimate = predictor(network, d, TOLD, NULL, 4.0, rescale)(at, t)
    torch.testing.assert_close(estimate, d.estimate(torch.stack(rows).double(), at, t), rtol=1e-5, atol=1e-5)
    assert all((row.std() - plain.std()).abs() < 1e-6 for row, plain in zip(rows, told, strict=True)) == (rescale == 1)


def test_rescaled_guidance_of_a_new_network_is_finite():
    """Its output is 0, and so is the deviation that rescaling divides by."""
    new = lambda z, clock, cond: torch.zeros_like(z)
    estimate = predictor(new, Diffusion(PAPER, "v"), TOLD, NULL, 4.0, 0.7)(z(3, 4, 5, 7), torch.tensor(0.6))
    assert estimate.z0.isfinite().all() and estimate.eps.isfinite().all()


@pytest.mark.parametrize(("t", "inside"), [(0.19, False), (0.2, True), (0.5, True), (0.7, True), (0.71, False)])
def test_outside_its_interval_guidance_costs_nothing_and_does_nothing(t, inside):
    sizes, at, t = [], z(3, 4, 5, 7), torch.tensor(t, dtype=torch.float64)

    def counted(z, clock, cond):
        sizes.append(len(z))
        return network(z, clock, cond)

    estimate = predictor(counted, Diffusion(PAPER, "v"), TOLD, NULL, 2.0, 0.5, (0.2, 0.7))(at, t)
    expected = predictor(network, Diffusion(PAPER, "v"), TOLD, NULL, *((2.0, 0.5) if inside else (1.0,)))(at, t)
    assert sizes == [6 if inside else 3]
    torch.testing.assert_close(estimate, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rescale": -0.1}, "rescale: -0.1 is not between 0 and 1"),
        ({"rescale": 1.1}, "rescale: 1.1 is not between 0 and 1"),
        ({"interval": (0.5, 0.4)}, "interval: 0.5 0.4 are not two times, the smaller one first, between 0 and 1"),
        ({"interval": (-1.0, 0.4)}, "interval: -1.0 0.4 are not two times"),
        ({"interval": (0.0, 999.0)}, "interval: 0.0 999.0 are not two times"),
    ],
)
def test_numbers_of_guidance_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        predictor(network, Diffusion(PAPER), TOLD, NULL, 2.0, **settings)


# Clipping -----------------------------------------------------------------------------------------------------------


def test_clipping_is_that_of_diffusers():
    scheduler = doubled(peer("v", set_alpha_to_one=True))
    scheduler.register_to_config(clip_sample=True, clip_sample_range=0.8)
    scheduler.set_timesteps(10)
    theirs = start = 2 * z(3, 2, 5, 7)
    path = list(ddim(clipped(ours("v"), PAPER, 0.8), start, PAPER.grid(10), PAPER))
    for n, step in zip(scheduler.timesteps, path, strict=True):
        output = denoiser("v")(theirs, n.expand(3))
        theirs = scheduler.step(output, n, theirs, use_clipped_model_output=True).prev_sample
        close(step.z, theirs)
    assert max(float(step.z0.abs().max()) for step in path) == 0.8  # it did something


# Grids --------------------------------------------------------------------------------------------------------------

ZERO = VariancePreserving(zero_terminal=True)


@pytest.mark.parametrize("name", ["uniform", "quadratic", "karras"])
@pytest.mark.parametrize("schedule", [PAPER, VariancePreserving("cosine"), ZERO, FLOW], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 9, 27, 36, 37, 101, 251, 400, 599, 999, 1000])
def test_a_grid_of_any_number_of_steps_falls_from_one_to_zero(name, schedule, steps):
    times = grid(name, schedule, steps)
    assert len(times) == steps + 1 and times[0] == 1 and times[-1] == 0 and times.dtype == torch.float64
    assert (times.diff() < 0).all()
    assert schedule.clock(times[:-1]).min() > -1e-9  # the network was not trained before its first step
    torch.testing.assert_close(falling(times), times, rtol=0, atol=0)


def test_the_quadratic_grid_is_even_in_the_square_root():
    root = grid("quadratic", FLOW, 7).sqrt()
    torch.testing.assert_close(root, torch.linspace(1, 0, 8, dtype=torch.float64))
    beyond = (grid("quadratic", PAPER, 7)[:-1] - 0.001) / 0.999
    torch.testing.assert_close(beyond.sqrt(), torch.linspace(1, 0, 8, dtype=torch.float64)[:-1])


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_the_karras_grid_is_that_of_diffusers(steps):
    scheduler = peer("eps", "DPMSolverMultistepScheduler", use_karras_sigmas=True)
    scheduler.set_timesteps(steps)
    alpha, sigma = PAPER(grid("karras", PAPER, steps))
    torch.testing.assert_close((sigma / alpha).float(), scheduler.sigmas, rtol=2e-4, atol=0)  # their table is float32


def test_on_a_flow_the_karras_grid_has_the_papers_ends():
    times = grid("karras", FLOW, 6)
    ratio = (times / (1 - times))[1:-1]
    even = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 6, dtype=torch.float64)[1:] ** 7
    torch.testing.assert_close(ratio, even)


@pytest.mark.parametrize("schedule", [PAPER, ZERO, FLOW], ids=str)
def test_a_time_is_found_by_its_noise(schedule):
    t = torch.tensor([0.0004, 0.001, 0.3, 0.77777, 0.999], dtype=torch.float64)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(times_of(sigma / alpha, schedule), t)


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_on_the_originals_grid_ddim_is_the_original(steps, eta):
    """By diffusers as its pipelines of the original models set it: a step is T // steps, off by one, alpha kept."""
    scheduler = doubled(peer("eps", timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False))
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    times = grid("original", PAPER, steps)
    assert PAPER.clock(times[:-1]).round().tolist() == scheduler.timesteps.tolist()
    theirs = start = z(3, 2, 5, 7)
    noises = [z(3, 2, 5, 7) for _ in range(steps)]
    fresh = iter(noises)
    for n, noise in zip(scheduler.timesteps, noises, strict=True):
        # the original takes its last step to step 0 of the table, theirs to before it, with the same alpha
        theirs = scheduler.step(denoiser("eps")(theirs, n.expand(3)), n, theirs, eta=eta, variance_noise=noise)
        theirs = theirs.prev_sample
    close(last(ddim(ours("eps"), start, times, PAPER, eta, noise=lambda z: next(fresh))), theirs)


@pytest.mark.parametrize("steps", [10, 14, 20])
def test_on_the_originals_grid_the_last_of_few_steps_of_dpm_solver_is_of_first_order(steps):
    """As diffusers has it: where noise is left, second order is kept from 15 steps on."""
    times = grid("original", PAPER, steps)
    scheduler = peer("eps", "DPMSolverMultistepScheduler", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(timesteps=PAPER.clock(times[:-1]).round().long().tolist())
    scheduler = doubled(scheduler)
    scheduler.sigmas[-1] = (1 / scheduler.alphas_cumprod[0] - 1).sqrt()
    theirs = start = z(3, 2, 5, 7)
    for n in scheduler.timesteps:
        theirs = scheduler.step(denoiser("eps")(theirs, n.expand(3)), n, theirs.double()).prev_sample
    close(last(dpm_solver(ours("eps"), start, times, PAPER)), theirs)


def test_the_originals_grid_is_the_originals_at_any_number_of_steps():
    """And where the original looks beyond its table, its last entry is taken."""
    beyond = 0
    for steps in range(1, 1001):
        numbers = [n + 1 for n in range(0, 1000, 1000 // steps)]
        if numbers[-1] == 1000:
            beyond += 1
            numbers = numbers[:-1] + [999] * (numbers[-2:-1] != [999])
        times = grid("original", PAPER, steps)
        assert (times * 1000).round().tolist() == [n + 1 for n in numbers[::-1]] + [1]
    assert beyond == 599
    assert len(grid("original", PAPER, 400)) == 501


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: grid("uniformly", PAPER, 5),
            "uniformly: no such grid; did you mean uniform.* there are uniform, quad",
        ),
        (lambda: grid("quadratic", PAPER, 0), "steps: 0 is not between 1 and 1000"),
        (lambda: grid("original", PAPER, 1001), "steps: 1001 is not between 1 and 1000"),
        (lambda: grid("karras", FLOW, 0), "steps: 0 is not 1 or more"),
        (lambda: grid("original", FLOW, 5), "grid: original is a grid on the steps of a chain"),
        (lambda: falling(torch.tensor([0.0, 0.5, 1.0])), "grid: the times do not decrease"),
        (lambda: falling(torch.tensor([1.0, 0.5, 0.1])), "grid: the last time is 0.1; it must be 0"),
        (lambda: falling(torch.zeros(3, 2)), r"grid: two times or more in a row are needed, not the shape \(3, 2\)"),
    ],
)
def test_a_grid_that_no_sampler_can_follow_is_refused(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", GRIDS)
@SAMPLERS
def test_every_sampler_follows_every_grid_to_the_data(name, sampler):
    times = grid(name, PAPER, 60)
    result = last(sampler(mixture(PAPER), z(4_000, 2), times, PAPER))
    torch.testing.assert_close(result.mean(0), SHARES @ MEANS, rtol=0, atol=0.06)


# From a picture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predicts", ["eps", "z0", "v"])
def test_what_is_encoded_comes_back(predicts):
    """The inverse of each step, iterated to its end, is exact."""
    times = PAPER.grid(50)
    z0 = torch.where(z(3, 2, 5) > 0, 1.2, -0.5) + 0.2 * z(3, 2, 5)
    noise = last(encode(ours(predicts), z0, times, PAPER, iterations=40))
    assert (noise - z0).abs().mean() > 0.2
    close(last(ddim(ours(predicts), noise, times, PAPER)), z0, 1e-5)


@pytest.mark.parametrize(("schedule", "predicts"), [(ZERO, "v"), (FLOW, "flow")], ids=str)
def test_what_is_encoded_as_pure_noise_comes_back(schedule, predicts):
    predict = mixture(schedule)
    z0, times = MEANS.repeat(10, 1) + 0.3 * z(30, 2), schedule.grid(100)
    path = list(encode(predict, z0, times, schedule, iterations=40))
    assert [float(step.t) for step in path] == times.flip(0)[1:].tolist()
    close(last(ddim(predict, path[-1].z, times, schedule)), z0, 1e-4)


def test_with_one_iteration_what_comes_back_is_off_by_first_order():
    z0, errors = 0.7 * z(100, 2), []
    for steps in (200, 400):
        times = torch.linspace(0.9, 0, steps + 1, dtype=torch.float64)
        noise = last(encode(mixture(FLOW), z0, times, FLOW))
        errors.append(float((last(ddim(mixture(FLOW), noise, times, FLOW)) - z0).norm()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.15)


def test_the_code_of_data_is_noise():
    """Of the mixture's samples, on the way that the exact score leads."""
    rows = torch.multinomial(SHARES, 10_000, replacement=True)
    z0 = MEANS[rows] + STD * z(10_000, 2)
    code = last(encode(mixture(FLOW), z0, FLOW.grid(200), FLOW))
    torch.testing.assert_close(code.mean(0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=0.04)
    torch.testing.assert_close(code.T.cov(), torch.eye(2, dtype=torch.float64), rtol=0, atol=0.06)


@pytest.mark.parametrize(("strength", "steps"), [(1.0, 10), (0.75, 8), (0.3, 3), (0.29, 3), (0.001, 1)])
def test_a_strength_is_the_share_of_the_steps_that_are_run(strength, steps):
    z0, eps, times = z(3, 2, 5), z(3, 2, 5), PAPER.grid(10)
    start = partly_noised(z0, eps, times, strength, PAPER)
    torch.testing.assert_close(start.times, times[-steps - 1 :], rtol=0, atol=0)
    torch.testing.assert_close(start.z, Diffusion(PAPER).noised(z0, eps, start.times[0]))


def test_less_strength_keeps_more_of_the_picture():
    z0, eps = ours("v")(z(3, 2, 5, 7), torch.tensor(0.3)).z0, z(3, 2, 5, 7)
    drawn = lambda strength: last(ddim(ours("v"), *partly_noised(z0, eps, PAPER.grid(50), strength, PAPER), PAPER))
    far = [float((drawn(strength) - z0).norm()) for strength in (0.1, 0.3, 1.0)]
    assert far[0] < 0.85 * far[1] and far[1] < 0.85 * far[2]


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01])
def test_a_strength_that_cannot_be_is_refused(strength):
    with pytest.raises(InputError, match=f"strength: {strength} is not above 0 and at most 1"):
        partly_noised(z(3, 2), z(3, 2), PAPER.grid(10), strength, PAPER)


# Inpainting ---------------------------------------------------------------------------------------------------------


@SCHEDULES
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_is_kept_comes_back_exactly_and_what_is_filled_is_the_models(schedule, eta):
    start, known = z(3, 2, 5, 7).float(), z(3, 2, 5, 7).float()
    keep = (torch.rand(3, 1, 5, 7) < 0.4).float()
    predict = predictor(network, Diffusion(schedule, "v"), Condition())
    fresh = z(3, 2, 5, 7).float()
    run = lambda predict: last(ddim(predict, start, schedule.grid(9), schedule, eta, noise=lambda z: fresh))
    result, free = run(keep_known(predict, known, keep, schedule)), run(predict)
    mask = keep.bool().expand_as(known)
    assert torch.equal(result[mask], known[mask])
    # `network` looks at one position at a time, so the rest does not notice
    torch.testing.assert_close(result[~mask], free[~mask])


@SCHEDULES
@SAMPLERS
def test_every_sampler_brings_what_is_kept_back(schedule, sampler):
    start, known, keep = z(3, 2, 5, 7).float(), z(3, 2, 5, 7).float(), torch.zeros(1, 1, 5, 7)
    keep[..., :4] = 1
    predict = keep_known(predictor(network, Diffusion(schedule, "v"), Condition()), known, keep, schedule)
    result = last(sampler(predict, start, schedule.grid(9), schedule))
    torch.testing.assert_close(result[..., :4], known[..., :4], rtol=0, atol=1e-4)  # through a mean of eps


def test_the_estimates_of_what_is_kept_make_up_z():
    known, at, t = z(3, 2, 5, 7), z(3, 2, 5, 7), torch.tensor(0.4, dtype=torch.float64)
    keep = torch.zeros(1, 1, 5, 7, dtype=torch.float64)
    keep[..., :3] = 1
    estimate = keep_known(predictor(network, Diffusion(PAPER, "eps"), Condition()), known, keep, PAPER)(at, t)
    alpha, sigma = PAPER(t)
    torch.testing.assert_close(alpha * estimate.z0 + sigma * estimate.eps, at)
    assert torch.equal(estimate.z0[..., :3], known[..., :3])
