"""Align text-to-image diffusion models from real images, and prove the gain."""

__version__ = "0.1.0"

__all__ = ["__version__"]
