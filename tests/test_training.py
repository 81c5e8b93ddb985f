"""What a run promises: known rates and batches, and that stopping it, however rudely, changes nothing."""

import csv
import gc
import itertools
import json
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny import TRAIN, UNET, Pictures, at, graphs_made, latent_diffusion, task
from torch import nn

from ldm_lite import runs, training
from ldm_lite.config import InputError, to_dict, write
from ldm_lite.latent import mix
from ldm_lite.losses import LossConfig
from ldm_lite.presets import DataConfig
from ldm_lite.training import (
    EMA,
    Descent,
    DiffusionTask,
    Log,
    Stopped,
    TrainConfig,
    claimed,
    fit,
    learning_rate,
    load_checkpoint,
    precision,
    rows,
)

KINDS = ["autoencoder", "sharp", "diffusion"]
EACH = pytest.mark.parametrize("kind", KINDS)
PLAIN = TrainConfig(steps=8, batch=6, warmup=0, ema=0, precision="fp32")


# Rates, batches, averages -------------------------------------------------------------------------------------------


def test_the_rate_warms_up_linearly_and_then_stays():
    config = TrainConfig(lr=2.0, warmup=4, steps=12)
    assert [learning_rate(step, config) for step in (0, 1, 3, 4, 11, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0, 2.0]


def test_the_cosine_falls_to_half_midway_and_to_zero_at_the_end():
    config = TrainConfig(lr=2.0, warmup=4, steps=12, decay="cosine")
    assert [learning_rate(step, config) for step in (3, 4, 8, 12, 99)] == pytest.approx([2, 2, 1, 0, 0])
    assert learning_rate(6, config) == pytest.approx(1 + math.cos(math.pi / 4))


@pytest.mark.parametrize(("n", "batch", "world"), [(7, 3, 1), (7, 4, 2), (3, 8, 1), (5, 2, 3), (4, 4, 1)])
def test_every_epoch_has_every_row_once_over_all_ranks(n, batch, world):
    config, epochs = TrainConfig(batch=batch), batch * world
    drawn = [rows(step, n, config, rank, world) for step in range(n) for rank in range(world)]
    assert sorted(itertools.chain(*drawn)) == [(row, epoch) for row in range(n) for epoch in range(epochs)]
    assert all(len(pairs) == batch for pairs in drawn)


def test_the_order_of_rows_differs_between_epochs_and_seeds_and_is_the_same_when_asked_again():
    config = TrainConfig(batch=53)
    first, second, other = rows(0, 53, config), rows(1, 53, config), rows(0, 53, replace(config, seed=1))
    assert rows(0, 53, config) == first
    assert len({tuple(row for row, _ in order) for order in (first, second, other)}) == 3


def test_the_average_is_the_weighted_sum_with_a_decay_that_warms_up():
    module = nn.Linear(1, 1)
    module.bias.requires_grad_(False)
    ema, decay, values = EMA(module, 0.3), [2 / 11, 3 / 12, 0.3, 0.3], [5.0, -1.0, 2.0, 7.0]
    expected = module.weight.item()
    for value, d in zip(values, decay, strict=True):
        with torch.no_grad():
            module.weight.fill_(value)
        ema.update()
        expected = d * expected + (1 - d) * value
    assert float(ema.average["weight"]) == pytest.approx(expected)
    assert list(ema.average) == ["weight"]


def test_averaged_weights_are_in_the_module_inside_applied_and_its_own_after_even_when_it_raises():
    module = nn.Linear(2, 3)
    ema, own = EMA(module, 0.5), module.weight.detach().clone()
    ema.average["weight"].fill_(4.0)
    with pytest.raises(ZeroDivisionError), ema.applied() as inside:
        assert (inside.weight == 4.0).all()
        raise ZeroDivisionError
    assert torch.equal(module.weight, own)


# One step -----------------------------------------------------------------------------------------------------------


def descents(module: nn.Module, config: TrainConfig, scale: float = 1.0, steps: int = 3) -> list[dict[str, float]]:
    """Some steps of least squares."""
    descent, x = Descent(module, config), torch.randn(6, 5, generator=torch.Generator().manual_seed(3))

    def loss(part):
        value = scale * module(part["x"]).float().square().mean()
        return value, {"loss": value}

    return [descent.step({"x": x}, 0.1 / (step + 1), loss) for step in range(steps)]


def test_a_step_is_clipped_adamw():
    module, same = nn.Linear(5, 2), nn.Linear(5, 2)
    same.load_state_dict(module.state_dict())
    config = replace(PLAIN, clip=0.1, betas=(0.8, 0.95), weight_decay=0.1)
    numbers = descents(module, config)

    optimizer = torch.optim.AdamW(same.parameters(), betas=(0.8, 0.95), weight_decay=0.1)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.zero_grad()
        loss = same(x).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(same.parameters(), 0.1)
        optimizer.step()
        assert norm > 0.1  # or else the test says nothing about clipping
        assert numbers[step] == pytest.approx({"loss": loss.item(), "grad": float(norm), "lr": 0.1 / (step + 1)})
    torch.testing.assert_close(module.state_dict(), same.state_dict())


def test_without_a_limit_a_step_is_adamw_alone():
    module, same = nn.Linear(5, 2), nn.Linear(5, 2)
    same.load_state_dict(module.state_dict())
    numbers = descents(module, replace(PLAIN, clip=0.0))
    assert min(step["grad"] for step in numbers) > 1e-3
    descents(same, replace(PLAIN, clip=1e9))
    assert module.state_dict().keys() == same.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), same.state_dict().values()))


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulated_parts_are_one_large_batch(accumulate):
    module, same = nn.Linear(5, 2), nn.Linear(5, 2)
    same.load_state_dict(module.state_dict())
    whole, parts = descents(module, PLAIN), descents(same, replace(PLAIN, accumulate=accumulate))
    for a, b in zip(whole, parts, strict=True):
        assert a == pytest.approx(b)
    torch.testing.assert_close(module.state_dict(), same.state_dict())


def test_steps_are_taken_in_training_mode_and_averages_looked_at_in_eval_mode():
    module, modes = nn.Linear(5, 2), []
    module.register_forward_hook(lambda module, x, y: modes.append(module.training))
    descent = Descent(module, replace(PLAIN, ema=0.9))
    with descent.averaged() as averaged:
        averaged(torch.ones(1, 5))
    descent.step({"x": torch.ones(6, 5)}, 0.1, lambda part: (module(part["x"]).sum(), {}))
    assert modes == [False, True]


def test_a_step_that_overflows_in_fp16_is_left_out():
    module = nn.Linear(5, 2)
    before = module.weight.detach().clone()
    (numbers,) = descents(module, replace(PLAIN, precision="fp16"), scale=1e35, steps=1)
    assert numbers["grad"] == 0 and math.isfinite(numbers["loss"])
    assert torch.equal(module.weight, before)


def test_auto_precision_is_bf16_only_where_the_hardware_multiplies_it(monkeypatch):
    capability = {0: (7, 5), 1: (8, 0)}  # a T4, which claims to support bf16, and an A100
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability[place.index])
    assert precision("auto", torch.device("cuda:0")) == torch.float16
    assert precision("auto", torch.device("cuda:1")) == torch.bfloat16
    assert precision("auto", torch.device("mps")) == torch.float32
    assert precision("bf16", torch.device("cpu")) == torch.bfloat16


def test_an_autoencoder_learns_l1_and_kl_per_element():
    job, image = training.AutoencoderTask(tiny.autoencoder(), TRAIN, LossConfig(kl=2.0)), Pictures().images
    torch.manual_seed(5)
    loss, named = job.loss({"image": image})
    torch.manual_seed(5)
    reconstruction, code = job.model(image)
    l1, kl = (reconstruction - image).abs().mean(), code.penalty.mean() / (3 * 12 * 8)
    torch.testing.assert_close(named, {"loss": loss, "l1": l1, "penalty": 2 * kl})
    torch.testing.assert_close(loss, l1 + 2 * kl)


def test_a_vq_autoencoder_learns_l1_and_the_codebook_loss():
    model, image = tiny.autoencoder("vq"), Pictures().images
    loss, _ = training.AutoencoderTask(model, TRAIN).loss({"image": image})
    reconstruction, code = model(image)
    torch.testing.assert_close(loss, (reconstruction - image).abs().mean() + code.penalty.mean())


# The critic and the codebook ------------------------------------------------------------------------------------------


def test_a_step_runs_the_autoencoder_once_for_both_optimisers():
    job, runs = task("sharp", replace(TRAIN, accumulate=1)), []
    job.model.register_forward_hook(lambda *args: runs.append(1))
    numbers = job.step({"image": Pictures().images[:4]}, 5)
    assert runs == [1]
    assert numbers["balance"] > 0 and numbers["critic"] > 0 and numbers["g"] != 0


def test_the_critic_moves_from_its_start_on_and_its_columns_are_there_before():
    job = task("sharp")
    for step, moves in ((1, False), (2, True)):
        before = {k: v.clone() for k, v in job.objective.critic.named_parameters()}
        numbers = job.step({"image": Pictures().images[:4]}, step)
        same = [torch.equal(v, before[k]) for k, v in job.objective.critic.named_parameters()]
        assert not any(same) if moves else all(same)
        assert bool(numbers["critic"]) == moves and {"g", "balance", "real", "fake"} <= numbers.keys()


def test_the_critics_step_leaves_no_gradient_in_the_autoencoder_and_the_other_way_round():
    job, image = task("sharp"), Pictures().images[:4]
    job.now = 5
    loss, _ = job.loss({"image": image})
    reconstruction = job.seen[0][0]
    job.critic_loss({"image": image, "reconstruction": reconstruction})[0].backward()
    assert all(p.grad is None for p in job.model.parameters())
    job.objective.critic.zero_grad(set_to_none=True)
    loss.backward()
    assert all(p.grad is None for p in job.objective.critic.parameters())
    assert all(p.grad is not None for p in job.model.parameters())


def test_the_critic_learns_to_tell_images_from_reconstructions():
    torch.manual_seed(0)
    job = training.AutoencoderTask(
        tiny.autoencoder(), replace(TRAIN, steps=40, ema=0.0), replace(tiny.SHARP, start=0, critic_rate=1.0)
    )
    images = torch.randn(4, 3, 12, 8).clamp(-1, 1)
    numbers = [job.step({"image": images}, step) for step in range(40)]
    assert numbers[0]["real"] - numbers[0]["fake"] < 0.5 < numbers[-1]["real"] - numbers[-1]["fake"]


def test_a_code_that_nobody_chooses_is_moved_to_a_latent_with_its_average():
    job = task("sharp")
    job.objective.config = replace(tiny.SHARP, restart=3)
    book, far = job.model.bottleneck.embedding.weight, 50.0
    with torch.no_grad():
        book[4:] = far  # no latent is near
        job.descent.ema.average["bottleneck.embedding.weight"].copy_(book)
    for step in range(3):
        assert (book[4:] > far - 1).all()
        job.step({"image": Pictures().images[:4]}, step)
    assert (book.abs() < far / 2).all()
    assert torch.equal(job.descent.ema.average["bottleneck.embedding.weight"][4:], book.detach()[4:])
    assert not job.idle.any() or int(job.idle.max()) < 3


def test_the_precision_of_fp16_scales_the_balance_away():
    job = task("sharp", replace(TRAIN, precision="fp16", accumulate=1))
    numbers = job.step({"image": Pictures().images[:4]}, 5)
    assert 0 < numbers["balance"] < 1e4 and math.isfinite(numbers["loss"])


def together(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", timedelta(minutes=2), world_size=2, rank=rank)
    job = task("sharp", replace(TRAIN, accumulate=1, ema=0.0))
    images = Pictures(8).images[4 * rank : 4 * rank + 4] * (1 - 3 * rank)  # each rank has pictures of its own
    for step in range(4):
        torch.manual_seed(mix(step, rank))
        job.step({"image": images}, step + 2)
    critic = dict(job.objective.critic.named_parameters())
    torch.save({"model": job.model.state_dict(), "critic": critic, "idle": job.idle}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_on_two_ranks_autoencoder_critic_and_codebook_stay_equal_and_learn_from_both(tmp_path):
    torch.multiprocessing.spawn(together, (tmp_path,), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    alone = task("sharp", replace(TRAIN, accumulate=1, ema=0.0))
    for step in range(4):
        torch.manual_seed(mix(step, 0))
        alone.step({"image": Pictures(8).images[:4]}, step + 2)
    assert not torch.equal(alone.model.state_dict()["decoder.conv_out.weight"], one["model"]["decoder.conv_out.weight"])


def test_diffusion_trains_the_denoiser_and_the_conditioner_and_leaves_the_first_stage():
    job = task("diffusion")
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    job.step({"image": Pictures().images[:4], "label": torch.tensor([0, 1, 2, 0])}, 5)
    changed = {name for name, value in job.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"denoiser", "conditioner"}


# Batches ------------------------------------------------------------------------------------------------------------


class Fast(Pictures):
    """Offers whole batches of bytes."""

    def batch(self, rows):
        return {"image": ((self.images[rows] + 0.5) * 255).byte(), "label": torch.tensor(rows)}


def test_workers_prepare_the_same_batches():
    here, there = (list(training.batches(Pictures(), 5, replace(TRAIN, workers=workers))) for workers in (0, 2))
    assert len(here) == 3
    torch.testing.assert_close(here, there, rtol=0, atol=0)


class Deaf(Pictures):
    def batch(self, rows):
        return {"deaf": torch.tensor([signal.getsignal(s) == signal.SIG_IGN for s in (signal.SIGINT, signal.SIGTERM)])}


def test_workers_leave_ctrl_c_and_sigterm_to_the_main_process():
    with training.Interrupt():
        (batch,) = training.batches(Deaf(), 7, replace(TRAIN, workers=1))
    assert batch["deaf"].all()


UNCAUGHT = """
from dataclasses import replace
from tiny import TRAIN, Pictures
from ldm_lite.training import batches
if __name__ == "__main__":
    source = batches(Pictures(), 0, replace(TRAIN, workers=1))
    next(source)
    1 / 0
"""


def test_workers_end_with_a_process_that_fails(tmp_path):
    (tmp_path / "uncaught.py").write_text(UNCAUGHT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(tiny.__file__).parent), *sys.path])}
    ended = subprocess.run(
        [sys.executable, tmp_path / "uncaught.py"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert ended.returncode == 1 and ended.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_dataset_that_offers_batches_is_asked_for_the_rows_of_the_step_and_bytes_become_minus_one_to_one():
    batch = next(training.batches(Fast(), 3, TRAIN))
    expected = [row for row, _ in rows(3, 7, TRAIN)]
    assert batch["label"].tolist() == expected
    torch.testing.assert_close(batch["image"], (Fast().images[expected] + 0.5) * 2 - 1, rtol=0, atol=1 / 127)


def test_a_dataset_that_draws_is_told_the_row_and_the_epoch():
    batch = next(training.batches(Pictures(), 3, TRAIN))
    items = [Pictures().draw(row, epoch) for row, epoch in rows(3, 7, TRAIN)]
    assert torch.equal(batch["image"], torch.stack([item["image"] for item in items]))
    assert batch["label"].tolist() == [item["label"] for item in items]


def test_what_cannot_be_stacked_stays_a_list():
    one = {"caption": "a", "boxes": torch.zeros(2, 4), "label": 3}
    other = {"caption": "b", "boxes": torch.ones(1, 4), "label": 5}
    batch = training.collated([one, other])
    assert batch["caption"] == ["a", "b"] and [len(boxes) for boxes in batch["boxes"]] == [2, 1]
    assert torch.equal(batch["label"], torch.tensor([3, 5]))


def test_an_empty_dataset_is_refused():
    with pytest.raises(InputError, match="empty"):
        training.batches([], 0, TRAIN)


# A run and its interruptions ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run of each kind that nothing disturbed."""
    folders = {}
    for kind in KINDS:
        folders[kind] = tmp_path_factory.mktemp("runs") / kind
        assert fit(task(kind), Pictures(), TRAIN, folders[kind]) == 8
    return folders


def logged(out: Path) -> list[dict[str, str]]:
    """The rows of log.csv without the column that a clock decides."""
    with open(out / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def steps_logged(out: Path) -> list[int]:
    return [int(row["step"]) for row in logged(out)]


def assert_same_run(a: Path, b: Path) -> None:
    """Optimiser, averages, weights and log agree to the last bit."""
    one, other = load_checkpoint(a / "checkpoint.pt"), load_checkpoint(b / "checkpoint.pt")
    torch.testing.assert_close(one["task"], other["task"], rtol=0, atol=0)
    assert (one["step"], one["config"]) == (other["step"], other["config"])
    assert (a / "model/model.safetensors").read_bytes() == (b / "model/model.safetensors").read_bytes()
    assert logged(a) == logged(b)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def resume(kind: str, out: Path) -> None:
    assert fit(task(kind), Pictures(), TRAIN, out) == 8


@EACH
def test_a_run_is_a_function_of_its_seed(kind, uninterrupted, tmp_path):
    torch.rand(3)  # what was drawn before makes no difference
    resume(kind, tmp_path / "same")
    assert_same_run(tmp_path / "same", uninterrupted[kind])
    fit(task(kind), Pictures(), replace(TRAIN, seed=1), tmp_path / "other")
    assert contents(tmp_path / "other/model") != contents(uninterrupted[kind] / "model")


def test_every_step_of_every_seed_draws_numbers_of_its_own(tmp_path):
    drawn = []
    for seed in (0, 1):
        job = task("autoencoder")
        job.step = lambda batch, step: drawn.append(float(torch.rand(()))) or {"loss": 0.0}
        fit(job, Pictures(), replace(TRAIN, seed=seed), tmp_path / str(seed))
    assert len(set(drawn)) == 16


@EACH
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_the_resumed_run_is_bit_identical(kind, number, uninterrupted, tmp_path):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="stopped at step 5 of 8"):
        fit(at(4, task(kind), lambda: signal.raise_signal(number)), Pictures(), TRAIN, tmp_path)
    assert signal.getsignal(number) == before
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 5
    resume(kind, tmp_path)
    assert_same_run(tmp_path, uninterrupted[kind])


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_sigterm_to_the_workers_too_stops_the_run_after_the_step_and_leaves_no_worker(tmp_path):
    def to_all():
        workers = [str(worker.pid) for worker in multiprocessing.active_children()]
        subprocess.run(["kill", "-TERM", *workers])  # from without: a SIGTERM of their parent's ends them quietly
        time.sleep(0.5)  # for the end of one to be noticed
        signal.raise_signal(signal.SIGTERM)

    config = replace(TRAIN, workers=2)
    with pytest.raises(Stopped, match="stopped at step 5 of 8"):
        fit(at(4, task("autoencoder"), to_all), Pictures(), config, tmp_path)
    assert not multiprocessing.active_children()
    assert fit(task("autoencoder"), Pictures(), config, tmp_path) == 8
    assert not multiprocessing.active_children()


@EACH
def test_a_run_broken_by_an_exception_goes_on_from_its_checkpoint_bit_identically(kind, uninterrupted, tmp_path):
    with pytest.raises(ZeroDivisionError):
        fit(at(7, task(kind), lambda: 1 / 0), Pictures(), TRAIN, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 6
    resume(kind, tmp_path)
    assert_same_run(tmp_path, uninterrupted[kind])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_goes_on_from_its_checkpoint_bit_identically(uninterrupted, tmp_path):
    killed = subprocess.run([sys.executable, tiny.__file__, "diffusion", "4", str(tmp_path)], stderr=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    assert steps_logged(tmp_path) == [1, 2, 3, 4]
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3
    resume("diffusion", tmp_path)
    assert_same_run(tmp_path, uninterrupted["diffusion"])


@pytest.mark.parametrize(("first", "then"), [("float32", "float16"), ("float16", "bfloat16")])
def test_a_run_goes_on_in_the_precision_of_another_machine(first, then, tmp_path, monkeypatch):
    auto = replace(TRAIN, precision="auto")
    monkeypatch.setattr(training, "precision", lambda wanted, place: getattr(torch, first))
    with pytest.raises(ZeroDivisionError):
        fit(at(4, task("autoencoder", auto), lambda: 1 / 0), Pictures(), auto, tmp_path)
    monkeypatch.setattr(training, "precision", lambda wanted, place: getattr(torch, then))
    assert fit(task("autoencoder", auto), Pictures(), auto, tmp_path) == 8


def test_interrupting_twice_stops_at_once(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(at(4, task("autoencoder"), twice), Pictures(), TRAIN, tmp_path)
    assert not isinstance(caught.value, Stopped)


def test_a_row_of_the_log_that_a_kill_cut_short_is_not_taken_for_another_steps(tmp_path, uninterrupted):
    with pytest.raises(ZeroDivisionError):
        fit(at(5, task("autoencoder"), lambda: 1 / 0), Pictures(), TRAIN, tmp_path)
    with open(tmp_path / "log.csv", "a") as log:
        log.write("2")  # of 20-odd
    resume("autoencoder", tmp_path)
    assert_same_run(tmp_path, uninterrupted["autoencoder"])
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_kill_while_resuming_keeps_the_log(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        fit(at(5, task("autoencoder"), lambda: 1 / 0), Pictures(), TRAIN, tmp_path)
    before = (tmp_path / "log.csv").read_text()
    monkeypatch.setattr(training.Log, "_row", lambda self, row: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        resume("autoencoder", tmp_path)
    assert (tmp_path / "log.csv").read_text() == before


def test_what_a_kill_left_beside_the_checkpoint_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fit(at(4, task("autoencoder"), lambda: 1 / 0), Pictures(), TRAIN, tmp_path)
    (tmp_path / ".checkpoint.pt.123.tmp").write_bytes(b"half")
    resume("autoencoder", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "checkpoint.pt", "log.csv", "model"}


def test_a_finished_run_is_left_as_it_is_but_for_weights_that_a_kill_prevented(uninterrupted, tmp_path):
    resume("autoencoder", tmp_path)
    finished = contents(tmp_path)
    resume("autoencoder", tmp_path)
    assert contents(tmp_path) == finished
    (tmp_path / "model/model.safetensors").unlink()
    (tmp_path / "model/config.json").unlink()
    resume("autoencoder", tmp_path)
    assert contents(tmp_path) == finished


@EACH
def test_the_saved_model_has_the_averaged_weights(kind, uninterrupted):
    weights = load_file(uninterrupted[kind] / "model/model.safetensors")
    average = load_checkpoint(uninterrupted[kind] / "checkpoint.pt")["task"]["ema"]["average"]
    assert len(average) > 20
    for name, value in average.items():
        assert torch.equal(weights[name], value)


@EACH
def test_sample_grids_are_drawn_without_disturbing_the_run(kind, uninterrupted, tmp_path):
    fit(task(kind), Pictures(), replace(TRAIN, sample_every=4), tmp_path)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["0000004.png", "0000008.png"]
    assert contents(tmp_path / "model") == contents(uninterrupted[kind] / "model")


def test_the_board_has_the_log_s_numbers_images_a_second_and_the_grids_over_all_parts_of_a_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = replace(TRAIN, tensorboard=True, sample_every=4)
    with pytest.raises(Stopped):
        fit(at(4, task("diffusion", shown), lambda: signal.raise_signal(signal.SIGINT)), Pictures(), shown, tmp_path)
    fit(task("diffusion", shown), Pictures(), shown, tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    for name in ("loss", "grad", "lr", "images_a_second"):
        assert [event.step for event in board.Scalars(name)] == list(range(1, 9))
    assert all(event.value > 0 for event in board.Scalars("images_a_second"))
    assert [event.step for event in board.Images("samples")] == [4, 8]


def test_images_a_second_are_a_mean_of_the_steps_of_this_part_of_a_run(tmp_path, monkeypatch):
    now, seen = [100.0], []
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Log(tmp_path, 0, replace(TRAIN, batch=6, tensorboard=True)) as log:
        monkeypatch.setattr(log.board, "add_scalar", lambda name, value, step: seen.append((name, value, step)))
        for step, taken in ((1, 6.0), (2, 1.0), (3, 1.0)):
            now[0] += taken
            log.write(step, {"loss": 0.5})
    rates = [row for row in seen if row[0] == "images_a_second"]
    assert rates == [("images_a_second", 1.0, 1), ("images_a_second", 12 / 7, 2), ("images_a_second", 18 / 8, 3)]


@pytest.mark.parametrize("first", ["as it is", "channels last"])
def test_a_run_goes_on_in_another_layout_of_its_weights_in_memory(first, tmp_path):
    def job(layout):
        torch.manual_seed(2)
        model = latent_diffusion(replace(UNET, dropout=0.0))  # its masks would be other ones
        if layout == "channels last":
            model.denoiser.to(memory_format=torch.channels_last)
        return DiffusionTask(model, TRAIN, dropout=0.3)

    second = {"as it is": "channels last", "channels last": "as it is"}[first]
    with pytest.raises(KeyboardInterrupt):
        fit(at(2, job(first), lambda: signal.raise_signal(signal.SIGINT)), Pictures(), TRAIN, tmp_path / "moved")
    for layout, folder in ((second, "moved"), (first, "whole")):
        assert fit(job(layout), Pictures(), TRAIN, tmp_path / folder) == TRAIN.steps
    a, b = (load_checkpoint(tmp_path / folder / "checkpoint.pt")["task"]["model"] for folder in ("moved", "whole"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


def test_the_memory_of_a_run_is_what_it_took_after_its_first_steps(tmp_path, monkeypatch):
    peak = [9]
    monkeypatch.setattr(training, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak[0] * 2**30)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peak.__setitem__(0, 4))
    claimed(tmp_path, TRAIN, {})
    with Log(tmp_path, 0, TRAIN) as log:
        for step in range(1, 7):
            log.write(step, {"loss": 0.5})
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["memory"]) for row in rows] == [9, 9, 9, 4, 4, 4]


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_run_json_says_on_which_card_a_run_goes_on_and_a_run_may_go_on_with_another(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(training, "device", lambda: torch.device(kind))
    for name in ("Tesla T4", "NVIDIA H200"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        claimed(tmp_path, TRAIN, {})
        with Log(tmp_path, 0, TRAIN) as log:
            log.write(1, {"loss": 0.5})
        found = json.loads((tmp_path / "run.json").read_text())
        assert [found.get("card"), found.get("processes")] == ([name, 1] if kind == "cuda" else [None, None])


def test_a_compiled_run_learns_what_an_uncompiled_one_learns_under_the_same_names(tmp_path, monkeypatch):
    graphs = graphs_made(monkeypatch)
    for name, job in (("plain", task("diffusion")), ("compiled", task("diffusion", replace(TRAIN, compile=True)))):
        assert not graphs
        fit(job, Pictures(), job.config, tmp_path / name)
        job.model.sample({"label": torch.tensor([1, 2, 0])}, steps=2, size=8)  # uncompiled again
    assert len(graphs) == 1
    a, b = (load_file(tmp_path / name / "model/model.safetensors") for name in ("compiled", "plain"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_what_is_compiled_for_steps_draws_its_grids_as_it_is(tmp_path, monkeypatch):
    graphs = graphs_made(monkeypatch)
    job = task("diffusion", replace(TRAIN, compile=True, sample_every=2))
    fit(job, Pictures(), job.config, tmp_path)
    assert len(graphs) == 1 and len(list((tmp_path / "samples").iterdir())) == TRAIN.steps // 2


def test_a_grid_that_there_is_no_room_for_is_left_out_and_the_run_goes_on(tmp_path, capsys):
    job = task("diffusion", replace(TRAIN, sample_every=4))
    own, job.picture = job.picture, None

    def picture(batch):
        if not (tmp_path / "samples").exists():
            (tmp_path / "samples").mkdir()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return own(batch)

    job.picture = picture
    assert fit(job, Pictures(), job.config, tmp_path) == 8
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["0000008.png"]
    assert "step 4: there is no room in memory for a grid of samples; it is left out" in capsys.readouterr().err


@pytest.mark.parametrize("before", [True, False])
def test_kernels_are_tried_in_a_run_alone(before, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    inside = []
    fit(at(1, task("diffusion"), lambda: inside.append(torch.backends.cudnn.benchmark)), Pictures(), TRAIN, tmp_path)
    assert inside == [True] and torch.backends.cudnn.benchmark is before


def test_it_compiles_where_it_is_asked_to_and_else_for_long_runs_on_a_gpu(monkeypatch):
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: "triton")
    monkeypatch.setattr(training.os, "cpu_count", lambda: 8)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for long, short in (
        (TrainConfig(steps=2000), TrainConfig(steps=1999)),
        (TrainConfig(minutes=3.0), TrainConfig(minutes=2.9)),
    ):
        assert [training.compiles(c, d) for c in (long, short) for d in (cpu, cuda)] == [False, True, False, False]
    for asked in (True, False):
        assert all(training.compiles(replace(short, compile=asked), d) is asked for d in (cpu, cuda))
    monkeypatch.setattr(training.os, "cpu_count", lambda: 2)  # as beside a T4, where to compile takes minutes
    assert not training.compiles(TrainConfig(minutes=11.9), cuda) and training.compiles(TrainConfig(minutes=12), cuda)
    assert not training.compiles(TrainConfig(steps=7999), cuda) and training.compiles(TrainConfig(steps=8000), cuda)
    monkeypatch.setattr(training.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)  # as on Windows
    assert not training.compiles(TrainConfig(steps=2000), cuda)
    assert training.compiles(TrainConfig(steps=2000, compile=True), cuda)


def test_checkpoints_come_by_the_clock_where_a_machine_may_be_taken_away(tmp_path, monkeypatch):
    clock, saved = itertools.count(0, 7), []  # seven seconds from one look to the next
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(training, "save", lambda path, job, step, config: saved.append(step))
    fit(task("diffusion"), Pictures(), replace(TRAIN, save_every=100, save_minutes=0.5), tmp_path / "clocked")
    assert len(saved) > 2 and saved[-1] == 8
    saved.clear()
    fit(task("diffusion"), Pictures(), replace(TRAIN, save_every=100), tmp_path / "not")
    assert saved == [8]


def crowded(job, most: int):
    """The task on a machine where so many images fit at once."""
    own = job.loss

    def loss(batch):
        if len(next(iter(batch.values()))) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return own(batch)

    job.loss = loss
    return job


@EACH
@pytest.mark.parametrize(("most", "parts"), [(6, 1), (3, 2), (2, 3), (1, 6)])
def test_a_batch_that_does_not_fit_says_which_would_and_nothing_is_learned(kind, most, parts, tmp_path):
    config = replace(PLAIN, ema=0.9)
    job = crowded(task(kind, config), most)
    before = {name: value.clone() for name, value in job.model.state_dict().items()}
    batch = {"image": Pictures().images[:6], "label": torch.arange(6) % 3}
    assert training.room(job, batch, config) == parts
    torch.testing.assert_close(dict(job.model.state_dict()), before, rtol=0, atol=0)
    assert not job.descent.optimizer.state and all(p.grad is None for p in job.model.parameters())
    if parts > 1:
        with pytest.raises(InputError) as error:
            fit(job, Pictures(), config, tmp_path)
        says = f"batch: 6 images at once do not fit into memory, {most} do: --train.accumulate {parts} learns the same"
        assert str(error.value).startswith(says)
        advised = replace(config, accumulate=parts)  # in the same folder, since nothing was learned there
        assert fit(crowded(task(kind, advised), most), Pictures(), advised, tmp_path) == 8


@pytest.mark.parametrize(("images", "more"), [(6, 2), (3, 3)])
def test_a_trial_holds_what_a_later_step_does(images, more):
    job, seen = task("diffusion", PLAIN), []
    shape = job.descent.parameters[0].shape

    def alike():
        gc.collect()
        return sum(
            type(found) in (torch.Tensor, torch.nn.Parameter) and found.shape == shape for found in gc.get_objects()
        )

    own, before = job.loss, alike()
    job.loss = lambda batch: (seen.append(alike() - before), own(batch))[1]
    job.trial({"image": Pictures().images[:images], "label": torch.arange(images) % 3})
    assert seen == [more] and alike() == before  # both averages; of one of several parts a gradient, too


def test_a_model_of_which_not_one_image_fits_says_so(tmp_path):
    with pytest.raises(InputError, match="6 images at once do not fit into memory, nor does one; take a smaller model"):
        fit(crowded(task("diffusion", PLAIN), 0), Pictures(), PLAIN, tmp_path)

    one = replace(PLAIN, accumulate=6)
    with pytest.raises(InputError, match=r"^batch: not even one image fits into memory; take a smaller model$"):
        fit(crowded(task("diffusion", one), 0), Pictures(), one, tmp_path)


def test_what_a_step_held_that_did_not_fit_is_let_go_before_smaller_ones_are_tried(tmp_path):
    job, held = task("diffusion", PLAIN), []

    def loss(part):
        if len(part["image"]) <= 3:
            assert held and all(one() is None for one in held)
            assert not any(p.grad.any() for p in job.model.parameters() if p.grad is not None)  # room for one alone
            return own(part)
        activation = own(part)[0]
        weight = job.model.denoiser.conv_out.weight
        weight.grad = torch.ones_like(weight)  # of a part before
        held.append(weakref.ref(activation))
        raise torch.OutOfMemoryError

    own, job.loss = job.loss, loss
    with pytest.raises(InputError, match=r"6 images at once do not fit into memory, 3 do: --train.accumulate 2"):
        fit(job, Pictures(), PLAIN, tmp_path)
    assert len(held) == 1


def test_a_run_that_may_take_so_much_memory_goes_in_as_many_parts_as_fit(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=40 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    config = replace(PLAIN, memory=15.0)
    job = crowded(task("sharp", config), 2)
    batch = {"image": Pictures().images[:6]}
    found = training.fitted(job, batch, config)
    assert (
        found.accumulate == job.config.accumulate == job.descent.config.accumulate == job.critic.config.accumulate == 3
    )
    assert asked == [15 / 40]
    job.step(batch, 0)  # and goes through
    with bad("memory: not even one image fits into 15 GiB; take a smaller model", tmp_path):
        training.fitted(crowded(task("diffusion", config), 0), batch | {"label": torch.zeros(6).long()}, config)


def test_a_run_of_a_version_with_fewer_settings_is_gone_on_with(tmp_path):
    class Stopping(Exception):
        pass

    def stop():
        raise Stopping

    about = {"model": tiny.UNET, "spread": False}
    with pytest.raises(Stopping):
        fit(at(4, task("diffusion"), stop), Pictures(), TRAIN, tmp_path, about)
    mark = json.loads((tmp_path / "run.json").read_text())
    for part, name in ((mark["train"], "save_minutes"), (mark["train"], "compile"), (mark["about"], "spread")):
        del part[name]
    del mark["about"]["model"]["checkpoint"]
    (tmp_path / "run.json").write_text(json.dumps(mark))
    with pytest.raises(InputError, match=r"holds another run \(model.width differ"):
        fit(task("diffusion"), Pictures(), TRAIN, tmp_path, about | {"model": replace(tiny.UNET, width=16)})
    with pytest.raises(InputError, match=r"holds another run \(spread differ"):
        fit(task("diffusion"), Pictures(), TRAIN, tmp_path, about | {"spread": True})
    assert fit(task("diffusion"), Pictures(), TRAIN, tmp_path, about) == 8


# A budget in minutes ------------------------------------------------------------------------------------------------


@contextmanager
def speed(monkeypatch, kind: str, seconds: float):
    """A task each of whose steps takes that long by the clock that fit looks at."""
    now = [0.0]
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0]))
    job = task(kind, MINUTES)
    step = job.step

    def slow(batch, n):
        now[0] += seconds
        return step(batch, n)

    job.step = slow
    yield job


MINUTES = replace(TRAIN, minutes=0.5, steps=3, save_every=25)


def test_minutes_become_steps_once_and_the_resumed_run_is_the_same(tmp_path, monkeypatch):
    with speed(monkeypatch, "autoencoder", 1.2) as job:
        assert fit(job, Pictures(), MINUTES, tmp_path / "whole") == 25
    with speed(monkeypatch, "autoencoder", 1.2) as job, pytest.raises(ZeroDivisionError):
        fit(at(22, job, lambda: 1 / 0), Pictures(), MINUTES, tmp_path / "broken")
    training.claimed(tmp_path / "broken", replace(MINUTES, save_every=24), {})  # written anew
    assert runs.status(tmp_path / "broken")[0].startswith("broken: step 22 of 25 (88 %)")
    with speed(monkeypatch, "autoencoder", 77) as job:
        assert fit(job, Pictures(), MINUTES, tmp_path / "broken") == 25
    assert runs.status(tmp_path / "broken")[0].startswith("broken: step 25 of 25 (100 %)")
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert steps_logged(tmp_path / "whole") == list(range(1, 26))


def test_a_run_of_minutes_is_compiled_by_them_when_it_goes_on_too(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "compiles", lambda config, place: asked.append(config.minutes))
    with speed(monkeypatch, "diffusion", 1.2) as job, pytest.raises(ZeroDivisionError):
        fit(at(22, job, lambda: 1 / 0), Pictures(), MINUTES, tmp_path)
    with speed(monkeypatch, "diffusion", 1.2) as job:
        assert fit(job, Pictures(), MINUTES, tmp_path) == 25
    assert asked == [0.5, 0.5]


def test_the_first_slow_steps_do_not_count_in_the_rate(tmp_path, monkeypatch):
    with speed(monkeypatch, "autoencoder", 1.0) as job:
        step, now = job.step, training.time.monotonic
        late = [0.0]
        monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now() + late[0]))

        def compiled(batch, n):
            late[0] += 50.0 * (n < 3)
            return step(batch, n)

        job.step = compiled
        assert fit(job, Pictures(), MINUTES, tmp_path) == 30


def test_a_run_stopped_before_the_rate_is_known_starts_again(tmp_path, monkeypatch):
    with speed(monkeypatch, "autoencoder", 1.2) as job, pytest.raises(Stopped, match="starts again"):
        fit(at(4, job, lambda: signal.raise_signal(signal.SIGINT)), Pictures(), MINUTES, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()
    with speed(monkeypatch, "autoencoder", 1.2) as job:
        assert fit(job, Pictures(), MINUTES, tmp_path) == 25
    assert steps_logged(tmp_path) == list(range(1, 26))


# What goes wrong ----------------------------------------------------------------------------------------------------


@contextmanager
def bad(match: str, *paths: Path):
    """InputError of one line, and nothing that was there is changed."""
    before = [contents(path) for path in paths]
    with pytest.raises(InputError, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert [contents(path) for path in paths] == before


def poisoned(job):
    def poison():
        with torch.no_grad():
            next(job.model.parameters()).fill_(math.nan)

    return poison


@pytest.mark.parametrize("step", [1, 5])
def test_a_loss_that_is_not_a_number_stops_the_run_names_the_step_and_keeps_the_last_good_state(step, tmp_path):
    job = task("autoencoder")
    kept = "holds the last good state" if step > 3 else "nothing was saved yet"
    with pytest.raises(FloatingPointError, match=f"step {step}: the loss is nan; .*{kept}"):
        fit(at(step, job, poisoned(job)), Pictures(), TRAIN, tmp_path)
    if step > 3:
        state = load_checkpoint(tmp_path / "checkpoint.pt")
        assert state["step"] == 3
        assert all(value.isfinite().all() for value in state["task"]["model"].values())
    assert not (tmp_path / "model").exists()


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path):
    job = task("autoencoder")
    weight = next(job.model.parameters())
    infinite = lambda: weight.register_hook(lambda gradient: gradient + math.inf)
    with pytest.raises(FloatingPointError, match=r"step 5: the grad is (inf|nan)"):
        fit(at(5, job, infinite), Pictures(), TRAIN, tmp_path)  # step 5 is followed by a checkpoint
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


SPOILT = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("step,loss\n1,0.5\n"),
    "a list": lambda path: torch.save([1, 2], path),
    "weights alone": lambda path: torch.save({"model": {}}, path),
    "a pickle with code": lambda path: path.write_bytes(pickle.dumps(Evil(path.with_name("executed")), protocol=2)),
    "a zipped pickle with code": lambda path: torch.save({"task": Evil(path.with_name("executed"))}, path),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_file_that_is_no_checkpoint_is_named_and_no_code_in_it_is_run(spoil, tmp_path):
    with pytest.raises(ZeroDivisionError):
        fit(at(4, task("autoencoder"), lambda: 1 / 0), Pictures(), TRAIN, tmp_path)
    SPOILT[spoil](tmp_path / "checkpoint.pt")
    with bad("checkpoint.pt: truncated, or not a checkpoint of ours", tmp_path):
        resume("autoencoder", tmp_path)
    assert not (tmp_path / "executed").exists()


def test_the_checkpoint_of_another_model_is_named(tmp_path, uninterrupted):
    with pytest.raises(ZeroDivisionError):
        fit(at(4, task("autoencoder"), lambda: 1 / 0), Pictures(), TRAIN, tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes((uninterrupted["diffusion"] / "checkpoint.pt").read_bytes())
    with bad("checkpoint.pt: the checkpoint of another model .*encoder", tmp_path):
        resume("autoencoder", tmp_path)


def test_a_folder_that_holds_another_run_is_refused_and_what_differs_is_named(tmp_path):
    out = tmp_path / "run"
    fit(task("autoencoder"), Pictures(), TRAIN, out, {"model": {"width": 8}})
    with bad("holds another run \\(model.width differ", out):
        fit(task("autoencoder"), Pictures(), TRAIN, out, {"model": {"width": 16}})
    with bad("holds another run \\(train.lr, train.seed differ", out):
        fit(task("autoencoder"), Pictures(), replace(TRAIN, lr=1.0, seed=3), out, {"model": {"width": 8}})


def test_a_run_goes_on_with_other_settings_of_how_it_is_computed_and_watched(tmp_path, uninterrupted):
    with pytest.raises(ZeroDivisionError):
        fit(at(4, task("autoencoder"), lambda: 1 / 0), Pictures(), TRAIN, tmp_path)
    other = replace(TRAIN, workers=1, save_every=2, save_minutes=9.0, sample_every=8, memory=1.0, compile=False)
    assert fit(task("autoencoder", other), Pictures(), other, tmp_path) == 8
    assert json.loads((tmp_path / "run.json").read_text())["train"].items() >= {"workers": 1, "save_every": 2}.items()
    ours, theirs = (load_checkpoint(out / "checkpoint.pt")["task"] for out in (tmp_path, uninterrupted["autoencoder"]))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_run_that_no_longer_fits_into_memory_goes_on_as_it_is_advised(tmp_path):
    with pytest.raises(InputError, match=r"--train.accumulate 3 learns the same"):
        job = task("autoencoder", PLAIN)
        fit(at(4, job, lambda: crowded(job, 2)), Pictures(), replace(PLAIN, save_every=3), tmp_path)
    advised = replace(PLAIN, accumulate=3)
    assert fit(crowded(task("autoencoder", advised), 2), Pictures(), advised, tmp_path) == 8
    assert steps_logged(tmp_path) == list(range(1, 9))


def test_with_what_a_run_began_is_said_where_one_setting_differs(tmp_path):
    write(tmp_path / "run.json", {"about": {}, "train": to_dict(replace(TRAIN, clip=1.5))})
    (tmp_path / "log.csv").write_text("step\n1\n")
    with bad(r"\(train.clip differ \(it began with --train.clip 1.5\)\); choose another", tmp_path):
        training.claimed(tmp_path, TRAIN, {})
    with bad(r"\(train.clip, train.lr differ\); choose another", tmp_path):
        training.claimed(tmp_path, replace(TRAIN, lr=0.5), {})


def test_other_workers_for_a_stream_are_another_run(tmp_path):
    about = {"data": DataConfig(stream=True)}
    (tmp_path / "log.csv").write_text("step\n1\n")
    write(tmp_path / "run.json", {"about": {"data": to_dict(about["data"])}, "train": to_dict(TRAIN)})
    with bad(r"holds another run \(train.workers differ", tmp_path):
        training.claimed(tmp_path, replace(TRAIN, workers=2), about)
    training.claimed(tmp_path, replace(TRAIN, save_every=99), about)


@pytest.mark.parametrize(("began", "now"), [(2, 1), (1, 2), (3, 2)])
def test_another_number_of_processes_for_a_stream_is_refused_and_says_what_to_start(tmp_path, monkeypatch, began, now):
    data, started = DataConfig(stream=True), replace(TRAIN, batch=12 // began, accumulate=6 // began)
    monkeypatch.setattr(training.processes, "count", lambda: began)
    training.claimed(tmp_path, started, {"data": data})
    (tmp_path / "log.csv").write_text("step\n1\n")
    training.claimed(tmp_path, started, {"data": data})
    monkeypatch.setattr(training.processes, "count", lambda: now)
    other = replace(TRAIN, batch=12 // now, accumulate=6 // now)
    with bad(rf": {began} process.* now there (is|are) {now}; start as many as before, or --restart$", tmp_path):
        training.claimed(tmp_path, other, {"data": data})
    mark = json.loads((tmp_path / "run.json").read_text())
    write(tmp_path / "run.json", {part: mark[part] for part in ("about", "train")})  # as older versions wrote it
    training.claimed(tmp_path, other, {"data": data})
    assert json.loads((tmp_path / "run.json").read_text())["processes"] == now


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("1")
    with bad("is not empty and holds no run", tmp_path):
        fit(task("autoencoder"), Pictures(), TRAIN, tmp_path)


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_a_file_where_the_folder_should_be_is_said_in_one_line(out, tmp_path):
    (tmp_path / "file").write_text("1")
    with bad("cannot be written", tmp_path):
        fit(task("autoencoder"), Pictures(), TRAIN, tmp_path / out)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_said_in_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with bad("cannot be written"):
        fit(task("autoencoder"), Pictures(), TRAIN, tmp_path / "run")


@contextmanager
def small_disk():
    """Yields a function after which no file can grow beyond so many bytes, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_keeps_the_old_checkpoint_and_the_run_goes_on_once_there_is_space(tmp_path, uninterrupted):
    with small_disk() as limit, bad("checkpoint.pt: not written .*what was there before is unchanged"):
        fit(at(4, task("autoencoder"), lambda: limit(50_000)), Pictures(), TRAIN, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 3
    assert not list(tmp_path.glob(".*"))
    resume("autoencoder", tmp_path)
    assert_same_run(tmp_path, uninterrupted["autoencoder"])


def test_a_disk_so_full_that_no_row_can_be_logged_is_said_in_one_line(tmp_path, uninterrupted, capsys):
    with small_disk() as limit, bad("log.csv: not written"):
        fit(at(4, task("autoencoder"), lambda: limit(1)), Pictures(), TRAIN, tmp_path)
    resume("autoencoder", tmp_path)
    assert_same_run(tmp_path, uninterrupted["autoencoder"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch", -1),
        ("accumulate", 0),
        ("save_every", 0),
        ("warmup", -1),
        ("workers", -1),
        ("sample_every", -2),
        ("weight_decay", -0.1),
        ("lr", 0.0),
        ("lr", math.nan),
        ("clip", -1.0),
        ("clip", math.nan),
        ("minutes", 0.0),
        ("ema", 1.0),
        ("ema", -0.1),
        ("accumulate", 5),
    ],
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(InputError, match=f"^{field}: "):
        TrainConfig(**{field: value})
