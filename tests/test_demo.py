"""The main job, on models of a few thousand weights: what it leaves behind, and how it goes on."""

import json
import re
import signal

import pytest
from PIL import Image

from ldm_lite import cli, runs
from ldm_lite.autoencoder import AutoencoderConfig
from ldm_lite.data import scenes
from ldm_lite.latent import LatentDiffusion
from ldm_lite.presets import PRESETS, AutoencoderRecipe, DataConfig, DiffusionRecipe
from ldm_lite.training import DiffusionTask, TrainConfig
from ldm_lite.unet import UNetConfig

LINE = ["demo", "--minutes", "0.01", "--out", "demo"]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Tiny presets in place of the demo's, in a folder of one's own."""
    monkeypatch.chdir(tmp_path)
    train = TrainConfig(steps=3, batch=4, warmup=0, precision="fp32")
    stage = AutoencoderRecipe(
        AutoencoderConfig(channels=2, width=4, mult=(1, 2), blocks=1, mid_attention=False),
        DataConfig(size=16, count=12),
        train,
    )
    unet = UNetConfig(channels=2, width=8, mult=(1, 2), blocks=1, heads=1, vector=8)
    whole = DiffusionRecipe("demo-kl4", unet, labels=scenes.LABELS, data=DataConfig(size=16, count=12), train=train)
    monkeypatch.setitem(PRESETS, "demo-kl4", stage)
    monkeypatch.setitem(PRESETS, "demo-ldm4", whole)
    monkeypatch.setattr(runs, "JUDGED", 32)
    monkeypatch.setattr(runs, "STEPS", 2)
    return tmp_path


def test_it_leaves_pictures_numbers_a_report_and_a_model_that_samples(small):
    assert cli.main(LINE) == 0
    out = small / "demo"
    for name in ("reconstructions.png", "samples.png", "loss.png"):
        assert min(Image.open(out / name).size) >= 34
    numbers = json.loads((out / "metrics.json").read_text())
    assert numbers["samples"] == 32 and 0 <= numbers["label_read_back"] <= 1
    assert (
        numbers["first_stage_steps"] >= 20 and numbers["denoiser_steps"] >= 20 and numbers["psnr_without_texture"] > 0
    )
    LatentDiffusion.load("demo")
    assert cli.main(["sample", "demo", "--label", "day sand", "-n", "2", "--steps", "2", "--size", "16"]) == 0


def test_the_report_is_one_page_with_its_pictures_inside_and_all_its_numbers(small):
    assert cli.main(LINE) == 0
    page, numbers = (small / "demo/report.html").read_text(), json.loads((small / "demo/metrics.json").read_text())
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page)
    assert page.count("<img") == 3 == len(re.findall(r'<img[^>]* alt="[^"]{20,}"', page))
    assert f"{numbers['psnr_without_texture']} dB" in page and f"{numbers['label_read_back']:.1%}" in page
    assert f"{numbers['denoiser_steps']:,} steps" in page
    assert all(name in page for name in scenes.LABELS)
    assert not re.search(r"\{\w*\}|\bnan\b", re.sub(r"<style>.*?</style>", "", page, flags=re.S).split("base64")[0])


def test_a_finished_demo_says_so_and_restart_learns_it_anew(small, capsys):
    assert cli.main(LINE) == 0
    before = (small / "demo/report.html").stat().st_mtime_ns
    assert cli.main(LINE) == 0
    assert "--restart" in capsys.readouterr().out
    assert (small / "demo/report.html").stat().st_mtime_ns == before
    assert cli.main([*LINE, "--restart", "--seed", "1"]) == 0
    assert (small / "demo/report.html").stat().st_mtime_ns != before


def test_a_demo_with_other_settings_is_refused(small, capsys):
    assert cli.main(LINE) == 0
    assert cli.main([*LINE, "--seed", "2"]) == 2
    assert "holds a demo with" in capsys.readouterr().err


def test_a_demo_that_goes_on_is_not_emptied_by_another(small, monkeypatch, capsys):
    plain, said = DiffusionTask.step, []

    def step(self, batch, number):
        if number == 3:
            said.append(cli.main([*LINE, "--restart"]))
        return plain(self, batch, number)

    monkeypatch.setattr(DiffusionTask, "step", step)
    assert cli.main(LINE) == 0 and said == [2]
    assert "demo: another command is at work in it" in capsys.readouterr().err


def test_an_interrupted_demo_goes_on_where_it_was(small, monkeypatch, capsys):
    plain, asked = DiffusionTask.step, []

    def step(self, batch, number):
        if number == 3 and not asked:
            asked.append(number)
            signal.raise_signal(signal.SIGINT)
        return plain(self, batch, number)

    monkeypatch.setattr(DiffusionTask, "step", step)
    assert cli.main(LINE) == 130
    assert "the same command" in capsys.readouterr().err and asked
    assert runs.finished(small / "demo/first_stage") and not (small / "demo/report.html").exists()
    stage = (small / "demo/first_stage/model/model.safetensors").stat().st_mtime_ns
    assert cli.main(LINE) == 0
    assert (small / "demo/first_stage/model/model.safetensors").stat().st_mtime_ns == stage
    steps = [int(row.split(",")[0]) for row in (small / "demo/denoiser/log.csv").read_text().splitlines()[1:]]
    assert steps == list(range(1, len(steps) + 1))
