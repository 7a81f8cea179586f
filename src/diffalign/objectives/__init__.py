"""Named quantities to a loss: one short function per paper. Needs torch alone."""

from __future__ import annotations

from diffalign.objectives.candidates import group_advantages, win_fractions
from diffalign.objectives.capo import calibrated_rewards, capo
from diffalign.objectives.contract import OBJECTIVES, QUANTITIES, ObjectiveSpec, get_objective, objective, same_shape
from diffalign.objectives.conventions import LOGISTIC, beta_elsewhere
from diffalign.objectives.cw_dpo import cw_dpo, cw_sft
from diffalign.objectives.dmpo import dmpo
from diffalign.objectives.dpo import diffusion_dpo, pair_metrics
from diffalign.objectives.dro import diffusion_dro, gated_sft, gated_sft_proxy_drift
from diffalign.objectives.dspo import dspo
from diffalign.objectives.groups import crd, dgpo
from diffalign.objectives.ipo import ipo
from diffalign.objectives.kto import kto, kto_loss_averse, kto_risk_seeking
from diffalign.objectives.linear_dpo import linear_dpo
from diffalign.objectives.listwise import lambda_listwise, rank_dpo, ranking_weights
from diffalign.objectives.mapo import mapo, mapo_score
from diffalign.objectives.nft import nft
from diffalign.objectives.npo import diffusion_npo, self_npo
from diffalign.objectives.reward_weighted import reward_weighted_sft
from diffalign.objectives.sdpo import scale_gradient, sdpo, sdpo_batch, winner_preserving_scale
from diffalign.objectives.sft import sft, sft_on_rejected
from diffalign.objectives.slic import hinge
from diffalign.objectives.soft_labels import cdpo, smpo, soft_dpo

__all__ = [
    "LOGISTIC",
    "OBJECTIVES",
    "QUANTITIES",
    "ObjectiveSpec",
    "beta_elsewhere",
    "calibrated_rewards",
    "capo",
    "cdpo",
    "crd",
    "cw_dpo",
    "cw_sft",
    "dgpo",
    "diffusion_dpo",
    "diffusion_dro",
    "diffusion_npo",
    "dmpo",
    "dspo",
    "gated_sft",
    "gated_sft_proxy_drift",
    "get_objective",
    "group_advantages",
    "hinge",
    "ipo",
    "kto",
    "kto_loss_averse",
    "kto_risk_seeking",
    "lambda_listwise",
    "linear_dpo",
    "mapo",
    "mapo_score",
    "nft",
    "objective",
    "pair_metrics",
    "rank_dpo",
    "ranking_weights",
    "reward_weighted_sft",
    "same_shape",
    "scale_gradient",
    "sdpo",
    "sdpo_batch",
    "self_npo",
    "sft",
    "sft_on_rejected",
    "smpo",
    "soft_dpo",
    "win_fractions",
    "winner_preserving_scale",
]
