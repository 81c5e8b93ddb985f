"""The annotations of COCO (Lin et al. 2014), and of what has its layout, as the notes of a folder.

Its files list images, annotations of these (a caption, or a box of a category) and categories. Boxes around crowds, and
ones without an area, are left out; a picture that a file knows and says nothing of has no boxes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import InputError, whole
from .notes import FILE, NAMES, four


def note(root: str | Path, files: Sequence[str | Path], maps: str | Path | None = None) -> dict[str, int]:
    """Writes root/metadata.jsonl from such files (instances_*.json, captions_*.json); returns how many of what it has.

    root: the folder of the pictures. Those that are not there are left out. maps: the folder of COCO-Stuff's pixel maps
    (stuffthingmaps), NAME.png for each picture, whose numbers are the categories' less 1; root/segments.txt names them.
    InputError for a file that is not COCO's, where none of its pictures is there or one has no map, and where there are
    notes already."""
    target = Path(root) / FILE
    for there in (target, Path(root) / NAMES) if maps else (target,):
        if there.exists():
            raise InputError(f"{there}: is there already; move it away first")
    rows: dict[str, dict[str, Any]] = {}
    segments: dict[int, str] = {}
    for path in map(Path, files):
        listed, images = read(path), {}
        for image in listed["images"]:
            if (target.parent / image["file_name"]).is_file():
                images[image["id"]] = rows.setdefault(image["file_name"], {"file_name": image["file_name"]})
        if not images:
            raise InputError(f"{path}: none of its {len(listed['images'])} pictures is in {root}")
        kinds = {category["id"]: category["name"] for category in listed["categories"]}
        segments |= {number - 1: name for number, name in kinds.items() if isinstance(number, int) and number > 0}
        for row in images.values() if kinds else ():
            row.setdefault("objects", {"bbox": [], "categories": []})
        for number, one in enumerate(listed["annotations"], 1):
            if (row := images.get(one["image_id"])) is None:
                continue
            if "caption" in one:
                row.setdefault("caption", []).append(" ".join(str(one["caption"]).split()))
            elif "bbox" in one and not one.get("iscrowd"):
                kind = kinds.get(one["category_id"]) if has(one, ["category_id"]) else None
                if kind is None or not four(one["bbox"]):
                    raise InputError(f"{path}: annotation {number} has no box of a category that is listed")
                if min(one["bbox"][2:]) > 0:
                    row["objects"]["bbox"].append(one["bbox"])
                    row["objects"]["categories"].append(kind)
    for name, row in rows.items() if maps else ():
        drawn = Path(maps or "") / Path(name).with_suffix(".png")
        if not drawn.is_file():
            raise InputError(f"{drawn}: no such file, and {name} needs its map")
        row["segmentation_file_name"] = os.path.relpath(drawn, root)
    if maps and segments:
        with whole(Path(root) / NAMES) as out:
            named = [segments.get(number, str(number)) for number in range(max(segments) + 1)]
            out.write_text("".join(f"{name}\n" for name in named), "utf-8")
    with whole(target) as out:
        out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()), "utf-8")
    captions = sum(len(row.get("caption", ())) for row in rows.values())
    boxes = sum(len(row.get("objects", {"bbox": ()})["bbox"]) for row in rows.values())
    return {"pictures": len(rows), "captions": captions, "boxes": boxes}


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """images, annotations and categories of a file, the last empty for captions."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise InputError(f"{path}: is not JSON") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: is not a file of COCO's annotations")
    keys = {"images": ("id", "file_name"), "annotations": ("image_id",), "categories": ("id", "name")}
    lists = {name: found.get(name, [] if name == "categories" else None) for name in keys}
    for name, rows in lists.items():
        if not isinstance(rows, list) or not all(isinstance(r, dict) and has(r, keys[name]) for r in rows):
            raise InputError(f"{path}: is not a file of COCO's annotations: its {name} need {' and '.join(keys[name])}")
    return lists


def has(row: dict[str, Any], keys: Sequence[str]) -> bool:
    """Whether it has all keys: numbers or texts as ids, and texts as names."""
    return all(isinstance(row.get(key), (int, str) if key.endswith("id") else str) for key in keys)
