"""Original weights: names against those of the published files, outputs against diffusers and the original algorithm,
and every file that is refused."""

import json
import math
import os
import pickle
import re
import shutil
import sys
import types
import warnings
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm_lite.autoencoder import Autoencoder, AutoencoderConfig, Pixels
from ldm_lite.checkpoints import load_compvis, load_diffusers, save_compvis, save_diffusers, translated
from ldm_lite.condition import Condition
from ldm_lite.conditioners import Labels, LabelsConfig, Unconditional
from ldm_lite.config import InputError, read, write
from ldm_lite.diffusion import Diffusion, RectifiedFlow, VariancePreserving
from ldm_lite.latent import LatentDiffusion
from ldm_lite.presets import FIRST_STAGES, UNETS
from ldm_lite.unet import UNet, UNetConfig

DATA = Path(__file__).parent / "data"
PUBLISHED = json.loads((DATA / "compvis_first_stages.json").read_text())
PUBLISHED_UNETS = json.loads((DATA / "compvis_unets.json").read_text())
# The published first stages with fewer and narrower levels; no two that follow each other are alike by accident
ALIKE = {
    "kl-f4": AutoencoderConfig(channels=3, mult=(1, 2, 1), blocks=1),
    "kl-f8": AutoencoderConfig(channels=4, mult=(1, 1, 2, 1), blocks=1),
    "kl-f16": AutoencoderConfig(channels=5, mult=(1, 1, 1, 2, 1), blocks=1, attend_at=(16,)),
    "kl-f32": AutoencoderConfig(channels=6, mult=(1, 1, 1, 1, 2, 1), blocks=1, attend_at=(16, 32)),
    "vq-f4": AutoencoderConfig(bottleneck="vq", channels=3, mult=(1, 2, 1), blocks=2, codes=37),
    "vq-f4-noattn": AutoencoderConfig(
        bottleneck="vq", channels=3, mult=(1, 1, 2), blocks=1, codes=23, mid_attention=False
    ),
    "vq-f8": AutoencoderConfig(bottleneck="vq", channels=4, mult=(1, 2, 1, 1), blocks=1, codes=29, attend_at=(2, 8)),
}
EVERY = pytest.mark.parametrize("name", ALIKE)
PLAIN = AutoencoderConfig(channels=3, mult=(1,), blocks=1)


def stage(config: AutoencoderConfig, scale: float = 1.0) -> Autoencoder:
    """Weights N(0, 0.05), gammas near 1, and what the latent's few channels pass so that it keeps a size of about 1."""
    model = Autoencoder(config).eval()
    for name, p in model.named_parameters():
        nn.init.normal_(p, 1 if re.search(r"norm.*weight", name) else 0, 0.5 if "quant_conv" in name else 0.05)
    if config.bottleneck == "vq":
        nn.init.normal_(model.bottleneck.embedding.weight)
    model.scale.fill_(scale)
    return model.requires_grad_(False)


def image(model: Autoencoder) -> Tensor:
    return torch.rand(1, 3, 3 * model.f, 2 * model.f) * 2 - 1


def assert_same(a: nn.Module, b: nn.Module) -> None:
    """Bit for bit."""
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)
    assert a.config == b.config


def assert_close(a: Tensor, b: Tensor) -> None:
    assert 0.2 < a.std() < 20  # something to compare
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


# The published files ------------------------------------------------------------------------------------------------


def shapes(tree: dict, prefix: str = "") -> dict[str, list[int]]:
    """Names and shapes of a published file's tensors. The data has the shapes of weights; a bias has the first size."""
    found = {}
    for name, below in tree.items():
        if isinstance(below, dict):
            found |= shapes(below, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}.weight"] = below
            if name not in ("embedding", "to_q", "to_k", "to_v"):
                found[f"{prefix}{name}.bias"] = below[:1]
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_names_and_shapes_of_a_preset_are_the_published_files(name):
    with torch.device("meta"):
        model = Autoencoder(FIRST_STAGES[name].model)
    found = {key: list(value.shape) for key, value in translated(model, "compvis").items()}
    assert found == shapes(PUBLISHED[name])


def test_every_published_first_stage_is_a_preset():
    """Number of tensors, and millions of parameters, of each."""
    found = {name: shapes(tree) for name, tree in PUBLISHED.items()}
    millions = {name: round(sum(math.prod(shape) for shape in of.values()) / 1e6, 2) for name, of in found.items()}
    assert {name: (len(of), millions[name]) for name, of in found.items()} == {
        "kl-f4": (204, 55.31),
        "kl-f8": (248, 83.65),
        "kl-f16": (342, 69.61),
        "kl-f32": (436, 103.88),
        "vq-f4": (205, 55.32),
        "vq-f4-noattn": (185, 53.22),
        "vq-f8": (299, 67.72),
        "vq-f8-n256": (299, 67.65),
        "vq-f16": (343, 69.59),
    }
    assert set(found) == set(FIRST_STAGES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_tells_its_configuration(name, monkeypatch):
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes(PUBLISHED[name]).items()}
    monkeypatch.setattr("ldm_lite.checkpoints.tensors", lambda path: dict(state))
    with torch.device("meta"):
        assert load_compvis("model.ckpt").config == FIRST_STAGES[name].model
        for other, recipe in FIRST_STAGES.items():
            if other == name:
                load_compvis("model.ckpt", recipe.model)
            else:
                with pytest.raises(InputError, match=r"^model.ckpt: another first stage than the one asked for: "):
                    load_compvis("model.ckpt", recipe.model)


def test_a_first_stage_alone_does_not_pass_for_a_whole_model(monkeypatch):
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes(PUBLISHED["vq-f4"]).items()}
    monkeypatch.setattr("ldm_lite.checkpoints.tensors", lambda path: dict(state))
    with torch.device("meta"):
        with pytest.raises(
            InputError, match=r"^model.ckpt: holds no denoiser, and celebahq-ldm4 has one; --part first"
        ):
            load_compvis("model.ckpt", "celebahq-ldm4")
        assert isinstance(load_compvis("model.ckpt", "celebahq-ldm4", part="first_stage"), Autoencoder)


@pytest.mark.parametrize("name", PUBLISHED_UNETS)
def test_the_names_and_shapes_of_a_published_unet_are_the_published_files(name):
    with torch.device("meta"):
        unet = UNet(UNETS[name])
    found = {key: list(value.shape) for key, value in translated(unet, "compvis").items()}
    assert found == shapes(PUBLISHED_UNETS[name])


def test_every_published_unet_is_there_with_as_many_tensors_as_its_file():
    assert {name: len(shapes(tree)) for name, tree in PUBLISHED_UNETS.items()} == {
        "celebahq-ldm4": 368,
        "lsun-churches-ldm8": 520,
        "cin256": 626,
        "cin256-v2": 688,
        "text2img256": 688,
        "txt2img-1p4b": 686,
        "sd-v1": 686,
        "layout2img256": 1328,
        "semantic256": 216,
        "bsr-sr": 306,
        "inpainting": 416,
        "rdm768": 688,
    }
    same = {"ffhq-ldm4", "lsun-bedrooms-ldm4"}
    assert set(UNETS) == set(PUBLISHED_UNETS) | same
    assert all(UNETS[name] == UNETS["celebahq-ldm4"] for name in same)


@pytest.mark.parametrize("name", PUBLISHED_UNETS)
def test_a_published_unet_tells_everything_but_its_heads(name, monkeypatch):
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes(PUBLISHED_UNETS[name]).items()}
    monkeypatch.setattr("ldm_lite.checkpoints.tensors", lambda path: dict(state))
    with torch.device("meta"):
        assert load_compvis("model.ckpt", expect=name).config == UNETS[name]
        with pytest.raises(InputError, match=rf"^model.ckpt: the number of heads is in no shape.*shapes are.* {name}"):
            load_compvis("model.ckpt")
        for other, config in UNETS.items():
            if config != UNETS[name]:
                with pytest.raises(InputError, match=r"^model.ckpt: another denoiser than the one asked for: "):
                    load_compvis("model.ckpt", expect=other)


# Outputs ------------------------------------------------------------------------------------------------------------


class Original:
    """The original's algorithm in plain functions of tensors in its names (ldm/modules/diffusionmodules/model.py).

    What is there is computed: a level has as many blocks as names, a block attention where there are names for it."""

    def __init__(self, state: dict[str, Tensor]):
        self.state = state
        self.levels = len({name.split(".")[2] for name in state if name.startswith("encoder.down.")})

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.state

    def conv(self, name: str, h: Tensor) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(h, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def swish(self, name: str, h: Tensor) -> Tensor:
        h = self.norm(name, h)
        return h * torch.sigmoid(h)

    def block(self, name: str, h: Tensor) -> Tensor:
        x = self.conv(f"{name}.conv1", self.swish(f"{name}.norm1", h))
        x = self.conv(f"{name}.conv2", self.swish(f"{name}.norm2", x))
        return x + (self.conv(f"{name}.nin_shortcut", h) if self.has(f"{name}.nin_shortcut") else h)

    def attention(self, name: str, h: Tensor) -> Tensor:
        if not self.has(f"{name}.q"):
            return h
        x = self.norm(f"{name}.norm", h)
        q, k, v = (self.conv(f"{name}.{part}", x).flatten(2) for part in "qkv")
        seen = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * q.shape[1] ** -0.5, -1)
        return h + self.conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", seen, v).reshape(h.shape))

    def blocks(self, name: str, h: Tensor) -> Tensor:
        j = 0
        while self.has(f"{name}.block.{j}.conv1"):
            h, j = self.attention(f"{name}.attn.{j}", self.block(f"{name}.block.{j}", h)), j + 1
        return h

    def mid(self, name: str, h: Tensor) -> Tensor:
        return self.block(f"{name}.block_2", self.attention(f"{name}.attn_1", self.block(f"{name}.block_1", h)))

    def encode(self, image: Tensor) -> Tensor:
        h = self.conv("encoder.conv_in", image)
        for i in range(self.levels):
            h, name = self.blocks(f"encoder.down.{i}", h), f"encoder.down.{i}.downsample.conv"
            if self.has(name):
                h = F.conv2d(F.pad(h, (0, 1, 0, 1)), self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride=2)
        h = self.swish("encoder.norm_out", self.mid("encoder.mid", h))
        return self.conv("quant_conv", self.conv("encoder.conv_out", h))

    def decode(self, z: Tensor) -> Tensor:
        if self.has("quantize.embedding"):
            codes = self.state["quantize.embedding.weight"]
            distance = (z.movedim(1, -1)[..., None, :] - codes).norm(dim=-1)
            z = codes[distance.argmin(-1)].movedim(-1, 1)
        h = self.mid("decoder.mid", self.conv("decoder.conv_in", self.conv("post_quant_conv", z)))
        for i in reversed(range(self.levels)):
            h, name = self.blocks(f"decoder.up.{i}", h), f"decoder.up.{i}.upsample.conv"
            if self.has(name):
                h = self.conv(name, h.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return self.conv("decoder.conv_out", self.swish("decoder.norm_out", h))


@EVERY
def test_a_file_in_the_original_names_computes_the_same_by_the_original_algorithm(name, tmp_path):
    model = stage(ALIKE[name])
    save_compvis(model, tmp_path / "model.safetensors")
    other, picture = Original(load_file(tmp_path / "model.safetensors")), image(model)
    moments = other.encode(picture)
    assert_close(model.quant_conv(model.encoder(picture)), moments)
    z = torch.randn(1, model.channels, 3, 2)
    assert_close(model.decode(z), other.decode(z))


def peer(folder: Path):
    """What diffusers makes of a folder."""
    import diffusers

    return (
        getattr(diffusers, read(folder / "config.json")["_class_name"])
        .from_pretrained(folder, low_cpu_mem_usage=False)
        .eval()
    )


@EVERY
def test_diffusers_computes_the_same_from_the_folder_that_is_written(name, tmp_path):
    model = stage(ALIKE[name], scale=0.7)
    save_diffusers(model, tmp_path)
    other, picture, z = peer(tmp_path), image(model), torch.randn(1, model.channels, 3, 2)
    assert other.config.scaling_factor == pytest.approx(0.7)
    with torch.no_grad():
        if model.config.bottleneck == "kl":
            posterior = other.encode(picture).latent_dist
            assert_close(model.code(picture, sample=False).mean, posterior.mean)
            assert_close(model.quant_conv(model.encoder(picture)).chunk(2, 1)[1], posterior.logvar)
        else:
            assert_close(model.code(picture).mean, other.encode(picture).latents)
            assert torch.equal(model.bottleneck(z).index.flatten(), other.quantize(z)[2][2])
        assert_close(model.encode(picture), 0.7 * model.code(picture, sample=False).mean)
        assert_close(model.decode(0.7 * z), other.decode(z).sample)


@pytest.mark.parametrize("name", ["kl-f4", "kl-f8"])  # it leaves attention in the levels, and codebooks, behind
def test_diffusers_reads_a_file_in_the_original_names(name, tmp_path):
    from diffusers import AutoencoderKL

    model = stage(ALIKE[name])
    save_compvis(model, tmp_path / "model.safetensors")
    save_diffusers(model, tmp_path)
    other = AutoencoderKL.from_single_file(str(tmp_path / "model.safetensors"), config=str(tmp_path)).eval()
    picture, z = image(model), torch.randn(1, model.channels, 3, 2)
    with torch.no_grad():
        assert_close(model.encode(picture), other.encode(picture).latent_dist.mean)
        assert_close(model.decode(z), other.decode(z).sample)


@EVERY
def test_a_folder_that_diffusers_wrote_computes_the_same_here(name, tmp_path):
    model = stage(ALIKE[name], scale=0.7)
    save_diffusers(model, tmp_path / "ours")
    peer(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert_same(load_diffusers(tmp_path / "theirs"), model)


# Denoisers ----------------------------------------------------------------------------------------------------------

# The published denoisers with fewer and narrower levels
SAME = {
    "faces": UNetConfig(channels=3, width=128, mult=(1, 2), blocks=1, attend_at=(2,), head_channels=32),
    "imagenet": UNetConfig(channels=3, width=128, mult=(1, 2), blocks=1, attend_at=(1, 2), heads=2, context=5),
    "layout": UNetConfig(channels=4, width=128, mult=(1, 2), blocks=2, attend_at=(2,), heads=4, context=7, depth=2),
    "upscaler": UNetConfig(channels=2, concat=3, width=160, mult=(1, 1, 2), blocks=1, attend_at=(4,), head_channels=80),
    "retrieval": UNetConfig(channels=3, width=128, mult=(1, 2), blocks=1, attend_at=(1,), head_channels=64, context=6),
    "told": UNetConfig(
        channels=3, width=128, mult=(1, 2), blocks=1, attend_at=(2,), heads=2, context=5, vector=6, concat=1, film=True
    ),
    "resizing": UNetConfig(
        channels=3, width=128, mult=(1, 2), blocks=1, attend_at=(2,), head_channels=16, film=True, resblock_updown=True
    ),
    "inpainting": UNetConfig(
        channels=3, concat=4, width=128, mult=(1, 2), blocks=1, attend_at=(2,), head_channels=32, resblock_updown=True
    ),
    "semantic": UNetConfig(
        channels=3, concat=3, width=128, mult=(1, 2, 2), blocks=1, attend_at=(), head_channels=64
    ),  # attention in the middle alone
    "sd-v1": UNetConfig(channels=4, width=128, mult=(1, 1, 1, 2), blocks=1, attend_at=(1, 2, 4), heads=2, context=6),
    # diffusers has one size of heads for all levels: this cannot be written as one of theirs
    "churches": UNetConfig(
        channels=4, width=128, mult=(1, 2), blocks=2, attend_at=(1, 2), heads=4, film=True, resblock_updown=True
    ),
}


def denoiser(config: UNetConfig) -> UNet:
    """Random weights with which outputs have the size of 0.5, and gammas near 1."""
    unet = UNet(config).eval()
    for name, p in unet.named_parameters():
        nn.init.normal_(
            p, 1 if re.search(r"norm.*weight", name) else 0, 0.6 * p[0].numel() ** -0.5 if p.ndim > 1 else 0.05
        )
    return unet.requires_grad_(False)


def questions(c: UNetConfig) -> tuple[Tensor, Tensor, Condition]:
    """z, the clock and a condition; 12 x 20 becomes 6 x 10 or 3 x 5 at the deepest level; 24 x 16 of four is 3 x 2."""
    side = (12, 20) if c.factor <= 4 else (24, 16)
    cond = Condition(
        context=torch.randn(2, 3, c.context) if c.context else None,
        concat=torch.randn(2, c.concat, *side) if c.concat else None,
        vector=torch.randn(2, c.vector) if c.vector else None,
    )
    return torch.randn(2, c.channels, *side), torch.tensor([3.0, 641.0]), cond


def assert_alike(ours, theirs, asked: tuple[Tensor, Tensor, Condition]) -> None:
    """The same function of (z, clock, condition): in float64, and in float32 up to the 2e-6 that each rounds."""
    for dtype, tolerance in ((torch.float32, 4e-6), (torch.float64, 1e-12)):
        z, clock, cond = asked[0].to(dtype), asked[1], asked[2].map(lambda tensor, dtype=dtype: tensor.to(dtype))
        with torch.no_grad():
            a, b = ours.to(dtype)(z, clock, cond), theirs(dtype)(z, clock, cond)
        assert 0.2 < a.std() < 2
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


class OriginalUNet:
    """The original's algorithm in plain functions of tensors in its names (openaimodel.py, attention.py).

    What is there is computed. The number of heads at a width and whether residual blocks resize are in no tensor."""

    def __init__(self, state: dict[str, Tensor], heads, resizing: bool, per: int):
        self.state = {name.removeprefix("model.diffusion_model."): value for name, value in state.items()}
        self.heads, self.resizing, self.per = (
            heads,
            resizing,
            per,
        )  # per: blocks of a level, its change of size included

    def has(self, name: str) -> bool:
        return any(key.startswith(f"{name}.") for key in self.state)

    def linear(self, name: str, h: Tensor) -> Tensor:
        return F.linear(h, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def conv(self, name: str, h: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(h, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2, stride=stride)

    def norm(self, name: str, h: Tensor, eps: float = 1e-5) -> Tensor:
        return F.group_norm(h, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def res(self, name: str, h: Tensor, resize=lambda h: h) -> Tensor:
        x = self.conv(f"{name}.in_layers.2", resize(F.silu(self.norm(f"{name}.in_layers.0", h))))
        emb = self.linear(f"{name}.emb_layers.1", F.silu(self.emb))[..., None, None]
        if emb.shape[1] == x.shape[1]:
            x = self.norm(f"{name}.out_layers.0", x + emb)
        else:
            scale, shift = emb.chunk(2, 1)
            x = self.norm(f"{name}.out_layers.0", x) * (1 + scale) + shift
        x = self.conv(f"{name}.out_layers.3", F.silu(x))
        h = resize(h)
        return x + (self.conv(f"{name}.skip_connection", h) if self.has(f"{name}.skip_connection") else h)

    def attention(self, name: str, h: Tensor) -> Tensor:
        """QKVAttentionLegacy: split into heads before q, k and v."""
        n, c = len(h), h.shape[1]
        x = self.norm(f"{name}.norm", h).flatten(2)
        qkv = F.conv1d(x, self.state[f"{name}.qkv.weight"], self.state[f"{name}.qkv.bias"])
        width = c // self.heads(c)
        q, k, v = qkv.reshape(n * self.heads(c), 3 * width, -1).split(width, dim=1)
        seen = torch.softmax(torch.einsum("bct,bcs->bts", q, k) * width**-0.5, -1)
        x = torch.einsum("bts,bcs->bct", seen, v).reshape(n, c, -1)
        x = F.conv1d(x, self.state[f"{name}.proj_out.weight"], self.state[f"{name}.proj_out.bias"])
        return h + x.reshape(h.shape)

    def cross(self, name: str, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            self.linear(f"{name}.to_q", x),
            self.linear(f"{name}.to_k", context),
            self.linear(f"{name}.to_v", context),
        )
        q, k, v = (t.unflatten(2, (self.heads(t.shape[2]), -1)) for t in (q, k, v))
        seen = torch.softmax(torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5, -1)
        return self.linear(f"{name}.to_out.0", torch.einsum("bhij,bjhd->bihd", seen, v).flatten(2))

    def transformer(self, name: str, h: Tensor) -> Tensor:
        x = self.conv(f"{name}.proj_in", self.norm(f"{name}.norm", h, 1e-6)).flatten(2).mT
        i = 0
        while self.has(block := f"{name}.transformer_blocks.{i}"):
            normed = lambda x, j, block=block: F.layer_norm(
                x, x.shape[2:], self.state[f"{block}.norm{j}.weight"], self.state[f"{block}.norm{j}.bias"]
            )
            x = x + self.cross(f"{block}.attn1", normed(x, 1), normed(x, 1))
            x = x + self.cross(f"{block}.attn2", normed(x, 2), self.context)
            value, gate = self.linear(f"{block}.ff.net.0.proj", normed(x, 3)).chunk(2, -1)
            x, i = x + self.linear(f"{block}.ff.net.2", value * F.gelu(gate)), i + 1
        return h + self.conv(f"{name}.proj_out", x.mT.reshape(h.shape))

    def block(self, name: str, h: Tensor, i: int) -> Tensor:
        for k in range(3):
            child, twice = f"{name}.{k}", lambda h: h.repeat_interleave(2, 2).repeat_interleave(2, 3)
            if self.has(f"{child}.in_layers"):
                halves = self.resizing and name.startswith("input") and i % self.per == 0
                h = self.res(child, h, twice if k else (lambda h: F.avg_pool2d(h, 2)) if halves else lambda h: h)
            elif self.has(f"{child}.qkv"):
                h = self.attention(child, h)
            elif self.has(f"{child}.proj_in"):
                h = self.transformer(child, h)
            elif self.has(f"{child}.op"):
                h = self.conv(f"{child}.op", h, stride=2)
            elif self.has(f"{child}.conv"):
                h = self.conv(f"{child}.conv", twice(h))
        return h

    def __call__(self, z: Tensor, clock: Tensor, cond: Condition) -> Tensor:
        half = self.state["time_embed.0.weight"].shape[1] // 2
        angle = clock[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        embedding = torch.cat([angle.cos(), angle.sin()], 1).to(z.dtype)
        self.emb = self.linear("time_embed.2", F.silu(self.linear("time_embed.0", embedding)))
        if cond.vector is not None:
            self.emb = self.emb + self.linear("label_emb.0.2", F.silu(self.linear("label_emb.0.0", cond.vector)))
        self.context, i = cond.context, 1
        skips = [h := self.conv("input_blocks.0.0", z if cond.concat is None else torch.cat([z, cond.concat], 1))]
        while self.has(f"input_blocks.{i}"):
            skips.append(h := self.block(f"input_blocks.{i}", h, i))
            i += 1
        attention = self.attention if self.has("middle_block.1.qkv") else self.transformer
        h = self.res("middle_block.2", attention("middle_block.1", self.res("middle_block.0", h)))
        for i, skip in enumerate(skips[::-1]):
            h = self.block(f"output_blocks.{i}", torch.cat([h, skip], 1), i)
        return self.conv("out.2", F.silu(self.norm("out.0", h)))


@pytest.mark.parametrize("name", SAME)
def test_a_denoiser_in_the_original_names_computes_the_same_by_the_original_algorithm(name, tmp_path):
    unet, config = denoiser(SAME[name]), SAME[name]
    save_compvis(unet, tmp_path / "unet.safetensors")
    state = load_file(tmp_path / "unet.safetensors")
    assert all(key.startswith("model.diffusion_model.") for key in state)

    def other(dtype):
        wide, split = {name: value.to(dtype) for name, value in state.items()}, lambda width: config.split(width)[0]
        return OriginalUNet(wide, split, config.resblock_updown, config.blocks + 1)

    assert_same(load_compvis(tmp_path / "unet.safetensors", config), unet)
    assert_alike(unet, other, questions(config))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", [name for name in SAME if name != "churches"])
def test_diffusers_computes_the_same_from_the_folder_of_a_denoiser_and_back(name, tmp_path):
    unet, config = denoiser(SAME[name]), SAME[name]
    save_diffusers(unet, tmp_path / "ours")
    theirs = peer(tmp_path / "ours")

    def other(dtype):
        def called(z, clock, cond):
            h = z if cond.concat is None else torch.cat([z, cond.concat], 1)
            told = () if cond.context is None else (cond.context,)
            more = {} if cond.vector is None else {"class_labels": cond.vector}
            return theirs.to(dtype)(h, clock, *told, **more).sample

        return called

    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        assert_same(load_diffusers(tmp_path / folder), unet)
    assert_alike(unet, other, questions(config))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_diffusers_computes_the_same_as_churches_once_its_attention_has_as_many_heads(tmp_path):
    """It has one size of heads for all levels, and is written with it; its blocks take any number all the same."""
    from diffusers.models.attention_processor import Attention

    config = SAME["churches"]
    unet = denoiser(config)
    save_diffusers(UNet(replace(config, heads=None, head_channels=32)), tmp_path)
    theirs = peer(tmp_path)
    theirs.load_state_dict(translated(unet, "diffusers"))
    for module in theirs.modules():
        if isinstance(module, Attention):
            module.heads = config.heads
    assert_alike(unet, lambda dtype: lambda z, clock, _: theirs.to(dtype)(z, clock).sample, questions(config))


def test_a_wrong_number_of_heads_loads_strictly_and_computes_something_else(tmp_path):
    """The trap of cin256: its configuration says 32 channels a head, its weights were trained with one head."""
    right = replace(SAME["imagenet"], heads=1)
    wrong = replace(right, heads=None, head_channels=32)
    unet = denoiser(right)
    save_compvis(unet, tmp_path / "unet.ckpt")
    one, many = (load_compvis(tmp_path / "unet.ckpt", config) for config in (right, wrong))
    torch.testing.assert_close(one.state_dict(), many.state_dict(), rtol=0, atol=0)
    asked = questions(right)
    torch.testing.assert_close(one(*asked), unet(*asked))
    assert (one(*asked) - many(*asked)).abs().max() > 1e-3 * one(*asked).std()
    with pytest.raises(InputError, match=r"unet.ckpt: the number of heads is in no shape, and a wrong one loads"):
        load_compvis(tmp_path / "unet.ckpt")


# Whole models -------------------------------------------------------------------------------------------------------

BETAS = {  # of the published models
    "celebahq": (0.0015, 0.0195),
    "churches": (0.0015, 0.0155),
    "layout": (0.0015, 0.0205),
    "retrieval": (0.0015, 0.015),
    "stable": (0.00085, 0.012),
}


def whole_model(kind: str = "vq", config: UNetConfig = SAME["faces"], **diffusion) -> LatentDiffusion:
    """f = 2. With a context its three classes are labels."""
    first = stage(
        AutoencoderConfig(config.channels, mult=(1, 1), blocks=1, bottleneck=kind, mid_attention=False),
        1.0 if kind == "vq" else 0.3,
    )
    told = Labels(LabelsConfig(tiny.NAMES, config.context)) if config.context else Unconditional()
    settings = {"schedule": VariancePreserving(), "predicts": "eps"} | diffusion
    return LatentDiffusion(first, denoiser(config), Diffusion(**settings), told).eval()


def assert_same_model(a: LatentDiffusion, b: LatentDiffusion) -> None:
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)
    assert (a.first_stage.config, a.denoiser.config) == (b.first_stage.config, b.denoiser.config)
    assert (a.conditioner.config, a.diffusion) == (b.conditioner.config, b.diffusion)


@pytest.mark.parametrize("kind", ["vq", "kl"])
@pytest.mark.parametrize("name", ["faces", "imagenet"])
@pytest.mark.parametrize("file", ["model.ckpt", "model.safetensors"])
def test_a_whole_model_comes_back_from_the_original_names(kind, name, file, tmp_path):
    model = whole_model(kind, SAME[name], schedule=VariancePreserving(end=0.0205), predicts="v")
    save_compvis(model, tmp_path / file)
    labels = tiny.NAMES if name == "imagenet" else None
    again = load_compvis(tmp_path / file, SAME[name], labels=labels, predicts="v")
    assert_same_model(again, model)
    assert not again.training
    assert_same(load_compvis(tmp_path / file, SAME[name], part="denoiser"), model.denoiser)
    assert_same(load_compvis(tmp_path / file, part="first_stage"), model.first_stage)


def test_a_published_name_brings_the_loss_that_the_model_was_trained_with(tmp_path, monkeypatch):
    monkeypatch.setitem(UNETS, "lsun-churches-ldm8", SAME["churches"])
    model = whole_model("kl", SAME["churches"], distance="l1", schedule=VariancePreserving(end=0.0155))
    save_compvis(model, tmp_path / "model.ckpt")
    assert_same_model(load_compvis(tmp_path / "model.ckpt", "lsun-churches-ldm8"), model)


@pytest.mark.parametrize("ema", [True, False])
def test_the_averaged_weights_are_taken_where_there_are_some(ema, tmp_path):
    """As LitEma writes them: names without dots, beside its own two numbers."""
    last, averaged = whole_model(), whole_model()
    save_compvis(last, tmp_path / "model.ckpt")
    state = torch.load(tmp_path / "model.ckpt")["state_dict"]
    names = translated(averaged.denoiser, "compvis").items()
    state |= {f"model_ema.diffusion_model{name.replace('.', '')}": value for name, value in names}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    for part in ("model", "denoiser"):
        found = load_compvis(tmp_path / "model.ckpt", SAME["faces"], part, ema=ema)
        assert_same(getattr(found, "denoiser", found), (averaged if ema else last).denoiser)
    del state["model_ema.diffusion_modelout2bias"]
    torch.save({"state_dict": state | {"model_ema.diffusion_modelmore": torch.zeros(1)}}, tmp_path / "model.ckpt")
    if ema:
        with pytest.raises(InputError, match=r"out.2.bias is missing \(1 of \d+ are\)"):
            load_compvis(tmp_path / "model.ckpt", SAME["faces"])
    else:
        load_compvis(tmp_path / "model.ckpt", SAME["faces"], ema=False)


def original_tables(start: float, end: float, kind: str = "linear") -> dict[str, Tensor]:
    """register_schedule of the original (v_posterior 0): float64, then float32. Its "linear" is linear in the root."""
    betas = torch.linspace(start, end, 1000, dtype=torch.float64)
    if kind == "linear":
        betas = torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float64) ** 2
    bar = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    variance = betas * (1 - before) / (1 - bar)
    tables = {
        "betas": betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": bar**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - bar) ** 0.5,
        "log_one_minus_alphas_cumprod": torch.log(1 - bar),
        "sqrt_recip_alphas_cumprod": (1 / bar) ** 0.5,
        "sqrt_recipm1_alphas_cumprod": (1 / bar - 1) ** 0.5,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": torch.log(variance.clamp(min=1e-20)),
        "posterior_mean_coef1": betas * before**0.5 / (1 - bar),
        "posterior_mean_coef2": (1 - before) * (1 - betas) ** 0.5 / (1 - bar),
    }
    return {name: table.float() for name, table in tables.items()}


@pytest.mark.parametrize("name", BETAS)
def test_the_schedule_of_a_published_model_is_found_in_its_betas(name, tmp_path):
    model, path = whole_model(schedule=VariancePreserving("scaled_linear", *BETAS[name])), tmp_path / "model.ckpt"
    save_compvis(model, path)
    state, tables = torch.load(path)["state_dict"], original_tables(*BETAS[name])
    for key, table in tables.items():
        torch.testing.assert_close(state[key], table, rtol=2e-7, atol=0 if key != "alphas_cumprod_prev" else 1e-7)
    for stored in (tables, {key: table.half() for key, table in tables.items()}):  # some files were halved as a whole
        torch.save({"state_dict": state | stored}, path)
        assert load_compvis(path, SAME["faces"]).diffusion == model.diffusion


@pytest.mark.parametrize(
    "schedule", [VariancePreserving("linear", 1e-4, 0.02), VariancePreserving("cosine"), VariancePreserving(steps=400)]
)
def test_other_schedules_are_found_too(schedule, tmp_path):
    model = whole_model(schedule=schedule)
    save_compvis(model, tmp_path / "model.ckpt")
    assert load_compvis(tmp_path / "model.ckpt", SAME["faces"]).diffusion.schedule == schedule


@pytest.mark.parametrize("rows", [1000, 1001])
def test_the_embedding_of_classes_becomes_labels_with_a_null_class(rows, tmp_path):
    """cin256 has 1000 rows and no null class, so nothing to guide it with; of cin256-v2 the last of 1001 is it."""
    model, path = whole_model(config=SAME["imagenet"]), tmp_path / "model.ckpt"
    save_compvis(model, path)
    state, table = torch.load(path)["state_dict"], torch.randn(rows, SAME["imagenet"].context)
    torch.save({"state_dict": state | {"cond_stage_model.embedding.weight": table}}, path)
    labels = load_compvis(path, SAME["imagenet"]).conditioner
    told = labels({"label": torch.tensor([3, 999])})
    assert torch.equal(told.context[:, 0], table[[3, 999]])
    null = labels({"label": torch.tensor([1000])}).context[0, 0]
    assert torch.equal(null, table[1000] if rows == 1001 else torch.zeros_like(null))
    assert labels.blank({"label": torch.tensor([3])})["label"].item() == (1000 if rows == 1001 else 3)


def pipeline(folder: Path):
    from diffusers import LDMPipeline

    made = LDMPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("kind", "predicts", "zero_terminal"), [("vq", "eps", False), ("kl", "v", False), ("kl", "v", True)]
)
def test_a_pipeline_of_diffusers_from_our_folder_draws_our_picture(
    kind, predicts, zero_terminal, tmp_path, monkeypatch
):
    """The same noise and grid: 5 DDIM steps. Pictures have 256 steps of 4e-3 between black and white; here 1e-4."""
    from diffusers.pipelines.deprecated.latent_diffusion_uncond import pipeline_latent_diffusion_uncond as theirs

    from ldm_lite.latent import Noise

    model = whole_model(kind, predicts=predicts, schedule=VariancePreserving(zero_terminal=zero_terminal))
    save_diffusers(model, tmp_path, size=20)
    monkeypatch.setattr(theirs, "randn_tensor", lambda shape, **_: Noise(3, tuple(shape))(torch.empty(0)))
    drawn = pipeline(tmp_path)(batch_size=2, num_inference_steps=5, output_type="np").images
    ours = model.sample({}, n=2, steps=5, seed=3, size=20)
    assert ours.shape == (2, 3, 20, 20) and ours.std() > 0.1 and (ours.abs() < 1).float().mean() > 0.3
    torch.testing.assert_close(torch.from_numpy(drawn).movedim(-1, 1), ours / 2 + 0.5, rtol=0, atol=1e-4)


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_a_whole_model_comes_back_from_a_pipeline_of_ours_and_of_theirs(kind, zero_terminal, tmp_path):
    model = whole_model(kind, schedule=VariancePreserving("linear", 2e-4, 0.03, 500, zero_terminal), predicts="z0")
    save_diffusers(model, tmp_path / "ours", size=24)
    made = pipeline(tmp_path / "ours")
    assert made.vqvae.config.scaling_factor == pytest.approx(float(model.first_stage.scale))
    assert (made.unet.config.sample_size, made.scheduler.config.clip_sample) == (12, False)
    made.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        assert_same_model(load_diffusers(tmp_path / folder), model)


# Round trips --------------------------------------------------------------------------------------------------------


@EVERY
def test_a_first_stage_comes_back_from_the_original_names_bit_for_bit(name, tmp_path):
    file = "model.safetensors" if name == "vq-f4" else "model.ckpt"
    model = stage(ALIKE[name], scale=0.18215)
    save_compvis(model, tmp_path / file)
    again = load_compvis(tmp_path / file, scale=float(model.scale))
    assert_same(again, model)
    assert not again.training and float(load_compvis(tmp_path / file).scale) == 1


@EVERY
def test_a_first_stage_comes_back_from_diffusers_bit_for_bit(name, tmp_path):
    """With any scale, that which a VQ model of theirs is not believed included."""
    model = stage(replace(ALIKE[name], image_channels=2), 0.18215)
    save_diffusers(model, tmp_path)
    again = load_diffusers(tmp_path)
    assert_same(again, model)
    assert not again.training


def test_weights_may_be_written_in_half_precision_and_are_read_in_single(tmp_path):
    model = stage(PLAIN, scale=0.7)
    save_compvis(model, tmp_path / "model.ckpt", torch.float16)
    save_diffusers(model, tmp_path, torch.float16)
    assert load_file(tmp_path / "diffusion_pytorch_model.safetensors")["quant_conv.bias"].dtype == torch.float16
    expected = {k: v.half().float() for k, v in model.state_dict().items() if k != "scale"} | {"scale": model.scale}
    for again in (load_compvis(tmp_path / "model.ckpt", scale=float(model.scale)), load_diffusers(tmp_path)):
        torch.testing.assert_close(again.state_dict(), expected, rtol=0, atol=0)


def test_a_narrow_model_goes_to_diffusers_when_all_its_norms_have_as_many_groups(tmp_path):
    model = stage(AutoencoderConfig(channels=2, width=32, mult=(1, 1, 1), blocks=1))
    save_diffusers(model, tmp_path)
    assert read(tmp_path / "config.json")["norm_num_groups"] == 8
    assert_same(load_diffusers(tmp_path), model)
    z = torch.randn(1, 2, 3, 2)
    with torch.no_grad():
        assert_close(model.decode(z), peer(tmp_path).decode(z).sample)


@pytest.mark.filterwarnings("error")
def test_a_pipeline_as_the_hub_has_it_is_read(tmp_path):
    """As CompVis/ldm-celebahq-256: pickled weights, attention under its old names, a VQ model without a scale."""
    model, old = whole_model(), {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    save_diffusers(model, tmp_path)
    for part in ("vqvae", "unet"):
        saved = tmp_path / part / "diffusion_pytorch_model.safetensors"
        state = {re.sub("|".join(old), lambda m: old[m[0]], name): value for name, value in load_file(saved).items()}
        torch.save(state, saved.with_suffix(".bin"))
        saved.unlink()
    config = read(tmp_path / "vqvae" / "config.json")
    del config["scaling_factor"]
    write(tmp_path / "vqvae" / "config.json", config)
    scheduler = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "clip_sample": False}
    scheduler |= {"_class_name": "DDIMScheduler", "trained_betas": None, "timestep_values": None}
    write(tmp_path / "scheduler" / "scheduler_config.json", scheduler)
    assert_same_model(load_diffusers(tmp_path), model)


# What checkpoints look like -----------------------------------------------------------------------------------------


@pytest.fixture
def lightning(monkeypatch):
    """A class of a package that is there when the checkpoint is written, and not when it is read."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as patch:
        for i in range(3):
            part = name.rsplit(".", i)[0]
            patch.setitem(sys.modules, part, types.ModuleType(part))
        sys.modules[name].ModelCheckpoint = callback
        yield callback


def original(model: nn.Module) -> OrderedDict[str, Tensor]:
    return OrderedDict((name, value.clone()) for name, value in translated(model, "compvis").items())


def test_a_checkpoint_of_lightning_is_read_without_lightning(lightning, tmp_path):
    """As training leaves it: callbacks by class, objects, the optimizer, and the loss with its networks."""
    model, path = stage(PLAIN), tmp_path / "last.ckpt"
    loss = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.randn(64, 3, 4, 4)}
    ema = {"model_ema.decay": torch.tensor(0.9999), "model_ema.encoderconv_inweight": torch.zeros(128, 3, 3, 3)}
    content = {
        "epoch": 12,
        "state_dict": OrderedDict(original(model) | loss | ema),
        "callbacks": {lightning: {"best_model_score": torch.tensor(0.3)}},
        "hyper_parameters": lightning(),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}],
    }
    torch.save(content, path)
    trusted = set(torch.serialization.get_safe_globals())
    del sys.modules["pytorch_lightning.callbacks.model_checkpoint"]
    assert_same(load_compvis(path), model)
    assert set(torch.serialization.get_safe_globals()) == trusted


@pytest.mark.parametrize("bare", [True, False])
def test_a_bare_state_dict_is_read_in_the_old_format_too(bare, tmp_path):
    model, path = stage(PLAIN), tmp_path / "model.pt"
    state = original(model) if bare else {"state_dict": original(model)}
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert_same(load_compvis(path), model)


@pytest.mark.parametrize(("given", "scale"), [(None, 0.22), (0.5, 0.5)])
def test_the_first_stage_in_a_whole_model_is_found_with_its_scale(given, scale, tmp_path):
    model, path = stage(PLAIN), tmp_path / "model.ckpt"
    inside = {f"first_stage_model.{name}": value for name, value in original(model).items()}
    others = {
        "betas": torch.zeros(1000),
        "scale_factor": torch.tensor(0.22),
        "model.diffusion_model.out.2.weight": torch.zeros(3, 224, 3, 3),
        "model_ema.diffusion_modelout2weight": torch.zeros(3, 224, 3, 3),
        "cond_stage_model.encoder.conv_in.weight": torch.zeros(128, 3, 3, 3),
    }
    torch.save({"state_dict": others | inside}, path)
    model.scale.fill_(scale)
    assert_same(load_compvis(path, part="first_stage", scale=given), model)
    assert_same(load_compvis(path, PLAIN, scale=given), model)  # who asks for a first stage gets it


@pytest.mark.parametrize(("name", "scale"), [("sd-v1", 0.18215), ("txt2img-1p4b", 0.18215), ("ffhq-ldm4", 1.0)])
def test_the_first_stage_of_a_published_model_has_the_scale_that_only_its_configuration_says(name, scale, tmp_path):
    path = tmp_path / "model.ckpt"
    inside = {f"first_stage_model.{name}": value for name, value in original(stage(PLAIN)).items()}
    torch.save({"state_dict": inside}, path)
    found = load_compvis(path, name, part="first_stage")
    assert float(found.scale) == pytest.approx(scale)
    assert float(load_compvis(path, name, part="first_stage", scale=0.5).scale) == 0.5


class Touch:
    """Pickled, it is a call that makes a file."""

    def __init__(self, function, path: Path):
        self.call = function, path

    def __reduce__(self):
        function, path = self.call
        return (os.system, (f"touch {path}",)) if function is os.system else (function, (f"open({str(path)!r}, 'w')",))


@pytest.mark.parametrize("function", [eval, os.system], ids=["eval", "system"])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_checkpoint_is_run(function, zipped, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "model.ckpt"
    content = {"state_dict": original(stage(PLAIN)), "callbacks": Touch(function, mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if function is eval and zipped:
        load_compvis(path)
    else:
        with pytest.raises(InputError, match=r"model.ckpt: cannot be read without running code in it; if you trust it"):
            load_compvis(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # the checkpoint is as bad as it is meant to be


@pytest.mark.parametrize("version", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_that_would_run_code_is_refused_for_that_in_one_line(version, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "model.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Touch(os.system, mark)}, version))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(InputError, match=r"model.ckpt: a pickle .*: refused, because reading it would run code"):
            load_compvis(path)
    assert not said and not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists()


@pytest.mark.parametrize("place", ["", "vae", "vqvae"])
@pytest.mark.parametrize("file", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"])
def test_folders_of_older_pipelines_are_read(place, file, tmp_path):
    """Attention under its old names, pickled weights, and a config that leaves out what was the default."""
    model = stage(replace(ALIKE["vq-f8"] if place == "vqvae" else ALIKE["kl-f16"], channels=4), 1.0)
    save_diffusers(model, tmp_path / place)
    saved = tmp_path / place / "diffusion_pytorch_model.safetensors"
    state, old = load_file(saved), {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    saved.unlink()
    state = {re.sub("|".join(old), lambda m: old[m[0]], name): value for name, value in state.items()}
    assert (
        sum(".proj_attn." in name for name in state) == 2 * len([n for n in state if n.endswith("proj_attn.bias")]) > 0
    )
    (save_file if file.endswith(".safetensors") else torch.save)(state, tmp_path / place / file)
    config = read(tmp_path / place / "config.json")
    for name in ("scaling_factor", "mid_block_add_attention", "norm_num_groups", "act_fn", "in_channels"):
        del config[name]
    write(tmp_path / place / "config.json", config)
    model.scale.fill_(1.0 if place == "vqvae" else 0.18215)
    assert_same(load_diffusers(tmp_path), model)


@pytest.mark.parametrize(("given", "scale"), [(None, 1.0), (0.18215, 0.18215)])
def test_the_copied_scale_of_a_vq_model_is_not_taken_unless_it_is_given(given, scale, tmp_path):
    model = stage(replace(PLAIN, bottleneck="vq"), scale)
    save_diffusers(model, tmp_path)
    write(tmp_path / "config.json", read(tmp_path / "config.json") | {"scaling_factor": 0.18215})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = load_diffusers(tmp_path, scale=given)
    assert_same(again, model)
    assert ["0.18215 is no VQ model's" in str(w.message) for w in said] == ([] if given else [True])


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("original") / "model.ckpt"
    save_compvis(stage(ALIKE["vq-f4"]), path)
    return path


def changed(file: Path, target: Path, change) -> Path:
    state = torch.load(file)["state_dict"]
    change(state)
    torch.save(state, target)
    return target


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".pt"])
@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1", bytes(range(256)), b"\x80\x02}q"]
)
def test_a_file_that_is_no_checkpoint_is_refused(content, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"model{suffix}: truncated or not a checkpoint; fetch it again$"):
        load_compvis(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".old.ckpt"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.99999])
def test_a_truncated_file_is_refused(share, suffix, tmp_path):
    path, model = tmp_path / f"model{suffix}", stage(PLAIN)
    if suffix == ".old.ckpt":
        torch.save(original(model), path, _use_new_zipfile_serialization=False)
    else:
        save_compvis(model, path)
    with open(path, "rb+") as opened:
        opened.truncate(int(path.stat().st_size * share))
    with pytest.raises(InputError, match=f"model{suffix}: truncated or not a checkpoint; fetch it again$"):
        load_compvis(path)


def test_a_path_without_a_file_is_refused(tmp_path):
    for name in ("none.ckpt", "none.safetensors"):
        with pytest.raises(InputError, match=f"{name}: No such file or directory"):
            load_compvis(tmp_path / name)
    with pytest.raises(InputError, match="Is a directory"):
        load_compvis(tmp_path)


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"state_dict": {}}, {"epoch": 3}, torch.zeros(3), None])
def test_a_file_without_a_model_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match=r"model.ckpt: has no tensors with names; a checkpoint of a model is needed"):
        load_compvis(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("encoder.conv_in.weight"), "encoder.conv_in.weight is missing; a first stage, all of it"),
        (lambda s: s.pop("post_quant_conv.weight"), "post_quant_conv.weight is missing; a first stage, all of it"),
        (lambda s: s.pop("decoder.mid.attn_1.k.bias"), r"decoder.mid.attn_1.k.bias is missing \(1 of 205 are\)"),
        (lambda s: s.update({"decoder.more": torch.zeros(1)}), r"decoder.more has no place in the model \(1 tensors"),
        (
            lambda s: s.update({"decoder.conv_out.bias": torch.zeros(4)}),
            r"decoder.conv_out.bias is \(4,\); \(3,\) is needed",
        ),
        (
            lambda s: s.update({"encoder.down.1.block.0.conv1.weight": torch.zeros(200, 128, 3, 3)}),
            r"its levels have \[128, 200, 128\] channels; multiples of 128 are needed",
        ),
        (lambda s: s.update({"encoder.conv_in.weight": torch.zeros(())}), "encoder.conv_in.weight is missing"),
    ],
    ids=["first", "bottleneck", "one", "one too many", "shape", "widths", "scalar"],
)
def test_a_file_with_less_or_more_than_a_first_stage_is_refused(change, match, file, tmp_path):
    with pytest.raises(InputError, match=rf"model.ckpt: {match}"):
        load_compvis(changed(file, tmp_path / "model.ckpt", change))


def test_the_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save({"model.diffusion_model.out.2.weight": torch.zeros(3, 224, 3, 3)}, tmp_path / "unet.ckpt")
    with pytest.raises(InputError, match=r"unet.ckpt: encoder.conv_in.weight is missing; a first stage"):
        load_compvis(tmp_path / "unet.ckpt", expect="vq-f4")
    with pytest.raises(InputError, match=r"unet.ckpt: input_blocks.0.0.weight is missing; a UNet, all of it"):
        load_compvis(tmp_path / "unet.ckpt", expect="celebahq-ldm4")


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"mult": (1, 2, 4, 4), "channels": 4}, r"channels is 3, not 4; mult is \(1, 2, 1\), not \(1, 2, 4, 4\)$"),
        ({"bottleneck": "kl"}, "bottleneck is vq, not kl$"),
        ({"codes": 8192}, "codes is 37, not 8192$"),
        ({"attend_at": (4, 2)}, r"attend_at is \(\), not \(2, 4\)$"),
        ({"mid_attention": False, "blocks": 3}, "blocks is 2, not 3; mid_attention is True, not False$"),
    ],
)
def test_a_checkpoint_of_another_first_stage_than_the_one_asked_for_is_refused(other, match, file):
    asked = ALIKE["vq-f4"]
    load_compvis(file, asked)
    with pytest.raises(InputError, match=rf"model.ckpt: another first stage than the one asked for: {match}"):
        load_compvis(file, replace(asked, **other))


def test_factors_are_asked_for_in_any_order_and_a_kl_stage_for_any_codes(tmp_path):
    save_compvis(stage(ALIKE["kl-f32"]), tmp_path / "model.ckpt")
    load_compvis(tmp_path / "model.ckpt", replace(ALIKE["kl-f32"], attend_at=(32, 16), codes=7))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_cannot_be_is_refused(scale, file):
    with pytest.raises(InputError, match=f"^scale: {scale} is not above 0"):
        load_compvis(file, scale=scale)


def test_a_narrow_model_has_other_norms_than_the_original(tmp_path):
    """Nothing in the file tells: it would load, and compute something else."""
    model = tiny.autoencoder(width=64)
    with pytest.raises(
        InputError, match=r"at width 64 our norms have 16, 32 groups, the original's 32; 128 is the least"
    ):
        save_compvis(model, tmp_path / "model.ckpt")
    torch.save(original(model), tmp_path / "model.ckpt")
    with pytest.raises(InputError, match=r"model.ckpt: at width 64 our norms have 16, 32 groups"):
        load_compvis(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (tiny.autoencoder(), "width: 8 has norms with 2, 4 groups; diffusers has one number"),
        (Autoencoder(replace(PLAIN, mult=(2, 4))), r"mult: \(2, 4\) does not begin with 1; diffusers' first level"),
        (Pixels(), "Pixels: has no names in the layout of diffusers; Autoencoder, UNet have"),
    ],
    ids=["groups", "stem", "pixels"],
)
def test_a_model_that_diffusers_cannot_be_is_refused_before_anything_is_written(model, match, tmp_path):
    with pytest.raises(InputError, match=match):
        save_diffusers(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("diffusers")
    save_diffusers(stage(replace(PLAIN, mult=(1, 2))), path)
    return path


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"_class_name": "AutoencoderTiny"}, "_class_name 'AutoencoderTiny' is not one of AutoencoderKL, VQModel"),
        ({"shift_factor": 0.1159}, "shift_factor is 0.1159; an Autoencoder has None"),
        ({"use_quant_conv": False}, "use_quant_conv is False; an Autoencoder has True"),
        ({"act_fn": "mish"}, "act_fn is 'mish'; an Autoencoder has 'silu'"),
        ({"norm_type": "spatial"}, "norm_type is 'spatial'; an Autoencoder has 'group'"),
        ({"norm_num_groups": 16}, "norm_num_groups is 16; at this width ours has 32"),
        ({"out_channels": 4}, "out_channels is 4, in_channels 3; they must be equal"),
        ({"vq_embed_dim": 8}, "vq_embed_dim is 8, latent_channels 3; they must be equal"),
        ({"block_out_channels": [128, 200]}, r"its levels have \[128, 200\] channels; multiples of 128 are needed"),
        (
            {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
            r"up_block_types is \['UpDecoderBlock2D', 'UpDecoderBlock2D'\]; needed are 2 of UpDecoderBlock2D or Attn",
        ),
        (
            {"down_block_types": ["DownEncoderBlock2D", "SkipDownBlock2D"]},
            r"down_block_types is \['DownEncoderBlock2D', 'SkipDownBlock2D'\]; needed are 2 of DownEncoderBlock2D or A",
        ),
        ({"block_out_channels": [128]}, "down_block_types is .*; needed are 1 of DownEncoderBlock2D"),
        ({"block_out_channels": 128}, "not a config of AutoencoderKL"),
        ({"layers_per_block": "2"}, "not a config of AutoencoderKL"),
        ({"scaling_factor": None}, "not a config of AutoencoderKL"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_of_diffusers_that_an_autoencoder_cannot_be_is_refused(settings, match, folder, tmp_path):
    write(tmp_path / "config.json", read(folder / "config.json") | settings)
    with pytest.raises(InputError, match=rf"config.json: {match}"):
        load_diffusers(tmp_path)


def test_a_folder_of_diffusers_that_is_not_whole_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"config.json: no such file"):
        load_diffusers(tmp_path)
    write(tmp_path / "config.json", read(folder / "config.json"))
    with pytest.raises(InputError, match=r"diffusion_pytorch_model.safetensors: No such file"):
        load_diffusers(tmp_path)
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    del state["encoder.mid_block.attentions.0.to_q.bias"]
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match=r"attentions.0.to_q.bias is missing \(1 of \d+ are\)"):
        load_diffusers(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config.json: _class_name None is not one of AutoencoderKL, VQModel"):
        load_diffusers(tmp_path)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("whole") / "model.ckpt"
    save_compvis(whole_model("kl", SAME["imagenet"]), path)
    return path


def without(*names: str):
    return lambda state: [state.pop(name) for name in list(state) if name.startswith(names)]


@pytest.mark.parametrize(
    ("change", "settings", "match"),
    [
        (without("scale_factor"), {}, "scale_factor is missing; give scale, the scale_factor of the model's YAML"),
        (without("betas"), {}, "betas is missing; give schedule"),
        (
            lambda s: s.update(betas=torch.linspace(0.01, 0.02, 9) ** 3),
            {},
            "betas from 1e-06 to 8e-06 are none of our schedules; give schedule",
        ),
        (lambda s: None, {"labels": None}, "labels: the embedding has 4 rows; give the names of its classes"),
        (lambda s: None, {"labels": ("a", "b")}, "labels: 2 names, and the embedding has 4 rows"),
        (
            lambda s: s.update({"cond_stage_model.embedding.weight": torch.zeros(4, 6)}),
            {},
            "cond_stage_model.embedding.weight is 6 wide, the context 5",
        ),
        (
            without("cond_stage_model."),
            {},
            'a context from outside: say in condition, or by the published model.s name, what it is; part="denoiser"',
        ),
        (
            lambda s: s.update({"cond_stage_model.transformer.token_emb.weight": s.pop(EMBEDDING)}),
            {},
            r"cond_stage_model.transformer.token_emb.weight: say in condition, or by .* name, what it is; part=",
        ),
        (without("first_stage_model.encoder.conv_in"), {}, "encoder.conv_in.weight is missing; a first stage, all of"),
        (without("first_stage_model."), {"part": "model"}, "encoder.conv_in.weight is missing; a first stage, all of"),
        (without("model.diffusion_model."), {"part": "model"}, "input_blocks.0.0.weight is missing; a UNet, all of"),
        (without("model.diffusion_model.time_embed.2.b"), {}, r"time_embed.2.bias is missing \(1 of \d+ are\)"),
        (without("model.diffusion_model.output_blocks.3"), {}, "3 output blocks and 2 levels; a UNet, all of it, is n"),
        (without("model.diffusion_model.middle_block.1."), {}, "another denoiser than the one asked for: context is 0"),
        (lambda s: s.update({"model.diffusion_model.more": torch.zeros(1)}), {}, "more has no place in the model"),
    ],
)
def test_a_file_with_less_or_more_than_a_whole_model_is_refused(change, settings, match, whole_file, tmp_path):
    settings = {"labels": tiny.NAMES} | settings
    path = changed(whole_file, tmp_path / "model.ckpt", change)
    with pytest.raises(InputError, match=rf"^{path}: {match}"):
        load_compvis(path, SAME["imagenet"], **settings)


EMBEDDING = "cond_stage_model.embedding.weight"


def test_the_parts_of_a_model_whose_conditioner_is_not_here_load_alone(whole_file, tmp_path):
    path = changed(whole_file, tmp_path / "model.ckpt", lambda s: s.update({f"{EMBEDDING}.more": s.pop(EMBEDDING)}))
    assert load_compvis(path, SAME["imagenet"], part="denoiser").config == SAME["imagenet"]
    assert load_compvis(path, part="first_stage").channels == 3


def test_what_the_file_does_not_say_can_be_given(whole_file, tmp_path):
    path = changed(whole_file, tmp_path / "model.ckpt", without("scale_factor", "betas"))
    given = {"scale": 0.18215, "schedule": VariancePreserving(end=0.02), "predicts": "v", "labels": tiny.NAMES}
    model = load_compvis(path, SAME["imagenet"], **given)
    assert float(model.first_stage.scale) == pytest.approx(0.18215)
    assert model.diffusion == Diffusion(VariancePreserving(end=0.02), "v")


def test_an_unknown_published_model_is_told_the_names(whole_file):
    with pytest.raises(
        InputError, match=r"^cin256-v3: no such published model; did you mean cin256-v2\? there are kl-f4, "
    ):
        load_compvis(whole_file, "cin256-v3")


VECTOR = UNetConfig(channels=2, width=128, mult=(1,), blocks=1, heads=2, vector=6)


def told_by_vector() -> LatentDiffusion:
    labels = Labels(LabelsConfig(tiny.NAMES, 6, "vector"))
    first = stage(AutoencoderConfig(channels=2, mult=(1, 1), blocks=1))
    return LatentDiffusion(first, UNet(VECTOR), Diffusion(VariancePreserving()), labels)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: whole_model(schedule=RectifiedFlow()), "^RectifiedFlow: the original has no such schedule"),
        (told_by_vector, "^Labels as vector: has no names in the original; save denoiser alone"),
        (lambda: UNet(tiny.UNET), "at width 8 our norms have 2, 4, 6, 8 groups, the original's 32; 128 is the least"),
    ],
    ids=["flow", "vector", "narrow"],
)
def test_a_model_that_the_original_cannot_be_is_refused_before_anything_is_written(make, match, tmp_path):
    with pytest.raises(InputError, match=match):
        save_compvis(make(), tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: UNet(SAME["churches"]), "^heads: they have 32, 64 channels; UNet2DModel has one number"),
        (lambda: UNet(VECTOR), "^vector: UNet2DModel is told nothing but the time"),
        (
            lambda: UNet(replace(SAME["imagenet"], resblock_updown=True)),
            "^resblock_updown: UNet2DConditionModel has it with another attention",
        ),
        (lambda: UNet(replace(SAME["faces"], mult=(2, 2))), r"^mult: \(2, 2\) does not begin with 1"),
        (lambda: UNet(tiny.UNET), "^width: 8 has norms with 2, 4, 6, 8 groups; diffusers has one number"),
        (
            lambda: whole_model(config=SAME["imagenet"]),
            "^Labels: LDMPipeline has no conditions; save first_stage and",
        ),
        (lambda: whole_model(schedule=RectifiedFlow()), "^RectifiedFlow that predicts eps: DDIMScheduler has no such"),
        (whole_model, "^size: 30 is not divisible by 4"),
    ],
)
def test_a_denoiser_or_whole_model_that_diffusers_cannot_be_is_refused(make, match, tmp_path):
    with pytest.raises(InputError, match=match):
        save_diffusers(make(), tmp_path / "folder", size=30)
    assert not (tmp_path / "folder").exists()


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pipeline")
    save_diffusers(whole_model(), path, size=20)
    save_diffusers(UNet(SAME["imagenet"]), path / "told")
    return path


@pytest.mark.parametrize(
    ("part", "settings", "match"),
    [
        ("unet", {"freq_shift": 1}, "freq_shift is 1; a UNet has 0"),
        ("unet", {"norm_eps": 1e-6}, "norm_eps is 1e-06; a UNet has 1e-05"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'; a UNet has None or a projection"),
        ("unet", {"num_class_embeds": 10}, "num_class_embeds is 10; a UNet has None"),
        ("unet", {"downsample_type": "resnet"}, r"downsample_type and upsample_type are \('resnet', 'conv'\); both"),
        ("unet", {"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'; a UNet has 'default'"),
        (
            "unet",
            {"attention_head_dim": 24},
            r"attention_head_dim is 24, which does not divide the channels \[128, 256\]",
        ),
        ("unet", {"norm_num_groups": 16}, "norm_num_groups is 16; at this width ours has 32"),
        ("unet", {"block_out_channels": [128, 200], "attention_head_dim": 8}, r"its levels have \[128, 200\] channels"),
        ("unet", {"block_out_channels": None}, "not a config of UNet2DModel"),
        ("unet", {"in_channels": 2}, "concat: -1 is below 0"),
        (
            "unet",
            {"down_block_types": ["SkipDownBlock2D"] * 2},
            "down_block_types is .*; needed are 2 of DownBlock2D or A",
        ),
        ("told", {"attention_head_dim": [2, 3]}, r"attention_head_dim is \[2, 3\]; one number or heads of one size"),
        (
            "told",
            {"transformer_layers_per_block": [1, 2]},
            r"transformer_layers_per_block is \[1, 2\]; the same number",
        ),
        ("told", {"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'; a UNet has None"),
        ("told", {"class_embed_type": "projection"}, "not a config of UNet2DConditionModel"),
    ],
)
def test_a_config_of_diffusers_that_a_unet_cannot_be_is_refused(part, settings, match, pipeline_folder, tmp_path):
    write(tmp_path / "config.json", read(pipeline_folder / part / "config.json") | settings)
    with pytest.raises(InputError, match=rf"config.json: {match}"):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("file", "settings", "match"),
    [
        (
            "model_index.json",
            {"bert": ["transformers", "Bert"]},
            "bert: there is no conditioner for it here; LDMSuperResolutionPipeline, LDMTextToImagePipeline, Stab",
        ),
        (
            "scheduler/scheduler_config.json",
            {"beta_schedule": "sigmoid"},
            "its betas are not one of scaled_linear, lin",
        ),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "its betas are not one of scaled_linear, linear"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "predicts: eps says nothing about z0"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type is 'flow', not one of eps"),
        ("scheduler/scheduler_config.json", {"beta_end": "x"}, ""),
        (
            "unet/config.json",
            {"in_channels": 5},
            "concat: there is no conditioner for it here; its first stage and its",
        ),
        ("unet/config.json", {"_class_name": "AutoencoderKL"}, ""),
    ],
)
def test_a_pipeline_that_a_whole_model_cannot_be_is_refused(file, settings, match, pipeline_folder, tmp_path):
    shutil.copytree(pipeline_folder, tmp_path / "it")
    write(tmp_path / "it" / file, read(tmp_path / "it" / file) | settings)
    if settings == {"in_channels": 5}:
        save_diffusers(UNet(SAME["upscaler"]), tmp_path / "it" / "unet")
        file = "unet"
    with pytest.raises(InputError, match=f"{file}: {match}"):
        load_diffusers(tmp_path / "it")


def test_a_pipeline_without_one_of_its_parts_is_refused_and_a_part_alone_is_read(pipeline_folder, tmp_path):
    write(tmp_path / "model_index.json", read(pipeline_folder / "model_index.json"))
    with pytest.raises(InputError, match=r"vqvae \(or vae\), unet and scheduler are needed, a folder each"):
        load_diffusers(tmp_path)
    shutil.copytree(pipeline_folder / "unet", tmp_path / "unet")
    (tmp_path / "model_index.json").unlink()
    assert load_diffusers(tmp_path).config == SAME["faces"]
    shutil.copytree(pipeline_folder / "vqvae", tmp_path / "vqvae")
    with pytest.raises(InputError, match=r"scheduler_config.json: no such file"):
        load_diffusers(tmp_path)


@pytest.mark.parametrize("save", [save_compvis, save_diffusers])
def test_a_file_is_written_whole_or_not_at_all(save, tmp_path, monkeypatch):
    def full(state, path, *args):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    where = tmp_path / "model.safetensors" if save is save_compvis else tmp_path
    save(stage(PLAIN), where)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(
        InputError, match=r"not written \(No space left on device\); what was there before is unchanged"
    ):
        save(stage(PLAIN), where)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
