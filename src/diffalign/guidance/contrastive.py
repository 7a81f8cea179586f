"""Contrastive preference guidance (cPGD): away from what was rejected, towards what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.guidance.contract import BASE
from diffalign.guidance.registry import register_guide
from diffalign.guidance.strength import PreferenceGuide, check_equal_shapes, per_sample

__all__ = ["Contrastive", "PlusMinus", "Weighted", "contrastive", "weighted"]


def contrastive(base: Tensor, positive: Tensor, negative: Tensor, *, scale: float | Tensor) -> Tensor:
    """Add the difference that two preference modules make.

        m = m_base + w (m_positive - m_negative)

    The rule is the same for epsilon, v and velocity. With text guidance it is applied to both branches before they are
    combined, which equals adding the guided difference afterwards.

    Args:
        base: prediction of the model, any shape.
        positive: of the module fitted to chosen images, same shape.
        negative: of the module fitted to rejected images, same shape.
        scale: w, a number, or (B,) for predictions (B, ...); 0 is off.

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
    check_equal_shapes(base, positive, negative)
    return base + per_sample(scale, base) * (positive - negative)


def weighted(base: Tensor, members: Sequence[tuple[float, Tensor]], *, scale: float | Tensor) -> Tensor:
    """Add the differences that several modules make to the base.

        m = m_base + w sum_i c_i (m_i - m_base)

    One member with c = 1 is PGD, two with 1 and -1 are cPGD. Where the weights sum to 0 the base cancels.

    Args:
        base: prediction of the model, any shape.
        members: weight c_i, above 0 for positive and below 0 for negative modules, and prediction, same shape.
        scale: w, a number, or (B,) for predictions (B, ...); 0 is off.

    Returns:
        The shape of ``base``.

    Raises:
        ValueError: shapes differ.

    Source:
        None: a generalisation of PGD and cPGD, arXiv 2602.18799.

    Example:
        >>> import torch
        >>> base, positive, negative = torch.tensor([1.0]), torch.tensor([1.5]), torch.tensor([1.2])
        >>> weighted(base, [(1.0, positive), (-0.5, negative)], scale=2.0)
        tensor([1.8000])
    """
    check_equal_shapes(base, *(pred for _, pred in members))
    return base + per_sample(scale, base) * _weighted_difference(base, members)


def _weighted_difference(base: Tensor, members: Sequence[tuple[float, Tensor]]) -> Tensor:
    difference = -sum(weight for weight, _ in members) * base
    for weight, pred in members:
        difference = difference + weight * pred
    return difference


@register_guide("cpgd", strength="scale", positive="positive", negative="negative")
@dataclass(frozen=True, kw_only=True)
class Contrastive(PreferenceGuide):
    """cPGD with two LoRAs.

    Attributes:
        positive: LoRA file or folder, fitted to chosen images.
        negative: LoRA file or folder, fitted to rejected images.
        scale: w; 0 is off and makes no extra pass.
    """

    positive: str | Path
    negative: str | Path

    @property
    def modules(self) -> Mapping[str, str | Path]:
        """Both."""
        return {"positive": self.positive, "negative": self.negative}

    @property
    def evaluations(self) -> Mapping[str, Mapping[str, float]]:
        """Two."""
        return {"positive": {"positive": 1.0}, "negative": {"negative": 1.0}}

    @property
    def needs_base(self) -> bool:
        """The base is not in the difference."""
        return False

    def difference(self, preds: Mapping[str, Tensor]) -> Tensor:
        """Positive minus negative."""
        return preds["positive"] - preds["negative"]

    def formula(self, preds: Mapping[str, Tensor], scale: float | Tensor) -> Tensor:
        """See ``contrastive``."""
        return contrastive(preds[BASE], preds["positive"], preds["negative"], scale=scale)


@register_guide("plus_minus", strength="scale", positive="module")
@dataclass(frozen=True, kw_only=True)
class PlusMinus(PreferenceGuide):
    """cPGD with one LoRA: as it is against its own mirror image, m_base + w (m(+s) - m(-s)).

    Attributes:
        module: LoRA file or folder, such as one trained with Diffusion-DPO.
        strength: s, the weight it has on the positive side; minus s on the negative one.
        scale: w; to first order in the module, w = 1/(2 s) is the tuned model.
    """

    module: str | Path
    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strength > 0:
            raise DiffalignError(f"expected a strength above 0, got {self.strength}")

    @property
    def modules(self) -> Mapping[str, str | Path]:
        """The one."""
        return {"module": self.module}

    @property
    def evaluations(self) -> Mapping[str, Mapping[str, float]]:
        """Two, under the same LoRA with opposite weights."""
        return {"plus": {"module": self.strength}, "minus": {"module": -self.strength}}

    @property
    def needs_base(self) -> bool:
        """The base is not in the difference."""
        return False

    def difference(self, preds: Mapping[str, Tensor]) -> Tensor:
        """Plus minus minus."""
        return preds["plus"] - preds["minus"]

    def formula(self, preds: Mapping[str, Tensor], scale: float | Tensor) -> Tensor:
        """See ``contrastive``."""
        return contrastive(preds[BASE], preds["plus"], preds["minus"], scale=scale)


@register_guide("weighted", strength="scale", weighted=("positives", "negatives"))
@dataclass(frozen=True, kw_only=True)
class Weighted(PreferenceGuide):
    """Several positive and negative LoRAs, each with its weight and its own pass: see ``weighted``.

    Attributes:
        positives: LoRA file or folder -> weight, above 0.
        negatives: LoRA file or folder -> weight, above 0.
        scale: w; 0 is off and makes no extra pass.
    """

    positives: Mapping[str | Path, float]
    negatives: Mapping[str | Path, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = [*self.positives.values(), *self.negatives.values()]
        if not weights or any(not weight > 0 for weight in weights):
            raise DiffalignError(
                f"expected at least one LoRA, and weights above 0, got {dict(self.positives)} and "
                f"{dict(self.negatives)}; the sign is in the name of the argument"
            )

    @property
    def modules(self) -> Mapping[str, str | Path]:
        """positive0, positive1, ..., negative0, ..."""
        return {role: path for role, (path, _) in self._members.items()}

    @property
    def evaluations(self) -> Mapping[str, Mapping[str, float]]:
        """One per LoRA."""
        return {role: {role: 1.0} for role in self._members}

    @property
    def needs_base(self) -> bool:
        """Unless the weights of both sides have one sum."""
        return abs(sum(weight for _, weight in self._members.values())) > 1e-6

    @property
    def _members(self) -> dict[str, tuple[str | Path, float]]:
        positives = {f"positive{n}": member for n, member in enumerate(self.positives.items())}
        negatives = {f"negative{n}": (path, -weight) for n, (path, weight) in enumerate(self.negatives.items())}
        return positives | negatives

    def difference(self, preds: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the modules' differences to the base."""
        return _weighted_difference(preds[BASE], self._weighted(preds))

    def formula(self, preds: Mapping[str, Tensor], scale: float | Tensor) -> Tensor:
        """See ``weighted``."""
        return weighted(preds[BASE], self._weighted(preds), scale=scale)

    def _weighted(self, preds: Mapping[str, Tensor]) -> list[tuple[float, Tensor]]:
        return [(weight, preds[role]) for role, (_, weight) in self._members.items()]
