"""Our UNet beside diffusers' UNet2DModel with the same weights: python benchmarks/denoiser.py [SECONDS]

The CelebA-HQ model at 2/7 of its width, on a CPU. For each row two processes work in turns for SECONDS (14; pairs.py).
Before, they have to give the same output and, in their first step, find the same loss. forward: one evaluation, as a
sampler makes it. train: the same lines for both: noise predicted from a noised latent, backward, AdamW. On a GPU, at
full width: gpu.py."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from pairs import Job, Work, regrouped, rows, show
from torch import Tensor, nn

from ldm_lite.checkpoints import translated
from ldm_lite.condition import Condition
from ldm_lite.training import autocast, precision
from ldm_lite.unet import UNet, UNetConfig

CPU = torch.device("cpu")
CONFIG = UNetConfig(channels=3, width=64, mult=(1, 2, 3, 4), attend_at=(2, 4, 8), head_channels=32)
BATCH = {16: 16, 32: 8}
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}

Denoiser = Callable[[Tensor, Tensor], Tensor]


def theirs(ours: UNet) -> UNet2DModel:
    """diffusers' model with the weights and the numbers of groups of ours."""
    c = ours.config
    attend = [2**i in c.attend_at for i in range(len(c.mult))]
    model = UNet2DModel(
        in_channels=c.channels,
        out_channels=c.channels,
        block_out_channels=tuple(c.width * m for m in c.mult),
        layers_per_block=c.blocks,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attend),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attend[::-1]),
        attention_head_dim=c.head_channels,
        norm_num_groups=1,
    )
    regrouped(model, ours)
    model.load_state_dict(translated(ours, "diffusers"))
    return model


def both(weights: str, config: UNetConfig, ours: bool) -> tuple[nn.Module, Denoiser]:
    """A model, and how it is called."""
    unet = UNet(config)
    unet.load_state_dict(torch.load(weights, weights_only=True))
    if ours:
        return unet, lambda z, clock: unet(z, clock, Condition())
    other = theirs(unet)
    return other, lambda z, clock: other(z, clock).sample


def job(ours: bool, weights: str, setting: str, size: int) -> Job:
    model, denoise = both(weights, CONFIG, ours)
    dtype = torch.bfloat16 if setting == "bf16" else torch.float32
    random = torch.Generator().manual_seed(1)
    z, eps = (torch.randn(BATCH[size], 3, size, size, generator=random) for _ in range(2))
    clock = torch.linspace(1, 998, len(z))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def forward() -> float:
        model.eval()
        with torch.no_grad(), autocast(CPU, dtype):
            return float(denoise(z, clock).float().mean())

    def train() -> float:
        model.train()
        with autocast(CPU, dtype):
            loss = F.mse_loss(denoise(z, clock).float(), eps)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    with torch.no_grad():
        output = denoise(z[:2], clock[:2])
    return Job(output, {"forward": forward, "train": train})


def random_weights(config: UNetConfig, path: str) -> None:
    """With which the output depends on everything: a new UNet's is zero."""
    torch.manual_seed(0)
    unet = UNet(config)
    for p in unet.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.02)
    torch.save(unet.state_dict(), path)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 14.0
    bf16 = precision("auto", CPU) == torch.bfloat16
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, bf16 {'native' if bf16 else 'absent'}\n")
    header = True
    with tempfile.NamedTemporaryFile() as file:
        random_weights(CONFIG, file.name)
        for setting in ("fp32", "bf16") if bf16 else ("fp32",):
            works = [
                Work("forward", "forward", "1.00"),
                Work("train", "train", "1.00", TOLERANCE[setting]),
            ]
            for size in BATCH:
                for row in rows(job, (file.name, setting, size), works, seconds):
                    latents = f"{BATCH[size]} of {size} x {size}"
                    show({"setting": setting, "latents": latents} | row, header)
                    header = False


if __name__ == "__main__":
    main()
