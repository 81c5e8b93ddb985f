"""The shipped first stages beside one another: python benchmarks/stages.py

Prints the table of RESULTS.md from the metrics beside the weights, and draws held-out scenes through each."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm_lite.config import read
from ldm_lite.data import Scenes
from ldm_lite.folders import weights_folder
from ldm_lite.presets import load_first_stage
from ldm_lite.runs import pictures, reconstructed
from ldm_lite.training import save_grid

HERE = Path(__file__).parent / "pictures"
FACTORS = ("scenes-kl-f2", "scenes-kl-f4", "scenes-kl-f8", "scenes-kl-f16", "scenes-vq-f4", "scenes-vq-f8")
LOSSES = ("scenes-kl-f4-l1", "scenes-kl-f4-lpips", "scenes-kl-f4")
COLUMNS = {
    "latent_bytes": "bytes", "psnr": "PSNR", "psnr_without_texture": "PSNR, no texture", "ssim": "SSIM",
    "lpips": "LPIPS", "rfid": "rFID", "texture_kept": "texture kept", "codes_used": "codes used",
    "perplexity": "perplexity",
}  # fmt: skip


def table(names: tuple[str, ...]) -> None:
    print(f"| first stage | {' | '.join(COLUMNS.values())} |\n|---|{'---|' * len(COLUMNS)}")
    for name in names:
        numbers = read(weights_folder(name) / "metrics.json")
        print(f"| `{name}` | {' | '.join(str(numbers.get(key, '')) for key in COLUMNS)} |")
    print()


def drawing(names: tuple[str, ...], path: Path) -> None:
    """Eight test scenes, and below them what each first stage makes of them."""
    images = pictures(Scenes("test"), range(8, 16))
    rows = torch.cat([images, *(reconstructed(load_first_stage(name), images) for name in names)])
    save_grid(rows.repeat_interleave(2, 2).repeat_interleave(2, 3), path, 8)


if __name__ == "__main__":
    for names, name in ((FACTORS, "factors.png"), (LOSSES, "losses.png")):
        table(names)
        drawing(names, HERE / name)
