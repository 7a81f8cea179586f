"""Named quantities to a loss: one short function per paper. Needs torch alone."""

from __future__ import annotations

from diffalign.objectives.contract import OBJECTIVES, QUANTITIES, ObjectiveSpec, get_objective, objective, same_shape
from diffalign.objectives.dpo import diffusion_dpo, pair_metrics
from diffalign.objectives.dro import diffusion_dro, gated_sft, gated_sft_proxy_drift
from diffalign.objectives.sft import sft, sft_on_rejected

__all__ = [
    "OBJECTIVES",
    "QUANTITIES",
    "ObjectiveSpec",
    "diffusion_dpo",
    "diffusion_dro",
    "gated_sft",
    "gated_sft_proxy_drift",
    "get_objective",
    "objective",
    "pair_metrics",
    "same_shape",
    "sft",
    "sft_on_rejected",
]
