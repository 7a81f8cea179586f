"""Contrastive preference guidance (cPGD): away from what was rejected, towards what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.guidance.contract import BASE

__all__ = ["Contrastive", "contrastive"]


def contrastive(base: Tensor, positive: Tensor, negative: Tensor, *, scale: float) -> Tensor:
    """Add the difference that two preference modules make.

        m = m_base + w (m_positive - m_negative)

    The rule is the same for epsilon, v and velocity. With text guidance it is applied to both branches before they are
    combined, which equals adding the guided difference afterwards.

    Args:
        base: prediction of the model, any shape.
        positive: of the module fitted to chosen images, same shape.
        negative: of the module fitted to rejected images, same shape.
        scale: w; 0 is off.

    Returns:
        The shape of ``base``.

    Raises:
        ValueError: shapes differ.

    Source:
        PGD 2026, arXiv 2602.18799, the contrastive form. Departures: none.

    Example:
        >>> import torch
        >>> contrastive(torch.tensor([1.0]), torch.tensor([1.5]), torch.tensor([1.2]), scale=2.0)
        tensor([1.6000])
    """
    if not base.shape == positive.shape == negative.shape:
        shapes = tuple(base.shape), tuple(positive.shape), tuple(negative.shape)
        raise ValueError(f"expected predictions of one shape, got {', '.join(map(str, shapes))}")
    return base + scale * (positive - negative)


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """cPGD with two LoRAs.

    Attributes:
        positive: LoRA file or folder, fitted to chosen images.
        negative: LoRA file or folder, fitted to rejected images.
        scale: w; 0 is off and makes no extra pass.
    """

    positive: str | Path
    negative: str | Path
    scale: float

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise DiffalignError(
                f"expected a scale of at least 0, got {self.scale}; to go the other way, swap positive and negative"
            )

    @property
    def adapters(self) -> Mapping[str, str | Path]:
        """Both LoRAs; none at scale 0."""
        return {"positive": self.positive, "negative": self.negative} if self.scale else {}

    def combine(self, preds: Mapping[str, Tensor]) -> Tensor:
        """See ``contrastive``."""
        if not self.scale:
            return preds[BASE]
        return contrastive(preds[BASE], preds["positive"], preds["negative"], scale=self.scale)
