"""Numbers with intervals: differences and win rates over prompts, power, strengths, agreement, distributions."""

from __future__ import annotations

from diffalign.stats.agreement import hpdv2_accuracy, imagereward_accuracy, pickapic_accuracy, pickapic_threshold
from diffalign.stats.distances import KernelDistance, cmmd, fid, fid_infinity, kid, kid_difference, kid_interval
from diffalign.stats.diversity import PRDC, pairwise_diversity, precision_recall_density_coverage, vendi
from diffalign.stats.guards import reward_hacking_alarms
from diffalign.stats.intervals import Estimate, Method, WinRate, mean_interval, paired_difference, win_rate
from diffalign.stats.power import (
    effective_votes,
    intraclass_correlation,
    minimum_detectable_win_rate,
    prompts_for_difference,
    prompts_for_win_rate,
)
from diffalign.stats.ranking import ELO_SCALE, Comparison, Strengths, bradley_terry, davidson, intransitive_triples
from diffalign.stats.significance import holm, sign_flip_test, sign_test
from diffalign.stats.tables import Scores

__all__ = [
    "ELO_SCALE",
    "PRDC",
    "Comparison",
    "Estimate",
    "KernelDistance",
    "Method",
    "Scores",
    "Strengths",
    "WinRate",
    "bradley_terry",
    "cmmd",
    "davidson",
    "effective_votes",
    "fid",
    "fid_infinity",
    "holm",
    "hpdv2_accuracy",
    "imagereward_accuracy",
    "intraclass_correlation",
    "intransitive_triples",
    "kid",
    "kid_difference",
    "kid_interval",
    "mean_interval",
    "minimum_detectable_win_rate",
    "paired_difference",
    "pairwise_diversity",
    "pickapic_accuracy",
    "pickapic_threshold",
    "precision_recall_density_coverage",
    "prompts_for_difference",
    "prompts_for_win_rate",
    "reward_hacking_alarms",
    "sign_flip_test",
    "sign_test",
    "vendi",
    "win_rate",
]
