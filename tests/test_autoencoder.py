"""First stages: bottlenecks against their formulas, the architecture against diffusers, and what the scale promises."""

import math
import warnings

import pytest
import tiny
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from ldm_lite.autoencoder import Autoencoder, AutoencoderConfig, Codebook, Gaussian, Pixels, usage
from ldm_lite.config import InputError
from ldm_lite.layers import norm

BOTH = pytest.mark.parametrize("bottleneck", ["kl", "vq"])


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape) * 2 - 1


# Bottlenecks --------------------------------------------------------------------------------------------------------


def test_the_penalty_is_the_kl_divergence_to_the_unit_gaussian_per_image():
    h = torch.randn(3, 10, 4, 7)
    mean, logvar = h.chunk(2, 1)
    code = Gaussian()(h)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(code.penalty, expected)
    assert torch.equal(code.mean, mean) and code.index is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_nearest_code_is_found_in_half_precision_too(dtype):
    book, h = Codebook(512, 3), torch.randn(2, 3, 9, 11)
    book.embedding.weight.data.normal_()
    expected = book(h)
    with torch.autocast("cpu", dtype):
        code = book(h)
    assert torch.equal(code.index, expected.index) and torch.equal(code.z, expected.z)
    nearest = torch.cdist(h.permute(0, 2, 3, 1).reshape(-1, 3).double(), book.embedding.weight.double()).argmin(1)
    assert torch.equal(code.index.flatten(), nearest)


def test_a_sample_is_the_mean_and_so_many_deviations():
    h = torch.randn(3, 10, 4, 7)
    torch.manual_seed(1)
    z = Gaussian()(h).z
    torch.manual_seed(1)
    noise = torch.randn(3, 5, 4, 7)
    torch.testing.assert_close((z - h[:, :5]) / (h[:, 5:] / 2).exp(), noise)
    assert torch.equal(Gaussian()(h, sample=False).z, h[:, :5])


@pytest.mark.parametrize(("given", "used"), [(50.0, 20.0), (-50.0, -30.0)])
def test_the_log_variance_is_clamped_as_the_originals(given, used):
    h = torch.stack([torch.zeros(1, 2, 3), torch.full((1, 2, 3), given)], 1)
    assert float(Gaussian()(h).penalty) == pytest.approx(3 * (math.exp(used) - 1 - used), rel=1e-5)


def codebook() -> Codebook:
    book = Codebook(11, 3)
    nn.init.normal_(book.embedding.weight)
    return book


def test_each_position_is_snapped_to_the_nearest_code():
    book, h = codebook(), torch.randn(2, 3, 4, 5)
    code = book(h)
    distance = (h[:, None] - book.embedding.weight[None, :, :, None, None]).norm(dim=2)
    assert torch.equal(code.index, distance.argmin(1)) and len(code.index.unique()) > 5
    torch.testing.assert_close(code.z, book.embedding(code.index).permute(0, 3, 1, 2))
    assert torch.equal(code.mean, h)


def test_embedding_the_chosen_codes_gives_the_snapped_latent():
    book, h = codebook(), torch.randn(2, 3, 4, 5)
    code = book(h)
    torch.testing.assert_close(book.embed(code.index), code.z)


@pytest.mark.parametrize("index", [torch.tensor([[[0, 11]]]), torch.tensor([[[-1, 2]]]), torch.tensor([[[0.5]]])])
def test_an_index_that_is_no_codes_is_refused(index):
    with pytest.raises(InputError, match=r"index: from .* integers from 0 to 10 are needed"):
        codebook().embed(index)


def test_restarted_codes_are_latents_and_the_others_stay():
    book, latents = codebook(), torch.randn(2, 3, 4, 5)
    before = book.embedding.weight.detach().clone()
    book.restart(torch.tensor([2, 7]), latents)
    there = latents.permute(0, 2, 3, 1).reshape(-1, 3)
    changed = (book.embedding.weight != before).any(1)
    assert changed.nonzero().flatten().tolist() == [2, 7]
    assert (torch.cdist(book.embedding.weight[[2, 7]], there).min(1).values == 0).all()


@pytest.mark.parametrize(
    ("index", "share", "perplexity"),
    [([[3, 3], [3, 3]], 1 / 7, 1), ([[0, 1], [2, 6]], 4 / 7, 4), ([0, 0, 5], 2 / 7, 3 / 2 ** (2 / 3))],
)
def test_the_usage_of_a_codebook_is_known(index, share, perplexity):
    assert usage(torch.tensor(index), 7) == pytest.approx((share, perplexity))


def test_the_gradient_passes_the_codebook_straight_through():
    book, h = codebook(), torch.randn(2, 3, 4, 5, requires_grad=True)
    weight = torch.randn(2, 3, 4, 5)
    (book(h).z * weight).sum().backward()
    torch.testing.assert_close(h.grad, weight)
    assert book.embedding.weight.grad is None


def test_the_penalty_pulls_the_latent_with_weight_one_and_the_codes_with_a_quarter():
    book, h = codebook(), torch.randn(2, 3, 4, 5, requires_grad=True)
    code = book(h)
    error = h - book.embedding(code.index).permute(0, 3, 1, 2)
    torch.testing.assert_close(code.penalty, 1.25 * (error**2).mean((1, 2, 3)))
    code.penalty.sum().backward()
    torch.testing.assert_close(h.grad, 2 * error.detach() / 60)
    chosen = code.index == 7 if (code.index == 7).any() else code.index == code.index[0, 0, 0]
    pulled = -0.25 * 2 * error.detach().permute(0, 2, 3, 1)[chosen].sum(0) / 60
    torch.testing.assert_close(book.embedding.weight.grad[code.index[chosen][0]], pulled)


# Architecture -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mult", "f"), [((1,), 1), ((1, 2), 2), ((1, 1, 2), 4)])
@BOTH
def test_latents_are_f_times_smaller_and_pictures_f_times_larger(mult, f, bottleneck):
    stage = tiny.autoencoder(bottleneck, mult=mult, channels=3)
    z = stage.encode(images(2, 3, 5 * f, 3 * f))
    assert stage.f == f and z.shape == (2, stage.channels, 5, 3)
    assert stage.decode(z).shape == (2, 3, 5 * f, 3 * f)
    assert stage.code(images(1, 3, 5 * f, 3 * f)).z.shape == (1, 3, 5, 3)


def translated(stage: Autoencoder) -> dict[str, torch.Tensor]:
    """The weights under the names of diffusers."""
    result = {}
    for name, value in stage.state_dict().items():
        if name == "scale":
            continue
        for ours, theirs in (
            (".down.", ".down_blocks."),
            (".up.", ".up_blocks."),
            (".block.", ".resnets."),
            (".attn.", ".attentions."),
            (".mid.0.", ".mid_block.resnets.0."),
            (".mid.1.", ".mid_block.attentions.0."),
            (".mid.2.", ".mid_block.resnets.1."),
            (".norm_out.", ".conv_norm_out."),
            (".skip.", ".conv_shortcut."),
        ):
            name = name.replace(ours, theirs)
        name = name.replace(".resample.", ".downsamplers.0." if name.startswith("encoder") else ".upsamplers.0.")
        if ".attentions." in name:
            name, value = name.replace(".norm.", ".group_norm.").replace(".proj_out.", ".to_out.0."), value.squeeze()
        if ".qkv." in name:
            q, k, v = value.chunk(3)
            result |= {name.replace(".qkv.", f".{to}."): w for to, w in (("to_q", q), ("to_k", k), ("to_v", v))}
        else:
            result[name] = value
    return result


@pytest.mark.parametrize("attend_at", [(), (2,)])
@pytest.mark.parametrize("mid_attention", [True, False])
def test_the_autoencoder_is_that_of_diffusers(attend_at, mid_attention):
    from diffusers import AutoencoderKL

    mult = (1, 2, 3)
    stage = tiny.autoencoder(mult=mult, blocks=2, attend_at=attend_at, mid_attention=mid_attention).eval()
    for p in stage.parameters():
        nn.init.normal_(p, std=0.2)
    down = ["AttnDownEncoderBlock2D" if 2**i in attend_at else "DownEncoderBlock2D" for i in range(3)]
    other = AutoencoderKL(
        block_out_channels=[8 * m for m in mult],
        latent_channels=2,
        layers_per_block=2,
        down_block_types=down,
        up_block_types=[kind.replace("Down", "Up").replace("Encoder", "Decoder") for kind in down[::-1]],
        norm_num_groups=1,
        mid_block_add_attention=mid_attention,
    ).eval()
    for module in other.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = norm(module.num_channels, 0).num_groups
    other.load_state_dict(translated(stage))
    image = images(2, 3, 12, 20)
    posterior = other.encode(image).latent_dist
    code = stage.code(image, sample=False)
    torch.testing.assert_close(code.mean, posterior.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(code.penalty, posterior.kl(), rtol=1e-4, atol=1e-3)
    z = torch.randn(2, 2, 3, 5)
    torch.testing.assert_close(stage.decode(z), other.decode(z).sample, rtol=1e-4, atol=1e-4)


# Scale --------------------------------------------------------------------------------------------------------------


@BOTH
def test_the_scale_multiplies_latents_and_the_decoder_takes_it_out_again(bottleneck):
    stage, image = tiny.autoencoder(bottleneck).eval(), images(2, 3, 10, 6)
    z = stage.encode(image)
    picture = stage.decode(z)
    stage.scale.fill_(3.5)
    torch.testing.assert_close(stage.encode(image), 3.5 * z)
    torch.testing.assert_close(stage.decode(3.5 * z), picture)


@BOTH
def test_the_measured_scale_brings_latents_to_unit_variance(bottleneck):
    stage, batches = tiny.autoencoder(bottleneck).eval(), [images(3, 3, 10, 6), images(4, 3, 10, 6), images(1, 3, 4, 2)]
    stage.scale.fill_(99.0)  # of an earlier measurement
    torch.manual_seed(1)
    scale = stage.measure_scale(batches)
    torch.manual_seed(1)
    z = torch.cat([stage.encode(image, sample=True).flatten() for image in batches])
    assert z.std(correction=0).item() == pytest.approx(1, rel=1e-4)
    assert scale == float(stage.scale) == float(stage.state_dict()["scale"])


def test_a_scale_cannot_be_measured_on_nothing():
    with pytest.raises(InputError, match="no images to measure the latent scale on"):
        tiny.autoencoder().measure_scale([])


def test_encode_gives_the_posteriors_mean_and_a_sample_when_asked():
    stage, image = tiny.autoencoder().eval(), images(2, 3, 10, 6)
    assert torch.equal(stage.encode(image), stage.code(image).mean)
    torch.manual_seed(1)
    sample = stage.encode(image, sample=True)
    torch.manual_seed(1)
    assert torch.equal(sample, stage.code(image).z) and not torch.equal(sample, stage.encode(image))


def test_vq_encodes_to_the_latent_before_snapping_and_snaps_when_it_decodes():
    stage, image = tiny.autoencoder("vq").eval(), images(2, 3, 10, 6)
    nn.init.normal_(stage.bottleneck.embedding.weight, std=0.1)
    code, z = stage.code(image), stage.encode(image)
    assert torch.equal(z, code.mean) and torch.equal(z, stage.encode(image, sample=True))
    torch.testing.assert_close(stage.decode(z), stage.picture(code.z))
    assert not torch.allclose(stage.decode(z), stage.picture(z))


def test_training_sees_the_picture_of_the_sampled_code():
    stage, image = tiny.autoencoder(), images(2, 3, 10, 6)
    reconstruction, code = stage(image)
    torch.testing.assert_close(reconstruction, stage.picture(code.z))


def test_pixels_are_their_own_latent():
    stage, image = Pixels(), images(2, 3, 5, 7)
    assert stage.f == 1 and stage.channels == 3
    assert stage.encode(image, sample=True) is image and stage.decode(image) is image


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (torch.zeros(2, 1, 4, 4), r"image: shape \(2, 1, 4, 4\); \(B, 3, H, W\) is needed"),
        (torch.zeros(3, 4, 4), r"image: shape \(3, 4, 4\)"),
        (torch.zeros(2, 3, 5, 4), "image: 5 x 4 is not divisible by f = 2"),
        (torch.zeros(2, 3, 4, 7), "image: 4 x 7 is not divisible by f = 2"),
        (torch.full((2, 3, 4, 4), 255.0), r"image: values from 255 to 255; \[-1, 1\] is needed"),
        (torch.full((2, 3, 4, 4), -1.01), "image: values from -1.01"),
        (torch.full((2, 3, 4, 4), math.nan), "image: values from nan"),
    ],
    ids=["grey", "no batch", "odd height", "odd width", "bytes", "dark", "nan"],
)
def test_an_image_that_a_first_stage_cannot_take_is_refused(image, match):
    with pytest.raises(InputError, match=match):
        tiny.autoencoder().encode(image)


def test_pictures_without_a_dark_pixel_are_taken_with_a_warning():
    """The classic mistake: images in [0, 1]. They are in [-1, 1] too, so it cannot be an error."""
    image = images(3, 3, 4, 8)
    with pytest.warns(UserWarning, match=r"if these are in \[0, 1\], give 2 x - 1"):
        tiny.autoencoder().encode((image + 1) / 2)
    with warnings.catch_warnings(action="error"):
        tiny.autoencoder().encode(image)
        tiny.autoencoder().encode(torch.ones(1, 3, 4, 8))  # one white picture is no pattern


def test_an_image_may_leave_the_range_by_rounding():
    tiny.autoencoder().encode(torch.full((1, 3, 4, 4), 1.0005))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"attend_at": (8,)}, "attend_at: 8 is not a downsampling factor of 3 levels"),
        ({"bottleneck": "ae"}, "bottleneck: ae"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        AutoencoderConfig(**settings)
