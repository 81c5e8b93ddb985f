"""Files that say what a picture should show: layouts, maps of segments, pictures and masks.

Each is read whole and checked before a model does any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .conditioners import Boxes, SemanticMap
from .config import InputError, read, whole
from .data.folder import SUFFIXES, Unreadable, rgb, upright
from .data.notes import four
from .latent import near
from .training import save_picture

PICTURES = (*SUFFIXES, ".bmp")


def layout(conditioner: Boxes, path: Path | None) -> tuple[Tensor, Tensor]:
    """The kinds (K,) and boxes (K, 4) in a .json file."""
    example = '[{"kind": "house", "box": [0.1, 0.3, 0.4, 0.8]}, …]'
    if path is None:
        raise InputError(f"boxes: give a .json file with {example}")
    rows = read(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {"kind", "box"} <= row.keys() for row in rows):
        raise InputError(f"{path}: is not a list such as {example}")
    for i, row in enumerate(rows):
        if not four(row["box"]):
            raise InputError(f"{path}: box number {i + 1} is not four numbers, x0 y0 x1 y1, from 0 to 1")
    try:
        kinds = [conditioner.index(str(row["kind"])) for row in rows]
        boxes = torch.tensor([row["box"] for row in rows], dtype=torch.float32).reshape(-1, 4)
        conditioner.check(boxes, torch.tensor(kinds))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return torch.tensor(kinds, dtype=torch.long), boxes


def segment_map(conditioner: SemanticMap, path: Path | None) -> Tensor:
    """(H, W) the numbers of segments that the pixels of a picture are."""
    names = ", ".join(f"{i} {name}" for i, name in enumerate(conditioner.names))
    if path is None:
        raise InputError(f"map: give a picture whose pixels are numbers of segments: {names}")
    picture = opened(path)
    if picture.mode not in ("L", "P", "I", "I;16", "1"):
        raise InputError(f"{path}: has colours ({picture.mode}); its pixels must be numbers: {names}")
    f = conditioner.config.f
    if picture.width % f or picture.height % f:
        to = f"divisible by {f}; make it {near((picture.height, picture.width), f)}, without smoothing"
        raise InputError(f"{path}: {picture.height} x {picture.width} pixels are not {to}")
    segments = torch.from_numpy(np.array(picture).astype(np.int64))
    if (high := int(segments.max())) >= len(conditioner.names):  # 255, too: who asks has to say what is everywhere
        raise InputError(f"{path}: {high} is no segment; there are {names}")
    return segments


def opened(path: Path) -> Any:
    """A picture, decoded and upright. InputError when it is none."""
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        raise InputError(f"{path}: cannot be read as a picture ({Unreadable(error)})") from None
    return upright(picture)


def opaque(path: Path) -> Any:
    """A picture as `opened` has it. InputError for one with an alpha channel, whose colours are not certain."""
    picture = opened(path)
    if picture.has_transparency_data:
        raise InputError(f"{path}: has an alpha channel; save it without, on the background that it should have")
    return picture


def colours(path: Path) -> Tensor:
    """(1, 3, H, W) in [-1, 1] of a picture. InputError for one with an alpha channel."""
    pixels = np.array(rgb(opaque(path)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def pairs(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Which picture goes where: one to one, or the pictures in a folder to the same names in another, as .png."""
    if not source.is_dir():
        return [(source, target)]
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in PICTURES)
    if not files:
        raise InputError(f"{source}: holds no pictures ({', '.join(PICTURES)})")
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file, and {source} a folder; give a folder")
    found = [(path, target / f"{path.stem}.png") for path in files]
    names = [to for _, to in found]
    for path, to in found:
        if names.count(to) > 1:
            raise InputError(f"{path}: another picture there has this name too, and both would be {to}")
    return found


def ready(files: Sequence[tuple[Path, Path]], others: Sequence[Path] = (), lossless: bool = False) -> None:
    """InputError, before any work, for a picture that cannot be taken or decoded, and for a target that is read itself,
    as a picture or as one of the others, or that cannot be written."""
    apart([to for _, to in files], [*others, *(path for path, _ in files)])
    for path, _ in files:
        opaque(path)
    for _, to in files:
        writable(to, lossless)


def apart(targets: Sequence[Path], read: Sequence[Path]) -> None:
    """InputError for a target that is one of the files that are read."""
    known = {path.resolve() for path in read}
    for to in targets:
        if to.resolve() in known:
            raise InputError(f"{to}: is read, and would be overwritten; give another place")


def mask_of(path: Path, masks: Path) -> Path:
    """The file of a picture's mask: the one there is, or the one with its name in a folder. InputError without one."""
    if not masks.is_dir():
        return masks
    found = next((m for m in sorted(masks.iterdir()) if m.stem == path.stem and m.suffix.lower() in PICTURES), None)
    if found is None:
        raise InputError(f"{masks}: holds no mask for {path.name}; name it {path.stem}.png")
    return found


def black_or_white(mask: Path, path: Path) -> Tensor:
    """(1, 1, H, W) the mask of a picture, 1 where it is white. InputError for other values and another size."""
    given, picture = opaque(mask), opened(path)
    if given.size != picture.size:
        sizes = " and ".join(f"{w} x {h}" for w, h in (given.size, picture.size))
        raise InputError(f"{mask}: is of another size than its picture ({sizes})")
    values = np.array(given.convert("L"))
    if not np.isin(values, (0, 255)).all():
        raise InputError(f"{mask}: has greys; make it black (draw anew) and white (keep), such as a .png without blur")
    return torch.from_numpy(values == 255)[None, None].float()


def writable(path: Path, lossless: bool = False) -> None:
    """InputError, before any work, when a picture cannot be written there; lossless: exactly as it is."""
    if lossless and path.suffix.lower() != ".png":
        raise InputError(f"output: {path} is not a .png file; others change what is kept")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"output: {path} is not a .png, .jpg or .webp file")
    if path.is_dir():
        raise InputError(f"output: {path} is a folder")
    held = whole(path)
    held.__enter__().unlink()


def saved(image: Tensor, path: Path) -> None:
    """One image (1, 3, H, W) in [-1, 1] as a picture, each value the nearest of 256, whole or not at all."""
    pixels = ((image[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    save_picture(Image.fromarray(pixels.cpu().numpy()), path)
