"""What a guide is: the passes it needs, and a pure formula that combines their predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

__all__ = ["BASE", "Guide"]

BASE = "base"  # the pass without any adapter of the guide


class Guide(Protocol):
    """Combines predictions of one denoiser under several adapters, each on the same inputs.

    Both text branches go through the same formula, inside classifier-free guidance.
    """

    @property
    def adapters(self) -> Mapping[str, str | Path]:
        """Pass name -> the LoRA that is on in it; ``BASE`` needs none and is always there."""

    def combine(self, preds: Mapping[str, Tensor]) -> Tensor:
        """One prediction from those of ``BASE`` and of every adapter, all of one shape."""
