"""Diffusion-NPO: a dispreferred model on the unconditional branch, so that text guidance points from bad to good."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.guidance.contract import BASE, BASE_ALONE, Branch, Pass, Site
from diffalign.guidance.registry import register_guide
from diffalign.guidance.strength import check_equal_shapes

__all__ = ["DiffusionNPO", "diffusion_npo"]


def diffusion_npo(positive: Tensor, negative: Tensor, *, guidance_scale: float) -> Tensor:
    """Text guidance with another model on the unconditional branch.

        m = m_negative(uncond) + g (m_positive(cond) - m_negative(uncond))

    Args:
        positive: prediction of the preferred model with the prompt, any shape.
        negative: prediction of the dispreferred model with the empty or negative prompt, same shape.
        guidance_scale: g, in diffusers' form: 1 is the preferred model alone. The paper's w is g - 1.

    Returns:
        The shape of ``positive``.

    Raises:
        ValueError: shapes differ.

    Source:
        Wang et al. 2025, Diffusion-NPO, arXiv 2505.11245; Self-NPO, arXiv 2505.11777, is the same at sampling.

    Example:
        >>> import torch
        >>> diffusion_npo(torch.tensor([1.5]), torch.tensor([1.0]), guidance_scale=3.0)
        tensor([2.5000])
    """
    check_equal_shapes(positive, negative)
    return negative + guidance_scale * (positive - negative)


@register_guide("npo", positive="positive", negative="negative")
@dataclass(frozen=True, kw_only=True)
class DiffusionNPO:
    """Two models on the two text branches; the pipeline's own guidance_scale combines them, two evaluations a step.

        theta_cond   = theta + eta
        theta_uncond = theta + a eta + b delta

    where eta is the positive and delta the negative LoRA, both from the base. The shares keep the outputs of both
    branches alike: with independent errors text guidance of scale g would multiply their variance by g^2 + (g - 1)^2.
    Lower b or raise a where images look burnt, and search g anew: its optimum moves.

    A module of Self-NPO takes the place of the negative one as it is. The authors' code has b = 1 always, and its
    ``merge_weight``, which its README calls the paper's beta, is 1 - a.

    Attributes:
        negative: LoRA of the dispreferred model, trained from the base (``diffusion_npo`` or ``self_npo`` recipes).
        positive: LoRA of the preferred model; None is the base.
        positive_share: a, in [0, 1], of the positive LoRA on the unconditional branch.
        negative_share: b, in [0, 1], of the negative LoRA there.
    """

    negative: str | Path
    positive: str | Path | None = None
    positive_share: float = 1.0
    negative_share: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.positive_share <= 1 and 0 <= self.negative_share <= 1):
            raise DiffalignError(
                f"expected shares in [0, 1], got positive_share {self.positive_share} and negative_share "
                f"{self.negative_share}"
            )

    @property
    def adapters(self) -> Mapping[str, str | Path]:
        """The LoRAs that have a share anywhere."""
        positive = {} if self.positive is None else {"npo_positive": self.positive}
        return positive | ({"npo_negative": self.negative} if self.negative_share else {})

    @property
    def timed(self) -> bool:
        """It is on at all noise levels."""
        return False

    @property
    def needs_branches(self) -> bool:
        """Unless both branches have the same weights."""
        return len(self._evaluations) > 1

    @property
    def held(self) -> frozenset[str]:
        """Nothing: both predictions are used whole."""
        return frozenset()

    @property
    def _evaluations(self) -> Mapping[str, Pass]:
        roles = self.adapters
        shares = {"npo_positive": self.positive_share, "npo_negative": self.negative_share}
        uncond = {role: shares[role] for role in roles if shares[role]}
        cond = {"npo_positive": 1.0} if "npo_positive" in roles else {}
        if uncond == cond:
            return {BASE: Pass(adapters=cond)} if cond else BASE_ALONE
        return {
            "npo_negative": Pass(adapters=uncond, branch="uncond"),
            "npo_positive": Pass(adapters=cond, branch="cond"),
        }

    def passes(self, progress: float) -> Mapping[str, Pass]:
        """One per branch."""
        return self._evaluations

    def combine(self, preds: Mapping[str, Tensor], *, branch: Branch, progress: float) -> Tensor:
        """The branch's own; see ``diffusion_npo`` for what the pipeline makes of both."""
        return preds[BASE] if BASE in preds else preds["npo_negative" if branch == "uncond" else "npo_positive"]

    def hooked(self, site: Site) -> AbstractContextManager[None]:
        """Nothing inside the network."""
        return nullcontext()
