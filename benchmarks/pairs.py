"""Two processes work in turns, one of ours and one of a peer's, so that both meet the same machine.

A ratio is the median over the pairs, ours / theirs. Before, both have to give the same output and, in their first step,
the same number. Memory is the peak of a process's resident set (getrusage) less what it has after its imports: weights,
gradients and the optimizer's state are in it."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Job(NamedTuple):
    """What a process does: `output` is compared, each of `works` is timed and gives a number."""

    output: Tensor
    works: Mapping[str, Callable[[], float]]


class Work(NamedTuple):
    """What is timed; `tolerance` is that of the first numbers, relative to theirs (None: they are not compared)."""

    name: str
    label: str
    goal: str
    tolerance: float | None = None


def _process(wire: Any, make: Callable[..., Job], arguments: tuple[Any, ...]) -> None:
    """Answers the name of a work with (result, seconds, CPU seconds, peak MB) until told to stop."""
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job = make(*arguments)
    wire.send(job.output.numpy())
    while (asked := wire.recv()) != "stop":
        torch.manual_seed(0)
        wall, cpu = time.perf_counter(), time.process_time()
        result = job.works[asked]()
        spent = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin
        wire.send((result, *spent, peak / 1024))


def rows(make: Callable[..., Job], arguments: tuple[Any, ...], works: list[Work], seconds: float) -> Iterator[Any]:
    """One row of a table for each work: make(True, *arguments) is ours, make(False, *arguments) theirs."""
    context = multiprocessing.get_context("forkserver")
    wires = []
    for ours in (True, False):
        here, there = context.Pipe()
        context.Process(target=_process, args=(there, make, (ours, *arguments)), daemon=True).start()
        wires.append(here)
    a, b = (torch.from_numpy(wire.recv()) for wire in wires)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)

    def answer(i: int, asked: str) -> tuple[float, ...]:
        wires[i].send(asked)
        return wires[i].recv()

    for work in works:
        a, b = (answer(i, work.name)[0] for i in (0, 1))
        assert work.tolerance is None or abs(a - b) <= work.tolerance * abs(b), f"{work.name}: {a} is not {b}"
        began, pairs = time.perf_counter(), []
        while len(pairs) < 5 or time.perf_counter() - began < seconds:
            order = (0, 1) if len(pairs) % 2 else (1, 0)
            pair = {i: answer(i, work.name) for i in order}
            pairs.append((pair[0], pair[1]))
        wall, cpu = (sorted(our[k] / their[k] for our, their in pairs) for k in (1, 2))
        ms = [1e3 * statistics.median(pair[i][1] for pair in pairs) for i in (0, 1)]
        mb, n = [pairs[-1][i][3] for i in (0, 1)], len(pairs)
        yield {
            "work": work.label,
            "time, ours / theirs": f"**{statistics.median(wall):.2f}**",
            "middle half": f"{wall[n // 4]:.2f}–{wall[-1 - n // 4]:.2f}",
            "goal": f"≤ {work.goal}",
            "CPU time": f"{statistics.median(cpu):.2f}",
            "ms": f"{ms[0]:.0f} / {ms[1]:.0f}",
            "pairs": f"{n}",
            "memory (goal ≤ 1.00)": f"**{mb[0] / mb[1]:.2f}**",
            "MB": f"{mb[0]:.0f} / {mb[1]:.0f}",
        }
    for wire in wires:
        wire.send("stop")


def show(row: Mapping[str, str], header: bool) -> None:
    if header:
        print(f"| {' | '.join(row)} |\n{'|---' * len(row)}|")
    print(f"| {' | '.join(row.values())} |", flush=True)


def regrouped(theirs: torch.nn.Module, ours: torch.nn.Module) -> torch.nn.Module:
    """Their model with our numbers of groups, of which theirs has one for all norms."""
    norms = torch.nn.GroupNorm
    groups = {norm.num_channels: norm.num_groups for norm in ours.modules() if isinstance(norm, norms)}
    for norm in theirs.modules():
        if isinstance(norm, norms):
            norm.num_groups = groups[norm.num_channels]
    return theirs
