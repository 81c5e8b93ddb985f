"""The command line: what it does, and that a mistake is one line, exit status 2, and nothing overwritten."""

import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from ldm_lite import cli, runs
from ldm_lite.autoencoder import Autoencoder, AutoencoderConfig
from ldm_lite.budget import budget
from ldm_lite.checkpoints import save_compvis
from ldm_lite.config import InputError, to_dict, write
from ldm_lite.data import scenes
from ldm_lite.latent import LatentDiffusion, restored, store
from ldm_lite.losses import LossConfig
from ldm_lite.presets import PRESETS, AutoencoderRecipe, DataConfig, DiffusionRecipe, begin
from ldm_lite.training import AutoencoderTask, TrainConfig
from ldm_lite.unet import UNetConfig

STAGE = AutoencoderRecipe(
    AutoencoderConfig(channels=2, width=4, mult=(1, 2), blocks=1, mid_attention=False),
    DataConfig(size=16, count=12),
    TrainConfig(steps=3, batch=4, warmup=0, precision="fp32"),
)
WHOLE = DiffusionRecipe(
    "tiny-kl2",
    UNetConfig(channels=2, width=8, mult=(1, 2), blocks=1, heads=1, vector=8),
    labels=scenes.LABELS,
    data=DataConfig(size=16, count=12),
    train=TrainConfig(steps=3, batch=4, warmup=0, precision="fp32"),
)


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """A folder of one's own, tiny presets, and few pictures to judge by."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny-kl2", STAGE)
    monkeypatch.setitem(PRESETS, "tiny-ldm2", WHOLE)
    monkeypatch.setattr(runs, "JUDGED", 16)
    monkeypatch.setattr(runs, "RECONSTRUCTED", 16)
    monkeypatch.setattr(runs, "STEPS", 2)
    return tmp_path


def refused(capsys, *arguments: str) -> str:
    """The one line that a mistake leaves on stderr."""
    assert cli.main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if not line.startswith(("encoding", "\r"))]
    assert len(lines) == 1 and lines[0].startswith("ldm-lite: "), lines
    return lines[0]


@pytest.fixture
def model(here) -> str:
    torch.manual_seed(0)
    WHOLE.build(STAGE.build()).save(here / "model")
    return "model"


def photographs(folder, n=5, size=(20, 24)):
    for i in range(n):
        folder.joinpath("holiday").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (40 * (i % 6), 90, 120)).save(folder / "holiday" / f"{i}.png")
    return folder


# What it does -------------------------------------------------------------------------------------------------------


def test_training_a_denoiser_trains_its_first_stage_first_and_leaves_weights_with_a_card(here, capsys):
    assert cli.main(["train", "tiny-ldm2"]) == 0
    stage, whole = here / "runs/tiny-kl2", here / "runs/tiny-ldm2"
    assert runs.finished(stage) and runs.finished(whole)
    card = (whole / "model/card.md").read_text()
    assert "`ldm-lite train tiny-ldm2`" in card and "3 steps of 4 images" in card
    numbers = json.loads((whole / "model/metrics.json").read_text())
    assert {"psnr", "psnr_without_texture", "validation_loss", "label_read_back"} <= numbers.keys()
    assert (whole / "samples.png").is_file() and (stage / "reconstructions.png").is_file()
    assert 0 < float(LatentDiffusion.load(whole).first_stage.scale) != 1


def test_a_first_stage_that_is_trained_first_reads_the_same_columns(here, capsys):
    datasets = pytest.importorskip("datasets")
    held = []
    for i in range(9):
        file = io.BytesIO()
        Image.new("RGB", (17, 19), (25 * i, 90, 200)).save(file, "png")
        held.append({"bytes": file.getvalue(), "path": None})
    kinds = datasets.Features({"left": datasets.Image(), "right": datasets.Image()})
    datasets.Dataset.from_dict({"left": held, "right": held}, features=kinds).to_parquet("two.parquet")
    line = ["train", "tiny-ldm2", "--data", "two.parquet", "--labels", "--model.vector", "0"]
    assert cli.main(line) == 2 and "in left, right; choose one as image_key" in capsys.readouterr().err
    assert cli.main([*line, "--data.image_key", "right"]) == 0
    card = (here / "runs/tiny-kl2/model/card.md").read_text()
    assert "`ldm-lite train tiny-kl2 --data two.parquet --data.image_key right`" in card


def test_a_run_is_one_wherever_its_folder_is_reached_from(here):
    (here / "runs/mine").mkdir(parents=True)
    (here / "link").symlink_to(here / "runs/mine")
    with runs.locked(here / "runs/mine"):
        for other in (Path("link"), Path("runs/../runs/mine")):
            with pytest.raises(InputError, match="another command is at work in it"), runs.locked(other):
                pass
    with runs.locked(Path("link")):
        pass


def test_the_latent_scale_gives_unit_variance_on_held_out_scenes(here):
    assert cli.main(["train", "tiny-kl2"]) == 0
    assert 0.8 < json.loads((here / "runs/tiny-kl2/model/metrics.json").read_text())["latent_std"] < 1.2


def test_a_finished_run_says_so_and_restart_trains_it_anew(here, capsys):
    assert cli.main(["train", "tiny-kl2"]) == 0
    before = (here / "runs/tiny-kl2/model/model.safetensors").stat().st_mtime_ns
    assert cli.main(["train", "tiny-kl2"]) == 0
    assert "finished" in capsys.readouterr().out
    assert (here / "runs/tiny-kl2/model/model.safetensors").stat().st_mtime_ns == before
    assert cli.main(["train", "tiny-kl2", "--restart", "--train.seed", "1"]) == 0
    assert (here / "runs/tiny-kl2/model/model.safetensors").stat().st_mtime_ns != before


def test_a_folder_of_photographs_trains_both_generic_presets_with_no_edit(here, capsys):
    photographs(here / "mine", 24)
    small = ["--data", "mine", "--data.size", "16", "--steps", "2", "--train.workers", "0", "--train.batch", "4"]
    small += ["--model.width", "8"]
    assert cli.main(["train", "autoencoder", *small]) == 0
    assert cli.main(["train", "ldm", *small, "--model.head_channels", "8"]) == 0
    assert runs.finished(here / "runs/ldm")
    capsys.readouterr()
    said = refused(capsys, "sample", "runs/ldm", "--rescale", "0.5")
    assert said.endswith("interval: runs/ldm is told nothing that it can do without; leave them out")


@pytest.mark.parametrize("task", ["text", "layout", "map", "upscale", "inpaint"])
def test_a_folder_of_photographs_with_notes_trains_every_generic_task(here, capsys, task):
    photographs(here / "mine", 24)
    lines = []
    for k, path in enumerate(sorted((here / "mine/holiday").iterdir())):
        Image.new("L", (20, 24), k % 3).save(here / "mine" / f"{path.stem}.map.png")
        objects = {"bbox": [[1, 2, 9, 7]], "categories": [("dog", "cat")[k % 2]]}
        about = {"caption": f"{k} dogs", "objects": objects, "segmentation_file_name": f"{path.stem}.map.png"}
        lines.append(json.dumps({"file_name": f"holiday/{path.name}"} | about))
    (here / "mine/metadata.jsonl").write_text("\n".join(lines))
    (here / "mine/segments.txt").write_text("void\nsky\nsea\n")
    small = ["--data", "mine", "--data.size", "16", "--steps", "2", "--train.workers", "0", "--train.batch", "4"]
    small += ["--model.width", "8"]
    assert cli.main(["train", "autoencoder", *small]) == 0
    small += ["--model.head_channels", "8", "--train.sample_every", "1"]
    assert cli.main(["train", f"ldm-{task}", *small]) == 0
    assert len(list((here / f"runs/ldm-{task}/samples").iterdir())) == 2
    model = LatentDiffusion.load(f"runs/ldm-{task}")
    names = {"layout": ("cat", "dog"), "map": ("void", "sky", "sea")}
    assert getattr(model.conditioner, "names", None) == names.get(task)
    assert (here / f"runs/ldm-{task}/samples.png").is_file()


def test_a_folder_of_class_folders_trains_a_model_of_these_classes(here):
    for name in ("cat", "dog", "eel"):
        photographs(here / "pets" / name, 8)
        (here / "pets" / name / "holiday").rename(here / "pets" / name / "all")
    small = ["--data", "pets", "--data.size", "16", "--steps", "2", "--train.batch", "4", "--first_stage", "pixels"]
    small += ["--model.channels", "3", "--model.width", "8", "--model.head_channels", "8"]
    assert cli.main(["train", "ldm", *small, "--classes", "True"]) == 0
    model = LatentDiffusion.load(here / "runs/ldm")
    assert model.conditioner.names == ("cat", "dog", "eel") and model.denoiser.config.vector == 8
    assert cli.main(["train", "ldm", *small, "--classes", "True"]) == 0  # finished, and the same run
    assert cli.main(["sample", "runs/ldm", "--label", "eel", "-n", "2", "--steps", "2", "--size", "16"]) == 0


def test_data_without_classes_is_refused_before_a_first_stage_is_trained(here, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny-ldm2", replace(WHOLE, labels=(), classes=True))
    photographs(here / "mine", 24)
    said = refused(capsys, "train", "tiny-ldm2", "--data", "mine", "--data.size", "16")
    assert "classes: mine has none" in said and not (here / "runs/tiny-kl2").exists()


@pytest.mark.parametrize(
    ("line", "gib"),
    [
        ("--memory 15GB", 15e9 / 2**30),
        ("--memory=15gib", 15),
        ("--memory 15", 15),
        ("--train.memory 1.5", 1.5),
        ("--train.memory 1.5GiB", 1.5),
    ],
)
def test_memory_is_a_size_in_gb_or_gib_and_without_a_gpu_one_line_says_that_it_is_not_used(here, capsys, line, gib):
    assert cli.main(["train", "tiny-kl2", *line.split()]) == 0
    assert json.loads((here / "runs/tiny-kl2/run.json").read_text())["train"]["memory"] == pytest.approx(gib, rel=1e-5)
    assert capsys.readouterr().out.count("memory: is of a CUDA device, and this is cpu") == 1


@pytest.mark.parametrize("size", ["much", "15 apples", "-3", "15TBs", ""])
def test_a_size_of_memory_that_is_none_is_refused_in_one_line(here, capsys, size):
    said = refused(capsys, "train", "tiny-kl2", "--memory", *([size] if size else []))
    assert said == f"ldm-lite: memory: {size or 'nothing'} is no size; 15GB, 15GiB and 15 (GiB) are"
    assert not (here / "runs").exists()


STILL = ("--steps", "1", "--train.lr", "1e-9")  # weights stay where they begin


def test_a_run_begins_with_the_weights_of_a_trained_model(here, model, capsys):
    assert cli.main(["train", "tiny-ldm2", "--first_stage", model, "--init", model, *STILL]) == 0
    assert "it begins with the weights of model\n" in capsys.readouterr().out
    card = (here / "runs/tiny-ldm2/model/card.md").read_text()
    assert "--init model" in card and "\n- begun with: model\n" in card  # whose own card there is not
    again = ["--first_stage", model, "--init", "runs/tiny-ldm2", "--out", "again", *STILL]
    assert cli.main(["train", "tiny-ldm2", *again]) == 0
    assert "\n- begun with: runs/tiny-ldm2, `ldm-lite train tiny-ldm2 -" in (here / "again/model/card.md").read_text()
    mine, theirs = LatentDiffusion.load("runs/tiny-ldm2"), LatentDiffusion.load(model)
    torch.testing.assert_close(mine.state_dict(), theirs.state_dict(), atol=1e-6, rtol=0)
    assert cli.main(["train", "tiny-kl2", "--init", model, *STILL]) == 0
    mine = restored("runs/tiny-kl2").state_dict()
    for name, weight in theirs.first_stage.state_dict().items():
        if name != "scale":  # which is measured anew
            torch.testing.assert_close(mine[name], weight, atol=1e-6, rtol=0)


def test_what_a_model_was_not_told_begins_anew_and_the_rest_with_its_weights(model):
    torch.manual_seed(1)
    other = replace(WHOLE, labels=("a", "b")).build(LatentDiffusion.load(model).first_stage)
    before = {key: value.clone() for key, value in other.conditioner.state_dict().items()}
    assert begin(other, model) == "it begins with the weights of model, but for 1 of what it is told"
    assert all(torch.equal(value, before[key]) for key, value in other.conditioner.state_dict().items())
    theirs = LatentDiffusion.load(model).denoiser.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in other.denoiser.state_dict().items())


def test_a_model_that_does_not_fit_is_no_beginning(here, model, capsys):
    before = refused(capsys, "train", "tiny-ldm2", "--first_stage", model, "--init", model, "--model.width", "16")
    assert "init: model has another shape, at time.0.weight" in before
    torch.manual_seed(1)
    WHOLE.build(STAGE.build()).save(here / "other")
    line = refused(capsys, "train", "tiny-ldm2", "--first_stage", "other", "--init", model)
    assert "init: model learned in the latents of another first stage; give --first_stage model" in line
    store(STAGE.build(), here / "stage")
    line = refused(capsys, "train", "tiny-ldm2", "--first_stage", model, "--init", "stage")
    assert "init: stage is of another kind, Autoencoder" in line
    assert "nowhere" in refused(capsys, "train", "tiny-ldm2", "--first_stage", model, "--init", "nowhere")
    assert not list(here.glob("runs/*/model"))


def test_sample_writes_a_grid_of_the_labels_asked_for_and_repeats_itself(here, model):
    line = ["sample", model, "--label", "night snow", "-n", "3", "--steps", "2", "--size", "16", "-o", "a.png"]
    assert cli.main(line) == 0
    assert Image.open("a.png").size == (2 + 18 * 2, 2 + 18 * 2)
    first = (here / "a.png").read_bytes()
    assert cli.main(line) == 0
    assert (here / "a.png").read_bytes() == first


@pytest.mark.parametrize(
    ("chosen", "settings"),
    [
        ("", {"sampler": "ddim", "grid": "uniform", "guidance": 2.0, "rescale": 0.0, "interval": (0.0, 1.0)}),
        ("--sampler heun --grid karras", {"sampler": "heun", "grid": "karras"}),
        ("--eta 0.5 --grid original", {"eta": 0.5, "grid": "original"}),
        ("--rescale 0.7 --interval 0.2 0.8", {"rescale": 0.7, "interval": (0.2, 0.8)}),
    ],
)
def test_sample_passes_its_options_to_the_model(here, model, monkeypatch, chosen, settings):
    seen, sample = {}, LatentDiffusion.sample
    monkeypatch.setattr(LatentDiffusion, "sample", lambda *a, **given: seen.update(given) or sample(*a, **given))
    assert cli.main(["sample", model, "-n", "2", "--steps", "2", "--size", "16", *chosen.split()]) == 0
    assert {name: seen[name] for name in settings} == settings
    assert ("eta" in seen) == ("eta" in settings)


def test_sample_says_how_many_steps_it_took(here, model, capsys):
    """The original's grid has as many as fit: 1000 // 7 is 142, and 8 of these begin below 1000."""
    for grid, steps in (("uniform", 7), ("original", 8)):
        assert cli.main(["sample", model, "-n", "1", "--steps", "7", "--size", "16", "--grid", grid]) == 0
        assert f"1 samples, {steps} steps, guidance 2" in capsys.readouterr().out


def test_sample_help_shows_the_labels(here, model, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", model, "--help"])
    assert not stop.value.code
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert "night snow" in shown and "dusk water" in shown


def test_evaluate_writes_the_numbers_it_prints(here, model, capsys):
    line = ["evaluate", model, "-n", "4", "--steps", "2", "--data", "scenes", "--size", "16", "-o", "numbers.json"]
    assert cli.main(line) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((here / "numbers.json").read_text())


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_evaluate_judges_a_first_stage_on_a_folder_of_photographs(bottleneck, here, capsys):
    photographs(here / "mine", 40)
    store(tiny.autoencoder(bottleneck), here / "stage")
    assert cli.main(["evaluate", "stage", "--data", "mine", "--size", "20"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["images"] == 2  # every twentieth is held out
    assert numbers["rfid"] > 0
    bits = {"kl": 16 * 2 * 10 * 10, "vq": math.ceil(10 * 10 * math.log2(5))}[bottleneck]
    assert numbers["latent_bytes"] == math.ceil(bits / 8)
    assert ("codes_used" in numbers) == (bottleneck == "vq")
    assert "psnr_without_texture" not in numbers


def test_evaluate_judges_the_scene_reader(capsys):
    assert cli.main(["evaluate", "scenes-features", "--images", "64"]) == 0
    assert json.loads(capsys.readouterr().out)["label_accuracy"] > 0.98


def test_the_scene_reader_is_no_first_stage(here, capsys):
    photographs(here / "mine", 2)
    assert "reads scenes, and is no first stage" in refused(capsys, "encode", "scenes-features", "mine")


def test_encode_writes_the_latents_that_the_first_stage_gives(here, model):
    from safetensors.torch import load_file

    from ldm_lite.data import ImageFolder

    photographs(here / "mine", 3)
    assert cli.main(["encode", model, "mine", "--size", "16", "-o", "z.safetensors", "--picture", "both.png"]) == 0
    stage, images = LatentDiffusion.load(model).first_stage, ImageFolder("mine", size=16)
    expected = torch.stack([stage.encode(images[i]["image"][None])[0] for i in range(3)])
    torch.testing.assert_close(load_file("z.safetensors")["z"], expected, atol=0.02, rtol=0.02)


@pytest.fixture
def original(here):
    """A first stage as CompVis publishes them, but small: (file, model)."""
    torch.manual_seed(1)
    stage = Autoencoder(AutoencoderConfig(channels=3, width=128, mult=(1, 1), blocks=1, mid_attention=False)).eval()
    save_compvis(stage, here / "original.ckpt")
    return "original.ckpt", stage


def test_convert_reads_an_original_first_stage_and_writes_it_for_diffusers_and_back(here, original):
    file, stage = original
    image = torch.rand(1, 3, 10, 6) * 2 - 1
    assert cli.main(["convert", file, "ours", "--dtype", "fp32", "--scale", "0.5"]) == 0
    torch.testing.assert_close(restored("ours").encode(image), 0.5 * stage.encode(image))
    assert cli.main(["convert", "ours", "theirs", "--dtype", "fp32", "--layout", "diffusers"]) == 0
    assert cli.main(["convert", "theirs", "again", "--dtype", "fp32"]) == 0
    torch.testing.assert_close(restored("again").encode(image), 0.5 * stage.encode(image))


def test_convert_names_what_differs_from_the_original_that_was_expected(here, original, capsys):
    assert "another first stage than the one asked for" in refused(
        capsys, "convert", original[0], "x", "--expect", "kl-f8"
    )
    assert "no such published model; there are kl-f4" in refused(
        capsys, "convert", original[0], "x", "--expect", "nothing"
    )
    assert not (here / "x").exists()
    assert "leave --expect, --scale and --encoder out" in refused(
        capsys, "convert", "scenes-features", "x", "--scale", "2"
    )
    (here / "text.ckpt").write_text("no weights")
    assert "text.ckpt: " in refused(capsys, "convert", "text.ckpt", "x")


@pytest.fixture
def original_faces(here, monkeypatch, original):
    """A whole model as CompVis publishes them, but small: (file, model)."""
    from ldm_lite.conditioners import Unconditional
    from ldm_lite.diffusion import Diffusion, VariancePreserving
    from ldm_lite.presets import UNETS
    from ldm_lite.unet import UNet

    config = UNetConfig(channels=3, width=128, mult=(1, 2), blocks=1, attend_at=(2,), head_channels=32)
    monkeypatch.setitem(UNETS, "celebahq-ldm4", config)
    unet = UNet(config)
    for p in unet.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.05)
    model = LatentDiffusion(original[1], unet, Diffusion(VariancePreserving(end=0.02)), Unconditional()).eval()
    save_compvis(model, here / "faces.ckpt")
    return "faces.ckpt", model


def test_convert_reads_an_original_model_and_writes_a_pipeline_of_diffusers_and_back(here, original_faces, capsys):
    file, model = original_faces
    assert cli.main(["convert", file, "ours", "--dtype", "fp32", "--expect", "celebahq-ldm4", "--scale", "0.5"]) == 0
    assert cli.main(["convert", "ours", "theirs", "--dtype", "fp32", "--layout", "diffusers", "--size", "16"]) == 0
    assert (here / "theirs/model_index.json").is_file() and "MB" in capsys.readouterr().out
    assert cli.main(["convert", "theirs", "again", "--dtype", "fp32"]) == 0
    assert cli.main(["convert", "again", "back.ckpt", "--dtype", "fp32", "--layout", "compvis"]) == 0
    assert cli.main(["convert", "back.ckpt", "end", "--dtype", "fp32", "--expect", "celebahq-ldm4"]) == 0
    model.first_stage.scale.fill_(0.5)
    expected = model.sample({}, steps=2, size=(8, 12))
    for folder in ("ours", "again", "end"):
        torch.testing.assert_close(LatentDiffusion.load(folder).sample({}, steps=2, size=(8, 12)), expected)


def test_a_converted_original_draws_at_its_own_size(here, original_faces):
    from ldm_lite.checkpoints import save_diffusers

    assert cli.main(["convert", original_faces[0], "ours", "--expect", "celebahq-ldm4"]) == 0
    assert cli.trained_size("ours") == 256
    assert cli.main(["convert", original_faces[0], "small", "--expect", "celebahq-ldm4", "--size", "16"]) == 0
    assert cli.main(["sample", "small", "-n", "1", "--steps", "1", "-o", "a.png"]) == 0
    assert Image.open("a.png").size == (16, 16)
    save_diffusers(original_faces[1], here / "theirs", torch.float32, 24)
    assert cli.main(["convert", "theirs", "again", "--size", "24"]) == 0
    assert cli.trained_size("again") == 24


def test_convert_takes_one_part_of_a_whole_model(here, original_faces, model):
    file, faces = original_faces
    assert (
        cli.main(["convert", file, "unet", "--dtype", "fp32", "--part", "denoiser", "--expect", "celebahq-ldm4"]) == 0
    )
    torch.testing.assert_close(restored("unet").state_dict(), faces.denoiser.state_dict())
    assert cli.main(["convert", model, "stage", "--dtype", "fp32", "--part", "first_stage"]) == 0
    torch.testing.assert_close(restored("stage").state_dict(), restored(model).first_stage.state_dict())


def test_convert_says_what_an_original_model_needs(original_faces, capsys):
    file = original_faces[0]
    assert "the number of heads is in no shape" in refused(capsys, "convert", file, "x", "--scale", "1")
    assert "another denoiser than the one asked for: width" in refused(
        capsys, "convert", file, "x", "--expect", "cin256-v2"
    )
    assert "did you mean celebahq-ldm4?" in refused(capsys, "convert", file, "x", "--expect", "celebahq")
    assert "part: decoder is not one of first_stage, denoiser" in refused(
        capsys, "convert", file, "x", "--part", "decoder"
    )
    cli.main(["convert", file, "stage", "--part", "first_stage"])
    assert "stage: is Autoencoder and has no parts" in refused(capsys, "convert", "stage", "x", "--part", "denoiser")


def test_convert_halves_the_file_and_keeps_the_pictures(here, model):
    assert cli.main(["convert", model, "half"]) == 0
    ratio = (here / "model/model.safetensors").stat().st_size / (here / "half/model.safetensors").stat().st_size
    assert 1.6 < ratio < 2.01
    one, other = LatentDiffusion.load("model"), LatentDiffusion.load("half")
    batch = {"label": torch.tensor([1, 5])}
    images = [m.sample(batch, steps=2, size=16) for m in (one, other)]
    torch.testing.assert_close(*images, atol=0.03, rtol=0)


def test_settings_are_read_from_a_file_and_then_overridden(here, capsys):
    from ldm_lite.config import write

    write(here / "mine.yaml", STAGE)
    assert cli.main(["train", "tiny-kl2", "--config", "mine.yaml", "--steps", "2"]) == 0
    assert "2 steps of 4 images" in (here / "runs/tiny-kl2/model/card.md").read_text()
    capsys.readouterr()
    (here / "wrong.yaml").write_text("model:\n  widht: 3\n")
    assert "widht" in refused(capsys, "train", "tiny-kl2", "--config", "wrong.yaml")


# Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sampel", "did you mean sample?"),
        ("train tiny-kl3", "did you mean tiny-kl2?"),
        ("train", "a preset"),
        ("train tiny-kl2 --train.stepz 5", "did you mean --train.steps?"),
        ("train tiny-kl2 --train.lr -1", "lr: -1.0 is not above 0"),
        ("train tiny-kl2 --train.lr much", "--train.lr"),
        ("train tiny-kl2 --steps 0", "steps: 0 is not 1 or more"),
        ("train tiny-kl2 --data.size 17", "size: 17 is not divisible by f = 2"),
        (
            "train tiny-kl2 --data.size 16 --loss.adversarial 1 --loss.start 0",
            "critic_layers: 3 need pictures of 24 pixels or more, not 16; give --loss.critic_layers 2",
        ),
        ("train tiny-ldm2 --data.size 18", "size: 18 is not divisible by 4"),
        ("train tiny-kl2 --data nowhere", "nowhere"),
        ("train tiny-kl2 --data empty", "empty"),
        ("train autoencoder", "--data PATH"),
        ("train ldm --data empty", "train one with: ldm-lite train autoencoder"),
        ("train tiny-kl2 --data mine --data.size 32", "smaller than"),
        (
            "train ldm --data mine --data.size 16 --first_stage pixels --model.channels 3 --classes True",
            "classes: mine has none",
        ),
        ("train tiny-kl2 --config nowhere.yaml", "nowhere.yaml: no such file"),
        ("sample nothing", "nothing: no such folder"),
        ("sample empty", "not a model's folder"),
        ("sample model --label nigth", "label"),
        ("sample model --sampler ddmi", "did you mean ddim?"),
        ("sample model --grid karas", "did you mean karras?"),
        ("sample model --sampler heun --eta 1", "eta: heun has no such argument; ddim has"),
        ("sample model --eta 1.5", "eta: 1.5 is not between 0 and 1"),
        ("sample model --rescale 2", "rescale: 2.0 is not between 0 and 1"),
        ("sample model --interval 0.8 0.2", "interval: 0.8 0.2 are not two times"),
        ("sample model -n 0", "n: 0 is not 1 or more"),
        ("sample model --steps 0", "steps: 0 is not 1 or more"),
        ("sample model --steps -3", "steps: -3 is not 1 or more"),
        ("sample model --size 18", "size: 18"),
        ("sample model -o picture.txt", "picture.txt"),
        ("encode model", "a model and a folder"),
        ("encode model mine --size 17", "size: 17 is not divisible"),
        ("convert model mine", "mine: holds something other"),
        ("demo --minutes -1", "minutes: -1.0 is not above 0"),
        ("demo --out mine", "mine: is not empty"),
    ],
)
def test_a_mistake_is_one_line_and_overwrites_nothing(here, model, capsys, line, words):
    photographs(here / "mine")
    (here / "empty").mkdir()
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    assert words in refused(capsys, *line.split())
    after = {p: p.read_bytes() for p in here.rglob("*") if p.is_file() and "runs" not in p.parts}
    assert after == before


@pytest.mark.parametrize("damage", ["truncated", "another model", "not weights"])
def test_damaged_weights_are_named(here, model, capsys, damage):
    file = here / "model/model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "not weights":
        file.write_text("hello")
    else:
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(3)}, file)
    assert "model.safetensors" in refused(capsys, "sample", model, "-n", "1")


def test_an_out_folder_of_another_run_is_left_alone(here, capsys):
    assert cli.main(["train", "tiny-kl2", "--out", "x"]) == 0
    before = (here / "x/model/model.safetensors").read_bytes()
    capsys.readouterr()
    assert "holds another run" in refused(capsys, "train", "tiny-kl2", "--out", "x", "--loss.kl", "0.5")
    assert "holds another run" in refused(capsys, "train", "tiny-ldm2", "--out", "x")
    photographs(here / "mine")
    assert "is not empty" in refused(capsys, "train", "tiny-kl2", "--out", "mine")
    assert "holds no run" in refused(capsys, "train", "tiny-kl2", "--out", "mine", "--restart")
    assert (here / "x/model/model.safetensors").read_bytes() == before


def test_an_unreadable_photograph_is_skipped_or_stops_a_strict_run(here, capsys):
    photographs(here / "mine", 8)
    (here / "mine/holiday/3.png").write_bytes(b"not a picture")
    line = ["train", "tiny-kl2", "--data", "mine", "--out"]
    assert cli.main([*line, "kind"]) == 0
    capsys.readouterr()
    assert "3.png" in refused(capsys, *line, "strict", "--data.strict", "True")


def test_a_place_that_cannot_be_written_is_said_before_any_work(here, model, capsys, monkeypatch):
    (here / "file").write_text("in the way")
    monkeypatch.setattr(LatentDiffusion, "load", lambda name: pytest.fail("loaded before the output was checked"))
    assert "file" in refused(capsys, "sample", model, "-o", "file/out.png")


@pytest.mark.parametrize("more", [[], ["--restart"]])
def test_two_commands_do_not_run_into_one_folder(here, monkeypatch, capsys, more):
    plain, second = AutoencoderTask.step, []

    def step(self, batch, now):
        if now == 1:
            second.append(cli.main(["train", "tiny-kl2", "--steps", "3", *more]))
        return plain(self, batch, now)

    monkeypatch.setattr(AutoencoderTask, "step", step)
    assert cli.main(["train", "tiny-kl2", "--steps", "3"]) == 0 and second == [2]
    assert "tiny-kl2: another command is at work in it; wait for it, or choose another --out" in capsys.readouterr().err
    assert cli.main(["train", "tiny-kl2", "--steps", "3"]) == 0


def test_an_interrupted_run_is_resumed_by_the_same_command(here, monkeypatch, capsys):
    import signal

    plain = AutoencoderTask.step

    def step(self, batch, number):
        if number == 1 and not (here / "asked").exists():
            (here / "asked").touch()
            signal.raise_signal(signal.SIGINT)
        return plain(self, batch, number)

    monkeypatch.setattr(AutoencoderTask, "step", step)
    assert cli.main(["train", "tiny-kl2"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not runs.finished(here / "runs/tiny-kl2")
    assert cli.main(["train", "tiny-kl2"]) == 0
    assert cli.main(["train", "tiny-kl2", "--out", "again"]) == 0
    same = [(here / folder / "model/model.safetensors").read_bytes() for folder in ("runs/tiny-kl2", "again")]
    assert same[0] == same[1]


def test_the_settings_of_a_condition_are_options_and_of_none_there_are_none(capsys):
    from ldm_lite.cli import options
    from ldm_lite.config import InputError
    from ldm_lite.presets import PRESETS, DiffusionRecipe

    text = options(DiffusionRecipe, PRESETS["scenes-text"], ["--condition.length", "24"], "train")
    assert text.condition.length == 24 and text.condition.width == PRESETS["scenes-text"].condition.width
    bare = PRESETS["scenes-ldm4"]
    assert options(DiffusionRecipe, bare, [], "train") == bare
    with pytest.raises(InputError, match=r"^--condition\.length: no such option of train"):
        options(DiffusionRecipe, bare, ["--condition.length", "24"], "train")
    with pytest.raises(InputError, match="vocabulary: 9 is less than the 256 bytes and the end"):
        options(DiffusionRecipe, PRESETS["scenes-text"], ["--condition.vocabulary", "9"], "train")


@pytest.mark.parametrize("content", ["{}", "[]", '{"about": {}, "train": 3}', '"mine"'])
def test_a_run_json_that_is_none_is_named(here, capsys, content):
    folder = here / "runs/mine"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(content)
    (folder / "log.csv").write_text("step,loss\n1,0.5\n")
    for line in (["status", "runs/mine"], ["train", "tiny-kl2", "--out", "runs/mine"]):
        assert "run.json: is no record of a run; choose another folder, or --restart" in refused(capsys, *line)
    assert (folder / "run.json").read_text() == content


@pytest.mark.parametrize(("said", "words"), [("", "stopped"), ("stopped at step 3", "stopped at step 3")])
def test_an_interruption_is_told_of(capsys, monkeypatch, said, words):
    monkeypatch.setattr(cli, "status", lambda rest: (_ for _ in ()).throw(KeyboardInterrupt(*[said] * bool(said))))
    assert cli.main(["status", "run"]) == 130
    assert capsys.readouterr().err.strip() == f"ldm-lite: {words}"


def test_what_the_system_refuses_is_one_line_with_the_place(here, capsys):
    said = refused(capsys, "train", "tiny-kl2", "--data", "x" * 300)
    assert "x" * 300 in said and said.endswith(": File name too long")
    (here / "file").write_text("mine")
    said = refused(capsys, "train", "tiny-kl2", "--out", "file/run")
    assert "file" in said and (here / "file").read_text() == "mine"


def test_a_device_that_is_not_there_is_told_of_before_anything_else(here, capsys, monkeypatch):
    monkeypatch.setenv("LDM_LITE_DEVICE", "cpu")  # what the command sets is put back
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runs, "train", lambda *_: pytest.fail("trains"))
    monkeypatch.setattr("ldm_lite.processes.alone", lambda *_: pytest.fail("touches the folder"))
    assert "cuda" in refused(capsys, "train", "tiny-kl2", "--device", "cuda")


# How far a run is ---------------------------------------------------------------------------------------------------


def under_way(folder, steps, **more):
    """A run of 200 steps of which some are logged, half a second each."""
    folder.mkdir(parents=True)
    train = {"steps": 200, "minutes": None, "batch": 8} | more
    (folder / "run.json").write_text(json.dumps({"about": {}, "train": train}))
    lines = [f"{k},{1 / k:.6g},0.1,0.001,{k / 2:.2f}" for k in range(1, steps + 1)]
    (folder / "log.csv").write_text("\n".join(["step,loss,grad,lr,seconds", *lines]) + "\n")


def test_status_says_how_far_a_run_is_at_what_rate_and_how_long_it_takes(here, capsys):
    under_way(here / "runs/mine", 120)
    with open(here / "runs/mine/log.csv", "a") as file:
        file.write("121,0.1,0.")  # being written at this moment
    (here / "runs/mine/checkpoint.pt").write_bytes(b"")
    assert cli.main(["status", "runs/mine"]) == 0
    said = capsys.readouterr().out.splitlines()
    loss = sum(1 / k for k in range(21, 121)) / 100
    assert said[0] == f"mine: step 120 of 200 (60 %), loss {loss:.4f}, as a mean of the last 100 steps"
    assert said[1] == "rate: 2.00 steps/s, 16.0 images/s; 1 min 0 s so far, 0 min 40 s left at this rate"
    assert said[2].startswith("last checkpoint: 0 min") and len(said) == 3
    under_way(here / "runs/young", 3)
    assert runs.status(here / "runs/young")[0].endswith(f"loss {11 / 18:.4f}, as a mean of the last 3 steps")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00words\n\x9c\n", b"step,loss,seconds\nnone,1,2\n", b"loss\n0.5\n", b"step,loss\n1,0.5\n"]
)
def test_a_log_that_is_none_is_named(here, capsys, content):
    under_way(here / "runs/mine", 3)
    (here / "runs/mine/log.csv").write_bytes(content)
    assert "log.csv: is no log of a run; delete it, and" in refused(capsys, "status", "runs/mine")


@pytest.mark.parametrize(
    ("card", "of", "stated"),
    [
        ("NVIDIA H200", "an H200's", 989e12),
        ("Tesla T4", "a T4's", 65e12),
        ("NVIDIA A100-SXM4-80GB", "an A100's", 312e12),
        ("NVIDIA T400", "", 1.0),
        (None, "", 1.0),
    ],
)
@pytest.mark.parametrize("preset", ["tiny-ldm2", "tiny-kl2"])
def test_status_says_which_share_of_its_card_s_stated_rate_a_run_reaches(here, monkeypatch, preset, card, of, stated):
    stage = replace(STAGE, loss=LossConfig(perceptual=0.0))
    recipe = stage if preset == "tiny-kl2" else replace(WHOLE, cache=False)
    cost = budget(recipe)
    images = 0.34 * 2 * stated / (cost.training + cost.encoding)  # on two such cards, where each step encodes
    under_way(here / "runs/mine", 120)
    run = {"about": to_dict(runs.about(recipe)), "train": to_dict(recipe.train) | {"batch": images / 2}}  # 2 steps/s
    run |= {"card": card, "processes": 2} if card else {}
    write(here / "runs/mine/run.json", run)
    said = [line for line in runs.status(here / "runs/mine") if "stated rate" in line]
    assert said == ([f"34 % of {of} stated rate"] if of else [])
    write(here / "runs/mine/run.json", run | {"about": run["about"] | {"first_stage": "gone"}})
    assert not any("stated rate" in line for line in runs.status(here / "runs/mine"))


@pytest.mark.parametrize(("memory", "said"), [("4.27", ["memory: 4.3 GiB of the GPU at most"]), ("", [])])
def test_status_says_what_memory_a_run_takes_unless_it_goes_on_without_a_gpu(here, memory, said):
    under_way(here / "runs/mine", 2)
    log = here / "runs/mine/log.csv"
    first, *rest = log.read_text().splitlines()
    log.write_text("\n".join([first + ",memory", rest[0] + ",4.27", rest[1] + f",{memory}"]) + "\n")
    assert [line for line in runs.status(here / "runs/mine") if "memory" in line] == said


def test_a_reader_that_has_read_enough_is_no_error(here):
    under_way(here / "runs/mine", 120)
    command = f"{sys.executable} -m ldm_lite status runs/mine | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=here)
    assert done.returncode == 0 and done.stderr == ""


def test_status_of_a_finished_run_and_of_one_that_has_not_begun(here, capsys):
    assert cli.main(["train", "tiny-kl2"]) == 0
    capsys.readouterr()
    assert cli.main(["status", "runs/tiny-kl2"]) == 0
    said = capsys.readouterr().out
    assert "(100 %)" in said and "finished: runs/tiny-kl2/model/card.md" in said and "left" not in said
    under_way(here / "runs/new", 0)
    assert cli.main(["status", "runs/new"]) == 0
    assert capsys.readouterr().out.strip() == "new: no step yet; latents may be encoded first"
    assert refused(capsys, "status", "runs").endswith("runs: holds no run; one that was started has run.json")


# The device ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_asked_for_and_not_there_is_said_before_anything_is_written(here, capsys, monkeypatch):
    monkeypatch.setenv("LDM_LITE_DEVICE", "")
    said = refused(capsys, "train", "tiny-kl2", "--device", "cuda")
    assert "device: there is no cuda here" in said and said.endswith("leave --device out to take what there is")
    assert not (here / "runs").exists()


def test_the_cpu_can_be_asked_for_and_other_words_are_refused(here, capsys, monkeypatch):
    monkeypatch.setenv("LDM_LITE_DEVICE", "")
    assert cli.main(["train", "tiny-kl2", "--device=cpu"]) == 0
    capsys.readouterr()
    line = ("train", "tiny-kl2", "--out", "other", "--device")
    assert refused(capsys, *line, "gpu").endswith("device: gpu is not one of cuda, mps, cpu")
    assert refused(capsys, *line).endswith("cuda, mps or cpu is needed after --device")


def test_a_lack_of_memory_is_one_line_that_says_what_to_make_smaller(monkeypatch, capsys):
    def crowded(arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(cli, "sample", crowded)
    assert cli.main(["sample", "model"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ldm-lite: memory: there is no room for this on the device; take fewer at once (-n, ")
    assert all(part in line for part in ("--size", "--window", "--device cpu"))
    monkeypatch.setattr(cli, "sample", lambda arguments: {}["a mistake of ours"])
    with pytest.raises(KeyError):
        cli.main(["sample", "model"])
