"""Larger pictures by overlapping windows."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny import UNET, latent_diffusion
from torch import nn

from ldm_lite.condition import Condition
from ldm_lite.config import InputError
from ldm_lite.windows import blended, places, ramp, starts, windowed


@pytest.mark.parametrize(
    ("length", "window", "overlap", "expected"),
    [
        (7, 8, 2, [0]),
        (8, 8, 2, [0]),
        (9, 8, 2, [0, 1]),
        (20, 8, 2, [0, 6, 12]),
        (21, 8, 2, [0, 4, 9, 13]),
        (16, 8, 0, [0, 8]),
    ],
)
def test_windows_cover_a_side_evenly_and_overlap_enough(length, window, overlap, expected):
    found = starts(length, window, overlap)
    assert found == expected and found[-1] + window >= length
    assert all(a + window - b >= overlap for a, b in pairwise(found))


def test_the_weights_are_symmetric_one_in_the_middle_and_nowhere_zero():
    w = ramp(11, 4)
    assert w.tolist() == w.flip(0).tolist() and w.min() == 0.125 and (w[4:7] == 1).all()
    assert (ramp(5, 0) == 1).all()


@pytest.mark.parametrize(("h", "w"), [(5, 7), (11, 8), (19, 23)])
def test_blended_windows_of_what_acts_on_each_pixel_are_that_of_the_whole(h, w):
    x = torch.randn(2, 3, h, w)
    torch.testing.assert_close(blended(lambda r, c: x[..., r, c].sin(), h, w, 8, 3), x.sin())


def test_blended_results_may_be_larger_than_their_windows():
    x = torch.randn(1, 2, 11, 13)
    twice = nn.Upsample(scale_factor=2)
    torch.testing.assert_close(blended(lambda r, c: twice(x[..., r, c]), 11, 13, 6, 2, scale=2), twice(x))


def test_a_step_between_two_windows_becomes_a_ramp():
    out = blended(lambda r, c: torch.full((1, 1, 8, c.stop - c.start), float(c.start > 0)), 8, 12, 8, 4)[0, 0, 0]
    assert out[:4].eq(0).all() and out[8:].eq(1).all()
    torch.testing.assert_close(out[4:8], torch.tensor([0.125, 0.375, 0.625, 0.875]))


def test_a_windowed_denoiser_cuts_the_maps_beside_the_latent_and_tells_the_rest_whole():
    seen = []

    def denoiser(z, clock, cond):
        seen.append((z.shape[2:], cond.context.shape[1], torch.equal(cond.concat, 2 * z)))
        return z + clock.view(-1, 1, 1, 1)

    z, clock = torch.randn(2, 3, 10, 13), torch.tensor([1.0, 5.0])
    cond = Condition(context=torch.zeros(2, 4, 6), concat=2 * z)
    out = windowed(denoiser, 8, 2)(z, clock, cond)
    torch.testing.assert_close(out, z + clock.view(-1, 1, 1, 1))
    assert seen == [((8, 8), 4, True)] * 4 and len(list(places(10, 13, 8, 2))) == 4


def test_a_picture_that_fits_into_a_window_is_drawn_as_without():
    model = latent_diffusion(replace(UNET, dropout=0.0)).eval()
    told = {"label": torch.tensor([0, 2])}
    whole = model.sample(told, steps=3, size=(8, 12))
    torch.testing.assert_close(model.sample(told, steps=3, size=(8, 12), window=12), whole)


def test_a_large_picture_is_drawn_by_windows_at_a_size_that_the_denoiser_cannot_halve():
    model = latent_diffusion(replace(UNET, dropout=0.0)).eval()
    sizes = []
    model.denoiser.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape)))
    drawn = model.sample({"label": torch.tensor([0, 2])}, steps=2, size=(14, 22), window=8, overlap=4)
    assert drawn.shape == (2, 3, 14, 22) and drawn.isfinite().all()
    assert set(sizes) == {(2, 2, 4, 4)} and len(sizes) == 2 * 3 * 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 10}, "window: 10 is not a multiple of 4"),
        ({"window": 0}, "window: 0 is not a multiple of 4"),
        ({"window": 8, "overlap": 3}, "overlap: 3 is not a multiple of 2 from 0 to below the window, 8"),
        ({"window": 8, "overlap": 8}, "overlap: 8 is not a multiple of 2 from 0 to below the window, 8"),
        ({"window": 8, "size": 15}, "size: 15 x 15 is not divisible by 2; take 14 x 14 or 16 x 16"),
    ],
)
def test_windows_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        latent_diffusion().sample({"label": torch.tensor([0])}, steps=2, **({"size": 16} | settings))
