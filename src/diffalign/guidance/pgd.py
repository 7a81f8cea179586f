"""Preference guidance (PGD): along the difference that preference tuning made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffalign.guidance.contract import BASE
from diffalign.guidance.registry import register_guide
from diffalign.guidance.strength import PreferenceGuide, check_equal_shapes, per_sample

__all__ = ["PGD", "pgd"]


def pgd(base: Tensor, tuned: Tensor, *, scale: float | Tensor) -> Tensor:
    """Go from the base to the tuned model, and on.

        m = m_base + w (m_tuned - m_base)

    w = 0 is the base, w = 1 the tuned model (both exactly, also in floating point), w > 1 extrapolates. If the tuned
    model is p_base exp(r/beta), then w divides beta, up to the score of a noised product not being a sum of scores.

    Args:
        base: prediction of the model, (B, ...).
        tuned: of the preference-tuned model, same shape.
        scale: w, a number or (B,).

    Returns:
        The shape of ``base``.

    Raises:
        ValueError: shapes differ.

    Source:
        PGD 2026, arXiv 2602.18799. Departures: none in the formula.

    Example:
        >>> pgd(torch.tensor([1.0]), torch.tensor([1.5]), scale=3.0)
        tensor([2.5000])
    """
    check_equal_shapes(base, tuned)
    return torch.lerp(base, tuned, per_sample(scale, base))


@register_guide("pgd", strength="scale", positive="tuned")
@dataclass(frozen=True, kw_only=True)
class PGD(PreferenceGuide):
    """PGD with one LoRA: a preference-tuned module, such as one trained with Diffusion-DPO.

    Attributes:
        tuned: LoRA file or folder.
        scale: w; 0 is off and makes no extra pass, 1 is the tuned model.
    """

    tuned: str | Path

    @property
    def modules(self) -> Mapping[str, str | Path]:
        """The tuned module."""
        return {"tuned": self.tuned}

    @property
    def evaluations(self) -> Mapping[str, Mapping[str, float]]:
        """One."""
        return {"tuned": {"tuned": 1.0}}

    @property
    def needs_base(self) -> bool:
        """The difference starts from the base."""
        return True

    def difference(self, preds: Mapping[str, Tensor]) -> Tensor:
        """Tuned minus base."""
        return preds["tuned"] - preds[BASE]

    def formula(self, preds: Mapping[str, Tensor], scale: float | Tensor) -> Tensor:
        """See ``pgd``."""
        return pgd(preds[BASE], preds["tuned"], scale=scale)
