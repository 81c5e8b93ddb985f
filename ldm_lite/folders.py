"""Where weights lie, shipped or trained, and how a file of them is loaded."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .config import InputError, suggest


def unpickled(path: str | Path, mmap: bool = False) -> Any:
    """What torch.save wrote, on the CPU, as far as it is plain: no code in the file is run, and torch raises for it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # of what is refused a line later
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads a safetensors file strictly, in the model's own dtypes. InputError says what does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error}); fetch or train it again") from None
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise InputError(f"{path}: weights of another model ({first})") from None


def weights_folder(name: str) -> Path:
    """The folder of shipped weights: data/weights/name in a clone, ldm_lite/weights/name when installed."""
    here = Path(__file__).parent
    for root in (here / "weights", here.parent / "data" / "weights"):
        if (root / name / "config.json").is_file():
            return root / name
    raise suggest(name, shipped() or ["none"], "folder or shipped weights")


def shipped() -> list[str]:
    """The names of the weights that come with the package."""
    here = Path(__file__).parent
    roots = (here / "weights", here.parent / "data" / "weights")
    return sorted({path.parent.name for root in roots for path in root.glob("*/config.json")})


def found(name: str | Path) -> Path:
    """A folder with config.json: the path itself, the `model` in a run's folder, or shipped weights of this name."""
    for path in (Path(name), Path(name) / "model"):
        if (path / "config.json").is_file():
            return path
    if os.path.exists(name):
        raise InputError(f"{name}: not a model's folder (no config.json in it)")
    return weights_folder(str(name))
