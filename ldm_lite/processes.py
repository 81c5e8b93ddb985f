"""Several processes that train one model: torchrun starts one a GPU, and gradients are means over all of them.

    torchrun --nproc-per-node 8 -m ldm_lite train PRESET

Alone, there is one process, and all of this does nothing. Every rank runs the same code and takes part in every
`agreed`, `shared`, `first` and `gathered`; a run's files are written by rank 0, latents and what an FID saw by all,
and all nodes see one folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch

from .config import InputError, LostError

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # for rank 0 to encode a dataset; that a process has died torchrun says at once
STEP = timedelta(minutes=30)  # for a step of training, compiling and a checkpoint on a slow disk included


def distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    return torch.distributed.get_rank() if distributed() else 0


def count() -> int:
    return torch.distributed.get_world_size() if distributed() else 1


def device() -> torch.device:
    """This process's CUDA device, else Apple's, else the CPU; or LDM_LITE_DEVICE (cuda, mps, cpu), which --device sets.

    InputError for one that is asked for and is not there."""
    asked = os.environ.get("LDM_LITE_DEVICE", "")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked and asked not in there:
        raise InputError(f"device: {asked} is not one of {', '.join(there)}")
    if asked and not there[asked]:
        built = "" if asked != "cuda" or torch.version.cuda else "; this PyTorch was built without CUDA"
        raise InputError(f"device: there is no {asked} here{built}; leave --device out to take what there is")
    if asked in ("mps", "cpu"):
        return torch.device(asked)
    if there["cuda"]:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if there["mps"] else "cpu")


@contextmanager
def joined() -> Iterator[None]:
    """The processes that torchrun started, as one group inside. InputError where they do not find each other, LostError
    where later one of them is gone."""
    if int(os.environ.get("WORLD_SIZE", 1)) < 2 or distributed():
        yield
        return
    cuda = device().type == "cuda"
    if cuda:
        local, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local >= there:
            raise InputError(f"nproc-per-node: {local + 1} processes or more, and {there} GPUs; start one for each GPU")
        torch.cuda.set_device(local)
    try:
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(f"WORLD_SIZE: the processes cannot be joined ({reason}); start them with torchrun") from None
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        reason = re.sub(r"^\[[^]]*\] ", "", str(error).strip().splitlines()[-1]).split(". ")[0][:120]
        raise LostError(
            f"another process is gone or stands still ({reason}); the same command goes on from the last checkpoint"
        ) from None
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def at_work() -> Iterator[None]:
    """Inside, who waits for the others gives up after STEP: one of them is frozen, and a rented machine costs money."""
    if not distributed():
        yield
        return
    wait_at_most(STEP)
    try:
        yield
    finally:
        wait_at_most(PATIENCE)


def wait_at_most(limit: timedelta) -> None:
    if hasattr(torch.distributed, "set_timeout"):
        torch.distributed.set_timeout(limit)
    else:  # its name in older versions
        torch.distributed.distributed_c10d._set_pg_timeout(limit)


def shared(work: Callable[..., T], *arguments: Any) -> T:
    """What work(*arguments) returns on rank 0, on every rank; what it raises there is raised on every rank.

    The value has to be small: it is pickled and sent."""
    if not distributed():
        return work(*arguments)
    sent: list[Any] = [None, None]
    if rank() == 0:
        try:
            sent[0] = work(*arguments)
        except Exception as error:
            sent[1] = error
    torch.distributed.broadcast_object_list(sent, src=0)
    if sent[1] is not None:
        sent[1].told = rank() > 0  # rank 0 says it
        raise sent[1]
    return sent[0]


def alone(work: Callable[..., Any], *arguments: Any) -> None:
    """work(*arguments) on rank 0, while the others wait; what it raises is raised on every rank."""
    shared(lambda: work(*arguments) and None)


def first(work: Callable[[], T]) -> T:
    """work() on every rank, after it is done on rank 0: what that leaves in files the others find."""
    held: list[T] = []
    alone(lambda: held.append(work()))
    return held[0] if held else work()


def agreed(value: Any, what: str) -> None:
    """InputError, on every rank, where they do not all have the same value; of nested dicts it names what differs."""
    if not distributed():
        return
    values: list[Any] = [None] * count()
    torch.distributed.all_gather_object(values, value)
    others = [k for k, other in enumerate(values) if other != values[0]]
    if others:
        ranks = ", ".join(map(str, others))
        names = sorted({name for k in others for name in differences(values[k], values[0])})
        which = f" in {', '.join(names)}" if any(names) else ""
        error = InputError(f"{what}: rank {ranks} and rank 0 differ{which}; start all with the same command")
        error.told = rank() > 0  # type: ignore[attr-defined]
        raise error


def differences(a: Any, b: Any, name: str = "") -> Iterator[str]:
    """The names under which two nested dicts differ, such as train.lr."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif a != b:
        yield name


def largest(value: int) -> int:
    """Of all ranks."""
    if not distributed():
        return value
    values: list[Any] = [None] * count()
    torch.distributed.all_gather_object(values, value)
    return max(values)


def gathered(numbers: Mapping[str, float], *asked: bool) -> tuple[dict[str, float], *tuple[bool, ...]]:
    """(means over all ranks, for each question whether any of them asks it): what a step ends with, in one message."""
    if not distributed():
        return dict(numbers), *asked
    both = torch.tensor([*numbers.values(), *map(float, asked)], dtype=torch.float64)
    torch.distributed.all_reduce(both)
    sums, questions = both[: len(numbers)].tolist(), both[len(numbers) :].tolist()
    means = {name: value / count() for name, value in zip(numbers, sums, strict=True)}
    return means, *(asking > 0 for asking in questions)
