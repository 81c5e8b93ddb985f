"""Latents, encoded once: training a denoiser then never runs the first stage (more than half of the cost of a step)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..config import InputError, one_or_more, whole

FILE = "latents.safetensors"
FORMAT = 1  # of the file; another number and older caches are made again


class Latents(Dataset):
    """Items {"z": float32 (C, h, w), and what else the dataset's items had}, in memory; batch(rows) stacks them.

    z is kept as float16: half the memory, and its rounding (2^-11 of a value) is finer than that of the bf16 that
    encodes it; latents of unit variance are far from the largest float16. label_names: the dataset's."""

    def __init__(self, columns: dict[str, Tensor | list[Any]], label_names: Sequence[str] = ()):
        self.columns, self.label_names = columns, tuple(label_names)

    def __len__(self) -> int:
        return len(self.columns["z"])

    def __getitem__(self, row: int) -> dict[str, Any]:
        item = {key: values[row] for key, values in self.columns.items()}
        item |= {k: v.float() for k, v in item.items() if latent(k)}
        return {k: v.item() if isinstance(v, Tensor) and v.ndim == 0 else v for k, v in item.items()}

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        """{"z": (B, C, h, w), …} of these rows; what cannot be stacked (captions, unequal boxes) is a list."""
        at = torch.as_tensor(rows, dtype=torch.long)
        found = {k: v[at] if isinstance(v, Tensor) else [v[row] for row in rows] for k, v in self.columns.items()}
        return found | {k: v.float() for k, v in found.items() if latent(k)}


def latent(key: str) -> bool:
    return key == "z" or key.endswith("_z")


def cache_latents(
    first_stage: nn.Module,
    dataset: Any,
    folder: str | Path | None = None,
    batch: int = 64,
    sample: bool = False,
    epochs: int = 1,
    workers: int = 0,
    progress: bool = True,
    also: Sequence[str] = (),
) -> Latents:
    """Every item of `dataset` encoded, on the first stage's device, with its label and whatever a batch of it holds.

    folder: keeps the latents there, in one file that is written whole or not at all, and takes them from there next
    time if they are of the same weights, the same items and the same settings; otherwise they are made again.
    sample: one draw of the posterior for each item, fixed from then on; otherwise its mean.
    epochs: a crop or flip, once encoded, is what it is. With epochs = k, the cache holds the dataset as its first k
    epochs draw it, k len(dataset) items.
    also: other images of an item, such as one with a hole, that are encoded too (their means), each as KEY_z.
    batch, workers: images at a time, and processes that prepare them. Memory: 2 bytes for each element of z.

    InputError: an empty dataset or a stream, images that the first stage does not take, a folder that cannot be
    written."""
    if not len(dataset):
        raise InputError("the dataset is empty")
    one_or_more(batch=batch, epochs=epochs)
    names = getattr(dataset, "label_names", ())

    def encoded() -> dict[str, Tensor | list[Any]]:
        return _encoded(first_stage, dataset, batch, sample, epochs, workers, progress, also)

    if folder is None:
        return Latents(encoded(), names)
    path, key = Path(folder) / FILE, _key(first_stage, dataset, sample, epochs, also)
    columns = _read(path, key)
    if columns is None:
        with whole(path) as temporary:  # before the work: a place that cannot be written is known at once
            columns = encoded()
            _write(temporary, key, columns)
    return Latents(columns, names)


@torch.no_grad()
def _encoded(
    first_stage: nn.Module,
    dataset: Any,
    batch: int,
    sample: bool,
    epochs: int,
    workers: int,
    progress: bool,
    also: Sequence[str],
) -> dict[str, Tensor | list[Any]]:
    from tqdm.auto import tqdm

    from ..latent import mix
    from ..training import autocast, moved, precision

    place = _place(first_stage)
    dtype = precision("auto", place)
    n = epochs * len(dataset)
    z: Tensor | None = None
    rest: dict[str, list[Any]] = {}
    training, done = first_stage.training, 0
    first_stage.eval()
    devices = [place] if place.type == "cuda" else []
    try:
        with (
            tqdm(total=n, desc="encoding", unit=" images", disable=not progress) as bar,
            torch.random.fork_rng(devices),
        ):
            for part in _batches(dataset, batch, epochs, workers):
                if sample:
                    torch.manual_seed(mix(0, done))
                images = moved({key: part.pop(key) for key in ("image", *also)}, place)
                with autocast(place, dtype):
                    code = first_stage.encode(images.pop("image"), sample=sample).half().cpu()
                    part |= {f"{key}_z": first_stage.encode(other).half().cpu() for key, other in images.items()}
                if not code.isfinite().all():
                    raise FloatingPointError(f"rows {done} … {done + len(code) - 1}: latents that are not finite")
                z = _room(n, code) if z is None else z
                z[done : done + len(code)] = code
                for name, values in part.items():
                    rest.setdefault(name, []).append(values)
                done += len(code)
                bar.update(len(code))
    finally:
        first_stage.train(training)
    assert z is not None
    return {"z": z} | {name: _joined(values) for name, values in rest.items()}


def _place(module: nn.Module) -> torch.device:
    first = next(chain(module.parameters(), module.buffers()), None)
    return first.device if first is not None else torch.device("cpu")


def _batches(dataset: Any, batch: int, epochs: int, workers: int) -> Iterator[dict[str, Any]]:
    """The items as training would see them in its first epochs, in the order of the rows."""
    from ..training import Drawn, as_is

    n = len(dataset)
    pairs = ([divmod(k, n)[::-1] for k in range(i, min(i + batch, n * epochs))] for i in range(0, n * epochs, batch))
    loader = DataLoader(Drawn(dataset), batch_sampler=pairs, collate_fn=as_is, num_workers=workers)
    try:
        for part in loader:
            if "image" not in part:
                raise InputError(f"{type(dataset).__name__}: items without image; they have {', '.join(part)}")
            yield dict(part)
    except InputError as error:  # one from a worker comes with its whole traceback, the message last
        raise InputError(str(error).strip().splitlines()[-1].removeprefix("ldm_lite.config.InputError: ")) from None


def _room(n: int, code: Tensor) -> Tensor:
    """float16 for the latents of n items like these."""
    try:
        return torch.empty(n, *code.shape[1:], dtype=code.dtype)
    except RuntimeError:
        need = n * code[0].numel() * code.element_size() / 2**30
        raise InputError(
            f"the latents of {n} items take {need:.0f} GiB of memory; take fewer (count), or no cache"
        ) from None


def _joined(parts: list[Any]) -> Tensor | list[Any]:
    """The batches' columns as one: a tensor if all are, and agree in shape, else a list of items."""
    if all(isinstance(part, Tensor) for part in parts) and len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(parts)
    return [item for part in parts for item in part]


# The file -------------------------------------------------------------------------------------------------------------


def _key(first_stage: nn.Module, dataset: Any, sample: bool, epochs: int, also: Sequence[str] = ()) -> str:
    """What the latents depend on, in one word."""
    from ..training import Drawn

    digest = hashlib.sha256(f"{FORMAT} {sample} {epochs} {' '.join(also)} {type(first_stage).__name__} ".encode())
    digest.update(str(getattr(first_stage, "config", first_stage)).encode())
    for name, value in first_stage.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(_bytes(value))
    digest.update(f"{len(dataset)} {identity(dataset)} ".encode())
    # a few items themselves: whatever a description leaves out, the code that draws them included
    for row in sorted({0, len(dataset) // 2, len(dataset) - 1}):
        for name, value in Drawn(dataset).__getitems__([(row, 0)]).items():
            digest.update(name.encode())
            digest.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


def identity(value: Any) -> str:
    """A line that differs when the items of a dataset may: its `identity`, or its type and what it is made of."""
    if hasattr(value, "identity"):
        return value.identity
    if isinstance(value, Tensor):
        return hashlib.sha256(_bytes(value)).hexdigest()
    if hasattr(value, "__getitem__") and hasattr(value, "__dict__"):  # a dataset, perhaps around another
        return f"{type(value).__name__}({', '.join(f'{k}={identity(v)}' for k, v in vars(value).items())})"
    text = repr(value)
    return "" if " at 0x" in text else text


def _bytes(value: Tensor) -> memoryview:
    return memoryview(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _write(path: Path, key: str, columns: dict[str, Tensor | list[Any]]) -> None:
    """Tensors as they are; lists of tensors end to end, with their lengths; words as JSON."""
    from safetensors.torch import save_file

    tensors, words = {}, {}
    for name, values in columns.items():
        if isinstance(values, Tensor):
            tensors[name] = values.contiguous()
        elif all(isinstance(value, Tensor) for value in values):
            tensors[name] = torch.cat(list(values))
            tensors[f"{name}/lengths"] = torch.tensor([len(value) for value in values])
        else:
            words[name] = values
    save_file(tensors, path, {"key": key, "words": json.dumps(words)})


def _read(path: Path, key: str) -> dict[str, Tensor | list[Any]] | None:
    """The columns in a file that `_write` wrote under the same key; None for any other file, or none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("key") != key:
                return None
            columns: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    for name in [name for name in columns if name.endswith("/lengths")]:
        lengths = columns.pop(name).tolist()
        columns[name.removesuffix("/lengths")] = list(columns[name.removesuffix("/lengths")].split(lengths))
    return columns | json.loads(about["words"])
