"""LSUN as it is published: one lmdb a category and split, whose values are WebP pictures with a short side of 256.

The file is opened when it is first needed, in each process for itself: a dataset can be sent to workers of any kind
(spawn and forkserver too), and a training on 3 million bedrooms holds none of them in memory."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import InputError, whole
from .folder import Crop, Pictures, Source, Unreadable, ends, header, pictures_below, some_of

FILE = "data.mdb"
WHERE = "http://dl.yf.io/lsun/scenes/"


class LSUN(Pictures):
    """{"image": (3, size, size) in [-1, 1]} of an official lmdb, such as church_outdoor_train_lmdb, in its own order.

    root: its folder. The keys are listed once, which reads the whole index (a minute for 3 million from a disk), and
    kept in cache, by default beside it as ….keys where that can be written. count: only the first so many.
    crop, flip, strict, seed, `skipped`: as ImageFolder; the published models' are the centre, and half of the items
    mirrored (flip) for churches. A picture that is too small or broken is met when it is asked for, not at once: the
    headers of millions of pictures are not read beforehand.

    InputError: no such file, none of LSUN's, a truncated one, and without the package lmdb."""

    def __init__(
        self,
        root: str | Path,
        size: int = 256,
        crop: Crop = "center",
        flip: bool = False,
        strict: bool = False,
        seed: int = 0,
        count: int | None = None,
        cache: str | Path | None = None,
    ):
        super().__init__(size, crop, flip, strict, seed, count)
        self.root = Path(root)
        if not (self.root / FILE).is_file():
            hint = f"unzip it from {WHERE}{self.root.name.removesuffix('_lmdb')}_lmdb.zip"
            raise InputError(f"{root}: holds no {FILE}; {hint}")
        self.keys = self._listed(Path(cache) if cache else self.root.with_name(f"{self.root.name}.keys"))
        self.rows = range(len(self.keys))[:count]  # type: ignore[assignment]
        self.broken = torch.zeros(len(self.keys), dtype=torch.bool).share_memory_()

    def __repr__(self) -> str:
        return f"LSUN({str(self.root)!r}, {self.settings}, {len(self)} images)"

    @property
    def identity(self) -> str:
        """Changes when an item may: the keys, the size of the file, and the ends of some pictures."""
        digest = hashlib.sha256(self.keys.tobytes())
        for i in some_of(len(self.keys)):
            digest.update(ends(self.fetch(i, 0.0)[0]))
        return f"LSUN({self.settings}, {(self.root / FILE).stat().st_size}, keys={digest.hexdigest()})"

    def where(self, i: int) -> str:
        return f"{self.root}, picture {i}"

    def fetch(self, i: int, random: float) -> tuple[Source, dict[str, Any]]:
        lmdb = package(self.root)
        try:
            with opened(self.root).begin() as transaction:
                value = transaction.get(bytes(self.keys[i]))
        except lmdb.Error as error:
            raise InputError(f"{self.root / FILE}: cannot be read ({error}); fetch it again") from None
        if value is None:
            raise InputError(f"{self.where(i)}: its key is gone; the file has changed since the keys were listed")
        return io.BytesIO(value), {}

    def square(self, source: Source, place: float, mirror: float) -> torch.Tensor:
        found = header(source)
        if isinstance(found, Unreadable):
            raise found
        if min(found) < self.size:
            raise InputError(
                f"{self.root}: a picture of {found[0]} x {found[1]} pixels is smaller than size = {self.size}; "
                f"choose --data.size {min(found)} or less"
            )
        return super().square(source, place, mirror)

    def _listed(self, cache: Path) -> np.ndarray:
        """(n,) the keys, as bytes. From the cache, if it is of this file."""
        stat = (self.root / FILE).stat()
        mark = f"{stat.st_size} {stat.st_mtime_ns}"
        try:
            with np.load(cache, allow_pickle=False) as held:
                if str(held["mark"]) == mark:
                    return held["keys"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # none, or not ours: it is made anew
            pass
        keys = listed(self.root)
        if not len(keys):
            raise InputError(f"{self.root / FILE}: has no pictures")
        # in a folder that is only read they are listed again next time
        with contextlib.suppress(OSError, InputError), whole(cache) as temporary, open(temporary, "wb") as file:
            np.savez(file, mark=np.array(mark), keys=keys)
        return keys


def named(path: str | Path) -> bool:
    """Whether a path is called as LSUN's folders are and has no pictures: its file is meant, and may be missing."""
    root = Path(path)
    if not root.name.endswith("_lmdb"):
        return False
    return next(pictures_below(root), None) is None if root.is_dir() else not root.exists()


def package(root: Path) -> Any:
    try:
        import lmdb
    except ImportError:
        raise InputError(f"{root}: the package lmdb is needed; install it with: pip install ldm-lite[lsun]") from None
    return lmdb


OPEN: dict[Path, Any] = {}  # in this process: lmdb opens a file once in each


def closed() -> None:
    """Closes all files; they are opened again when they are asked for."""
    while OPEN:
        OPEN.popitem()[1].close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=closed)  # an open file may not cross a fork


def opened(root: Path) -> Any:
    """The file, read only. InputError when it is none, or only a part of one."""
    root = root.resolve()
    if root not in OPEN:
        lmdb = package(root)
        if not os.access(root / FILE, os.R_OK):
            raise InputError(f"{root / FILE}: may not be read; change its permissions")
        try:
            found = lmdb.open(str(root), readonly=True, lock=False, readahead=False, meminit=False)
        except lmdb.Error as error:
            raise InputError(f"{root / FILE}: truncated, or no lmdb ({error}); fetch it again") from None
        size, page = (root / FILE).stat().st_size, found.stat()["psize"]
        needed = (found.info()["last_pgno"] + 1) * page
        if needed > size:  # to read beyond its end would end the process
            found.close()
            raise InputError(f"{root / FILE}: truncated: {size} bytes of {needed}; fetch it again")
        OPEN[root] = found
    return OPEN[root]


CRASHES = [-getattr(signal, name) for name in ("SIGABRT", "SIGBUS", "SIGSEGV") if hasattr(signal, name)]
LIST = """
import sys, lmdb, numpy
root, target = sys.argv[1:]
with lmdb.open(root, readonly=True, lock=False, readahead=False).begin() as transaction:
    keys = numpy.array(list(transaction.cursor().iternext(keys=True, values=False)))
with open(target, "wb") as file:
    numpy.save(file, keys)
"""


def listed(root: Path) -> np.ndarray:
    """(n,) all keys, as bytes, in the file's order. InputError for a damaged file.

    Another process lists them: at a page without sense lmdb ends the one that it is in."""
    opened(root)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "keys.npy"
        line = [sys.executable, "-P", "-c", LIST, str(root), str(target)]
        done = subprocess.run(line, capture_output=True, text=True)
        said = (done.stderr.strip() or f"lmdb ended with {done.returncode}").splitlines()[-1]
        if done.returncode in CRASHES or said.startswith("lmdb."):
            raise InputError(f"{root / FILE}: damaged ({said.removeprefix('lmdb.')}); fetch it again")
        if done.returncode:  # no room for so many keys, in memory (-9) or on the disk
            raise InputError(f"{root / FILE}: its keys cannot be listed ({said})")
        return np.load(target, allow_pickle=False)
