"""Scores of generated images, and what two sets of them say about two models."""

from __future__ import annotations

from diffalign.evaluate.compare import MetricComparison, compare, compared_models, hacking_alarms
from diffalign.evaluate.results import measure_models
from diffalign.evaluate.scores import MetricSummary, read_scores, score_folder, summarise
from diffalign.evaluate.sources import ImageRow, ScoreRow, read_images

__all__ = [
    "ImageRow",
    "MetricComparison",
    "MetricSummary",
    "ScoreRow",
    "compare",
    "compared_models",
    "hacking_alarms",
    "measure_models",
    "read_images",
    "read_scores",
    "score_folder",
    "summarise",
]
