"""What a folder says of its pictures: captions, boxes and maps, in the form that the package `datasets` reads.

metadata.jsonl has one line for each picture, of which file_name alone is needed:

    {"file_name": "a.jpg", "caption": "two dogs", "segmentation_file_name": "maps/a.png",
     "objects": {"bbox": [[x, y, width, height], …], "categories": ["dog", …]}}

Boxes are COCO's: pixels of the upright picture, from its upper left corner. A map is a picture as large as its own,
whose pixels are numbers of segments; segments.txt may name these, one a line. 255 is none of them, as in COCO-Stuff,
VOC and Cityscapes, unless there are so many. What is cut or mirrored is so everywhere: captions alone stay as they are,
so a folder whose captions say left and right is not for flip."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..condition import of_segments
from ..config import InputError

FILE, NAMES = "metadata.jsonl", "segments.txt"
CAPTIONS = ("caption", "captions", "text", "prompt")
SEEN = 0.25  # of a box has to lie in the part of the picture that is shown


@dataclass(frozen=True)
class Note:
    """One line: captions (any of which is right), boxes (K, 4) as x0 y0 x1 y1 in pixels, their kinds, a map."""

    captions: tuple[str, ...] | None
    boxes: Tensor | None
    kinds: tuple[str, ...]
    segmentation: Path | None


class Notes:
    """The notes of a folder by the path of the picture. box_names: the kinds, sorted; segment_names: of segments.txt.

    InputError, with the line, for what is no note, a picture or map that is not there, and boxes that cannot be."""

    def __init__(self, root: Path):
        self.path = root / FILE
        self.rows: dict[Path, Note] = {}
        for number, line in enumerate(self._text(self.path).splitlines(), 1):
            if line.strip():
                try:
                    picture, note = read(root, line)
                except InputError as error:
                    raise InputError(f"{self.path}, line {number}: {error}") from None
                if picture in self.rows:
                    raise InputError(f"{self.path}, line {number}: {picture.name} is named twice")
                self.rows[picture] = note
        if not self.rows:
            raise InputError(f"{self.path}: names no picture")
        kinds = {kind for note in self.rows.values() for kind in note.kinds}
        # numbers in the order of numbers
        self.box_names = tuple(sorted(kinds, key=lambda kind: (0, int(kind), "") if kind.isdigit() else (1, 0, kind)))
        names = root / NAMES
        self.segment_names = tuple(self._text(names).split("\n")[:-1]) if names.exists() else ()
        self.has = {
            "caption": any(note.captions is not None for note in self.rows.values()),
            "boxes": any(note.boxes is not None for note in self.rows.values()),
            "segmentation": any(note.segmentation is not None for note in self.rows.values()),
        }
        if self.has["segmentation"]:
            for picture, note in self.rows.items():
                if note.segmentation is None:
                    raise InputError(f"{self.path}: {picture.name} has no segmentation_file_name, others have")

    @property
    def maps(self) -> list[Path]:
        return [note.segmentation for note in self.rows.values() if note.segmentation is not None]

    @staticmethod
    def _text(path: Path) -> str:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{path}: is not UTF-8") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        return text if text.endswith("\n") else text + "\n"

    def about(self, picture: Path, random: float) -> dict[str, Any]:
        """What an item has besides its image and does not depend on how it is cut: a caption, random of several."""
        captions = self.rows[picture].captions or ("",)
        return {"caption": captions[int(random * len(captions))]} if self.has["caption"] else {}

    def cut(self, picture: Path, size: int, place: float, flip: bool) -> dict[str, Tensor]:
        """Boxes (K, 4) in [0, 1] of the square that is shown, their numbers (K,), and the map (size, size)."""
        note, found = self.rows[picture], {}
        if self.has["boxes"]:
            whole = upright_size(picture)
            boxes = torch.zeros(0, 4) if note.boxes is None else note.boxes
            boxes, shown = in_square(boxes, whole, place, flip)
            kinds = torch.tensor([self.box_names.index(kind) for kind in note.kinds], dtype=torch.long)
            found |= {"boxes": boxes[shown], "box_labels": kinds[shown]}
        if note.segmentation is not None:
            many = len(self.segment_names) or None
            found["segmentation"] = segments(note.segmentation, upright_size(picture), size, place, flip, many)
        return found


def read(root: Path, line: str) -> tuple[Path, Note]:
    """The picture of a line of metadata.jsonl, and its note."""
    try:
        row = json.loads(line)
    except ValueError:
        raise InputError("is not JSON") from None
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise InputError('has no "file_name"')
    picture = existing(root, row["file_name"])
    captions = next((row[key] for key in CAPTIONS if row.get(key)), None)
    if isinstance(captions, str):
        captions = [captions]
    if captions is not None and not (isinstance(captions, list) and all(isinstance(c, str) for c in captions)):
        raise InputError("caption: is neither text nor a list of texts")
    boxes, kinds = objects(row["objects"]) if row.get("objects") is not None else (None, ())
    named = row.get("segmentation_file_name")
    segmentation = None if named is None else existing(root, named)
    return picture, Note(None if captions is None else tuple(captions), boxes, kinds, segmentation)


def existing(root: Path, name: Any) -> Path:
    if not isinstance(name, str) or not (path := root / name).is_file():
        raise InputError(f"{name}: no such file below {root}")
    return path


def objects(row: Any) -> tuple[Tensor, tuple[str, ...]]:
    """Boxes (K, 4) as x0 y0 x1 y1 in pixels, and their kinds as words."""
    if not isinstance(row, dict) or "bbox" not in row or not {"categories", "category"} & row.keys():
        raise InputError('objects: has no "bbox" with "categories"')
    boxes, kinds = row["bbox"], row["categories" if "categories" in row else "category"]
    if not isinstance(boxes, list) or not isinstance(kinds, list) or len(boxes) != len(kinds):
        raise InputError("objects: bbox and categories are not two lists of one length")
    for i, box in enumerate(boxes):
        if not four(box) or box[2] <= 0 or box[3] <= 0:
            raise InputError(f"objects: box number {i + 1} is not x, y, width, height with sides above 0")
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return corners, tuple(map(str, kinds))


def four(box: Any) -> bool:
    """Whether it is a list of four numbers that a picture's could be: JSON has larger ones than there are floats."""
    return isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and abs(v) < 1e9 for v in box)


def in_square(boxes: Tensor, whole: tuple[int, int], place: float, flip: bool) -> tuple[Tensor, Tensor]:
    """Boxes (K, 4) in pixels of a picture -> in [0, 1] of its square at `place`, and (K,) which of them it shows."""
    width, height = whole
    side = min(whole)
    corner = torch.tensor([place * (width - side), place * (height - side)] * 2)
    inside = ((boxes - corner) / side).clamp(0, 1)
    area = (inside[:, 2:] - inside[:, :2]).prod(1) * side**2
    shown = area >= SEEN * (boxes[:, 2:] - boxes[:, :2]).prod(1)
    if flip:
        inside = torch.stack([1 - inside[:, 2], inside[:, 1], 1 - inside[:, 0], inside[:, 3]], 1)
    return inside, shown


def segments(
    path: Path, whole: tuple[int, int], size: int, place: float, flip: bool, many: int | None = None
) -> Tensor:
    """(size, size) the numbers of the segments in a picture's square, each pixel the nearest of the map. many: how many
    segments there are; InputError for another number anywhere in the map."""
    try:
        with Image.open(path) as opened:
            opened.load()
            picture = opened.copy()
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        raise InputError(f"{path}: cannot be read as a picture ({type(error).__name__})") from None
    if picture.mode not in ("L", "P", "I", "I;16", "1"):
        raise InputError(f"{path}: has colours ({picture.mode}); its pixels must be numbers of segments")
    if picture.size != whole:
        raise InputError(f"{path}: {picture.size} is of another size than its picture, {whole}")
    numbers = torch.from_numpy(np.array(picture).astype(np.int64))
    if many is not None and len(known := of_segments(numbers, many)) and (high := int(known.max())) >= many:
        raise InputError(f"{path}: {high} is no segment; {NAMES} has names for 0 to {many - 1}")
    side = min(whole)
    at = (torch.arange(size, dtype=torch.float64) + 0.5) * side / size
    x, y = ((at + place * (length - side)).long().clamp(max=length - 1) for length in whole)
    square = numbers[y][:, x]
    return square.flip(1) if flip else square


def upright_size(source: Path) -> tuple[int, int]:
    """Width and height of a picture, turned as its EXIF orientation says."""
    with Image.open(source) as image:
        size: Sequence[int] = image.size
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (size[1], size[0]) if turned else (size[0], size[1])
