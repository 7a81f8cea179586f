"""What tests of sampling need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffalign.models import LoraSettings, adapter_parameters, add_adapter, load_family, remove_adapter, save_adapter


def difference(ones: Sequence[Image.Image], others: Sequence[Image.Image]) -> int:
    """The largest, in 8-bit levels."""
    pairs = zip(ones, others, strict=True)
    return max(int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()) for one, other in pairs)


def save_loras(model: str, folder: Path, names: Sequence[str], *, size: float = 0.3) -> dict[str, str]:
    """LoRAs that change what a model computes, each in another way: their folders by name."""
    family = load_family(model)
    for seed, name in enumerate(names):
        add_adapter(family.denoiser, name, LoraSettings(rank=2, alpha=3, targets=family.lora_targets), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in adapter_parameters(family.denoiser, name).items():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=size, generator=generator)
        save_adapter(family.denoiser, name, folder / name, prefix=family.lora_prefix)
        remove_adapter(family.denoiser, name)
    return {name: str(folder / name) for name in names}
