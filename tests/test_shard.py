"""A denoiser of which each rank holds a slice learns what one process learns, and leaves the same files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_processes import ALONE, BETWEEN_TWO, assert_same_run, on_two, trained
from tiny import TRAIN, Pictures, task

from ldm_lite.config import InputError
from ldm_lite.latent import LatentDiffusion
from ldm_lite.training import TrainConfig, fit, load_checkpoint

WIDE = replace(ALONE, batch=12, accumulate=4, clip=0.05, sample_every=8)  # each gradient is clipped
SLICED = replace(BETWEEN_TWO, batch=6, accumulate=2, clip=0.05, sample_every=8, shard=True)
WHOLE = replace(SLICED, shard=False)


def alone(folder: Path) -> None:
    fit(task("diffusion", WIDE), Pictures(), WIDE, folder / "alone")


def slices_are_slices(folder: Path) -> None:
    job = task("diffusion", SLICED)
    trained = [p for p in job.model.parameters() if p.requires_grad]
    held = sum(p.to_local().numel() for p in trained)
    assert held < 0.6 * sum(p.numel() for p in trained)
    average = job.descent.ema.average.values()
    assert sum(v.to_local().numel() for v in average) == held
    assert all(not hasattr(p, "to_local") for p in job.model.first_stage.parameters())


def test_each_rank_holds_about_half_of_what_is_trained_and_of_its_average(tmp_path):
    on_two(tmp_path, slices_are_slices)


def test_two_ranks_with_slices_learn_what_one_process_learns_from_both_their_batches(tmp_path):
    on_two(tmp_path, trained, "diffusion", 8, SLICED)
    alone(tmp_path)
    assert_same_run(tmp_path / "run", tmp_path / "alone")
    ours, theirs = (load_checkpoint(tmp_path / name / "checkpoint.pt")["task"] for name in ("run", "alone"))
    shapes = lambda state: {k: v.shape for k, v in state["model"].items()}
    assert shapes(ours) == shapes(theirs)
    torch.testing.assert_close(ours["optimizer"]["state"], theirs["optimizer"]["state"], rtol=1e-3, atol=1e-5)
    before = task("diffusion", WIDE).model.state_dict()
    moved = max(float((value - ours["model"][name]).abs().max()) for name, value in before.items())
    assert moved > 100 * 2e-5, "nothing was learned, so nothing was compared"
    assert (tmp_path / "run/samples/0000008.png").is_file()
    LatentDiffusion.load(tmp_path / "run")
    assert json.loads((tmp_path / "run/model/config.json").read_text()) == json.loads(
        (tmp_path / "alone/model/config.json").read_text()
    )


def sliced_then_whole_then_sliced(folder: Path) -> None:
    for steps, config in ((3, SLICED), (5, WHOLE), (7, SLICED)):
        trained(folder, "diffusion", steps, config)


def test_a_run_goes_on_with_slices_without_and_in_one_process(tmp_path):
    on_two(tmp_path, sliced_then_whole_then_sliced)
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == 7
    one = replace(WIDE, shard=True)  # there is nothing to slice
    fit(task("diffusion", one), Pictures(), one, tmp_path / "run")
    alone(tmp_path)
    assert_same_run(tmp_path / "run", tmp_path / "alone")


def half(folder: Path) -> None:
    with pytest.raises(InputError, match=r"^shard: needs --train.precision bf16 or fp32"):
        task("diffusion", replace(SLICED, precision="fp16"))


def test_what_slices_cannot_do_is_refused(tmp_path):
    on_two(tmp_path, half)
    with pytest.raises(InputError, match=r"^memory: with shard"):
        TrainConfig(shard=True, memory=8.0)
    with pytest.raises(InputError, match=r"^shard: is for denoisers"):
        task("autoencoder", replace(TRAIN, shard=True))
