"""What a network may predict, and the algebra between those quantities at fixed noisy latents and noise level.

Every formula takes ``(value, x, a, b)`` where ``x = a x0 + b noise``. The word beside it names the level it divides by,
which must not be exactly 0. Differences scale: VP ``dv = de/a``, ``dx0 = -(b/a) de``; flow ``du = de/(1-s)``,
``dx0 = -s du``; both ``de = -b dg``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["FLOW_CONVERSIONS", "VP_CONVERSIONS", "Prediction", "flow_from_vp", "vp_from_flow"]

Prediction = Literal["epsilon", "sample", "v_prediction", "flow_prediction", "score"]
Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Conversions = dict[tuple[str, str], tuple[Literal["a", "b", ""], Formula]]

# Variance preserving: a = sqrt(abar), b = sqrt(1 - abar), v = a noise - b x0, score g = -noise/b.
VP_CONVERSIONS: Conversions = {
    ("epsilon", "sample"): ("a", lambda e, x, a, b: (x - b * e) / a),
    ("epsilon", "v_prediction"): ("a", lambda e, x, a, b: (e - b * x) / a),
    ("epsilon", "score"): ("b", lambda e, x, a, b: -e / b),
    ("sample", "epsilon"): ("b", lambda x0, x, a, b: (x - a * x0) / b),
    ("sample", "v_prediction"): ("b", lambda x0, x, a, b: (a * x - x0) / b),
    ("sample", "score"): ("b", lambda x0, x, a, b: (a * x0 - x) / b**2),
    ("v_prediction", "sample"): ("", lambda v, x, a, b: a * x - b * v),
    ("v_prediction", "epsilon"): ("", lambda v, x, a, b: b * x + a * v),
    ("v_prediction", "score"): ("b", lambda v, x, a, b: -x - (a / b) * v),
    ("score", "sample"): ("a", lambda g, x, a, b: (x + b**2 * g) / a),
    ("score", "epsilon"): ("", lambda g, x, a, b: -b * g),
    ("score", "v_prediction"): ("a", lambda g, x, a, b: -(b / a) * (x + g)),
}

# Rectified flow: a = 1 - s, b = s, u = noise - x0, score g = -noise/s.
FLOW_CONVERSIONS: Conversions = {
    ("flow_prediction", "sample"): ("", lambda u, x, a, s: x - s * u),
    ("flow_prediction", "epsilon"): ("", lambda u, x, a, s: x + a * u),
    ("flow_prediction", "score"): ("b", lambda u, x, a, s: -(x + a * u) / s),
    ("sample", "epsilon"): ("b", lambda x0, x, a, s: (x - a * x0) / s),
    ("sample", "flow_prediction"): ("b", lambda x0, x, a, s: (x - x0) / s),
    ("sample", "score"): ("b", lambda x0, x, a, s: (a * x0 - x) / s**2),
    ("epsilon", "sample"): ("a", lambda e, x, a, s: (x - s * e) / a),
    ("epsilon", "flow_prediction"): ("a", lambda e, x, a, s: (e - x) / a),
    ("epsilon", "score"): ("b", lambda e, x, a, s: -e / s),
    ("score", "sample"): ("a", lambda g, x, a, s: (x + s**2 * g) / a),
    ("score", "epsilon"): ("", lambda g, x, a, s: -s * g),
    ("score", "flow_prediction"): ("a", lambda g, x, a, s: -(x + s * g) / a),
}


def flow_from_vp(noisy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """VP noisy latents seen as flow noisy latents: ``s = b/(a+b)``, ``x_flow = x_vp/(a+b)``.

    Args:
        noisy: (B, ...) VP noisy latents.
        a: (B,) signal levels.
        b: (B,) noise levels.

    Returns:
        Flow noisy latents and their levels s (B,).

    Example:
        >>> x, s = flow_from_vp(torch.ones(1, 1), torch.tensor([0.6]), torch.tensor([0.8]))
        >>> print(f"{x.item():.4f} {s.item():.4f}")
        0.7143 0.5714
    """
    return noisy / per_sample(a + b, noisy), b / (a + b)


def vp_from_flow(noisy: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flow noisy latents seen as VP: ``n = sqrt((1-s)^2 + s^2)``, ``a = (1-s)/n``, ``b = s/n``, ``x_vp = x_flow/n``.

    Args:
        noisy: (B, ...) flow noisy latents.
        s: (B,) noise levels in [0, 1].

    Returns:
        VP noisy latents and their levels a, b, each (B,).
    """
    n = ((1 - s).square() + s.square()).sqrt()
    return noisy / per_sample(n, noisy), (1 - s) / n, s / n


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ..., 1), one value for each sample of ``like`` (B, ...)."""
    if values.shape != like.shape[:1]:
        raise ValueError(f"expected one value per sample, shape ({len(like)},), got {tuple(values.shape)}")
    return values.view((-1,) + (1,) * (like.ndim - 1))


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is float64, else float32: half precision would cost more than the network's rounding."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
