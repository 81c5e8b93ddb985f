"""The forward process against diffusers and its own inverse, and the loss by hand."""

import math

import pytest
import torch

from ldm_lite.config import InputError
from ldm_lite.diffusion import Diffusion, Estimate, RectifiedFlow, VariancePreserving

PAPER, CHURCHES = VariancePreserving(), VariancePreserving(end=0.0155)
LINEAR, COSINE = VariancePreserving("linear", 1e-4, 0.02), VariancePreserving("cosine")
SHORT, FLOW = VariancePreserving(steps=37), RectifiedFlow()
ZERO = VariancePreserving(zero_terminal=True)
CHAINS = pytest.mark.parametrize("schedule", [PAPER, CHURCHES, LINEAR, COSINE, SHORT, ZERO], ids=str)
SCHEDULES = pytest.mark.parametrize("schedule", [PAPER, LINEAR, COSINE, SHORT, FLOW], ids=str)
PREDICTS = pytest.mark.parametrize("predicts", ["eps", "z0", "v", "flow"])
DIFFUSERS = {PAPER: "scaled_linear", CHURCHES: "scaled_linear", LINEAR: "linear", COSINE: "squaredcos_cap_v2"}


def z(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def peer(schedule: VariancePreserving):
    """The same chain by diffusers."""
    from diffusers import DDIMScheduler

    kind = DIFFUSERS[schedule]
    return DDIMScheduler(
        beta_schedule=kind, beta_start=schedule.start, beta_end=schedule.end, timestep_spacing="trailing"
    )


# What a network predicts --------------------------------------------------------------------------------------------


@SCHEDULES
@PREDICTS
def test_estimate_inverts_target(schedule, predicts):
    z0, eps, t = z(4, 3, 5, 7), z(4, 3, 5, 7), torch.tensor([0.02, 0.3, 0.77, 0.98])
    d = Diffusion(schedule, predicts)
    torch.testing.assert_close(d.estimate(d.target(z0, eps, t), d.noised(z0, eps, t), t), Estimate(z0, eps))


@PREDICTS
def test_one_time_for_all_is_that_time_for_each_and_the_dtype_is_kept(predicts):
    z0, eps, d = z(3, 2, 5).float(), z(3, 2, 5).float(), Diffusion(PAPER, predicts)
    one, each = torch.tensor(0.4), torch.full((3,), 0.4)
    for function in (d.noised, d.target, d.estimate):
        torch.testing.assert_close(function(z0, eps, one), function(z0, eps, each), rtol=0, atol=0)
    assert d.noised(z0, eps, one).dtype == d.estimate(z0, eps, each).z0.dtype == torch.float32


def test_the_velocity_and_the_flow_are_the_derivatives_they_are_named_after():
    """v = dz/dphi with alpha = cos phi and sigma = sin phi; flow = dz/dt on the straight line."""
    z0, eps, t = z(2, 3, 5), z(2, 3, 5), torch.tensor([0.3, 0.8], dtype=torch.float64)
    v, flow = Diffusion(PAPER, "v"), Diffusion(FLOW, "flow")
    alpha, sigma, *_ = v.coefficients(z0, t)
    d = 1e-6
    turned = lambda d: (
        (alpha * math.cos(d) - sigma * math.sin(d)) * z0 + (sigma * math.cos(d) + alpha * math.sin(d)) * eps
    )
    torch.testing.assert_close((turned(d) - turned(-d)) / (2 * d), v.target(z0, eps, t))
    torch.testing.assert_close(
        (flow.noised(z0, eps, t + d) - flow.noised(z0, eps, t - d)) / (2 * d), flow.target(z0, eps, t)
    )


# Schedules ----------------------------------------------------------------------------------------------------------


@CHAINS
def test_the_variance_is_preserved_on_and_between_the_steps(schedule):
    alpha, sigma = schedule(torch.linspace(0, 1, 1601, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


@SCHEDULES
def test_there_is_ever_less_signal_in_the_noise(schedule):
    alpha, sigma = schedule(torch.linspace(0, 1, 1601, dtype=torch.float64)[1:])
    assert ((alpha / sigma).diff() < 0).all()


def betas(schedule) -> torch.Tensor:
    bar = schedule.log_alpha_bar(torch.arange(1 + schedule.steps).double() / schedule.steps).exp()
    return 1 - bar[1:] / bar[:-1]


@pytest.mark.parametrize(
    "settings", [{}, {"end": 0.0155}, {"kind": "linear", "start": 1e-4, "end": 0.02}, {"kind": "cosine"}, {"steps": 37}]
)
def test_a_chain_with_zero_terminal_snr_is_that_of_diffusers(settings):
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    theirs = (1 - rescale_zero_terminal_snr(betas(VariancePreserving(**settings)))).cumprod(0)
    schedule = VariancePreserving(**settings, zero_terminal=True)
    alpha, sigma = schedule(torch.arange(1, schedule.steps + 1).double() / schedule.steps)
    torch.testing.assert_close(alpha**2, theirs, rtol=1e-9, atol=1e-15)
    assert alpha[-1] == 0 and sigma[-1] == 1
    assert float(alpha[0]) == pytest.approx(float(VariancePreserving(**settings)(torch.tensor(1 / schedule.steps))[0]))


def test_the_last_interval_before_pure_noise_is_a_straight_line_in_alpha():
    t = torch.tensor([0.999, 0.99925, 0.9995, 1.0], dtype=torch.float64)
    alpha, _ = ZERO(t)
    torch.testing.assert_close(
        alpha, alpha[0] * torch.tensor([1, 0.75, 0.5, 0], dtype=torch.float64), rtol=1e-9, atol=0
    )
    assert ((ZERO(torch.linspace(0, 1, 1601, dtype=torch.float64))[0]).diff() < 0).all()


@pytest.mark.parametrize("predicts", ["z0", "v", "flow"])
def test_at_pure_noise_the_estimate_is_finite_and_the_weights_are(predicts):
    z0, eps, t = z(2, 3, 5), z(2, 3, 5), torch.ones(2, dtype=torch.float64)
    d = Diffusion(ZERO, predicts, snr_cap=5.0)
    torch.testing.assert_close(d.estimate(d.target(z0, eps, t), d.noised(z0, eps, t), t), Estimate(z0, eps))
    assert d.weight(t).tolist() == [0, 0] and d.bound_weights().isfinite().all()


@SCHEDULES
def test_the_clean_end_is_exactly_clean_and_its_sigma_is_not_minus_zero(schedule):
    alpha, sigma = schedule(torch.tensor([0.0, 0.0], dtype=torch.float64))
    assert (alpha == 1).all() and (sigma == 0).all() and not sigma.signbit().any()


def test_small_sigmas_keep_their_digits():
    _, sigma = PAPER(torch.tensor(1 / 1000, dtype=torch.float64))
    assert float(sigma) == pytest.approx(0.0015**0.5, rel=1e-13)


@pytest.mark.parametrize("schedule", DIFFUSERS, ids=str)
def test_the_chain_is_that_of_diffusers(schedule):
    n = torch.arange(1, 1001)
    torch.testing.assert_close(
        schedule.log_alpha_bar(n / 1000).exp().float(), peer(schedule).alphas_cumprod, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(("schedule", "alpha_bar"), [(PAPER, 1.42e-4), (CHURCHES, 6.69e-4), (LINEAR, 4.04e-5)], ids=str)
def test_the_last_step_keeps_as_much_of_the_picture_as_the_papers(schedule, alpha_bar):
    assert float(schedule.log_alpha_bar(torch.tensor(1.0)).exp()) == pytest.approx(alpha_bar, rel=5e-3)


@pytest.mark.parametrize("schedule", DIFFUSERS, ids=str)
def test_noised_and_velocity_are_those_of_diffusers(schedule):
    z0, eps, n = z(3, 2, 5, 7).float(), z(3, 2, 5, 7).float(), torch.tensor([1, 420, 1000])
    d, other = Diffusion(schedule, "v"), peer(schedule)
    torch.testing.assert_close(d.noised(z0, eps, n / 1000), other.add_noise(z0, eps, n - 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(d.target(z0, eps, n / 1000), other.get_velocity(z0, eps, n - 1), rtol=1e-4, atol=1e-5)


@CHAINS
def test_the_clock_reads_the_originals_step_number(schedule):
    n = torch.arange(1, schedule.steps + 1, dtype=torch.float64)
    torch.testing.assert_close(schedule.clock(n / schedule.steps), n - 1)
    assert float(FLOW.clock(torch.tensor(0.25))) == 250


@CHAINS
@pytest.mark.parametrize("k", [1, 2, 7, 20, 36, 37])
def test_the_grid_falls_from_one_to_zero_on_steps_of_the_chain(schedule, k):
    grid = schedule.grid(k)
    assert len(grid) == k + 1 and grid[0] == 1 and grid[-1] == 0
    assert (grid.diff() < 0).all() and (grid.diff().diff().abs() < 2.001 / schedule.steps).all()
    torch.testing.assert_close(grid * schedule.steps, (grid * schedule.steps).round())


@pytest.mark.parametrize("k", [350, 599, 999, 1000])
def test_a_grid_of_many_steps_has_no_step_twice(k):
    assert len(PAPER.grid(k).unique()) == k + 1


@pytest.mark.parametrize("k", [1, 8, 50, 1000])
def test_the_grid_is_the_trailing_one_of_diffusers(k):
    other = peer(PAPER)
    other.set_timesteps(k)
    assert PAPER.clock(PAPER.grid(k)[:-1]).round().long().tolist() == other.timesteps.tolist()


def test_the_grid_of_a_flow_is_even():
    torch.testing.assert_close(FLOW.grid(4), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))


@pytest.mark.parametrize(("schedule", "k"), [(PAPER, 0), (PAPER, 1001), (SHORT, 38), (FLOW, 0), (FLOW, -3)], ids=str)
def test_a_grid_that_cannot_be_is_refused(schedule, k):
    with pytest.raises(InputError, match=f"^steps: {k} is not"):
        schedule.grid(k)


def test_training_times_are_uniform_on_the_chain_and_reach_both_its_ends():
    drawn = SHORT.draw(20_000)
    n, counts = (drawn * 37).round().unique(return_counts=True)
    assert n.tolist() == list(range(1, 38))
    assert counts.min() > 430 and counts.max() < 660  # 541 are expected, five standard deviations are 115


def test_training_times_of_a_flow_are_logit_normal():
    logit = FLOW.draw(20_000).logit()
    assert abs(float(logit.mean())) < 0.04 and abs(float(logit.std()) - 1) < 0.03


@SCHEDULES
def test_training_times_follow_the_generator(schedule):
    first, again = (schedule.draw(5, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, schedule.draw(5))


# The loss -----------------------------------------------------------------------------------------------------------


@SCHEDULES
@PREDICTS
@pytest.mark.parametrize("distance", ["l2", "l1"])
def test_the_loss_is_a_mean_per_sample_of_the_error_of_what_is_predicted(schedule, predicts, distance):
    z0, eps, t = z(3, 2, 5, 7).float(), z(3, 2, 5, 7).float(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    d, seen = Diffusion(schedule, predicts, distance), {}

    def model(noised, clock):
        seen.update(z=noised, clock=clock)
        return 3 * noised

    losses = d.loss(model, z0, eps, t)
    alpha, sigma = (c.float().view(3, 1, 1, 1) for c in schedule(t))
    noised = alpha * z0 + sigma * eps
    target = {"eps": eps, "z0": z0, "v": alpha * eps - sigma * z0, "flow": eps - z0}[predicts]
    error = (3 * noised - target).abs() if distance == "l1" else (3 * noised - target) ** 2
    torch.testing.assert_close(losses, error.mean((1, 2, 3)))
    torch.testing.assert_close(seen["z"], noised)
    torch.testing.assert_close(seen["clock"], schedule.clock(t).float(), check_dtype=True)


@pytest.mark.parametrize("predicts", ["eps", "z0", "v"])
def test_capped_weights_are_those_of_min_snr(predicts):
    t, cap = torch.tensor([0.001, 0.1, 0.3, 0.6, 1.0], dtype=torch.float64), 5.0
    alpha_bar = PAPER.log_alpha_bar(t).exp()
    snr = alpha_bar / (1 - alpha_bar)
    assert snr.min() < 1e-3 and snr.max() > 600
    expected = snr.clamp(max=cap) / {"eps": snr, "z0": 1, "v": snr + 1}[predicts]
    torch.testing.assert_close(Diffusion(PAPER, predicts, snr_cap=cap).weight(t), expected.float())


@PREDICTS
@pytest.mark.parametrize("schedule", [PAPER, FLOW], ids=str)
def test_capped_losses_are_the_same_whatever_is_predicted(predicts, schedule):
    """A mistake of one in z0 counts min(SNR, cap), in whichever units the network makes it."""
    z0, eps, t = z(3, 2, 5), z(3, 2, 5), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    d = Diffusion(schedule, predicts, snr_cap=2.0)

    def mistaken(noised, clock):
        wrong = z0 + 1
        alpha, sigma, *_ = d.coefficients(z0, t)
        return d.target(wrong, (noised - alpha * wrong) / sigma, t)

    alpha, sigma = schedule(t)
    torch.testing.assert_close(d.loss(mistaken, z0, eps, t), ((alpha / sigma) ** 2).clamp(max=2).float())


@pytest.mark.parametrize(("predicts", "weight"), [("eps", 0), ("z0", 5), ("v", 0), ("flow", 0)])
def test_capped_weights_are_exact_at_clean_data(predicts, weight):
    """A z0-error counts the cap; in the others' units any z0-error is infinitely large there."""
    d = Diffusion(PAPER, predicts, snr_cap=5.0)
    assert d.weight(torch.tensor([0.0, 0.0])).tolist() == [weight, weight]


@pytest.mark.parametrize("predicts", ["eps", "z0", "v"])
@pytest.mark.parametrize("schedule", [PAPER, COSINE, SHORT], ids=str)
def test_the_bounds_weights_are_those_of_the_divergence_between_two_gaussians(schedule, predicts):
    """By Ho et al. 2020, eq. 6, 7 and 11, from the betas alone, and torch's own divergence."""
    from torch.distributions import Normal, kl_divergence

    beta = betas(schedule)
    bar = (1 - beta).cumprod(0)
    d, weights = Diffusion(schedule, predicts), Diffusion(schedule, predicts).bound_weights()
    assert weights.shape == (schedule.steps,) and (weights > 0).all()
    for n in (2, 3, schedule.steps // 2, schedule.steps):
        a, b, before = bar[n - 1], beta[n - 1], bar[n - 2]
        z0, eps, wrong, t = z(1, 7), z(1, 7), 0.1 * z(1, 7), torch.tensor(n / schedule.steps, dtype=torch.float64)
        at = a.sqrt() * z0 + (1 - a).sqrt() * eps
        output = d.target(z0, eps, t)
        guess = d.estimate(output + wrong, at, t)
        q = (before.sqrt() * b * z0 + (1 - b).sqrt() * (1 - before) * at) / (1 - a)
        p = (at - b / (1 - a).sqrt() * guess.eps) / (1 - b).sqrt()
        deviation = ((1 - before) / (1 - a) * b).sqrt()
        expected = kl_divergence(Normal(q, deviation), Normal(p, deviation)).sum()
        torch.testing.assert_close(weights[n - 1] * wrong.square().sum(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("predicts", ["eps", "z0", "v"])
def test_the_bounds_first_weight_is_that_of_a_gaussian_reconstruction(predicts):
    from torch.distributions import Normal

    d, t = Diffusion(PAPER, predicts), torch.tensor(0.001, dtype=torch.float64)
    z0, eps, wrong = z(1, 7), z(1, 7), 0.1 * z(1, 7)
    guess = d.estimate(d.target(z0, eps, t) + wrong, d.noised(z0, eps, t), t)
    said = lambda mean: -Normal(mean, 0.0015**0.5).log_prob(z0).sum()
    torch.testing.assert_close(d.bound_weights()[0] * wrong.square().sum(), said(guess.z0) - said(z0))


def test_without_a_cap_every_time_counts_the_same():
    assert Diffusion(PAPER).weight(torch.tensor([0.1, 0.9])).tolist() == [1, 1]


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kind": "sqrt"}, "^kind: sqrt is not scaled_linear, linear or cosine"),
        ({"start": 0.02}, "^start, end, steps"),
        ({"start": 0.0}, "^start, end, steps"),
        ({"end": 1.0}, "^start, end, steps"),
        ({"steps": 0}, "^start, end, steps"),
        ({"steps": 1, "zero_terminal": True}, "^zero_terminal: one step cannot be both"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(settings, match):
    with pytest.raises(InputError, match=match):
        VariancePreserving(**settings)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Diffusion(PAPER, "x0"), "^predicts: x0 is not eps, z0, v or flow"),
        (lambda: Diffusion(PAPER, distance="huber"), "^distance: huber is not l2 or l1"),
        (lambda: Diffusion(ZERO), "^predicts: eps says nothing about z0 .* use v"),
        (lambda: Diffusion(FLOW, "flow").bound_weights(), "^bound_weights: RectifiedFlow has no chain"),
    ],
)
def test_what_cannot_be_diffused_is_refused(make, match):
    with pytest.raises(InputError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)
