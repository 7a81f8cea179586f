"""From a name and settings to a degradation that can be called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

# each registers its degradations
from diffalign.curate.degrade import drawing, filters, inpainting, mixture, surroundings  # noqa: F401
from diffalign.curate.degrade.contract import Degradation, Setup, build_degradation

__all__ = ["load_degradation"]


def load_degradation(
    settings: Mapping[str, Any] | str,
    *,
    model: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    batch_size: int = 4,
) -> Degradation:
    """Load a degradation.

    Args:
        settings: a name in `DEGRADATIONS`, or a name and settings, such as ``{"name": "jpeg", "severity": 0.6}``.
        model: folder, hub id or embedded name of the model of those that draw and name no ``weights`` of their own.
        device: where networks run.
        dtype: of their weights.
        batch_size: images at a time through a network; it changes them by float noise only.

    Raises:
        DiffalignError: an unknown name or setting (with the nearest), a wrong value, or a model that cannot be loaded.
        ValueError: ``batch_size`` is below 1.

    Example:
        >>> from PIL import Image
        >>> jpeg = load_degradation({"name": "jpeg", "severity": 0.9})
        >>> photo = Image.linear_gradient("L").convert("RGB")
        >>> jpeg([photo], None, ["a gradient"], [7])[0].size, jpeg.parameters, jpeg.method_for(7).name
        ((256, 256), {'severity': 0.9}, 'jpeg')
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch_size of at least 1, got {batch_size}")
    return build_degradation(settings, Setup(model, device, dtype, batch_size))
