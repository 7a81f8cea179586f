"""The offline loop: named weights, draws and noising, quantities, checkpoints."""

from __future__ import annotations

from diffalign.train.batches import (
    Draws,
    NoisedBatch,
    Noiser,
    draw_rows,
    forward_noiser,
    independent_noiser,
    noised,
    sample_posterior,
)
from diffalign.train.build import frozen_dtype
from diffalign.train.checks import check
from diffalign.train.config import EmaConfig, LoraConfig, OptimizerConfig, SamplesConfig, TrainConfig, ValidationConfig
from diffalign.train.estimate import Estimate, estimate, matrix_rate
from diffalign.train.loop import train
from diffalign.train.monitor import ALARMS, Alarm, Monitor
from diffalign.train.plan import Plan, check_plan, run_plan
from diffalign.train.quantities import Needs, evaluate, needs_of
from diffalign.train.rows import LiveLatents, PreferenceRows, RowBatch, fill_cache
from diffalign.train.samples import SampleSource
from diffalign.train.weights import (
    BASE,
    START,
    FullWeights,
    LoraWeights,
    Predict,
    Weights,
    assign,
    average,
    weights_hash,
)

__all__ = [
    "ALARMS",
    "BASE",
    "START",
    "Alarm",
    "Draws",
    "EmaConfig",
    "Estimate",
    "FullWeights",
    "LiveLatents",
    "LoraConfig",
    "LoraWeights",
    "Monitor",
    "Needs",
    "NoisedBatch",
    "Noiser",
    "OptimizerConfig",
    "Plan",
    "Predict",
    "PreferenceRows",
    "RowBatch",
    "SampleSource",
    "SamplesConfig",
    "TrainConfig",
    "ValidationConfig",
    "Weights",
    "assign",
    "average",
    "check",
    "check_plan",
    "draw_rows",
    "estimate",
    "evaluate",
    "fill_cache",
    "forward_noiser",
    "frozen_dtype",
    "independent_noiser",
    "matrix_rate",
    "needs_of",
    "noised",
    "run_plan",
    "sample_posterior",
    "train",
    "weights_hash",
]
