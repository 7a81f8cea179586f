"""Damage masks at latent size: what the error at each place of a row weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffalign.data import Preferences, ResizeRecipe, to_tensor

__all__ = ["DamageMasks", "damage_masks"]

_CODES = (torch.uint8, torch.int16, torch.int32)


@dataclass(frozen=True)
class DamageMasks:
    """The weights of N rows, of which few differ: held as numbers into a table, so that nothing is rounded.

    Attributes:
        codes: (N, 1, h, w) which of ``values``; uint8 as long as that is enough.
        values: (V,) float32 every weight that occurs.
    """

    codes: Tensor
    values: Tensor

    def weights(self, rows: Sequence[int], flipped: Sequence[bool]) -> Tensor:
        """(B, 1, h, w) float32 weights of these rows, mirrored where ``flipped``."""
        picked = zip((self.codes[row] for row in rows), flipped, strict=True)
        codes = torch.stack([code.flip(-1) if mirror else code for code, mirror in picked])
        return self.values[codes.long()]


def damage_masks(
    preferences: Preferences, recipe: ResizeRecipe, shape: Sequence[int], outside_weight: float
) -> DamageMasks:
    """What the error at each place of a latent weighs: 1 where a pair's mask says damage, less outside.

        w = m + outside_weight (1 - m),    m in [0, 1] the mask's share of a latent's pixel

    Args:
        preferences: N pairs. Without a mask, or where the crop has left nothing of it, every place weighs 1.
        recipe: how their images are resized.
        shape: (C, h, w) of a latent.
        outside_weight: in [0, 1].
    """
    _, height, width = shape
    codes = torch.zeros(len(preferences), 1, height, width, dtype=_CODES[0])
    table = {1.0: 0}
    for row, mask in enumerate(preferences.masks()):
        if mask is None:
            continue
        pixels = to_tensor(recipe(mask.convert("RGB")))[None, :1].add(1).div(2)
        damaged = torch.nn.functional.adaptive_avg_pool2d(pixels, (height, width)).clamp(0, 1)
        if not bool((damaged > 0).any()):
            continue
        weights = damaged[0] + outside_weight * (1 - damaged[0])
        found, places = torch.unique(weights, return_inverse=True)  # type: ignore[no-untyped-call]
        numbers = [table.setdefault(value, len(table)) for value in found.tolist()]
        codes = codes.to(_narrowest(len(table)))
        codes[row] = torch.tensor(numbers, dtype=codes.dtype)[places]
    return DamageMasks(codes, torch.tensor(list(table)))


def _narrowest(count: int) -> torch.dtype:
    return next(dtype for dtype in _CODES if count <= torch.iinfo(dtype).max + 1)
