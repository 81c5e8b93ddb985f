"""The CelebA-HQ UNet (274 million weights) on a GPU, ours and diffusers': python benchmarks/gpu.py [--tiny] [SECONDS]

The same weights for both, cached latents of 64 x 64 x 3, bf16 autocast over fp32 weights, channels last, fused AdamW,
cuDNN free to try its kernels; eager and under torch.compile. train: images a second of optimiser steps on batches of
48, the paper's. sample: DDIM steps a second times the batch of 16, no gradients. task: a step of `ldm-lite train`,
which also measures the gradient's norm, averages the weights and waits. pictures: our whole model alone, 48 pictures of
256 x 256 at once, 20 DDIM steps and the decoder's work. Each is the median of repeats within SECONDS (20), after a
warm-up, and has a process of its own: they compile side by side, and are then measured one after the other.
At last the largest batch that a training step of ours, averages and optimiser included, takes through the card in
15 GiB.

fraction: what is reached of the card's own matrix rate, which is measured first, in the same run: the best bf16 product
of two 8192 x 8192 matrices. The operations counted are those of the UNet's matrix products and convolutions (torch's
counter; a training step is three forward passes), so nothing that a kernel does on the side is credited.
Goals: compiled training ≥ 1.15 x diffusers' compiled, and ≥ 45 % of the matrix rate; ≥ 60 pictures a second on an
H200; a batch of 8 or more in 15 GiB.

--tiny runs the same lines on the CPU with a small model, to see that they run: its numbers say nothing."""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from denoiser import Denoiser, both, random_weights
from pairs import show
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldm_lite.autoencoder import Pixels
from ldm_lite.condition import Condition
from ldm_lite.conditioners import Unconditional
from ldm_lite.diffusion import Diffusion, Estimate, VariancePreserving
from ldm_lite.latent import LatentDiffusion
from ldm_lite.presets import FIRST_STAGES, UNETS
from ldm_lite.samplers import ddim
from ldm_lite.training import DiffusionTask, TrainConfig, room
from ldm_lite.unet import UNet, UNetConfig

TINY = UNetConfig(channels=3, width=32, mult=(1, 2), blocks=1, attend_at=(2,), head_channels=32)
STEPS = 10  # of DDIM, in the work of the UNet alone
WORKS = (("train", False), ("sample", False), ("train", True), ("sample", True), ("task", True), ("pictures", True))


class Place:
    """The device, and how long work on it takes."""

    def __init__(self, tiny: bool, seconds: float):
        self.device, self.seconds = torch.device("cpu" if tiny else "cuda"), seconds
        self.config, self.side, self.square = (TINY, 8, 128) if tiny else (UNETS["celebahq-ldm4"], 64, 8192)
        self.batch, self.samples = (2, 2) if tiny else (48, 16)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds_of(self, work: Callable[[], object], warm_up: int = 3) -> float:
        """The median over repeats."""
        for _ in range(warm_up):
            work()
        self.wait()
        began, times = time.perf_counter(), []
        while len(times) < 5 or time.perf_counter() - began < self.seconds:
            before = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - before)
        return statistics.median(times)

    def latents(self, rows: int) -> Tensor:
        z = torch.randn(rows, self.config.channels, self.side, self.side, device=self.device)
        return z.contiguous(memory_format=torch.channels_last)

    def peak(self) -> float:
        """GB allocated at most since the last call."""
        if self.device.type != "cuda":
            return float("nan")
        peak = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return peak


def matrix_rate(place: Place) -> float:
    """Operations a second of the best bf16 product."""
    a, b = (torch.randn(place.square, place.square, device=place.device).bfloat16() for _ in range(2))
    return max(2 * place.square**3 / place.seconds_of(lambda: a @ b) for _ in range(3))


def operations(config: UNetConfig, side: int) -> float:
    """Of one forward pass of one image: two for each multiplication with addition."""
    with torch.device("meta"):
        unet, z, clock = UNet(config), torch.empty(1, config.channels, side, side), torch.empty(1)
        with FlopCounterMode(display=False) as counter:
            unet(z, clock, Condition())
    return counter.get_total_flops()


def training(place: Place, model: nn.Module, denoise: Denoiser) -> Callable[[], object]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    z, eps = place.latents(place.batch), place.latents(place.batch)
    clock = torch.linspace(1, 998, place.batch, device=place.device)

    def step() -> None:
        with torch.autocast(place.device.type, torch.bfloat16):
            loss = F.mse_loss(denoise(z, clock).float(), eps)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def sampling(place: Place, model: nn.Module, denoise: Denoiser) -> Callable[[], object]:
    """Our DDIM around either network."""
    model.eval()
    diffusion, z = Diffusion(VariancePreserving()), place.latents(place.samples)

    def predict(z: Tensor, t: Tensor) -> Estimate:
        clock = diffusion.schedule.clock(t).to(z.device, torch.float32).expand(len(z))
        with torch.autocast(place.device.type, torch.bfloat16):
            output = denoise(z, clock)
        return diffusion.estimate(output.float(), z, t)

    def sample() -> None:
        with torch.no_grad():
            for _ in ddim(predict, z, diffusion.schedule.grid(STEPS), diffusion.schedule):
                pass

    return sample


def whole(place: Place) -> tuple[list[nn.Module], Callable[[], object]]:
    """What is compiled of the whole CelebA-HQ model with random weights, and the drawing of a batch with it."""
    model = LatentDiffusion(
        FIRST_STAGES["vq-f4"].build(), UNet(place.config), Diffusion(VariancePreserving()), Unconditional()
    )
    model.to(place.device, memory_format=torch.channels_last).eval()
    size, n = place.side * model.first_stage.f, place.batch

    def sample() -> None:
        with torch.no_grad(), torch.autocast(place.device.type, torch.bfloat16):
            model.sample({}, n=n, batch_size=n, steps=20, sampler="ddim", size=size)

    return [model.denoiser, model.first_stage.decoder], sample


def tasked(place: Place) -> tuple[list[nn.Module], Callable[[], object]]:
    """The UNet, and a step of the task that ldm-lite train repeats."""
    task, batch, numbers = learner(place, TrainConfig(batch=place.batch, clip=0.0, precision="bf16")), {}, count()
    batch["z"] = place.latents(place.batch)
    return [task.model.denoiser], lambda: task.step(batch, next(numbers))


def learner(place: Place, config: TrainConfig) -> DiffusionTask:
    model = LatentDiffusion(Pixels(), UNet(place.config), Diffusion(VariancePreserving()), Unconditional())
    return DiffusionTask(model.to(place.device), config)


def serve(wire: Any, place: Place, work: str, weights: str, ours: bool) -> None:
    """Answers "compile" with None, and "measure" with (seconds of one piece of work, GB)."""
    setting()
    if work in ("task", "pictures"):
        networks, run = (tasked if work == "task" else whole)(place)
    else:
        model, denoise = both(weights, place.config, ours)
        model.to(place.device, memory_format=torch.channels_last)
        networks, run = [model], (training if work == "train" else sampling)(place, model, denoise)
    wire.send(None)
    while (asked := wire.recv()) != "stop":
        if asked == "compile":
            for network in networks:
                network.compile(fullgraph=ours)
            run()
            wire.send(None)
        else:
            run()
            place.peak()
            wire.send((place.seconds_of(run, 2), place.peak()))


def setting() -> None:
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")  # diffusers has such calls
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def fitting(place: Place, gib: float, most: int = 64) -> int:
    """The largest power of two of images that a training step takes through the card within so much memory."""
    config = TrainConfig(batch=most, clip=0.0, precision="bf16")
    total = torch.cuda.get_device_properties(place.device).total_memory
    torch.cuda.set_per_process_memory_fraction(gib * 2**30 / total)
    try:
        return most // (room(learner(place, config), {"z": place.latents(most)}, config) or 2 * most)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measured(place: Place, jobs: dict[tuple[str, bool], Any], rate: float, forward: float) -> None:
    """Prints a row for each job, eager and then compiled."""
    images = {"sample": STEPS * place.samples}
    found: dict[tuple[str, bool], float] = {}
    for mode in ("eager", "compiled"):
        if mode == "compiled":
            for wire in jobs.values():
                wire.send("compile")
            for wire in jobs.values():
                wire.recv()
        for (work, ours), wire in jobs.items():
            wire.send("measure")
            spent, peak = wire.recv()
            found[work, ours] = each = images.get(work, place.batch) / spent
            passes = {"train": 3, "task": 3, "sample": 1}.get(work)
            row = {
                "network": "ours" if ours else "diffusers",
                "mode": mode,
                "work": work,
                "images/s": f"{each:.1f}",
                "of the matrix rate": f"{passes * forward * each / rate:.1%}" if passes else "",
                "GB": f"{peak:.1f}",
                "ours / diffusers": f"**{each / found[work, False]:.2f}**" if (work, False) in found and ours else "",
            }
            show(row, header=mode == "eager" and len(found) == 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="the CelebA-HQ UNet on a GPU, ours and diffusers'")
    parser.add_argument("--tiny", action="store_true", help="the same lines on the CPU, to see that they run")
    parser.add_argument("seconds", nargs="?", type=float, default=20.0)
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        sys.exit("gpu.py: there is no GPU here, so nothing was measured (--tiny runs the same lines on the CPU)")
    setting()
    place = Place(arguments.tiny, arguments.seconds)
    name = "CPU, tiny model: these numbers say nothing" if arguments.tiny else torch.cuda.get_device_name()
    rate, forward = matrix_rate(place), operations(place.config, place.side)
    print(f"torch {torch.__version__}, {name}\nbf16 matrix product {rate / 1e12:.1f} TFLOP/s, ", end="")
    print(f"a forward pass of one image {forward / 1e9:.1f} GFLOP\n", flush=True)
    context, jobs = multiprocessing.get_context("spawn"), {}
    with tempfile.NamedTemporaryFile() as file:
        random_weights(place.config, file.name)
        for work, ours in WORKS:
            jobs[work, ours], there = context.Pipe()
            context.Process(target=serve, args=(there, place, work, file.name, ours), daemon=True).start()
        for wire in jobs.values():
            wire.recv()
    measured(place, jobs, rate, forward)
    for wire in jobs.values():
        wire.send("stop")
    if place.device.type == "cuda":
        print(f"\na training step within 15 GiB: {fitting(place, 15)} images at once")


if __name__ == "__main__":
    main()
