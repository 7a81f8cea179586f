"""Predictions to a prediction: what sampling follows besides the model, on any diffusers pipeline."""

from __future__ import annotations

from diffalign.guidance.attaching import attach
from diffalign.guidance.contract import BASE, Guide
from diffalign.guidance.contrastive import Contrastive, contrastive

__all__ = ["BASE", "Contrastive", "Guide", "attach", "contrastive"]
