"""Original weights in our names, and back: whole models and their parts, CompVis's .ckpt files and diffusers' folders.

A table of renames leads from our names to theirs. It is applied to the names of a model, so one table reads and writes;
loading is strict. Objects in a pickle are passed over: no code of theirs is imported or run."""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from .autoencoder import Autoencoder, AutoencoderConfig
from .conditioners import (
    Boxes,
    BoxesConfig,
    InpaintingConfig,
    Labels,
    LabelsConfig,
    LowResConfig,
    PretrainedText,
    PretrainedTextConfig,
    SemanticMap,
    SemanticMapConfig,
    Text,
    TextConfig,
    Together,
    Unconditional,
    build,
    widths,
)
from .config import InputError, read, suggest, whole, write
from .diffusion import Diffusion, Prediction, VariancePreserving
from .folders import unpickled
from .latent import LatentDiffusion
from .layers import TokenEncoder
from .unet import UNet, UNetConfig

Part = Literal["model", "first_stage", "denoiser"]
GROUPS = 32  # of every GroupNorm in the original; the number is in no tensor's shape
Renames = list[tuple[str, str | tuple[str, ...] | Callable[[re.Match[str]], str]]]


# Names --------------------------------------------------------------------------------------------------------------


def _first_stage_compvis(c: AutoencoderConfig) -> Renames:
    deepest = len(c.mult) - 1
    return [
        (r"\.mid\.0\.", ".mid.block_1."),
        (r"\.mid\.1\.", ".mid.attn_1."),
        (r"\.mid\.2\.", ".mid.block_2."),
        (r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{deepest - int(m[1])}"),  # theirs counts from full size
        (r"(\.down\.\d+)\.resample\.", r"\1.downsample."),
        (r"(\.up\.\d+)\.resample\.", r"\1.upsample."),
        (r"\.skip\.", ".nin_shortcut."),
        (r"\.qkv\.", (".q.", ".k.", ".v.")),
        (r"^bottleneck\.", "quantize."),
    ]


def _first_stage_diffusers(c: AutoencoderConfig) -> Renames:
    return [
        (r"\.mid\.0\.", ".mid_block.resnets.0."),
        (r"\.mid\.1\.", ".mid_block.attentions.0."),
        (r"\.mid\.2\.", ".mid_block.resnets.1."),
        (r"\.down\.(\d+)\.resample\.", r".down_blocks.\1.downsamplers.0."),
        (r"\.up\.(\d+)\.resample\.", r".up_blocks.\1.upsamplers.0."),
        (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
        (r"\.(down|up)\.(\d+)\.attn\.", r".\1_blocks.\2.attentions."),
        (r"\.norm_out\.", ".conv_norm_out."),
        (r"\.skip\.", ".conv_shortcut."),
        *ATTENTION,
        (r"^bottleneck\.", "quantize."),
    ]


def _unet_compvis(c: UNetConfig) -> Renames:
    def end_of(block: str) -> int:
        """The place of the change of size in an output block: after the attention, if its level has it."""
        return 2 if 2 ** (len(c.mult) - 1 - int(block) // (c.blocks + 1)) in c.attend_at else 1

    return [
        (r"^time\.", "time_embed."),
        (r"^vector\.", "label_emb.0."),
        (r"^stem\.", "input_blocks.0.0."),
        (r"^norm_out\.", "out.0."),
        (r"^conv_out\.", "out.2."),
        (r"^mid\.0\.res\.", "middle_block.0."),
        (r"^mid\.0\.attend\.", "middle_block.1."),
        (r"^mid\.1\.res\.", "middle_block.2."),
        (r"^down\.(\d+)\.", lambda m: f"input_blocks.{int(m[1]) + 1}."),  # the stem is theirs 0
        (r"^up\.(\d+)\.resample\.", lambda m: f"output_blocks.{m[1]}.{end_of(m[1])}."),
        (r"^up\.", "output_blocks."),
        (r"^(\w+_blocks\.\d+)\.res\.", r"\1.0."),
        (r"^(\w+_blocks\.\d+)\.attend\.", r"\1.1."),
        (r"^(input_blocks\.\d+)\.conv\.", r"\1.0.op."),
        (r"^(input_blocks\.\d+)\.(?=\D)", r"\1.0."),  # a residual block that halves the size
        (r"^(\w+_blocks?(?:\.\d+)+)\.norm1\.", r"\1.in_layers.0."),
        (r"^(\w+_blocks?(?:\.\d+)+)\.conv1\.", r"\1.in_layers.2."),
        (r"^(\w+_blocks?(?:\.\d+)+)\.emb\.", r"\1.emb_layers.1."),
        (r"^(\w+_blocks?(?:\.\d+)+)\.norm2\.", r"\1.out_layers.0."),
        (r"^(\w+_blocks?(?:\.\d+)+)\.conv2\.", r"\1.out_layers.3."),
        (r"\.skip\.", ".skip_connection."),
        *TRANSFORMER,
    ]


def _unet_diffusers(c: UNetConfig) -> Renames:
    def at(kind: str) -> Callable[[re.Match[str]], str]:
        def placed(m: re.Match[str]) -> str:
            level, i = divmod(int(m[2]), c.blocks + 1)
            return f"{m[1]}_blocks.{level}.{kind}.{0 if kind.endswith('samplers') else i}."

        return placed

    return [
        (r"^(time|vector)\.0\.", r"\1_embedding.linear_1."),
        (r"^(time|vector)\.2\.", r"\1_embedding.linear_2."),
        (r"^vector_", "class_"),
        (r"^stem\.", "conv_in."),
        (r"^norm_out\.", "conv_norm_out."),
        (r"^mid\.0\.attend\.", "mid_block.attentions.0."),
        (r"^mid\.(\d)\.res\.", r"mid_block.resnets.\1."),
        (r"^(down|up)\.(\d+)\.res\.", at("resnets")),
        (r"^(down|up)\.(\d+)\.attend\.", at("attentions")),
        (r"^(up)\.(\d+)\.resample\.", at("upsamplers")),
        (r"^(down)\.(\d+)\.", at("downsamplers")),  # what is left: the change of size that ends a level
        (r"\.emb\.", ".time_emb_proj."),
        (r"\.skip\.", ".conv_shortcut."),
        *(TRANSFORMER if c.context else ATTENTION),
    ]


def _encoder_compvis(c: Any) -> Renames:
    """x-transformers': attention and feed-forward take turns as layers, each with its norm before it."""
    return [
        (r"^token\.", "token_emb."),
        (r"^place\.", "pos_emb.emb."),
        (r"^blocks\.(\d+)\.(norm1|attn)\.", lambda m: f"attn_layers.layers.{2 * int(m[1])}.{int(m[2] == 'attn')}."),
        (r"^blocks\.(\d+)\.norm2\.", lambda m: f"attn_layers.layers.{2 * int(m[1]) + 1}.0."),
        (r"^blocks\.(\d+)\.ff\.0\.", lambda m: f"attn_layers.layers.{2 * int(m[1]) + 1}.1.net.0.0."),
        (r"^blocks\.(\d+)\.ff\.2\.", lambda m: f"attn_layers.layers.{2 * int(m[1]) + 1}.1.net.2."),
    ]


def _encoder_bert(c: Any) -> Renames:
    """LDMBert's of diffusers."""
    return [
        (r"^token\.", "model.embed_tokens."),
        (r"^place\.", "model.embed_positions."),
        (r"^norm\.", "model.layer_norm."),
        (r"^blocks\.(\d+)\.", r"model.layers.\1."),
        (r"\.norm1\.", ".self_attn_layer_norm."),
        (r"\.norm2\.", ".final_layer_norm."),
        (r"\.attn\.to_(q|k|v|out)\.", r".self_attn.\1_proj."),
        (r"\.ff\.0\.", ".fc1."),
        (r"\.ff\.2\.", ".fc2."),
    ]


# Self-attention in diffusers' layout; transformer blocks in either
ATTENTION: Renames = [
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
    (r"\.qkv\.", (".to_q.", ".to_k.", ".to_v.")),
]
TRANSFORMER: Renames = [
    (r"\.blocks\.", ".transformer_blocks."),
    (r"\.to_out\.", ".to_out.0."),
    (r"\.ff\.proj\.", ".ff.net.0.proj."),
    (r"\.ff\.out\.", ".ff.net.2."),
]
# For each kind of model and each layout: renames, applied in order. Several new names share the tensor equally.
RULES: dict[type, dict[str, Callable[[Any], Renames]]] = {
    Autoencoder: {"compvis": _first_stage_compvis, "diffusers": _first_stage_diffusers},
    UNet: {"compvis": _unet_compvis, "diffusers": _unet_diffusers},
    TokenEncoder: {"compvis": _encoder_compvis, "bert": _encoder_bert},
}
# The names in older files of diffusers
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def renamed(model: nn.Module, layout: str) -> dict[str, list[str]]:
    """For each of the model's tensors the names that it has in a layout, "compvis" or "diffusers"; not for the scale.

    InputError for a kind of model that has no rules."""
    if layout not in RULES.get(type(model), {}):
        kinds = ", ".join(kind.__name__ for kind, layouts in RULES.items() if layout in layouts)
        raise InputError(f"{type(model).__name__}: has no names in the layout of {layout}; {kinds} have")
    rules, result = RULES[type(model)][layout](getattr(model, "config", None)), {}
    for name in model.state_dict():
        names = [name]
        for pattern, new in rules:
            if re.search(pattern, names[0]):
                names = [re.sub(pattern, to, n) for n in names for to in (new if isinstance(new, tuple) else (new,))]
        result[name] = names
    result.pop("scale", None)
    return result


def _heads(model: nn.Module, name: str) -> int:
    """Of the attention whose queries, keys and values the tensor holds, head by head."""
    return model.get_submodule(name.rpartition(".qkv.")[0]).heads


def translated(model: nn.Module, layout: str) -> dict[str, Tensor]:
    """The model's tensors under the names and in the shapes of layout "compvis" or "diffusers".

    The latent scale is not among them. InputError for a kind of model that has no rules."""
    result: dict[str, Tensor] = {}
    state, tokens = model.state_dict(), isinstance(model, UNet) and not model.config.context
    for name, names in renamed(model, layout).items():
        value = state[name]
        parts = [value]
        if len(names) > 1:
            parts = rearrange(value, "(heads n d) ... -> n (heads d) ...", heads=_heads(model, name), n=len(names))
        for new, part in zip(names, parts, strict=True):
            if layout == "diffusers" and re.search(r"\.to_(q|k|v|out\.0)\.weight$", new):
                part = part.flatten(1)  # a linear layer for our 1x1 convolution
            elif layout == "compvis" and tokens and re.search(r"\.(qkv|proj_out)\.weight$", new):
                part = part.flatten(2)  # a convolution over tokens
            result[new] = part
    return result


def fill(model: nn.Module, state: Mapping[str, Tensor], layout: str, where: str | Path) -> None:
    """Copies tensors in the names of `layout` into the model, in its own dtypes. InputError unless they fit exactly.

    A 1x1 convolution may come as a matrix."""
    wanted = translated(model, layout)
    missing, unknown = [n for n in wanted if n not in state], [n for n in state if n not in wanted]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing ({len(missing)} of {len(wanted)} are); all must be there")
    if unknown:
        raise InputError(f"{where}: {unknown[0]} has no place in the model ({len(unknown)} tensors too many)")
    for name, value in wanted.items():
        if state[name].squeeze().shape != value.squeeze().shape:
            raise InputError(f"{where}: {name} is {tuple(state[name].shape)}; {tuple(value.shape)} is needed")
    own = model.state_dict()
    for name, names in renamed(model, layout).items():
        value = torch.stack([state[n] for n in names])
        if len(names) > 1:
            value = rearrange(value, "n (heads d) ... -> (heads n d) ...", heads=_heads(model, name))
        own[name].copy_(value.reshape(own[name].shape))


# Files --------------------------------------------------------------------------------------------------------------


class Inert:
    """Stands where a pickle names a class or function that is not a tensor's: takes anything and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


RUNS_CODE = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}


def runs_code(path: str | Path) -> bool:
    """Whether a file begins with a whole pickle that would import or call something. Nothing of it is run."""
    try:
        with open(path, "rb") as file:
            return not RUNS_CODE.isdisjoint([opcode.name for opcode, _, _ in pickletools.genops(file)])
    except Exception:  # as an unpickler, on half a pickle or none
        return False


def tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a .safetensors file or in one of torch.save, by name; those under `state_dict` where it exists.

    InputError for a truncated file, for one that is no checkpoint, and for one that weights_only cannot read."""
    from safetensors.torch import load_file

    try:
        open(path, "rb").close()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    zipped = zipfile.is_zipfile(path)  # torch.save's format since torch 1.6
    try:
        if Path(path).suffix == ".safetensors":
            values = load_file(path)
        else:
            # Lightning keys its callbacks by their classes: with something inert in their place weights_only reads on
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
            with torch.serialization.safe_globals([(Inert, name) for name in names]):
                values = unpickled(path, mmap=zipped)
    except Exception as error:  # half a file makes an unpickler fail in any way
        if not zipped and runs_code(path):
            why = "a pickle that imports or calls something: refused, because reading it would run code; fetch another"
        elif isinstance(error, pickle.UnpicklingError) and (zipped or "GLOBAL" in str(error)):
            convert = 'torch.load(PATH, weights_only=False)["state_dict"]'
            why = f"cannot be read without running code in it; if you trust it, save {convert} as .safetensors"
        else:
            why = "truncated or not a checkpoint; fetch it again"
        raise InputError(f"{path}: {why}") from None
    if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]
    found = {k: v for k, v in values.items() if isinstance(v, Tensor)} if isinstance(values, dict) else {}
    if not found:
        raise InputError(f"{path}: has no tensors with names; a checkpoint of a model is needed")
    return found


def _outgoing(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", dtype).contiguous() for k, v in state.items()}


def _groups(model: nn.Module) -> list[int]:
    return sorted({m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)})


def _scaled(model: Autoencoder, scale: float) -> Autoencoder:
    if not 0 < scale < float("inf"):
        raise InputError(f"scale: {scale} is not above 0")
    model.scale.fill_(scale)
    return model.eval()


# CompVis ------------------------------------------------------------------------------------------------------------

FIRST_STAGE, DENOISER, CONDITIONER = "first_stage_model.", "model.diffusion_model.", "cond_stage_model."
YAML_SCALES = {"txt2img-1p4b": 0.18215, "sd-v1": 0.18215}  # in their configurations, and not in their files
AVERAGED = "model_ema.diffusion_model"  # and the name without its dots


def load_compvis(
    path: str | Path,
    expect: str | AutoencoderConfig | UNetConfig | None = None,
    part: Part | None = None,
    scale: float | None = None,
    labels: Sequence[str] | None = None,
    schedule: VariancePreserving | None = None,
    predicts: Prediction = "eps",
    ema: bool = True,
    condition: Any = None,
    encoder: str = "",
) -> Autoencoder | UNet | LatentDiffusion:
    """What is in a file in the original's names: a whole model, a first stage, or a denoiser.

    expect: which published model it must be, by its preset's name ("kl-f8", "cin256-v2"), or a configuration. A first
    stage's names and shapes tell all of it. A denoiser's do not tell its number of heads: any that divides the width
    loads, strictly, and all but the right one compute something else. So a denoiser must be named. Some configurations
    that were published say 32 channels a head, and the weights were trained with one head: presets.UNETS has what they
    were trained with. Weights trained with the later code have the heads of their configuration: give a UNetConfig.
    part: "first_stage" or "denoiser" of a whole model, alone; left out, all that the file has, or the first stage if
    `expect` is one.
    scale: of the latents; left out, the file's `scale_factor` or the published model's, else 1 for a VQ model and for a
    first stage alone. A whole KL model must have one (a constant in the YAML, such as 0.18215, is not in the file).
    labels: the names of a class-conditional model's classes, of a layout's kinds or of a map's segments; left out,
    numbers. A table of as many rows as classes (cin256) gets a null class of zeros, which nothing was trained with: no
    guidance then.
    condition: the config of what the model is told, besides labels; left out, that of the published model. Of a text
    the file has the encoder, and not the words: CLIP's and BERT's are had from the hub when they are first needed.
    encoder: where else: a folder in transformers' layout, of CLIP for Stable Diffusion, of a tokenizer for the others.
    schedule, predicts: left out, from the file's betas, and eps as all of the paper's.
    ema: the averaged weights of the denoiser where the file has them, otherwise the last ones.
    Discriminator and LPIPS are passed over. In eval mode, float32. InputError for what `tensors` refuses, for anything
    but the whole of what is asked for, and for a conditioner that does not exist here."""
    state = tensors(path)
    stage_config, unet_config, distance = _expected(expect)
    if part is None and stage_config is not None:
        part = "first_stage"
    elif part is None:
        inside = any(name.startswith(FIRST_STAGE) for name in state)
        unet = any(name.startswith((DENOISER, "input_blocks.")) for name in state)
        if unet_config is not None and not unet:
            raise InputError(f"{path}: holds no denoiser, and {expect} has one; --part first_stage reads what is there")
        part = "model" if inside and unet else "denoiser" if unet else "first_stage"
    if encoder and part != "model":
        raise InputError(f"encoder: a {part.replace('_', ' ')} reads no captions; leave it out")
    if part == "denoiser":
        return _compvis_denoiser(state, unet_config, ema, path).eval()
    stage = _compvis_first_stage(state, stage_config, path)
    vq, measured = stage.config.bottleneck == "vq", state.get("scale_factor")
    if scale is None:
        if measured is None and isinstance(expect, str):
            measured = YAML_SCALES.get(expect)
        if part == "model" and measured is None and not vq:
            raise InputError(f"{path}: scale_factor is missing; give scale, the scale_factor of the model's YAML")
        scale = 1.0 if measured is None else float(measured)
    _scaled(stage, scale)
    if part == "first_stage":
        return stage
    denoiser = _compvis_denoiser(state, unet_config, ema, path)
    if schedule is None:
        schedule = _compvis_schedule(state, path)
    if condition is None and isinstance(expect, str):
        condition = _published_condition(expect)
    if encoder:
        condition = _reading(condition, encoder, path)
    conditioner = _compvis_conditioner(state, denoiser.config, stage, condition, labels, path)
    return LatentDiffusion(stage, denoiser, Diffusion(schedule, predicts, distance), conditioner).eval()


def save_compvis(
    model: Autoencoder | UNet | LatentDiffusion, path: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Writes a model as the original does, whole or not at all: .safetensors, or torch.save under `state_dict`.

    dtype: of the weights. Such a file has no place for the scale of a first stage alone, for names of classes, the
    number of heads and what is predicted: give them to `load_compvis`. InputError for what the original cannot be: a
    model below 128 channels, a rectified flow, several conditions together, labels as a vector."""
    from safetensors.torch import save_file

    if isinstance(model, LatentDiffusion):
        state = _compvis_whole(model, dtype, path)
    else:
        prefix = DENOISER if isinstance(model, UNet) else ""
        state = {prefix + name: value for name, value in _outgoing(translated(model, "compvis"), dtype).items()}
        _check_original_groups(model, path)
    with whole(path) as temporary:
        if Path(path).suffix == ".safetensors":
            save_file(state, temporary)
        else:
            torch.save({"state_dict": state}, temporary)


def _expected(expect: Any) -> tuple[AutoencoderConfig | None, UNetConfig | None, Literal["l2", "l1"]]:
    from .presets import FIRST_STAGES, PAPER, UNETS

    if isinstance(expect, str):
        if expect in FIRST_STAGES:
            return FIRST_STAGES[expect].model, None, "l2"
        if expect not in UNETS:
            raise suggest(expect, [*FIRST_STAGES, *UNETS], "published model")
        return None, UNETS[expect], PAPER[expect].distance if expect in PAPER else "l2"
    stage = expect if isinstance(expect, AutoencoderConfig) else None
    return stage, expect if isinstance(expect, UNetConfig) else None, "l2"


def _within(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _compvis_first_stage(
    state: Mapping[str, Tensor], asked: AutoencoderConfig | None, where: str | Path
) -> Autoencoder:
    inside = _within(state, FIRST_STAGE) or {k: v for k, v in state.items() if k != "scale_factor"}
    inside = {name: value for name, value in inside.items() if not name.startswith(("loss.", "model_ema."))}
    found = _inferred(inside, where)
    if asked is not None:
        free = () if found.bottleneck == "vq" else ("codes",)
        _compare(found, asked, free, "first stage", where)
    model = Autoencoder(found)
    _check_original_groups(model, where)
    fill(model, inside, "compvis", where)
    return model


UNSHAPED = ("heads", "head_channels", "dropout", "checkpoint")  # what no tensor's shape tells of a UNet


def _compvis_denoiser(state: Mapping[str, Tensor], asked: UNetConfig | None, ema: bool, where: str | Path) -> UNet:
    from .presets import UNETS

    inside = _within(state, DENOISER) or state
    found = _inferred_unet(inside, where)
    if asked is None:
        alike = [n for n, c in UNETS.items() if not _differing(found, c, UNSHAPED)]
        hint = f" (its shapes are those of {', '.join(alike)})" if alike else ""
        why = "the number of heads is in no shape, and a wrong one loads and computes something else"
        raise InputError(f"{where}: {why}; say in expect which published model it is{hint}, or give a UNetConfig")
    _compare(found, asked, UNSHAPED, "denoiser", where)
    model = UNet(asked)
    _check_original_groups(model, where)
    averaged = _within(state, AVERAGED)
    if ema and averaged:
        names = {name.replace(".", ""): name for name in translated(model, "compvis")}
        inside = {names.get(flat, AVERAGED + flat): value for flat, value in averaged.items()}
    fill(model, inside, "compvis", where)
    return model


def _published_condition(name: str) -> Any:
    """What a published model is told, besides classes."""
    from .presets import PAPER

    words = {"tokenizer": "bert-base-uncased"}  # the training recipe learns byte pairs in their place
    if name == "txt2img-1p4b":
        return TextConfig(1280, 32, 8, 64, 77, 30_522, **words)
    if name == "sd-v1":
        return PretrainedTextConfig("openai/clip-vit-large-patch14", 768, 77)
    condition = PAPER[name].condition if name in PAPER else None
    if isinstance(condition, BoxesConfig):
        return replace(condition, null=False)  # every layout was told: no guidance
    return replace(condition, **words) if isinstance(condition, TextConfig) else condition


def _reading(condition: Any, encoder: str, where: str | Path) -> Any:
    """The condition with its words from a folder. InputError where it has no words, and for no folder."""
    if not isinstance(condition, (TextConfig, PretrainedTextConfig)):
        raise InputError(f"encoder: {where} reads no captions; leave it out")
    if not Path(encoder).is_dir():
        raise InputError(f"encoder: {encoder} is no folder")
    place = str(Path(encoder).resolve())
    return replace(condition, **({"tokenizer": place} if isinstance(condition, TextConfig) else {"encoder": place}))


ENCODER = "transformer."  # after CONDITIONER: of captions or layouts


def _compvis_conditioner(
    state: Mapping[str, Tensor],
    unet: UNetConfig,
    stage: Autoencoder,
    condition: Any,
    labels: Sequence[str] | None,
    where: str | Path,
) -> nn.Module:
    """The conditioner with its weights. InputError for one that the file's tensors or the UNet's doors are not of."""
    told = _within(state, CONDITIONER)
    if condition is None and not told and not unet.context and not unet.concat and not unet.vector:
        return Unconditional()
    if (
        condition is None
        and list(told) == ["embedding.weight"]
        and unet.context
        and not unet.concat
        and not unet.vector
    ):
        return _compvis_labels(told["embedding.weight"], unet, labels, where)
    if condition is None:
        door = next((d for d in ("context", "concat", "vector") if getattr(unet, d)), "condition")
        what = f"{CONDITIONER}{next(iter(told))}" if told else f"a {door} from outside"
        alone = 'part="denoiser" and part="first_stage" load those parts alone'
        raise InputError(f"{where}: {what}: say in condition, or by the published model's name, what it is; {alone}")
    if isinstance(condition, (SemanticMapConfig, LowResConfig)):
        condition = replace(condition, f=stage.f)
    elif isinstance(condition, InpaintingConfig):
        condition = replace(condition, f=stage.f, channels=stage.channels)
    if isinstance(condition, (SemanticMapConfig, BoxesConfig)) and (labels or not condition.names):
        mapper = told.get("channel_mapper.weight", torch.zeros(1, 1))
        numbers = mapper.shape[1] if isinstance(condition, SemanticMapConfig) else condition.tokens - 1
        condition = replace(condition, names=tuple(labels or map(str, range(numbers))))
    doors = widths(condition)
    if doors != {door: getattr(unet, door) for door in ("context", "concat", "vector") if getattr(unet, door)}:
        raise InputError(f"{where}: condition: {type(condition).__name__} needs {doors} of the denoiser, which differs")
    conditioner = build(condition)
    if isinstance(conditioner, (Text, Boxes)):
        inside = _within(told, ENCODER)
        inside = {name: value for name, value in inside.items() if not name.startswith("to_logits.")}  # of no use
        fill(conditioner.encoder, inside, "compvis", where)
    elif isinstance(conditioner, PretrainedText):
        conditioner = _compvis_pretrained(conditioner, _within(told, ENCODER), where)
    elif isinstance(conditioner, SemanticMap):
        if told.keys() != {"channel_mapper.weight"}:
            raise InputError(f"{where}: {CONDITIONER}channel_mapper.weight alone is needed for a semantic map")
        weight = conditioner.channel_mapper.weight
        if told["channel_mapper.weight"].shape != weight.shape:
            found = tuple(told["channel_mapper.weight"].shape)
            raise InputError(f"{where}: channel_mapper.weight is {found}; {tuple(weight.shape)} is needed")
        with torch.no_grad():
            weight.copy_(told["channel_mapper.weight"])
    elif told and not (isinstance(condition, InpaintingConfig) and _repeated(told, _within(state, FIRST_STAGE))):
        raise InputError(f"{where}: {CONDITIONER}{next(iter(told))} has no place in {type(condition).__name__}")
    return conditioner


def _repeated(told: Mapping[str, Tensor], stage: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are the first stage's once more, as where it is the original's conditioner too."""
    return all(name in stage and torch.equal(value, stage[name]) for name, value in told.items())


def _compvis_labels(table: Tensor, unet: UNetConfig, labels: Sequence[str] | None, where: str | Path) -> Labels:
    if labels is None:
        if len(table) not in (1000, 1001):
            raise InputError(f"{where}: labels: the embedding has {len(table)} rows; give the names of its classes")
        labels = [str(i) for i in range(1000)]
    if len(table) - len(labels) not in (0, 1):
        raise InputError(f"{where}: labels: {len(labels)} names, and the embedding has {len(table)} rows")
    conditioner = Labels(LabelsConfig(tuple(labels), unet.context))
    if table.shape[1] != unet.context:
        raise InputError(f"{where}: {CONDITIONER}embedding.weight is {table.shape[1]} wide, the context {unet.context}")
    with torch.no_grad():
        conditioner.embedding.weight.zero_()
        conditioner.embedding.weight[: len(table)] = table
    return conditioner


def _compvis_pretrained(told: PretrainedText, inside: Mapping[str, Tensor], where: str | Path) -> PretrainedText:
    """The encoder with the file's weights. Where these are the encoder's own it stays as it is, and is not saved."""
    own = _clip_out(told.encoder)
    inside = {name: value for name, value in inside.items() if not name.endswith("position_ids")}  # of older versions
    missing = [name for name in own if name not in inside]
    unknown = [name for name in inside if name not in own or own[name].shape != inside[name].shape]
    if missing or unknown:
        name = (missing or unknown)[0]
        raise InputError(f"{where}: {CONDITIONER}{ENCODER}{name} is not of the encoder {told.config.encoder}")
    if all(torch.allclose(own[name].float(), value.float(), rtol=0, atol=1e-3) for name, value in inside.items()):
        return told
    changed = PretrainedText(replace(told.config, trained=True))
    with torch.no_grad():
        for name, value in _clip_out(changed.encoder).items():
            value.copy_(inside[name])
    return changed


def _clip_out(encoder: nn.Module) -> dict[str, Tensor]:
    """The encoder's own tensors under the names of transformers before 5, which the original's files have."""
    state, prefix = encoder.state_dict(), "text_model."
    state = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    return {name if name.startswith(prefix) else prefix + name: value for name, value in state.items()}


def _compvis_schedule(state: Mapping[str, Tensor], where: str | Path) -> VariancePreserving:
    """The schedule that has all of the file's betas: its ends are theirs, to the digits that their dtype holds."""
    if "betas" not in state:
        raise InputError(f"{where}: betas is missing; give schedule")
    digits, rtol = (
        (3, 6e-4) if state["betas"].dtype == torch.float16 else (6, 1e-6)
    )  # some files were halved, all in all
    betas = state["betas"].double()
    start, end = (float(f"{float(betas[i]):.{digits}g}") for i in (0, -1))
    tries: list[dict[str, Any]] = [
        {"kind": "scaled_linear", "start": start, "end": end},
        {"kind": "linear", "start": start, "end": end},
        {"kind": "cosine"},
    ]
    for settings in tries:
        try:
            schedule = VariancePreserving(**settings, steps=len(betas))
        except ValueError:
            continue
        if torch.allclose(_buffers(schedule)["betas"], betas, rtol=rtol, atol=0):
            return schedule
    raise InputError(f"{where}: betas from {start} to {end} are none of our schedules; give schedule")


def _buffers(schedule: VariancePreserving) -> dict[str, Tensor]:
    """The tables that the original keeps in its checkpoints, float64 (Ho et al. 2020, eqs. 4 to 7)."""
    times = torch.arange(schedule.steps + 1, dtype=torch.float64) / schedule.steps
    log = schedule.log_alpha_bar(times)
    bar, before, betas = log[1:].exp(), log[:-1].exp(), -torch.expm1(log.diff())
    noise, noise_before = -torch.expm1(log[1:]), -torch.expm1(log[:-1])
    variance = betas * noise_before / noise
    return {
        "betas": betas,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": noise.sqrt(),
        "log_one_minus_alphas_cumprod": noise.log(),
        "sqrt_recip_alphas_cumprod": bar.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (noise / bar).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / noise,
        "posterior_mean_coef2": noise_before * (1 - betas).sqrt() / noise,
    }


def _compvis_whole(model: LatentDiffusion, dtype: torch.dtype | None, where: str | Path) -> dict[str, Tensor]:
    schedule, told = model.diffusion.schedule, model.conditioner
    if not isinstance(schedule, VariancePreserving):
        raise InputError(f"{type(schedule).__name__}: the original has no such schedule; ldm-lite's layout keeps it")
    weights = {FIRST_STAGE + k: v for k, v in translated(model.first_stage, "compvis").items()}
    weights |= {DENOISER + k: v for k, v in translated(model.denoiser, "compvis").items()}
    weights |= {CONDITIONER + k: v for k, v in _conditioner_out(told).items()}
    for part in (model.first_stage, model.denoiser):
        _check_original_groups(part, where)
    tables = _buffers(schedule) | {"scale_factor": model.first_stage.scale}
    return _outgoing(weights, dtype) | _outgoing(tables, torch.float32)


def _conditioner_out(told: nn.Module) -> dict[str, Tensor]:
    """The tensors of a conditioner in the original's names. InputError for one that it does not have."""
    if isinstance(told, Boxes) and told.config.joined:
        raise InputError("Boxes with joined: has no names in the original; save denoiser alone (--part)")
    if isinstance(told, (Text, Boxes)):
        encoder = told.encoder
        words = torch.zeros_like(encoder.token.weight)  # its model of language has a head, of which nothing is used
        inside = translated(encoder, "compvis") | {"to_logits.weight": words, "to_logits.bias": words[:, 0].clone()}
        return {ENCODER + name: value for name, value in inside.items()}
    if isinstance(told, PretrainedText):
        return {ENCODER + name: value for name, value in _clip_out(told.encoder).items()}
    if isinstance(told, Together) or (isinstance(told, Labels) and told.config.door != "context"):
        door = f" as {told.config.door}" if isinstance(told, Labels) else ""
        raise InputError(f"{type(told).__name__}{door}: has no names in the original; save denoiser alone (--part)")
    return told.state_dict()


class Shapes:
    """What the names and shapes in a checkpoint tell. InputError where one is missing."""

    def __init__(self, state: Mapping[str, Tensor], kind: str, where: str | Path):
        self.state, self.kind, self.where = state, kind, where

    def size(self, name: str, axis: int = 0) -> int:
        if name not in self.state or self.state[name].ndim <= axis:
            raise InputError(f"{self.where}: {name} is missing; a {self.kind}, all of it, is needed")
        return self.state[name].shape[axis]

    def count(self, prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in self.state if name.startswith(prefix)})


def _inferred(state: Mapping[str, Tensor], where: str | Path) -> AutoencoderConfig:
    """What the names and shapes of an original first stage tell, which is everything."""
    of = Shapes(state, "first stage", where)
    width, levels = of.size("encoder.conv_in.weight"), of.count("encoder.down.")
    widths = [of.size(f"encoder.down.{i}.block.0.conv1.weight") for i in range(max(levels, 1))]
    vq = "quantize.embedding.weight" in state
    return AutoencoderConfig(
        channels=of.size("post_quant_conv.weight"),
        width=width,
        mult=_multiples(widths, width, where),
        blocks=of.count("encoder.down.0.block."),
        attend_at=tuple(2**i for i in range(levels) if of.count(f"encoder.down.{i}.attn.")),
        mid_attention=of.count("encoder.mid.attn_1.") > 0,
        bottleneck="vq" if vq else "kl",
        codes=of.size("quantize.embedding.weight") if vq else AutoencoderConfig.codes,
        image_channels=of.size("encoder.conv_in.weight", 1),
    )


def _inferred_unet(state: Mapping[str, Tensor], where: str | Path) -> UNetConfig:
    """What the names and shapes of an original UNet tell: all but UNSHAPED. One head stands for an unknown number."""
    of = Shapes(state, "UNet", where)
    width, channels = of.size("input_blocks.0.0.weight"), of.size("out.2.weight")
    upward = [n for n in state if re.fullmatch(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.0)\.weight", n)]
    levels, outputs = len(upward) + 1, of.count("output_blocks.")
    if outputs % levels or outputs < 2 * levels:
        raise InputError(f"{where}: {outputs} output blocks and {levels} levels; a UNet, all of it, is needed")
    first = [f"input_blocks.{1 + level * outputs // levels}" for level in range(levels)]
    widths = [of.size(f"{name}.0.out_layers.3.weight") for name in first]
    context, transformers = (
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "middle_block.1.transformer_blocks.",
    )
    return UNetConfig(
        channels=channels,
        width=width,
        mult=_multiples(widths, width, where),
        blocks=outputs // levels - 1,
        attend_at=tuple(2**i for i, name in enumerate(first) if of.count(f"{name}.1.")),
        heads=1,
        context=of.size(context, 1) if context in state else 0,
        depth=of.count(transformers) or 1,
        concat=of.size("input_blocks.0.0.weight", 1) - channels,
        vector=of.size("label_emb.0.0.weight", 1) if "label_emb.0.0.weight" in state else 0,
        film=of.size(f"{first[0]}.0.emb_layers.1.weight") == 2 * widths[0],
        resblock_updown=any("in_layers" in name for name in upward),
    )


def _multiples(widths: list[int], width: int, where: str | Path) -> tuple[int, ...]:
    if any(w % width for w in widths):
        raise InputError(f"{where}: its levels have {widths} channels; multiples of {width} are needed")
    return tuple(w // width for w in widths)


def _differing(found: Any, asked: Any, free: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs of one class differ, those in `free` aside. The order of factors is none."""
    asked = replace(asked, attend_at=tuple(sorted(asked.attend_at)))
    names = [f.name for f in fields(found) if f.name not in free]
    pairs = {name: (getattr(found, name), getattr(asked, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _compare(found: Any, asked: Any, free: Sequence[str], kind: str, where: str | Path) -> None:
    differ = _differing(found, asked, free)
    if differ:
        what = "; ".join(f"{name} is {a}, not {b}" for name, (a, b) in differ.items())
        raise InputError(f"{where}: another {kind} than the one asked for: {what}")


def _check_original_groups(model: Autoencoder | UNet, where: str | Path) -> None:
    if _groups(model) != [GROUPS]:
        ours, width = ", ".join(map(str, _groups(model))), model.config.width
        raise InputError(f"{where}: at width {width} our norms have {ours} groups, the original's 32; 128 is the least")


# diffusers ----------------------------------------------------------------------------------------------------------

WEIGHTS = "diffusion_pytorch_model"
COPIED = 0.18215  # the default of every diffusers config: measured for one KL first stage, wrong for any VQ
OF_STAGE = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
}
# What their configs leave out
OF_CLASS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": OF_STAGE | {"latent_channels": 4, "scaling_factor": COPIED},
    "VQModel": OF_STAGE | {"latent_channels": 3, "scaling_factor": 1.0, "num_vq_embeddings": 256},
    "UNet2DModel": {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
        "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
        "block_out_channels": [224, 448, 672, 896],
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
    },
    "UNet2DConditionModel": {
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "cross_attention_dim": 1280,
        "transformer_layers_per_block": 1,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
    },
}
# What an Autoencoder always is, where diffusers has a choice
ALWAYS = {
    "act_fn": ("silu", "swish"),
    "norm_type": ("group",),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "shift_factor": (None, 0),
    "latents_mean": (None,),
    "latents_std": (None,),
}
# What a UNet always is; "scale_shift" and "projection" aside, where they have a choice
UNET_ALWAYS = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": (None, "UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1,),
    "act_fn": ("silu", "swish"),
    "norm_eps": (1e-5,),
    "add_attention": (True,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "dual_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "addition_embed_type": (None,),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "cross_attention_norm": (None,),
}
# Pipelines with conditions, and what of them is read, or not needed, besides first stage, denoiser and scheduler
PIPELINES = {
    "LDMSuperResolutionPipeline": (),
    "LDMTextToImagePipeline": ("bert", "tokenizer"),
    "StableDiffusionPipeline": ("text_encoder", "tokenizer", "safety_checker", "feature_extractor"),
}
OF_BERT = {  # what the config of its encoder leaves out
    "vocab_size": 30_522,
    "max_position_embeddings": 77,
    "encoder_layers": 32,
    "encoder_ffn_dim": 5120,
    "encoder_attention_heads": 8,
    "head_dim": 64,
    "activation_function": "gelu",
    "d_model": 1024,
}
# Of a scheduler
BETAS = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "z0": "sample", "v": "v_prediction"}
BLOCKS = {
    "down_block_types": {False: "DownEncoderBlock2D", True: "AttnDownEncoderBlock2D"},
    "up_block_types": {False: "UpDecoderBlock2D", True: "AttnUpDecoderBlock2D"},
}


def load_diffusers(folder: str | Path, scale: float | None = None) -> Autoencoder | UNet | LatentDiffusion:
    """What is in a folder of diffusers: AutoencoderKL, VQModel, UNet2DModel, UNet2DConditionModel, or an LDMPipeline.

    Of pipelines with conditions an LDMSuperResolutionPipeline, an LDMTextToImagePipeline and a StableDiffusionPipeline
    of version 1 are read. Tokenizers, and CLIP's encoder, stay in their folder, which must not move; Stable Diffusion's
    safety checker is passed over.
    A folder with `vae` or `vqvae` and no `unet` holds a first stage. Attention under its old names and weights in .bin
    are read too. scale: of the latents; left out, scaling_factor. A VQModel's scaling_factor of 0.18215 is a default
    that was copied from KL (diffusers #6725): it is taken for 1, with a warning. The number of heads is
    attention_head_dim in UNet2DConditionModel; in UNet2DModel that is the channels of each. Of the scheduler its betas
    and prediction_type are read: grids and clipping are the sampler's here. In eval mode, float32. InputError for a
    model that ours cannot be, for another pipeline with conditions, and for broken files."""
    folder = Path(folder)
    parts = [name for name in ("vae", "vqvae", "unet") if (folder / name / "config.json").is_file()]
    if (folder / "config.json").is_file() or not (parts or (folder / "model_index.json").is_file()):
        return _diffusers_part(folder, scale)
    if len(parts) == 1 and not (folder / "model_index.json").is_file():
        return _diffusers_part(folder / parts[0], scale)
    return _diffusers_pipeline(folder, scale)


def _diffusers_part(folder: Path, scale: float | None = None) -> Autoencoder | UNet:
    where = folder / "config.json"
    values = read(where)
    kind = values.get("_class_name") if isinstance(values, dict) else None
    if kind not in OF_CLASS:
        raise InputError(f"{where}: _class_name {kind!r} is not one of {', '.join(OF_CLASS)}")
    values = OF_CLASS[kind] | values
    if kind == "VQModel" and values["scaling_factor"] == COPIED and scale is None:
        warnings.warn(f"{where}: scaling_factor {COPIED} is no VQ model's; 1 is taken (scale overrides)", stacklevel=2)
        scale = 1.0
    model: Autoencoder | UNet
    try:
        if kind.startswith("UNet"):
            model = UNet(_unet_from_diffusers(values, where))
        else:
            model = Autoencoder(_from_diffusers(values, where))
            scale = float(values["scaling_factor"] if scale is None else scale)
    except InputError as error:
        raise error if str(where) in str(error) else InputError(f"{where}: {error}") from None
    except (TypeError, ValueError, ArithmeticError, RuntimeError, LookupError, AttributeError) as error:
        raise InputError(f"{where}: not a config of {kind} ({error})") from None
    if _groups(model) != [values["norm_num_groups"]]:
        ours = ", ".join(map(str, _groups(model)))
        raise InputError(f"{where}: norm_num_groups is {values['norm_num_groups']}; at this width ours has {ours}")
    path = _weights(folder, WEIGHTS)
    old = re.compile(rf"\.({'|'.join(OLD_ATTENTION)})\.")
    state = {old.sub(lambda m: f".{OLD_ATTENTION[m[1]]}.", name): value for name, value in tensors(path).items()}
    fill(model, state, "diffusers", path)
    return model.eval() if isinstance(model, UNet) else _scaled(model, float(scale or 0))


def _diffusers_pipeline(folder: Path, scale: float | None) -> LatentDiffusion:
    index = folder / "model_index.json"
    values = read(index) if index.is_file() else {}
    named = [k for k, v in values.items() if isinstance(v, list) and v and v[0]] if isinstance(values, dict) else []
    kind = str(values.get("_class_name")) if isinstance(values, dict) else ""
    known = PIPELINES.get(kind, ())
    alone = "its first stage and its unet load from their folders, alone"
    for name in named:
        if name not in ("vae", "vqvae", "unet", "scheduler", *known):
            what = f"{', '.join(PIPELINES)} and LDMPipeline are read whole; of others {alone}"
            raise InputError(f"{index}: {name}: there is no conditioner for it here; {what}")
    stage = next((folder / name for name in ("vqvae", "vae") if (folder / name / "config.json").is_file()), None)
    if stage is None or not (folder / "unet" / "config.json").is_file():
        raise InputError(f"{folder}: vqvae (or vae), unet and scheduler are needed, a folder each")
    first_stage, unet = _diffusers_part(stage, scale), _diffusers_part(folder / "unet")
    if not isinstance(first_stage, Autoencoder) or not isinstance(unet, UNet):
        raise InputError(f"{folder}: a first stage in {stage.name} and a denoiser in unet are needed")
    diffusion = _diffusion_from_diffusers(folder)
    try:
        condition = _diffusers_condition(kind, folder, first_stage.f)
    except (TypeError, AttributeError, LookupError) as error:
        raise InputError(f"{folder}: a config of what {kind} is told is none ({error})") from None
    doors = {door: width for door in ("context", "concat", "vector") if (width := getattr(unet.config, door))}
    if condition is None and doors:
        door = next(iter(doors))
        raise InputError(f"{folder / 'unet'}: {door}: there is no conditioner for it here; {alone}")
    if condition is None:
        return LatentDiffusion(first_stage, unet, diffusion, Unconditional()).eval()
    if widths(condition) != doors:
        raise InputError(f"{folder / 'unet'}: {kind} needs {widths(condition)} of it, and it has {doors or 'no doors'}")
    conditioner = build(condition)
    if isinstance(conditioner, Text):
        path = _weights(folder / "bert", "model", "pytorch_model")
        state = {name: value for name, value in tensors(path).items() if not name.startswith("to_logits.")}
        fill(conditioner.encoder, state, "bert", path)
    return LatentDiffusion(first_stage, unet, diffusion, conditioner).eval()


def _diffusers_condition(kind: str, folder: Path, f: int) -> Any:
    """What a pipeline of this class is told; None for one that is told nothing."""
    if kind == "LDMSuperResolutionPipeline":
        return LowResConfig(factor=f, f=f, degradation="bsr")  # the small picture is as large as the latent
    if kind == "LDMTextToImagePipeline":
        where = folder / "bert" / "config.json"
        values = OF_BERT | read(where)
        _must(values, {"activation_function": ("gelu",), "encoder_ffn_dim": (4 * values["d_model"],)}, "Text", where)
        return TextConfig(
            width=values["d_model"],
            depth=values["encoder_layers"],
            heads=values["encoder_attention_heads"],
            head_channels=values["head_dim"],
            length=values["max_position_embeddings"],
            vocabulary=values["vocab_size"],
            tokenizer=str((folder / "tokenizer").resolve()),
        )
    if kind == "StableDiffusionPipeline":
        values = read(folder / "text_encoder" / "config.json")
        length = values.get("max_position_embeddings", 77)
        return PretrainedTextConfig(str(folder.resolve()), values.get("hidden_size", 512), length)
    return None


def _weights(folder: Path, *names: str) -> Path:
    """The file of weights in a folder: safetensors, or what older versions wrote."""
    files = [folder / f"{name}{suffix}" for suffix in (".safetensors", ".bin") for name in names]
    return next((path for path in files if path.is_file()), files[0])


def save_diffusers(
    model: Autoencoder | UNet | LatentDiffusion,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    size: int = 256,
) -> None:
    """Writes what from_pretrained of diffusers reads, each file whole or not at all.

    An Autoencoder becomes AutoencoderKL or VQModel, a UNet UNet2DModel, or UNet2DConditionModel when it sees a context,
    an unconditional LatentDiffusion an LDMPipeline, whose scheduler takes the steps of our own grid. dtype: of the
    weights. size: of the images that the pipeline draws, in pixels. InputError, before anything is written, for what
    they cannot be: a first level wider than `width`, norms with different numbers of groups (below 128 channels), heads
    of different sizes without a context, residual blocks that resize beside one, a condition."""
    folder = Path(folder)
    if not isinstance(model, LatentDiffusion):
        _write_part(model, folder, dtype, _part_config(model))
        return
    if not isinstance(model.conditioner, Unconditional):
        kind = type(model.conditioner).__name__
        raise InputError(f"{kind}: LDMPipeline has no conditions; save first_stage and denoiser alone (--part)")
    stage, unet = _part_config(model.first_stage), _part_config(model.denoiser)
    scheduler = _diffusion_to_diffusers(model.diffusion)
    unit = model.first_stage.f * model.denoiser.config.factor
    if size < 1 or size % unit:
        raise InputError(f"size: {size} is not divisible by {unit}")
    _write_part(model.first_stage, folder / "vqvae", dtype, stage | {"sample_size": size})
    _write_part(model.denoiser, folder / "unet", dtype, unet | {"sample_size": size // model.first_stage.f})
    write(folder / "scheduler" / "scheduler_config.json", scheduler)
    kinds = {"vqvae": stage, "unet": unet, "scheduler": scheduler}
    index = {name: ["diffusers", config["_class_name"]] for name, config in kinds.items()}
    write(folder / "model_index.json", {"_class_name": "LDMPipeline", **index})


def _part_config(model: nn.Module) -> dict[str, Any]:
    renamed(model, "diffusers")  # refuses what has no names there
    return _unet_to_diffusers(model) if isinstance(model, UNet) else _to_diffusers(model)


def _write_part(model: nn.Module, folder: Path, dtype: torch.dtype | None, config: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    with whole(folder / f"{WEIGHTS}.safetensors") as temporary:
        save_file(_outgoing(translated(model, "diffusers"), dtype), temporary, {"format": "pt"})
    write(folder / "config.json", config)


def _must(values: Mapping[str, Any], always: Mapping[str, tuple[Any, ...]], ours: str, where: Path) -> None:
    for field, right in always.items():
        if values.get(field, right[0]) not in right:
            raise InputError(f"{where}: {field} is {values[field]!r}; {ours} has {right[0]!r}")


def _levels(values: Mapping[str, Any], blocks: Mapping[str, Mapping[bool, str]], where: Path) -> tuple[int, ...]:
    """The factors at which attention sits, by the types of the blocks down and up, which must agree."""
    widths, down = list(values["block_out_channels"]), list(values["down_block_types"])
    attend = [block == blocks["down_block_types"][True] for block in down]
    for field, expected in (("down_block_types", attend), ("up_block_types", attend[::-1])):
        types = [blocks[field][a] for a in expected]
        if list(values[field]) != types or len(types) != len(widths):
            wanted = f"{len(widths)} of {' or '.join(blocks[field].values())}, attention at the same levels down and up"
            raise InputError(f"{where}: {field} is {values[field]}; needed are {wanted}")
    return tuple(2**i for i, a in enumerate(attend) if a)


def _from_diffusers(values: Mapping[str, Any], where: Path) -> AutoencoderConfig:
    _must(values, ALWAYS, "an Autoencoder", where)
    for field, same_as in (("out_channels", "in_channels"), ("vq_embed_dim", "latent_channels")):
        if values.get(field) not in (None, values[same_as]):
            raise InputError(f"{where}: {field} is {values[field]}, {same_as} {values[same_as]}; they must be equal")
    widths = list(values["block_out_channels"])
    return AutoencoderConfig(
        channels=values["latent_channels"],
        width=widths[0],
        mult=_multiples(widths, widths[0], where),
        blocks=values["layers_per_block"],
        attend_at=_levels(values, BLOCKS, where),
        mid_attention=values["mid_block_add_attention"],
        bottleneck="vq" if values["_class_name"] == "VQModel" else "kl",
        codes=values.get("num_vq_embeddings", AutoencoderConfig.codes),
        image_channels=values["in_channels"],
    )


def _unet_blocks(context: bool, resizing: bool) -> dict[str, dict[bool, str]]:
    """Names of the blocks of a level without and with attention."""
    down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resizing else ("DownBlock2D", "UpBlock2D")
    kind = "CrossAttn" if context else "Attn"
    return {
        "down_block_types": {False: down, True: f"{kind}DownBlock2D"},
        "up_block_types": {False: up, True: f"{kind}UpBlock2D"},
    }


def _unet_from_diffusers(values: Mapping[str, Any], where: Path) -> UNetConfig:
    _must(values, UNET_ALWAYS, "a UNet", where)
    told = values["_class_name"] == "UNet2DConditionModel"
    changes = (values.get("downsample_type", "conv"), values.get("upsample_type", "conv"))
    resizing = not told and changes == ("resnet", "resnet")
    if not told and changes not in (("resnet", "resnet"), ("conv", "conv")):
        raise InputError(
            f"{where}: downsample_type and upsample_type are {changes}; both conv or both resnet are needed"
        )
    embedding, shift = values.get("class_embed_type"), values.get("resnet_time_scale_shift", "default")
    if embedding not in ((None, "projection") if told else (None,)):
        raise InputError(f"{where}: class_embed_type is {embedding!r}; a UNet has None or a projection of a vector")
    if shift not in ("default", "scale_shift"):
        raise InputError(f"{where}: resnet_time_scale_shift is {shift!r}; a UNet has 'default' or 'scale_shift'")
    widths, depth, size = list(values["block_out_channels"]), _single(values, "transformer_layers_per_block", 1), None
    attend = _levels(values, _unet_blocks(told, resizing), where)
    heads: int | None = None
    if told:  # here attention_head_dim is the number of heads, for all levels or for each
        given = values["attention_head_dim"]
        each = list(given) if isinstance(given, (list, tuple)) else [given] * len(widths)
        if len(set(each)) == 1:
            heads = each[0]
        elif len(each) == len(widths) and len({w / n for w, n in zip(widths, each, strict=True)}) == 1:
            size = widths[0] // each[0]
        else:
            raise InputError(f"{where}: attention_head_dim is {given}; one number or heads of one size are needed")
    elif (size := values["attention_head_dim"]) is None:
        heads = 1
    elif any(w % size for w in [widths[-1], *(w for i, w in enumerate(widths) if 2**i in attend)]):
        raise InputError(f"{where}: attention_head_dim is {size}, which does not divide the channels {widths}")
    return UNetConfig(
        channels=values["out_channels"],
        width=widths[0],
        mult=_multiples(widths, widths[0], where),
        blocks=_single(values, "layers_per_block", 2),
        attend_at=attend,
        heads=heads,
        head_channels=size,
        context=_single(values, "cross_attention_dim", 0) if told else 0,
        depth=depth,
        concat=values["in_channels"] - values["out_channels"],
        vector=values["projection_class_embeddings_input_dim"] if embedding else 0,
        film=shift == "scale_shift",
        resblock_updown=resizing,
        dropout=values.get("dropout", 0.0),
    )


def _single(values: Mapping[str, Any], field: str, default: int) -> int:
    """A number that may come once for each level."""
    given = values.get(field, default)
    each = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(set(each)) != 1:
        raise InputError(f"{field} is {given}; the same number for every level is needed")
    return each[0]


def _unet_to_diffusers(model: UNet) -> dict[str, Any]:
    c, groups = model.config, _one_group(model)
    widths = [c.width * m for m in c.mult]
    attend = [2**i in c.attend_at for i in range(len(c.mult))]
    blocks = _unet_blocks(c.context > 0, c.resblock_updown)
    splits = [c.split(width) for width in widths]
    config: dict[str, Any] = {
        "in_channels": c.channels + c.concat,
        "out_channels": c.channels,
        "down_block_types": [blocks["down_block_types"][a] for a in attend],
        "up_block_types": [blocks["up_block_types"][a] for a in attend[::-1]],
        "block_out_channels": widths,
        "layers_per_block": c.blocks,
        "dropout": c.dropout,
        "act_fn": "silu",
        "norm_num_groups": groups,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if c.film else "default",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    if c.context:
        if c.resblock_updown:
            raise InputError(
                "resblock_updown: UNet2DConditionModel has it with another attention; only without context"
            )
        heads = [n for n, _ in splits]
        vector = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": c.vector}
        return {
            "_class_name": "UNet2DConditionModel",
            **config,
            "cross_attention_dim": c.context,
            "transformer_layers_per_block": c.depth,
            "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,  # their name for the number of heads
            **(vector if c.vector else {}),
        }
    if c.vector:
        raise InputError("vector: UNet2DModel is told nothing but the time; with a context it can be written")
    sizes = {size for (_, size), a in zip(splits, attend, strict=True) if a} | {splits[-1][1]}
    if len(sizes) > 1:
        found = ", ".join(map(str, sorted(sizes)))
        raise InputError(f"heads: they have {found} channels; UNet2DModel has one number (head_channels makes it so)")
    change = "resnet" if c.resblock_updown else "conv"
    return {
        "_class_name": "UNet2DModel",
        **config,
        "downsample_type": change,
        "upsample_type": change,
        "attention_head_dim": sizes.pop(),  # here it is what it says
        "attn_norm_num_groups": groups,  # left out, a model with scale_shift has no norm in its middle attention
    }


def _one_group(model: Autoencoder | UNet) -> int:
    c, groups = model.config, _groups(model)
    if len(groups) > 1:
        found = ", ".join(map(str, groups))
        raise InputError(f"width: {c.width} has norms with {found} groups; diffusers has one number (128 and more do)")
    if c.mult[0] != 1:
        raise InputError(f"mult: {c.mult} does not begin with 1; diffusers' first level is as wide as its first layer")
    return groups[0]


def _diffusion_from_diffusers(folder: Path) -> Diffusion:
    where = folder / "scheduler" / "scheduler_config.json"
    values = read(where)
    kind = {theirs: ours for ours, theirs in BETAS.items()}.get(values.get("beta_schedule", "linear"))
    predicts = {theirs: ours for ours, theirs in PREDICTIONS.items()}.get(values.get("prediction_type", "epsilon"))
    if kind is None or values.get("trained_betas") is not None:
        raise InputError(f"{where}: its betas are not one of {', '.join(BETAS.values())}")
    if predicts is None:
        known = ", ".join(PREDICTIONS.values())
        raise InputError(f"{where}: prediction_type is {values['prediction_type']!r}, not one of {known}")
    ends = {"start": values.get("beta_start", 1e-4), "end": values.get("beta_end", 0.02)}
    steps, zero_terminal = values.get("num_train_timesteps", 1000), bool(values.get("rescale_betas_zero_snr"))
    try:
        return Diffusion(VariancePreserving(kind, **ends, steps=steps, zero_terminal=zero_terminal), predicts)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None


def _diffusion_to_diffusers(diffusion: Diffusion) -> dict[str, Any]:
    schedule = diffusion.schedule
    if not isinstance(schedule, VariancePreserving) or diffusion.predicts not in PREDICTIONS:
        what = f"{type(schedule).__name__} that predicts {diffusion.predicts}"
        raise InputError(f"{what}: DDIMScheduler has no such diffusion")
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": schedule.steps,
        "beta_start": schedule.start,
        "beta_end": schedule.end,
        "beta_schedule": BETAS[schedule.kind],
        "rescale_betas_zero_snr": schedule.zero_terminal,
        "prediction_type": PREDICTIONS[diffusion.predicts],
        "clip_sample": False,  # latents are not confined to [-1, 1]; the default is for pictures
        # the grid of ours, from pure noise to clean data; the original's is "leading" with an offset of 1, and ends at
        # its first noise level: set_alpha_to_one false
        "timestep_spacing": "trailing",
        "steps_offset": 0,
        "set_alpha_to_one": True,
    }


def _to_diffusers(model: Autoencoder) -> dict[str, Any]:
    c, groups = model.config, _one_group(model)
    attend = [2**i in c.attend_at for i in range(len(c.mult))]
    return {
        "_class_name": "VQModel" if c.bottleneck == "vq" else "AutoencoderKL",
        "in_channels": c.image_channels,
        "out_channels": c.image_channels,
        "down_block_types": [BLOCKS["down_block_types"][a] for a in attend],
        "up_block_types": [BLOCKS["up_block_types"][a] for a in attend[::-1]],
        "block_out_channels": [c.width * m for m in c.mult],
        "layers_per_block": c.blocks,
        "act_fn": "silu",
        "latent_channels": c.channels,
        "norm_num_groups": groups,
        "mid_block_add_attention": c.mid_attention,
        "scaling_factor": float(model.scale),  # always: the default is wrong for VQ
        **({"num_vq_embeddings": c.codes} if c.bottleneck == "vq" else {}),
    }
