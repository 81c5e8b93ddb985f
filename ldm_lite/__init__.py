"""Latent diffusion (Rombach et al., CVPR 2022, arXiv 2112.10752) in small, readable parts."""

__version__ = "0.1.0"
