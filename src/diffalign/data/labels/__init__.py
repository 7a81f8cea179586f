"""From scores to labels: formulas on arrays, rules as settings, rows under a rule, whole sets."""

from __future__ import annotations

from diffalign.data.labels.formulas import (
    binary_labels,
    bradley_terry_labels,
    calibrated_win_rates,
    majority_vote,
    mixture,
    pareto_pairs,
    pareto_sets,
    win_fractions,
)
from diffalign.data.labels.pairs import pairs_from_candidates, relabel
from diffalign.data.labels.rules import LabelledPair, LabelRule, find_metric, label_scores, rule_labels
from diffalign.data.labels.run import LabelConfig, LabelCounts, LabelPlan, label_preferences, plan_labels

__all__ = [
    "LabelConfig",
    "LabelCounts",
    "LabelPlan",
    "LabelRule",
    "LabelledPair",
    "binary_labels",
    "bradley_terry_labels",
    "calibrated_win_rates",
    "find_metric",
    "label_preferences",
    "label_scores",
    "majority_vote",
    "mixture",
    "pairs_from_candidates",
    "pareto_pairs",
    "pareto_sets",
    "plan_labels",
    "relabel",
    "rule_labels",
    "win_fractions",
]
