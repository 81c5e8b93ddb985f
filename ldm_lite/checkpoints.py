"""Original weights in our names, and back: first stages from CompVis's .ckpt files and from diffusers' folders.

A table of renames leads from our names to theirs. It is applied to the names of a model, so one table reads and writes;
loading is strict. Objects in a pickle are passed over: no code of theirs is imported or run."""

from __future__ import annotations

import dataclasses
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .autoencoder import Autoencoder, AutoencoderConfig
from .config import InputError, read, whole, write

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
        (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
        (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
        (r"\.qkv\.", (".to_q.", ".to_k.", ".to_v.")),
        (r"^bottleneck\.", "quantize."),
    ]


# For each kind of model and each layout: renames, applied in order. Several new names share the tensor equally.
RULES: dict[type, dict[str, Callable[[Any], Renames]]] = {
    Autoencoder: {"compvis": _first_stage_compvis, "diffusers": _first_stage_diffusers},
}
# The names in older files of diffusers
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def translated(model: nn.Module, layout: str) -> dict[str, Tensor]:
    """The model's tensors under the names of layout "compvis" or "diffusers"; they share memory with the model's.

    The latent scale is not among them. InputError for a kind of model that has no rules."""
    if type(model) not in RULES:
        kinds = ", ".join(kind.__name__ for kind in RULES)
        raise InputError(f"{type(model).__name__}: has no names in the layout of {layout}; {kinds} has")
    rules = RULES[type(model)][layout](model.config)
    result: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name == "scale":
            continue
        names = [name]
        for pattern, new in rules:
            if re.search(pattern, names[0]):
                names = [re.sub(pattern, to, n) for n in names for to in (new if isinstance(new, tuple) else (new,))]
        result |= zip(names, value.chunk(len(names)))
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
        value.copy_(state[name].reshape(value.shape))


# Files --------------------------------------------------------------------------------------------------------------


class Inert:
    """Stands where a pickle names a class or function that is not a tensor's: takes anything and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


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
                values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # half a file makes an unpickler fail in any way
        if isinstance(error, pickle.UnpicklingError) and (zipped or "GLOBAL" in str(error)):
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


def load_compvis(path: str | Path, config: AutoencoderConfig | None = None, scale: float | None = None) -> Autoencoder:
    """A first stage in the original's names: a file of its own, or the one inside a whole latent diffusion model.

    config: what it must be (that of a preset is `recipe(name).model`); left out, the names and shapes tell. scale: of
    the latents; left out, the `scale_factor` in a whole model, else 1 (a constant in the original's YAML, such as
    0.18215, is not in the file). Discriminator, LPIPS and model_ema are passed over. In eval mode, float32.
    InputError for what `tensors` refuses and for anything but the whole of one first stage, of the one asked for."""
    state = tensors(path)
    measured = state.pop("scale_factor", None)
    if any(name.startswith("first_stage_model.") for name in state):
        inside = [name for name in state if name.startswith("first_stage_model.")]
        state = {name.removeprefix("first_stage_model."): state[name] for name in inside}
    state = {name: value for name, value in state.items() if not name.startswith(("loss.", "model_ema."))}
    found = _inferred(state, path)
    if config is not None:
        _compare(found, config, path)
    model = Autoencoder(found)
    _check_original_groups(model, path)
    fill(model, state, "compvis", path)
    return _scaled(model, float(1 if measured is None else measured) if scale is None else scale)


def save_compvis(model: Autoencoder, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes a first stage as the original does, whole or not at all: .safetensors, or torch.save under `state_dict`.

    The scale has no place in such a file. InputError for a model below 128 channels, which the original cannot be."""
    from safetensors.torch import save_file

    state = _outgoing(translated(model, "compvis"), dtype)
    _check_original_groups(model, path)
    with whole(path) as temporary:
        if Path(path).suffix == ".safetensors":
            save_file(state, temporary)
        else:
            torch.save({"state_dict": state}, temporary)


def _inferred(state: Mapping[str, Tensor], where: str | Path) -> AutoencoderConfig:
    """What the names and shapes of an original first stage tell, which is everything."""

    def size(name: str, axis: int = 0) -> int:
        if name not in state or state[name].ndim <= axis:
            raise InputError(f"{where}: {name} is missing; a first stage, all of it, is needed")
        return state[name].shape[axis]

    def count(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})

    width, levels = size("encoder.conv_in.weight"), count("encoder.down.")
    widths = [size(f"encoder.down.{i}.block.0.conv1.weight") for i in range(max(levels, 1))]
    vq = "quantize.embedding.weight" in state
    return AutoencoderConfig(
        channels=size("post_quant_conv.weight"),
        width=width,
        mult=_multiples(widths, width, where),
        blocks=count("encoder.down.0.block."),
        attend_at=tuple(2**i for i in range(levels) if count(f"encoder.down.{i}.attn.")),
        mid_attention=count("encoder.mid.attn_1.") > 0,
        bottleneck="vq" if vq else "kl",
        codes=size("quantize.embedding.weight") if vq else AutoencoderConfig.codes,
        image_channels=size("encoder.conv_in.weight", 1),
    )


def _multiples(widths: list[int], width: int, where: str | Path) -> tuple[int, ...]:
    if any(w % width for w in widths):
        raise InputError(f"{where}: its levels have {widths} channels; multiples of {width} are needed")
    return tuple(w // width for w in widths)


def _compare(found: AutoencoderConfig, asked: AutoencoderConfig, where: str | Path) -> None:
    asked = dataclasses.replace(asked, attend_at=tuple(sorted(asked.attend_at)))
    fields = [f.name for f in dataclasses.fields(found) if f.name != "codes" or found.bottleneck == "vq"]
    differ = [name for name in fields if getattr(found, name) != getattr(asked, name)]
    if differ:
        what = "; ".join(f"{name} is {getattr(found, name)}, not {getattr(asked, name)}" for name in differ)
        raise InputError(f"{where}: another first stage than the one asked for: {what}")


def _check_original_groups(model: Autoencoder, where: str | Path) -> None:
    if _groups(model) != [GROUPS]:
        ours, width = ", ".join(map(str, _groups(model))), model.config.width
        raise InputError(f"{where}: at width {width} our norms have {ours} groups, the original's 32; 128 is the least")


# diffusers ----------------------------------------------------------------------------------------------------------

WEIGHTS = "diffusion_pytorch_model"
COPIED = 0.18215  # the default of every diffusers config: measured for one KL first stage, wrong for any VQ
DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
}
OF_CLASS = {
    "AutoencoderKL": {"latent_channels": 4, "scaling_factor": COPIED},
    "VQModel": {"latent_channels": 3, "scaling_factor": 1.0, "num_vq_embeddings": 256},
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
BLOCKS = {
    "down_block_types": {False: "DownEncoderBlock2D", True: "AttnDownEncoderBlock2D"},
    "up_block_types": {False: "UpDecoderBlock2D", True: "AttnUpDecoderBlock2D"},
}


def load_diffusers(folder: str | Path, scale: float | None = None) -> Autoencoder:
    """A first stage from a folder of diffusers (AutoencoderKL or VQModel), or from `vae` or `vqvae` in a pipeline's.

    Attention under its old names and weights in .bin are read too. scale: of the latents; left out, scaling_factor.
    A VQModel's scaling_factor of 0.18215 is a default that was copied from KL (diffusers #6725): it is taken for 1,
    with a warning. In eval mode, float32. InputError for a model that an Autoencoder cannot be, and broken files."""
    places = [Path(folder), Path(folder) / "vae", Path(folder) / "vqvae"]
    folder = next((place for place in places if (place / "config.json").is_file()), places[0])
    where = folder / "config.json"
    values = read(where)
    kind = values.get("_class_name") if isinstance(values, dict) else None
    if kind not in OF_CLASS:
        raise InputError(f"{where}: _class_name {kind!r} is not one of {', '.join(OF_CLASS)}")
    values = DEFAULTS | OF_CLASS[kind] | values
    if kind == "VQModel" and values["scaling_factor"] == COPIED and scale is None:
        warnings.warn(f"{where}: scaling_factor {COPIED} is no VQ model's; 1 is taken (scale overrides)", stacklevel=2)
        scale = 1.0
    try:
        model = Autoencoder(_from_diffusers(values, where))
        scale = float(values["scaling_factor"] if scale is None else scale)
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{where}: not a config of {kind} ({error})") from None
    if _groups(model) != [values["norm_num_groups"]]:
        ours = ", ".join(map(str, _groups(model)))
        raise InputError(f"{where}: norm_num_groups is {values['norm_num_groups']}; at this width ours has {ours}")
    weights = [folder / f"{WEIGHTS}{suffix}" for suffix in (".safetensors", ".bin")]
    path = next((path for path in weights if path.is_file()), weights[0])
    old = re.compile(rf"\.({'|'.join(OLD_ATTENTION)})\.")
    state = {old.sub(lambda m: f".{OLD_ATTENTION[m[1]]}.", name): value for name, value in tensors(path).items()}
    fill(model, state, "diffusers", path)
    return _scaled(model, scale)


def save_diffusers(model: Autoencoder, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes what from_pretrained of AutoencoderKL (kl) or VQModel (vq) reads, each file whole or not at all.

    dtype: of the weights. InputError for what they cannot be: a first level wider than `width`, and norms with
    different numbers of groups (below 128 channels)."""
    from safetensors.torch import save_file

    folder, state = Path(folder), _outgoing(translated(model, "diffusers"), dtype)
    state = {k: v.flatten(1) if ".attentions." in k and v.ndim == 4 else v for k, v in state.items()}
    config = _to_diffusers(model)
    with whole(folder / f"{WEIGHTS}.safetensors") as temporary:
        save_file(state, temporary, {"format": "pt"})
    write(folder / "config.json", config)


def _from_diffusers(values: Mapping[str, Any], where: Path) -> AutoencoderConfig:
    for field, right in ALWAYS.items():
        if values.get(field, right[0]) not in right:
            raise InputError(f"{where}: {field} is {values[field]!r}; an Autoencoder has {right[0]!r}")
    for field, same_as in (("out_channels", "in_channels"), ("vq_embed_dim", "latent_channels")):
        if values.get(field) not in (None, values[same_as]):
            raise InputError(f"{where}: {field} is {values[field]}, {same_as} {values[same_as]}; they must be equal")
    widths, down = list(values["block_out_channels"]), list(values["down_block_types"])
    attend = [block == BLOCKS["down_block_types"][True] for block in down]
    for field, expected in (("down_block_types", attend), ("up_block_types", attend[::-1])):
        blocks = [BLOCKS[field][a] for a in expected]
        if list(values[field]) != blocks or len(blocks) != len(widths):
            wanted = f"{len(widths)} of {' or '.join(BLOCKS[field].values())}, attention at the same levels down and up"
            raise InputError(f"{where}: {field} is {values[field]}; needed are {wanted}")
    return AutoencoderConfig(
        channels=values["latent_channels"],
        width=widths[0],
        mult=_multiples(widths, widths[0], where),
        blocks=values["layers_per_block"],
        attend_at=tuple(2**i for i, a in enumerate(attend) if a),
        mid_attention=values["mid_block_add_attention"],
        bottleneck="vq" if values["_class_name"] == "VQModel" else "kl",
        codes=values.get("num_vq_embeddings", AutoencoderConfig.codes),
        image_channels=values["in_channels"],
    )


def _to_diffusers(model: Autoencoder) -> dict[str, Any]:
    c, groups = model.config, _groups(model)
    if len(groups) > 1:
        found = ", ".join(map(str, groups))
        raise InputError(f"width: {c.width} has norms with {found} groups; diffusers has one number (128 and more do)")
    if c.mult[0] != 1:
        raise InputError(f"mult: {c.mult} does not begin with 1; diffusers' first level is as wide as its first layer")
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
        "norm_num_groups": groups[0],
        "mid_block_add_attention": c.mid_attention,
        "scaling_factor": float(model.scale),  # always: the default is wrong for VQ
        **({"num_vq_embeddings": c.codes} if c.bottleneck == "vq" else {}),
    }
