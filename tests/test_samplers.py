"""Samplers on a denoiser that is known exactly, and step by step against diffusers."""

import math

import pytest
import torch

from ldm_lite.condition import Condition
from ldm_lite.diffusion import Diffusion, Estimate, RectifiedFlow, VariancePreserving
from ldm_lite.samplers import Step, ddim, keep_known, last, predictor

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


# Authorities --------------------------------------------------------------------------------------------------------


def peer(predicts: str, name: str = "DDIMScheduler", **settings):
    import diffusers

    kind = {"eps": "epsilon", "z0": "sample", "v": "v_prediction"}[predicts]
    return getattr(diffusers, name)(
        beta_schedule="scaled_linear",
        beta_start=0.0015,
        beta_end=0.0195,
        clip_sample=False,
        prediction_type=kind,
        timestep_spacing="trailing",
        **settings,
    )


@pytest.mark.parametrize("predicts", ["eps", "z0", "v"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 10])
def test_ddim_is_that_of_diffusers(predicts, eta, steps):
    start, noises = z(3, 2, 5, 7).float(), [z(3, 2, 5, 7).float() for _ in range(steps)]
    scheduler = peer(predicts, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    predict = predictor(network, Diffusion(PAPER, predicts), Condition())
    fresh = iter(noises)
    ours = list(ddim(predict, start, PAPER.grid(steps), PAPER, eta, noise=lambda z: next(fresh)))

    theirs = start
    for n, step, noise in zip(scheduler.timesteps, ours, noises, strict=True):
        output = network(theirs, n.float().expand(3), Condition())
        theirs, z0 = scheduler.step(output, n, theirs, eta=eta, variance_noise=noise, return_dict=False)
        torch.testing.assert_close(step.z, theirs, rtol=2e-4, atol=2e-4)
        torch.testing.assert_close(step.z0, z0, rtol=2e-3, atol=2e-3)


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


@SCHEDULES
@PREDICTS
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_all_steps_are_finite_and_the_last_is_the_clean_latent_it_aimed_at(schedule, predicts, eta):
    start = z(3, 2, 5, 7).float()
    if predicts == "eps" and schedule is FLOW:
        pytest.skip("eps says nothing about z0 where there is no signal")
    steps = list(
        ddim(predictor(network, Diffusion(schedule, predicts), Condition()), start, schedule.grid(7), schedule, eta)
    )
    assert [float(step.t) for step in steps] == schedule.grid(7)[1:].tolist()
    assert all(step.z.isfinite().all() and step.z0.isfinite().all() for step in steps)
    assert all(step.z.dtype == torch.float32 for step in steps)
    assert torch.equal(steps[-1].z, steps[-1].z0)


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


def test_guidance_without_the_null_condition_is_refused():
    with pytest.raises(ValueError, match=r"guidance 2\.0 needs the null condition"):
        predictor(network, Diffusion(PAPER), TOLD, None, 2.0)


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


def test_the_estimates_of_what_is_kept_make_up_z():
    known, at, t = z(3, 2, 5, 7), z(3, 2, 5, 7), torch.tensor(0.4, dtype=torch.float64)
    keep = torch.zeros(1, 1, 5, 7, dtype=torch.float64)
    keep[..., :3] = 1
    estimate = keep_known(predictor(network, Diffusion(PAPER, "eps"), Condition()), known, keep, PAPER)(at, t)
    alpha, sigma = PAPER(t)
    torch.testing.assert_close(alpha * estimate.z0 + sigma * estimate.eps, at)
    assert torch.equal(estimate.z0[..., :3], known[..., :3])
