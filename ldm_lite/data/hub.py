"""Pictures from a Hugging Face dataset: an id on the hub, or Parquet files. The pixels are made as ImageFolder's."""

from __future__ import annotations

import copy
import errno
import glob
import hashlib
import inspect
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from ..config import InputError, one_or_more
from .folder import Crop, Pictures, Size, Source, Unreadable, ends, header, pictures_below, some_of
from .notes import CAPTIONS


class HubImages(Pictures):
    """{"image": (3, size, size) in [-1, 1], "label", "caption"} of a dataset's rows, as far as it has the columns.

    source: an id on the hub, a Parquet file, or a folder of Parquet files named as on the hub (data/train-00000-of-…).
    split: as `datasets` understands it, "train[:1000]" too; a single file is whatever split is asked for.
    image_key: the column of type Image; to be named when there are several and none is called image.
    label_key: the column of type ClassLabel, its names are `label_names`, -1 is a row that has no label; a column of
    numbers or words has to be named here, and its sorted values are the classes.
    caption_key: the column of text called caption, captions, text or prompt; of several captions for one picture,
    `draw(row, epoch)` takes one.
    revision: the commit on the hub, for runs that others shall repeat.
    crop, flip, strict, seed, count, `skipped`, errors: as ImageFolder.

    streaming: nothing is downloaded beforehand, and there is no length and no row i. Iterate (`stream(epoch)` for other
    crops and flips than epoch 0's), or `take(count)`: the first rows, kept encoded in memory, which `fit` and
    `cache_latents` accept.

    Datasets worth knowing, with their terms: data.KNOWN. Datasets that are scripts no longer load."""

    def __init__(
        self,
        source: str | Path,
        split: str = "train",
        size: int = 64,
        crop: Crop = "center",
        flip: bool = False,
        strict: bool = False,
        seed: int = 0,
        streaming: bool = False,
        image_key: str | None = None,
        label_key: str | None = None,
        caption_key: str | None = None,
        revision: str | None = None,
        count: int | None = None,
    ):
        super().__init__(size, crop, flip, strict, seed, count)
        self.source, self.split, self.streaming, self.revision = str(source), split, streaming, revision
        data = loaded(self.source, split, streaming, revision)
        columns = dict(data.features)
        for field, key in (("image_key", image_key), ("label_key", label_key), ("caption_key", caption_key)):
            if key is not None and key not in columns:
                raise InputError(f"{field}: {self.source} has no column {key!r}, it has {', '.join(columns)}")
        self.image_key = image_key or _image_column(columns, self.source)
        self.label_key = label_key or _label_column(columns)
        self.caption_key = caption_key or next((k for k in CAPTIONS if k in columns and _is_text(columns[k])), None)
        self.label_names, self.classes = self._labels(data, columns)
        from datasets import Image

        keys = [self.image_key, self.label_key, self.caption_key]
        data = data.select_columns([key for key in keys if key]).cast_column(self.image_key, Image(decode=False))
        self.data: Any = data
        if not streaming:
            self.accept(self._headers(), self.source)

    def __repr__(self) -> str:
        n = "a stream" if self.streaming else f"{len(self)} images"
        return f"HubImages({self.source!r}, {self.split!r}, {self.settings}, {n})"

    @property
    def identity(self) -> str:
        """Changes when an item may: labels, captions and the sizes of all pictures, the ends of some, and what is made
        of them. Neither times nor places count: what is fetched again, or lies elsewhere, is the same."""
        digest = hashlib.sha256()
        for sizes, others in self._described():
            digest.update(f"{sizes} {others}".encode())
        for i in some_of(len(self.data)):
            if content := (self.data[i][self.image_key] or {"bytes": None})["bytes"]:
                digest.update(ends(io.BytesIO(content)))
        return f"HubImages({self.settings}, {len(self)}, rows={digest.hexdigest()})"

    # The holes of Pictures

    def where(self, i: int | str) -> str:
        return f"{self.source}, {self.split}, {f'row {i}' if isinstance(i, int) else i}"

    def fetch(self, i: int, random: float) -> tuple[Source, dict[str, Any]]:
        return self._parts(self.data[i], random)

    def __len__(self) -> int:
        if self.streaming:
            raise NoLength(f"{self.source}: a stream has no length and no rows; use take(count), or streaming=False")
        return super().__len__()

    # Streams

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.stream()

    def stream(self, epoch: int = 0) -> Iterator[dict[str, Any]]:
        """The items in order, without those that cannot be decoded."""
        if not self.streaming:
            yield from (self.draw(row, epoch) for row in range(len(self)))
            return
        for i, row in enumerate(islice(self._arriving(), self.count)):
            place, mirror, random = self.chances(i, epoch)
            yield from self._items(row, place, mirror, random)

    def flow(
        self, first: int = 0, rank: int = 0, world: int = 1, buffer: int = 1000, epochs: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """A stream's items, of so many epochs or without an end, for rank `rank` of `world`.

        Together the ranks see each row once an epoch, in an order by the seed: files by chance, rows among so many in
        the buffer. The workers of a DataLoader share a rank's files.

        first: so many items are passed over, undecoded, to go on where a run was stopped; where some cannot be decoded,
        it goes on as many rows earlier. Workers pass over an equal share each."""
        from datasets.distributed import split_dataset_by_node
        from torch.utils.data import get_worker_info

        # one file at a time: from several at once, newer versions sleep five seconds at the end of each epoch
        several = "max_buffer_input_shards" in inspect.signature(self.data.shuffle).parameters
        data: Any = self.data.shuffle(
            seed=self.seed, buffer_size=buffer, **({"max_buffer_input_shards": 1} if several else {})
        )
        data = split_dataset_by_node(data, rank, world) if world > 1 else data
        worker = get_worker_info()
        left = first // worker.num_workers if worker else first
        place = (rank, worker.id if worker else 0)
        for epoch in count() if epochs is None else range(epochs):
            data.set_epoch(epoch)
            seen, drawn, whole = 0, 0, not left
            for i, row in enumerate(self._guarded(data)):
                seen += 1
                if left:
                    left -= 1
                    continue
                random = np.random.default_rng((self.seed, epoch, *place, i)).random(3)
                for item in self._items(row, *random):
                    drawn += 1
                    yield item
            if seen and whole and not drawn:  # it would go on without an end
                raise InputError(f"{self.source}: none of {seen} pictures can be decoded")
            if not seen:
                raise self.too_few(world, worker.num_workers if worker else 1)

    def too_few(self, world: int, workers: int) -> InputError:
        """For a stream that has nothing for one of these processes, or of their workers."""
        if workers > self.files(world):
            files = getattr(self.data, "n_shards", 1)
            return InputError(f"{self.source}: {files} files for {world} processes of {workers} workers: too few")
        several = f" for each of {world} processes" if world > 1 else ""
        several += f" of {workers} workers" if workers > 1 else ""
        return InputError(f"{self.source}: the stream has no picture{several}{'; start fewer' if several else ''}")

    def files(self, world: int = 1) -> int:
        """Of how many files a rank reads a stream: no more workers have something to do."""
        files = getattr(self.data, "n_shards", 1)
        return files // world if files % world == 0 else files  # where they cannot be shared out, each rank reads all

    def twentieth(self, kept: bool) -> HubImages:
        """A stream of about every twentieth row, or of the others. A row's bytes decide, wherever in the stream it is:
        files and rows come in another order in each epoch, and equal pictures are on one side."""
        some = copy.copy(self)
        some.data = self.data.filter(partial(_is_twentieth, key=self.image_key, kept=kept))
        return some

    def take(self, count: int) -> HubImages:
        """The first `count` rows, with rows and a length. They are kept in memory, encoded."""
        one_or_more(count=count)
        some = copy.copy(self)
        some.rows, some.broken, some.streaming = [], {}, False
        some.count, some.data = count, list(islice(self._arriving(), count))
        some.accept(some._headers(), self.source)
        return some

    def _arriving(self) -> Iterator[dict[str, Any]]:
        return self._guarded(self.data)

    def _guarded(self, data: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from data
        except Exception as error:
            raise failure(self.source, error) from error

    def _items(self, row: dict[str, Any], place: float, mirror: float, random: float) -> Iterator[dict[str, Any]]:
        """A stream's item, or none where it cannot be decoded."""
        source, about = self._parts(row, random)
        try:
            found = header(source)
            if isinstance(found, Unreadable):
                raise found
            if min(found) < self.size:
                raise self.too_small(self._name(row), found, min(found))
            image = self.square(source, place, mirror)
        except Unreadable as why:
            self.reject(self._name(row), why)
        else:
            yield {"image": image, **about}

    def _name(self, row: dict[str, Any]) -> str:
        """Of a stream's picture: the same wherever it comes. One that lacks is known by the rest of its row."""
        cell = row[self.image_key] or {"bytes": None, "path": None}
        path = f" ({cell['path']})" if cell["path"] else ""
        return f"picture {zlib.crc32(cell['bytes'] or str(row).encode()):08x}{path}"

    # Columns

    def _headers(self) -> Iterator[Size | Unreadable]:
        if isinstance(self.data, list):
            yield from (header(_source(row[self.image_key])) for row in self.data)
            return
        import pyarrow as pa

        only = self.data.select_columns([self.image_key]).with_format("arrow")
        for table in only.iter(batch_size=1000):
            for cell in table.column(self.image_key):
                whole = cell["bytes"] if cell.is_valid else cell
                # the bytes stay where they are: only their beginning is read
                yield header(pa.BufferReader(whole.as_buffer()) if whole.is_valid else _source(cell.as_py()))

    def _described(self) -> Iterator[tuple[list[Any], list[Any]]]:
        """Of some rows at a time the pictures' sizes, or paths where they lie elsewhere, and the other columns."""
        size = lambda cell: cell and (len(cell["bytes"]) if cell["bytes"] is not None else cell["path"])
        if isinstance(self.data, list):
            for row in self.data:
                yield [size(row[self.image_key])], [value for key, value in row.items() if key != self.image_key]
            return
        import pyarrow.compute as pc

        for table in self.data.with_format("arrow").iter(batch_size=1000):
            cells = table.column(self.image_key)
            stored, paths = (pc.struct_field(cells, key) for key in ("bytes", "path"))
            sizes = pc.coalesce(pc.cast(pc.binary_length(stored), "string"), paths)
            yield sizes.to_pylist(), table.drop([self.image_key]).to_pylist()

    def _labels(self, data: Any, columns: dict[str, Any]) -> tuple[tuple[str, ...], dict[Any, int]]:
        """The classes' names and, where the column holds no numbers of classes, the number of each value."""
        if self.label_key is None:
            return (), {}
        names = getattr(columns[self.label_key], "names", None)
        if names is not None:
            if not self.streaming:
                import pyarrow.compute as pc

                column = data.select_columns([self.label_key]).with_format("arrow")[:].column(0)
                self._known(pc.max(column).as_py(), names)
            return tuple(names), {}
        if self.streaming:
            raise InputError(f"label_key: the classes of {self.label_key!r} are not known before the stream has ended")
        values = sorted(data.unique(self.label_key))
        return tuple(map(str, values)), {value: k for k, value in enumerate(values)}

    def _known(self, label: int | None, names: Sequence[str]) -> int:
        """A class's number, -1 for none. InputError for one beyond the last."""
        if label is not None and label >= len(names):
            raise InputError(f"{self.source}: {self.label_key} {label} is beyond its {len(names)} classes")
        return -1 if label is None else label

    def _parts(self, row: dict[str, Any], random: float) -> tuple[Source, dict[str, Any]]:
        found: dict[str, Any] = {}
        if self.label_key:
            label = row[self.label_key]
            found["label"] = self.classes[label] if self.classes else self._known(label, self.label_names)
        if self.caption_key:
            caption = row[self.caption_key] or ""
            found["caption"] = caption if isinstance(caption, str) else caption[int(random * len(caption))]
        return _source(row[self.image_key]), found


class NoLength(InputError, TypeError):  # TypeError: list(stream) asks for a length, and goes on without
    pass


def loaded(source: str, split: str, streaming: bool, revision: str | None) -> Any:
    """A Dataset or IterableDataset of the package `datasets`. InputError names the source and what to do."""
    datasets, settings = package(source), address(source, split, revision)
    try:
        data = datasets.load_dataset(split=split, streaming=streaming, **settings)
    except Exception as error:  # of pyarrow, huggingface_hub, its transport and datasets, which differ between versions
        raise failure(source, error) from error
    if data.features is None:
        raise InputError(f"{source}: its columns are not known before it is read; use streaming=False")
    return data


def splits(source: str) -> list[str]:
    """What a dataset's splits are called; a single file is train. InputError as HubImages."""
    datasets, settings = package(source), address(source, "train")
    try:
        return list(datasets.get_dataset_split_names(**settings))
    except Exception as error:
        raise failure(source, error) from error


def tabular(path: str | Path) -> bool:
    """Whether pictures are in Parquet: a file, or those at the top of a folder, or below it where it has no others."""
    root = Path(path)
    if root.suffix.lower() == ".parquet" or any(root.glob("*.parquet")):
        return True
    return root.is_dir() and any(root.rglob("*.parquet")) and next(pictures_below(root), None) is None


def package(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        if error.name == "datasets":
            raise InputError(
                f"{source}: the package datasets is needed; install it with: pip install datasets"
            ) from None
        reason = str(error).splitlines()[0]  # it is there, and something that it needs is not, or too old
        raise InputError(f"{source}: the package datasets cannot be imported ({reason})") from None
    return datasets


def address(source: str, split: str, revision: str | None = None) -> dict[str, Any]:
    """Where `datasets` finds a source, in its words."""
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise InputError(f"{source}: not a Parquet file (.parquet)")
        return {"path": "parquet", "data_files": {split.partition("[")[0]: glob.escape(source)}}
    if path.is_dir():
        if not any(path.rglob("*.parquet")):
            raise InputError(f"no Parquet files below {source}; a folder of pictures is for ImageFolder")
        plain = glob.escape(source)  # brackets in a name are no pattern
        return {"path": source} if plain == source else {"path": "parquet", "data_dir": plain}
    if path.suffix.lower() == ".parquet" or path.is_absolute() or source.startswith(".") or source.count("/") > 1:
        raise InputError(f"{source}: no such file or folder")
    return {"path": source, "revision": revision}


def failure(source: str, error: Exception) -> InputError:
    """One line for whatever loading a dataset ended in."""
    if isinstance(error, InputError):
        return error
    reason = str(error.__cause__ or error).strip() or type(error).__name__
    reason = reason.splitlines()[0].rstrip(".")
    if "split" in reason and isinstance(error, ValueError):
        return InputError(f"split: {source}: {reason}")
    if (refused := _refused(error)) is not None:
        place = str(refused.filename or "the folder for what `datasets` keeps")
        if Path(place).resolve().is_relative_to(Path(source).resolve()):
            return InputError(f"{place}: cannot be read ({refused.strerror})")
        return InputError(f"{place}: cannot be written ({refused.strerror}); HF_HOME names another folder for it")
    if os.path.exists(source):
        path, reason = _broken(Path(source)) or (source, reason)
        return InputError(f"{path}: cannot be read as Parquet ({reason})")
    return InputError(
        f"{source}: cannot be loaded from the hub ({reason}); check the id and the network, or give a Parquet file"
    )


def _refused(error: BaseException | None) -> OSError | None:
    """What the system refused to write, of all that led to an error."""
    full, caused = (errno.ENOSPC, errno.EDQUOT, errno.EROFS), True
    while error is not None:
        barred = caused and getattr(error, "filename", None) and getattr(error, "errno", None) == errno.EACCES
        if isinstance(error, OSError) and (error.errno in full or barred):
            return error
        caused = error.__cause__ is not None  # what it was only met beside may have been given up without harm
        error = error.__cause__ or error.__context__
    return None


def _broken(source: Path) -> tuple[Path, str] | None:
    """The first Parquet file of a folder that is none, and why."""
    import pyarrow.parquet as pq

    for path in sorted(source.rglob("*.parquet")) if source.is_dir() else ():
        try:
            pq.read_metadata(path)
        except Exception as error:  # of pyarrow, or of the system
            return path, str(error).strip().splitlines()[0].rstrip(".")
    return None


def _is_twentieth(row: dict[str, Any], key: str, kept: bool) -> bool:
    cell = row[key] or {"bytes": None, "path": None}
    return (zlib.crc32(cell["bytes"] or str(cell["path"]).encode()) % 20 == 19) == kept


def _source(cell: dict[str, Any] | None) -> Source:
    """What opens the picture in a cell {"bytes", "path"}."""
    if cell is None or cell["bytes"] is not None or not cell["path"]:
        return io.BytesIO(cell["bytes"] if cell else None)
    import fsspec  # the path may be an address, or a member of an archive

    try:
        with fsspec.open(cell["path"], "rb") as file:
            return io.BytesIO(file.read())
    except (OSError, ImportError, ValueError) as error:  # ImportError, ValueError: for an address of another kind
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{cell['path']}: cannot be read ({why})") from None


def _image_column(columns: dict[str, Any], source: str) -> str:
    """The column of type Image; else of {"bytes", "path"} or bytes, which is how other writers store pictures."""
    from datasets import Image, Value

    pictures = [k for k, kind in columns.items() if isinstance(kind, Image)]
    pictures = pictures or [k for k, kind in columns.items() if isinstance(kind, dict) and {*kind} == {"bytes", "path"}]
    pictures = pictures or [k for k, kind in columns.items() if isinstance(kind, Value) and kind.dtype == "binary"]
    if len(pictures) == 1 or "image" in pictures:
        return "image" if "image" in pictures else pictures[0]
    if not pictures:
        raise InputError(f"{source}: no column holds images; it has {', '.join(columns)}")
    raise InputError(f"{source}: images are in {', '.join(pictures)}; choose one as image_key")


def _label_column(columns: dict[str, Any]) -> str | None:
    """The column of type ClassLabel, if there is one, or one of them is called label."""
    from datasets import ClassLabel

    labels = [k for k, kind in columns.items() if isinstance(kind, ClassLabel)]
    return "label" if "label" in labels else labels[0] if len(labels) == 1 else None


def _is_text(kind: Any) -> bool:
    """str, or a list of str."""
    kind = kind[0] if isinstance(kind, list) else getattr(kind, "feature", kind)
    return getattr(kind, "dtype", None) in ("string", "large_string")
