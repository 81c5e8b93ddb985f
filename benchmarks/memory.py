"""What a piece of work takes in memory, for the other programs here."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch


def resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def grown(work: Callable[[], object]) -> int:
    """MiB, at its largest, by which work() grows the process, which is looked at every 2 ms; or the GPU's tensors."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) >> 20
    seen, done = [resident()], threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            seen.append(resident())

    thread = threading.Thread(target=look)
    thread.start()
    work()
    done.set()
    thread.join()
    return (max(seen) - seen[0]) >> 20
