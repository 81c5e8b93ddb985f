"""Models of a few thousand weights, a dataset of seven pictures and runs of eight steps, for tests to share."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor

from ldm_lite.autoencoder import Autoencoder, AutoencoderConfig
from ldm_lite.conditioners import Labels, LabelsConfig, Unconditional
from ldm_lite.diffusion import Diffusion, VariancePreserving
from ldm_lite.latent import LatentDiffusion, mix
from ldm_lite.losses import LossConfig
from ldm_lite.training import AutoencoderTask, DiffusionTask, TrainConfig, fit
from ldm_lite.unet import UNet, UNetConfig

NAMES = ("dawn", "noon", "night")
UNET = UNetConfig(channels=2, width=8, mult=(1, 2), blocks=1, attend_at=(2,), heads=2, vector=6, dropout=0.2)
TRAIN = TrainConfig(
    steps=8, batch=4, accumulate=2, lr=0.01, warmup=2, ema=0.9, decay="cosine", precision="fp32", save_every=3
)


def autoencoder(bottleneck: str = "kl", **other) -> Autoencoder:
    settings = {"channels": 2, "width": 8, "mult": (1, 2), "blocks": 1, "codes": 5} | other
    return Autoencoder(AutoencoderConfig(bottleneck=bottleneck, **settings))


def latent_diffusion(config: UNetConfig = UNET, door: str = "vector", **diffusion) -> LatentDiffusion:
    """f = 2. The denoiser's zero-initialised layers get weights, so that its output depends on all it is told."""
    unet = UNet(config)
    for p in unet.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    width = config.context if door == "context" else config.vector
    conditioner = Labels(LabelsConfig(NAMES, width, door)) if width else Unconditional()
    return LatentDiffusion(autoencoder(), unet, Diffusion(VariancePreserving(), "v", **diffusion), conditioner)


class Pictures:
    """Seven labelled pictures of 12 x 8. `draw` brightens each at random, another way in every epoch."""

    def __init__(self, n: int = 7):
        self.images = torch.rand(n, 3, 12, 8, generator=torch.Generator().manual_seed(1)) - 0.5

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, row: int, epoch: int) -> dict[str, Tensor | int]:
        light = torch.rand((), generator=torch.Generator().manual_seed(mix(row, epoch))) - 0.5
        return {"image": self.images[row] + light, "label": row % len(NAMES)}


# a critic from the third step on, and codes that are moved when two steps did not choose them
SHARP = LossConfig(
    perceptual=0.5,
    trunk="scenes",
    adversarial=0.3,
    start=2,
    restart=2,
    critic_width=4,
    critic_layers=1,
    critic_rate=0.5,
)


def task(kind: str, config: TrainConfig = TRAIN) -> AutoencoderTask | DiffusionTask:
    torch.manual_seed(2)
    if kind == "autoencoder":
        return AutoencoderTask(autoencoder(), config)
    if kind == "sharp":
        return AutoencoderTask(autoencoder("vq", codes=19), config, SHARP)
    return DiffusionTask(latent_diffusion(), config, dropout=0.3)


def graphs_made(monkeypatch) -> list[list[Tensor]]:
    """What is compiled from now on, without a compiler: for each graph what it is first called with."""
    own, made = torch.nn.Module.compile, []
    counted = lambda graph, inputs: made.append(inputs) or graph.forward
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **more: own(self, backend=counted, **more))
    torch._dynamo.reset()
    return made


def at(step: int, task, action):
    """The task, which does `action` before that step of its."""
    own = task.step

    def hooked(batch, now):
        if now == step:
            action()
        return own(batch, now)

    task.step = hooked
    return task


if __name__ == "__main__":  # a run that is killed: python tiny.py KIND STEP OUT
    kind, step, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    fit(at(step, task(kind), lambda: os.kill(os.getpid(), signal.SIGKILL)), Pictures(), TRAIN, out)
