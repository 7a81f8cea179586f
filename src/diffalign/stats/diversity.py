"""How varied generated images are, and how much of the real distribution they cover, on any features.

Collapse shows here while rewards rise: per-prompt Vendi and pairwise diversity, recall and coverage belong beside every
table of rewards. Per-prompt numbers, at least 8 seeds each, enter ``mean_interval`` and ``paired_difference`` as
(P, 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import pairwise_distances_chunked

from diffalign.stats.distances import check_features, unit_rows
from diffalign.stats.tables import Floats

__all__ = ["PRDC", "pairwise_diversity", "precision_recall_density_coverage", "vendi"]


@dataclass(frozen=True, kw_only=True)
class PRDC:
    """How two sets of images lie among each other.

    Attributes:
        precision: share of generated images inside some real image's ball, in [0, 1].
        recall: share of real images inside some generated image's ball, in [0, 1].
        density: mean number of real balls around a generated image, over ``num_neighbours``; about 1 for equal
            distributions.
        coverage: share of real images with a generated one in their ball, in [0, 1].
        num_neighbours: k; a ball reaches to the k-th neighbour on its own side.
        num_real: images.
        num_generated: images.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    num_neighbours: int
    num_real: int
    num_generated: int


def precision_recall_density_coverage(real: ArrayLike, generated: ArrayLike, *, num_neighbours: int = 5) -> PRDC:
    """Fidelity (precision, density) and variety (recall, coverage) of generated images.

        r_i = distance of x_i to its k-th neighbour among x,    inside: d(x_i, y_j) < r_i

    Args:
        real: (n, d) features x; n = m where numbers are to be compared.
        generated: (m, d) features y.
        num_neighbours: k.

    Raises:
        DiffalignError: a feature is not finite, or a side has no more than k images.
        ValueError: shapes do not fit, or k is below 1.

    Source:
        Kynkäänniemi et al. 2019, arXiv 1904.06991 (precision, recall); Naeem et al. 2020, arXiv 2002.09797 (density,
        coverage; k = 5). All with the strict <.

    Example:
        >>> prdc = precision_recall_density_coverage([[0.0], [1.0], [3.0]], [[0.5], [9.0], [9.5]], num_neighbours=1)
        >>> prdc.precision, prdc.recall, prdc.density, prdc.coverage
        (0.3333333333333333, 1.0, 0.6666666666666666, 0.6666666666666666)
    """
    if num_neighbours < 1:
        raise ValueError(f"expected at least 1 neighbour, got {num_neighbours}")
    x, y = check_features(real, num_neighbours + 1), check_features(generated, num_neighbours + 1)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"expected features of one extractor, got {x.shape[1]} and {y.shape[1]} dimensions")
    real_radii, generated_radii = _radii(x, num_neighbours), _radii(y, num_neighbours)
    balls, covered, recalled, row = np.zeros(len(y)), 0, 0, 0
    for distances in pairwise_distances_chunked(x, y):
        inside = distances < real_radii[row : row + len(distances), None]
        balls += inside.sum(0)
        covered += int(inside.any(1).sum())
        recalled += int((distances < generated_radii).any(1).sum())
        row += len(distances)
    return PRDC(
        precision=float((balls > 0).mean()),
        recall=recalled / len(x),
        density=float(balls.mean() / num_neighbours),
        coverage=covered / len(x),
        num_neighbours=num_neighbours,
        num_real=len(x),
        num_generated=len(y),
    )


def vendi(features: ArrayLike, *, order: float = 1.0) -> float:
    """The effective number of different images, from 1 (all alike) to n (all orthogonal).

        l = eig(K / n),    K_ij = cos(x_i, x_j),    V = exp(-sum l log l);    order q: (sum l^q)^(1 / (1 - q))

    Args:
        features: (n, d).
        order: q > 0. Small orders count rare images, large ones the common; ``math.inf`` is 1 / max l.

    Raises:
        DiffalignError: a feature is not finite, a row is 0, or fewer than 2 images.
        ValueError: not (n, d), or an order that is not above 0.

    Source:
        Friedman and Dieng 2022, arXiv 2210.02410; orders: Pasarkar and Dieng 2023, arXiv 2310.12952. The eigenvalues
        are squared singular values of the features, which serves n < d and n > d alike.

    Example:
        >>> round(vendi([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [3.0, 0.0]]), 6)
        2.0
    """
    if not order > 0:
        raise ValueError(f"expected an order above 0, got {order}")
    x = unit_rows(check_features(features))
    eigenvalues = np.linalg.svd(x / math.sqrt(len(x)), compute_uv=False) ** 2
    eigenvalues = eigenvalues[eigenvalues > 1e-12] / eigenvalues.sum()
    if order == 1:
        return float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))
    if math.isinf(order):
        return float(1 / eigenvalues.max())
    return float((eigenvalues**order).sum() ** (1 / (1 - order)))


def pairwise_diversity(features: ArrayLike) -> float:
    """Mean cosine distance over all pairs of different images, in [0, 2].

        mean_{i < j} (1 - cos(x_i, x_j)) = 1 - (|sum_i u_i|^2 - n) / (n (n - 1)),    u_i = x_i / |x_i|

    Args:
        features: (n, d), of one prompt's images.

    Raises:
        DiffalignError: a feature is not finite, a row is 0, or fewer than 2 images.
        ValueError: not (n, d).

    Example:
        >>> pairwise_diversity([[1.0, 0.0], [0.0, 2.0]])
        1.0
    """
    x = unit_rows(check_features(features))
    return float(1 - ((x.sum(0) ** 2).sum() - len(x)) / (len(x) * (len(x) - 1)))


def _radii(x: Floats, num_neighbours: int) -> Floats:
    """(n,) distance of each row to its k-th neighbour, itself not counted."""
    chunks = pairwise_distances_chunked(
        x, reduce_func=lambda distances, _: np.partition(distances, num_neighbours, axis=1)[:, num_neighbours]
    )
    return np.concatenate(list(chunks))
