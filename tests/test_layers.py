"""Blocks against diffusers, torch and formulas written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm_lite.layers import (
    GEGLU,
    CrossAttention,
    Downsample,
    ResBlock,
    SelfAttention,
    SpatialTransformer,
    Upsample,
    by_channels,
    norm,
    sinusoidal,
)


def shaken(module: nn.Module) -> nn.Module:
    """With random weights everywhere: nothing is hidden by a zero."""
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module


@pytest.mark.parametrize("width", [2, 10, 128, 7])
def test_the_time_embedding_is_that_of_diffusers(width):
    from diffusers.models.embeddings import get_timestep_embedding

    clock = torch.tensor([-1.0, 0.0, 0.4, 7.0, 999.0])
    expected = get_timestep_embedding(clock, width, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal(clock, width), expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("width", "groups"), [(4, 1), (8, 2), (124, 31), (128, 32), (224, 32), (1344, 32), (3, 1), (30, 1), (144, 16)]
)
def test_the_norm_has_the_originals_groups_where_they_divide_the_width(width, groups):
    assert norm(width, 1e-6).num_groups == groups
    assert norm(width, 1e-6).eps == 1e-6


@pytest.mark.parametrize(("width", "groups"), [(14, 2), (15, 5), (7, 1), (9, 9)])
def test_the_norm_by_channels_is_the_norm_with_its_gradients(width, groups):
    h = (torch.randn(3, width, 5, 11) * torch.linspace(0.5, 3, width)[:, None, None] + 2).requires_grad_()
    weight, bias, g = (
        torch.randn(width, requires_grad=True),
        torch.randn(width, requires_grad=True),
        torch.randn(h.shape),
    )
    results = []
    for out in (by_channels(h, groups, weight, bias, 1e-3), F.group_norm(h, groups, weight, bias, 1e-3)):
        results.append([out.detach(), *torch.autograd.grad(out, (h, weight, bias), g)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_the_norm_by_channels_loses_nothing_that_half_precision_has():
    """Where the mean is 30 times the deviation, as much as bf16 can tell apart; and where nothing deviates."""
    h = (torch.randn(2, 14, 13, 17) + 30).bfloat16()
    weight, bias = torch.randn(14), torch.randn(14)
    expected = F.group_norm(h.double(), 2, weight.double(), bias.double(), 1e-6)
    out = by_channels(h, 2, weight, bias, 1e-6)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=2**-8)
    flat = by_channels(torch.full((1, 4, 3, 3), 7.0).bfloat16(), 1, weight[:4], bias[:4], 1e-6)
    torch.testing.assert_close(flat.float(), bias[:4, None, None].expand(1, 4, 3, 3), rtol=2**-8, atol=0.02)


# Change of size -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_sided", [True, False])
def test_downsampling_pads_right_and_below_or_all_around(one_sided):
    down, h = shaken(Downsample(3, one_sided)), torch.randn(2, 3, 10, 6)
    padded = F.pad(h, (0, 1, 0, 1)) if one_sided else F.pad(h, (1, 1, 1, 1))
    windows = F.unfold(padded, 3, stride=2)
    expected = torch.einsum("oi,bin->bon", down.conv.weight.flatten(1), windows) + down.conv.bias[:, None]
    torch.testing.assert_close(down(h), expected.view(2, 3, 5, 3))


def test_upsampling_repeats_each_pixel_before_its_convolution():
    up, h = shaken(Upsample(3)), torch.randn(2, 3, 5, 7)
    repeated = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(h), F.conv2d(repeated, up.conv.weight, up.conv.bias, padding=1))


# Residual blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("film", [False, True])
def test_a_residual_block_starts_as_the_identity(film):
    h, emb = torch.randn(2, 8, 5, 7), torch.randn(2, 6)
    assert torch.equal(ResBlock(8, 8, 6, film)(h, emb), h)
    assert not torch.equal(ResBlock(8, 8, 6, film, zero=False)(h, emb), h)


def test_a_residual_block_that_changes_the_width_starts_as_its_skip():
    block, h = ResBlock(8, 12, 6), torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(block(h, torch.randn(2, 6)), block.skip(h))


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize("resample", [None, "up", "down"])
def test_a_residual_block_is_that_of_diffusers(film, resample):
    from diffusers.models.resnet import ResnetBlock2D

    other = ResnetBlock2D(
        in_channels=8,
        out_channels=12,
        temb_channels=6,
        groups=2,
        groups_out=3,
        time_embedding_norm="scale_shift" if film else "default",
        eps=1e-5,
        up=resample == "up",
        down=resample == "down",
    )
    block = shaken(ResBlock(8, 12, 6, film, resample=resample))
    rename = {"emb": "time_emb_proj", "skip": "conv_shortcut"}
    ours = {
        ".".join([rename.get(k.split(".")[0], k.split(".")[0]), k.split(".")[1]]): v
        for k, v in block.state_dict().items()
    }
    other.load_state_dict(ours)
    h, emb = torch.randn(2, 8, 10, 6), torch.randn(2, 6)
    torch.testing.assert_close(block(h, emb), other(h, emb))


def test_dropout_is_for_training_only():
    block, h, emb = shaken(ResBlock(8, 8, 6, dropout=0.5)), torch.randn(2, 8, 5, 7), torch.randn(2, 6)
    assert not torch.equal(block(h, emb), block(h, emb))
    block.eval()
    assert torch.equal(block(h, emb), block(h, emb))


# Attention ----------------------------------------------------------------------------------------------------------


def attended(q, k, v, heads: int):
    """Scaled dot products (B, N, D), (B, L, D), (B, L, D), head after head."""
    out = []
    for q1, k1, v1 in zip(q.chunk(heads, 2), k.chunk(heads, 2), v.chunk(heads, 2), strict=True):
        weights = torch.softmax(q1 @ k1.transpose(1, 2) / math.sqrt(q1.shape[2]), 2)
        out.append(weights @ v1)
    return torch.cat(out, 2)


@pytest.mark.parametrize("heads", [1, 3])
def test_self_attention_is_scaled_dot_products_over_all_positions_with_q_k_v_head_by_head(heads):
    layer, h = shaken(SelfAttention(12, heads)), torch.randn(2, 12, 5, 7)
    tokens = layer.qkv(layer.norm(h)).flatten(2).transpose(1, 2)
    # the original's order: q, k, v of the first head, then of the second
    q, k, v = (torch.cat([part.chunk(3, 2)[i] for part in tokens.chunk(heads, 2)], 2) for i in range(3))
    expected = h + layer.proj_out(attended(q, k, v, heads).transpose(1, 2).reshape(2, 12, 5, 7))
    torch.testing.assert_close(layer(h), expected)


def test_self_attention_starts_as_the_identity():
    h = torch.randn(2, 12, 5, 7)
    assert torch.equal(SelfAttention(12, 3)(h), h)
    assert not torch.equal(SelfAttention(12, 3, zero=False)(h), h)


@pytest.mark.parametrize("context", [None, 11])
def test_cross_attention_is_scaled_dot_products_with_an_inner_width_of_its_own(context):
    layer, x = shaken(CrossAttention(10, context, heads=3, head_channels=4)), torch.randn(2, 5, 10)
    tokens = None if context is None else torch.randn(2, 7, context)
    seen = x if tokens is None else tokens
    expected = layer.to_out(attended(layer.to_q(x), layer.to_k(seen), layer.to_v(seen), 3))
    torch.testing.assert_close(layer(x, tokens), expected)
    assert layer.to_q.weight.shape == (12, 10) and layer.to_k.weight.shape == (12, context or 10)


def test_the_feed_forward_gates_with_the_second_half():
    layer, x = shaken(GEGLU(6)), torch.randn(2, 5, 6)
    inner = layer.proj(x)
    torch.testing.assert_close(layer(x), layer.out(inner[..., :24] * F.gelu(inner[..., 24:])))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("depth", [1, 2])
def test_a_spatial_transformer_is_that_of_diffusers(depth):
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    other = Transformer2DModel(3, 4, in_channels=12, num_layers=depth, cross_attention_dim=11, norm_num_groups=3).eval()
    layer = shaken(SpatialTransformer(12, 11, heads=3, head_channels=4, depth=depth))
    ours = {}
    for name, value in layer.state_dict().items():
        name = name.replace("blocks.", "transformer_blocks.").replace("to_out.", "to_out.0.")
        name = name.replace("ff.proj.", "ff.net.0.proj.").replace("ff.out.", "ff.net.2.")
        ours[name] = value
    other.load_state_dict(ours)
    h, context = torch.randn(2, 12, 5, 7), torch.randn(2, 9, 11)
    torch.testing.assert_close(layer(h, context), other(h, context).sample, rtol=1e-4, atol=1e-4)


def test_a_spatial_transformer_starts_as_the_identity():
    h = torch.randn(2, 12, 5, 7)
    assert torch.equal(SpatialTransformer(12, 11, 3, 4, 1)(h, torch.randn(2, 9, 11)), h)


def test_one_token_of_context_says_the_same_to_every_position():
    """Its softmax is over one key: as the original's class-conditional models use it."""
    layer = shaken(CrossAttention(10, 11, 3, 4))
    out = layer(torch.randn(2, 5, 10), torch.randn(2, 1, 11))
    torch.testing.assert_close(out, out[:, :1].expand_as(out))
