"""Our first stage beside diffusers' AutoencoderKL with the same weights: python benchmarks/first_stage.py [SECONDS]

kl-f4 at a quarter of its width, on a CPU. For each row two processes work in turns for SECONDS (14; pairs.py). Before,
they have to reconstruct an image alike and, in their first step, find the same loss.

equal: encode and decode; and a training step that is the same lines for both: reconstruct, L1 + KL, backward, AdamW.
defaults: a training step as `ldm-lite train` makes it (bf16 where the CPU has it, clipped gradients, fused AdamW, the
averaged weights, malloc told to keep memory) against one of diffusers' own example, train_autoencoderkl.py, with its
defaults: fp32, clipped gradients, AdamW not fused, gradients zeroed in place. Of that script only what the same loss
needs: its LPIPS network and its critic, which it runs from the first step on, are left out in its favour."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from pairs import Job, Work, regrouped, rows, show
from torch import Tensor, nn

from ldm_lite.autoencoder import Autoencoder, AutoencoderConfig
from ldm_lite.checkpoints import translated
from ldm_lite.runs import steady_allocator
from ldm_lite.training import AutoencoderTask, TrainConfig, autocast, precision

CPU = torch.device("cpu")
CONFIG = AutoencoderConfig(channels=3, width=32, mult=(1, 2, 4))
KL = 1e-6  # per element of an image
BATCH = {64: 8, 128: 4}
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "defaults": 2e-2}  # of the first loss; in bf16 theirs draws other noise


def theirs(ours: Autoencoder) -> AutoencoderKL:
    """diffusers' model with the weights of ours, and their numbers of groups, of which it has one for all norms."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CONFIG.mult),
        up_block_types=("UpDecoderBlock2D",) * len(CONFIG.mult),
        block_out_channels=tuple(CONFIG.width * m for m in CONFIG.mult),
        layers_per_block=CONFIG.blocks,
        latent_channels=CONFIG.channels,
        norm_num_groups=1,
    )
    regrouped(model, ours)
    state = translated(ours, "diffusers")
    model.load_state_dict({k: state[k].view_as(v) for k, v in model.state_dict().items()})
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in ours.parameters())
    return model


def reconstructed(model: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        if isinstance(model, Autoencoder):
            return model.decode(model.encode(image))
        return model.decode(model.encode(image).latent_dist.mode()).sample


def once(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Training's pass: the reconstruction from a sample of the posterior, and the KL of each image."""
    if isinstance(model, Autoencoder):
        reconstruction, code = model(image)
        return reconstruction, code.penalty
    posterior = model.encode(image).latent_dist
    return model.decode(posterior.sample()).sample, posterior.kl()


Step = Callable[[Tensor], float]


def equal(model: nn.Module, dtype: torch.dtype) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step(image: Tensor) -> float:
        with autocast(CPU, dtype):
            reconstruction, kl = once(model, image)
            loss = F.l1_loss(reconstruction.float(), image) + KL * kl.mean() / image[0].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def our_default(model: Autoencoder) -> Step:
    task, steps = AutoencoderTask(model, TrainConfig()), iter(range(10_000))
    return lambda image: task.step({"image": image}, next(steps))["loss"]


def their_default(model: AutoencoderKL) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), 4.5e-6, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)

    def step(image: Tensor) -> float:
        reconstruction, kl = once(model, image)
        l1 = F.l1_loss(reconstruction.float(), image.float(), reduction="none").sum() / len(image)
        loss = l1 + KL * kl.sum() / len(image)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return float(loss.detach()) / image[0].numel()

    return step


def job(ours: bool, weights: str, setting: str, size: int) -> Job:
    if ours and setting == "defaults":
        steady_allocator()
    model = Autoencoder(CONFIG)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model = model if ours else theirs(model)
    image = torch.rand(BATCH[size], 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    dtype = torch.bfloat16 if setting == "bf16" else torch.float32
    if setting == "defaults":
        step = our_default(model) if ours else their_default(model)
    else:
        step = equal(model, dtype)

    def forward() -> float:
        model.eval()
        with autocast(CPU, dtype):
            return float(reconstructed(model, image).float().mean())

    def train() -> float:
        model.train()
        return step(image)

    return Job(reconstructed(model, image[:1]), {"forward": forward, "step": train})


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 14.0
    bf16 = precision("auto", CPU) == torch.bfloat16
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads, bf16 {'native' if bf16 else 'absent'}\n")
    with tempfile.NamedTemporaryFile() as file:
        torch.manual_seed(0)
        torch.save(Autoencoder(CONFIG).state_dict(), file.name)
        header = True
        for setting in ("fp32", "bf16", "defaults") if bf16 else ("fp32", "defaults"):
            works = [Work("step", "train", "0.65" if setting == "defaults" else "1.00", TOLERANCE[setting])]
            if setting != "defaults":
                works.insert(0, Work("forward", "encode, decode", "1.00"))
            for size in BATCH:
                for row in rows(job, (file.name, setting, size), works, seconds):
                    show({"setting": setting, "images": f"{BATCH[size]} of {size} px"} | row, header)
                    header = False


if __name__ == "__main__":
    main()
