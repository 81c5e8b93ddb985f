"""The UNet against diffusers' on the same weights, and against the sizes of the published ones."""

from dataclasses import replace

import pytest
import torch
from published import DENOISERS
from torch import nn

from ldm_lite.checkpoints import translated
from ldm_lite.condition import Condition
from ldm_lite.config import InputError
from ldm_lite.layers import ResBlock, SelfAttention, norm
from ldm_lite.presets import UNETS
from ldm_lite.unet import UNet, UNetConfig

SMALL = UNetConfig(channels=2, width=8, mult=(1, 2, 3), blocks=1, attend_at=(2, 4), head_channels=8)
TOLD = replace(SMALL, context=5, concat=3, vector=7)


def shaken(unet: UNet) -> UNet:
    """With random weights where it starts with zeros, so that its output depends on everything."""
    for p in unet.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return unet


def condition(config: UNetConfig, rows: int, size: tuple[int, int]) -> Condition:
    return Condition(
        context=torch.randn(rows, 9, config.context) if config.context else None,
        concat=torch.randn(rows, config.concat, *size) if config.concat else None,
        vector=torch.randn(rows, config.vector) if config.vector else None,
    )


# Authorities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNETS)
def test_the_published_models_have_as_many_parameters_as_their_checkpoints(name):
    with torch.device("meta"):
        unet = UNet(UNETS[name])
    assert sum(p.numel() for p in unet.parameters()) == DENOISERS[name]


def test_the_published_models_have_the_heads_that_they_were_trained_with():
    """At each level that attends, the middle last. No shape in a checkpoint tells: a wrong number loads."""
    heads = {name: [c.split(c.width * m)[0] for m in c.mult] for name, c in UNETS.items()}
    assert heads["celebahq-ldm4"][1:] == [14, 21, 28] and heads["bsr-sr"][-1] == 20
    assert all(set(heads[name]) == {1} for name in ("cin256", "cin256-v2", "text2img256", "layout2img256"))
    assert all(set(heads[name]) == {8} for name in ("txt2img-1p4b", "sd-v1", "lsun-churches-ldm8", "inpainting"))


def peer(unet: UNet, cls: str, plain: str, attending: str, **settings) -> nn.Module:
    """diffusers' network with the same weights, and with the number of groups that ours takes at each width."""
    import diffusers

    c = unet.config
    kinds = [attending if 2**i in c.attend_at else plain for i in range(len(c.mult))]
    other = getattr(diffusers, cls)(
        in_channels=c.channels + c.concat,
        out_channels=c.channels,
        block_out_channels=[c.width * m for m in c.mult],
        layers_per_block=c.blocks,
        down_block_types=[kind.format("Down") for kind in kinds],
        up_block_types=[kind.format("Up") for kind in kinds[::-1]],
        norm_num_groups=1,
        resnet_time_scale_shift="scale_shift" if c.film else "default",
        **settings,
    ).eval()
    for module in other.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = norm(module.num_channels, 0).num_groups
    other.load_state_dict(translated(unet, "diffusers"))
    return other


def test_the_unet_is_that_of_diffusers():
    unet = shaken(UNet(replace(SMALL, blocks=2))).eval()
    other = peer(unet, "UNet2DModel", "{}Block2D", "Attn{}Block2D", attention_head_dim=8, norm_eps=1e-5)
    z, clock = torch.randn(2, 2, 12, 20), torch.tensor([3.0, 640.0])
    torch.testing.assert_close(unet(z, clock, Condition()), other(z, clock).sample, rtol=1e-4, atol=1e-4)


def test_the_unet_that_resizes_in_its_blocks_and_is_scaled_by_the_time_is_that_of_diffusers():
    config = UNetConfig(channels=2, width=16, mult=(1, 2), attend_at=(1, 2), heads=4, film=True, resblock_updown=True)
    unet = shaken(UNet(config)).eval()
    resizing = {"downsample_type": "resnet", "upsample_type": "resnet", "norm_eps": 1e-5, "attn_norm_num_groups": 1}
    # one number for all levels: 16 channels in heads of 4, then 32 in heads of 8
    other = peer(unet, "UNet2DModel", "", "Attn{}Block2D", attention_head_dim=4, **resizing)
    for module in other.modules():
        if hasattr(module, "heads"):
            module.heads = 4
    z, clock = torch.randn(2, 2, 6, 10), torch.tensor([3.0, 640.0])
    torch.testing.assert_close(unet(z, clock, Condition()), other(z, clock).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_unet_that_attends_to_a_context_and_adds_a_vector_is_that_of_diffusers():
    config = UNetConfig(
        channels=2, width=8, mult=(1, 2, 3), attend_at=(2,), heads=2, context=5, vector=7, concat=3, depth=2
    )
    unet = shaken(UNet(config)).eval()
    other = peer(
        unet,
        "UNet2DConditionModel",
        "{}Block2D",
        "CrossAttn{}Block2D",
        cross_attention_dim=5,
        attention_head_dim=2,  # their name for the number of heads
        transformer_layers_per_block=2,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=7,
    )
    z, clock, cond = torch.randn(2, 2, 12, 20), torch.tensor([3.0, 640.0]), condition(config, 2, (12, 20))
    expected = other(torch.cat([z, cond.concat], 1), clock, cond.context, class_labels=cond.vector).sample
    torch.testing.assert_close(unet(z, clock, cond), expected, rtol=1e-4, atol=1e-4)


# Properties ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 4), (12, 20), (28, 12)])
def test_the_output_has_the_shape_of_z_and_is_zero_at_first(size):
    unet, z = UNet(TOLD), torch.randn(3, 2, *size)
    out = unet(z, torch.rand(3), condition(TOLD, 3, size))
    assert torch.equal(out, torch.zeros_like(z))


def test_every_input_matters():
    unet = shaken(UNet(TOLD)).eval()
    z, clock, cond = torch.randn(1, 2, 4, 8), torch.tensor([3.0]), condition(TOLD, 1, (4, 8))
    plain = unet(z, clock, cond)
    for changed in (
        unet(z + 1, clock, cond),
        unet(z, clock + 1, cond),
        unet(z, clock, replace(cond, context=-cond.context)),
        unet(z, clock, replace(cond, concat=-cond.concat)),
        unet(z, clock, replace(cond, vector=-cond.vector)),
    ):
        assert (changed - plain).abs().max() > 1e-3


def test_a_row_of_the_batch_depends_on_itself_alone():
    unet = shaken(UNet(TOLD)).eval()
    z, clock, cond = torch.randn(3, 2, 4, 8), torch.tensor([3.0, 70.0, 900.0]), condition(TOLD, 3, (4, 8))
    alone = unet(z[1:2], clock[1:2], cond.map(lambda tensor: tensor[1:2]))
    torch.testing.assert_close(unet(z, clock, cond)[1:2], alone, rtol=1e-4, atol=1e-5)


ONE_GRAPH = {
    "told": replace(TOLD, mult=(1, 2), attend_at=(2,)),
    "unconditional": UNetConfig(channels=2, width=8, mult=(1, 2), blocks=1, heads=2, film=True, resblock_updown=True),
    "recomputing": UNetConfig(channels=2, width=8, mult=(1,), blocks=1, heads=2, checkpoint=True),
}


@pytest.mark.parametrize("name", ONE_GRAPH)
def test_the_unet_compiles_as_one_graph_with_the_same_output_and_gradients(name):
    """fullgraph refuses every graph break; the backend runs the graph as it is, which takes no compiler."""
    config = ONE_GRAPH[name]
    unet = shaken(UNet(config))
    z, clock, cond = torch.randn(2, 2, 4, 6), torch.tensor([3.0, 70.0]), condition(config, 2, (4, 6))
    results = []
    for forward in (unet, torch.compile(unet, fullgraph=True, backend="eager")):
        unet.zero_grad()
        out = forward(z, clock, cond)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in unet.parameters())])
    torch.testing.assert_close(*results)


def test_a_network_and_a_latent_with_the_channels_last_in_memory_give_the_same():
    unet = shaken(UNet(TOLD)).eval()
    z, clock, cond = torch.randn(2, 2, 4, 8), torch.tensor([3.0, 70.0]), condition(TOLD, 2, (4, 8))
    expected, last = unet(z, clock, cond), torch.channels_last
    out = unet.to(memory_format=last)(z.to(memory_format=last), clock, cond)
    assert out.is_contiguous(memory_format=last)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_activations_are_kept_unless_it_is_asked_to_recompute_them(monkeypatch):
    calls = []
    monkeypatch.setattr("ldm_lite.unet.checkpoint", lambda block, *a, **k: calls.append(block) or block(*a))
    z, clock = torch.randn(1, 2, 4, 8), torch.zeros(1)
    UNet(SMALL)(z, clock, Condition())
    assert not calls
    saving = UNet(replace(SMALL, checkpoint=True))
    saving(z, clock, Condition())
    assert len(calls) == len(saving.down) + len(saving.mid) + len(saving.up)
    calls.clear()
    saving.eval()(z, clock, Condition())
    assert not calls


@pytest.mark.parametrize("config", [SMALL, TOLD, replace(SMALL, resblock_updown=True)])
def test_recomputing_activations_changes_no_gradient(config):
    plain = shaken(UNet(config))
    saving = UNet(replace(config, checkpoint=True))
    saving.load_state_dict(plain.state_dict())
    z, clock, cond = torch.randn(2, 2, 4, 8), torch.tensor([3.0, 70.0]), condition(config, 2, (4, 8))
    for unet in (plain, saving):
        unet(z, clock, cond).square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_dropout_is_in_every_residual_block_and_for_training_only():
    unet = shaken(UNet(replace(SMALL, dropout=0.3)))
    assert {block.dropout for block in unet.modules() if isinstance(block, ResBlock)} == {0.3}
    z, clock = torch.randn(1, 2, 4, 8), torch.tensor([3.0])
    assert not torch.equal(unet(z, clock, Condition()), unet(z, clock, Condition()))
    unet.eval()
    assert torch.equal(unet(z, clock, Condition()), unet(z, clock, Condition()))


def test_attention_sits_at_the_downsampling_factors_asked_for_and_in_the_middle():
    unet = UNet(replace(SMALL, attend_at=(4,)))
    where = {name.removesuffix(".attend") for name, m in unet.named_modules() if isinstance(m, SelfAttention)}
    assert where == {"down.4", "mid.0", "up.0", "up.1"}


@pytest.mark.parametrize(
    ("settings", "width", "split"),
    [({"heads": 4}, 24, (4, 6)), ({"head_channels": 8}, 24, (3, 8)), ({"head_channels": 32}, 8, (1, 8))],
)
def test_channels_are_split_into_heads(settings, width, split):
    assert UNetConfig(width=8, **settings).split(width) == split


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"attend_at": (8,)}, "attend_at: 8 is not a downsampling factor of 3 levels"),
        ({"attend_at": (3,)}, "attend_at: 3 is not"),
        ({"heads": 2}, "heads, head_channels: give exactly one"),
        ({"head_channels": None}, "heads, head_channels: give exactly one"),
        ({"head_channels": None, "heads": 3}, "8 channels cannot be split into 3 heads"),
        ({"width": 0}, "^width: 0 is not 1 or more"),
        ({"blocks": 0}, "^blocks: 0 is not 1 or more"),
        ({"head_channels": 0}, "^head_channels: 0 is not 1 or more"),
        ({"mult": (1, 0), "attend_at": ()}, "^mult: 0 is not 1 or more"),
        ({"mult": (), "attend_at": ()}, "^mult: 0 is not 1 or more"),
        ({"vector": -3}, "^vector: -3 is below 0"),
        ({"dropout": 1.0}, r"^dropout: 1.0 is not in \[0, 1\)"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        replace(SMALL, **settings)


@pytest.mark.parametrize(("door", "shape"), [("context", "B, L, 5"), ("concat", "B, 3, h, w"), ("vector", "B, 7")])
def test_a_door_left_shut_or_of_the_wrong_width_is_named(door, shape):
    unet, z, clock = UNet(TOLD), torch.randn(2, 2, 4, 8), torch.zeros(2)
    cond, width = condition(TOLD, 2, (4, 8)), getattr(TOLD, door)
    said = rf"^{door}: the UNet was built for width {width}, the condition has {{}}; \({shape}\) is needed$"
    with pytest.raises(InputError, match=said.format(0)):
        unet(z, clock, replace(cond, **{door: None}))
    doubled = torch.cat([getattr(cond, door)] * 2, 2 if door == "context" else 1)
    with pytest.raises(InputError, match=said.format(2 * width)):
        unet(z, clock, replace(cond, **{door: doubled}))
    with pytest.raises(InputError, match=f"^{door}: .* built for width 0, the condition has {width}; leave it out$"):
        UNet(SMALL)(z, clock, Condition(**{door: getattr(cond, door)}))


@pytest.mark.parametrize("size", [(6, 8), (8, 6), (2, 4)])
def test_a_latent_that_cannot_be_halved_often_enough_is_refused(size):
    with pytest.raises(InputError, match=f"^z: a latent of {size[0]} x {size[1]} is not divisible by 4; crop or pad"):
        UNet(SMALL)(torch.randn(1, 2, *size), torch.zeros(1), Condition())


@pytest.mark.parametrize("shape", [(1, 3, 4, 8), (2, 4, 8)])
def test_a_latent_of_other_channels_is_refused(shape):
    with pytest.raises(InputError, match=r"^z: a latent of \(B, 2, h, w\) is needed, not "):
        UNet(SMALL)(torch.randn(shape), torch.zeros(1), Condition())


def test_maps_of_another_size_than_the_latents_are_refused():
    with pytest.raises(InputError, match=r"^concat: maps of \(8, 4\) do not fit z's \(4, 8\)$"):
        UNet(TOLD)(torch.randn(1, 2, 4, 8), torch.zeros(1), condition(TOLD, 1, (8, 4)))
