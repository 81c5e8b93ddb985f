"""Several processes train as one would: the same weights from the same pictures, and none is left waiting."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import SHARP, TRAIN, Pictures, at, autoencoder, task

from ldm_lite import processes, runs
from ldm_lite.config import InputError, read
from ldm_lite.training import AutoencoderTask, Stopped, fit, fitted, load_checkpoint

ALONE = replace(TRAIN, batch=6, accumulate=2, ema=0.9, save_every=3)  # 8 steps of seven pictures
BETWEEN_TWO = replace(ALONE, batch=3, accumulate=1)


def made(kind: str, config):
    """sharp moves no code: which latent it is moved to is a draw of its own."""
    if kind == "sharp":
        torch.manual_seed(2)
        return AutoencoderTask(autoencoder("vq", codes=19), config, replace(SHARP, restart=0))
    return task(kind, config)


def in_two(rank: int, folder: Path, work: Callable, *arguments) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", timedelta(minutes=2), world_size=2, rank=rank)
    try:
        work(folder, *arguments)
    finally:
        torch.distributed.destroy_process_group()


def on_two(folder: Path, work: Callable, *arguments) -> None:
    """work(folder, *arguments) on two ranks."""
    (folder / "meet").unlink(missing_ok=True)
    torch.multiprocessing.spawn(in_two, (folder, work, *arguments), nprocs=2)


def trained(folder: Path, kind: str, steps: int = 8, config=BETWEEN_TWO) -> None:
    made_of = made(kind, config)
    if steps < 8:
        made_of = at(steps - 1, made_of, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        fit(made_of, Pictures(), config, folder / "run")
    except Stopped as stopped:
        (folder / f"stopped-{processes.rank()}").write_text(str(stopped))
    if not config.shard:
        torch.save(made_of.model.state_dict(), folder / f"{processes.rank()}.pt")


def assert_same_run(folder: Path, other: Path) -> None:
    ours, theirs = (load_checkpoint(f / "checkpoint.pt")["task"] for f in (folder, other))
    for part in ("model", "ema"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=2e-5)
    a, b = (load_file(f / "model/model.safetensors") for f in (folder, other))
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["diffusion", "autoencoder", "sharp"])
def test_two_ranks_learn_what_one_process_learns_from_both_their_batches(kind, tmp_path):
    on_two(tmp_path, trained, kind)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    alone = made(kind, ALONE)
    before = {name: value.clone() for name, value in alone.model.state_dict().items()}
    fit(alone, Pictures(), ALONE, tmp_path / "alone")
    assert_same_run(tmp_path / "run", tmp_path / "alone")
    moved = max(float((value - one[name]).abs().max()) for name, value in before.items())
    assert moved > 100 * 2e-5, "nothing was learned, so nothing was compared"
    logs = [(tmp_path / name / "log.csv").read_text().splitlines()[1:] for name in ("run", "alone")]
    for ours, theirs in zip(*logs, strict=True):
        a, b = (dict(enumerate(line.split(",")[:-1])) for line in (ours, theirs))
        assert [float(v) for v in a.values()] == pytest.approx([float(v) for v in b.values()], rel=1e-3, abs=1e-4)


def test_other_numbers_of_processes_go_on_with_a_run_of_as_many_images(tmp_path):
    on_two(tmp_path, trained, "diffusion", 5)  # stopped after 5 steps
    said = [(tmp_path / f"stopped-{rank}").read_text() for rank in range(2)]
    assert said[0] == said[1] == "stopped at step 5 of 8; the same command goes on from there"
    fit(task("diffusion", ALONE), Pictures(), ALONE, tmp_path / "run")
    fit(task("diffusion", ALONE), Pictures(), ALONE, tmp_path / "alone")
    assert_same_run(tmp_path / "run", tmp_path / "alone")


def test_a_run_of_another_batch_is_not_gone_on_with_and_says_which_is(tmp_path):
    fit(task("diffusion", ALONE), Pictures(), ALONE, tmp_path / "run")
    on_two(tmp_path, refused_batch)
    assert "(train.batch differ; with 2 processes, --train.batch 3 goes on with it)" in (tmp_path / "0").read_text()
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()


def refused_batch(folder: Path) -> None:
    config = replace(BETWEEN_TWO, batch=4)
    with pytest.raises(InputError) as error:
        fit(task("diffusion", config), Pictures(), config, folder / "run")
    (folder / str(processes.rank())).write_text(str(error.value))


def stopped_by_one(folder: Path) -> None:
    job = task("autoencoder", BETWEEN_TWO)
    if processes.rank() == 1:
        job = at(3, job, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="stopped at step 4 of 8"):
        fit(job, Pictures(), BETWEEN_TWO, folder / "run")


def test_a_rank_that_is_asked_to_stop_stops_all_after_one_step(tmp_path):
    on_two(tmp_path, stopped_by_one)
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == 4


def ranks_that_disagree(folder: Path) -> None:
    rank = processes.rank()
    config = replace(BETWEEN_TWO, lr=0.01 * (1 + rank))
    with pytest.raises(
        InputError, match=r"rank 1 and rank 0 differ in train\.lr; start all with the same command$"
    ) as e:
        fit(task("autoencoder", config), Pictures(), config, folder / "run")
    assert e.value.told is (rank == 1)


def test_ranks_that_disagree_on_the_settings_are_refused_before_anything_is_written(tmp_path):
    on_two(tmp_path, ranks_that_disagree)
    assert not (tmp_path / "run").exists()


class Crowded(torch.autograd.Function):
    """A backward pass that takes too much memory, in the middle, for more than so many images."""

    @staticmethod
    def forward(ctx, x, most):
        ctx.most = most
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if len(gradient) > ctx.most:
            raise torch.OutOfMemoryError
        return gradient, None


def crowded(config, most: int):
    job = task("autoencoder", config)
    job.model.decoder.conv_out.register_forward_pre_hook(lambda module, x: Crowded.apply(x[0], most))
    return job


def out_of_memory(folder: Path) -> None:
    says = "^batch: 3 images at once do not fit into memory; --train.accumulate 3 learns the same in more parts$"
    with pytest.raises(InputError, match=says):
        fit(crowded(BETWEEN_TWO, 1), Pictures(), BETWEEN_TWO, folder / "run")
    one = replace(BETWEEN_TWO, accumulate=3)  # which can be given in the same folder
    assert fit(crowded(one, 1), Pictures(), one, folder / "run") == 8
    config = replace(BETWEEN_TWO, batch=6, memory=1.0)
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(total_memory=2**31)
    torch.cuda.set_per_process_memory_fraction = lambda share: None
    job = crowded(config, 2 if processes.rank() else 6)
    batch = {"image": Pictures().images[:6]}
    assert fitted(job, batch, config).accumulate == 3
    job.step(batch, 0)


def test_ranks_out_of_memory_say_so_and_the_size_of_a_part_fits_all(tmp_path):
    on_two(tmp_path, out_of_memory)


def steps_together(folder: Path) -> None:
    rank = processes.rank()
    assert processes.count() == 2
    assert processes.shared(lambda: rank + 7) == 7
    processes.alone((folder / "mine").write_text, str(rank))

    def make() -> bool:
        if found := (folder / "made").exists():
            return found
        (folder / "made").write_text(str(rank))
        return False

    assert processes.first(make) is (rank == 1) and (folder / "made").read_text() == "0"

    def fails() -> None:
        raise InputError("PATH: no such file")

    for way in (processes.shared, processes.alone, processes.first):
        with pytest.raises(InputError, match="PATH") as error:
            way(fails)
        assert error.value.told is (rank == 1)
    means, asked = processes.gathered({"loss": 1.0 + rank, "grad": 4.0}, rank == 1)
    assert (means, asked) == ({"loss": 1.5, "grad": 4.0}, True)
    assert processes.gathered({"loss": 2.0}, False, rank == 0, True) == ({"loss": 2.0}, False, True, True)


def test_what_rank_0_does_or_fails_to_do_all_ranks_know(tmp_path):
    on_two(tmp_path, steps_together)
    assert (tmp_path / "mine").read_text() == "0"


def test_alone_there_is_one_process():
    assert (processes.rank(), processes.count(), processes.distributed()) == (0, 1, False)
    assert processes.shared(int, 3.7) == 3 and processes.first(lambda: 5) == 5
    assert processes.gathered({"loss": 2.0}, True) == ({"loss": 2.0}, True)
    processes.agreed(1, "one")
    with processes.joined():
        assert not processes.distributed()


# The command ----------------------------------------------------------------------------------------------------------

SMALL = ["--data", "mine", "--data.size", "16", "--steps", "3", "--train.workers", "0", "--train.batch", "4"]
SMALL += ["--model.width", "8"]


def started(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """ldm-lite in two processes of torchrun, as a user starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = [*command, "-m", "ldm_lite", *arguments]
    return subprocess.run(whole, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory) -> Path:
    """A folder with photographs, and a first stage and a denoiser that two processes trained on them."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "mine").mkdir()
    for i in range(24):
        Image.new("RGB", (20, 24), (40 * (i % 6), 90, 10 * i)).save(folder / "mine" / f"{i}.png")
    for name, more in (("autoencoder", []), ("ldm", ["--model.head_channels", "8"])):
        done = started(folder, "train", name, *SMALL, *more)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("weights: runs/") == 1  # rank 0 alone speaks
        assert "broadcast_buffers" not in done.stderr and "Grad strides" not in done.stderr
    return folder


def test_torchrun_trains_a_first_stage_and_a_denoiser_in_two_processes(trained_by_two):
    for name in ("autoencoder", "ldm"):
        run = trained_by_two / "runs" / name
        card = (run / "model/card.md").read_text()
        assert "3 steps of 8 images" in card and "2 processes, each on " in card
        assert runs.finished(run) and read(run / "run.json")["train"]["batch"] == 8
        assert len((run / "log.csv").read_text().splitlines()) == 4
    scale = load_file(trained_by_two / "runs/autoencoder/model/model.safetensors")["scale"]
    assert 0 < float(scale) < 100 and json.loads((trained_by_two / "runs/ldm/model/metrics.json").read_text())


def test_a_finished_run_and_a_mistake_are_said_once(trained_by_two):
    again = started(trained_by_two, "train", "autoencoder", *SMALL)
    assert again.returncode == 0 and again.stdout.count("is finished") == 1
    wrong = started(trained_by_two, "train", "autoencoder", *SMALL, "--data", "nowhere", "--out", "other")
    assert wrong.returncode != 0 and wrong.stderr.count("ldm-lite: nowhere: no such folder") >= 1
    assert "Traceback" not in wrong.stderr.split("ChildFailedError")[0].replace(
        "Traceback (most recent call last):", "", 1
    )
    assert not (trained_by_two / "other").exists()


LOST = """
import os, signal, sys
from datetime import timedelta
from pathlib import Path
from tiny import TRAIN, Pictures, at, task
from ldm_lite import cli, processes
from ldm_lite.training import fit

def train(rest):
    with processes.joined():
        job = task("autoencoder")
        if processes.rank() == 1:
            job = at(4, job, lambda: os.kill(os.getpid(), getattr(signal, sys.argv[1])))
        fit(job, Pictures(), TRAIN, Path("run"))

cli.train, processes.STEP = train, timedelta(seconds=30)
sys.exit(cli.main(["train"]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGKILL and SIGSTOP")
@pytest.mark.parametrize("fate", ["SIGKILL", "SIGSTOP"])
def test_a_process_that_is_killed_or_frozen_is_said_by_the_others_in_one_line(fate, tmp_path):
    if fate == "SIGSTOP" and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
        pytest.skip("gloo may keep its first limit in older versions of torch")
    (tmp_path / "lost.py").write_text(LOST)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    group["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ranks = [
        subprocess.Popen(
            [sys.executable, "lost.py", fate], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment
        )
        for environment in (os.environ | group | {"RANK": str(rank)} for rank in range(2))
    ]
    try:
        said = [ranks[0].communicate(timeout=100)[1]]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert [process.returncode for process in ranks] == [1, -signal.SIGKILL]
    line = said[0].strip().splitlines()[-1]
    assert line.startswith("ldm-lite: another process is gone or stands still (") and "Traceback" not in said[0]
    assert line.endswith("); the same command goes on from the last checkpoint")
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == 3


def test_processes_that_do_not_find_each_other_are_told_how_to_start(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    says = r"^WORLD_SIZE: the processes cannot be joined .*; start them with torchrun$"
    with pytest.raises(InputError, match=says), processes.joined():
        pass


@pytest.mark.parametrize("place", ["cuda", "cpu"])
def test_there_is_a_gpu_for_each_process_unless_they_run_on_the_cpu(place, monkeypatch):
    for name, value in {"WORLD_SIZE": "3", "LOCAL_RANK": "2", "LDM_LITE_DEVICE": place}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def meet(backend, timeout):
        raise ValueError(f"nobody else has come for {backend}")

    monkeypatch.setattr(torch.distributed, "init_process_group", meet)
    said = {
        "cuda": "^nproc-per-node: 3 processes or more, and 2 GPUs; start one for each GPU$",
        "cpu": r"^WORLD_SIZE: the processes cannot be joined \(nobody else has come for gloo\); start them",
    }
    with pytest.raises(InputError, match=said[place]), processes.joined():
        pass
