"""What the notebooks share and a user of the library does not need: the set-up cell's work and the course's outline."""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

REPOSITORY = "https://github.com/ldm-lite/ldm-lite"  # the one place that knows where the course lives


class Notebook(NamedTuple):
    """One line of the outline. parts: what it takes apart, as `figures.pipeline` names them."""

    number: str
    name: str  # the file is number_name.ipynb
    title: str
    question: str
    parts: tuple[str, ...]


EVERYTHING = ("image", "encoder", "latent", "noise", "denoiser", "sampler", "condition", "decoder", "judge")
SYLLABUS = tuple(
    Notebook(*row)
    for row in (
        ("00", "tour", "A tour", "What does a latent diffusion model do, part by part?", EVERYTHING),
        (
            "01",
            "pixels",
            "Pixels and perception",
            "Which part of a picture does the eye not miss?",
            ("image", "latent"),
        ),
        ("02", "autoencoder", "The autoencoder", "How small can a latent be?", ("encoder", "latent", "decoder")),
        ("03", "perceptual_loss", "Perceptual and adversarial loss", "Why is a mean of pictures grey?", ("decoder",)),
        ("04", "quantization", "Vector quantization", "Can a latent be a word from a dictionary?", ("latent",)),
        ("05", "diffusion", "Diffusion", "How does noise become data?", ("noise", "sampler")),
        ("06", "unet", "The UNet", "What sort of network cleans a picture?", ("denoiser",)),
        ("07", "latent_diffusion", "Latent diffusion", "How do the two halves meet?", ("latent", "noise", "denoiser")),
        ("08", "samplers", "Samplers", "How few steps are enough?", ("sampler",)),
        ("09", "cross_attention", "Cross-attention", "How does it listen to classes and text?", ("condition",)),
        ("10", "layouts", "Layouts and semantic maps", "How is it told what goes where?", ("condition",)),
        ("11", "editing", "Super-resolution and inpainting", "How does it keep what it is given?", ("condition",)),
        ("12", "evaluation", "Evaluation", "When is one model better than another?", ("judge",)),
        ("13", "factor", "The downsampling factor", "Which f is best, and who else?", ("encoder", "decoder", "judge")),
        ("14", "celebahq", "CelebA-HQ on one GPU", "What changes at 256 pixels?", EVERYTHING),
        ("15", "lsun", "LSUN on many GPUs", "What changes with many processes?", EVERYTHING),
        ("16", "original_weights", "The original weights", "Do the published models run here?", EVERYTHING),
        ("17", "after_ldm", "After LDM", "What has replaced which part?", ("noise", "denoiser", "sampler")),
    )
)


def fast() -> bool:
    """Whether LDM_LITE_FAST asks for the short form of a notebook: a minute on a CPU, as our own tests run it."""
    return os.environ.get("LDM_LITE_FAST", "") not in ("", "0")


def device() -> str:
    """cuda, mps or cpu: the best there is."""
    from .. import training

    return training.device().type


def hardware() -> str:
    """The device in words that are true of any machine like this one: "2 CPU cores", "Tesla T4"."""
    import torch

    if device() == "cuda":
        return torch.cuda.get_device_name()
    if device() == "mps":
        return "Apple GPU"
    affinity = getattr(os, "sched_getaffinity", None)  # what this process may use, where the system can say
    cores = (len(affinity(0)) if affinity else os.cpu_count()) or 1
    return f"{cores} CPU core{'s' * (cores > 1)}"


def setup() -> tuple[str, bool]:
    """(device, fast), after printing them with the versions. Every notebook begins with it.

    On a GPU, float32 is float32 from then on: by default PyTorch rounds a convolution's factors to TF32, of 10 bits,
    and what has to be equal would differ in the third digit."""
    import numpy
    import torch

    from .. import __version__

    python = platform.python_version()
    print(f"ldm_lite {__version__}, torch {torch.__version__}, numpy {numpy.__version__}, Python {python}")
    mode = "fast mode (LDM_LITE_FAST=1): short versions of everything" if fast() else "full mode"
    print(f"{mode}, on {hardware()}")
    torch.backends.cudnn.allow_tf32 = False
    return device(), fast()
