"""LSUN's own files: small ones in their layout, read by one process and by many."""

import hashlib
import io
import multiprocessing
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

lmdb = pytest.importorskip("lmdb", reason="LSUN's files need lmdb: pip install ldm-lite[lsun]")

from torch.utils.data import DataLoader  # noqa: E402

from ldm_lite.config import InputError  # noqa: E402
from ldm_lite.data import LSUN, ImageFolder, lsun  # noqa: E402
from ldm_lite.presets import DataConfig, dataset  # noqa: E402
from ldm_lite.training import Drawn, as_is  # noqa: E402


def picture(i: int, size=(41, 29)) -> bytes:
    ramp = np.linspace(0, 200, size[0] * size[1] * 3).reshape(size[1], size[0], 3) + 5 * i
    held = io.BytesIO()
    Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(held, "webp", lossless=True)
    return held.getvalue()


def made(root: Path, values: dict[bytes, bytes] | list[bytes]) -> Path:
    """As the official export is: keys of 40 hexadecimal digits, values the files' bytes."""
    if isinstance(values, list):
        values = {hashlib.sha1(str(i).encode()).hexdigest().encode(): value for i, value in enumerate(values)}
    root.mkdir(parents=True)
    environment = lmdb.open(str(root), map_size=2**24)
    with environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    environment.close()
    (root / "lock.mdb").unlink()
    return root


@pytest.fixture
def church(tmp_path) -> Path:
    return made(tmp_path / "church_outdoor_train_lmdb", [picture(i) for i in range(23)])


def test_the_pictures_are_those_of_a_folder_with_the_same_files_in_the_order_of_the_keys(church, tmp_path):
    environment = lmdb.open(str(church), readonly=True, lock=False)
    (tmp_path / "folder").mkdir()
    with environment.begin() as transaction:
        for i, (_, value) in enumerate(transaction.cursor()):
            (tmp_path / "folder" / f"{i:02}.webp").write_bytes(value)
    environment.close()
    for settings in ({}, {"crop": "random", "flip": True, "seed": 3}):
        ours, theirs = LSUN(church, size=17, **settings), ImageFolder(tmp_path / "folder", size=17, **settings)
        assert len(ours) == len(theirs) == 23
        for row in (0, 7, 22):
            assert torch.equal(ours.draw(row, 2)["image"], theirs.draw(row, 2)["image"])


@pytest.mark.parametrize("size", [16, 29])
@pytest.mark.parametrize("shape", [(41, 29), (32, 29), (29, 32), (40, 29), (29, 42), (29, 29)])
def test_the_published_preprocessing_is_a_centre_crop_and_bicubic(tmp_path, shape, size):
    from torchvision.transforms import v2

    file = picture(0, shape)
    data = LSUN(made(tmp_path / "church_outdoor_val_lmdb", [file]), size=size)
    original = Image.open(io.BytesIO(file))  # ldm/data/lsun.py: the largest centred square, then PIL's bicubic
    side = min(original.size)
    left, upper = (original.width - side) // 2, (original.height - side) // 2
    square = original.crop((left, upper, left + side, upper + side)).resize((size, size), Image.Resampling.BICUBIC)
    expected = v2.functional.pil_to_tensor(square).float() / 127.5 - 1
    assert (data[0]["image"] - expected).abs().max() <= 1.01 / 127.5


@pytest.mark.parametrize("damage", [bytes(4096), b"\xff" * 4096, None])
def test_a_damaged_page_is_a_file_to_fetch_again_and_does_not_end_the_process(church, damage):
    """A page of zeros where keys should be makes lmdb abort."""
    content = bytearray((church / lsun.FILE).read_bytes())
    for page in range(2, len(content) // 4096):  # the first two say where the others are
        if damage:
            content[4096 * page : 4096 * (page + 1)] = damage
        else:
            content[4096 * page + 10] ^= 0x0F  # what kind of page it is
    (church / lsun.FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"data\.mdb: damaged \(.+\); fetch it again$"):
        LSUN(church, size=17)


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_workers_of_every_kind_read_the_same(church, start):
    data = LSUN(church, size=17)
    data[0]  # open here, so that a fork would take it along
    order = [[(row, 0) for row in range(i, min(i + 5, 23))] for i in range(0, 23, 5)]
    context = multiprocessing.get_context(start)
    settings = {"batch_sampler": order, "collate_fn": as_is, "num_workers": 2, "multiprocessing_context": context}
    found = torch.cat([batch["image"] for batch in DataLoader(Drawn(data), **settings)])
    assert torch.equal(found, torch.stack([data[row]["image"] for row in range(23)]))


def test_a_dataset_can_be_pickled_while_it_is_open_and_the_keys_are_listed_once(church, monkeypatch):
    data = LSUN(church, size=17)
    data[0]
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[3]["image"], data[3]["image"])
    assert church.with_name(f"{church.name}.keys").is_file()
    monkeypatch.setattr("ldm_lite.data.lsun.listed", lambda root: pytest.fail("listed again"))
    assert len(LSUN(church, size=17, count=7)) == 7


def test_the_keys_of_another_file_or_a_broken_cache_are_not_used(church, tmp_path):
    LSUN(church, size=17)
    cache = church.with_name(f"{church.name}.keys")
    for spoil in (lambda: cache.write_bytes(b"no keys"), lambda: os.utime(church / "data.mdb", ns=(1, 1))):
        spoil()
        assert len(LSUN(church, size=17)) == 23
    other = made(tmp_path / "other_train_lmdb", [picture(1)])
    cache.rename(other.with_name(f"{other.name}.keys"))
    assert len(LSUN(other, size=17)) == 1


def test_the_same_file_elsewhere_is_the_same_dataset_and_another_picture_or_key_is_not(church, tmp_path):
    data = LSUN(church, size=17)
    lsun.closed()
    shutil.copytree(church, tmp_path / "again", copy_function=shutil.copyfile)
    os.utime(tmp_path / "again" / "data.mdb", (1, 1))
    assert LSUN(tmp_path / "again", size=17).identity == data.identity
    other = made(tmp_path / "other", [picture(i) for i in range(22)] + [picture(22)[:-1] + b"!"])
    keys = made(tmp_path / "keys", {f"{i:040}".encode(): picture(i) for i in range(23)})
    assert len({LSUN(root, size=17).identity for root in (church, other, keys)}) == 3


def test_a_picture_that_does_not_decode_is_counted_and_the_next_takes_its_place(tmp_path):
    values = [picture(i) for i in range(5)]
    keys = sorted(hashlib.sha1(str(i).encode()).hexdigest().encode() for i in range(5))
    root = made(tmp_path / "x_train_lmdb", dict(zip(keys, values)) | {keys[2]: picture(2)[:40]})
    data = LSUN(root, size=17)
    with pytest.warns(UserWarning, match=r"x_train_lmdb, picture 2: cannot be decoded"):
        assert torch.equal(data[2]["image"], data[3]["image"])
    assert data.skipped == [f"{root}, picture 2"]
    with pytest.raises(InputError, match="picture 2: cannot be decoded"):
        LSUN(root, size=17, strict=True)[2]


def test_a_recipe_takes_the_other_split_from_beside_the_first_or_every_twentieth(church, tmp_path):
    train, held_out = (dataset(DataConfig(str(church), 17), split) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (22, 1)
    made(tmp_path / "church_outdoor_val_lmdb", [picture(i) for i in range(3)])
    train, held_out = (dataset(DataConfig(str(church), 17, count=9), split) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (9, 3)


def test_a_recipe_trains_from_the_file(church, tmp_path, monkeypatch):
    from ldm_lite import cli

    monkeypatch.chdir(tmp_path)
    small = ["--data", str(church), "--data.size", "16", "--steps", "2", "--train.batch", "4", "--model.width", "8"]
    assert cli.main(["train", "autoencoder", *small]) == 0  # with two workers


# Bad input ----------------------------------------------------------------------------------------------------------


def test_a_truncated_file_is_said_to_be_truncated(church):
    path = church / "data.mdb"
    whole = path.read_bytes()
    for size in (len(whole) // 2, 5000, 100, 0):
        lsun.closed()
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"data.mdb: truncated.*fetch it again$"):
            LSUN(church, size=17)


@pytest.mark.parametrize(
    "spoil, says",
    [
        (lambda root: (root / "data.mdb").unlink(), "holds no data.mdb; unzip it from http://dl.yf.io/lsun/scenes/"),
        (lambda root: (root / "data.mdb").write_bytes(b"no lmdb" * 2000), "truncated, or no lmdb"),
    ],
)
def test_what_is_no_file_of_lsun_is_refused(church, spoil, says):
    spoil(church)
    with pytest.raises(InputError, match=says):
        LSUN(church, size=17)


def test_a_file_that_is_not_there_is_told_alone_with_where_it_is_to_be_had(tmp_path, monkeypatch, capsys):
    from ldm_lite import cli

    monkeypatch.chdir(tmp_path)
    says = (
        "church_outdoor_train_lmdb: holds no data.mdb; unzip it from http://dl.yf.io/lsun/scenes/church_outdoor_train"
    )
    assert cli.main(["train", "lsun-churches-ldm8", "--data", "lsun/church_outdoor_train_lmdb"]) != 0
    told = "".join(capsys.readouterr())
    assert says in told and "comes first" not in told and not (tmp_path / "runs").exists()
    (folder := tmp_path / "lsun/church_outdoor_train_lmdb").mkdir(parents=True)
    with pytest.raises(InputError, match=says):
        dataset(DataConfig(str(folder), 16))
    (folder / "a.webp").write_bytes(picture(1))  # as pictures, whatever they are called
    assert len(dataset(DataConfig(str(folder), 16))) == 1


def test_an_empty_file_too_small_a_picture_and_a_missing_package_are_told(church, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="has no pictures"):
        LSUN(made(tmp_path / "none_train_lmdb", []), size=17)
    with pytest.raises(InputError, match=r"of 41 x 29 pixels is smaller than size = 30; choose --data.size 29 or less"):
        LSUN(church, size=30)[0]
    lsun.closed()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(InputError, match=r"pip install ldm-lite\[lsun\]"):
        LSUN(church, size=17, cache=tmp_path / "nothing")
