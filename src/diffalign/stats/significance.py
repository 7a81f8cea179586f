"""p values: sign flips, the exact sign test, and Holm's adjustment for several metrics."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from statsmodels.stats.multitest import multipletests

from diffalign.core import DiffalignError, numpy_generator

__all__ = ["holm", "sign_flip_test", "sign_test"]

_NUM_FLIPS = 9999
_BATCH = 1000  # flips held in memory at once


def sign_flip_test(differences: ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p value of "the differences are symmetric about 0", from their mean.

    Every sign is flipped or not: all 2^P ways up to 13 prompts, 9999 random ones above.

    Args:
        differences: (P,), one for each prompt.
        seed: of the random flips.

    Raises:
        ValueError: not one-dimensional, or not finite.

    Source:
        Fisher 1935, The Design of Experiments, section 21.

    Example:
        >>> sign_flip_test([1.0, 2.0, 3.0, 4.0])  # 2 of 16 ways are as far from 0
        0.125
    """
    values = np.asarray(differences, float)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"expected finite differences (P,), got shape {values.shape}")
    test = stats.permutation_test(
        (values,),
        lambda flipped, axis: flipped.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_NUM_FLIPS,
        batch=_BATCH,
        rng=numpy_generator("sign flips", seed),
    )
    return float(test.pvalue)


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p value of "a win is as likely as a loss"; ties are left out.

    Args:
        wins: prompts won.
        losses: prompts lost.

    Source:
        Dixon and Mood 1946, JASA 41.

    Example:
        >>> round(sign_test(38, 12), 4)
        0.0003
    """
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values adjusted for being several, by the name of the metric.

        adjusted p_(k) = max_{j <= k} min(1, (m - j + 1) p_(j))

    Give the held-out metrics that were declared beforehand, all of them; metrics seen in training are not tested.

    Raises:
        DiffalignError: no p value, or one outside [0, 1].

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6.

    Example:
        >>> holm({"hps": 0.01, "clip": 0.04, "vqa": 0.03})
        {'hps': 0.03, 'clip': 0.06, 'vqa': 0.06}
    """
    wrong = {name: p for name, p in p_values.items() if not 0 <= p <= 1}
    if wrong or not p_values:
        raise DiffalignError(f"expected p values in [0, 1] by metric, got {wrong or 'none'}")
    adjusted = multipletests(list(p_values.values()), method="holm")[1]
    return dict(zip(p_values, map(float, adjusted), strict=True))
