"""Datasets by name: their terms are agreed to first, and what comes is what is known of them."""

import builtins
import io
import json
import os
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

datasets = pytest.importorskip("datasets", reason="needs the package datasets")

from test_processes import on_two  # noqa: E402

from ldm_lite import cli, processes, runs  # noqa: E402
from ldm_lite.config import InputError  # noqa: E402
from ldm_lite.data import KNOWN, HubImages, known  # noqa: E402
from ldm_lite.data.catalogue import Known, terms  # noqa: E402
from ldm_lite.presets import PAPER, PRESETS, DataConfig, dataset  # noqa: E402


def parquet(folder, split: str, n: int, first: int = 0) -> None:
    """As on the hub: a shard of pictures in the column image, with a label that means nothing."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(first, first + n):
        held = io.BytesIO()
        Image.fromarray(np.full((21, 23, 3), 10 * i, np.uint8)).save(held, "jpeg")
        rows.append({"bytes": held.getvalue(), "path": f"{i}.jpg"})
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"image": rows, "label": [0] * n}, features=kinds)
    table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A stand-in for the dataset celebahq, in the layout of its id on the hub; no cache of this user, no terminal."""
    parquet(tmp_path / "hub", "train", 11)
    parquet(tmp_path / "hub", "validation", 3, 11)
    about = replace(KNOWN["celebahq"], ids=(str(tmp_path / "hub"),), rows={"train": 11, "validation": 3})
    monkeypatch.setitem(KNOWN, "celebahq", about)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LDM_LITE_YES", "")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return tmp_path


def test_nothing_is_fetched_before_its_terms_are_agreed_to(faces, monkeypatch):
    monkeypatch.setattr("ldm_lite.data.catalogue.HubImages", lambda *a, **k: pytest.fail("fetched"))
    says = r"^celebahq: 14 pictures, 2.8 GB, from .*hub on the hub; for non-commercial.*; add --yes to fetch it"
    with pytest.raises(InputError, match=says):
        known("celebahq", size=16)
    assert not (faces / "cache").exists()


def test_an_agreement_is_remembered_until_the_terms_change(faces, monkeypatch, capsys):
    assert len(known("celebahq", size=16, yes=True)) == 11
    assert terms("celebahq") in capsys.readouterr().err
    assert len(known("celebahq", "validation", size=16)) == 3  # agreed to before
    assert "celebahq" not in capsys.readouterr().err
    monkeypatch.setitem(KNOWN, "celebahq", replace(KNOWN["celebahq"], terms="for nobody"))
    with pytest.raises(InputError, match="for nobody; add --yes"):
        known("celebahq", size=16)


@pytest.mark.parametrize("answer, agreed", [("y", True), ("Yes ", True), ("", False), ("no", False)])
def test_at_a_terminal_it_asks(faces, monkeypatch, answer, agreed):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    if agreed:
        assert len(known("celebahq", size=16)) == 11
    else:
        with pytest.raises(InputError, match="add --yes"):
            known("celebahq", size=16)


def test_no_answer_at_a_terminal_is_no(faces, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    with pytest.raises(InputError, match="add --yes"):  # Ctrl-D
        known("celebahq", size=16)


def test_an_id_of_the_hub_is_fetched_on_the_terms_of_its_name(faces, monkeypatch):
    config = DataConfig(f"hub:{faces / 'hub'}", 16)
    for some in (config, replace(config, stream=True)):
        with pytest.raises(InputError, match=r"^celebahq: 14 pictures.* add --yes to fetch it"):
            dataset(some)
    monkeypatch.setenv("LDM_LITE_YES", "1")
    assert len(dataset(config)) == 11


def asked_on_two(folder, answer: str) -> None:
    """A training on faces at a terminal, which ends where the data is there."""
    rank = processes.rank()
    about = replace(KNOWN["celebahq"], ids=(str(folder / "hub"),), rows={"train": 11, "validation": 3})
    KNOWN["celebahq"] = about
    os.environ |= {"XDG_CACHE_HOME": str(folder / answer), "LDM_LITE_YES": "", "HF_DATASETS_CACHE": str(folder / "hf")}
    sys.stdin = io.StringIO()
    sys.stdin.isatty = lambda: True
    builtins.input = lambda question: answer if rank == 0 else pytest.fail("rank 1 asks")

    def there(*_) -> None:
        raise RuntimeError("the data is there")

    runs.AutoencoderTask = there
    recipe = replace(PRESETS["scenes-kl-f2"], data=DataConfig("celebahq", 16))
    if answer == "y":
        with pytest.raises(RuntimeError, match="the data is there"):
            runs.train(recipe, folder / "run")
    else:
        with pytest.raises(InputError, match="add --yes to fetch it") as error:
            runs.train(recipe, folder / "run")
        assert error.value.told is (rank == 1)


@pytest.mark.parametrize("answer", ["y", "n"])
def test_of_several_ranks_the_first_asks_and_its_answer_is_that_of_all(faces, answer):
    on_two(faces, asked_on_two, answer)


def test_the_items_are_those_of_the_id_and_a_recipe_takes_the_name(faces):
    theirs = HubImages(str(faces / "hub"), size=16)
    ours = known("celebahq", size=16, yes=True)
    assert (ours[4]["image"] == theirs[4]["image"]).all()
    train, held_out = (dataset(DataConfig("celebahq", 16), split) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (11, 3)
    assert PAPER["celebahq-ldm4"].data == DataConfig("celebahq", 256)  # no flip
    for name in ("lsun-churches-ldm8", "lsun-bedrooms-ldm4"):
        data = PAPER[name].data
        assert data.path in KNOWN and data.flip and data.crop == "center"


def test_yes_on_the_command_line_agrees(faces, monkeypatch, capsys):
    monkeypatch.chdir(faces)
    small = ["--data", "celebahq", "--data.size", "16", "--steps", "1", "--train.workers", "0", "--train.batch", "4"]
    small += ["--model.width", "8"]
    assert cli.main(["train", "autoencoder", *small]) == 2
    assert "add --yes" in capsys.readouterr().err and not (faces / "runs").exists()
    assert cli.main(["train", "autoencoder", *small, "--yes"]) == 0


def test_the_next_id_is_taken_where_the_first_has_moved(faces, monkeypatch):
    about = KNOWN["celebahq"]
    monkeypatch.setitem(KNOWN, "celebahq", replace(about, ids=(str(faces / "moved"), *about.ids)))
    assert len(known("celebahq", size=16, yes=True)) == 11


def test_each_id_is_asked_for_at_its_own_commit(faces, monkeypatch):
    about, asked = KNOWN["celebahq"], []
    ids = (str(faces / "moved"), *about.ids)
    monkeypatch.setitem(KNOWN, "celebahq", replace(about, ids=ids, revisions={about.ids[0]: "7" * 40}))
    told = lambda id, split, **settings: (asked.append(settings["revision"]), HubImages(id, split, **settings))[1]
    monkeypatch.setattr("ldm_lite.data.catalogue.HubImages", told)
    known("celebahq", size=16, yes=True)
    assert asked == [None, "7" * 40]


def test_where_none_can_be_had_it_says_what_to_do(faces, monkeypatch):
    monkeypatch.setitem(KNOWN, "celebahq", replace(KNOWN["celebahq"], ids=("owner/gone",)))
    says = r"^celebahq: owner/gone: .*; or make a folder of the pictures from https://github.com/tkarras"
    with pytest.raises(InputError, match=says):
        known("celebahq", size=16, yes=True)


def test_another_number_of_pictures_is_another_dataset(faces, monkeypatch):
    monkeypatch.setitem(KNOWN, "celebahq", replace(KNOWN["celebahq"], rows={"train": 12, "validation": 3}))
    says = (
        r"^celebahq: .*hub has 11 pictures for train, and had 12: it has changed; --data hub:.*hub takes it as it is$"
    )
    with pytest.raises(InputError, match=says):
        known("celebahq", size=16, yes=True)
    assert len(known("celebahq", size=16, count=5)) == 5


def test_a_part_of_a_dataset_is_told_before_it_is_fetched():
    assert "a tenth of LSUN's three million bedrooms" in terms("lsun-bedrooms")


def test_what_is_known_is_whole():
    for name, about in KNOWN.items():
        assert isinstance(about, Known) and {"train", "validation"} <= about.rows.keys() and about.home, name
        assert all(id.count("/") == 1 for id in about.ids) and "\n" not in terms(name)
        assert about.revisions.keys() <= set(about.ids), name
        assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in about.revisions.values()), name


def test_a_spoiled_memory_of_agreements_asks_again(faces):
    known("celebahq", size=16, yes=True)
    (faces / "cache/ldm_lite/agreed.json").write_text("{")
    with pytest.raises(InputError, match="add --yes"):
        known("celebahq", size=16)
    known("celebahq", size=16, yes=True)
    assert json.loads((faces / "cache/ldm_lite/agreed.json").read_text()) == [terms("celebahq")]
