"""The band of notebook 07: its denoiser's loss by time, from three seeds in each mode: python benchmarks/bands.py

Each run trains as the notebook does: class-conditional, v prediction, in cached latents of scenes-kl-f4. The loss is
that of the raw weights on 64 test latents, one noise for all times. The band is widened (ldm_lite/course/bands.py) and
written to ldm_lite/course/bands.json, with the loss of scenes-ldm4 on the same latents."""

from __future__ import annotations

import torch

from ldm_lite.conditioners import Labels, LabelsConfig
from ldm_lite.config import read, write
from ldm_lite.course.bands import FILE, widened
from ldm_lite.data import Latents, Scenes, cache_latents
from ldm_lite.diffusion import Diffusion, VariancePreserving
from ldm_lite.latent import LatentDiffusion, mix
from ldm_lite.presets import load_first_stage
from ldm_lite.training import DiffusionTask, TrainConfig, batches, device, moved
from ldm_lite.unet import UNet, UNetConfig

NOTEBOOK = "07_latent_diffusion"
TIMES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SEEDS = (1, 2, 3)
SETTINGS = {
    "fast": {"count": 512, "steps": 100, "lr": 3e-3, "warmup": 10, "ema": 0.98},
    "full": {"count": 2048, "steps": 700, "lr": 2e-3, "warmup": 50, "ema": 0.995},
}
UNET = UNetConfig(3, width=32, mult=(1, 2, 2), blocks=1, attend_at=(2, 4), head_channels=32, vector=32)


def train_config(settings: dict[str, float], seed: int) -> TrainConfig:
    own = {name: value for name, value in settings.items() if name != "count"}
    return TrainConfig(batch=16, betas=(0.9, 0.99), weight_decay=0.0, seed=seed, **own)


@torch.no_grad()
def by_time(model: LatentDiffusion, held_out: Latents) -> list[float]:
    """The mean loss of 64 latents at each of TIMES."""
    batch, losses = moved(held_out.batch(range(64)), model.device), []
    for t in TIMES:
        torch.manual_seed(0)  # the same noise at all times
        losses.append(float(model.eval()(batch, times=torch.full((64,), t, dtype=torch.float64)).mean()))
    return losses


def trained(data: Latents, settings: dict[str, float], seed: int) -> LatentDiffusion:
    torch.manual_seed(seed)
    labels = Labels(LabelsConfig(data.label_names, UNET.vector, "vector"))
    diffusion = Diffusion(VariancePreserving(), "v")
    model = LatentDiffusion(load_first_stage("scenes-kl-f4"), UNet(UNET), diffusion, labels).to(device())
    config = train_config(settings, seed)
    task = DiffusionTask(model, config)
    for step, batch in enumerate(batches(data, 0, config)):
        torch.manual_seed(mix(seed, step, 0))
        task.step(moved(batch, model.device), step)
    return model


def main() -> None:
    stage = load_first_stage("scenes-kl-f4").to(device())
    held_out = cache_latents(stage, Scenes("test", count=64), progress=False)
    modes = {}
    for mode, settings in SETTINGS.items():
        data = cache_latents(stage, Scenes("train", count=settings["count"]), progress=False)
        runs = []
        for seed in SEEDS:
            runs.append([round(loss, 4) for loss in by_time(trained(data, settings, seed), held_out)])
            print(mode, seed, runs[-1], flush=True)
        low, high = ([round(value, 4) for value in side] for side in widened(runs))
        modes[mode] = {"settings": settings, "runs": runs, "low": low, "high": high}
    shipped = LatentDiffusion.load("scenes-ldm4").to(device())
    reference = [round(loss, 4) for loss in by_time(shipped, held_out)]
    made = {"command": "python benchmarks/bands.py", "seeds": SEEDS, "latents": 64, "torch": torch.__version__}
    known = read(FILE) if FILE.exists() else {}
    write(FILE, known | {NOTEBOOK: {"made": made, "times": TIMES, "shipped": reference, "modes": modes}})


if __name__ == "__main__":
    main()
