"""The loop: fit repeats task.step(batch, step). Everything random is a function of (seed, step, rank).

A checkpoint is (task, step, config), so a resumed run is the same run, on a CPU bit for bit. A task is anything with
step(batch, step) -> {name: number}, state_dict, load_state_dict and save(folder)."""

from __future__ import annotations

import atexit
import csv
import functools
import importlib.util
import inspect
import math
import os
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, is_dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from . import processes
from .autoencoder import Code
from .config import InputError, from_dict, one_or_more, read, to_dict, whole, write
from .latent import LatentDiffusion, assembled, describe, mix, moved, store
from .losses import LossConfig, Objective
from .processes import device as device

# settings that a run may go on with others of: how it is computed and watched, on another machine too. Other parts of a
# batch are other draws of the same noise
FREE = ("accumulate", "compile", "memory", "sample_every", "save_every", "save_minutes", "tensorboard", "workers")
WARM = 3  # steps until cuDNN has tried its kernels, which takes what memory there is: no measure of what a run needs
CALIBRATION = 20  # steps that measure the rate when a run is given minutes instead of steps


@dataclass(frozen=True)
class TrainConfig:
    """How a task is trained. Rates are per optimiser step; a step sees batch images, accumulate parts at a time."""

    steps: int = 10_000
    minutes: float | None = None  # a time budget instead: the rate is measured once, then the number of steps is fixed
    batch: int = 32  # images a step, on each rank
    accumulate: int = 1  # parts a rank's batch is split into, to save memory
    lr: float = 1e-4
    decay: Literal["constant", "cosine"] = "constant"
    warmup: int = 100  # steps
    clip: float = 1.0  # largest norm of the gradient; 0 for any
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    ema: float = 0.9999  # 0 for none
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    save_every: int = 1000  # steps between checkpoints
    save_minutes: float = 0.0  # and minutes, for a machine that may be taken away, such as Colab's; 0 for steps alone
    sample_every: int = 0  # steps between sample grids, 0 for none
    workers: int = 0  # processes that prepare batches
    memory: float = 0.0  # GiB of the GPU that the run may take: accumulate is raised until it does; 0 is all there is
    # the denoiser: a minute or, with few cores, several, that pay in a long run; None is on a GPU from 2,000 steps or 3
    # minutes on, with two cores from 8,000 or 12
    compile: bool | None = None
    tensorboard: bool = False
    shard: bool = False  # each GPU holds a slice of a denoiser and its averages (FSDP2), where one has no room for all

    def __post_init__(self) -> None:
        one_or_more(steps=self.steps, batch=self.batch, accumulate=self.accumulate, save_every=self.save_every)
        for name in ("warmup", "sample_every", "workers", "weight_decay", "save_minutes", "memory", "clip"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: {getattr(self, name)} is below 0")
        if not self.lr > 0:
            raise InputError(f"lr: {self.lr} is not above 0")
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"minutes: {self.minutes} is not above 0")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema: {self.ema} is not in [0, 1)")
        if self.shard and self.memory:
            raise InputError("memory: with shard, no rank can try a batch alone; leave it out, and set accumulate")
        if self.batch % self.accumulate:
            raise InputError(f"accumulate: a batch of {self.batch} cannot be split into {self.accumulate} equal parts")


def room(task: Any, batch: Mapping[str, Any], config: TrainConfig, least: int | None = None) -> int | None:
    """The fewest equal parts of a batch of which one goes through the task; None where not even one image does.

    least: so many parts or more, by default config.accumulate."""
    for k in range(least or config.accumulate, config.batch + 1):
        if config.batch % k:
            continue
        with suppress(torch.OutOfMemoryError):
            task.trial(next(parts(batch, k)))
            return k
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return None


def too_large(task: Any, batch: Mapping[str, Any], config: TrainConfig) -> InputError:
    """What to do where a step took more memory than there is. Not for an `except`, which keeps what the step held."""
    once = config.batch // config.accumulate
    if processes.count() > 1 and once > 1:  # the others wait for the rest of the step, and not for a trial
        more = next(k for k in range(2 * config.accumulate, config.batch + 1) if config.batch % k == 0)
        advice = f"--train.accumulate {more} learns the same in more parts"
        return InputError(f"batch: {once} images at once do not fit into memory; {advice}")
    for descent in descents(task):
        descent.optimizer.zero_grad(set_to_none=True)  # the parts' before
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    found = room(task, batch, config, config.accumulate + 1) if hasattr(task, "trial") else None
    if once == 1:
        return InputError("batch: not even one image fits into memory; take a smaller model")
    if found is None:
        return InputError(f"batch: {once} images at once do not fit into memory, nor does one; take a smaller model")
    return InputError(
        f"batch: {once} images at once do not fit into memory, {config.batch // found} do: "
        f"--train.accumulate {found} learns the same in more parts"
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up from lr / warmup, then constant, or a cosine down to 0 at config.steps."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.decay == "constant":
        return config.lr
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


class EMA:
    """Exponential moving average of a module's trainable parameters.

    The decay warms up, min(decay, (1 + n) / (10 + n)) after n updates, as the original's."""

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay, self.updates = module, decay, 0
        self.average = {name: p.detach().clone() for name, p in self.trained()}

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.module.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        trained = dict(self.trained())
        torch._foreach_lerp_([self.average[n] for n in trained], list(trained.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The module with averaged weights inside, its own after."""
        own = {name: p.detach().clone() for name, p in self.trained()}
        try:
            self._set(self.average)
            yield self.module
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.trained():
            p.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        return {"average": entire(self.average), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(slice_of(value, self.average[name]))


def precision(wanted: str, place: torch.device) -> torch.dtype:
    """The dtype to compute in. auto is bf16 where the hardware has it, fp16 on older CUDA devices, else fp32.

    A T4 says that it supports bf16 and only emulates it: capability 8 is asked for (pytorch PR 148322)."""
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if wanted != "auto":
        return named[wanted]
    if place.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(place) >= (8, 0) else torch.float16
    if place.type == "cpu" and _cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


@functools.cache
def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 natively; emulation is slower than fp32."""
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked and asked())


def autocast(place: torch.device, dtype: torch.dtype) -> Any:
    """Context in which matrix products and convolutions are computed in dtype."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(place.type, dtype)


class Descent:
    """One optimiser over a module: mixed precision, accumulation, clipping, learning rate and EMA.

    replica: what a loss calls in place of the module, so that in several processes gradients are means over all.
    shards: the parts of the module of which each rank holds a slice, as `slices` made them; all that is trained is in
    one of them. state_dict is then a matter of all ranks, and is the same on the first as without shards."""

    def __init__(self, module: nn.Module, config: TrainConfig, shards: Sequence[Any] = ()):
        self.module, self.config, self.shards = module, config, shards
        self.replica = module if shards else replica(module)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.place = self.parameters[0].device
        self.dtype = precision(config.precision, self.place)
        if shards and self.dtype == torch.float16:
            raise InputError("shard: needs --train.precision bf16 or fp32; fp16 scales its loss on each rank by itself")
        self.optimizer = torch.optim.AdamW(
            self.parameters, config.lr, config.betas, weight_decay=config.weight_decay, fused=self.place.type != "mps"
        )
        self.scaler = torch.amp.GradScaler(self.place.type, enabled=self.dtype == torch.float16)
        self.ema = EMA(module, config.ema) if config.ema else None

    def autocast(self) -> Any:
        return autocast(self.place, self.dtype)

    def step(self, batch: Mapping[str, Any], rate: float, loss: Any) -> dict[str, float]:
        """Descends loss(part) -> (scalar, {name: scalar}), a mean over equal parts of the batch, at this rate.

        Each part draws from a seed of its own, the next after the one before: ranks that share the parts draw what one
        process with all of them would."""
        self.module.train()
        seed = torch.initial_seed()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, Tensor] = {}
        for i, part in enumerate(parts(batch, self.config.accumulate)):
            if i:
                torch.manual_seed(seed + i)
            with self.alone(i + 1 < self.config.accumulate):
                with self.autocast():
                    value, named = loss(part)
                self.scaler.scale(value / self.config.accumulate).backward()
            for name, number in named.items():
                totals[name] = totals.get(name, 0) + number.detach() / self.config.accumulate
        self.scaler.unscale_(self.optimizer)
        grad = entire(nn.utils.clip_grad_norm_(self.parameters, self.config.clip or math.inf))
        self.scaler.step(self.optimizer)  # skips the step, by itself, when fp16 overflowed: its gradient counts as 0
        if self.scaler.is_enabled() and not grad.isfinite():
            grad = torch.zeros_like(grad)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update()
        return {name: float(number) for name, number in totals.items()} | {"grad": float(grad), "lr": rate}

    def trial(self, part: Mapping[str, Any], loss: Any) -> None:
        """One part's loss and gradient, beside what a step holds already: the optimizer's two averages of the gradient,
        and the gradient of the parts before, where it is one of several. Nothing is learned."""
        own, self.replica = self.replica, self.module  # each rank tries by itself
        held = [] if self.optimizer.state else [torch.empty_like(p) for p in self.parameters for _ in range(2)]
        try:
            if len(next(iter(part.values()))) < self.config.batch:
                for p in self.parameters:
                    p.grad = torch.zeros_like(p)
            self.module.train()
            with self.autocast():
                value, _ = loss(part)
            value.backward()
        finally:
            held.clear()
            self.replica = own
            self.optimizer.zero_grad(set_to_none=True)

    def alone(self, more: bool) -> Any:
        """Context of a part after which more follow: only the last one's gradients are sent, with those before."""
        for part in self.shards:
            part.set_requires_gradient_sync(not more)
        return self.replica.no_sync() if more and self.replica is not self.module else nullcontext()

    def averaged(self) -> Any:
        """Context in which the module has its averaged weights and is in eval mode."""
        self.module.eval()
        return self.ema.applied() if self.ema else nullcontext(self.module)

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": entire(self.module.state_dict()),
            "optimizer": entire(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own, optimizer = self.module.state_dict(), dict(state["optimizer"])
        self.module.load_state_dict({name: slice_of(v, own.get(name)) for name, v in state["model"].items()})
        if self.shards:  # both averages of a gradient are sliced as its parameter is
            sliced = lambda values, p: {k: slice_of(v, p) if v.ndim else v for k, v in values.items()}
            optimizer["state"] = {i: sliced(values, self.parameters[i]) for i, values in optimizer["state"].items()}
        self.optimizer.load_state_dict(optimizer)
        for parameter, held in self.optimizer.state.items():  # in the layout that the parameter has in memory here
            for name, value in held.items():
                held[name] = torch.empty_like(parameter).copy_(value) if value.ndim else value
        if state["scaler"]:  # there is none of a run that was in another precision so far
            self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])


def parts(batch: Mapping[str, Any], n: int) -> Iterator[dict[str, Any]]:
    """The batch in n equal parts."""
    size = len(next(iter(batch.values()))) // n
    for i in range(n):
        yield {k: v[i * size : (i + 1) * size] for k, v in batch.items()}


def compiles(config: TrainConfig, place: torch.device) -> bool:
    """Whether fit compiles a network: where it is asked to, or on a GPU for a run that is long enough to gain by it.

    Few cores compile for minutes, so that a run on a small machine has to be longer. Not by itself without Triton,
    which torch brings to Linux alone."""
    if config.compile is not None:
        return config.compile
    slow = max(1.0, 8 / (os.cpu_count() or 1))
    long = config.steps >= 2000 * slow if config.minutes is None else config.minutes >= 3 * slow
    return place.type == "cuda" and long and importlib.util.find_spec("triton") is not None


def compiled(task: Task, config: TrainConfig) -> Any:
    """Context of a run whose denoiser is compiled, where `compiles` says so."""
    if not isinstance(task, DiffusionTask) or sharded(task) or not compiles(config, task.descent.place):
        return nullcontext()
    return graphs(task.model.denoiser)


@contextmanager
def graphs(*networks: nn.Module) -> Iterator[None]:
    """Networks are compiled inside, once for each size they meet: in place, so that their tensors keep their names.

    Afterwards they are as they were, since a batch of another size would take another minute."""
    for network in networks:
        network.compile(dynamic=False)
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None  # torch has no name for it


class Task(Protocol):
    """What fit repeats. fit sets `config` once it knows how many steps there will be."""

    model: nn.Module
    config: TrainConfig

    def step(self, batch: Mapping[str, Any], step: int) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
    def save(self, folder: Path) -> None: ...


# Slices -------------------------------------------------------------------------------------------------------------


def slices(model: LatentDiffusion) -> list[Any]:
    """Leaves each rank with a slice of the denoiser's and the conditioner's weights, in place; returns these two parts.

    A block's weights come together when it is their turn, and go again (FSDP2: torch's fully_shard, Zhao et al. 2023).
    The first stage stays whole on every rank: it is small, and nothing of it is trained."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (processes.count(),))
    parts = [part for part in (model.denoiser, model.conditioner) if any(True for _ in part.parameters())]
    for part in parts:
        for module in list(part.modules()):
            if isinstance(module, nn.ModuleList):
                for block in module:
                    if any(True for _ in block.parameters()):
                        fully_shard(block, mesh=mesh)
        fully_shard(part, mesh=mesh, reshard_after_forward=True)  # also after a sample, which no backward pass follows
    return parts


def sharded(task: Any) -> bool:
    """Whether each rank holds a slice of the model: all have then to take part where weights are read."""
    return bool(getattr(getattr(task, "descent", None), "shards", ()))


def entire(value: Any) -> Any:
    """The value, or a dict or list with it inside, with tensors that lie in slices put together; on every rank, and on
    the CPU of the first. What is whole is left as it is."""
    if isinstance(value, Mapping):
        return type(value)((k, entire(v)) for k, v in value.items())
    if isinstance(value, list):
        return [entire(v) for v in value]
    if not hasattr(value, "full_tensor"):
        return value
    together = value.detach().full_tensor()
    return together.cpu() if processes.rank() == 0 or not together.ndim else together.new_empty(0)


def slice_of(value: Any, own: Any) -> Any:
    """A whole tensor as this rank holds `own`: its slice if that is one."""
    if not hasattr(own, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


class DiffusionTask:
    """Learns the denoiser and the conditioner of a LatentDiffusion; the first stage stays as it is.

    dropout: share of conditions blanked, which is what makes guidance possible (Ho and Salimans 2022, algorithm 1)."""

    def __init__(self, model: LatentDiffusion, config: TrainConfig, dropout: float = 0.1):
        self.model, self.config, self.dropout = model, config, dropout
        self.about, shard = describe(model), config.shard and processes.distributed()
        place = next(model.denoiser.parameters()).device
        if not shard and place.type == "cuda" and precision(config.precision, place) != torch.float32:
            model.denoiser.to(memory_format=torch.channels_last)  # what half-precision convolutions want
        self.descent = Descent(model, config, slices(model) if shard else ())
        self.state_dict, self.load_state_dict = self.descent.state_dict, self.descent.load_state_dict

    def step(self, batch: Mapping[str, Any], step: int) -> dict[str, float]:
        return self.descent.step(batch, learning_rate(step, self.config), self.loss)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.descent.replica(batch, self.dropout).mean()
        return loss, {"loss": loss}

    def trial(self, part: dict[str, Any]) -> None:
        self.descent.trial(part, self.loss)

    def picture(self, batch: Mapping[str, Any]) -> Tensor:
        """Sixteen samples under the batch's conditions, drawn with the averaged weights."""
        some = {k: v[:16] for k, v in batch.items()}  # captions and layouts are lists
        z = some.get("z")
        size = tuple(s * self.model.first_stage.f for s in z.shape[2:]) if z is not None else some["image"].shape[2:]
        with self.descent.averaged(), self.descent.autocast():
            return self.model.sample(some, steps=30, guidance=2.0, size=tuple(size))

    def save(self, folder: Path) -> None:
        with self.descent.averaged() as model:
            if not self.descent.shards:
                model.save(folder)
                return
            state = entire(model.state_dict())

        def write() -> None:
            whole = assembled(self.about)
            whole.load_state_dict(state)
            whole.save(folder)

        processes.alone(write)


class AutoencoderTask:
    """Learns a first stage, and a critic against it: two optimisers, one pass of the autoencoder for a step.

    What is minimised: losses.py. In several processes the autoencoder's one `forward` is what is wrapped, so that
    replicas stay equal."""

    def __init__(self, model: nn.Module, config: TrainConfig, loss: LossConfig | None = None):
        if config.shard:
            raise InputError("shard: is for denoisers; a first stage is small enough without")
        self.model, self.config = model, config
        self.descent = Descent(model, config)
        loss = loss or LossConfig()
        self.objective = Objective(loss).to(self.descent.place)
        self.seen: list[tuple[Tensor, Code]] = []  # reconstruction and code of each part of this step's batch
        codes = model.config.codes if loss.restart and model.config.bottleneck == "vq" else 0
        self.now, self.idle = 0, torch.zeros(codes, dtype=torch.long)  # idle: steps since a code was chosen
        if self.objective.critic is not None:
            self.critic = Descent(self.objective.critic, replace(config, ema=0.0))

    def step(self, batch: Mapping[str, Any], step: int) -> dict[str, float]:
        self.now, self.seen, rate = step, [], learning_rate(step, self.config)
        numbers = self.descent.step(batch, rate, self.loss)
        if self.objective.critic is not None:
            judged = dict.fromkeys(("critic", "real", "fake"), 0.0)
            if self.objective.judging(step):
                both = {"image": batch["image"], "reconstruction": torch.cat([seen for seen, _ in self.seen])}
                judged |= self.critic.step(both, rate * self.objective.config.critic_rate, self.critic_loss)
            numbers |= {name: judged[name] for name in ("critic", "real", "fake")}
        if len(self.idle):
            self.restart()
        return numbers

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        reconstruction, code = self.descent.replica(batch["image"])
        self.seen.append((reconstruction.detach(), code))
        last_layer, scale = self.model.decoder.conv_out.weight, self.descent.scaler.get_scale()
        return self.objective(batch["image"], reconstruction, code, last_layer, self.now, scale)

    def critic_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective.judged(self.critic.replica, batch["image"], batch["reconstruction"])

    def trial(self, part: dict[str, Any]) -> None:
        self.now, self.seen = self.config.steps, []  # late, when the critic judges too
        self.descent.trial(part, self.loss)
        if self.objective.critic is not None:
            both = {"image": part["image"], "reconstruction": self.seen[0][0]}
            self.critic.trial(both, self.critic_loss)
        self.seen = []

    def restart(self) -> None:
        """Moves the codes that no latent has chosen for a while to where latents are, and their averages with them."""
        index = torch.cat([code.index.flatten() for _, code in self.seen])
        used = torch.bincount(index, minlength=len(self.idle))
        if processes.distributed():
            torch.distributed.all_reduce(used)
        self.idle = torch.where(used.cpu() > 0, 0, self.idle + 1)
        dead = (self.idle >= self.objective.config.restart).nonzero().flatten()
        if len(dead):
            codebook = self.model.bottleneck
            codebook.restart(dead.to(index.device), torch.cat([code.mean.detach() for _, code in self.seen]))
            if self.descent.ema:
                average = self.descent.ema.average["bottleneck.embedding.weight"]
                average[dead] = codebook.embedding.weight.detach()[dead]
            self.idle[dead] = 0

    def picture(self, batch: Mapping[str, Any]) -> Tensor:
        """Eight images and, below each, its reconstruction by the averaged weights."""
        image = batch["image"][:8]
        with self.descent.averaged() as model, torch.no_grad(), self.descent.autocast():
            return torch.cat([image, model(image, sample=False)[0].float().clamp(-1, 1)]).cpu()

    def state_dict(self) -> dict[str, Any]:
        critic = {"critic": self.critic.state_dict()} if self.objective.critic is not None else {}
        return self.descent.state_dict() | critic | {"idle": self.idle}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.descent.load_state_dict(state)
        if self.objective.critic is not None:
            self.critic.load_state_dict(state["critic"])
        self.idle = state["idle"]

    def save(self, folder: Path) -> None:
        with self.descent.averaged() as model:
            store(model, folder)


def replica(module: nn.Module) -> nn.Module:
    """The module itself or, in one of several processes, wrapped so that gradients are means over all of them."""
    if not processes.distributed():
        return module
    # where maps are channels_last, so are gradients of kernels
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # the critic's BatchNorm keeps running statistics, which nobody reads: they need not be equal
    ddp = nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in inspect.signature(ddp).parameters
    return ddp(module, **{"forward_sync_buffers" if newer else "broadcast_buffers": False})


class ReaderTask:
    """Teaches a SceneReader to answer: the sum of the cross-entropies of label, counts and segmentation.

    Half of the pictures are blurred and roughened a little, so that it can read what a model drew."""

    def __init__(self, model: nn.Module, config: TrainConfig):
        self.model, self.config = model, config
        self.descent = Descent(model, config)
        self.state_dict, self.load_state_dict = self.descent.state_dict, self.descent.load_state_dict

    def step(self, batch: Mapping[str, Any], step: int) -> dict[str, float]:
        return self.descent.step(batch, learning_rate(step, self.config), self.loss)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        said = self.descent.replica(worn(batch["image"]))
        label = F.cross_entropy(said.label.float(), batch["label"])
        counts = F.cross_entropy(said.counts.float().flatten(0, 1), batch["counts"].flatten())
        segmentation = F.cross_entropy(said.segmentation.float(), batch["segmentation"].long())
        total = label + counts + segmentation
        return total, {"loss": total, "label": label, "counts": counts, "segmentation": segmentation}

    def save(self, folder: Path) -> None:
        with self.descent.averaged() as model:
            store(model, folder)


class FinderTask(ReaderTask):
    """Teaches an ObjectFinder where the middles of objects are, and how large and of which colour they are.

    The heat's loss is CornerNet's (Law and Deng 2018, eq. 1), of boxes L1, of the colours of houses and boats the
    cross-entropy; all by object. Half of the pictures are worn, as the reader's."""

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        said = self.descent.replica(worn(batch["image"]))
        b, kinds, h, w = said.heat.shape
        boxes, there = batch["boxes"].float(), batch["kinds"] >= 0
        middle, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        extent = torch.tensor([w, h], device=boxes.device)
        cell = (middle * extent).long().clamp(max=extent - 1)
        # what the heat should be: 1 in the cell of the middle, falling around it
        grid = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"), -1).to(boxes.device)
        far = (grid - cell[:, :, None, None]).square().sum(-1)
        bump = torch.exp(-far / 2) * there[..., None, None]
        kind = F.one_hot(batch["kinds"].clamp(min=0), kinds).float()
        heat = (bump[:, :, None] * kind[..., None, None]).amax(1)
        p = said.heat.float().sigmoid().clamp(1e-6, 1 - 1e-6)
        sure = torch.where(heat == 1, (1 - p) ** 2 * p.log(), (1 - heat) ** 4 * p**2 * (1 - p).log())
        n = there.sum().clamp(min=1)
        row = torch.arange(b, device=boxes.device)[:, None].expand_as(there)[there]
        x, y = cell[there].unbind(1)
        own = said.box.float()[row, :, y, x]
        wanted = torch.cat([middle[there] - (cell[there] + 0.5) / extent, size[there]], 1)
        painted = ((batch["kinds"] == 0) | (batch["kinds"] == 4))[there]  # houses and boats
        colour = F.cross_entropy(said.colour.float()[row, :, y, x], batch["colours"][there], reduction="none")
        parts = {
            "heat": -sure.sum() / n,
            "box": 10 * (own - wanted).abs().sum() / n,
            "colour": (colour * painted).sum() / n,
        }
        total = sum(parts.values(), torch.zeros((), device=boxes.device))
        return total, {"loss": total} | parts


def worn(image: Tensor) -> Tensor:
    """Images (B, 3, H, W) of which about half have lost some sharpness and gained some noise."""
    b, place = len(image), image.device
    blurred = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    much = (torch.rand(2, b, 1, 1, 1) * (torch.rand(b, 1, 1, 1) < 0.5)).to(place)
    return image + much[0] * (blurred - image) + 0.1 * much[1] * torch.randn_like(image)


# Data ---------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(mix(seed, epoch)))


def rows(step: int, n: int, config: TrainConfig, rank: int = 0, world: int = 1) -> list[tuple[int, int]]:
    """The (row, epoch) pairs of a step's batch from a dataset of n: each epoch is a new order of all rows."""
    first = (step * world + rank) * config.batch
    pairs = [divmod(first + i, n) for i in range(config.batch)]
    return [(int(_order(config.seed, epoch, n)[place]), epoch) for epoch, place in pairs]


class Drawn(Dataset):
    """A dataset addressed by (row, epoch) pairs, a batch at a time.

    draws(pairs) -> dict is used where a dataset offers it, then batch(rows), draw(row, epoch) -> item, dataset[row]."""

    def __init__(self, data: Any):
        self.data = data

    def __getitems__(self, pairs: list[tuple[int, int]]) -> dict[str, Any]:
        if hasattr(self.data, "draws"):
            batch = dict(self.data.draws(pairs))
        elif hasattr(self.data, "batch"):
            batch = dict(self.data.batch([row for row, _ in pairs]))
        else:
            draw = getattr(self.data, "draw", None)
            batch = collated([draw(*pair) if draw else self.data[pair[0]] for pair in pairs])
        image = batch.get("image")
        if image is not None and image.dtype == torch.uint8:
            batch["image"] = image.float() / 127.5 - 1
        return batch


def collated(items: list[dict[str, Any]]) -> dict[str, Any]:
    """One dict of stacked tensors; what cannot be stacked (captions, boxes that differ in number) stays a list."""
    batch = {}
    for key in items[0]:
        values = [item[key] for item in items]
        same = not isinstance(values[0], Tensor) or len({v.shape for v in values}) == 1
        batch[key] = default_collate(values) if same and not isinstance(values[0], str) else values
    return batch


class Flow(IterableDataset):
    """A rank's share of a stream, from its item `first` on."""

    def __init__(self, data: Any, first: int, rank: int, world: int):
        self.data, self.place, self.told = data, (first, rank, world), 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.data.flow(*self.place)

    def batch(self, items: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
        """The items as one, and what was skipped since the batch before: a worker's memory is its own."""
        new = list(self.data.broken)[self.told :]
        self.told += len(new)
        return collated(items), new

    def heard(self, source: Iterator[tuple[dict[str, Any], list[str]]]) -> Iterator[dict[str, Any]]:
        """The batches alone; what was skipped the data know from then on, in this process too."""
        for batch, new in source:
            self.data.broken.update(dict.fromkeys(new, True))
            yield batch


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Batches one after the other, as one."""
    if len(parts) == 1:
        return parts[0]
    end_to_end = lambda values: (
        torch.cat(values) if isinstance(values[0], Tensor) else list(chain.from_iterable(values))
    )
    return {key: end_to_end([part[key] for part in parts]) for key in parts[0]}


def as_is(batch: Any) -> Any:
    return batch


def deaf(worker: int) -> None:
    """Ctrl-C, and SIGTERM to a group or a job of processes, reach workers too; the main process alone acts on them."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)


def prepared(loader: DataLoader) -> Iterator[Any]:
    """What a DataLoader gives; its workers end with this iterator, or else with the process. A mistake that one of them
    meets is told as without workers."""
    source = iter(loader)

    def end() -> None:
        source._shutdown_workers()
        while source._workers:  # one that hangs is deaf to the SIGTERM that it got now
            source._workers.pop().kill()

    def given() -> Iterator[Any]:
        try:
            yield from source
        except InputError as error:  # one from a worker comes with its whole traceback, the message last
            raise InputError(str(error).strip().splitlines()[-1].removeprefix("ldm_lite.config.InputError: ")) from None
        finally:
            if loader.num_workers:
                end()
                atexit.unregister(end)

    if loader.num_workers:
        atexit.register(end)  # after an error, which keeps this iterator: Python would terminate the deaf and wait
    return given()


def batches(data: Any, start: int, config: TrainConfig, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
    """The batches of steps start … config.steps - 1; of a stream, without an end."""
    if getattr(data, "streaming", False):
        workers = min(config.workers, data.files(world))
        over = start % max(workers, 1)  # workers take turns, a batch each, and begin with the first of them
        flow = Flow(data, (start - over) * config.batch, rank, world)
        loader = DataLoader(flow, config.batch, num_workers=workers, collate_fn=flow.batch, worker_init_fn=deaf)
        return islice(flow.heard(prepared(loader)), over, None)
    if not len(data):
        raise InputError("the dataset is empty")
    order = (rows(step, len(data), config, rank, world) for step in range(start, config.steps))
    return prepared(
        DataLoader(
            Drawn(data),
            batch_sampler=order,
            collate_fn=as_is,
            num_workers=config.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=deaf,
            persistent_workers=False,
        )
    )


# The loop -----------------------------------------------------------------------------------------------------------


class Stopped(KeyboardInterrupt):
    """The run was interrupted; its checkpoint is saved."""


def fit(task: Task, data: Any, config: TrainConfig, out: str | Path, about: Mapping[str, Any] | None = None) -> int:
    """Trains until config.steps, resuming what `out` holds; returns the number of steps done.

    Writes out/run.json (what this run is), checkpoint.pt, log.csv, samples/, and model/ (weights with config) at the
    end. about: what else makes this run different from another in the same folder.

    Stopped after Ctrl-C or SIGTERM, with the checkpoint saved unless the rate of a run given minutes is not yet known;
    InputError when `out` holds another run, FloatingPointError when the loss or the gradient is not finite."""
    out, rank, world = Path(out), processes.rank(), processes.count()
    given, (config, step) = config, resumed(task, config, out, about or {})
    if config.minutes is not None:
        config = replace(config, steps=max(config.steps, CALIBRATION))
    task.config = config
    if step >= config.steps:
        if not processes.shared((out / "model" / "config.json").exists):  # killed between the last checkpoint and this
            finish(task, out)
        return step
    place = next(iter(task.model.parameters())).device
    log, began, kept = Log(out, step, config) if rank == 0 else Quiet(), time.monotonic(), time.monotonic()
    stop = Interrupt()
    with trying_kernels(), compiled(task, given), processes.at_work(), stop, log:
        source = batches(data, step, config, rank, world)
        if config.memory and place.type == "cuda":
            config = fitted(task, moved(next(source), place), config)
            source = batches(data, step, config, rank, world)
        while step < config.steps:
            torch.manual_seed(mix(config.seed, step, 0) + rank * config.accumulate)  # a seed for each part of each rank
            batch, numbers = moved(next(source), place), None
            with suppress(torch.OutOfMemoryError):
                numbers = task.step(batch, step)
            if numbers is None:
                raise too_large(task, batch, config)
            due = bool(config.save_minutes) and time.monotonic() - kept >= 60 * config.save_minutes and rank == 0
            numbers, asked, due = processes.gathered(numbers, stop.asked, due)
            for name in ("loss", "grad"):
                if not math.isfinite(numbers.get(name, 0.0)):
                    saved = out / "checkpoint.pt"
                    there = f"{saved} holds the last good state" if saved.exists() else "nothing was saved yet"
                    raise FloatingPointError(
                        f"step {step}: the {name} is {numbers[name]}; {there}; "
                        "try a smaller --train.lr or --train.precision fp32"
                    )
            step += 1
            log.write(step, numbers)
            if config.minutes is not None and step == CALIBRATION // 4:
                began, since = time.monotonic(), step
            if config.minutes is not None and step == CALIBRATION:
                rate = (time.monotonic() - began) / (step - since)
                steps = processes.shared(int, config.minutes * 60 / rate)  # one number for all ranks
                task.config = config = replace(config, steps=max(step, steps), minutes=None)
                log.total(config.steps)
                processes.alone(settle, out, config.steps)
                save(out / "checkpoint.pt", task, step, config)
                source = batches(data, step, config, rank, world)
            if config.minutes is None and (step % config.save_every == 0 or asked or due or step == config.steps):
                save(out / "checkpoint.pt", task, step, config)
                kept = time.monotonic()
            if config.sample_every and step % config.sample_every == 0 and (rank == 0 or sharded(task)):
                shown(task, batch, out / "samples", step)
            if asked and step < config.steps:
                if config.minutes is not None:
                    raise Stopped(f"stopped at step {step}, before the rate was known; the same command starts again")
                raise Stopped(f"stopped at step {step} of {config.steps}; the same command goes on from there")
    finish(task, out)
    return step


@contextmanager
def trying_kernels() -> Iterator[None]:
    """Context in which cuDNN tries which of its kernels are fastest: in a run sizes stay as they are, elsewhere not."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def finish(task: Task, out: Path) -> None:
    """The averaged weights, in out/model."""
    if sharded(task):
        task.save(out / "model")
    else:
        processes.alone(task.save, out / "model")


def fitted(task: Task, batch: Mapping[str, Any], config: TrainConfig) -> TrainConfig:
    """The config with a batch in as many parts as fit into config.memory, on the rank that has least room."""
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, config.memory * 2**30 / total))
    found = room(task, batch, config)
    most = processes.largest(config.batch + 1 if found is None else found)
    if most > config.batch:
        raise InputError(f"memory: not even one image fits into {config.memory:g} GiB; take a smaller model")
    task.config = config = replace(config, accumulate=most)
    for descent in descents(task):
        descent.config = replace(descent.config, accumulate=most)
    return config


def descents(task: Any) -> list[Descent]:
    """A task's optimisers."""
    return [getattr(task, name) for name in ("descent", "critic") if hasattr(task, name)]


def resumed(task: Task, config: TrainConfig, out: Path, about: Mapping[str, Any]) -> tuple[TrainConfig, int]:
    """Claims `out` for this run, or loads what it holds of it: the config (its steps fixed) and the next step."""
    processes.agreed({"about": to_dict(about), "train": to_dict(config)}, "settings")
    saved = out / "checkpoint.pt"

    def look() -> bool:
        claimed(out, config, about)
        for left in out.glob(f".{saved.name}.*.tmp"):  # by a run that was killed while it saved
            left.unlink()
        return saved.exists()

    if not processes.shared(look):
        return config, 0
    state = load_checkpoint(saved)  # of all ranks: the folder is one that all nodes see
    processes.agreed(state["step"], f"{saved}: the step")
    try:
        task.load_state_dict(state["task"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{saved}: the checkpoint of another model ({reason})") from None
    return replace(config, steps=state["config"]["steps"], minutes=None), state["step"]


def claimed(out: Path, config: TrainConfig, about: Mapping[str, Any]) -> None:
    """Writes out/run.json, what this run is. InputError when `out` holds another run, or anything else.

    Settings that are FREE may differ, and are written anew. Batch and parts of it are those of all ranks together:
    other numbers of processes, with as many images a step between them, are the same run. Not on a stream, whose rows
    they share: such a run says how many began it, unless it is older than this record."""
    world, stream = processes.count(), getattr(about.get("data"), "stream", False)
    this = {"about": to_dict(about), "train": to_dict(config)}
    this["train"] |= {"batch": world * config.batch, "accumulate": world * config.accumulate}
    this["train"].pop("shard")  # it changes where numbers lie, and not what they are
    shared = {"processes": world} if stream else {}
    this |= shared
    mark = out / "run.json"
    if mark.exists():
        there = completed(record(mark), config, about)
        known = there.get("processes", world)
        if stream and known != world and begun(out) and not (out / "model").exists():
            raise InputError(
                f"{out}: {known} {'process' if known == 1 else 'processes'} began it and share the stream's rows, "
                f"and now there {'is 1' if world == 1 else f'are {world}'}; start as many as before, or --restart"
            )
        # of a stream the workers share the files
        free = set(FREE) - ({"workers"} if stream else set())
        same = there | shared | {"train": there["train"] | {name: this["train"][name] for name in free}}
        if not begun(out):
            write(mark, this)
        elif changed := sorted(
            name.removeprefix("about.") for name in processes.differences({part: same[part] for part in this}, this)
        ):
            hint, before = "", there["train"].get("batch")
            if "train.batch" in changed and before and before % world == 0:
                hint = f"; with {world} processes, --train.batch {before // world} goes on with it" if world > 1 else ""
                hint = hint or f" (it learned from {before} images a step)"
            elif len(changed) == 1 and (name := changed[0].removeprefix("train.")) in there["train"]:
                hint = f" (it began with --train.{name} {there['train'][name]})"
            raise InputError(
                f"{out}: holds another run ({', '.join(changed)} differ{hint}); choose another --out or --restart"
            )
        elif same != there and not (out / "model").exists():
            write(mark, same)
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty and holds no run; choose another --out")
    else:
        write(mark, this)


def record(mark: Path) -> dict[str, Any]:
    """What a run.json says of its run. InputError where it is something else."""
    said = read(mark)
    if not isinstance(said, dict) or not all(isinstance(said.get(part), dict) for part in ("about", "train")):
        raise InputError(f"{mark}: is no record of a run; choose another folder, or --restart")
    return said


def settle(out: Path, steps: int) -> None:
    """Notes in out/run.json how many steps the minutes are; what was asked for stays there too."""
    write(out / "run.json", read(out / "run.json") | {"steps": steps})


def begun(out: Path) -> bool:
    """Whether the run in `out` has made a step: one that has not is given up for another."""
    log = out / "log.csv"
    steps = log.is_file() and len(log.read_bytes().splitlines()) > 1
    return steps or (out / "checkpoint.pt").exists() or (out / "model").exists()


def completed(there: dict[str, Any], config: TrainConfig, about: Mapping[str, Any]) -> dict[str, Any]:
    """What an older version wrote of a run, with the settings that there were none of at the time: they were off, or
    what they are by default."""
    train = to_dict(type(config)()) | there["train"]
    train.pop("shard")
    known = {}
    for name, value in about.items():
        known[name] = there["about"].get(name)
        if is_dataclass(value) and isinstance(known[name], dict):
            with suppress(InputError):
                known[name] = to_dict(from_dict(type(value), known[name]))
        elif name not in there["about"] and not value:
            known[name] = to_dict({name: value})[name]
    return there | {"train": train, "about": there["about"] | known}


def save(path: Path, task: Task, step: int, config: TrainConfig) -> None:
    """Writes a checkpoint whole or not at all: a run killed here leaves the old one as it was. On every rank."""
    state = {"task": task.state_dict(), "step": step, "config": to_dict(config)}

    def write() -> None:
        # through a file of Python's, whose errors say what went wrong; torch's own writer hides a full disk
        with whole(path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)

    processes.alone(write)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint that `save` wrote. No code in the file is ever run. InputError for anything else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["task"], state["step"], state["config"]["steps"]
        return state
    except PermissionError:
        raise InputError(f"{path}: may not be read; change its permissions") from None
    except Exception as error:  # zip, pickle, key: to the user it is one thing, a file that is no checkpoint
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: truncated, or not a checkpoint of ours ({reason}); delete it to start again"
        ) from None


def logged(out: str | Path) -> list[dict[str, str]]:
    """The rows of out/log.csv, without one that is only half there, being written or cut short by a kill; none where
    there is no log. InputError for something else of that name."""
    if not (path := Path(out) / "log.csv").is_file():
        return []
    lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
    rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
    rows = [row for row in rows if None not in row.values() and None not in row]
    try:
        for row in rows:
            int(row["step"]), float(row["seconds"]), float(row["loss"]), *map(float, filter(None, row.values()))
    except (KeyError, ValueError):
        raise InputError(f"{path}: is no log of a run; delete it, and the run goes on without") from None
    return rows


def seconds(out: str | Path) -> float:
    """How long the steps in out/log.csv took, over all the times the run was resumed."""
    return max((float(row["seconds"]) for row in logged(out)), default=0.0)


def shown(task: Any, batch: Mapping[str, Any], folder: Path, step: int) -> None:
    """The step's grid in a folder, where there is room to draw one: a run does not end for want of it."""
    try:
        picture(task, batch, folder / f"{step:07d}.png")
    except torch.OutOfMemoryError:
        if sharded(task):  # the other ranks are drawing
            raise
        print(f"step {step}: there is no room in memory for a grid of samples; it is left out", file=sys.stderr)


def picture(task: Any, batch: Mapping[str, Any], path: Path) -> None:
    """The task's sample grid as a PNG, without disturbing the run's randomness (every step seeds its own)."""
    graph = isinstance(task, DiffusionTask) and task.model.denoiser._compiled_call_impl
    # of other sizes than a step: a graph for each would take a minute
    with torch.compiler.set_stance("force_eager") if graph else nullcontext():
        images = task.picture(batch)
    if processes.rank() == 0:
        save_grid(images, path, 8)


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Images (n, 3, H, W) in [-1, 1] as one picture, PNG, JPEG or WebP by its name, whole or not at all."""
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    save_picture(to_pil_image(make_grid((images.clamp(-1, 1) + 1) / 2, nrow=columns, padding=2)), path)


def save_picture(picture: Any, path: Path) -> None:
    """A picture of Pillow's as PNG, JPEG or WebP by the file's name, whole or not at all."""
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
    with whole(path) as temporary:
        picture.save(temporary, kind)


class Interrupt:
    """Turns Ctrl-C and SIGTERM into a request that the loop grants after its step."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        self.before = {}
        for name in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not the main thread, which interrupts in other ways
                self.before[name] = signal.signal(name, self.ask)
        return self

    def ask(self, number: int, frame: Any) -> None:
        if self.asked:  # asked twice: at once
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *error: Any) -> None:
        for name, handler in self.before.items():
            signal.signal(name, handler)


class Quiet:
    """The log of a rank that is not the first: none."""

    def __enter__(self) -> Quiet:
        return self

    def total(self, steps: int) -> None:
        pass

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        pass


class Log:
    """The progress bar, log.csv and, if asked, TensorBoard, which has images a second, as a mean of 100 steps, and the
    sample grids too. A resumed run drops the rows it will write again.

    run.json is told on which card a run goes on, and in how many processes."""

    def __init__(self, out: Path, step: int, config: TrainConfig):
        self.path, self.start, self.config, self.out = out / "log.csv", step, config, out
        self.before, self.began = 0.0, time.monotonic()
        self.step, self.times = step, deque([self.began], maxlen=101)

    def __enter__(self) -> Log:
        from tqdm.auto import tqdm

        kept = [row for row in logged(self.out) if int(row["step"]) <= self.start] if self.start else []
        self.writer: csv.DictWriter | None = None
        with whole(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as self.file:
            for row in kept:
                self._row(row)
        self.file = open(self.path, "a", newline="", encoding="utf-8", buffering=1)  # a row at a time
        if self.writer:
            self.writer = csv.DictWriter(self.file, self.writer.fieldnames, extrasaction="ignore")
        if kept:
            self.before = float(kept[-1]["seconds"])
        total = None if self.config.minutes else self.config.steps
        self.bar = tqdm(
            total=total, initial=self.start, unit="step", desc=self.out.name, dynamic_ncols=True, mininterval=1
        )
        self.board = None
        if self.config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.start + 1)
        self.smooth: float | None = None
        mark, self.card = self.out / "run.json", device().type == "cuda"
        if self.card:
            on = {"card": torch.cuda.get_device_name(), "processes": processes.count()}
            write(mark, read(mark) | on)
        return self

    def _row(self, row: Mapping[str, Any]) -> None:
        try:
            if self.writer is None:
                self.writer = csv.DictWriter(self.file, list(row), extrasaction="ignore")
                self.writer.writeheader()
            self.writer.writerow(row)
        except OSError as error:
            raise InputError(f"{self.path}: not written ({error.strerror}); the last checkpoint is whole") from None

    def total(self, steps: int) -> None:
        self.bar.total = steps
        self.bar.refresh()

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        now = time.monotonic()
        spent = self.before + now - self.began
        row = {"step": step, **{k: f"{v:.6g}" for k, v in numbers.items()}, "seconds": f"{spent:.2f}"}
        if self.card:
            row["memory"] = f"{torch.cuda.max_memory_allocated() / 2**30:.2f}"  # GiB, the most since WARM
            if step == self.start + WARM:
                torch.cuda.reset_peak_memory_stats()
        self._row(row)
        loss = numbers["loss"]
        self.smooth = loss if self.smooth is None else 0.98 * self.smooth + 0.02 * loss
        self.bar.set_postfix_str(f"loss {self.smooth:.4f}", refresh=False)
        self.bar.update()
        if self.board:
            self.grid()
            self.times.append(now)
            images = (len(self.times) - 1) * self.config.batch * processes.count()
            also = {"images_a_second": images / max(now - self.times[0], 1e-9)}
            also |= {"memory": float(row["memory"])} if "memory" in row else {}
            for name, number in (numbers | also).items():
                self.board.add_scalar(name, number, step)
        self.step = step

    def grid(self) -> None:
        """The samples of the step that was written last, which are drawn after its row, on the board."""
        path = self.out / "samples" / f"{self.step:07d}.png"
        if self.board and self.step > self.start and path.is_file():
            picture = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
            self.board.add_image("samples", picture, self.step, dataformats="HWC")

    def __exit__(self, *error: Any) -> None:
        self.bar.close()
        with suppress(OSError):  # a full disk, which was said before
            self.file.close()
        if self.board:
            self.grid()
            self.board.close()
