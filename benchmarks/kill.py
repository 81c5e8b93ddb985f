"""kill -9 at a random moment, ten times, and equal weights in the end: python benchmarks/kill.py

A small run of both tasks is trained once undisturbed. The same run is then started in another folder and killed at
random moments, ten times in all, and left to finish. The weights must be equal byte for byte."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KILLS = 10
COMMON = ["--train.save_every", "7", "--train.precision", "fp32", "--data.size", "32", "--data.count", "64"]
STAGE = ["train", "demo-kl4", "--steps", "150", "--model.width", "8", "--train.batch", "4", *COMMON]
WHOLE = ["train", "demo-ldm4", "--steps", "150", "--model.width", "32", "--train.batch", "4", *COMMON]


def start(line: list[str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ldm_lite.cli", *line], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def steps(log: Path) -> int:
    return max(0, len(log.read_text().splitlines()) - 1) if log.is_file() else 0


def main() -> None:
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    with tempfile.TemporaryDirectory() as folder:
        calm, rough = Path(folder) / "calm", Path(folder) / "rough"
        calm.mkdir(), rough.mkdir()
        killed = 0
        for line, name in ((STAGE, "demo-kl4"), (WHOLE, "demo-ldm4")):
            assert start(line, calm).wait() == 0
            for _ in range(KILLS // 2):
                run, saved = start(line, rough), rough / "runs" / name / "checkpoint.pt"
                was = saved.stat().st_mtime_ns if saved.is_file() else 0
                # wait until it has gone further than last time, then a random while
                while run.poll() is None and (saved.stat().st_mtime_ns if saved.is_file() else 0) == was:
                    time.sleep(0.01)
                time.sleep(rng.random() * 0.5)
                if run.poll() is None:
                    run.kill()
                    killed += 1
                run.wait()
                print(f"{name}: killed after {steps(rough / 'runs' / name / 'log.csv')} logged steps", flush=True)
            assert start(line, rough).wait() == 0
            one, other = ((f / "runs" / name / "model" / "model.safetensors").read_bytes() for f in (calm, rough))
            print(f"{name}: weights {'are equal' if one == other else 'DIFFER'} after {killed} kills so far")
            assert one == other
        assert killed == KILLS, f"only {killed} of {KILLS} kills came in time"


if __name__ == "__main__":
    main()
