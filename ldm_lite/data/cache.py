"""Latents, encoded once: training a denoiser then never runs the first stage, a third to two thirds of a step."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .. import processes
from ..config import InputError, one_or_more, swept, whole

SHARD = 8192  # items in a file: 0.2 GB of the paper's 3 x 64 x 64, read from end to end in a moment
SCALE, SKIPPED = "scale.json", "skipped.txt"  # beside latents: their scale, and the pictures that have none
FORMAT = 4  # of the files; another number and older caches are made again


class Latents(Dataset):
    """Items {"z": float32 (C, h, w), and what else the dataset's items had}, in memory; batch(rows) stacks them.

    z is kept as float16: half the memory, and its rounding (2^-11 of a value) is finer than that of the bf16 that
    encodes it; latents of unit variance are far from the largest float16. label_names: the dataset's. turns: 2 where
    every item is there twice, as it is and mirrored: `draws` then takes one of both by chance in each epoch."""

    def __init__(self, columns: dict[str, Tensor | list[Any]], label_names: Sequence[str] = (), turns: int = 1):
        self.columns, self.label_names, self.turns = columns, tuple(label_names), turns

    def __len__(self) -> int:
        return len(self.columns["z"]) // self.turns

    def __getitem__(self, row: int) -> dict[str, Any]:
        item = {key: values[0] for key, values in self.batch([range(len(self))[row]]).items()}
        return {k: v.item() if isinstance(v, Tensor) and v.ndim == 0 else v for k, v in item.items()}

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        """{"z": (B, C, h, w), …} of these rows; what cannot be stacked (captions, unequal boxes) is a list."""
        found = taken(self.columns, torch.as_tensor(rows, dtype=torch.long))
        return found | widened(found)

    def column(self, name: str) -> Tensor | list[Any]:
        """What all items have of one name, in memory."""
        return self.columns[name]

    def draws(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """A batch of (row, epoch) pairs."""
        n, turned = len(self), self.turns > 1
        mirror = lambda row, epoch: turned and np.random.default_rng((epoch, row)).random() < 0.5
        return self.batch([row + n * mirror(row, epoch) for row, epoch in pairs])


class Shards(Latents):
    """Latents in the files of a folder, which are mapped and not read: a batch costs its own rows, and nothing is held
    in memory but what the system keeps of the files."""

    def __init__(self, paths: Sequence[Path], key: str, label_names: Sequence[str] = (), turns: int = 1):
        self.paths, self.key, self.label_names, self.turns = list(paths), key, tuple(label_names), turns
        self._open()

    def _open(self) -> None:
        self.shards = [found for path in self.paths if (found := _read(path, self.key)) is not None]
        if len(self.shards) < len(self.paths):
            raise InputError(f"{self.paths[0].parent}: its latents have changed while they were in use; start again")
        self.ends = np.cumsum([len(shard["z"]) for shard in self.shards])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("shards", "ends")}  # a worker maps them itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open()

    def __len__(self) -> int:
        return int(self.ends[-1]) // self.turns

    @property
    def columns(self) -> dict[str, Tensor | list[Any]]:  # type: ignore[override]
        """All of it, in memory."""
        return {name: self.column(name) for name in self.shards[0]}

    @property
    def lost(self) -> list[str]:
        """The pictures that could not be decoded for them."""
        return sorted({name for path in self.paths for name in json.loads(about(path)["skipped"])})

    def column(self, name: str) -> Tensor | list[Any]:
        return _joined([shard[name] for shard in self.shards])

    def batch(self, rows: Sequence[int]) -> dict[str, Any]:
        rows = np.asarray(rows, dtype=np.int64)
        inside = np.searchsorted(self.ends, rows, side="right")
        order = np.argsort(inside, kind="stable")
        parts = []
        for k in np.unique(inside):
            first = self.ends[k - 1] if k else 0
            parts.append(taken(self.shards[k], torch.from_numpy(rows[order][inside[order] == k] - first)))
        back = torch.from_numpy(np.argsort(order, kind="stable"))
        found = {name: _joined([part[name] for part in parts]) for name in parts[0]} if len(parts) > 1 else parts[0]
        found = taken(found, back)
        return found | widened(found)

    def verify(self) -> None:
        """Reads all of it. InputError, with the file, where the latents are not those that were written."""
        for path, shard in zip(self.paths, self.shards, strict=True):
            if checksum(shard) != about(path)["checksum"]:
                raise InputError(f"{path}: is not what was written; delete it and encode again")


class Balanced(Dataset):
    """Latents of which each label, or each caption, is drawn equally often, however many items have it: what is rare is
    learned as well as what is common. An epoch takes every value as often as every other, to within one, and chooses
    among its items by chance."""

    def __init__(self, data: Latents, key: str):
        if key not in (item := data[0]):
            raise InputError(f"balance: the images have no {key}; they have {', '.join(sorted(item))}")
        self.data, self.label_names = data, data.label_names
        column = data.column(key)
        values = (column.tolist() if isinstance(column, Tensor) else column)[: len(data)]  # a second turn repeats them
        found: dict[Any, list[int]] = {}
        for row, value in enumerate(values):
            found.setdefault(value, []).append(row)
        self.groups = list(found.values())

    def __len__(self) -> int:
        return len(self.data)

    def row(self, row: int, epoch: int) -> int:
        """The row that is drawn in the place of a row."""
        group = self.groups[(epoch * len(self) + row) % len(self.groups)]
        return group[int(np.random.default_rng((epoch, row)).integers(len(group)))]

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.data[self.row(range(len(self))[row], 0)]

    def draws(self, pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
        return self.data.draws([(self.row(*pair), pair[1]) for pair in pairs])


def latent(key: str) -> bool:
    return key in ("z", "z_std") or key.endswith("_z")


def taken(columns: dict[str, Any], at: Tensor) -> dict[str, Any]:
    """Some rows of columns, in this order."""
    return {k: v[at] if isinstance(v, Tensor) else [v[row] for row in at.tolist()] for k, v in columns.items()}


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
    spread: bool = False,
    strict: bool = False,
) -> Latents:
    """Every item of `dataset` encoded, on the first stage's device, with its label and whatever a batch of it holds.

    folder: keeps the latents there, in files of SHARD items that are each written whole or not at all; those that are
    there already, of the same weights, items and settings, are taken as they are, so that encoding goes on where it
    was stopped. Several ranks encode a share of the files each, and all use all. The files are mapped, not read.
    Without a folder, all is in memory, 2 bytes for each element of z.
    sample: one draw of the posterior for each item, fixed from then on; otherwise its mean.
    spread: its standard deviation too, as z_std, so that every step draws anew, as the original does.
    epochs: a crop or flip, once encoded, is what it is. With epochs = k, the cache holds the dataset as its first k
    epochs draw it, k len(dataset) items. With one epoch, a dataset that flips is encoded as it is and mirrored.
    also: other images of an item, such as one with a hole, that are encoded too (their means), each as KEY_z.
    batch, workers: images at a time, fewer where memory has no room for them, and processes that prepare them.
    strict: other latents in the folder are an error; otherwise they are made again.

    InputError: an empty dataset or a stream, images that the first stage does not take, a folder that cannot be
    written."""
    if not len(dataset):
        raise InputError("the dataset is empty")
    one_or_more(batch=batch, epochs=epochs)
    names = getattr(dataset, "label_names", ())
    both = [turned(dataset, False), turned(dataset, True)] if epochs == 1 and flips(dataset) else [dataset]
    n = len(dataset) * epochs * len(both)
    settings = (batch, sample, workers, also, spread)
    if folder is None:
        with _bar(n, progress) as bar:
            return Latents(_encoded(first_stage, both, range(n), bar, *settings), names, len(both))
    key = _key(first_stage, dataset, sample, epochs, also, spread, len(both))
    processes.agreed(key, f"{folder}: the latents")
    if strict:
        latents_alone(folder)
        there = [about(path) for path in Path(folder).glob("[0-9]*.safetensors")]
        if any("key" in found and "name" not in found for found in there):
            raise InputError(f"{folder}: holds latents of an older version; delete its files and encode again")
        if any(found.get("key", key) != key for found in there):
            raise others(folder)
    processes.alone(swept, folder)
    firsts = range(0, n, SHARD)
    paths = [Path(folder) / f"{k:05d}.safetensors" for k in range(len(firsts))]
    todo = [k for k in range(processes.rank(), len(paths), processes.count()) if _read(paths[k], key) is None]
    with _bar(sum(min(SHARD, n - firsts[k]) for k in todo), progress and bool(todo)) as bar:
        for k in todo:
            with whole(paths[k]) as temporary:  # before the work: a place that cannot be written is known at once
                rows = range(firsts[k], min(firsts[k] + SHARD, n))
                columns = _encoded(first_stage, both, rows, bar, *settings)
                lost = json.dumps(list(getattr(dataset, "skipped", ())))
                _write(temporary, {"key": key, "name": paths[k].name, "skipped": lost}, columns)
    processes.largest(len(todo))  # all files are there once all ranks have come here
    if processes.rank() == 0:
        for other in Path(folder).glob("[0-9]*.safetensors"):  # of a larger dataset, before
            if other not in paths and "key" in about(other):
                other.unlink()
    return Shards(paths, key, names, len(both))


def latents_alone(folder: str | Path) -> None:
    """InputError for a folder that holds anything but what is written here, which would be lost or mixed with it."""
    for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else ():
        if not (path.name.startswith(".") or path.name in (SCALE, SKIPPED) or shard(path)):
            raise InputError(f"{folder}: holds something other than latents ({path.name}); choose another folder")


def shard(path: Path) -> bool:
    """Whether it is a file of latents, or may have been one before it was damaged."""
    from safetensors import SafetensorError, safe_open

    if not re.fullmatch(r"\d{5,}\.safetensors", path.name):
        return False
    try:
        with safe_open(path, "pt") as file:
            return "key" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return path.is_file()


def others(folder: str | Path, also: str = "") -> InputError:
    """For a folder that holds latents which are not those that are wanted."""
    of = f"holds latents of another first stage, other images or settings{also}"
    return InputError(
        f"{folder}: {of}; choose another, or encode with the recipe's --size, --count, --flip and --spread"
    )


def _bar(total: int, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="encoding", unit=" images", disable=not progress)


def flips(dataset: Any) -> bool:
    """Whether the dataset, or one that it is made around, mirrors half of its items."""
    return bool(getattr(dataset, "flip", False)) or (hasattr(dataset, "data") and flips(vars(dataset).get("data")))


def turned(dataset: Any, mirrored: bool) -> Any:
    """The dataset with every item mirrored, or none."""
    changed = copy.copy(dataset)
    if "flip" in vars(changed):
        changed.flip, changed.mirrored = True, mirrored
    else:
        changed.data = turned(changed.data, mirrored)
    return changed


@torch.no_grad()
def _encoded(
    first_stage: nn.Module,
    both: Sequence[Any],
    rows: range,
    bar: Any,
    batch: int,
    sample: bool,
    workers: int,
    also: Sequence[str],
    spread: bool,
) -> dict[str, Tensor | list[Any]]:
    """The columns of these rows; those of the second dataset, if there is one, come after all of the first's."""
    from ..latent import InParts, mix
    from ..training import autocast, moved, precision

    place = _place(first_stage)
    dtype = precision("auto", place)
    moments = (spread or sample) and hasattr(first_stage, "posterior")
    in_parts = InParts(batch)

    def coded(images: dict[str, Tensor], at: slice) -> dict[str, Tensor]:
        with autocast(place, dtype):
            if moments:
                mean, deviation = first_stage.posterior(images["image"][at])
                found = {"z": mean} | ({} if deviation is None else {"z_std": deviation})
            else:
                found = {"z": first_stage.encode(images["image"][at], sample=sample)}
            return found | {f"{key}_z": first_stage.encode(images[key][at]) for key in also}

    columns: dict[str, list[Any]] = {}
    room: dict[str, Tensor] = {}
    training, done = first_stage.training, 0
    first_stage.eval()
    devices = [place] if place.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            for part in _batches(both, rows, batch, workers):
                if sample:
                    torch.manual_seed(mix(0, rows.start + done))
                images = moved({key: part.pop(key) for key in ("image", *also)}, place)
                codes = in_parts(lambda at, images=images: coded(images, at), len(images["image"]))
                found = {name: torch.cat([code[name] for code in codes]) for name in codes[0]}
                if sample and not spread and "z_std" in found:  # one draw of all: it is the same in any parts
                    found["z"] += found.pop("z_std") * torch.randn_like(found["z"])
                for name, code in found.items():
                    code = code.half().cpu()
                    if not code.isfinite().all():
                        at = rows.start + done
                        raise FloatingPointError(f"rows {at} … {at + len(code) - 1}: latents that are not finite")
                    if name not in room:
                        room[name] = _room(len(rows), code)
                    room[name][done : done + len(code)] = code
                for name, values in part.items():
                    columns.setdefault(name, []).append(narrow(name, values))
                done += len(found["z"])
                bar.update(len(found["z"]))
    finally:
        first_stage.train(training)
    return room | {name: _joined(values) for name, values in columns.items()}


def narrow(name: str, values: Any) -> Any:
    """Maps in a byte a pixel where their numbers fit, in place of eight: a map of 256 x 256 outweighs its latent."""
    small = name == "segmentation" and isinstance(values, Tensor) and values.min() >= 0 and values.max() < 256
    return values.to(torch.uint8) if small else values


def widened(found: dict[str, Any]) -> dict[str, Tensor]:
    """Latents and maps of a cache, as they are learned from."""
    latents = {name: values.float() for name, values in found.items() if latent(name)}
    maps = {"segmentation": found["segmentation"].long()} if isinstance(found.get("segmentation"), Tensor) else {}
    return latents | maps


def _place(module: nn.Module) -> torch.device:
    first = next(chain(module.parameters(), module.buffers()), None)
    return first.device if first is not None else torch.device("cpu")


class Turns(Dataset):
    """Datasets end to end, addressed by (row, epoch) pairs whose rows count on from one to the next."""

    def __init__(self, both: Sequence[Any]):
        from ..training import Drawn

        self.n, self.both = len(both[0]), [Drawn(data) for data in both]

    def __getitems__(self, pairs: list[tuple[int, int]]) -> dict[str, Any]:
        from ..training import joined

        parts = [[(row % self.n, e) for row, e in pairs if row // self.n == k] for k in range(len(self.both))]
        return joined([data.__getitems__(some) for data, some in zip(self.both, parts, strict=True) if some])


def _batches(both: Sequence[Any], rows: range, batch: int, workers: int) -> Iterator[dict[str, Any]]:
    """The items as training would see them in its first epochs, in the order of the rows."""
    from ..training import as_is, deaf, prepared

    n = len(both[0]) * len(both)
    groups = (rows[i : i + batch] for i in range(0, len(rows), batch))
    pairs = ([(row % n, row // n) for row in group] for group in groups)
    settings = {"collate_fn": as_is, "num_workers": workers, "worker_init_fn": deaf}
    loader = DataLoader(Turns(both), batch_sampler=pairs, **settings)
    for part in prepared(loader):
        if "image" not in part:
            raise InputError(f"{type(both[0]).__name__}: items without image; they have {', '.join(part)}")
        yield dict(part)


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


def _key(
    first_stage: nn.Module, dataset: Any, sample: bool, epochs: int, also: Sequence[str], spread: bool, turns: int
) -> str:
    """What the latents depend on, in one word."""
    from ..training import Drawn

    settings = f"{FORMAT} {SHARD} {sample} {epochs} {spread} {turns} {' '.join(also)} {type(first_stage).__name__} "
    digest = hashlib.sha256(settings.encode())
    digest.update(str(getattr(first_stage, "config", first_stage)).encode())
    _add_weights(digest, first_stage)
    digest.update(f"{len(dataset)} {identity(dataset)} ".encode())
    # a few items themselves: whatever a description leaves out, the code that draws them included
    for row in sorted({0, len(dataset) // 2, len(dataset) - 1}):
        for name, value in Drawn(dataset).__getitems__([(row, 0)]).items():
            digest.update(name.encode())
            digest.update(_bytes(value) if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


def _add_weights(digest: Any, module: nn.Module) -> None:
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(_bytes(value))


def fingerprint(module: nn.Module) -> str:
    """A word that differs where a module's weights do."""
    digest = hashlib.sha256()
    _add_weights(digest, module)
    return digest.hexdigest()[:16]


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


def _write(path: Path, about: dict[str, str], columns: dict[str, Tensor | list[Any]]) -> None:
    """Tensors as they are; lists of tensors end to end, with their lengths; words as JSON. about: what else the file
    says of itself: its key, its name, and what could not be decoded."""
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
    save_file(tensors, path, about | {"words": json.dumps(words), "checksum": checksum(columns)})


def checksum(columns: dict[str, Tensor | list[Any]]) -> str:
    """Of all of them: latents, labels, words."""
    value = 0
    for name in sorted(columns):
        values = columns[name]
        for part in [values] if isinstance(values, Tensor) else values:
            value = zlib.crc32(name.encode(), value)
            value = zlib.crc32(_bytes(part) if isinstance(part, Tensor) else json.dumps(part).encode(), value)
    return f"{value:08x}"


def about(path: Path) -> dict[str, str]:
    """What a file says of itself."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _read(path: Path, key: str) -> dict[str, Tensor | list[Any]] | None:
    """The columns in a file that was written under the same key and name, mapped; None for any other file, or none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("key") != key or about.get("name") != path.name:  # it may be a copy of another
                return None
            columns: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None
    for name in [name for name in columns if name.endswith("/lengths")]:
        lengths = columns.pop(name).tolist()
        columns[name.removesuffix("/lengths")] = list(columns[name.removesuffix("/lengths")].split(lengths))
    return columns | json.loads(about["words"])
