"""What the offline loop is made of: named weights, and the draws and noising of a batch."""

from __future__ import annotations

from diffalign.train.batches import (
    Draws,
    NoisedBatch,
    Noiser,
    draw_rows,
    forward_noiser,
    independent_noiser,
    sample_posterior,
)
from diffalign.train.weights import START, FullWeights, LoraWeights, Predict, Weights, assign, average, weights_hash

__all__ = [
    "START",
    "Draws",
    "FullWeights",
    "LoraWeights",
    "NoisedBatch",
    "Noiser",
    "Predict",
    "Weights",
    "assign",
    "average",
    "draw_rows",
    "forward_noiser",
    "independent_noiser",
    "sample_posterior",
    "weights_hash",
]
