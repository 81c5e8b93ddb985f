"""Recorded attention maps."""

from dataclasses import replace

import pytest
import torch
from tiny import UNET, latent_diffusion

from ldm_lite.attention import recorded
from ldm_lite.condition import Condition
from ldm_lite.conditioners import Text, TextConfig
from ldm_lite.config import InputError
from ldm_lite.latent import LatentDiffusion, Noise
from ldm_lite.layers import CrossAttention
from ldm_lite.unet import UNet

CONFIG = replace(UNET, vector=0, context=6, dropout=0.0, attend_at=(1, 2), depth=2)


def test_a_watched_layer_gives_its_weights_and_the_same_result():
    torch.manual_seed(0)
    layer, x, context = CrossAttention(6, 5, 3, 4), torch.randn(2, 7, 6), torch.randn(2, 11, 5)
    plain, seen = layer(x, context), []
    layer.watch = seen.append
    assert torch.equal(layer(x, context), plain)
    (weights,) = seen
    assert weights.shape == (2, 3, 7, 11)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 7))
    v = layer.to_v(context).unflatten(2, (3, 4)).transpose(1, 2)
    torch.testing.assert_close(layer.to_out((weights @ v).transpose(1, 2).flatten(2)), plain)


def test_every_call_and_every_layer_is_recorded_at_its_own_size():
    unet = UNet(CONFIG).eval()
    z, cond = torch.randn(2, 2, 6, 10), Condition(context=torch.randn(2, 5, 6))
    with torch.no_grad(), recorded(unet) as maps:
        for _ in range(3):
            unet(z, torch.ones(2), cond)
    assert len(maps.calls) == 3
    # two blocks each: one level-1 and one level-2 layer down, the middle, two of each level up
    sizes = [tuple(layer.shape) for layer in maps.calls[0]]
    assert sizes == [(2, 6, 10, 5)] * 2 + [(2, 3, 5, 5)] * 8 + [(2, 6, 10, 5)] * 4
    mean = maps.mean((6, 10))
    torch.testing.assert_close(mean.sum(-1), torch.ones(2, 6, 10))
    assert not torch.equal(mean, maps.mean((6, 10), slice(0, 0 + 1)) * 2)
    finest = torch.stack([layer for call in maps.calls for layer in call if layer.shape[1] == 6]).mean(0)
    torch.testing.assert_close(maps.mean((6, 10), least=6), finest)
    with pytest.raises(InputError, match=r"^maps: .*none of 7 places on a side"):
        maps.mean((6, 10), least=7)


def test_nothing_is_recorded_afterwards_even_after_an_error():
    unet = UNet(CONFIG).eval()
    z, cond = torch.randn(2, 2, 6, 10), Condition(context=torch.randn(2, 5, 6))
    with pytest.raises(RuntimeError, match="stop"), recorded(unet) as maps:
        raise RuntimeError("stop")
    unet(z, torch.ones(2), cond)
    assert maps.calls == [] and all(m.watch is None for m in unet.modules() if isinstance(m, CrossAttention))


def test_a_model_draws_the_same_while_it_is_recorded_and_the_rows_that_are_told_are_kept():
    model = latent_diffusion(CONFIG, "context").eval()
    told = {"label": torch.tensor([0, 2])}
    plain = model.sample(told, steps=3, size=(8, 12), guidance=2.0)
    with recorded(model.denoiser) as maps:
        assert torch.equal(model.sample(told, steps=3, size=(8, 12), guidance=2.0), plain)
    assert len(maps.calls) == 3 and maps.mean(4).shape == (2, 4, 4, 1)


def captioned() -> LatentDiffusion:
    """A model that reads captions, of five tokens."""
    torch.manual_seed(0)
    whole = latent_diffusion(CONFIG, "context")
    text = Text(TextConfig(width=6, depth=1, heads=2, head_channels=3, length=5))
    return LatentDiffusion(whole.first_stage, whole.denoiser, whole.diffusion, text).eval()


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 2}, {"batch_size": 4}, {"sampler": "heun"}])
def test_maps_are_of_the_told_rows_in_whatever_batches_they_are_drawn(settings):
    model, told = captioned(), {"caption": ["pines", "a sea", "fog"]}
    settings = {"steps": 3, "size": (8, 12), "guidance": 4.0} | settings
    with recorded(model.denoiser) as maps:
        model.sample(told, **(settings | {"batch_size": 64}))
    with recorded(model.denoiser) as parted:
        model.sample(told, **settings)
    assert len(parted.calls) == len(maps.calls) and parted.mean(4).shape == (3, 4, 4, 5)
    torch.testing.assert_close(parted.mean(4), maps.mean(4))
    with recorded(model.denoiser) as alone:  # row by row they are what a plain call gives
        cond, clock = (
            model.conditioner(told),
            torch.full((3,), float(model.diffusion.schedule.clock(torch.tensor(1.0)))),
        )
        model.denoiser(Noise(0, (3, 2, 4, 6))(torch.empty(0)), clock, cond)
    torch.testing.assert_close(alone.mean(4), parted.mean(4, slice(1)))


def test_maps_outside_the_interval_of_guidance_are_of_the_same_rows():
    model, told = captioned(), {"caption": ["pines", "a sea"]}
    with recorded(model.denoiser) as maps:
        model.sample(told, steps=5, size=(8, 12), guidance=4.0, interval=(0.3, 0.7))
    assert len(maps.calls) == 5 and maps.mean(4).shape == (2, 4, 4, 5)


def test_windows_are_not_recorded_as_if_they_were_the_picture():
    model = captioned()
    with recorded(model.denoiser), pytest.raises(InputError, match=r"^window: attention maps are recorded of whole"):
        model.sample({"caption": ["pines"]}, steps=1, size=16, window=8)
    assert model.sample({"caption": ["pines"]}, steps=1, size=16, window=8).shape == (1, 3, 16, 16)


def test_no_maps_are_said_to_be_none():
    with recorded(UNet(UNET)) as maps:
        pass
    with pytest.raises(InputError, match=r"^maps: none were recorded"):
        maps.mean(4)
