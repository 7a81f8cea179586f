"""How strongly a preference difference is added, and when: options that PGD, cPGD and their kin share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.guidance.contract import BASE, BASE_ALONE, Branch, Pass, Site

__all__ = ["PreferenceGuide", "capped_scale", "check_equal_shapes", "check_window", "per_sample", "scheduled"]


def scheduled(progress: float, schedule: tuple[tuple[float, float], ...]) -> float:
    """A factor on the scale, linear between the points of a schedule and constant outside them.

    Args:
        progress: from 0, pure noise, to 1, the image.
        schedule: (progress, factor) in rising order; empty is 1 everywhere.

    Example:
        >>> scheduled(0.25, ((0.0, 1.0), (0.5, 0.0)))
        0.5
    """
    if not schedule:
        return 1.0
    for (left, low), (right, high) in pairwise(schedule):
        if left <= progress <= right:
            return low + (high - low) * (progress - left) / (right - left)
    return schedule[0][1] if progress < schedule[0][0] else schedule[-1][1]


def capped_scale(base: Tensor, difference: Tensor, *, scale: float, cap: float) -> Tensor:
    """The scale of each sample, lowered where the guidance would outweigh the prediction.

        w' = w min(1, tau |m_base| / (w |D|))    with the 2-norm over a sample

    Args:
        base: prediction (B, ...).
        difference: D, same shape.
        scale: w, at least 0.
        cap: tau, above 0.

    Returns:
        (B,) float32.

    Source:
        None: an addition of this package, not in the paper of PGD.

    Example:
        >>> base, difference = torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.1]])
        >>> capped_scale(base, difference, scale=10.0, cap=0.5)
        tensor([ 2.5000, 10.0000])
    """
    size = base.flatten(1).float().norm(dim=1)
    shift = scale * difference.flatten(1).float().norm(dim=1)
    lowered: Tensor = scale * (cap * size / shift.clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=1.0)
    return lowered


def per_sample(scale: float | Tensor, like: Tensor) -> float | Tensor:
    """A scale that multiplies predictions: a number as it is, (B,) as (B, 1, ...) in their dtype."""
    if isinstance(scale, Tensor):
        return scale.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
    return scale


def check_equal_shapes(*preds: Tensor) -> None:
    """Raise ValueError unless all predictions have one shape, so that nothing broadcasts by accident."""
    if len({pred.shape for pred in preds}) > 1:
        raise ValueError(f"expected predictions of one shape, got {', '.join(str(tuple(p.shape)) for p in preds)}")


def check_window(start: float, stop: float) -> None:
    """Raise DiffalignError unless 0 <= start < stop <= 1."""
    if not 0 <= start < stop <= 1:
        raise DiffalignError(f"expected 0 <= start < stop <= 1, got start {start} and stop {stop}")


@dataclass(frozen=True, kw_only=True)
class PreferenceGuide(ABC):
    """A difference between predictions, added to the prediction of each text branch before text guidance.

    Progress is the noise level that the network is told, t = T being 0 and t = 0 being 1, so a window means the same
    for every scheduler and number of steps, and for both calls of a second-order step. For SD 1.x and SDXL it is the
    share of evenly spaced steps; SD 3 spends more of its steps at high noise.

    Attributes:
        scale: w; 0 is off and makes no extra pass.
        branch: "both" text branches, as published, or "cond": the rows with the prompt alone, at fewer passes.
        start: progress from which the guide is on.
        stop: progress before which it is on; 1 includes the last step.
        schedule: (progress, factor) points; the scale is multiplied by what lies between them.
        cap: tau; per sample, the 2-norm of what is added is at most tau times that of the prediction.
    """

    scale: float
    branch: Literal["both", "cond"] = "both"
    start: float = 0.0
    stop: float = 1.0
    schedule: tuple[tuple[float, float], ...] = ()
    cap: float | None = None

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise DiffalignError(
                f"expected a scale of at least 0, got {self.scale}; to go the other way, swap positive and negative"
            )
        if self.branch not in ("both", "cond"):
            raise DiffalignError(f"expected the branch 'both' or 'cond', got {self.branch!r}")
        check_window(self.start, self.stop)
        at = [progress for progress, _ in self.schedule]
        if at != sorted(set(at)) or any(not factor >= 0 for _, factor in self.schedule):
            raise DiffalignError(f"expected a schedule of rising progress and factors of at least 0: {self.schedule}")
        if self.cap is not None and not self.cap > 0:
            raise DiffalignError(f"expected a cap above 0 (None is none), got {self.cap}")

    @property
    @abstractmethod
    def modules(self) -> Mapping[str, str | Path]:
        """Role -> the LoRA."""

    @property
    @abstractmethod
    def evaluations(self) -> Mapping[str, Mapping[str, float]]:
        """Name of every pass besides the base's -> the weights of the roles in it."""

    @property
    @abstractmethod
    def needs_base(self) -> bool:
        """Whether the base's own prediction is part of the difference."""

    @abstractmethod
    def difference(self, preds: Mapping[str, Tensor]) -> Tensor:
        """D, which is multiplied by the scale."""

    @abstractmethod
    def formula(self, preds: Mapping[str, Tensor], scale: float | Tensor) -> Tensor:
        """The method's own formula, with a number or (B,) as the scale."""

    @property
    def adapters(self) -> Mapping[str, str | Path]:
        """The modules; none at scale 0."""
        return self.modules if self.scale else {}

    @property
    def timed(self) -> bool:
        """Whether there is a window or a schedule."""
        return bool(self.scale) and (self.start > 0 or self.stop < 1 or bool(self.schedule))

    @property
    def needs_branches(self) -> bool:
        """Only where the conditional rows alone are guided."""
        return bool(self.scale) and self.branch != "both"

    @property
    def held(self) -> frozenset[str]:
        """Every pass but the base's."""
        return frozenset(self.evaluations)

    def scale_at(self, progress: float) -> float:
        """w at this progress: 0 outside the window, else the scale times the schedule's factor."""
        inside = self.start <= progress and (progress < self.stop or self.stop == 1)
        return self.scale * scheduled(progress, self.schedule) if inside else 0.0

    def passes(self, progress: float) -> Mapping[str, Pass]:
        """The base alone where the scale is 0."""
        if not self.scale_at(progress):
            return BASE_ALONE
        members = {name: Pass(adapters=roles, branch=self.branch) for name, roles in self.evaluations.items()}
        return {**BASE_ALONE, **members}

    def combine(self, preds: Mapping[str, Tensor], *, branch: Branch, progress: float) -> Tensor:
        """The base, with the difference where passes were made for it."""
        scale = self.scale_at(progress)
        if not scale or not self.held <= preds.keys():
            return preds[BASE]
        if self.cap is None:
            return self.formula(preds, scale)
        return self.formula(preds, capped_scale(preds[BASE], self.difference(preds), scale=scale, cap=self.cap))

    def shift(self, preds: Mapping[str, Tensor], difference: Tensor, *, branch: Branch, progress: float) -> Tensor:
        """The base plus the scale times a former difference."""
        base, scale = preds[BASE], self.scale_at(progress)
        factor: float | Tensor = scale
        if self.cap is not None:
            factor = capped_scale(base, difference, scale=scale, cap=self.cap)
        return base + per_sample(factor, base) * difference

    def hooked(self, site: Site) -> AbstractContextManager[None]:
        """Nothing inside the network."""
        return nullcontext()
