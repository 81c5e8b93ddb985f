"""What one image costs the published models, counted without computing it: python benchmarks/flops.py

Multiplications and additions (2 for each product) of one forward pass of the denoiser, of the text encoder and of the
first stage's encoder, at the size that each was trained at. docs/scaling.md goes on from here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ldm_lite.budget import counted
from ldm_lite.checkpoints import _published_condition
from ldm_lite.condition import Condition
from ldm_lite.conditioners import build
from ldm_lite.presets import FIRST_STAGES, UNETS
from ldm_lite.unet import UNet

SIDES = {"celebahq-ldm4": 64, "lsun-churches-ldm8": 32, "cin256-v2": 64, "txt2img-1p4b": 32, "sd-v1": 64}


def row(name: str, model: nn.Module, call: Callable[[], Any]) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    print(f"| {name} | {parameters / 1e6:.1f} M | {counted(call) / 1e9:.1f} |")


def main() -> None:
    print("| model | parameters | GFLOP an image |\n|---|---|---|")
    with torch.device("meta"):
        for name, side in SIDES.items():
            unet, config = UNet(UNETS[name]), UNETS[name]
            tokens = 77 if name in ("txt2img-1p4b", "sd-v1") else 1
            told = Condition(context=torch.zeros(1, tokens, config.context)) if config.context else Condition()
            z = torch.zeros(1, config.channels, side, side)
            shape = f"{config.channels} x {side} x {side}"
            row(f"{name}, z {shape}", unet, partial(unet, z, torch.zeros(1), told))
        text = build(_published_condition("txt2img-1p4b"))
        row("its text encoder, 77 tokens", text, lambda: text.encoder(torch.zeros(1, 77, dtype=torch.long)))
        for name, size in (("kl-f8", 256), ("kl-f8", 512), ("vq-f4", 256)):
            stage = FIRST_STAGES[name].build()
            row(f"{name}, encoding {size} x {size}", stage, partial(stage.code, torch.zeros(1, 3, size, size), False))


if __name__ == "__main__":
    main()
