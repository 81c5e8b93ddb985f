"""Metrics against known answers, their definitions written out, and torch-fidelity, torchmetrics and scikit-image."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm_lite.config import InputError
from ldm_lite.metrics import (
    Statistics,
    fid,
    high_frequency,
    inception_score,
    kid,
    precision_recall,
    psnr,
    ssim,
)


def features(n: int, width: int = 5, **kind) -> torch.Tensor:
    return torch.randn(n, width, dtype=torch.float64, **kind)


def gaussian(n: int, mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """(n, D) samples whose own mean and covariance are exactly these."""
    x = features(n, len(mean))
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False)
    return (torch.linalg.cholesky(covariance) @ x).T + mean


def rotation(width: int) -> torch.Tensor:
    return torch.linalg.qr(features(width, width)).Q


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape) * 2 - 1


# Statistics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 50, 5003])
@pytest.mark.parametrize("offset", [0, 2**28])
def test_statistics_of_batches_are_numpys_whatever_the_mean(batch, offset):
    x = (features(5003, 3) * 2**20).round() / 2**20  # so that adding the offset is exact
    x = x @ torch.tensor([[1, 2, 0], [0, 1, 0], [4, 0, 1]], dtype=torch.float64)
    statistics = Statistics()
    for part in (x + offset).split(batch):
        statistics.update(part)
    assert statistics.n == 5003
    # at an offset of 2^28 a mean has digits down to 6e-8, and a sum of squares none below 16
    digits = {"rtol": 0, "atol": 1e-6 if offset else 1e-12}
    torch.testing.assert_close(statistics.mean - offset, x.mean(0), **digits)
    torch.testing.assert_close(statistics.covariance, torch.from_numpy(np.cov(x.numpy(), rowvar=False)), **digits)


def test_half_precision_features_are_summed_in_double():
    x = features(301, 3).half()
    torch.testing.assert_close(Statistics().update(x).covariance, torch.cov(x.double().T), rtol=1e-12, atol=1e-12)


def test_the_statistics_of_two_sets_add_up_to_those_of_all():
    x, y = features(11) + 3, 2 * features(7)
    one, two = Statistics(about={"size": "64"}).update(x), Statistics().update(y)
    both, expected = one + two, Statistics().update(torch.cat([x, y]))
    assert both.n == 18 and both.about == {"size": "64"}
    torch.testing.assert_close(both.mean, expected.mean)
    torch.testing.assert_close(both.covariance, expected.covariance)
    both.update(x)
    assert one.n == 11 and torch.equal(one.scatter, Statistics().update(x).scatter)


def test_no_features_add_nothing():
    x = features(11)
    filled = Statistics().update(x).update(x[:0])
    for total in (filled + Statistics(), Statistics() + filled, filled.reduce(), filled):
        assert total.n == 11
        torch.testing.assert_close(total.covariance, torch.cov(x.T))
    assert (Statistics() + Statistics()).n == 0


def test_alone_reduce_is_a_copy():
    statistics = Statistics().update(features(11))
    statistics.reduce().update(features(3))
    assert statistics.n == 11


def on_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    x = torch.load(folder / "x.pt")
    local = Statistics(about={"rank": str(rank)}).update([x[:8], x[8:]][rank])
    local.reduce()  # once more below: it leaves what the rank has seen alone
    local.reduce().save(folder / f"{rank}.safetensors")
    [Statistics(), local][rank].reduce().save(folder / f"{rank}-of-one.safetensors")
    assert Statistics().reduce().n == 0
    with pytest.raises(InputError, match=r"^features: 3 and 4 wide on"):
        Statistics().update(x[:, : 3 + rank]).reduce()
    torch.distributed.destroy_process_group()


def test_ranks_reduce_to_the_statistics_of_all_with_unequal_shares_and_with_none(tmp_path):
    x = features(19, 4) + 2.0**28
    torch.save(x, tmp_path / "x.pt")
    torch.multiprocessing.spawn(on_rank, (tmp_path,), nprocs=2)
    for suffix, expected in (("", x), ("-of-one", x[8:])):
        ranks = [Statistics.load(tmp_path / f"{rank}{suffix}.safetensors") for rank in range(2)]
        assert torch.equal(ranks[0].mean, ranks[1].mean) and torch.equal(ranks[0].scatter, ranks[1].scatter)
        for statistics in ranks:
            assert statistics.n == len(expected)
            torch.testing.assert_close(statistics.mean, expected.mean(0), rtol=1e-14, atol=0)
            torch.testing.assert_close(statistics.covariance, torch.cov((expected - 2.0**28).T), rtol=1e-7, atol=1e-7)


def test_statistics_are_saved_with_what_should_be_known_of_them(tmp_path):
    statistics = Statistics(about={"data": "scenes", "size": "64"}).update(features(11))
    statistics.save(tmp_path / "deep" / "real.safetensors")
    loaded = Statistics.load(tmp_path / "deep" / "real.safetensors")
    assert (loaded.n, loaded.about) == (11, {"data": "scenes", "size": "64"})
    assert torch.equal(loaded.mean, statistics.mean) and torch.equal(loaded.scatter, statistics.scatter)


def test_what_is_no_file_of_statistics_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"real.safetensors: no such file$"):
        Statistics.load(tmp_path / "real.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"half a file")
    save_file({"weight": torch.ones(3)}, tmp_path / "weights.safetensors")
    for name in ("broken", "weights"):
        with pytest.raises(InputError, match=f"{name}.safetensors: not a file of statistics"):
            Statistics.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="there are no statistics to save"):
        Statistics().save(tmp_path / "none.safetensors")


# FID ----------------------------------------------------------------------------------------------------------------

MEAN, SPREAD = torch.tensor([3.0, 0, -1, 2]).double(), torch.tensor([0.5, 1, 2, 3]).double()


@pytest.mark.parametrize(
    ("shift", "scale", "distance"),
    [
        (0.0, torch.tensor(1.0), 0.0),
        (2.0, torch.tensor(1.0), 4 * 2.0**2),
        (0.0, torch.tensor(3.0), (2 * SPREAD).square().sum()),
        (1.0, torch.tensor([3.0, 1, 1, 0.5]), 4 + (2 * 0.5) ** 2 + (0.5 * 3) ** 2),
    ],
    ids=["equal", "shifted", "scaled", "both"],
)
def test_the_distance_of_two_gaussians_on_the_same_axes_is_that_of_their_means_and_deviations(shift, scale, distance):
    axes = rotation(4)
    real = gaussian(61, MEAN, axes @ torch.diag(SPREAD**2) @ axes.T)
    fake = gaussian(47, MEAN + shift, axes @ torch.diag((scale * SPREAD) ** 2) @ axes.T)
    assert fid(real, fake) == pytest.approx(float(distance), rel=1e-12, abs=1e-12)


def test_the_distance_of_any_two_gaussians_in_the_plane_has_a_closed_form():
    """Tr (A B)^(1/2) = (Tr A B + 2 (det A B)^(1/2))^(1/2) for 2 x 2 matrices: A and B need not have the same axes."""
    a, b = torch.tensor([[2.0, 0.9], [0.9, 1.0]]).double(), torch.tensor([[1.0, -0.7], [-0.7, 3.0]]).double()
    zero = torch.zeros(2).double()
    trace = (torch.trace(a @ b) + 2 * torch.det(a @ b).sqrt()).sqrt()
    expected = float(a.trace() + b.trace() - 2 * trace)
    assert expected > 0.5
    assert fid(gaussian(31, zero, a), gaussian(23, zero, b)) == pytest.approx(expected, rel=1e-12)


def authority(real: torch.Tensor, fake: torch.Tensor) -> float:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    statistics = (fid_features_to_statistics(x) for x in (real, fake))
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def by_samples(real: torch.Tensor, fake: torch.Tensor) -> float:
    """From centred samples X, Y alone: Tr (A B)^(1/2) is the sum of the singular values of X Y^T, suitably divided."""
    x, y = real - real.mean(0), fake - fake.mean(0)
    overlap = torch.linalg.svdvals(x @ y.T / math.sqrt((len(x) - 1) * (len(y) - 1))).sum()
    apart = (real.mean(0) - fake.mean(0)).square().sum()
    return float(apart + torch.cov(real.T).trace() + torch.cov(fake.T).trace() - 2 * overlap)


@pytest.mark.parametrize(
    ("n", "m", "width", "rounding"),
    # square roots of rounded zeros cost an authority half its digits where samples are fewer than dimensions
    [(307, 211, 48, 1e-11), (2, 97, 31, 1e-6), (29, 97, 31, 1e-6), (29, 23, 67, 1e-6)],
)
def test_fid_is_that_of_torch_fidelity_also_with_fewer_samples_than_dimensions(n, m, width, rounding):
    real, fake = features(n, width) @ features(width, width) + 3, features(m, width) @ features(width, width)
    distance = fid(real, fake)
    assert distance == pytest.approx(authority(real, fake), rel=rounding)
    assert distance == pytest.approx(by_samples(real, fake), rel=1e-12)


def test_fid_of_statistics_is_that_of_their_features_and_leaves_them_alone():
    real, fake = features(31), features(23) + 1
    statistics = Statistics().update(real)
    assert fid(statistics, fake) == fid(real, Statistics().update(fake)) == fid(real, fake)
    assert statistics.n == 31


def test_features_that_are_all_the_same_are_as_far_apart_as_their_values():
    assert fid(torch.zeros(3, 5), torch.ones(4, 5)) == 5
    assert fid(torch.ones(3, 5), torch.ones(4, 5)) == 0


DISTANCES = pytest.mark.parametrize("distance", [fid, lambda real, fake: kid(real, fake)[0]], ids=["fid", "kid"])


@DISTANCES
def test_distances_do_not_depend_on_the_order_of_sets_and_samples_nor_on_axes(distance):
    real, fake, turn = features(31) + 1, 2 * features(23), rotation(5)
    value = distance(real, fake)
    assert value > 1
    assert distance(fake, real) == pytest.approx(value, rel=1e-12)
    assert distance(real.flip(0), fake) == pytest.approx(value, rel=1e-12)
    assert distance(real @ turn, fake @ turn) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("n", [4, 31])
def test_a_set_has_no_fid_to_itself(n):
    real = features(n, 17) @ features(17, 17) * 100
    assert 0 <= fid(real, real) < 1e-9
    assert 0 <= fid(real, real.flip(0)) < 1e-9


def test_fid_grows_with_the_square_of_the_features_and_not_with_a_common_shift():
    real, fake = features(31) + 1, 2 * features(23)
    assert fid(3 * real - 7, 3 * fake - 7) == pytest.approx(9 * fid(real, fake), rel=1e-12)


# KID ----------------------------------------------------------------------------------------------------------------


def test_kid_of_whole_sets_is_that_of_torch_fidelity_and_torchmetrics():
    from torch_fidelity.metric_kid import kernel_mmd
    from torchmetrics.image.kid import poly_mmd

    real, fake = features(37, 11), features(37, 11) + 0.3
    settings = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    expected = kernel_mmd(real.numpy(), fake.numpy(), kid_kernel_poly_coef0=1, **settings)
    assert expected == pytest.approx(float(poly_mmd(real, fake)), rel=1e-12)
    assert kid(real, fake) == (pytest.approx(expected, rel=1e-12), 0)
    assert kid(real.float(), fake.float())[0] == pytest.approx(expected, rel=1e-5)


def test_kid_of_sets_of_unequal_size_is_its_definition():
    real, fake = features(7, 3), features(5, 3) + 1
    kernel = lambda a, b: float((a @ b / 3 + 1) ** 3)
    other = lambda x: [kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]
    across = [kernel(a, b) for a in real for b in fake]
    expected = np.mean(other(real)) + np.mean(other(fake)) - 2 * np.mean(across)
    assert kid(real, fake, subset=7) == (pytest.approx(expected, rel=1e-12), 0)


def test_kid_is_zero_in_the_mean_for_sets_of_one_distribution_however_small():
    distances = torch.tensor([kid(features(4), features(5))[0] for _ in range(2000)])
    assert distances.min() < 0
    assert abs(float(distances.mean())) < 3 * float(distances.std()) / 2000**0.5 < 0.1


def test_subsets_estimate_the_distance_of_the_whole_sets_within_their_standard_error():
    real, fake = features(301), features(211) + 0.5
    whole, _ = kid(real, fake)
    mean, error = kid(real, fake, subset=50)
    assert abs(mean - whole) < 3 * error and 0 < error < whole / 5
    _, quarter = kid(real, fake, subset=50, subsets=1600)
    assert quarter == pytest.approx(error / 4, rel=0.2)
    part, error = kid(real, fake, subset=211, subsets=400)  # the whole of fake, a part of real
    assert abs(part - whole) < 3 * error and error > 0


def test_subsets_are_drawn_without_replacement_and_follow_the_seed():
    real, fake = features(41), features(31) + 0.5
    assert kid(real, fake, subset=20, seed=1) == kid(real, fake, subset=20, seed=1) != kid(real, fake, subset=20)
    # of 40 copies of one point and one far away, at most one is drawn
    copies = torch.cat([torch.zeros(40, 1), torch.full((1, 1), 100.0)])
    mean, _ = kid(copies, torch.zeros(2, 1), subset=40)
    assert mean == pytest.approx(0, abs=1e-12)


# Inception score ----------------------------------------------------------------------------------------------------


def test_the_inception_score_is_that_of_torch_fidelity_in_parts_of_unequal_size():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * features(103, 7)
    expected = isc_features_to_metric(logits, splits=10, shuffle=False)
    mean, std = inception_score(logits.softmax(1), seed=None)
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-12)
    assert std == pytest.approx(expected["inception_score_std"], rel=1e-12)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("probabilities", "score"), [(torch.eye(6).repeat(4, 1), 6), (torch.full((24, 6), 1 / 6), 1)])
def test_certain_and_even_classes_score_their_number_and_unsure_ones_score_one(probabilities, score, seed):
    assert inception_score(probabilities, 1, seed) == (pytest.approx(score), 0)


def test_samples_sorted_by_class_are_shuffled_before_they_are_split():
    by_class = torch.eye(5).repeat_interleave(200, 0)
    assert inception_score(by_class, 5, seed=None) == (pytest.approx(1), pytest.approx(0))
    mean, std = inception_score(by_class, 5)
    assert 4.8 < mean <= 5 and std < 0.1
    assert inception_score(by_class, 5, seed=1) != (mean, std) == inception_score(by_class, 5)


# Precision and recall -----------------------------------------------------------------------------------------------


def naive(real: torch.Tensor, fake: torch.Tensor, k: int) -> tuple[float, float]:
    """The definition, with one distance of everything to everything."""
    apart = lambda a, b: torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
    reach = lambda x: apart(x, x).sort(1).values[:, k]
    precision = (apart(fake, real) <= reach(real)).any(1).double().mean()
    recall = (apart(real, fake) <= reach(fake)).any(1).double().mean()
    return float(precision), float(recall)


def cloud(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two overlapping sets of unequal size."""
    if kind == "lattice":  # full of equal distances and of copies
        return torch.randint(0, 4, (211, 3)).float(), torch.randint(1, 6, (151, 3)).float()
    real, fake = torch.randn(211, 5), 0.9 * torch.randn(151, 5) + 0.7
    far = real.double() + 1e6, fake.double() + 1e6
    return {"plain": (real, fake), "far": far, "copies": (real, real[:151])}[kind]


@pytest.mark.parametrize("kind", ["plain", "far", "lattice", "copies"])
@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("block", [7, 50, 4096])
def test_precision_and_recall_are_the_naive_ones_in_blocks_of_any_size(kind, k, block):
    real, fake = cloud(kind)
    expected = naive(real, fake, k)
    assert kind == "copies" or min(expected) < 1
    assert precision_recall(real, fake, k, block) == expected


def test_precision_and_recall_are_those_of_torch_fidelity():
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real, fake = (x.double() for x in cloud("plain"))
    assert precision_recall(real, fake) == pytest.approx(calculate_precision_recall_full(fake, real, 3), rel=1e-6)


def test_precision_and_recall_by_hand():
    """Real reaches 1, 1, 2 and 3 far with k = 1: so 5 is on the rim of a ball, 9 is in one and 20 in none."""
    real, fake = torch.tensor([[0.0], [1], [3], [6]]), torch.tensor([[5.0], [9], [20]])
    assert precision_recall(real, fake, k=1) == (2 / 3, 3 / 4)


def test_precision_and_recall_of_a_set_with_itself_are_one_and_of_sets_far_apart_zero():
    x = features(31)
    assert precision_recall(x, x) == precision_recall(x, x.flip(0)) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)
    same = torch.full((5, 3), 0.1)
    assert precision_recall(same, same[:4]) == (1, 1)


def test_a_dropped_mode_costs_recall_and_noise_costs_precision_and_to_swap_the_sets_swaps_them():
    real = torch.cat([features(60), features(40) + 100])
    dropped, noisy = features(50), torch.cat([real + 0.1 * features(100), features(50) - 200])
    precision, recall = precision_recall(real, dropped)
    assert precision > 0.8 and recall <= 0.6
    assert precision_recall(dropped, real) == (recall, precision)
    precision, recall = precision_recall(real, noisy)
    assert 0.6 < precision <= 2 / 3 and recall > 0.9


def test_precision_and_recall_do_not_depend_on_order_axes_and_scale():
    real, fake = (x.double() for x in cloud("plain"))
    expected = precision_recall(real, fake)
    assert precision_recall(real.flip(0), fake[torch.randperm(151)]) == expected
    assert precision_recall(7 * real @ (turn := rotation(5)) - 3, 7 * fake @ turn - 3) == expected


# Pictures -----------------------------------------------------------------------------------------------------------


def test_psnr_is_twenty_decibels_where_every_pixel_is_off_by_a_tenth_of_the_range():
    image, error = images(2, 3, 5, 7), torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    torch.testing.assert_close(psnr(image, image + error), torch.tensor([20.0, 40.0]))
    assert psnr(image, image).tolist() == [math.inf, math.inf]


def test_psnr_is_that_of_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio

    image, other = images(2, 3, 5, 7), images(2, 3, 5, 7)
    expected = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=2) for a, b in zip(image, other)]
    torch.testing.assert_close(psnr(image, other), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("shape", [(3, 3, 19, 31), (2, 1, 11, 12)])
def test_ssim_is_that_of_scikit_image_for_the_same_pictures_in_eight_bits(shape):
    from skimage.metrics import structural_similarity

    bytes_ = torch.randint(0, 256, shape)
    others = (bytes_ + torch.randint(-30, 31, shape)).clamp(0, 255)
    expected = [
        structural_similarity(
            a.numpy().astype(np.float64),
            b.numpy().astype(np.float64),
            data_range=255,
            channel_axis=0,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
        for a, b in zip(bytes_, others)
    ]
    assert max(expected) < 0.99
    score = ssim(bytes_ / 127.5 - 1, others / 127.5 - 1)
    torch.testing.assert_close(score, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=0)


def test_ssim_is_that_of_torchmetrics_away_from_the_border():
    from torchmetrics.functional.image import structural_similarity_index_measure

    image, other = (images(2, 3, 19, 31).double() for _ in range(2))
    _, everywhere = structural_similarity_index_measure(
        image + 1, other + 1, data_range=2.0, reduction="none", return_full_image=True
    )
    expected = everywhere[:, :, 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(ssim(image, other), expected.float(), rtol=1e-5, atol=1e-7)


def test_ssim_of_flat_pictures_is_the_luminance_term():
    grey = lambda value: torch.full((1, 3, 13, 17), value)
    x, y, c = 1.2, 0.7, 0.02**2
    expected = (2 * x * y + c) / (x * x + y * y + c)
    assert float(ssim(grey(x - 1), grey(y - 1))) == pytest.approx(expected, rel=1e-6)


def test_ssim_is_one_for_equal_pictures_the_same_both_ways_and_lower_the_more_noise():
    image, noise = images(3, 3, 19, 31), torch.randn(3, 3, 19, 31)
    assert ssim(image, image).tolist() == [1, 1, 1]
    torch.testing.assert_close(ssim(image, noise), ssim(noise, image))
    scores = torch.stack([ssim(image, image + amount * noise) for amount in (0.01, 0.1, 0.5)])
    assert (scores.diff(dim=0) < 0).all() and scores[0].min() > 0.99 > 0.8 > scores[2].max()


def wave(down: float, right: float, height: int = 64, width: int = 48) -> torch.Tensor:
    """(1, 3, H, W) a cosine of so many cycles per pixel in each direction."""
    y, x = torch.arange(height).double()[:, None], torch.arange(width).double()
    return (0.5 * torch.cos(2 * torch.pi * (down * y + right * x))).expand(1, 3, height, width)


@pytest.mark.parametrize(
    ("image", "share"),
    [
        (torch.full((1, 3, 32, 48), 0.1), 0),  # constant
        (wave(0.5, 0.5), 1),  # checkerboard
        (wave(0.5, 0.5, 35, 27), 1),
        (wave(0, 0.5), 1),  # stripes
        (wave(0.375, 0), 1),
        (wave(0.125, 0), 0),
        (wave(0.2, 0.2), 1),  # shorter than four pixels, but only along the diagonal
        (wave(0.14, 0.14), 0),
        (0.2 * wave(0.125, 0) + 0.4 * wave(0, 0.375) + 0.3, 0.8),  # variances add: 1 to 4
        (torch.linspace(-1, 1, 48).expand(1, 3, 64, 48), 0),  # no edge where the picture's ends meet
    ],
)
def test_waves_shorter_than_four_pixels_are_high_frequency(image, share):
    assert float(high_frequency(image)) == pytest.approx(share, abs=2e-3)
    assert 0 <= float(high_frequency(image)) <= 1


def test_constant_pictures_of_any_grey_have_exactly_no_high_frequency():
    greys = torch.linspace(-1, 1, 101).view(-1, 1, 1, 1).expand(-1, 3, 9, 14)
    assert high_frequency(greys).eq(0).all()
    assert high_frequency(torch.full((1, 3, 9, 14), math.nan)).isnan()


def test_of_white_noise_all_is_high_but_a_disc_of_the_spectrum():
    shares = high_frequency(torch.randn(50, 1, 61, 64))
    assert float(shares.mean()) == pytest.approx(1 - math.pi / 16, abs=0.01)


def test_high_frequency_does_not_depend_on_brightness_and_contrast_and_falls_with_blur():
    image = images(3, 3, 33, 28)
    share = high_frequency(image)
    torch.testing.assert_close(high_frequency(0.3 * image + 0.5), share)
    assert (high_frequency(torch.nn.functional.avg_pool2d(image, 3, 1, 1)) < 0.6 * share).all()


def test_high_frequency_is_that_of_luminance():
    fine, coarse = wave(0.5, 0.5)[:, :1], wave(0.125, 0)[:, :1]
    weights = {0: 0.299, 1: 0.587, 2: 0.114}
    for channel, weight in weights.items():
        image = torch.cat([fine if i == channel else coarse for i in range(3)], 1)
        # a checkerboard's variance is twice a wave's of the same amplitude
        expected = 2 * weight**2 / (2 * weight**2 + (1 - weight) ** 2)
        assert float(high_frequency(image)) == pytest.approx(expected, abs=2e-3)
    torch.testing.assert_close(high_frequency(fine), high_frequency(fine.expand(-1, 3, -1, -1)))


# What is refused ----------------------------------------------------------------------------------------------------

X, BAD = torch.randn(9, 5), torch.randn(9, 5)
BAD[3, 1], BAD[3, 2], BAD[5, 0] = math.nan, math.inf, -math.inf
PICTURES = torch.zeros(2, 3, 16, 16)
P = torch.full((9, 4), 0.25)


@pytest.mark.parametrize("metric", [fid, kid, precision_recall])
@pytest.mark.parametrize(
    ("real", "fake", "match"),
    [
        (X, BAD, "^fake: 2 of 9 have NaN or infinite values; look at their images$"),
        (BAD, X, "^real: 2 of 9 have NaN"),
        (X, X[:, :4], "features are 5 and 4 wide; use one network for both$"),
        (X, X.view(9, 5, 1), r"^fake: shape \(9, 5, 1\) is not \(samples, width\)"),
        (X[:1], X, "^real: 1 samples, at least (2|4) are needed; draw more samples"),
        (X, X[:0], "^fake: 0 samples, at least (2|4) are needed; draw more samples"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(metric, real, fake, match):
    with pytest.raises(InputError, match=match) as error:
        metric(real, fake)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: precision_recall(X, X[:3]), "^fake: 3 samples, at least 4 are needed; draw more samples or lower k$"),
        (lambda: precision_recall(X[:5], X, k=5), "^real: 5 samples, at least 6 are needed"),
        (lambda: precision_recall(X, X, k=0), "^k: 0 is not 1 or more"),
        (lambda: precision_recall(X, X, block=0), "^block: 0 is not 1 or more"),
        (lambda: kid(X, X, subset=1), "^subset, subsets: 1, 100 are not 2 or more"),
        (lambda: kid(X, X, subsets=1), "^subset, subsets: 1000, 1 are not 2 or more"),
        (lambda: fid(Statistics(), X), "^real: 0 samples, at least 2 are needed"),
        (lambda: Statistics().update(X[:1]).covariance, "^n: a covariance needs at least 2 samples, not 1"),
        (lambda: Statistics().update(BAD), "^features: 2 of 9 have NaN"),
        (lambda: Statistics().update(X).update(X[:, :4]), "^statistics, features: features are 5 and 4 wide"),
        (lambda: Statistics().update(X) + Statistics().update(X[:, :4]), "^statistics: features are 5 and 4 wide"),
        (lambda: inception_score(P[:7]), "^probabilities: 7 samples, at least 10 are needed; .* or lower splits$"),
        (lambda: inception_score(P, splits=0), "^splits: 0 is not 1 or more"),
        (lambda: inception_score(P * 4, 3), "^probabilities: rows must sum to 1 .* give the softmax of the logits$"),
        (lambda: inception_score(P + torch.tensor([-0.5, 0.5, 0, 0]), 3), "^probabilities: rows must sum to 1"),
        (lambda: inception_score(BAD, 3), "^probabilities: 2 of 9 have NaN"),
        (
            lambda: psnr(PICTURES, PICTURES[:1]),
            r"^image, other: shapes \(2, .*\) and \(1, .*\) differ; make them equal$",
        ),
        (lambda: ssim(PICTURES, PICTURES[:, :1]), "^image, other: shapes .* differ"),
        (lambda: ssim(PICTURES[..., :10], PICTURES[..., :10]), "^image: shape .* with sides of at least 11 pixels$"),
        (lambda: ssim(PICTURES[0], PICTURES[0]), r"^image: shape \(3, 16, 16\) is not \(B, C, H, W\)"),
        (lambda: high_frequency(PICTURES[:, :2]), r"^images: shape \(2, 2, 16, 16\) is not"),
        (lambda: high_frequency(PICTURES[0]), r"^images: shape \(3, 16, 16\) is not"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_fix(call, match):
    with pytest.raises(InputError, match=match) as error:
        call()
    assert "\n" not in str(error.value)
