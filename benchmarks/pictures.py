"""The pictures of the README and of RESULTS.md: python benchmarks/pictures.py"""

from pathlib import Path

import torch

from ldm_lite.data import Scenes
from ldm_lite.latent import LatentDiffusion
from ldm_lite.presets import DataConfig, told_images
from ldm_lite.runs import beside, classes_in_rows, pictures, reconstructed, sampled, told_samples, whole_batch
from ldm_lite.training import autocast, precision, save_grid

HERE = Path(__file__).parent / "pictures"

PROMPTS = (
    "a red house on the left and two pines, in the snow at dusk",
    "a white boat on the left and a blue boat on the right, on the water by day",
    "three cacti, on sand by day",
    "two trees and a yellow house in the middle, on grass at dawn",
)


def enlarged(images: torch.Tensor, times: int) -> torch.Tensor:
    return images.repeat_interleave(times, 2).repeat_interleave(times, 3)


def main() -> None:
    scenes = Scenes("test")
    images = pictures(scenes, range(32))
    save_grid(enlarged(images, 2), HERE / "scenes.png", 8)
    save_grid(pictures(Scenes("test", size=256), range(4)), HERE / "scenes-256.png", 4)

    model = LatentDiffusion.load("scenes-ldm4")
    save_grid(
        enlarged(torch.cat([images[:8], reconstructed(model.first_stage, images[:8])]), 2), HERE / "first-stage.png", 8
    )
    samples, _ = sampled(model, 128, 64)
    by_class, columns = classes_in_rows(samples, 16)
    save_grid(enlarged(by_class, 2), HERE / "samples.png", columns)
    # the README's first: two of each kind
    save_grid(enlarged(samples[:32], 2), HERE / "first-screen.png", 8)

    # a row or two for each model that is told something: what it is told, and below it what it draws
    asked = {"caption": [*PROMPTS, *PROMPTS]}
    told = [LatentDiffusion.load("scenes-text").sample(asked, steps=30, guidance=2.0, seed=1)]
    for name, guidance in (("layout", 2.0), ("map", 1.0), ("upscale", 1.0), ("inpaint", 1.0)):
        other = LatentDiffusion.load(f"scenes-{name}")
        given = whole_batch(told_images(DataConfig(), other.conditioner.config, "validation"), range(8))
        told.append(beside(other, given, told_samples(other, given, 64, guidance, 30))[:16])
    save_grid(enlarged(torch.cat(told), 2), HERE / "told.png", 8)

    # one latent on its way from noise to a picture
    states = list(model.trajectory({"label": torch.tensor([3, 6])}, steps=30, guidance=2.0, seed=4))
    shown = [states[i] for i in (0, 4, 9, 14, 19, 24, 27, 29)]
    with autocast(model.device, precision("auto", model.device)), torch.no_grad():
        path = torch.cat([model.first_stage.decode(step.z).float() for step in shown])
        aim = torch.cat([model.first_stage.decode(step.z0).float() for step in shown])
    save_grid(enlarged(torch.cat([path[::2], aim[::2]]), 2), HERE / "trajectory.png", 8)


if __name__ == "__main__":
    main()
