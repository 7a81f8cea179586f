"""Scores of generated images, and what two sets of them say about two models."""

from __future__ import annotations

from diffalign.evaluate.choice import Measured, Split, choose_strength, split_ids
from diffalign.evaluate.compare import MetricComparison, compare, compared_models, hacking_alarms
from diffalign.evaluate.results import measure_models
from diffalign.evaluate.scores import MetricSummary, read_scores, score_folder, summarise
from diffalign.evaluate.sources import ImageRow, ScoreRow, read_images
from diffalign.evaluate.strengths import SweepScores, conclude
from diffalign.evaluate.sweep import measure_sweep

__all__ = [
    "ImageRow",
    "Measured",
    "MetricComparison",
    "MetricSummary",
    "ScoreRow",
    "Split",
    "SweepScores",
    "choose_strength",
    "compare",
    "compared_models",
    "conclude",
    "hacking_alarms",
    "measure_models",
    "measure_sweep",
    "read_images",
    "read_scores",
    "score_folder",
    "split_ids",
    "summarise",
]
