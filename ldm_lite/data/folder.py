"""Pictures of any kind, from a folder or elsewhere: all become float32 (3, size, size) in [-1, 1] in one way.

Upright and RGB, the largest square (centred, or at random along the long side), then bicubic with antialiasing: the
same as resizing the short side and cropping, in one step, and what the original did for LSUN."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ..config import InputError, one_or_more
from .notes import FILE, Notes

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
KINDS = "JPEG, PNG, WebP"

# A dataset is known again by the sizes of all its pictures and by what some of them begin and end with, so that it
# costs little: of more than SAMPLED pictures, one that is changed and keeps its size may go unnoticed.
SAMPLED, END = 256, 4096

Source = str | Path | IO[bytes]  # a file with a picture in it
Size = tuple[int, int]  # width, height
Crop = Literal["center", "random"]
Array = np.ndarray


class Unreadable(Exception):
    """A picture that cannot be decoded; str() says why."""

    def __init__(self, error: Exception):
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        super().__init__("not a picture" if "cannot identify image file" in text else text)


# One picture ----------------------------------------------------------------------------------------------------------


def header(source: Source) -> Size | Unreadable:
    """The width and height of a picture, from its first bytes."""
    try:
        with Image.open(source) as image:
            return image.size
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        return Unreadable(error)


def decoded(source: Source, size: int) -> Image.Image:
    """The picture, upright and RGB. A JPEG may come smaller, its short side still at least 3 size.

    Unreadable when the file is broken, InputError when the system does not give it."""
    try:
        with Image.open(source) as image:
            small = image.draft(None, (3 * size, 3 * size))  # a large JPEG decodes faster at 1/2, 1/4 or 1/8
            image.load()
            if small:  # its last row and column may stand for fewer pixels than the others: small[1] is where they end
                image = image.resize(image.size, Image.Resampling.BICUBIC, box=small[1])
            return rgb(upright(image))
    except OSError as error:
        if error.errno is not None:  # no fault of the picture, so another one must not silently take its place
            raise InputError(f"{error.filename or source}: cannot be read ({error.strerror})") from None
        raise Unreadable(error) from None
    except Exception as error:
        raise Unreadable(error) from None


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data tells nothing, and the pixels are whole
        return image


def rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB from grey, palette, CMYK or 16 bits; what is transparent becomes white."""
    if image.mode.startswith("I"):  # convert() clips 16 bits at 255
        grey = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def pixels(image: Image.Image, size: int, place: float = 0.5, flip: bool = False) -> Tensor:
    """RGB -> float32 (3, size, size) in [-1, 1]. place in [0, 1): where along the long side the square is cut."""
    width, height = image.size
    side = min(width, height)
    x, y = place * (width - side), place * (height - side)
    if place == 0.5:  # in the middle, as LSUN was published to be cut: by whole pixels, rounded down
        x, y = int(x), int(y)
    elif side == size:  # nothing to resample, so whole pixels
        x, y = round(x), round(y)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 127.5 - 1


def some_of(n: int) -> list[int]:
    """Up to SAMPLED of n places, evenly spread, the first and the last among them."""
    return sorted({round(k * (n - 1) / (SAMPLED - 1)) for k in range(SAMPLED)}) if n else []


def ends(file: IO[bytes]) -> bytes:
    """The first and the last bytes of a file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    first = file.read(END)
    file.seek(max(END, size - END))
    return first + file.read()


# Many pictures --------------------------------------------------------------------------------------------------------


class Pictures(Dataset):
    """Pictures that are decoded when they are asked for. ImageFolder and HubImages fill two holes: `where`, the name of
    picture i in messages, and `fetch`, its source and what else its item has (random in [0, 1) chooses, where there is
    a choice).

    An item depends on (seed, epoch, row) alone. A picture that turns out broken is left out: the next readable row
    takes its place, a warning says so the first time, and `skipped` lists each such picture that was met, here or by
    the workers of a DataLoader. strict: InputError instead."""

    label_names: tuple[str, ...] = ()
    mirrored: bool | None = None  # all items or none, in place of half of them by chance

    def __init__(self, size: int, crop: Crop, flip: bool, strict: bool, seed: int, count: int | None):
        one_or_more(size=size, count=count)
        if crop not in ("center", "random"):
            raise InputError(f"crop: {crop!r} is not one of 'center', 'random'")
        self.size, self.crop, self.flip = size, crop, flip
        self.strict, self.seed, self.count = strict, seed, count
        self.rows: list[int] = []  # those with a readable header
        # which pictures are broken: a tensor that all workers share once rows are known; of a stream, their names
        self.broken: Tensor | dict[Any, bool] = {}

    def where(self, i: Any) -> str:
        raise NotImplementedError

    def fetch(self, i: int, random: float) -> tuple[Source, dict[str, Any]]:
        raise NotImplementedError

    def accept(self, headers: Iterable[Size | Unreadable], source: str) -> None:
        """Keeps the rows with readable headers. InputError when one is too small, none is left, or strict."""
        small: list[tuple[int, Size]] = []
        broken: list[tuple[int, Unreadable]] = []
        for i, found in enumerate(headers):
            if isinstance(found, Unreadable):
                broken.append((i, found))
                continue
            self.rows.append(i)
            if min(found) < self.size:
                small.append((i, found))
        if small:
            raise self.too_small(*small[0], min(min(found) for _, found in small), len(small))
        if broken and not self.rows:
            raise InputError(
                f"{source}: none of {len(broken)} images is readable ({self.where(broken[0][0])}: {broken[0][1]})"
            )
        n = len(broken) + len(self.rows)
        self.broken = torch.zeros(n, dtype=torch.bool).share_memory_()
        for i, why in broken:
            self.reject(i, why, f"{len(broken)} of {n} images")
        self.rows = self.rows[: self.count]

    def too_small(self, i: int | str, size: Size, smallest: int, n: int = 1) -> InputError:
        others = f", so are {n - 1} more" if n > 1 else ""
        return InputError(
            f"{self.where(i)}: {size[0]} x {size[1]} pixels is smaller than size = {self.size}{others}; "
            f"choose --data.size {smallest} or less, or remove {'them' if n > 1 else 'it'}"
        )

    def reject(self, i: int | str, why: Unreadable, of: str = "1 image") -> None:
        """Counts a broken picture, with a warning the first time. InputError when strict."""
        if self.strict:
            raise InputError(f"{self.where(i)}: cannot be decoded ({why}); remove it, or do without --data.strict")
        if not self.skipped:
            warnings.warn(f"{self.where(i)}: cannot be decoded ({why}); {of} skipped so far", stacklevel=4)
        self.broken[i] = True

    @property
    def skipped(self) -> list[str]:
        """The broken pictures met so far."""
        found = self.broken.nonzero().flatten().tolist() if isinstance(self.broken, Tensor) else self.broken
        return [self.where(i) for i in found]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.draw(row, 0)

    def draw(self, row: int, epoch: int) -> dict[str, Any]:
        """The item as epoch `epoch` sees it: {"image", and "label", "caption" where there are any}."""
        row = range(len(self))[row]  # IndexError beyond the end
        place, mirror, random = self.chances(row, epoch)
        for k in range(len(self)):
            i = self.rows[(row + k) % len(self)]
            if self.broken[i]:
                continue
            source, about = self.fetch(i, random)
            try:
                return {"image": self.square(source, place, mirror), **about, **self.beside(i, place, mirror)}
            except Unreadable as why:
                self.reject(i, why)
        raise InputError(f"{self.where(self.rows[row])}: cannot be decoded, nor can any other image")

    def chances(self, row: int, epoch: int) -> Array:
        """Three numbers in [0, 1) for the crop, the flip and `fetch`."""
        return np.random.default_rng((self.seed, epoch, row)).random(3)

    def square(self, source: Source, place: float, mirror: float) -> Tensor:
        """(3, size, size) in [-1, 1]."""
        return pixels(decoded(source, self.size), self.size, *self.frame(place, mirror))

    def frame(self, place: float, mirror: float) -> tuple[float, bool]:
        """Where along the long side the square is cut, and whether it is mirrored."""
        flip = self.flip and mirror < 0.5 if self.mirrored is None else self.mirrored
        return place if self.crop == "random" else 0.5, flip

    def beside(self, i: int, place: float, mirror: float) -> dict[str, Any]:
        """What else an item has that is cut and mirrored as its image is."""
        return {}

    @property
    def settings(self) -> str:
        """What changes the pixels besides the files."""
        drawn = f", seed={self.seed}" if self.flip or self.crop == "random" else ""
        return f"size={self.size}, crop={self.crop!r}, flip={self.flip}{drawn}, count={self.count}"


class ImageFolder(Pictures):
    """The pictures below `root`, however deep, in sorted order: {"image": (3, size, size) in [-1, 1], "label"}.

    With a metadata.jsonl in root, the pictures are those that it names, and items have what it says of them: "caption",
    "boxes" (K, 4) as x0 y0 x1 y1 in [0, 1], "box_labels" (K,), "segmentation" (size, size); see `data.notes`.
    label: where every picture lies in one of several folders directly below root, these are the classes, `label_names`
    their names; otherwise there is no label and label_names is empty. Hidden files and folders are passed over.
    crop, flip: a centred or a random square, half of the items mirrored; `draw(row, epoch)` takes both from (seed,
    epoch, row), and folder[row] is epoch 0. count: only the first so many. The header of every file is read at once
    (0.05 ms each, more from a slow disk), the pixels when they are asked for.

    InputError: no such folder, no pictures, a picture smaller than size, and with strict a broken one, which is
    otherwise skipped and counted (Pictures)."""

    def __init__(
        self,
        root: str | Path,
        size: int = 64,
        crop: Crop = "center",
        flip: bool = False,
        strict: bool = False,
        seed: int = 0,
        count: int | None = None,
    ):
        super().__init__(size, crop, flip, strict, seed, count)
        self.root = Path(root)
        if not self.root.is_dir():
            raise InputError(f"{root}: {'is a file, not a folder' if self.root.exists() else 'no such folder'}")
        self.notes = Notes(self.root) if (self.root / FILE).exists() else None
        below = self.notes.rows if self.notes else pictures_below(self.root)
        self.files = sorted(below, key=lambda path: path.relative_to(self.root).parts)
        if not self.files:
            raise InputError(f"no images below {root} ({KINDS})")
        self.label_names = self._classes()
        self.box_names = self.notes.box_names if self.notes else ()
        self.segment_names = self.notes.segment_names if self.notes else ()
        with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
            self.accept(_in_blocks(pool, header, self.files), str(root))

    def __repr__(self) -> str:
        return f"ImageFolder({str(self.root)!r}, {self.settings}, {len(self)} images)"

    @property
    def identity(self) -> str:
        """Changes when an item may: the files' names and sizes, the ends of some, and what is made of them.

        Times are left out: pictures that are unpacked again are the same."""
        digest = hashlib.sha256()
        files = self.files + (self.notes.maps if self.notes else [])
        for path in files:
            size = path.stat().st_size if path.exists() else 0  # a link may lead nowhere
            digest.update(os.fsencode(f"{path.relative_to(self.root).as_posix()} {size}\n"))
        for i in some_of(len(files)):
            with suppress(OSError), open(files[i], "rb") as file:  # one that cannot be read is skipped
                digest.update(ends(file))
        if self.notes:
            digest.update(self.notes.path.read_bytes())
        return f"ImageFolder({self.settings}, files={digest.hexdigest()})"

    def where(self, i: int) -> str:
        return str(self.files[i])

    def fetch(self, i: int, random: float) -> tuple[Source, dict[str, Any]]:
        path = self.files[i]
        about = self.notes.about(path, random) if self.notes else {}
        if self.label_names:
            about["label"] = self.label_names.index(path.relative_to(self.root).parts[0])
        return path, about

    def beside(self, i: int, place: float, mirror: float) -> dict[str, Any]:
        return self.notes.cut(self.files[i], self.size, *self.frame(place, mirror)) if self.notes else {}

    def _classes(self) -> tuple[str, ...]:
        parts = [path.relative_to(self.root).parts for path in self.files]
        names = sorted({p[0] for p in parts})
        return tuple(names) if len(names) > 1 and all(len(p) > 1 for p in parts) else ()


def pictures_below(root: Path) -> Iterator[Path]:
    """The image files below root; links are followed, each folder is entered once."""

    def refused(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})")

    entered = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=refused):
        real = os.path.realpath(folder)
        folders[:] = [] if real in entered else sorted(name for name in folders if not name.startswith("."))
        if real not in entered:
            entered.add(real)
            for name in names:
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    yield Path(folder, name)


def _in_blocks(
    pool: ThreadPoolExecutor, each: Callable[[Any], Any], values: list[Any], block: int = 256
) -> Iterator[Any]:
    """map(each, values) in threads, many values to a job."""
    blocks = [values[i : i + block] for i in range(0, len(values), block)]
    for results in pool.map(lambda some: [each(value) for value in some], blocks):
        yield from results
