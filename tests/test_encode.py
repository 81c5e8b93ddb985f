"""ldm-lite encode to a folder: files of latents that go on, are verified, are shared by ranks and trained from."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_processes import on_two
from tiny import autoencoder, latent_diffusion
from torch.utils.data import Dataset

from ldm_lite import cli, processes, runs
from ldm_lite.config import InputError, read, write
from ldm_lite.data import cache_latents
from ldm_lite.data.cache import about
from ldm_lite.data.folder import ImageFolder
from ldm_lite.latent import LatentDiffusion, store
from ldm_lite.originals import ORIGINALS
from ldm_lite.presets import (
    FIRST_STAGES,
    PRESETS,
    AutoencoderRecipe,
    DataConfig,
    DiffusionRecipe,
    dataset,
    load_first_stage,
)
from ldm_lite.training import DiffusionTask, TrainConfig
from ldm_lite.unet import UNetConfig

LINE = ["encode", "model", "mine", "--size", "16", "-o", "latents"]
RECIPE = DiffusionRecipe(
    "model",
    UNetConfig(channels=2, width=8, mult=(1, 2), blocks=1, heads=1),
    data=DataConfig("mine", 16),
    train=TrainConfig(steps=2, batch=4, warmup=0, precision="fp32"),
)


def pictures(folder: Path, n: int = 23) -> None:
    folder.mkdir()
    for i in range(n):
        shade = torch.linspace(0, 9 * i, 20 * 24).view(20, 24, 1).expand(-1, -1, 3).byte()
        Image.fromarray(shade.numpy()).save(folder / f"{i:02d}.png")


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """23 photographs, of which 22 are learned from, in files of five latents; a model; a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ldm_lite.data.cache.SHARD", 5)
    monkeypatch.setattr(runs, "JUDGED", 4)
    monkeypatch.setattr(runs, "STEPS", 2)
    monkeypatch.setitem(PRESETS, "mine-ldm", RECIPE)
    pictures(tmp_path / "mine")
    torch.manual_seed(0)
    model = latent_diffusion()
    model.first_stage.scale.fill_(1.1)
    model.save(tmp_path / "model")
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def latents(folder: Path) -> dict[str, dict]:
    """By file: what it says of itself, and its columns. (Of equal files the bytes differ: the first has no order.)"""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        columns = {name: value.tolist() for name, value in load_file(path).items()}
        found[path.name] = {"about": about(path), **columns}
    return found


def refused(capsys, *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    (line,) = [x for x in capsys.readouterr().err.strip().splitlines() if x.startswith("ldm-lite: ")]
    return line


def test_the_files_hold_mean_and_deviation_of_each_image_and_of_its_mirror_image(here, capsys):
    assert cli.main([*LINE, "--flip", "True", "--spread", "True"]) == 0
    said = capsys.readouterr().out
    assert said == "latents: 9 files, 22 items of z (2, 8, 8), each mirrored too, read and verified\n"
    columns = [load_file(here / "latents" / f"{k:05d}.safetensors") for k in range(9)]
    z, spread = (torch.cat([column[name] for column in columns]).float() for name in ("z", "z_std"))
    images, stage = dataset(DataConfig("mine", 16)), LatentDiffusion.load("model").first_stage
    image = torch.stack([images[i]["image"] for i in range(22)])
    with torch.no_grad():
        mean, deviation = stage.posterior(torch.cat([image, image.flip(3)]))
    torch.testing.assert_close(z, mean, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(spread, deviation, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_goes_on_from_the_files_that_are_there(here, monkeypatch, capsys, number):
    plain, asked = ImageFolder.draw, []

    def draw(self, row, epoch):
        asked.append(row)
        if row == 12 and not (here / "stopped").exists() and (here / "latents/00001.safetensors").exists():
            (here / "stopped").touch()
            signal.raise_signal(number)
        return plain(self, row, epoch)

    monkeypatch.setattr(ImageFolder, "draw", draw)
    assert cli.main(LINE) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    before = files(here / "latents")
    assert list(before) == ["00000.safetensors", "00001.safetensors"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    asked.clear()
    assert cli.main(LINE) == 0
    assert sorted(asked[3:]) == [*range(10, 19), *range(20, 23)]  # after the three that tell datasets apart
    assert cli.main([*LINE[:-1], "again"]) == 0
    assert before.items() <= files(here / "latents").items()
    assert len(latents(here / "latents")) == 5 and latents(here / "latents") == latents(here / "again")


def test_what_is_there_is_verified_and_a_changed_byte_is_named(here, capsys):
    assert cli.main(LINE) == 0
    path, whole = here / "latents/00003.safetensors", latents(here / "latents")
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)
    assert refused(capsys, *LINE).endswith("00003.safetensors: is not what was written; delete it and encode again")
    path.unlink()
    assert cli.main([*LINE, "--verify", "False"]) == 0
    assert latents(here / "latents") == whole


def test_a_file_in_the_place_of_another_is_made_anew(here):
    assert cli.main(LINE) == 0
    whole = latents(here / "latents")
    shutil.copyfile("latents/00000.safetensors", "latents/00002.safetensors")
    assert cli.main(LINE) == 0
    assert latents(here / "latents") == whole


@pytest.mark.parametrize("column", ["label", "caption", "boxes"])
def test_a_change_of_what_lies_beside_the_latents_is_named(here, column):
    class Told(Dataset):
        def __len__(self) -> int:
            return 7

        def __getitem__(self, row: int) -> dict:
            held = {"label": row, "caption": f"the {row}th", "boxes": torch.rand(1 + row % 2, 4)}
            return held | {"image": torch.zeros(3, 16, 16)}

    cache = cache_latents(load_first_stage("model"), Told(), here / "told", progress=False)
    cache.verify()
    values = cache.shards[1][column]
    values[1] = "another" if column == "caption" else values[1] + 1
    with pytest.raises(InputError, match=r"told/00001\.safetensors: is not what was written; delete it and encode"):
        cache.verify()


def test_what_a_kill_left_is_removed_and_what_is_being_written_stays(here):
    (here / "latents").mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, written = (here / f"latents/.00001.safetensors.{k}.tmp" for k in (ended.pid, os.getppid()))
    recent = here / f"latents/.00002.safetensors.{ended.pid}.tmp"  # it may be another machine's
    for path, age in ((left, 7200), (written, 7200), (recent, 0)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    assert cli.main(LINE) == 0
    assert not left.exists() and written.exists() and recent.exists()


SLOW = """
import pathlib, sys, time
from ldm_lite import cli
from ldm_lite.data.folder import ImageFolder
plain = ImageFolder.draw
def draw(self, row, epoch):
    if row == 15:
        pathlib.Path("begun").touch()
        time.sleep(600)
    return plain(self, row, epoch)
ImageFolder.draw = draw
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_job_that_is_ended_with_its_workers_says_one_line(here):
    """A batch system sends SIGTERM to all processes of a job."""
    line = [sys.executable, "-c", SLOW, *LINE, "--workers", "2", "--batch", "4"]
    job = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (here / "begun").exists():
        assert job.poll() is None
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGTERM)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 130 and "Traceback" not in said
    assert said.strip().splitlines()[-1] == "ldm-lite: stopped; the same command goes on from what is there"
    assert not list((here / "latents").glob(".*"))


def test_latents_of_an_older_version_are_said_to_be(here, capsys):
    assert cli.main(LINE) == 0
    for path in (here / "latents").iterdir():
        held = load_file(path)
        save_file(held, path, {"key": "older", "words": "{}"})
    before = files(here / "latents")
    for line in (LINE, ["train", "mine-ldm", "--latents", "latents"]):
        said = refused(capsys, *line)
        assert said.endswith("latents: holds latents of an older version; delete its files and encode again")
    assert files(here / "latents") == before


@pytest.mark.parametrize("other", ["first stage", "flip", "pictures"])
def test_latents_of_something_else_are_refused_and_left_as_they_are(here, capsys, other):
    assert cli.main(LINE) == 0
    before = files(here / "latents")
    if other == "first stage":
        torch.manual_seed(1)
        latent_diffusion().save(here / "model")
    elif other == "pictures":
        Image.new("RGB", (24, 20)).save(here / "mine/99.png")
    more = ["--flip", "True"] if other == "flip" else []
    said = refused(capsys, *LINE, *more)
    assert "latents: holds latents of another first stage, other images or settings" in said
    assert said.endswith("encode with the recipe's --size, --count, --flip and --spread")
    assert files(here / "latents") == before


@pytest.mark.parametrize("name", ["00000.safetensors", "1024.safetensors", "1.5-pruned.safetensors", "notes.txt"])
@pytest.mark.parametrize("command", ["encode", "train"])
def test_files_of_ones_own_are_never_taken_for_latents(here, capsys, command, name):
    own = here / "latents" / name
    own.parent.mkdir()
    save_file({"weight": torch.ones(3)}, own) if name.endswith("s") else own.write_text("keep me")
    before = own.read_bytes()
    line = LINE if command == "encode" else ["train", "mine-ldm", "--latents", "latents"]
    said = refused(capsys, *line)
    assert said.endswith(f"latents: holds something other than latents ({name}); choose another folder")
    assert own.read_bytes() == before and len(list(own.parent.iterdir())) == 1


def test_no_scale_is_written_among_files_of_ones_own(here):
    before = files(here / "mine")
    with pytest.raises(InputError, match=r"mine: holds something other than latents \(00\.png\)"):
        runs.scale_of_folder(load_first_stage("model"), ImageFolder(here / "mine", size=16), here / "mine")
    assert files(here / "mine") == before


def test_what_a_larger_dataset_left_goes_and_what_is_not_ours_stays(here):
    data = ImageFolder(here / "mine", size=16)
    cache_latents(load_first_stage("model"), data, here / "own", progress=False)
    save_file({"weight": torch.ones(3)}, here / "own" / "99.safetensors")
    fewer = ImageFolder(here / "mine", size=16, count=9)
    kept = cache_latents(load_first_stage("model"), fewer, here / "own", progress=False)
    assert len(kept) == 9
    assert sorted(path.name for path in (here / "own").iterdir()) == [
        "00000.safetensors",
        "00001.safetensors",
        "99.safetensors",
    ]


def test_pictures_that_cannot_be_read_are_counted_and_listed(here, capsys):
    broken = (here / "mine" / "07.png").read_bytes()[:60]  # its header is whole
    (here / "mine" / "07.png").write_bytes(broken)
    with pytest.warns(UserWarning, match="07.png"):
        assert cli.main([*LINE, "--workers", "0"]) == 0
    assert "; left out, as they cannot be read: 1 (skipped.txt), read and verified" in capsys.readouterr().out
    assert (here / "latents" / "skipped.txt").read_text().endswith("07.png\n")
    assert cli.main(["train", "mine-ldm", "--latents", "latents"]) == 0
    assert (here / "runs/mine-ldm/skipped.txt").read_text() == "mine/07.png\n"
    capsys.readouterr()
    said = refused(capsys, "train", "mine-ldm", "--latents", "latents", "--data.strict", "True", "--out", "runs/other")
    assert "mine/07.png: is not among the latents, as it could not be decoded; remove it, or do without" in said


def test_a_folder_of_something_else_is_refused_and_so_are_settings_of_a_folder_for_a_file(here, capsys):
    before = files(here / "mine")
    assert "mine: holds something other than latents (00.png); choose" in refused(capsys, *LINE[:-1], "mine")
    assert files(here / "mine") == before
    assert "flip: of a folder, not of one file" in refused(capsys, *LINE[:-1], "z.safetensors", "--flip", "True")
    assert "output: z.txt is no" in refused(capsys, *LINE[:-1], "z.txt")


def test_a_recipe_learns_from_the_folder_and_encodes_nothing(here, monkeypatch, capsys):
    assert cli.main(LINE) == 0 and cli.main([*LINE[:-1], "few", "--count", "9"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (here / "latents").iterdir()}
    monkeypatch.setattr("ldm_lite.data.cache._encoded", lambda *_: pytest.fail("encoded again"))
    assert cli.main(["train", "mine-ldm", "--latents", "latents"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (here / "latents").iterdir()} == before
    assert not (here / "runs/mine-ldm/latents").exists() and runs.finished(here / "runs/mine-ldm")
    assert cli.main(["train", "mine-ldm", "--latents", "few", "--data.count", "9", "--out", "runs/few"]) == 0
    said = refused(capsys, "train", "mine-ldm", "--latents", "latents", "--spread", "True", "--out", "other")
    assert "latents: holds latents of another first stage, other images or settings" in said


def test_latents_serve_a_copy_of_the_pictures(here, monkeypatch):
    assert cli.main(LINE) == 0
    shutil.copytree("mine", "copy", copy_function=shutil.copyfile)
    monkeypatch.setattr("ldm_lite.data.cache._encoded", lambda *_: pytest.fail("encoded again"))
    assert cli.main([*LINE[:2], "copy", *LINE[3:]]) == 0


def shared(folder: Path) -> None:
    os.chdir(folder)
    import ldm_lite.data.cache as cache

    cache.SHARD, plain, done = 5, cache._encoded, []
    cache._encoded = lambda stage, both, rows, *rest: done.append(rows.start) or plain(stage, both, rows, *rest)
    assert cli.main(LINE) == 0
    assert done == [0, 10, 20] if processes.rank() == 0 else [5, 15]


def test_two_ranks_share_the_files(here):
    on_two(here, shared)
    assert cli.main([*LINE[:-1], "alone"]) == 0
    assert latents(here / "latents") == latents(here / "alone")


def that_differ(folder: Path) -> None:
    os.chdir(folder)
    flip = processes.rank() == 1
    stage = LatentDiffusion.load("model").first_stage
    with pytest.raises(InputError, match=r"^latents: the latents: rank 1 and rank 0 differ"):
        cache_latents(stage, dataset(DataConfig("mine", 16, flip=flip)), "latents", progress=False)
    with pytest.raises(InputError, match=r"^settings: rank 1 and rank 0 differ in data\.flip; start all with the same"):
        runs.train(replace(RECIPE, data=DataConfig("mine", 16, flip=flip)), folder / "run")
    with pytest.raises(InputError, match=r"^settings: rank 1 and rank 0 differ in out; start all with the same"):
        runs.train(RECIPE, folder / f"run{processes.rank()}")


def test_ranks_with_other_settings_encode_nothing(here):
    on_two(here, that_differ)
    assert not (here / "latents").exists() and not list(here.glob("run*"))


def locked_out(folder: Path) -> None:
    os.chdir(folder)
    with pytest.raises(InputError, match="run: another command is at work in it; wait for it, or choose another"):
        runs.train(RECIPE, folder / "run")


def test_ranks_do_not_run_into_the_folder_of_another_command(here):
    with runs.locked(here / "run"):
        on_two(here, locked_out)
    assert not list(here.glob("run*"))


def measured_by_two(folder: Path) -> None:
    os.chdir(folder)
    import ldm_lite.data.cache as cache

    runs.BATCH = cache.SHARD = 5
    assert cli.main(["encode", "bare", *LINE[2:-1], "two"]) == 0


def test_two_ranks_measure_the_scale_that_one_does(here, monkeypatch):
    unscaled(here)
    monkeypatch.setattr(runs, "BATCH", 5)
    assert cli.main(["encode", "bare", *LINE[2:-1], "one"]) == 0
    on_two(here, measured_by_two)
    assert read(here / "one/scale.json") == read(here / "two/scale.json")
    assert latents(here / "one") == latents(here / "two")


def test_the_encoder_alone_serves_as_well(here):
    stage = autoencoder().eval()
    stage.scale.fill_(1.1)
    store(stage, here / "stage")
    assert cli.main(["encode", "stage", "mine", "--size", "16", "-o", "latents", "--split", "validation"]) == 0
    made = cache_latents(stage, dataset(DataConfig("mine", 16), "validation"), progress=False)
    assert torch.equal(load_file(here / "latents/00000.safetensors")["z"], made.columns["z"])


@pytest.mark.parametrize("cache", ["True", "False"])
def test_skipped_pictures_are_counted_on_the_card_and_in_status_over_all_parts_of_a_run(
    here, monkeypatch, capsys, cache
):
    (here / "mine/00.png").write_bytes(b"none")  # found by its header
    for name in ("05.png", "11.png"):  # found when they are decoded
        (here / "mine" / name).write_bytes((here / "mine" / name).read_bytes()[:-30])
    stopped_at(6, monkeypatch)  # after an epoch
    line = ["train", "mine-ldm", "--steps", "8", "--cache", cache, "--train.workers", "1"]
    with pytest.warns(UserWarning, match="1 of 23 images skipped so far"):
        assert cli.main(line) == 130
        listed = (here / "runs/mine-ldm/skipped.txt").read_text()
        assert listed == "".join(f"mine/{name}\n" for name in ("00.png", "05.png", "11.png"))
        assert cli.main(line) == 0
    assert (here / "runs/mine-ldm/skipped.txt").read_text() == listed
    assert "- skipped: 3 pictures that could not be decoded" in capsys.readouterr().out
    assert cli.main(["status", "runs/mine-ldm"]) == 0
    assert "skipped: 3 pictures that could not be decoded: runs/mine-ldm/skipped.txt" in capsys.readouterr().out


def test_a_run_that_skips_nothing_says_nothing_of_it(here, capsys):
    assert cli.main(["train", "mine-ldm"]) == 0
    assert "skipped" not in capsys.readouterr().out and not (here / "runs/mine-ldm/skipped.txt").exists()


def test_a_model_that_lies_where_the_first_stage_would_be_trained_is_taken_as_it_is(here, monkeypatch):
    monkeypatch.setitem(PRESETS, "mine-stage", AutoencoderRecipe(data=DataConfig("mine", 16)))
    monkeypatch.setattr(runs, "train_first_stage", lambda *_: pytest.fail("trained"))
    made = autoencoder()
    store(made, here / "runs/mine-stage")
    stage = runs.first_stage_of(replace(RECIPE, first_stage="mine-stage"), Path("runs/mine-ldm"))
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in stage.state_dict().items())


@pytest.mark.parametrize(("size", "more", "learned"), [(4, " --data.size 4", 4), (8, "", 8), (16, "", 8)])
def test_a_first_stage_learns_from_the_same_pictures_no_larger_than_they_are_asked_for(
    here, monkeypatch, size, more, learned
):
    class Asked(Exception):
        pass

    def asked(recipe, out, command):
        raise Asked(recipe.data, command)

    monkeypatch.setitem(PRESETS, "a-stage", AutoencoderRecipe(autoencoder().config, DataConfig("photographs", 8)))
    monkeypatch.setattr(runs, "train_first_stage", asked)
    with pytest.raises(Asked) as found:
        runs.first_stage_of(replace(RECIPE, first_stage="a-stage", data=DataConfig("mine", size)), Path("runs/x"))
    assert found.value.args == (DataConfig("mine", learned), f"ldm-lite train a-stage --data mine{more}")


def test_a_first_stage_that_ships_is_taken_for_the_scenes_that_it_learned_from(here, monkeypatch):
    monkeypatch.setattr(runs, "train_first_stage", lambda *_: pytest.fail("trained"))
    stage, ships = runs.first_stage_of(PRESETS["scenes-map"], Path("runs/x")), load_first_stage("scenes-kl-f4")
    assert all(torch.equal(value, ships.state_dict()[name]) for name, value in stage.state_dict().items())


@pytest.mark.parametrize("name", ["vq-f4", "a-stage"])
def test_a_published_first_stage_that_would_be_trained_may_be_fetched_and_the_line_says_how(
    here, monkeypatch, capsys, name
):
    assert FIRST_STAGES.keys() <= ORIGINALS.keys()
    monkeypatch.setitem(PRESETS, name, AutoencoderRecipe(autoencoder().config, DataConfig("photographs", 16)))
    monkeypatch.setattr(runs, "train_first_stage", lambda *_: store(autoencoder(), Path("runs") / name))
    runs.first_stage_of(replace(RECIPE, first_stage=name), Path("runs/x"))
    line = f"{name} comes first: training it in runs/{name}"
    fetch = "; or stop, and fetch the published one: ldm-lite convert vq-f4 runs/vq-f4 --yes"
    assert capsys.readouterr().out == line + (fetch if name == "vq-f4" else "") + "\n"


def test_a_recipe_learns_from_classes_evenly_and_goes_on_as_the_same_run(here, monkeypatch, capsys):
    for i, path in enumerate(sorted((here / "mine").iterdir())):
        folder = here / "mine" / ("common" if i < 20 else "rare")
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    seen = []
    step = DiffusionTask.step
    monkeypatch.setattr(DiffusionTask, "step", lambda self, b, i: seen.extend(b["label"].tolist()) or step(self, b, i))
    line = ["train", "mine-ldm", "--classes", "True", "--balance", "label", "--steps", "11"]
    assert cli.main([*line, "--out", "whole"]) == 0
    assert len(seen) == 44 and abs(seen.count(0) - 22) <= 1
    seen.clear()
    assert cli.main(["train", "mine-ldm", "--classes", "True", "--steps", "11", "--out", "plain"]) == 0
    assert seen.count(1) < 8
    kill = lambda self, b, i: os.kill(os.getpid(), signal.SIGINT) if i == 5 else None
    monkeypatch.setattr(DiffusionTask, "step", lambda self, b, i: (kill(self, b, i), step(self, b, i))[1])
    assert cli.main([*line, "--out", "parts"]) == 130
    assert cli.main([*line, "--out", "parts"]) == 0
    one, two = (load_file(here / out / "model" / "model.safetensors") for out in ("whole", "parts"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    capsys.readouterr()
    assert "balance: is counted in cached latents; leave out --cache and --data.stream" in refused(
        capsys, *line, "--cache", "False"
    )
    assert "balance: the images have no caption; they have label, z" in refused(
        capsys, *line[:5], "caption", "--steps", "2", "--out", "none"
    )


def stopped_at(step: int, monkeypatch) -> None:
    """The training that follows is asked to stop before this step."""
    plain, left = DiffusionTask.step, [True]

    def asked(self, batch, now):
        if now == step and left:
            left.clear()
            signal.raise_signal(signal.SIGTERM)
        return plain(self, batch, now)

    monkeypatch.setattr(DiffusionTask, "step", asked)


@pytest.mark.parametrize("cache", ["True", "False"])
def test_a_run_does_not_go_on_with_another_first_stage_of_the_same_name(here, monkeypatch, capsys, cache):
    line = ["train", "mine-ldm", "--steps", "3", "--cache", cache]
    stopped_at(1, monkeypatch)
    assert cli.main(line) == 130
    run, old = here / "runs/mine-ldm", files(here / "model")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    torch.manual_seed(1)
    latent_diffusion().save(here / "model")
    capsys.readouterr()
    said = refused(capsys, *line)
    assert said.endswith("the first stage model has changed since it began; put the old one back, or --restart")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for name, content in old.items():
        (here / "model" / name).write_bytes(content)
    assert cli.main(line) == 0
    latent_diffusion().save(here / "model")
    assert cli.main(line) == 0 and "is finished" in capsys.readouterr().out
    assert cli.main([*line, "--restart"]) == 0


def test_a_run_that_is_older_than_the_mark_of_its_first_stage_goes_on(here, monkeypatch):
    stopped_at(1, monkeypatch)
    line = ["train", "mine-ldm", "--steps", "3"]
    assert cli.main(line) == 130
    mark = here / "runs/mine-ldm/run.json"
    there = read(mark)
    del there["about"][runs.STAGE]
    write(mark, there)
    assert cli.main(line) == 0 and read(mark) == there


def unscaled(here: Path, bottleneck: str = "kl") -> tuple[float, float]:
    """A first stage as convert leaves it, without a scale; returns the deviations of its latents of what is learned:
    of draws and of means."""
    torch.manual_seed(0)
    stage = autoencoder(bottleneck)
    with torch.no_grad():
        stage.quant_conv.weight *= 20
    store(stage, here / "bare")
    images = dataset(DataConfig("mine", 16))
    image = torch.stack([images[i]["image"] for i in range(22)])
    many = image.repeat(30, 1, 1, 1)  # of one draw of so few the deviation is 5 % off
    with torch.no_grad():
        return float(stage.encode(many, sample=True).std()), float(stage.encode(image).std())


def scale_in(folder: Path) -> float:
    return float(LatentDiffusion.load(folder).first_stage.scale)


@contextmanager
def encoding_stopped(monkeypatch) -> Iterator[None]:
    """Ctrl-C where a run would encode."""
    with monkeypatch.context() as m:
        m.setattr("ldm_lite.data.cache.cache_latents", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        yield


@pytest.mark.parametrize("cache", ["True", "False"])
def test_the_scale_of_a_first_stage_that_has_none_is_measured_once_and_goes_with_the_run(
    here, monkeypatch, capsys, cache
):
    drawn, mean = unscaled(here)
    line = ["train", "mine-ldm", "--first_stage", "bare", "--steps", "3", "--cache", cache]
    stopped_at(1, monkeypatch)
    assert cli.main(line) == 130
    run = here / "runs/mine-ldm"
    scale = read(run / "scale.json")["scale"]
    assert scale == pytest.approx(1 / drawn, rel=0.15) and scale < 0.8 / mean
    assert f"bare has no scale of its latents: {scale:.5g}, measured on 22 images" in capsys.readouterr().out
    if cache == "True":
        kept = latents(run / "latents")
        z = torch.cat([torch.tensor(file["z"]) for file in kept.values()])
        assert float(z.std()) == pytest.approx(scale * mean, rel=0.02)
    monkeypatch.setattr(runs, "measure_scale", lambda *_: pytest.fail("measured again"))
    assert cli.main(line) == 0
    assert scale_in(run) == scale
    assert f"- latents: scaled by {scale:.5g}, measured on 22 images" in (run / "model/card.md").read_text()
    if cache == "True":
        assert latents(run / "latents") == kept


def test_a_run_that_was_stopped_while_it_encoded_keeps_its_scale_and_other_data_are_measured_anew(here, monkeypatch):
    unscaled(here)
    line, run = ["train", "mine-ldm", "--first_stage", "bare"], here / "runs/mine-ldm"
    with encoding_stopped(monkeypatch):
        assert cli.main(line) == 130
        there = read(run / "scale.json")
        write(run / "scale.json", there | {"scale": 0.5})  # as measured on another machine
        assert cli.main(line) == 130
        assert read(run / "scale.json")["scale"] == 0.5
        assert cli.main([*line, "--data.count", "9"]) == 130
        assert read(run / "scale.json")["images"] == 9
        assert cli.main(line) == 130
        assert read(run / "scale.json") == there
        write(run / "scale.json", there | {"scale": 0.5})
    assert cli.main(line) == 0 and scale_in(run) == 0.5


def test_what_has_a_scale_or_began_without_keeps_it(here, monkeypatch):
    unscaled(here, "vq")
    assert cli.main(["train", "mine-ldm", "--first_stage", "bare", "--out", "vq"]) == 0
    assert cli.main(["train", "mine-ldm", "--out", "own"]) == 0
    assert scale_in(here / "vq") == 1 and scale_in(here / "own") == pytest.approx(1.1)
    unscaled(here)
    line = ["train", "mine-ldm", "--first_stage", "bare", "--steps", "3", "--out", "old"]
    with monkeypatch.context() as m:
        m.setattr(runs, "scale_latents", lambda *_: None)  # as before there was such a measure
        stopped_at(1, m)
        assert cli.main(line) == 130
    assert cli.main(line) == 0 and scale_in(here / "old") == 1
    begun = ["train", "mine-ldm", "--first_stage", "old", "--init", "old", "--out", "begun"]
    assert cli.main(begun) == 0 and scale_in(here / "begun") == 1
    assert not any((here / out / "scale.json").exists() for out in ("vq", "own", "old", "begun"))


def test_latents_for_several_runs_are_in_one_scale_that_is_measured_once(here, monkeypatch, capsys):
    drawn, mean = unscaled(here)
    encode = ["encode", "bare", "mine", "--size", "16", "-o", "latents"]
    assert cli.main(encode) == 0
    scale = read(here / "latents/scale.json")["scale"]
    assert scale == pytest.approx(1 / drawn, rel=0.15) and scale < 0.8 / mean
    assert f", scaled by {scale:.5g} as measured on 22 images" in capsys.readouterr().out
    kept = latents(here / "latents")
    line = ["train", "mine-ldm", "--first_stage", "bare", "--latents"]
    with monkeypatch.context() as m:
        m.setattr(runs, "measure_scale", lambda *_: pytest.fail("measured again"))
        assert cli.main(encode) == 0 and cli.main([*line, "latents", "--out", "one"]) == 0
        assert cli.main([*line, "latents", "--train.seed", "5", "--out", "two"]) == 0
    assert scale_in(here / "one") == scale_in(here / "two") == scale and latents(here / "latents") == kept
    assert "- latents: scaled by" in (here / "one/model/card.md").read_text()
    assert cli.main([*line, "others", "--out", "three"]) == 0  # a run encodes what is not there, for others too
    with monkeypatch.context() as m:
        m.setattr(runs, "measure_scale", lambda *_: pytest.fail("measured again"))
        assert cli.main([*line, "others", "--out", "four"]) == 0
    assert scale_in(here / "three") == scale_in(here / "four") != 1
    (here / "latents/scale.json").unlink()  # as an older version left them
    for again in (encode, [*line, "latents", "--out", "five"]):
        assert "other images or settings, or in no scale; choose another" in refused(capsys, *again)
    assert latents(here / "latents") == kept


def test_of_runs_that_measure_the_scale_of_a_folder_at_once_the_first_is_right(here, monkeypatch):
    unscaled(here)
    own, mark = runs.measure_scale, here / "latents/scale.json"

    def overtaken(stage, images):
        measured = own(stage, images)
        with monkeypatch.context() as m:
            m.setattr(runs, "measure_scale", own)
            assert cli.main(["encode", "bare", "mine", "--size", "16", "-o", "latents"]) == 0
        write(mark, read(mark) | {"scale": 0.5})  # another machine's would differ in its last bits
        for path in (here / "latents").glob("*.safetensors"):
            path.unlink()
        return measured

    monkeypatch.setattr(runs, "measure_scale", overtaken)
    assert cli.main(["train", "mine-ldm", "--first_stage", "bare", "--latents", "latents"]) == 0
    assert scale_in(here / "runs/mine-ldm") == 0.5 == read(mark)["scale"]


def test_latents_of_a_folder_are_in_its_scale_whatever_a_run_without_them_had_measured(here, monkeypatch):
    unscaled(here)
    line, run = ["train", "mine-ldm", "--first_stage", "bare"], here / "runs/mine-ldm"
    with encoding_stopped(monkeypatch):
        assert cli.main(line) == 130
        write(run / "scale.json", read(run / "scale.json") | {"scale": 0.5})
    assert cli.main(["encode", "bare", "mine", "--size", "16", "-o", "latents"]) == 0
    assert cli.main([*line, "--latents", "latents"]) == 0
    assert scale_in(run) == read(here / "latents/scale.json")["scale"] == read(run / "scale.json")["scale"] != 0.5


def test_the_scale_of_a_folder_is_of_its_images_and_of_nothing_else(here, capsys):
    unscaled(here)
    line, mark = ["encode", "bare", "mine", "--size", "16", "-o", "latents"], here / "latents/scale.json"
    assert cli.main(line) == 0
    there = read(mark)
    for path in (here / "latents").glob("*.safetensors"):
        path.unlink()  # as if it had been stopped before the first
    assert cli.main([*line, "--split", "validation"]) == 0 and read(mark)["images"] == 1
    for wrong in ([], {"scale": "1"}, {"own": 1}):
        write(mark, wrong)
        assert "scale.json: is no scale of latents; choose another folder" in refused(capsys, *line)
        assert read(mark) == wrong
    plain = ["train", "mine-ldm", "--first_stage", "bare", "--latents", "others", "--cache", "False"]
    assert cli.main(plain) == 0 and not (here / "others").exists() and there["images"] == 22
