"""COCO's annotations as the notes of a folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lite import cli
from ldm_lite.conditioners import SemanticMap, SemanticMapConfig
from ldm_lite.config import InputError
from ldm_lite.data import ImageFolder, coco

PICTURES = [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}, {"id": 11, "file_name": "elsewhere.jpg"}]
KINDS = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
BOXES = [
    {"image_id": 7, "category_id": 18, "bbox": [0, 5, 10, 15]},
    {"image_id": 11, "category_id": 18, "bbox": [0, 0, 5, 5]},
    {"image_id": 7, "category_id": 3, "bbox": [20, 20, 8.5, 4], "iscrowd": 0},
    {"image_id": 7, "category_id": 3, "bbox": [0, 0, 30, 40], "iscrowd": 1},
    {"image_id": 7, "category_id": 3, "bbox": [3, 3, 0, 4]},
]
CAPTIONS = [{"image_id": 9, "caption": " A car\nat night. "}, {"image_id": 9, "caption": "Nachts, ein Auto – kühl"}]


def published(folder, pictures=("a.jpg", "b.jpg"), **changed):
    """A folder of pictures of 30 x 40, and COCO's two files beside it."""
    (folder / "train").mkdir(parents=True)
    for i, name in enumerate(pictures):
        Image.new("RGB", (30, 40), (40 * i, 90, 20)).save(folder / "train" / name)
    instances = {"info": {}, "images": PICTURES, "annotations": BOXES, "categories": KINDS} | changed
    (folder / "instances.json").write_text(json.dumps(instances), "utf-8")
    captions = {"images": PICTURES, "annotations": CAPTIONS}
    (folder / "captions.json").write_text(json.dumps(captions), "utf-8")
    return folder / "train"


def test_a_folder_with_cocos_annotations_has_their_boxes_and_captions(tmp_path, capsys):
    root = published(tmp_path)
    files = [str(tmp_path / name) for name in ("instances.json", "captions.json")]
    assert cli.main(["notes", str(root), *files]) == 0
    assert "2 pictures, 2 captions, 2 boxes" in capsys.readouterr().out
    data = ImageFolder(root, size=30)
    first, second = data[0], data[1]
    assert data.box_names == ("car", "dog")
    assert first["box_labels"].tolist() == [1, 0]
    expected = torch.tensor([[0, 0, 10, 15], [20, 15, 28.5, 19]]) / 30  # the square begins 5 pixels below the top
    torch.testing.assert_close(first["boxes"], expected)
    assert first["caption"] == ""
    assert second["boxes"].shape == (0, 4)
    assert second["caption"] in ("A car at night.", "Nachts, ein Auto – kühl")


def test_captions_alone_make_no_boxes(tmp_path):
    root = published(tmp_path)
    assert coco.note(root, [tmp_path / "captions.json"]) == {"pictures": 2, "captions": 2, "boxes": 0}
    assert "boxes" not in ImageFolder(root, size=30)[0]


def test_pixel_maps_are_named_by_the_categories_and_255_is_none(tmp_path, capsys):
    root = published(tmp_path)
    (tmp_path / "maps").mkdir()
    for i, name in enumerate(("a.png", "b.png")):
        numbers = np.full((40, 30), 2 + 15 * i, np.uint8)
        numbers[:7] = 255
        Image.fromarray(numbers).save(tmp_path / "maps" / name)
    line = ["notes", str(root), str(tmp_path / "instances.json"), "--maps", str(tmp_path / "maps")]
    assert cli.main(line) == 0
    data = ImageFolder(root, size=30)
    assert len(data.segment_names) == 18 and data.segment_names[2] == "car" and data.segment_names[17] == "dog"
    found = data[1]["segmentation"]
    assert (found[:2] == 255).all() and (found[2:] == 17).all()  # the square begins 5 pixels below the top
    told = SemanticMap(SemanticMapConfig(data.segment_names, f=2))
    telling = told({"segmentation": found[None]}).concat
    assert not telling[:, :, 0].any() and telling[:, :, 1:].any()
    (root / "metadata.jsonl").unlink()
    assert cli.main(line) == 2
    assert "segments.txt: is there already" in capsys.readouterr().err


def test_a_picture_without_its_map_is_named(tmp_path):
    root = published(tmp_path)
    (tmp_path / "maps").mkdir()
    with pytest.raises(InputError, match=r"a\.png: no such file, and a\.jpg needs its map"):
        coco.note(root, [tmp_path / "instances.json"], tmp_path / "maps")
    assert sorted(path.name for path in root.iterdir()) == ["a.jpg", "b.jpg"]


def test_notes_that_are_there_are_left_as_they_are(tmp_path, capsys):
    root = published(tmp_path)
    (root / "metadata.jsonl").write_text("mine")
    assert cli.main(["notes", str(root), str(tmp_path / "captions.json")]) == 2
    assert capsys.readouterr().err.endswith("metadata.jsonl: is there already; move it away first\n")
    assert (root / "metadata.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"annotations": [{"image_id": 7, "category_id": 4, "bbox": [0, 0, 5, 5]}]},
            "annotation 1 has no box of a cat",
        ),
        ({"annotations": [{"image_id": 7, "category_id": 3, "bbox": [0, 0, 5]}]}, "annotation 1 has no box of a cat"),
        ({"annotations": [{"image_id": 7, "category_id": [3], "bbox": [0, 0, 5, 5]}]}, "annotation 1 has no box of a"),
        ({"annotations": [{"image_id": 7, "category_id": 3, "bbox": "here"}]}, "annotation 1 has no box of a category"),
        ({"annotations": None}, "its annotations need image_id"),
        ({"annotations": [{"image_id": [7]}]}, "its annotations need image_id"),
        ({"images": [{"id": 7}]}, "its images need id and file_name"),
        ({"images": [{"id": 7, "file_name": 3}]}, "its images need id and file_name"),
        ({"categories": [3]}, "its categories need id and name"),
        ({"images": [{"id": 7, "file_name": "c.jpg"}]}, "none of its 1 pictures is in "),
    ],
)
def test_a_file_that_does_not_fit_is_named_and_nothing_is_written(tmp_path, changed, says):
    root = published(tmp_path, **changed)
    with pytest.raises(InputError) as error:
        coco.note(root, [tmp_path / "instances.json"])
    assert says in str(error.value) and "instances.json: " in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in root.iterdir()) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(("text", "says"), [("{", "is not JSON"), ("[]", "is not a file of COCO's annotations")])
def test_what_is_no_file_of_annotations_is_told(tmp_path, text, says):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=says):
        coco.note(tmp_path, [tmp_path / "x.json"])


@pytest.mark.parametrize("arguments", [[], ["folder"], ["folder", "file.json", "--force"], ["folder", "none.json"]])
def test_the_command_needs_a_folder_and_files_that_are_there(arguments, capsys):
    assert cli.main(["notes", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
