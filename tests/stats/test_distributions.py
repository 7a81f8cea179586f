"""Distribution and diversity metrics against closed forms and brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import linalg
from scipy.spatial.distance import cdist, pdist

from diffalign.core import DiffalignError
from diffalign.stats import (
    cmmd,
    fid,
    fid_infinity,
    kid,
    kid_difference,
    kid_interval,
    pairwise_diversity,
    precision_recall_density_coverage,
    vendi,
)

N, M, D = 31, 23, 5


def gauss(seed: int, count: int, dimensions: int = D, shift: float = 0.0) -> np.ndarray:
    return shift + np.random.default_rng(seed).normal(size=(count, dimensions))


def polynomial(x: np.ndarray, y: np.ndarray) -> float:
    return float((x @ y / len(x) + 1) ** 3)


X, Y = gauss(1, N), gauss(2, M, shift=0.4)


def test_fid_is_that_of_the_matrix_square_root() -> None:
    s1, s2 = np.cov(X, rowvar=False), np.cov(Y, rowvar=False)
    root = linalg.sqrtm(s1 @ s2).real
    expected = ((X.mean(0) - Y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root)
    assert fid(X, Y) == pytest.approx(expected) == pytest.approx(fid(Y, X))


def test_fid_with_fewer_images_than_dimensions() -> None:
    """sum sqrt eig(S1 S2) is the nuclear norm of Xc Yc^T / sqrt((n - 1)(m - 1))."""
    x, y = gauss(3, 7, 40), gauss(4, 6, 40)
    xc, yc = x - x.mean(0), y - y.mean(0)
    overlap = np.linalg.svd(xc @ yc.T, compute_uv=False).sum() / math.sqrt(6 * 5)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (xc**2).sum() / 6 + (yc**2).sum() / 5 - 2 * overlap
    assert fid(x, y) == pytest.approx(expected, rel=1e-5)


def test_fid_worked_numbers_and_invariances() -> None:
    """Moved by 2 in each of 5 dimensions: 20. Twice as large: |mu|^2 + tr S."""
    assert fid(X, X + 2) == pytest.approx(4 * D)
    assert fid(X, 2 * X) == pytest.approx((X.mean(0) ** 2).sum() + np.trace(np.cov(X, rowvar=False)))
    rotation = np.linalg.qr(gauss(5, D))[0]
    assert fid(X @ rotation, Y @ rotation) == pytest.approx(fid(X, Y))
    assert fid(X, X) == pytest.approx(0, abs=1e-12)


def test_fid_of_small_samples_is_biased_and_its_limit_is_not() -> None:
    """Two samples of one Gaussian: about (d (d + 1) / 2 + 2 d) / N, here 184 / 400; the intercept is near 0."""
    d, n = 16, 400
    distances = [fid(gauss(s, n, d), gauss(100 + s, n, d)) for s in range(20)]
    assert np.mean(distances) == pytest.approx((d * (d + 1) / 2 + 2 * d) / n, rel=0.1)
    limits = [fid_infinity(gauss(s, n, d), gauss(100 + s, n, d)) for s in range(5)]
    assert abs(np.mean(limits)) < 0.2 * np.mean(distances)


def test_kid_is_the_unbiased_mean_over_pairs() -> None:
    size = 23
    value = (
        np.mean([polynomial(a, b) for a, b in itertools.permutations(X[:size], 2)])
        + np.mean([polynomial(a, b) for a, b in itertools.permutations(Y, 2)])
        - 2 * np.mean([polynomial(a, b) for a in X[:size] for b in Y])
    )
    whole = kid(X[:size], Y)
    assert whole.value == pytest.approx(value)
    assert (whole.sd, whole.num_subsets, whole.subset_size) == (0, 1, size)
    assert kid_interval(X[:size], Y).mean == pytest.approx(value)


def test_kid_subsets_shrink_and_are_seeded() -> None:
    distance = kid(X, Y, num_subsets=9)
    assert (distance.subset_size, distance.num_subsets, distance.num_real, distance.num_generated) == (M, 9, N, M)
    assert kid(X, Y, num_subsets=9) == distance != kid(X, Y, num_subsets=9, seed=1)
    many = kid(X, Y, num_subsets=3000, subset_size=10).value
    assert many == pytest.approx(kid_interval(X, Y).mean, abs=0.05)
    with pytest.raises(ValueError, match="at least 2 images"):
        kid(X, Y, subset_size=1)


def test_kid_is_unbiased_and_so_below_0_half_the_time() -> None:
    values = [kid(gauss(s, 20), gauss(500 + s, 20)).value for s in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(300) and np.mean(np.array(values) < 0) > 0.3


def test_prompts_pairs_are_left_out() -> None:
    """Two images a prompt: pairs of one prompt do not enter the mean over generated pairs."""
    x, y, groups = gauss(6, 12), gauss(7, 22, shift=0.3), [f"prompt {n // 2}" for n in range(22)]
    within = [polynomial(y[i], y[j]) for i, j in itertools.permutations(range(22), 2) if groups[i] != groups[j]]
    value = (
        np.mean([polynomial(a, b) for a, b in itertools.permutations(x, 2)])
        + np.mean(within)
        - 2 * np.mean([polynomial(a, b) for a in x for b in y])
    )
    estimate = kid_interval(x, y, groups=groups)
    assert estimate.mean == pytest.approx(value) and estimate.num_prompts == 11


def test_kid_intervals_with_prompts_hold_the_truth_where_images_alone_do_not() -> None:
    """30 prompts x 6 images that resemble each other. The truth is the mean over studies, since KID is unbiased."""
    prompts, per_prompt, groups = 30, 6, [str(n) for n in range(30) for _ in range(6)]

    def study(seed: int) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(seed)
        level = generator.normal(0.5, 0.7, (prompts, 1, D))
        images = level + generator.normal(0, math.sqrt(1 - 0.49), (prompts, per_prompt, D))
        return generator.normal(size=(100, D)), images.reshape(-1, D)

    estimates = [kid_interval(*study(s), groups=groups) for s in range(150)]
    truth = np.mean([each.mean for each in estimates])
    assert np.mean([each.low <= truth <= each.high for each in estimates]) > 0.9
    alone = [kid_interval(*study(s)) for s in range(50)]
    assert np.mean([each.se for each in alone]) < 0.8 * np.mean([each.se for each in estimates])


def test_kid_difference() -> None:
    real, a = gauss(8, 60), gauss(9, 48, shift=0.2)
    b, groups = a + 0.5 + 0.1 * gauss(10, 48), [f"prompt {n % 12}" for n in range(48)]
    estimate, swapped = kid_difference(real, a, b, groups=groups), kid_difference(real, b, a, groups=groups)
    first, second = (kid_interval(real, each, groups=groups) for each in (a, b))
    assert estimate.mean == pytest.approx(first.mean - second.mean)
    assert (swapped.mean, swapped.low, swapped.high) == pytest.approx((-estimate.mean, -estimate.high, -estimate.low))
    assert estimate.high < 0 and estimate.num_prompts == 12
    assert estimate.se < math.hypot(first.se, second.se)  # shared prompts and real images
    same = kid_difference(real, a, a, groups=groups)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    order = np.random.default_rng(11).permutation(48)
    moved = kid_difference(real, a[order], b[order], groups=[groups[n] for n in order])
    assert (moved.mean, moved.se) == pytest.approx((estimate.mean, estimate.se))


def test_cmmd_by_brute_force() -> None:
    x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (X, Y))
    kernels = [np.exp(-cdist(a, b, "sqeuclidean") / 200).mean() for a, b in ((x, x), (y, y), (x, y))]
    assert cmmd(X, Y) == pytest.approx(1000 * (kernels[0] + kernels[1] - 2 * kernels[2]))
    assert cmmd(X, 3 * X) == pytest.approx(0, abs=1e-9) and cmmd(X, Y) == pytest.approx(cmmd(Y, X))
    assert cmmd(gauss(1, 700), gauss(2, 600)) > 0  # more than one block of rows


def test_precision_recall_density_coverage_by_brute_force() -> None:
    k = 3
    real_radii = [np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(cdist(X, X))]
    fake_radii = [np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(cdist(Y, Y))]
    between = cdist(X, Y)
    inside = [[between[i, j] < real_radii[i] for j in range(M)] for i in range(N)]
    prdc = precision_recall_density_coverage(X, Y, num_neighbours=k)
    assert prdc.precision == pytest.approx(np.mean([any(inside[i][j] for i in range(N)) for j in range(M)]))
    assert prdc.density == pytest.approx(np.sum(inside) / (k * M))
    assert prdc.coverage == pytest.approx(np.mean([any(row) for row in inside]))
    assert prdc.recall == pytest.approx(
        np.mean([any(between[i, j] < fake_radii[j] for j in range(M)) for i in range(N)])
    )
    assert (prdc.num_neighbours, prdc.num_real, prdc.num_generated) == (k, N, M)


def test_precision_recall_density_coverage_limits() -> None:
    apart = precision_recall_density_coverage(X, Y + 100)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)
    straight, swapped = precision_recall_density_coverage(X, Y), precision_recall_density_coverage(Y, X)
    assert (straight.precision, straight.recall) == (swapped.recall, swapped.precision)
    same = precision_recall_density_coverage(gauss(12, 600), gauss(13, 600))
    assert same.density == pytest.approx(1, abs=0.1) and same.coverage > 0.9
    collapsed = precision_recall_density_coverage(gauss(12, 600), 0.05 * gauss(13, 600))
    assert collapsed.precision == 1 and collapsed.recall < 0.1 and collapsed.coverage < same.coverage / 2


def test_vendi_worked_numbers() -> None:
    """Orthogonal images count n, equal ones 1; two kinds in shares 3/4 and 1/4 by their entropies."""
    for order in (0.5, 1.0, 2.0, math.inf):
        assert vendi(np.eye(4, 7), order=order) == pytest.approx(4)
        assert vendi(np.ones((6, 3)), order=order) == pytest.approx(1)
    two_kinds = [[1.0, 0.0]] * 3 + [[0.0, 5.0]]
    assert vendi(two_kinds) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert vendi(two_kinds, order=2) == pytest.approx(1 / (0.75**2 + 0.25**2))
    assert vendi(two_kinds, order=math.inf) == pytest.approx(4 / 3)
    assert vendi(two_kinds, order=1 + 1e-6) == pytest.approx(vendi(two_kinds), rel=1e-5)


@pytest.mark.parametrize("shape", [(N, D), (D, N)])
def test_vendi_is_that_of_the_kernel_matrix(shape: tuple[int, int]) -> None:
    x = gauss(14, *shape)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit @ unit.T / len(x))
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    assert vendi(x) == pytest.approx(math.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


def test_pairwise_diversity_is_the_mean_over_pairs() -> None:
    assert pairwise_diversity(X) == pytest.approx(pdist(X, "cosine").mean())
    assert pairwise_diversity([[1.0, 2.0], [2.0, 4.0]]) == pytest.approx(0)
    assert pairwise_diversity([[1.0, 2.0], [-1.0, -2.0]]) == pytest.approx(2)


TWO_SIDED = [fid, fid_infinity, kid, kid_interval, cmmd, precision_recall_density_coverage]


@pytest.mark.parametrize("metric", TWO_SIDED, ids=lambda metric: metric.__name__)
def test_wrong_features(metric: Callable[[np.ndarray, np.ndarray], object]) -> None:
    broken = Y.copy()
    broken[4, 2] = math.nan
    with pytest.raises(DiffalignError, match="NaN or inf in 1 images, the first 4"):
        metric(X, broken)
    with pytest.raises(ValueError, match="one extractor, got 5 and 4"):
        metric(X, Y[:, :4])
    with pytest.raises(ValueError, match="expected features"):
        metric(X, Y[0])
    with pytest.raises(DiffalignError, match="at least"):
        metric(X, Y[:1])


def test_other_wrong_inputs() -> None:
    with pytest.raises(DiffalignError, match="row of zeros for image 1"):
        vendi([[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="above 0"):
        vendi(X, order=0)
    with pytest.raises(ValueError, match="at least 1 neighbour"):
        precision_recall_density_coverage(X, Y, num_neighbours=0)
    with pytest.raises(ValueError, match="a group for each of 23"):
        kid_interval(X, Y, groups=["a"])
    with pytest.raises(DiffalignError, match="10 prompts to resample, got 31 and 2"):
        kid_interval(X, Y, groups=["a"] * 20 + ["b"] * 3)
    with pytest.raises(DiffalignError, match="got 23 and 22"):
        kid_difference(X, Y, Y[:-1])
