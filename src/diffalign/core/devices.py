"""Where networks run unless somebody says otherwise."""

from __future__ import annotations

__all__ = ["default_device"]


def default_device() -> str:
    """``"cuda"`` where torch sees a GPU, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
