"""ImageFolder, HubImages and cached latents. The built-in scenes have a file of their own."""

import errno
import io
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, Subset

from ldm_lite import runs
from ldm_lite.autoencoder import Autoencoder, AutoencoderConfig, Pixels
from ldm_lite.conditioners import Unconditional
from ldm_lite.config import InputError
from ldm_lite.data import HubImages, ImageFolder, Latents, Scenes, cache_latents, with_low_res
from ldm_lite.data import cache as data_cache
from ldm_lite.data.cache import Balanced, Shards, narrow
from ldm_lite.data.folder import decoded, ends, pixels, some_of
from ldm_lite.diffusion import Diffusion, VariancePreserving
from ldm_lite.latent import LatentDiffusion
from ldm_lite.presets import DataConfig, Part, dataset
from ldm_lite.training import Drawn, TrainConfig, batches, precision

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
WHITE, ORANGE = (255, 255, 255), (240, 130, 10)


def gradient(width: int, height: int, offset: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: red counts x, green counts y."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3 + offset, y * 5, np.full_like(x, 90)], -1).astype(np.uint8)


def levels(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 3) in [0, 255]."""
    return ((image.permute(1, 2, 0) + 1) * 127.5).numpy()


def saved(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def truncated(path: Path, width: int = 60, height: int = 50) -> Path:
    """A JPEG whose header is whole and whose pixels are not."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    saved(path, noise, quality=95)
    path.write_bytes(path.read_bytes()[:3000])
    return path


@pytest.fixture
def four(tmp_path):
    """Four gradients of 19 x 11, told apart by their red."""
    for i in range(4):
        saved(tmp_path / f"{i}.png", gradient(19, 11, offset=40 * i))
    return tmp_path


# Pixels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "x", "y"), [(11, 7, 2, 0), (7, 13, 0, 3), (7, 7, 0, 0)])
def test_a_picture_of_the_right_height_is_cut_in_the_middle_and_not_resampled(tmp_path, width, height, x, y):
    saved(tmp_path / "a.png", gradient(width, height))
    image = ImageFolder(tmp_path, size=7)[0]["image"]
    assert image.dtype == torch.float32 and image.shape == (3, 7, 7)
    np.testing.assert_allclose(levels(image), gradient(width, height)[y : y + 7, x : x + 7], atol=1e-4)


def test_resizing_is_that_of_the_short_side_followed_by_a_crop(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (42, 66, 3), np.uint8)
    saved(tmp_path / "a.png", noise)
    whole = np.asarray(Image.fromarray(noise).resize((22, 14), Image.Resampling.BICUBIC), np.float32)
    found = levels(ImageFolder(tmp_path, size=14)[0]["image"])
    np.testing.assert_allclose(found[:, 2:-2], whole[:, 6:-6], atol=1.01)  # at the cut, bicubic sees no further


def test_a_fine_checkerboard_becomes_grey_not_moire(tmp_path):
    board = np.indices((63, 63)).sum(0) % 2 * 255
    saved(tmp_path / "a.png", board.astype(np.uint8))
    found = levels(ImageFolder(tmp_path, size=9)[0]["image"])
    np.testing.assert_allclose(found[1:-1, 1:-1], 127.5, atol=3)


def test_a_large_jpeg_decoded_small_is_the_picture_decoded_whole(tmp_path):
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 13, 3), np.uint8))
    coarse.resize((1301, 903), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    small, whole = decoded(tmp_path / "a.jpg", 32), Image.open(tmp_path / "a.jpg").convert("RGB")
    assert small.size < whole.size and min(small.size) >= 3 * 32
    error = np.abs(levels(pixels(small, 32)) - levels(pixels(whole, 32)))
    assert error.mean() < 0.5 and error.max() < 3  # of 256 levels


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_every_exif_orientation_comes_out_upright(tmp_path, orientation, stored):
    upright, exif = Image.fromarray(gradient(13, 8)), Image.Exif()
    exif[0x0112] = orientation
    (upright if stored is None else upright.transpose(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(levels(ImageFolder(tmp_path, size=8)[0]["image"]), gradient(13, 8)[:, 2:10], atol=1e-4)


def test_a_large_jpeg_decoded_small_is_upright_too(tmp_path):
    exif, half = Image.Exif(), np.zeros((900, 1300, 3), np.uint8)
    exif[0x0112], half[:, 650:] = 6, 255  # stored on its side: left is up
    saved(tmp_path / "a.jpg", half, exif=exif)
    found = levels(ImageFolder(tmp_path, size=20)[0]["image"])
    np.testing.assert_allclose(found[:9], 0, atol=3)
    np.testing.assert_allclose(found[11:], 255, atol=3)


def with_mode(mode: str) -> Image.Image:
    """8 x 8: the left half a colour, the right half, where the mode knows transparency, see-through."""
    if mode == "I;16":
        return Image.fromarray(np.full((8, 8), 200 * 257, np.uint16))
    colour = Image.new("RGB", (8, 8), ORANGE)
    if mode in ("RGBA", "LA"):
        alpha = Image.fromarray(np.repeat(np.array([[255] * 4 + [0] * 4], np.uint8), 8, 0))
        colour = colour.convert(mode[:-1])
        colour.putalpha(alpha)
        return colour
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([*ORANGE, 0, 0, 0])
        image.paste(1, (4, 0, 8, 8))
        return image
    return colour.convert(mode)


GREY = (150,) * 3  # of ORANGE, by ITU-R 601-2


@pytest.mark.parametrize(
    ("mode", "options", "left", "right"),
    [
        ("RGB", {}, ORANGE, ORANGE),
        ("L", {}, GREY, GREY),
        ("I;16", {}, (200,) * 3, (200,) * 3),
        ("1", {}, None, None),
        ("P", {}, ORANGE, (0, 0, 0)),
        ("P", {"transparency": 1}, ORANGE, WHITE),
        ("P", {"transparency": b"\xff\x00"}, ORANGE, WHITE),
        ("RGB", {"transparency": ORANGE}, WHITE, WHITE),
        ("RGBA", {}, ORANGE, WHITE),
        ("LA", {}, GREY, WHITE),
    ],
)
def test_every_kind_of_png_becomes_rgb_on_white(tmp_path, mode, options, left, right):
    image = with_mode(mode)
    image.save(tmp_path / "a.png", **options)
    found = levels(ImageFolder(tmp_path, size=8)[0]["image"])
    if mode == "1":
        assert set(np.unique(found.round())) <= {0.0, 255.0} and (found == found[..., :1]).all()
        return
    np.testing.assert_allclose(found[:, :4], np.broadcast_to(left, (8, 4, 3)), atol=1)
    np.testing.assert_allclose(found[:, 4:], np.broadcast_to(right, (8, 4, 3)), atol=1)


def test_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (5, 5), (0, 100, 200, 51)).save(tmp_path / "a.png")
    np.testing.assert_allclose(levels(ImageFolder(tmp_path, size=5)[0]["image"])[2, 2], (204, 224, 244), atol=1)


def test_a_cmyk_jpeg_has_the_colours_of_its_rgb(tmp_path):
    Image.new("RGB", (16, 16), ORANGE).convert("CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    np.testing.assert_allclose(levels(ImageFolder(tmp_path, size=16)[0]["image"])[8, 8], ORANGE, atol=3)


# Folders --------------------------------------------------------------------------------------------------------------


def test_suffixes_of_any_case_are_found_and_other_and_hidden_files_are_not(tmp_path):
    for i, name in enumerate(["a.JPG", "b.Jpeg", "c.PNG", "d.WebP", "e.jpg"]):
        saved(tmp_path / name, np.full((8, 8, 3), 50 * i, np.uint8))
    for name in [".hidden.png", "._a.jpg", ".cache/f.png", "g.gif", "deep/.trash/h.png"]:
        saved(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    folder = ImageFolder(tmp_path, size=8)
    assert [round(float(levels(item["image"]).mean())) for item in folder] == [0, 50, 100, 150, 200]


def test_nested_folders_with_names_in_any_script_are_read_in_sorted_order(tmp_path):
    names = ["Ägypten/日本/b.png", "Ägypten/a.png", "z/.../ö ü.png", "Zebra.png", "empty/"]
    for i, name in enumerate(names[:-1]):
        saved(tmp_path / name, np.full((8, 8, 3), 60 * i, np.uint8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    folder = ImageFolder(tmp_path, size=8)
    assert folder.files == sorted(folder.files, key=lambda path: path.parts)
    assert [round(float(levels(item["image"]).mean())) for item in folder] == [180, 60, 0]  # "..." is hidden


def test_a_link_that_leads_back_up_is_entered_once(tmp_path):
    saved(tmp_path / "photos" / "a.png", gradient(8, 8))
    try:
        (tmp_path / "photos" / "again").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets nobody make links")
    assert len(ImageFolder(tmp_path, size=8)) == 1


def test_folders_directly_below_root_are_classes(tmp_path):
    for i, name in enumerate(["dog/a.png", "cat/x/b.png", "Éléphant/c.png", "cat/a.png"]):
        saved(tmp_path / name, gradient(8, 8, offset=40 * i))
    folder = ImageFolder(tmp_path, size=8)
    assert folder.label_names == ("cat", "dog", "Éléphant")
    assert [item["label"] for item in folder] == [0, 0, 1, 2]
    batch = Drawn(folder).__getitems__([(3, 0), (0, 0), (2, 0)])
    assert batch["label"].tolist() == [2, 0, 1] and batch["image"].shape == (3, 3, 8, 8)


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["x/a.png", "y/b.png", "c.png"], ["x/p/a.png", "x/q/b.png"]])
def test_other_folders_have_no_labels(tmp_path, names):
    for name in names:
        saved(tmp_path / name, gradient(8, 8))
    folder = ImageFolder(tmp_path, size=8)
    assert folder.label_names == () and all(set(item) == {"image"} for item in folder)


def test_count_keeps_the_first(four):
    whole, some = ImageFolder(four, size=11), ImageFolder(four, size=11, count=3)
    assert len(some) == 3 and torch.equal(some[2]["image"], whole[2]["image"])


# What is drawn --------------------------------------------------------------------------------------------------------


def test_a_draw_is_a_function_of_seed_epoch_and_row_alone(four):
    settings = {"size": 11, "crop": "random", "flip": True}
    folder, again = ImageFolder(four, **settings, seed=3), ImageFolder(four, **settings, seed=3)
    pairs = [(row, epoch) for epoch in range(3) for row in range(4)]
    first = [folder.draw(*pair)["image"] for pair in pairs]
    torch.manual_seed(1)
    last = [again.draw(*pair)["image"] for pair in reversed(pairs)]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(last)))
    assert torch.equal(folder[2]["image"], folder.draw(2, 0)["image"])
    other = ImageFolder(four, **settings, seed=4)
    assert not all(torch.equal(image, other.draw(*pair)["image"]) for image, pair in zip(first, pairs))


def test_random_crops_reach_every_place_and_half_are_mirrored(four):
    folder = ImageFolder(four, size=11, crop="random", flip=True)
    corners = [levels(folder.draw(0, epoch)["image"])[0, [0, -1], 0] / 3 for epoch in range(400)]
    mirrored = np.array([left > right for left, right in corners])
    offsets = {round(float(min(pair))) for pair in corners}
    assert offsets == set(range(9))
    assert 0.4 < mirrored.mean() < 0.6


def test_without_random_crop_or_flip_epochs_are_alike(four):
    folder = ImageFolder(four, size=11)
    assert torch.equal(folder.draw(1, 0)["image"], folder.draw(1, 7)["image"])


def test_rows_end_where_the_folder_ends(four):
    folder = ImageFolder(four, size=11)
    assert torch.equal(folder[-1]["image"], folder[3]["image"])
    with pytest.raises(IndexError):
        folder[4]


def test_training_sees_each_row_as_its_epoch_draws_it(four):
    folder = ImageFolder(four, size=11, crop="random", flip=True)
    steps = list(batches(folder, 0, TrainConfig(steps=3, batch=4)))
    for epoch, batch in enumerate(steps):
        drawn = {folder.draw(row, epoch)["image"].numpy().tobytes() for row in range(4)}
        assert {image.numpy().tobytes() for image in batch["image"]} == drawn


# Bad input ------------------------------------------------------------------------------------------------------------


def test_a_truncated_picture_is_skipped_with_a_count_and_the_next_takes_its_place(four):
    bad, worse = truncated(four / "1.5.jpg"), truncated(four / "9.jpg")
    folder = ImageFolder(four, size=11)
    assert len(folder) == 6 and folder.skipped == []
    with pytest.warns(UserWarning, match=r"1\.5\.jpg: cannot be decoded \(image file is truncated.*1 image skipped"):
        image = folder[1]["image"]
    assert torch.equal(image, folder[2]["image"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(folder)
    assert folder.skipped == [str(bad), str(worse)]


def test_what_cannot_be_read_has_an_identity_too(four):
    (four / "5.png").symlink_to(four / "gone.png")
    name = os.fsdecode(b"caf\xe9.png")  # no UTF-8
    shutil.copy(four / "0.png", four / name)
    with pytest.warns(UserWarning, match=r"5\.png: cannot be decoded"):
        folder, other = (ImageFolder(four, size=size) for size in (11, 7))
    assert folder.identity != other.identity and len(list(folder)) == 5


@pytest.mark.parametrize("name", ["[br] ünï.parquet", "pq [1]"])
def test_brackets_in_a_name_are_no_pattern(tmp_path, name):
    path = tmp_path / name
    if not path.suffix:
        path.mkdir()
    table(path if path.suffix else path / "a.parquet", rows_of(2))
    assert len(HubImages(path, size=7)) == 2
    assert len(list(HubImages(path, size=7, streaming=True))) == 2


def test_after_the_last_picture_the_first_takes_its_place(four):
    truncated(four / "9.jpg")
    folder = ImageFolder(four, size=11)
    with pytest.warns(UserWarning):
        assert torch.equal(folder[4]["image"], folder[0]["image"])


def test_a_truncated_picture_stops_a_strict_folder(four):
    truncated(four / "9.jpg")
    folder = ImageFolder(four, size=11, strict=True)
    with pytest.raises(InputError, match=r"9\.jpg: cannot be decoded \(image file is truncated.*remove it"):
        folder[4]


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_file_that_is_no_picture_is_left_out_at_once(four, content):
    second = ImageFolder(four, size=11)[1]["image"]
    (four / "0.5.png").write_bytes(content)
    with pytest.warns(UserWarning, match=r"0\.5\.png: cannot be decoded.*; 1 of 5 images skipped"):
        folder = ImageFolder(four, size=11)
    assert len(folder) == 4 and folder.skipped == [str(four / "0.5.png")]
    assert torch.equal(folder[1]["image"], second)
    with pytest.raises(InputError, match=r"0\.5\.png: cannot be decoded"):
        ImageFolder(four, size=11, strict=True)


def test_a_broken_picture_does_not_renumber_the_classes(tmp_path):
    for name in ["a/1.png", "c/1.png"]:
        saved(tmp_path / name, gradient(8, 8))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.png").write_bytes(b"broken")
    with pytest.warns(UserWarning):
        folder = ImageFolder(tmp_path, size=8)
    assert folder.label_names == ("a", "b", "c") and [item["label"] for item in folder] == [0, 2]


def test_a_folder_of_nothing_but_broken_pictures_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"none of 1 images is readable .*a\.jpg: not a picture"):
        ImageFolder(tmp_path)
    (tmp_path / "a.jpg").unlink()
    truncated(tmp_path / "b.jpg"), truncated(tmp_path / "c.jpg")
    folder = ImageFolder(tmp_path, size=8)
    with pytest.warns(UserWarning), pytest.raises(InputError, match=r"b\.jpg: cannot be decoded, nor can any other"):
        folder[0]


def test_pictures_that_workers_skip_are_counted_here(four):
    bad = truncated(four / "9.jpg")
    folder = ImageFolder(four, size=11)
    list(batches(folder, 0, TrainConfig(steps=2, batch=5, workers=1)))
    assert folder.skipped == [str(bad)]


def test_a_worker_that_meets_a_broken_picture_says_so_in_one_line(four):
    truncated(four / "9.jpg")
    with pytest.raises(InputError) as error:
        cache_latents(Pixels(), ImageFolder(four, size=11, strict=True), workers=1, progress=False)
    assert str(error.value).startswith(str(four / "9.jpg: cannot be decoded")) and "\n" not in str(error.value)
    with pytest.raises(InputError) as other:
        list(batches(ImageFolder(four, size=11, strict=True), 0, TrainConfig(steps=2, batch=5, workers=1)))
    assert str(other.value) == str(error.value)


def test_a_picture_that_vanished_is_an_error_and_not_skipped(four):
    folder = ImageFolder(four, size=11)
    (four / "2.png").unlink()
    with pytest.raises(InputError, match=r"2\.png: cannot be read"):
        folder[2]


def test_pictures_smaller_than_the_crop_are_named_with_the_size_that_fits(tmp_path):
    saved(tmp_path / "a.png", gradient(60, 48))
    with pytest.raises(InputError) as error:
        ImageFolder(tmp_path, size=64)
    assert str(error.value) == (
        f"{tmp_path / 'a.png'}: 60 x 48 pixels is smaller than size = 64; choose --data.size 48 or less, or remove it"
    )
    saved(tmp_path / "b.png", gradient(40, 80))
    saved(tmp_path / "c.png", gradient(80, 80))
    with pytest.raises(InputError, match=r"a\.png: .* so are 1 more; choose --data\.size 40 or less, or remove them"):
        ImageFolder(tmp_path, size=64)
    assert len(ImageFolder(tmp_path, size=40)) == 3


def test_folders_that_are_missing_empty_or_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no images below .* \(JPEG, PNG, WebP\)"):
        ImageFolder(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match=r"a\.txt: is a file, not a folder"):
        ImageFolder(tmp_path / "a.txt")


@pytest.mark.parametrize("settings", [{"size": 0}, {"crop": "centre"}, {"count": 0}])
def test_settings_out_of_range_are_named(four, settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        ImageFolder(four, **{"size": 11} | settings)


# Hugging Face datasets ------------------------------------------------------------------------------------------------


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the package datasets comes with the extra [notebooks]")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return datasets


NAMES = ["cat", "dog", "eel"]


def rows_of(n: int, first: int = 0) -> dict[str, list]:
    return {
        "image": [{"bytes": encoded(gradient(19, 11, offset=20 * (first + i))), "path": None} for i in range(n)],
        "label": [(first + i) % 3 for i in range(n)],
        "text": [f"picture {first + i}" for i in range(n)],
    }


@pytest.fixture
def hub(datasets, tmp_path):
    """A folder in the layout of a repository on the hub: 5 rows to train, 2 to test."""
    kinds = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=NAMES),
            "text": datasets.Value("string"),
        }
    )
    for split, n, first in (("train", 5, 0), ("test", 2, 5)):
        path = tmp_path / "repository" / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows_of(n, first), features=kinds).to_parquet(str(path))
    return tmp_path / "repository"


def table(path: Path, columns: dict[str, list]) -> Path:
    """Parquet without the metadata of `datasets`, as other programs write it."""
    import pyarrow as pa
    import pyarrow.parquet

    pa.parquet.write_table(pa.table(columns), path)
    return path


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if k == "image" else a[k] == b[k] for k in a)


def test_hub_pictures_are_those_of_a_folder_with_the_same_files(hub, tmp_path):
    for i, cell in enumerate(rows_of(5)["image"]):
        (tmp_path / f"{i}.png").write_bytes(cell["bytes"])
    settings = {"size": 7, "crop": "random", "flip": True, "seed": 5}
    folder, images = ImageFolder(tmp_path, **settings), HubImages(hub, **settings)
    assert len(images) == 5
    for row, epoch in [(0, 0), (4, 0), (2, 1), (2, 2)]:
        assert torch.equal(images.draw(row, epoch)["image"], folder.draw(row, epoch)["image"])


def test_hub_labels_captions_and_splits_are_found_by_type_and_name(hub):
    train, test = HubImages(hub, size=11), HubImages(hub, "test", size=11)
    assert train.label_names == ("cat", "dog", "eel")
    assert [(item["label"], item["caption"]) for item in test] == [(2, "picture 5"), (0, "picture 6")]
    assert len(HubImages(hub, "train[1:4]", size=11)) == 3 and len(HubImages(hub, size=11, count=2)) == 2
    assert Drawn(train).__getitems__([(4, 0), (0, 0)])["label"].tolist() == [1, 0]


def test_a_single_parquet_file_is_whatever_split_is_asked_for(hub):
    file = hub / "data" / "test-00000-of-00001.parquet"
    assert [len(HubImages(file, split, size=11)) for split in ("train", "validation", "test[:1]")] == [2, 2, 1]


@pytest.mark.parametrize("stored", ["struct", "bytes"])
def test_parquet_without_a_class_label_has_no_label_unless_one_is_named(datasets, tmp_path, stored):
    columns = rows_of(3) | {"label": [7, 3, 7], "sort": ["warm", "cold", "cold"]}
    if stored == "bytes":
        columns["image"] = [cell["bytes"] for cell in columns["image"]]
    file = table(tmp_path / "a.parquet", columns)
    plain = HubImages(file, size=11)
    assert plain.label_names == () and "label" not in plain[0]
    numbers, words = HubImages(file, size=11, label_key="label"), HubImages(file, size=11, label_key="sort")
    assert numbers.label_names == ("3", "7") and [item["label"] for item in numbers] == [1, 0, 1]
    assert words.label_names == ("cold", "warm") and [item["label"] for item in words] == [1, 0, 0]
    assert torch.equal(words[1]["image"], plain[1]["image"])


def test_of_several_captions_each_epoch_draws_one(datasets, tmp_path):
    file = table(tmp_path / "a.parquet", {"image": rows_of(1)["image"], "captions": [["a", "b", "c"]]})
    images = HubImages(file, size=11)
    drawn = [images.draw(0, epoch)["caption"] for epoch in range(30)]
    assert set(drawn) == {"a", "b", "c"} and drawn == [images.draw(0, epoch)["caption"] for epoch in range(30)]


def test_pictures_stored_as_files_beside_the_table_are_opened(datasets, tmp_path):
    path = saved(tmp_path / "x.png", gradient(19, 11))
    file = table(tmp_path / "a.parquet", {"image": [{"bytes": None, "path": str(path)}]})
    np.testing.assert_allclose(levels(HubImages(file, size=11)[0]["image"]), gradient(19, 11)[:, 4:15], atol=1e-4)


def test_a_stream_gives_the_items_of_the_rows(hub):
    settings = {"size": 7, "crop": "random", "flip": True}
    rows, stream = HubImages(hub, **settings), HubImages(hub, **settings, streaming=True)
    assert stream.label_names == rows.label_names
    found = list(stream)
    assert len(found) == 5 and all(equal(a, b) for a, b in zip(found, rows))
    assert all(equal(item, rows.draw(row, 2)) for row, item in enumerate(stream.stream(epoch=2)))
    assert len(list(HubImages(hub, **settings, streaming=True, count=2))) == 2


def test_the_first_rows_of_a_stream_can_be_trained_on(hub):
    settings = {"size": 7, "crop": "random", "flip": True}
    rows, some = HubImages(hub, **settings), HubImages(hub, **settings, streaming=True).take(3)
    assert len(some) == 3 and all(equal(some.draw(row, 4), rows.draw(row, 4)) for row in range(3))
    assert next(batches(some, 0, TrainConfig(steps=1, batch=2)))["image"].shape == (2, 3, 7, 7)


def test_a_stream_cannot_be_cached_and_says_what_can(hub):
    stream = HubImages(hub, size=11, streaming=True)
    with pytest.raises(InputError, match=r"a stream has no length and no rows; use take\(count\), or streaming=False"):
        cache_latents(Pixels(), stream)


@pytest.fixture
def files(datasets, tmp_path):
    """A repository of three files with 3, 4 and 4 rows, whose captions tell them apart."""
    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    for k, (n, first) in enumerate(((3, 0), (4, 3), (4, 7))):
        path = tmp_path / "three" / "data" / f"train-0000{k}-of-00003.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = {k: v for k, v in rows_of(n, first).items() if k != "label"}
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(str(path))
    return tmp_path / "three"


def repository(folder: Path, **splits: int) -> Path:
    """In the hub's layout: so many rows of each split, two files a split, whose captions tell them apart."""
    import datasets

    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    (folder / "data").mkdir(parents=True)
    for split, n in splits.items():
        for k, some in enumerate((range(n // 3), range(n // 3, n))):
            pictures = [{"bytes": encoded(gradient(9, 8, offset=i)), "path": None} for i in some]
            rows = {"image": pictures, "text": [f"{split} {i}" for i in some]}
            part = datasets.Dataset.from_dict(rows, features=kinds)
            part.to_parquet(str(folder / "data" / f"{split}-0000{k}-of-00002.parquet"))
    return folder


def captions(data) -> list[str]:
    return [data[row]["caption"] for row in range(len(data))]


@pytest.mark.parametrize("prefix", ["hub:", ""])
def test_without_a_split_for_validation_every_twentieth_row_is_held_out(datasets, tmp_path, prefix):
    path = f"{prefix}{repository(tmp_path / 'mine', train=41, test=3)}"
    train, held_out, test = (captions(dataset(DataConfig(path, 8), split)) for split in ("train", "validation", "test"))
    assert held_out == ["train 19", "train 39"] and test == ["test 0", "test 1", "test 2"]
    assert train == [f"train {i}" for i in range(41) if i % 20 != 19]
    assert len(dataset(DataConfig(path, 8, count=7))) == 7


@pytest.mark.parametrize("prefix", ["hub:", ""])
def test_the_split_for_validation_is_taken_where_there_is_one(datasets, tmp_path, prefix):
    path = f"{prefix}{repository(tmp_path / 'mine', train=21, validation=4)}"
    assert captions(dataset(DataConfig(path, 8), "validation")) == [f"validation {i}" for i in range(4)]
    assert captions(dataset(DataConfig(path, 8))) == [f"train {i}" for i in range(21)]
    stream = dataset(DataConfig(path, 8, stream=True))
    assert len({item["caption"] for item in stream.flow(epochs=1)}) == 21
    assert len(dataset(DataConfig(path, 8, stream=True), "validation")) == 4


def test_of_a_stream_without_a_split_for_validation_some_rows_are_held_out_in_every_epoch(datasets, tmp_path):
    config = DataConfig(str(repository(tmp_path / "mine", train=120)), 8, stream=True)
    stream, held_out = dataset(config), captions(dataset(config, "validation"))
    assert 1 <= len(held_out) <= 15
    epochs = [item["caption"] for item in stream.flow(epochs=3, buffer=10)]
    learned = {f"train {i}" for i in range(120)} - set(held_out)
    assert set(epochs) == learned and len(epochs) == 3 * len(learned)
    few = DataConfig(str(repository(tmp_path / "few", train=3)), 8, stream=True)
    assert len(dataset(few, "validation")) == 3


def test_a_folder_in_the_layout_of_the_hub_is_parquet_unless_it_has_pictures(datasets, tmp_path):
    mine = repository(tmp_path / "mine", train=21)
    (mine / "README.md").write_text("words")
    assert len(dataset(DataConfig(str(mine), 8))) == 20
    (broken := mine / "data/train-00000-of-00002.parquet").write_bytes(broken.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"mine/data/train-00000-of-00002\.parquet: cannot be read as Parquet \("):
        dataset(DataConfig(str(mine), 8))
    saved(mine / "pictures" / "a.png", gradient(9, 8))
    assert len(dataset(DataConfig(str(mine), 8))) == 1


@pytest.mark.parametrize("name", ["test", "validation"])
def test_of_a_dataset_with_one_split_of_any_name_every_twentieth_row_is_held_out(datasets, tmp_path, name):
    path = str(repository(tmp_path / "mine", **{name: 41}))
    train, held_out = (captions(dataset(DataConfig(path, 8), split)) for split in ("train", "validation"))
    assert held_out == [f"{name} 19", f"{name} 39"] and train == [f"{name} {i}" for i in range(41) if i % 20 != 19]
    stream = DataConfig(path, 8, stream=True)
    learned = {item["caption"] for item in dataset(stream).flow(epochs=1)}
    assert 30 < len(learned) < 41 and not learned & set(captions(dataset(stream, "validation")))


def test_the_columns_of_a_recipes_data_can_be_named(datasets, tmp_path):
    cells = rows_of(3)["image"]
    two = str(
        table(tmp_path / "two.parquet", {"left": cells, "right": cells[::-1], "kind": [7, 5, 7], "said": ["a"] * 3})
    )
    columns = {"image_key": "right", "label_key": "kind", "caption_key": "said"}
    named, other = dataset(DataConfig(two, 11, **columns)), dataset(DataConfig(two, 11, image_key="left"))
    assert named.label_names == ("5", "7") and [named[i]["label"] for i in range(3)] == [1, 0, 1]
    assert named[0]["caption"] == "a" and not torch.equal(named[0]["image"], other[0]["image"])
    assert torch.equal(named[0]["image"], other[2]["image"])
    stream = next(iter(dataset(DataConfig(two, 11, stream=True, image_key="right", caption_key="said"))))
    assert stream["caption"] == "a" and set(stream) == {"image", "caption"}
    with pytest.raises(InputError, match=r"^image_key: scenes has no columns; leave it out$"):
        dataset(DataConfig("scenes", 16, image_key="left"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_label_beyond_the_classes_is_told(datasets, tmp_path, streaming):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "mine.parquet"
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["odd", "even"])})
    datasets.Dataset.from_dict({"image": rows_of(3)["image"], "label": [0, 1, None]}, features=kinds).to_parquet(
        str(path)
    )
    assert [item["label"] for item in HubImages(path, size=11, streaming=streaming).stream()] == [0, 1, -1]
    held = pq.read_table(path)
    held = held.set_column(1, held.schema.field("label"), pa.array([0, 2, None], pa.int64()))
    pq.write_table(held, path)
    with pytest.raises(InputError, match=r"mine\.parquet: label 2 is beyond its 2 classes$"):
        list(HubImages(path, size=11, streaming=streaming).stream())


def test_what_was_only_met_on_the_way_is_not_the_reason(files, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        try:
            raise PermissionError(errno.EACCES, "Permission denied", "/home/me/.netrc")
        except PermissionError:
            raise ConnectionError("no route")  # noqa: B904

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"^owner/name: cannot be loaded from the hub \(no route\)"):
        HubImages("owner/name", size=7)


def test_a_disk_that_is_full_is_not_taken_for_a_broken_file(files, monkeypatch):
    import datasets

    def full(*_, **__):
        raise ValueError("while preparing") from OSError(errno.ENOSPC, "No space left on device", "/cache/part.arrow")

    monkeypatch.setattr(datasets, "load_dataset", full)
    says = r"^/cache/part\.arrow: cannot be written \(No space left on device\); HF_HOME names another folder for it$"
    with pytest.raises(InputError, match=says):
        HubImages(files, size=7)


@pytest.mark.parametrize("name", ["", " ", "hub:"])
def test_a_dataset_without_a_name_is_told(name):
    with pytest.raises(InputError, match=r"^data: the name of a dataset is missing"):
        DataConfig(name, 8)


def flowing(files, n, first=0, rank=0, world=1):
    stream = HubImages(files, size=7, crop="random", streaming=True, seed=5)
    return list(itertools.islice(stream.flow(first, rank, world, buffer=4), n))


def test_a_stream_flows_without_an_end_each_row_once_an_epoch_in_other_orders(files):
    names = [item["caption"] for item in flowing(files, 33)]
    epochs = [names[:11], names[11:22], names[22:]]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 11 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])
    assert names == [item["caption"] for item in flowing(files, 33)]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_a_stream_without_overlap_or_loss(files, world):
    """Three files for two or four ranks are shared by rows, for three by files; none of them ends before another."""
    stream = HubImages(files, size=7, streaming=True, seed=5)
    shares = [[item["caption"] for item in stream.flow(0, rank, world, 4, epochs=1)] for rank in range(world)]
    assert sorted(name for share in shares for name in share) == sorted(f"picture {k}" for k in range(11))
    assert len(flowing(files, 24, 0, world - 1, world)) == 24


def test_a_stream_that_has_less_than_a_picture_for_each_process_says_so(files):
    with pytest.raises(InputError, match=r"three: the stream has no picture for each of 13 processes; start fewer$"):
        flowing(files, 1, 0, 12, 13)
    assert str(HubImages(files, size=7, streaming=True).too_few(1, 4)).endswith("4 workers: too few")


def test_a_stream_goes_on_where_it_was_stopped(files):
    whole = flowing(files, 30)
    for first in (1, 11, 17):
        rest = flowing(files, 30 - first, first)
        assert all(equal(a, b) for a, b in zip(rest, whole[first:], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_trained_on_in_batches_that_have_no_end(files, workers):
    stream = HubImages(files, size=7, streaming=True)
    config = TrainConfig(steps=4, batch=4, workers=workers)
    found = list(itertools.islice(batches(stream, 0, config), 8))
    assert all(batch["image"].shape == (4, 3, 7, 7) and len(batch["caption"]) == 4 for batch in found)
    seen = {name for batch in found for name in batch["caption"]}
    assert seen == {f"picture {k}" for k in range(11)}


def test_workers_without_a_file_of_a_stream_have_nothing_to_do(files):
    one = HubImages(files / "data" / "train-00001-of-00003.parquet", size=7, streaming=True)
    config = TrainConfig(steps=2, batch=4, workers=2)
    whole = list(itertools.islice(batches(one, 0, config), 4))
    for batch in whole:
        assert sorted(batch["caption"]) == [f"picture {k}" for k in range(3, 7)]
    assert next(batches(one, 3, config))["caption"] == whole[3]["caption"]


def test_a_worker_that_meets_a_rotten_stream_says_so_in_one_line(files):
    for path in files.rglob("*.parquet"):
        whole = path.read_bytes()
        path.write_bytes(whole[:100] + bytes(400) + whole[500:])
    with pytest.raises(InputError) as error:
        next(batches(HubImages(files, size=7, streaming=True), 0, TrainConfig(steps=2, batch=4, workers=2)))
    assert str(error.value).startswith(f"{files}: cannot be read as Parquet (") and "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_a_stream_goes_on_with_the_batches_that_it_would_have_had(files, workers):
    stream = HubImages(files, size=7, crop="random", flip=True, streaming=True)
    config = TrainConfig(steps=9, batch=2, workers=workers)
    whole = list(itertools.islice(batches(stream, 0, config), 7))
    for start in (1, 2, 3):
        rest = list(itertools.islice(batches(stream, start, config), 7 - start))
        for ours, theirs in zip(rest, whole[start:], strict=True):
            assert ours["caption"] == theirs["caption"] and torch.equal(ours["image"], theirs["image"])


def test_a_recipe_trains_on_a_stream(datasets, tmp_path, monkeypatch):
    from ldm_lite import cli

    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation"):
        rows = {"image": [{"bytes": encoded(gradient(19, 17)), "path": None}] * 9, "text": ["a picture"] * 9}
        kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        path = tmp_path / "mine" / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(str(path))
    small = ["--data", "mine", "--data.stream", "True", "--data.size", "16", "--train.workers", "0"]
    small += ["--train.batch", "4", "--model.width", "8", "--steps", "2"]
    assert cli.main(["train", "autoencoder", *small]) == 0
    assert cli.main(["train", "ldm-text", *small, "--model.head_channels", "8"]) == 0
    assert not (tmp_path / "runs/ldm-text/latents").exists()
    with pytest.raises(InputError, match="stream: yours is neither on the hub nor Parquet"):
        dataset(DataConfig("yours", stream=True))


@pytest.mark.parametrize("streaming", [False, True])
def test_broken_pictures_in_parquet_are_skipped_with_a_count_or_stop(datasets, tmp_path, streaming):
    cells = rows_of(4)["image"]
    cells[1] = {"bytes": truncated(tmp_path / "x.jpg").read_bytes(), "path": None}
    cells[3] = {"bytes": b"broken", "path": None}
    file = table(tmp_path / "a.parquet", {"image": [*cells, None]})
    with pytest.warns(UserWarning, match=r"a\.parquet, train, (row \d|picture [0-9a-f]{8}): cannot be decoded"):
        images = HubImages(file, size=11, streaming=streaming)
        items = list(images)
    assert len(items) == (2 if streaming else 3)  # a row that cannot be decoded is replaced, in a stream left out
    names = [f"row {i}" for i in (1, 3, 4)]
    if streaming:
        names = [f"picture {zlib.crc32(cells[i]['bytes']):08x}" for i in (1, 3)]
        names.append(f"picture {zlib.crc32(str({'image': None}).encode()):08x}")
    assert images.skipped == [f"{file}, train, {name}" for name in names]
    with pytest.raises(InputError, match=r"(row \d|picture [0-9a-f]{8}): cannot be decoded \(.*\); remove it"):
        list(HubImages(file, size=11, strict=True, streaming=streaming))


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_a_stream_in_which_nothing_decodes_ends_with_a_line(datasets, tmp_path):
    file = table(tmp_path / "a.parquet", {"image": [{"bytes": f"broken {i}".encode(), "path": None} for i in range(5)]})
    images = HubImages(file, size=11, streaming=True)
    for first in (0, 3):
        with pytest.raises(InputError, match=r"a\.parquet.*: none of 5 pictures can be decoded$"):
            next(images.flow(first))


@pytest.fixture
def spoiled(datasets, tmp_path) -> tuple[Path, list[str]]:
    """Two files of 5 rows, of which 2 and 1 are broken, and what these are called."""
    kinds = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    (folder := tmp_path / "spoiled/data").mkdir(parents=True)
    names = []
    for k, some in enumerate(((1, 4), (2,))):
        rows = {key: value for key, value in rows_of(5, 5 * k).items() if key != "label"}
        for i in some:
            path = f"{k}{i}.png" if k else None
            rows["image"][i] = {"bytes": f"broken {k}{i}".encode(), "path": path}
            named = f"picture {zlib.crc32(rows['image'][i]['bytes']):08x}" + (f" ({path})" if path else "")
            names.append(f"{folder.parent}, train, {named}")
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(str(folder / f"train-0000{k}-of-00002.parquet"))
    return folder.parent, names


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_a_broken_picture_of_a_stream_has_one_name_in_every_order(spoiled):
    for seed in (0, 1):
        stream = HubImages(spoiled[0], size=7, streaming=True, seed=seed)
        assert len(list(stream.flow(epochs=2, buffer=4))) == 14
        assert sorted(stream.skipped) == sorted(spoiled[1])
        assert len(list(stream)) == 7 and len(stream.skipped) == 3


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_stream_skips_in_training_is_listed_once_over_epochs_and_workers(spoiled, tmp_path, workers):
    for start in (0, 6):  # a run, and one that goes on with it
        stream = with_low_res(HubImages(spoiled[0], size=8, streaming=True), 4)
        with runs.skipping(stream, tmp_path):
            found = list(itertools.islice(batches(stream, start, TrainConfig(batch=3, workers=workers)), 6))
        assert len(found) == 6 and all(len(batch["image"]) == 3 for batch in found)
        assert sorted(stream.skipped) == sorted(spoiled[1])
        assert sorted((tmp_path / "skipped.txt").read_text().splitlines()) == sorted(spoiled[1])


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_in_parquet_smaller_than_the_crop_are_named(hub, streaming):
    with pytest.raises(InputError, match=r"train, \w+ \w+: 19 x 11 pixels is smaller than size = 12.*--data\.size 11"):
        list(HubImages(hub, size=12, streaming=streaming))


def test_columns_that_are_missing_or_ambiguous_are_named(hub, datasets, tmp_path):
    with pytest.raises(InputError, match=r"label_key: .* has no column 'sex', it has image, label, text"):
        HubImages(hub, size=11, label_key="sex")
    none = table(tmp_path / "none.parquet", {"x": [1]})
    with pytest.raises(InputError, match=r"none\.parquet: no column holds images; it has x"):
        HubImages(none, size=11)
    cells = rows_of(1)["image"]
    two = table(tmp_path / "two.parquet", {"left": cells, "right": cells})
    with pytest.raises(InputError, match=r"images are in left, right; choose one as image_key$"):
        HubImages(two, size=11)
    assert len(HubImages(two, size=11, image_key="right")) == 1
    mask = table(tmp_path / "mask.parquet", {"mask": rows_of(1, 3)["image"], "image": cells})
    assert HubImages(mask, size=11).image_key == "image"
    with pytest.raises(InputError, match=r"label_key: the classes of 'text' are not known before the stream"):
        HubImages(hub, size=11, label_key="text", streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_sources_that_cannot_be_read_are_named_with_the_reason(hub, tmp_path, streaming):
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and then nothing")
    (tmp_path / "nothing").mkdir()
    for source, split, reason in [
        (hub, "validation", r"split: .*repository: .*validation.*train"),
        (broken, "train", r"broken\.parquet: cannot be read as Parquet \(.*\)$"),
        (tmp_path / "absent.parquet", "train", r"absent\.parquet: no such file or folder"),
        (tmp_path / "nothing", "train", r"no Parquet files below .*nothing; a folder of pictures is for ImageFolder"),
        (Path(__file__), "train", r"test_data\.py: not a Parquet file"),
    ]:
        with pytest.raises(InputError, match=reason) as error:
            HubImages(source, split, size=11, streaming=streaming)
        assert "\n" not in str(error.value)


def test_without_a_network_one_line_names_the_id_and_what_to_do(datasets, monkeypatch):
    def unreachable(*args: object, **settings: object) -> None:
        raise ConnectionError("Couldn't reach 'somebody/faces' on the Hub (OfflineModeIsEnabled)\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError) as error:
        HubImages("somebody/faces")
    assert str(error.value) == (
        "somebody/faces: cannot be loaded from the hub (Couldn't reach 'somebody/faces' on the Hub "
        "(OfflineModeIsEnabled)); check the id and the network, or give a Parquet file"
    )


def test_a_network_lost_within_a_stream_is_one_line_too(hub, monkeypatch):
    stream = HubImages(hub, size=11, streaming=True)
    whole = stream.data

    def lost():
        yield next(iter(whole))
        raise ConnectionError("reset by peer")

    stream.data = lost()
    with pytest.raises(InputError, match=r"reset by peer"):
        list(stream)


def test_without_the_package_datasets_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"the package datasets is needed; install it with: pip install datasets"):
        HubImages("somebody/faces")


def test_a_package_datasets_that_cannot_be_imported_says_why(monkeypatch, tmp_path):
    (tmp_path / "datasets.py").write_text("raise ImportError('pyarrow requires NumPy 2.0 or newer')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    with pytest.raises(InputError, match=r"datasets cannot be imported \(pyarrow requires NumPy 2.0 or newer\)$"):
        HubImages("somebody/faces")


def test_importing_the_data_loads_nothing_heavy():
    code = "import torch, sys; before = set(sys.modules); import ldm_lite.data; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "ldm_lite" in loaded and not loaded & {"datasets", "pyarrow", "fsspec", "matplotlib", "torchvision"}


def test_real_photographs_in_the_layout_of_the_hub_are_read(datasets):
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"no photographs at {PHOTOGRAPHS}")
    images = HubImages(PHOTOGRAPHS, "test[:500]", size=32)
    assert len(images) == 500 and len(images.label_names) == 10 and images.skipped == []
    value = datasets.load_dataset(str(PHOTOGRAPHS), split="test[:500]")[77]
    np.testing.assert_allclose(levels(images[77]["image"]), np.asarray(value["image"].convert("RGB")), atol=1e-4)
    assert images[77]["label"] == value["label"]


# Cached latents -------------------------------------------------------------------------------------------------------


FILE = "00000.safetensors"  # the first of a cache, and in these tests mostly the only one


class Counted(Dataset):
    """What a dataset may be at its plainest; counts how often it is asked."""

    label_names = ("odd", "even")

    def __init__(self, n: int = 7, keys: tuple[str, ...] = ("label", "caption", "boxes")):
        self.n, self.keys, self.asked = n, keys, 0

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, row: int) -> dict:
        self.asked += 1
        generator = torch.Generator().manual_seed(row)
        item = {
            "image": torch.rand(3, 8, 12, generator=generator) * 2 - 1,
            "label": row % 2,
            "caption": f"picture {row} of a «scène»",
            "boxes": torch.rand(row % 3 + 1, 4, generator=generator),
        }
        return {key: item[key] for key in ("image", *self.keys)}


@pytest.fixture(scope="module")
def stage():
    torch.manual_seed(0)
    stage = Autoencoder(AutoencoderConfig(channels=3, width=8, mult=(1, 2, 2), blocks=1, mid_attention=False))
    stage.scale.fill_(1.7)
    return stage.eval()


def encode(stage, images: torch.Tensor) -> torch.Tensor:
    """In the precision that the cache is made in."""
    dtype = precision("auto", torch.device("cpu"))
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return stage.encode(images)


def test_cached_latents_are_the_encoded_items_with_everything_else_they_hold(stage):
    data = Counted()
    cache = cache_latents(stage, data, batch=3, progress=False)
    assert isinstance(cache, Latents) and len(cache) == 7 and cache.label_names == ("odd", "even")
    for row, item in enumerate(cache):
        assert item["z"].dtype == torch.float32 and item["z"].shape == (3, 2, 3)
        torch.testing.assert_close(item["z"], encode(stage, data[row]["image"][None])[0], atol=2e-2, rtol=2e-2)
        assert (item["label"], item["caption"]) == (data[row]["label"], data[row]["caption"])
        assert torch.equal(item["boxes"], data[row]["boxes"])
        assert set(item) == {"z", "label", "caption", "boxes"}
    together = encode(stage, torch.stack([data[row]["image"] for row in range(3)]))
    assert torch.equal(torch.stack([cache[row]["z"] for row in range(3)]), together.half().float())


def test_a_batch_is_the_items_side_by_side(stage):
    cache = cache_latents(stage, Counted(), progress=False)
    batch = cache.batch([5, 0, 5])
    assert torch.equal(batch["z"], torch.stack([cache[row]["z"] for row in (5, 0, 5)]))
    assert batch["label"].tolist() == [1, 0, 1] and batch["caption"][1] == cache[0]["caption"]
    assert [len(boxes) for boxes in batch["boxes"]] == [3, 1, 3]
    drawn = next(batches(cache, 0, TrainConfig(steps=1, batch=4)))
    assert drawn["z"].shape == (4, 3, 2, 3) and drawn["z"].dtype == torch.float32
    assert drawn["label"].dtype == torch.long and type(cache[1]["label"]) is int


def test_scenes_are_cached_by_their_fast_path(stage):
    scenes = Scenes("validation", size=16, count=5)
    cache = cache_latents(stage, scenes, batch=2, progress=False)
    pixels = cache_latents(Pixels(), scenes, progress=False)
    assert [item["label"] for item in cache] == [scenes[row]["label"] for row in range(5)]
    torch.testing.assert_close(pixels[3]["z"], scenes[3]["image"], atol=5e-4, rtol=0)


RARE = ["a cat"] * 9 + ["a dog"] * 4 + ["a cat and a dog"]


@pytest.mark.parametrize("key", ["caption", "label"])
@pytest.mark.parametrize("turns", [1, 2])
def test_balanced_latents_take_each_caption_as_often_as_the_others_and_all_items_of_each(key, turns):
    n = len(RARE)
    columns = {"z": torch.arange(turns * n).view(-1, 1, 1, 1).half(), "caption": RARE * turns}
    columns["label"] = torch.tensor([sorted(set(RARE)).index(caption) for caption in columns["caption"]])
    even = Balanced(Latents(columns, ("cat", "both", "dog"), turns), key)
    assert len(even) == n and even.label_names == ("cat", "both", "dog") and even[13]["caption"] in RARE
    seen = []
    for epoch in range(60):
        drawn = even.draws([(row, epoch) for row in range(n)])
        rows = drawn["z"].flatten().int() % n
        assert [RARE[row] for row in rows] == drawn["caption"]
        counts = [drawn["caption"].count(caption) for caption in set(RARE)]
        assert max(counts) - min(counts) <= 1 and sum(counts) == n
        seen += rows.tolist()
    assert set(seen) == set(range(n))
    assert max(seen.count(row) for row in range(9)) < 2 * min(seen.count(row) for row in range(9))
    assert max(map(seen.count, range(n))) == seen.count(13) == 60 * n // 3
    assert torch.equal(even.draws([(3, 5), (0, 6)])["z"], even.draws([(3, 5), (0, 6)])["z"])


def test_latents_without_captions_cannot_be_balanced_by_them(stage, tmp_path):
    for folder in (None, tmp_path):
        cache = cache_latents(stage, Counted(keys=("label",)), folder, progress=False)
        assert cache.column("label").tolist() == [0, 1, 0, 1, 0, 1, 0]
        with pytest.raises(InputError, match="balance: the images have no caption; they have label, z"):
            Balanced(cache, "caption")


def test_the_first_stage_is_left_as_it_was(stage):
    stage.train()
    before = torch.get_rng_state()
    cache_latents(stage, Counted(), sample=True, progress=False)
    assert stage.training and torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in stage.parameters())
    stage.eval()


def test_a_sample_is_drawn_from_the_posterior_and_is_the_same_each_time(stage):
    found = []
    for seed, sample in enumerate([False, True, True]):
        torch.manual_seed(seed)
        found.append(cache_latents(stage, Counted(), sample=sample, progress=False).columns["z"].float())
    mean, once, again = found
    assert torch.equal(once, again)
    with torch.no_grad():
        images = torch.stack([Counted()[row]["image"] for row in range(7)])
        logvar = stage.quant_conv(stage.encoder(images)).chunk(2, dim=1)[1]
    noise = (once - mean) / stage.scale / (logvar / 2).exp()
    torch.testing.assert_close(torch.stack([noise.mean(), noise.std()]), torch.tensor([0.0, 1.0]), atol=0.2, rtol=0)


def test_epochs_are_cached_as_the_dataset_draws_them(four):
    folder = ImageFolder(four, size=11, crop="random", flip=True)
    cache = cache_latents(Pixels(), folder, batch=3, epochs=3, progress=False)
    assert len(cache) == 12
    for k in range(12):
        torch.testing.assert_close(cache[k]["z"], folder.draw(k % 4, k // 4)["image"], atol=5e-4, rtol=0)


def test_a_stored_cache_is_read_back_unchanged_and_nothing_is_encoded_again(stage, tmp_path):
    made = cache_latents(stage, Counted(), tmp_path / "new" / "cache", progress=False)
    data = Counted()
    found = cache_latents(stage, data, tmp_path / "new" / "cache", progress=False)
    assert data.asked == 3  # the rows that tell datasets apart
    for a, b in zip(made, found, strict=True):
        assert a.keys() == b.keys() and (a["label"], a["caption"]) == (b["label"], b["caption"])
        assert torch.equal(a["z"], b["z"]) and torch.equal(a["boxes"], b["boxes"])
    assert found.label_names == ("odd", "even")
    assert [path.name for path in (tmp_path / "new" / "cache").iterdir()] == [FILE]


def other_weights(stage, data, settings):
    changed = Autoencoder(stage.config).eval()
    changed.load_state_dict(stage.state_dict())
    with torch.no_grad():
        changed.quant_conv.bias[0] += 1e-3
    return changed, data, settings


def other_scale(stage, data, settings):
    changed = Autoencoder(stage.config).eval()
    changed.load_state_dict(stage.state_dict())
    changed.scale.fill_(1.8)
    return changed, data, settings


def fewer_items(stage, data, settings):
    return stage, Counted(6), settings


def other_items(stage, data, settings):
    return stage, Subset(data, [0, 1, 2, 3, 5, 4, 6]), settings


def a_sample(stage, data, settings):
    return stage, data, settings | {"sample": True}


def more_epochs(stage, data, settings):
    return stage, data, settings | {"epochs": 2}


@pytest.mark.parametrize("change", [other_weights, other_scale, fewer_items, other_items, a_sample, more_epochs])
def test_a_cache_of_anything_else_is_made_again(stage, tmp_path, change):
    cache_latents(stage, Counted(), tmp_path, progress=False)
    stage, data, settings = change(stage, Counted(), {})
    found = cache_latents(stage, data, tmp_path, progress=False, **settings)
    fresh = cache_latents(stage, data, progress=False, **settings)
    assert torch.equal(found.columns["z"], fresh.columns["z"])
    assert torch.equal(
        cache_latents(stage, data, tmp_path, progress=False, **settings).columns["z"], fresh.columns["z"]
    )


class Every:
    """Rows of a dataset, with no more said about it."""

    def __init__(self, data, rows):
        self.data, self.rows = data, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.data[self.rows[row]]


@pytest.mark.parametrize(
    "around", [lambda data: data, lambda data: Every(data, range(9)), lambda data: Subset(data, range(9))]
)
def test_a_changed_picture_in_a_folder_makes_the_cache_again(tmp_path, around):
    for i in range(9):
        saved(tmp_path / "photos" / f"{i}.png", gradient(8, 8, offset=9 * i))
    cache_latents(Pixels(), around(ImageFolder(tmp_path / "photos", size=8)), tmp_path, progress=False)
    before = (tmp_path / FILE).stat().st_mtime_ns
    cache_latents(Pixels(), around(ImageFolder(tmp_path / "photos", size=8)), tmp_path, progress=False)
    assert (tmp_path / FILE).stat().st_mtime_ns == before
    saved(tmp_path / "photos" / "3.png", gradient(9, 9, offset=99))
    folder = around(ImageFolder(tmp_path / "photos", size=8))
    found = cache_latents(Pixels(), folder, tmp_path, progress=False)
    torch.testing.assert_close(found[3]["z"], folder[3]["image"], atol=5e-4, rtol=0)


def test_a_hub_dataset_and_a_folder_are_known_again(hub, four, tmp_path):
    for make in (lambda **s: HubImages(hub, size=7, **s), lambda **s: ImageFolder(four, size=7, **s)):
        assert make().identity == make().identity
        assert len({make(**s).identity for s in ({}, {"flip": True}, {"flip": True, "seed": 1}, {"count": 2})}) == 4
    assert HubImages(hub, size=7).identity != HubImages(hub, "test", size=7).identity
    before = HubImages(table(tmp_path / "a.parquet", rows_of(2)), size=7).identity
    assert before != HubImages(table(tmp_path / "a.parquet", rows_of(2, 3)), size=7).identity


def copied(folder: Path, to: Path) -> Path:
    """The same files at other times, as an archive that is unpacked again."""
    shutil.copytree(folder, to, copy_function=shutil.copyfile)
    for path in to.rglob("*"):
        os.utime(path, (1, 1))
    return to


def test_the_same_files_elsewhere_and_at_other_times_are_the_same_dataset(hub, tmp_path):
    photos = saved(tmp_path / "photos" / "a.png", gradient(19, 11)).parent
    for make, folder in ((HubImages, hub), (ImageFolder, photos)):
        assert make(copied(folder, tmp_path / make.__name__), size=7).identity == make(folder, size=7).identity
    some = lambda root: HubImages(root, size=7, streaming=True).take(3).identity
    assert some(tmp_path / "HubImages") == some(hub)


def test_a_folder_is_another_when_a_picture_a_name_or_a_note_of_equal_size_changes(four):
    notes = four / "metadata.jsonl"
    notes.write_text("".join(f'{{"file_name": "{k}.png", "caption": "a red cat"}}\n' for k in range(1, 4)))
    found = {ImageFolder(four, size=7).identity}
    notes.write_text(notes.read_text().replace("red", "tan", 1))
    found.add(ImageFolder(four, size=7).identity)
    content = bytearray((four / "2.png").read_bytes())
    content[-1] ^= 1
    (four / "2.png").write_bytes(content)
    found.add(ImageFolder(four, size=7).identity)
    notes.unlink()
    found.add(ImageFolder(four, size=7).identity)
    (four / "3.png").rename(four / "5.png")
    found.add(ImageFolder(four, size=7).identity)
    assert len(found) == 5


def test_rows_are_another_dataset_when_a_picture_a_label_or_a_caption_changes(datasets, tmp_path):
    images, found = rows_of(9)["image"], set()
    changed = [*images[:8], {"bytes": images[8]["bytes"][:-1] + b"!", "path": None}]
    columns = {"image": images, "label": [0, 1, 2] * 3, "text": ["a"] * 9}
    for k, other in enumerate(({}, {"image": changed}, {"label": [0, 2, 1] * 3}, {"text": ["a"] * 8 + ["b"]})):
        file = table(tmp_path / f"{k}.parquet", columns | other)
        found.add(HubImages(file, size=7, label_key="label").identity)
    assert len(found) == 4


def test_of_many_files_some_are_looked_into(monkeypatch):
    monkeypatch.setattr("ldm_lite.data.folder.SAMPLED", 5)
    assert [some_of(n) for n in (0, 1, 3, 5, 9)] == [[], [0], [0, 1, 2], [0, 1, 2, 3, 4], [0, 2, 4, 6, 8]]
    whole = bytes(range(256)) * 40
    assert ends(io.BytesIO(whole)) == whole[:4096] + whole[-4096:] and ends(io.BytesIO(whole[:5000])) == whole[:5000]


@pytest.mark.parametrize("content", [b"", b"not a cache", None])
def test_a_broken_cache_is_made_again(stage, tmp_path, content):
    made = cache_latents(stage, Counted(), tmp_path, progress=False).columns["z"]
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-20] if content is None else content)
    again = cache_latents(stage, Counted(), tmp_path, progress=False)
    assert torch.equal(made, again.columns["z"])


class Interrupted(Counted):
    def __getitem__(self, row: int) -> dict:
        if self.asked > 6:
            raise KeyboardInterrupt
        return super().__getitem__(row)


def test_an_interrupted_cache_leaves_nothing_half_written(stage, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cache_latents(stage, Interrupted(), tmp_path, batch=2, progress=False)
    assert list(tmp_path.iterdir()) == []
    cache_latents(stage, Counted(4), tmp_path, progress=False)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        cache_latents(stage, Interrupted(), tmp_path, batch=2, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [FILE] and (tmp_path / FILE).read_bytes() == before


# Caches of several files ----------------------------------------------------------------------------------------------


@pytest.fixture
def three(monkeypatch):
    """Files of three items."""
    monkeypatch.setattr("ldm_lite.data.cache.SHARD", 3)


def same(a: Latents, b: Latents) -> bool:
    pairs = list(zip(a, b, strict=True))
    tensors = all(torch.equal(x[k], y[k]) for x, y in pairs for k in ("z", "boxes"))
    return tensors and all((x["label"], x["caption"]) == (y["label"], y["caption"]) for x, y in pairs)


def test_a_cache_of_several_files_holds_what_one_in_memory_does(stage, tmp_path, three):
    whole, cache = (cache_latents(stage, Counted(), f, batch=3, progress=False) for f in (None, tmp_path))
    assert isinstance(cache, Shards) and len(cache) == 7 and cache.label_names == ("odd", "even")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"0000{k}.safetensors" for k in range(3)]
    assert same(cache, whole)
    rows = [5, 0, 6, 5, 2, 3]
    ours, theirs = cache.batch(rows), whole.batch(rows)
    assert torch.equal(ours["z"], theirs["z"]) and torch.equal(ours["label"], theirs["label"])
    assert ours["caption"] == theirs["caption"]
    assert all(torch.equal(a, b) for a, b in zip(ours["boxes"], theirs["boxes"], strict=True))
    assert torch.equal(cache.columns["z"], whole.columns["z"])


def test_an_interrupted_cache_goes_on_with_the_files_that_are_missing(stage, tmp_path, three):
    class Stops(Counted):
        def __getitem__(self, row: int) -> dict:
            if row == 5:
                raise KeyboardInterrupt
            return super().__getitem__(row)

    data = Stops()
    data.__class__.__name__ = "Counted"
    with pytest.raises(KeyboardInterrupt):
        cache_latents(stage, data, tmp_path, batch=2, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    again = Counted()
    cache = cache_latents(stage, again, tmp_path, batch=2, progress=False)
    assert again.asked == 3 + 4  # the rows that tell datasets apart, and those that were missing
    assert same(cache, cache_latents(stage, Counted(), batch=2, progress=False))


def test_files_of_a_larger_dataset_do_not_stay_behind(stage, tmp_path, three):
    cache_latents(stage, Counted(7), tmp_path, progress=False)
    assert len(cache_latents(stage, Counted(4), tmp_path, progress=False)) == 4
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cache_can_be_sent_to_workers_and_maps_its_files_there(stage, tmp_path, three):
    cache = cache_latents(stage, Counted(), tmp_path, progress=False)
    sent = pickle.dumps(cache)
    assert len(sent) < 2000  # names of files, and no latents
    assert same(pickle.loads(sent), cache)
    (tmp_path / "00001.safetensors").unlink()
    with pytest.raises(InputError, match="latents have changed while they were in use"):
        pickle.loads(sent)


def test_verifying_finds_a_changed_byte(stage, tmp_path, three):
    cache = cache_latents(stage, Counted(), tmp_path, progress=False)
    cache.verify()
    path = tmp_path / "00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    changed = cache_latents(stage, Counted(), tmp_path, progress=False)
    with pytest.raises(InputError, match=r"00001.safetensors: is not what was written; delete it and encode again"):
        changed.verify()


def test_the_spread_of_the_posterior_is_kept_and_each_draw_is_from_it(stage, tmp_path):
    cache = cache_latents(stage, Counted(), tmp_path, spread=True, progress=False)
    batch = cache.batch([4, 1])
    mean, deviation = stage.posterior(torch.stack([Counted()[row]["image"] for row in (4, 1)]))
    torch.testing.assert_close(batch["z"], mean.detach(), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(batch["z_std"], deviation.detach(), atol=1e-2, rtol=2e-2)
    model = LatentDiffusion(stage, nn.Identity(), Diffusion(VariancePreserving(), "v"), Unconditional())
    draws = torch.stack([model.latent(batch) for _ in range(400)])
    assert (draws.mean(0) - batch["z"]).abs().max() < 0.3 * float(batch["z_std"].max())
    torch.testing.assert_close(draws.std(0), batch["z_std"], rtol=0.25, atol=0)
    vq = Autoencoder(replace(stage.config, bottleneck="vq", codes=11)).eval()
    assert "z_std" not in cache_latents(vq, Counted(), spread=True, progress=False)[0]


def test_a_dataset_that_flips_is_there_as_it_is_and_mirrored(four, tmp_path):
    folder = ImageFolder(four, size=11, flip=True)
    for data in (folder, Part(folder, range(4)), with_low_res(ImageFolder(four, size=8, flip=True), 4)):
        cache = cache_latents(Pixels(), data, progress=False)
        assert len(cache) == 4 and len(cache.columns["z"]) == 8
        seen = {row: set() for row in range(4)}
        for epoch in range(24):
            batch = cache.draws([(row, epoch) for row in range(4)])
            assert torch.equal(batch["z"], cache.draws([(row, epoch) for row in range(4)])["z"])
            for row in range(4):
                seen[row].add(torch.equal(batch["z"][row], cache.columns["z"][row].float()))
                assert torch.equal(batch["z"][row], cache.columns["z"][row].float()) or torch.equal(
                    batch["z"][row].flip(2), cache.columns["z"][row].float()
                )
                if "low" in batch:
                    small = F.interpolate(batch["z"], scale_factor=1 / 4, mode="bicubic", antialias=True).clamp(-1, 1)
                    torch.testing.assert_close(batch["low"], small, atol=4e-3, rtol=0)
        assert all(both == {True, False} for both in seen.values())
    assert folder.mirrored is None


def encoded_by(rank: int, folder, stage) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    data_cache.SHARD = 2
    data = Counted()
    cache = cache_latents(stage, data, folder / "cache", batch=2, progress=False)
    torch.save((data.asked, cache.columns["z"]), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_encode_half_of_the_files_each_and_both_have_all(stage, tmp_path):
    torch.multiprocessing.spawn(encoded_by, (tmp_path, stage), nprocs=2)
    (asked, one), (other_asked, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (asked, other_asked) == (3 + 4, 3 + 3) and torch.equal(one, other)
    assert torch.equal(one, cache_latents(stage, Counted(), batch=2, progress=False).columns["z"])


def test_a_place_that_cannot_be_written_is_known_before_anything_is_encoded(stage, tmp_path):
    (tmp_path / "file").write_text("")
    data = Counted()
    with pytest.raises(InputError, match=r"cannot be written"):
        cache_latents(stage, data, tmp_path / "file" / "cache", progress=False)
    assert data.asked == 3


def test_what_cannot_be_cached_is_refused(stage):
    with pytest.raises(InputError, match="the dataset is empty"):
        cache_latents(stage, Counted(0), progress=False)
    with pytest.raises(InputError, match="batch: 0 is not 1 or more"):
        cache_latents(stage, Counted(), batch=0, progress=False)
    with pytest.raises(InputError, match=r"not divisible by f = 4"):
        cache_latents(stage, Subset([{"image": torch.zeros(3, 6, 8)}], [0]), progress=False)
    with pytest.raises(InputError, match=r"Subset: items without image; they have z"):
        cache_latents(stage, Subset([{"z": torch.zeros(3, 6, 8)}], [0]), progress=False)


def test_latents_that_are_not_finite_stop_with_the_row(stage):
    broken = Autoencoder(stage.config).eval()
    torch.nn.init.constant_(broken.quant_conv.bias, float("nan"))
    with pytest.raises(FloatingPointError, match=r"rows 0 … 6"):
        cache_latents(broken, Counted(), progress=False)


def test_worker_processes_change_nothing(stage):
    alone, helped = (cache_latents(stage, Counted(), batch=3, workers=w, progress=False) for w in (0, 1))
    assert torch.equal(alone.columns["z"], helped.columns["z"])
    assert alone.columns["caption"] == helped.columns["caption"]


@pytest.mark.parametrize("folder", [True, False])
def test_cached_maps_take_a_byte_a_pixel_and_come_back_as_they_were(folder, tmp_path):
    class Long(Scenes):
        """A folder's maps have whole numbers of eight bytes; the scenes' own have one."""

        def batch(self, rows):
            found = super().batch(rows)
            return found | {"segmentation": found["segmentation"].long()}

    scenes = Long("train", size=16, count=5, keys=("image", "segmentation"))
    cached = cache_latents(Pixels(), scenes, tmp_path / "latents" if folder else None, progress=False)
    assert cached.column("segmentation").dtype == torch.uint8
    found = cached.batch([4, 1])["segmentation"]
    assert found.dtype == torch.long
    assert torch.equal(found, torch.stack([scenes[4]["segmentation"], scenes[1]["segmentation"]]))
    wide = narrow("segmentation", torch.tensor([[[3, 256]]]))
    assert wide.tolist() == [[[3, 256]]]


@pytest.mark.parametrize("settings", [{}, {"sample": True}, {"spread": True}, {"also": ("other",)}])
@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_a_batch_that_memory_has_no_room_for_is_encoded_in_halves_to_the_same_latents(bottleneck, settings):
    class Two(Dataset):
        def __len__(self):
            return 11

        def __getitem__(self, i):
            image = 2 * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(i)) - 1
            return {"image": image, "label": i} | ({"other": -image} if "also" in settings else {})

    torch.manual_seed(0)
    config = AutoencoderConfig(bottleneck=bottleneck, channels=2, width=8, mult=(1, 2), blocks=1, codes=5)
    stage, seen = Autoencoder(config).eval(), []
    whole = cache_latents(stage, Two(), batch=7, progress=False, **settings).columns
    own = stage.encoder.forward

    def crowded(image):
        seen.append(len(image))
        if len(image) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(image)

    stage.encoder.forward = crowded
    parts = cache_latents(stage, Two(), batch=7, progress=False, **settings).columns
    assert list(parts) == list(whole) and torch.equal(parts["label"], whole["label"])
    for name in [name for name in whole if data_cache.latent(name)]:
        torch.testing.assert_close(parts[name], whole[name], atol=2e-2, rtol=2e-2)
    assert [n for n in seen if n > 2] == [7, 4]  # it goes on with what went through
