"""Datasets whose items are dicts: image (3, H, W) in [-1, 1] and, where the data has them, caption, label, boxes, …"""

from .cache import Latents, cache_latents
from .catalogue import KNOWN, known
from .folder import ImageFolder
from .hub import HubImages
from .lsun import LSUN
from .scenes import Scenes
from .tasks import with_crops, with_low_res, with_mask

__all__ = [
    "KNOWN",
    "LSUN",
    "HubImages",
    "ImageFolder",
    "Latents",
    "Scenes",
    "cache_latents",
    "known",
    "with_crops",
    "with_low_res",
    "with_mask",
]
