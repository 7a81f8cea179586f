"""Distances between the distributions of real and generated images, on any features.

Always show the counts of images, the feature extractor and its resize beside a distance; compare at equal counts only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, stats

from diffalign.core import DiffalignError, numpy_generator
from diffalign.stats.intervals import Estimate, resampled_interval
from diffalign.stats.tables import Floats

__all__ = ["KernelDistance", "cmmd", "fid", "fid_infinity", "kid", "kid_difference", "kid_interval"]

_CHUNK = 512  # rows of a kernel matrix held in memory at once
_NUM_RESAMPLES = 1000
_LEAST = 10  # fewer could be drawn as one and the same, which has no pairs


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """A kernel distance and what it was computed from.

    Attributes:
        value: mean over subsets; can be below 0, since it is unbiased.
        sd: standard deviation over subsets; no standard error, since subsets overlap (``kid_interval`` has one).
        subset_size: images of each side in a subset: what was asked for, or fewer where a side has fewer.
        num_subsets: 1 when a subset holds every image.
        num_real: images.
        num_generated: images.
    """

    value: float
    sd: float
    subset_size: int
    num_subsets: int
    num_real: int
    num_generated: int


def fid(real: ArrayLike, generated: ArrayLike) -> float:
    """Fréchet distance between Gaussians fitted to the features: FID on Inception's, FD-DINOv2 on DINOv2's.

        |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 sum sqrt(eig(S_1 S_2))

    It is biased upwards: two samples of N from one isotropic Gaussian in d dimensions are about
    (d (d + 1) / 2 + 2 d) / N apart, 166 at d = 256 and N = 200. Below 10,000 images use ``fid_infinity`` or ``kid``.

    Args:
        real: (n, d) features.
        generated: (m, d) features.

    Returns:
        The squared distance, at least 0.

    Raises:
        DiffalignError: a feature is not finite, or a side has fewer than 2 images.
        ValueError: shapes do not fit.

    Source:
        Heusel et al. 2017, arXiv 1706.08500, Eq. 6. The eigenvalues of S_1 S_2 are taken from the symmetric
        S_1^(1/2) S_2 S_1^(1/2), whose are the same; those below 0 by rounding are set to 0.

    Example:
        >>> round(fid([[0.0, 0.0], [2.0, 2.0]], [[3.0, 0.0], [5.0, 2.0]]), 6)  # the same, moved by 3
        9.0
    """
    x, y = _two_sides(real, generated)
    sigma_x, sigma_y = np.atleast_2d(np.cov(x, rowvar=False)), np.atleast_2d(np.cov(y, rowvar=False))
    values, vectors = linalg.eigh(sigma_x)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    overlap = np.sqrt(np.clip(linalg.eigvalsh(root @ sigma_y @ root), 0, None)).sum()
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return max(0.0, float(shift + np.trace(sigma_x) + np.trace(sigma_y) - 2 * overlap))


def fid_infinity(real: ArrayLike, generated: ArrayLike, *, seed: int = 0) -> float:
    """``fid`` at infinitely many images: the intercept of FID on 1/N over 15 subset sizes N.

    The sizes run evenly from a tenth of the smaller side to the whole of it. N must be well above d for the line to be
    straight.

    Args:
        real: (n, d) features.
        generated: (m, d) features.
        seed: of the subsets.

    Returns:
        The squared distance; can be below 0.

    Raises:
        DiffalignError: a feature is not finite, or a side has fewer than 20 images.
        ValueError: shapes do not fit.

    Source:
        Chong and Forsyth 2020, arXiv 1911.07023. Departures: both sides are subsampled, so that the bias of either
        goes; sizes and number of points as in FD-infinity of Stein et al. 2023, arXiv 2306.04675.
    """
    x, y = _two_sides(real, generated, least=20)
    generator = numpy_generator("subsets of fid_infinity", seed)
    whole = min(len(x), len(y))
    sizes = np.linspace(whole // 10, whole, 15).astype(int)
    distances = [
        fid(x[generator.choice(len(x), size, replace=False)], y[generator.choice(len(y), size, replace=False)])
        for size in sizes
    ]
    return float(stats.linregress(1 / sizes, distances).intercept)


def kid(
    real: ArrayLike, generated: ArrayLike, *, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Kernel distance, unbiased at any number of images: KID on Inception's features, KD on DINOv2's.

        MMD^2 = mean_{i != i'} k(x_i, x_i') + mean_{j != j'} k(y_j, y_j') - 2 mean k(x_i, y_j),    k = (x.y / d + 1)^3

    Args:
        real: (n, d) features.
        generated: (m, d) features.
        num_subsets: the mean is over so many random subsets.
        subset_size: images of each side in a subset; the smaller side's count where that is less.
        seed: of the subsets.

    Raises:
        DiffalignError: a feature is not finite, or a side has fewer than 2 images.
        ValueError: shapes do not fit.

    Source:
        Binkowski et al. 2018, arXiv 1801.01401, section 4.

    Example:
        >>> kid([[0.0], [1.0]], [[2.0], [1.0]]).value  # 1 + 27 - 2 (1 + 1 + 27 + 8) / 4
        9.5
    """
    x, y = _two_sides(real, generated)
    if num_subsets < 1 or subset_size < 2:
        raise ValueError(f"expected at least 1 subset of at least 2 images, got {num_subsets} of {subset_size}")
    size = min(subset_size, len(x), len(y))
    if size == len(x) == len(y):
        num_subsets = 1  # every subset would be the whole
    generator = numpy_generator("subsets of kid", seed)
    values = [
        _mmd(x[generator.choice(len(x), size, replace=False)], y[generator.choice(len(y), size, replace=False)])
        for _ in range(num_subsets)
    ]
    return KernelDistance(
        value=float(np.mean(values)),
        sd=float(np.std(values)),
        subset_size=size,
        num_subsets=num_subsets,
        num_real=len(x),
        num_generated=len(y),
    )


def kid_interval(
    real: ArrayLike,
    generated: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """``kid`` of all images at once, with a bootstrap interval over prompts and real images.

    1000 resamples of the real images and of the prompts, whose images travel together. Pairs of images of one prompt
    are left out of the mean over generated pairs, so that neither a prompt's likeness to itself nor a prompt that was
    drawn twice counts as likeness of the distribution. Memory: 8 (n + m)^2 bytes.

    Args:
        real: (n, d) features, each image on its own.
        generated: (m, d) features.
        groups: (m,) the prompt of each generated image; by default each image is its own.
        confidence: probability that the interval should hold the truth.
        seed: of the resampling.

    Returns:
        The estimate; ``num_prompts`` counts groups. Without groups its mean is ``kid`` of one subset with all images.
        The interval is too wide and off centre where the two distributions are equal.

    Raises:
        DiffalignError: a feature is not finite, or fewer than 10 real images or prompts.
        ValueError: shapes do not fit.

    Source:
        Binkowski et al. 2018, arXiv 1801.01401, for the distance. Departure: pairs within a prompt are left out.
    """
    x, y = _two_sides(real, generated)
    member = _membership(groups, len(y))
    real_weights, group_weights = _resampling_weights(len(x), member.shape[1], seed)
    draws = _between(_kernel(x, x), real_weights, np.ones(len(x)))
    draws += _generated_terms(x, y, member, real_weights, group_weights)
    return resampled_interval(draws[0], draws[1:], confidence=confidence, num_prompts=member.shape[1])


def kid_difference(
    real: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """How much farther the images of model a are from the real ones than those of model b; below 0, a is nearer.

        D = KID(real, a) - KID(real, b)

    Estimate and interval as in ``kid_interval``, with the same real images and the same prompts resampled for both.

    Args:
        real: (n, d) features.
        a: (m, d) features of the images of one model.
        b: (m, d) features of the other, of the same prompts and seeds in the same order.
        groups: (m,) the prompt of each row; by default each row is its own.
        confidence: probability that the interval should hold the truth.
        seed: of the resampling.

    Raises:
        DiffalignError: the models have different numbers of images; a feature is not finite, or fewer than 10 real
            images or prompts.
        ValueError: shapes do not fit.
    """
    x, first = _two_sides(real, a)
    x, second = _two_sides(real, b)
    if len(first) != len(second):
        raise DiffalignError(
            f"expected images of the same prompts and seeds from both models, got {len(first)} and {len(second)}; "
            "make those that are missing, or leave their partners out"
        )
    member = _membership(groups, len(first))
    weights = _resampling_weights(len(x), member.shape[1], seed)
    draws = _generated_terms(x, first, member, *weights) - _generated_terms(x, second, member, *weights)
    return resampled_interval(draws[0], draws[1:], confidence=confidence, num_prompts=member.shape[1])


def cmmd(real: ArrayLike, generated: ArrayLike) -> float:
    """Kernel distance on CLIP embeddings; steady from a few hundred images on.

        1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)),    k = exp(-|x - y|^2 / (2 * 10^2))

    Pairs of an image with itself are included, so two samples of one distribution are slightly above 0.

    Args:
        real: (n, d) features, of CLIP ViT-L/14 at 336 pixels where published numbers are to be met. Rows are scaled to
            length 1 here.
        generated: (m, d) features.

    Raises:
        DiffalignError: a feature is not finite, a row is 0, or a side has fewer than 2 images.
        ValueError: shapes do not fit.

    Source:
        Jayasumana et al. 2024, arXiv 2401.09603, section 4.

    Example:
        >>> round(cmmd([[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]), 3)  # 2000 (1 - e^-0.01)
        19.9
    """
    x, y = (unit_rows(each) for each in _two_sides(real, generated))

    def mean_kernel(first: Floats, second: Floats) -> float:
        rows = [np.exp((first[i : i + _CHUNK] @ second.T - 1) / 100).sum() for i in range(0, len(first), _CHUNK)]
        return float(np.sum(rows)) / (len(first) * len(second))

    return 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


def check_features(features: ArrayLike, least: int = 2) -> Floats:
    """Features (n, d) as float64, checked to be finite and at least ``least`` rows."""
    values = np.asarray(features, float)
    if values.ndim != 2:
        raise ValueError(f"expected features (n, d), got shape {values.shape}")
    if len(values) < least:
        raise DiffalignError(f"expected features of at least {least} images, got {len(values)}")
    if not np.isfinite(values).all():
        rows = np.flatnonzero(~np.isfinite(values).all(1))
        raise DiffalignError(f"expected finite features, got NaN or inf in {len(rows)} images, the first {rows[0]}")
    return values


def unit_rows(features: Floats) -> Floats:
    """Rows scaled to length 1."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not lengths.all():
        raise DiffalignError(f"expected features other than 0, got a row of zeros for image {int(lengths.argmin())}")
    return np.asarray(features / lengths)


def _two_sides(real: ArrayLike, generated: ArrayLike, least: int = 2) -> tuple[Floats, Floats]:
    x, y = check_features(real, least), check_features(generated, least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"expected features of one extractor, got {x.shape[1]} and {y.shape[1]} dimensions")
    return x, y


def _kernel(x: Floats, y: Floats) -> Floats:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def _mmd(x: Floats, y: Floats) -> float:
    uniform_x, uniform_y = np.ones((1, len(x))), np.ones((1, len(y)))
    within = _between(_kernel(x, x), uniform_x, np.ones(len(x))) + _between(_kernel(y, y), uniform_y, np.ones(len(y)))
    return float(within[0] - 2 * _kernel(x, y).mean())


def _membership(groups: Sequence[str] | None, count: int) -> NDArray[np.float64]:
    """(m, G) 1 where an image belongs to a group."""
    if groups is None:
        return np.eye(count)
    if len(groups) != count:
        raise ValueError(f"expected a group for each of {count} generated images, got {len(groups)}")
    distinct, index = np.unique(np.array(groups), return_inverse=True)
    return np.eye(len(distinct))[index]


def _resampling_weights(num_real: int, num_groups: int, seed: int) -> tuple[Floats, Floats]:
    """(1 + B, n) and (1 + B, G) how often each is drawn; the first row is the sample itself."""
    if min(num_real, num_groups) < _LEAST:
        raise DiffalignError(
            f"expected at least {_LEAST} real images and {_LEAST} prompts to resample, got {num_real} and {num_groups}"
        )
    generator = numpy_generator("resampled images", seed)
    drawn = (
        generator.multinomial(count, np.full(count, 1 / count), size=_NUM_RESAMPLES) for count in (num_real, num_groups)
    )
    weights = [np.concatenate([np.ones((1, each.shape[1])), each]) for each in drawn]
    return weights[0], weights[1]


def _between(sums: Floats, weights: Floats, sizes: Floats) -> Floats:
    """(B,) weighted mean over pairs of images of *different* groups; kernel ``sums`` (G, G), ``weights`` (B, G)."""
    kernel = ((weights @ sums) * weights).sum(1) - weights**2 @ np.diag(sums)
    pairs = (weights @ sizes) ** 2 - weights**2 @ sizes**2
    return np.asarray(kernel / pairs)


def _generated_terms(x: Floats, y: Floats, member: Floats, real_weights: Floats, group_weights: Floats) -> Floats:
    """(B,) the part of the distance that depends on the generated images."""
    sizes = member.sum(0)
    within = _between(member.T @ _kernel(y, y) @ member, group_weights, sizes)
    cross = ((real_weights @ (_kernel(x, y) @ member)) * group_weights).sum(1)
    return np.asarray(within - 2 * cross / (len(x) * (group_weights @ sizes)))
