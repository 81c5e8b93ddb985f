"""Original weights: names against those of the published files, outputs against diffusers and the original algorithm,
and every file that is refused."""

import json
import math
import os
import re
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
from ldm_lite.config import InputError, read, write
from ldm_lite.presets import FIRST_STAGES

PUBLISHED = json.loads((Path(__file__).parent / "data" / "compvis_first_stages.json").read_text())
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
            if name != "embedding":
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
    assert_same(load_compvis(path, scale=given), model)


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
        load_compvis(tmp_path / "unet.ckpt")


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
        (Pixels(), "Pixels: has no names in the layout of diffusers; Autoencoder has"),
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
