"""What a sampler costs beside its denoiser: python benchmarks/samplers.py [SECONDS]

The shipped scenes-ldm4, 16 latents, on a CPU. A path is walked with a network that answers at once, and the UNet alone
is called as often as the path asks, in turns for SECONDS (5). The share is the first time over the second, a median
over the turns: schedule, estimate, guidance, noise and the step itself."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ldm_lite import samplers
from ldm_lite.condition import Condition
from ldm_lite.latent import SAMPLERS, LatentDiffusion, Noise
from ldm_lite.training import autocast, precision

CPU = torch.device("cpu")
BATCH, SIZE, STEPS = 16, 64, 20
CASES = [
    ("ddim", {}, 1.0),
    ("ddim", {"eta": 1.0}, 1.0),
    ("ddim", {}, 2.0),
    ("heun", {}, 1.0),
    ("dpm_solver", {}, 1.0),
    ("plms", {}, 1.0),
]


def took(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def row(model: LatentDiffusion, name: str, own: dict[str, float], guidance: float, seconds: float) -> dict[str, str]:
    schedule, side = model.diffusion.schedule, SIZE // model.first_stage.f
    noise = Noise(0, (BATCH, model.first_stage.channels, side, side))
    z, told, blank = noise(torch.empty(0)), *model.conditions({"label": torch.arange(BATCH)})
    calls: list[tuple[Tensor, Tensor, Condition]] = []

    def network(*arguments: Tensor | Condition) -> Tensor:
        calls.append(arguments)
        return answers[len(arguments[0])]

    answers = {n: torch.randn(n, *z.shape[1:]) for n in (BATCH, 2 * BATCH)}
    own = own | ({"noise": noise} if own else {})
    predict = samplers.predictor(network, model.diffusion, told, blank, guidance)

    def path() -> None:
        calls.clear()
        samplers.last(SAMPLERS[name](predict, z, schedule.grid(STEPS), schedule, **own))

    def evaluation() -> None:
        model.denoiser(*calls[0])

    with torch.no_grad():
        path(), evaluation()
        began, pairs = time.perf_counter(), []
        while len(pairs) < 5 or time.perf_counter() - began < seconds:
            # the quick path a few times, or it would be timed from a cold cache only
            pairs.append((min(took(path) for _ in range(3)), len(calls) * took(evaluation)))
    share = statistics.median(rest / unet for rest, unet in pairs)
    rest, unet = (1e3 * statistics.median(times) / STEPS for times in zip(*pairs, strict=True))
    settings = ", ".join([f"{k} {v:g}" for k, v in own.items() if k == "eta"] + [f"guidance {guidance:g}"])
    return {
        "sampler": name,
        "settings": settings,
        "calls a step": f"{len(calls) / STEPS:.2f}",
        "UNet, ms a step": f"{unet:.1f}",
        "the rest, ms a step": f"{rest:.2f}",
        "share (goal ≤ 2 %)": f"**{100 * share:.2f} %**",
    }


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    model = LatentDiffusion.load("scenes-ldm4")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, {BATCH} latents, {STEPS} steps\n")
    header = True
    for setting in ("fp32", "bf16") if precision("auto", CPU) == torch.bfloat16 else ("fp32",):
        with autocast(CPU, torch.bfloat16 if setting == "bf16" else torch.float32):
            for case in CASES:
                found = {"setting": setting} | row(model, *case, seconds)
                if header:
                    print(f"| {' | '.join(found)} |\n{'|---' * len(found)}|")
                print(f"| {' | '.join(found.values())} |", flush=True)
                header = False


if __name__ == "__main__":
    main()
