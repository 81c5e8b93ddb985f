"""What stands beside the pictures of a folder: captions, boxes and maps are of what the item shows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_lite.conditioners import BoxesConfig, SemanticMapConfig, TextConfig, build
from ldm_lite.config import InputError
from ldm_lite.data import ImageFolder
from ldm_lite.presets import DataConfig, recipe
from ldm_lite.training import collated

WIDE, TALL, SIZE = 53, 37, 31
GREEN = (40, 200, 40)


def folder(root: Path, rows: list[dict], **more: str) -> Path:
    """Pictures a.png, b.png … with a green rectangle where the first box is, and maps that say 2 there, 1 elsewhere."""
    (root / "maps").mkdir(parents=True)
    for row in rows:
        pixels, numbers = np.full((TALL, WIDE, 3), 90, np.uint8), np.ones((TALL, WIDE), np.uint8)
        for x, y, w, h in row.get("objects", {}).get("bbox", [])[:1]:
            pixels[y : y + h, x : x + w], numbers[y : y + h, x : x + w] = GREEN, 2
        Image.fromarray(pixels).save(root / row["file_name"])
        Image.fromarray(numbers).save(root / "maps" / row["file_name"])
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    for name, text in more.items():
        (root / f"{name}.txt").write_text(text)
    return root


def one(**row) -> dict:
    return {"file_name": "a.png"} | row


def boxed(*box: int, kind: str = "dog") -> dict:
    return {"objects": {"bbox": [list(box)], "categories": [kind]}}


def green(image: torch.Tensor) -> torch.Tensor:
    return (image[1] > 0.2) & (image[0] < 0)


@pytest.mark.parametrize("crop, flip", [("center", False), ("random", False), ("random", True)])
def test_a_box_frames_what_it_framed_however_the_picture_is_cut_and_mirrored(tmp_path, crop, flip):
    data = ImageFolder(folder(tmp_path / "f", [one(**boxed(17, 5, 12, 19))]), size=SIZE, crop=crop, flip=flip)
    lefts = set()
    for epoch in range(12):
        item = data.draw(0, epoch)
        (x0, y0, x1, y1) = (item["boxes"][0] * SIZE).tolist()
        rows, columns = green(item["image"]).nonzero().unbind(1)
        assert abs(int(columns.min()) - x0) < 1.1 and abs(int(columns.max()) + 1 - x1) < 1.1, epoch
        assert abs(int(rows.min()) - y0) < 1.1 and abs(int(rows.max()) + 1 - y1) < 1.1, epoch
        lefts.add(round(x0))
    assert len(lefts) >= (4 if crop == "random" else 1), "the square was the same each time"


def test_the_map_is_of_the_same_pixels_as_the_image(tmp_path):
    row = one(segmentation_file_name="maps/a.png", **boxed(17, 5, 12, 19))
    data = ImageFolder(folder(tmp_path / "f", [row]), size=SIZE, crop="random", flip=True)
    for epoch in range(12):
        item = data.draw(0, epoch)
        assert item["segmentation"].shape == (SIZE, SIZE) and item["segmentation"].dtype == torch.int64
        edge = (SIZE * 4) / SIZE**2  # the resampled edge is of both
        assert ((item["segmentation"] == 2) != green(item["image"])).float().mean() < edge / 2, epoch


def test_a_tall_picture_is_cut_along_its_height(tmp_path):
    root = folder(tmp_path / "f", [one(**boxed(17, 5, 12, 19))])
    Image.open(root / "a.png").transpose(Image.Transpose.ROTATE_270).save(root / "a.png")  # (x, y) -> (TALL - y, x)
    (root / "metadata.jsonl").write_text(json.dumps(one(**boxed(TALL - 5 - 19, 17, 19, 12))))
    item = ImageFolder(root, size=SIZE)[0]
    rows, columns = green(item["image"]).nonzero().unbind(1)
    seen = torch.tensor([int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1])
    assert (item["boxes"][0] * SIZE - seen).abs().max() < 1.1


def test_a_box_of_which_little_is_shown_is_left_out_and_a_cut_one_ends_at_the_edge(tmp_path):
    objects = {"bbox": [[0, 3, 10, 8], [4, 3, 10, 8], [20, 3, 10, 8]], "categories": ["dog", "cat", "dog"]}
    data = ImageFolder(folder(tmp_path / "f", [one(objects=objects)]), size=TALL)  # the square begins at x = 8
    item = data[0]
    assert data.box_names == ("cat", "dog")
    assert item["box_labels"].tolist() == [0, 1]  # of the first only 2 of 10 columns are left
    expected = torch.tensor([[0, 3, 6, 11], [12, 3, 22, 11]]) / TALL
    torch.testing.assert_close(item["boxes"], expected)


def test_an_upright_picture_is_what_boxes_and_maps_mean(tmp_path):
    root = folder(tmp_path / "f", [one(segmentation_file_name="maps/a.png", **boxed(17, 5, 12, 19))])
    lying = Image.open(root / "a.png").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it
    lying.save(root / "a.png", exif=exif)
    item = ImageFolder(root, size=SIZE)[0]
    columns = green(item["image"]).nonzero()[:, 1]
    assert abs(int(columns.min()) - float(item["boxes"][0, 0]) * SIZE) < 1.1
    assert ((item["segmentation"] == 2) != green(item["image"])).float().mean() < 0.06


def test_of_several_captions_each_epoch_takes_one_and_takes_it_again(tmp_path):
    rows = [one(captions=["one", "two", "three"]), {"file_name": "b.png", "text": "só"}, {"file_name": "c.png"}]
    data = ImageFolder(folder(tmp_path / "f", rows), size=SIZE)
    drawn = [data.draw(0, epoch)["caption"] for epoch in range(30)]
    assert set(drawn) == {"one", "two", "three"}
    assert drawn == [data.draw(0, epoch)["caption"] for epoch in range(30)]
    assert data[1]["caption"] == "só" and data[2]["caption"] == ""


def test_pictures_are_those_that_the_file_names(tmp_path):
    root = folder(tmp_path / "f", [one(segmentation_file_name="maps/a.png"), {"file_name": "b.png"}][:1])
    Image.new("RGB", (WIDE, TALL)).save(root / "other.png")
    data = ImageFolder(root, size=SIZE)
    assert [path.name for path in data.files] == ["a.png"]
    assert data.label_names == ()  # a folder of maps is no class
    assert set(data[0]) == {"image", "segmentation"}


def test_kinds_that_are_numbers_come_in_their_order_and_segments_have_names(tmp_path):
    rows = [one(objects={"bbox": [[1, 2, 30, 20]] * 3, "category": [10, 9, 100]})]
    data = ImageFolder(folder(tmp_path / "f", rows, segments="void\nsky\ndog\n"), size=SIZE)
    assert data.box_names == ("9", "10", "100") and data[0]["box_labels"].tolist() == [1, 0, 2]
    assert data.segment_names == ("void", "sky", "dog")


def test_a_recipe_takes_names_and_items_from_the_folder(tmp_path):
    rows = [
        {
            "file_name": f"{k}.png",
            "caption": f"dog {k}",
            "segmentation_file_name": f"maps/{k}.png",
            **boxed(17, 5, 9, k),
        }
        for k in range(3, 8)
    ]
    root = folder(tmp_path / "f", rows, segments="void\nground\ndog\n")
    data = DataConfig(str(root), size=32)
    for condition in (BoxesConfig(width=32, heads=1), SemanticMapConfig(), TextConfig(width=32, heads=1)):
        asked = replace(recipe("scenes-map"), data=data, condition=condition)
        images = asked.images()
        named = asked.named(images)
        told = build(named.told(named._blank_stage()))
        out = told(collated([images[k] for k in range(3)]))
        assert (out.concat is None) == (condition.__class__ is not SemanticMapConfig)
        if isinstance(condition, BoxesConfig):
            assert named.condition.names == ("dog",) and out.context.shape[0] == 3
        if isinstance(condition, SemanticMapConfig):
            assert named.condition.names == ("void", "ground", "dog") and out.concat.shape[2:] == (8, 8)


@pytest.mark.parametrize(
    "what, asked", [("caption", TextConfig()), ("boxes", BoxesConfig()), ("segmentation", SemanticMapConfig())]
)
def test_a_folder_without_what_a_model_is_told_says_so(tmp_path, what, asked):
    root = folder(tmp_path / "f", [{"file_name": f"{k}.png"} for k in range(3)])
    with pytest.raises(InputError, match=f"{what}: .* has none"):
        replace(recipe("scenes-map"), data=DataConfig(str(root), size=32), condition=asked).images()


def test_the_identity_changes_with_the_notes_and_with_a_map(tmp_path):
    root = folder(tmp_path / "f", [one(segmentation_file_name="maps/a.png", caption="a dog")])
    before = ImageFolder(root, size=SIZE).identity
    assert ImageFolder(root, size=SIZE).identity == before
    Image.new("L", (WIDE, TALL), 7).save(root / "maps" / "a.png", compress_level=0)
    mapped = ImageFolder(root, size=SIZE).identity
    (root / "metadata.jsonl").write_text(json.dumps(one(segmentation_file_name="maps/a.png", caption="a cat here")))
    assert len({before, mapped, ImageFolder(root, size=SIZE).identity}) == 3


@pytest.mark.parametrize(
    "line, says",
    [
        ("{", "line 1: is not JSON"),
        ('{"caption": "dog"}', 'line 1: has no "file_name"'),
        ('{"file_name": "none.png"}', "none.png: no such file"),
        ('{"file_name": "a.png", "caption": 3}', "caption: is neither text"),
        ('{"file_name": "a.png", "objects": {"bbox": [[0, 0, 5, 5]]}}', 'no "bbox" with "categories"'),
        ('{"file_name": "a.png", "objects": {"bbox": [[0, 0, 5, 5]], "categories": []}}', "two lists of one length"),
        ('{"file_name": "a.png", "objects": {"bbox": [[9, 9, 5, 0]], "categories": [1]}}', "box number 1 is not"),
        ('{"file_name": "a.png", "objects": {"bbox": [[9, 9, 5]], "categories": [1]}}', "box number 1 is not"),
        ('{"file_name": "a.png", "objects": {"bbox": [[9, 9, 5, true]], "categories": [1]}}', "box number 1 is not"),
        ('{"file_name": "a.png", "objects": {"bbox": [[9, 9, 5, NaN]], "categories": [1]}}', "box number 1 is not"),
        (
            f'{{"file_name": "a.png", "objects": {{"bbox": [[9, 9, 5, {10**400}]], "categories": [1]}}}}',
            "box number 1 is not",
        ),
        ('{"file_name": "a.png", "segmentation_file_name": "maps/x.png"}', "maps/x.png: no such file"),
        ('{"file_name": "a.png"}\n{"file_name": "a.png"}', "line 2: a.png is named twice"),
        ("\n", "names no picture"),
        ('{"file_name": "a.png", "caption": "\udcff"}', "is not UTF-8"),
    ],
)
def test_bad_notes_are_told_by_file_and_line(tmp_path, line, says):
    root = folder(tmp_path / "f", [one()])
    (root / "metadata.jsonl").write_bytes(line.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as error:
        ImageFolder(root, size=SIZE)
    assert says in str(error.value) and "metadata.jsonl" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "picture, says", [("RGB", "has colours"), ("small", "another size"), ("text", "cannot be read")]
)
def test_a_map_that_is_none_is_named(tmp_path, picture, says):
    root = folder(tmp_path / "f", [one(segmentation_file_name="maps/a.png")])
    if picture == "text":
        (root / "maps" / "a.png").write_text("no picture")
    else:
        Image.new("RGB" if picture == "RGB" else "L", (WIDE - (picture == "small"), TALL)).save(root / "maps" / "a.png")
    with pytest.raises(InputError, match=says) as error:
        ImageFolder(root, size=SIZE)[0]
    assert "maps/a.png" in str(error.value)


def test_a_number_without_a_name_is_told_with_its_map_when_that_is_read(tmp_path):
    root = folder(tmp_path / "f", [one(segmentation_file_name="maps/a.png")], segments="void\nground\n")
    assert ImageFolder(root, size=SIZE)[0]["segmentation"].unique().tolist() == [1]
    numbers = np.ones((TALL, WIDE), np.uint8)
    numbers[0, 0] = 2  # outside the square that is shown
    Image.fromarray(numbers).save(root / "maps" / "a.png")
    with pytest.raises(InputError, match=r"maps.a\.png: 2 is no segment; segments\.txt has names for 0 to 1$"):
        ImageFolder(root, size=SIZE)[0]


def test_every_picture_has_a_map_or_none_has(tmp_path):
    root = folder(tmp_path / "f", [one(segmentation_file_name="maps/a.png"), {"file_name": "b.png"}])
    with pytest.raises(InputError, match=r"b.png has no segmentation_file_name"):
        ImageFolder(root, size=SIZE)
