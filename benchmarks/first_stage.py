"""Our first stage beside diffusers' AutoencoderKL with the same weights: python benchmarks/first_stage.py [SECONDS]

kl-f4 at a quarter of its width, on a CPU. For each row two processes, one of ours and one of theirs, work in turns for
SECONDS (14), so that both meet the same machine; a ratio is the median over the pairs, ours / theirs. Before, they have
to reconstruct an image alike and, in their first step, find the same loss.

equal: encode and decode; and a training step that is the same lines for both: reconstruct, L1 + KL, backward, AdamW.
defaults: a training step as `ldm-lite train` makes it (bf16 where the CPU has it, clipped gradients, fused AdamW, the
averaged weights, malloc told to keep memory) against one of diffusers' own example, train_autoencoderkl.py, with its
defaults: fp32, clipped gradients, AdamW not fused, gradients zeroed in place. Of that script only what the same loss
needs: its LPIPS network and its critic, which it runs from the first step on, are left out in its favour.

memory: the peak of a process's resident set (getrusage) less what it has after its imports: weights, gradients and the
optimizer's state are in it."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ldm_lite.autoencoder import Autoencoder, AutoencoderConfig
from ldm_lite.checkpoints import translated
from ldm_lite.runs import steady_allocator
from ldm_lite.training import AutoencoderTask, TrainConfig, autocast, precision

CPU = torch.device("cpu")
CONFIG = AutoencoderConfig(channels=3, width=32, mult=(1, 2, 4))
KL = 1e-6  # per element of an image
BATCH = {64: 8, 128: 4}
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "defaults": 2e-2}  # of the first loss; in bf16 theirs draws other noise


def theirs(ours: Autoencoder) -> AutoencoderKL:
    """diffusers' model with the weights of ours, and their numbers of groups, of which it has one for all norms."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CONFIG.mult),
        up_block_types=("UpDecoderBlock2D",) * len(CONFIG.mult),
        block_out_channels=tuple(CONFIG.width * m for m in CONFIG.mult),
        layers_per_block=CONFIG.blocks,
        latent_channels=CONFIG.channels,
        norm_num_groups=1,
    )
    groups = {norm.num_channels: norm.num_groups for norm in ours.modules() if isinstance(norm, nn.GroupNorm)}
    for norm in model.modules():
        if isinstance(norm, nn.GroupNorm):
            norm.num_groups = groups[norm.num_channels]
    state = translated(ours, "diffusers")
    model.load_state_dict({k: state[k].view_as(v) for k, v in model.state_dict().items()})
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in ours.parameters())
    return model


def reconstructed(model: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        if isinstance(model, Autoencoder):
            return model.decode(model.encode(image))
        return model.decode(model.encode(image).latent_dist.mode()).sample


def once(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Training's pass: the reconstruction from a sample of the posterior, and the KL of each image."""
    if isinstance(model, Autoencoder):
        reconstruction, code = model(image)
        return reconstruction, code.penalty
    posterior = model.encode(image).latent_dist
    return model.decode(posterior.sample()).sample, posterior.kl()


Step = Callable[[Tensor], float]


def equal(model: nn.Module, dtype: torch.dtype) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step(image: Tensor) -> float:
        with autocast(CPU, dtype):
            reconstruction, kl = once(model, image)
            loss = F.l1_loss(reconstruction.float(), image) + KL * kl.mean() / image[0].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def our_default(model: Autoencoder) -> Step:
    task, steps = AutoencoderTask(model, TrainConfig()), iter(range(10_000))
    return lambda image: task.step({"image": image}, next(steps))["loss"]


def their_default(model: AutoencoderKL) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), 4.5e-6, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)

    def step(image: Tensor) -> float:
        reconstruction, kl = once(model, image)
        l1 = F.l1_loss(reconstruction.float(), image.float(), reduction="none").sum() / len(image)
        loss = l1 + KL * kl.sum() / len(image)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return float(loss.detach()) / image[0].numel()

    return step


def worker(wire: Any, weights: str, ours: bool, setting: str, size: int) -> None:
    """Answers "forward" and "step" with (result, seconds, CPU seconds, peak MB) until told to stop."""
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if ours and setting == "defaults":
        steady_allocator()
    model = Autoencoder(CONFIG)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model = model if ours else theirs(model)
    image = torch.rand(BATCH[size], 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    if setting == "defaults":
        step = our_default(model) if ours else their_default(model)
    else:
        dtype = torch.bfloat16 if setting == "bf16" else torch.float32
        step = equal(model, dtype)
    wire.send(reconstructed(model, image[:1]).numpy())
    while (asked := wire.recv()) != "stop":
        torch.manual_seed(0)
        model.train(asked == "step")
        wall, cpu = time.perf_counter(), time.process_time()
        if asked == "step":
            result = step(image)
        else:
            with autocast(CPU, dtype):
                result = float(reconstructed(model, image).float().mean())
        spent = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin
        wire.send((result, *spent, peak / 1024))


def rows(setting: str, size: int, weights: str, seconds: float, header: bool) -> None:
    """The table's rows for one setting and size."""
    context = multiprocessing.get_context("forkserver")
    wires = []
    for ours in (True, False):
        here, there = context.Pipe()
        context.Process(target=worker, args=(there, weights, ours, setting, size), daemon=True).start()
        wires.append(here)
    a, b = (torch.from_numpy(wire.recv()) for wire in wires)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)

    def answer(i: int, asked: str) -> tuple[float, ...]:
        wires[i].send(asked)
        return wires[i].recv()

    for asked in ("step",) if setting == "defaults" else ("forward", "step"):
        a, b = (answer(i, asked)[0] for i in (0, 1))
        assert abs(a - b) <= TOLERANCE[setting] * abs(b) or asked == "forward", f"{setting}, {asked}: {a} is not {b}"
        began, pairs = time.perf_counter(), []
        while len(pairs) < 5 or time.perf_counter() - began < seconds:
            order = (0, 1) if len(pairs) % 2 else (1, 0)
            pair = {i: answer(i, asked) for i in order}
            pairs.append((pair[0], pair[1]))
        wall, cpu = (sorted(our[k] / their[k] for our, their in pairs) for k in (1, 2))
        ms = [1e3 * statistics.median(pair[i][1] for pair in pairs) for i in (0, 1)]
        mb, n = [pairs[-1][i][3] for i in (0, 1)], len(pairs)
        row = {
            "setting": setting,
            "images": f"{BATCH[size]} of {size} px",
            "work": {"step": "train", "forward": "encode, decode"}[asked],
            "time, ours / theirs": f"**{statistics.median(wall):.2f}**",
            "middle half": f"{wall[n // 4]:.2f}–{wall[-1 - n // 4]:.2f}",
            "goal": "≤ 0.65" if setting == "defaults" else "≤ 1.00",
            "CPU time": f"{statistics.median(cpu):.2f}",
            "ms": f"{ms[0]:.0f} / {ms[1]:.0f}",
            "pairs": f"{n}",
            "memory (goal ≤ 1.00)": f"**{mb[0] / mb[1]:.2f}**",
            "MB": f"{mb[0]:.0f} / {mb[1]:.0f}",
        }
        if header:
            print(f"| {' | '.join(row)} |\n{'|---' * len(row)}|")
            header = False
        print(f"| {' | '.join(row.values())} |", flush=True)
    for wire in wires:
        wire.send("stop")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 14.0
    bf16 = precision("auto", CPU) == torch.bfloat16
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, bf16 {'native' if bf16 else 'absent'}\n")
    with tempfile.NamedTemporaryFile() as file:
        torch.manual_seed(0)
        torch.save(Autoencoder(CONFIG).state_dict(), file.name)
        for setting in ("fp32", "bf16", "defaults") if bf16 else ("fp32", "defaults"):
            for size in BATCH:
                rows(setting, size, file.name, seconds, header=(setting, size) == ("fp32", 64))


if __name__ == "__main__":
    main()
