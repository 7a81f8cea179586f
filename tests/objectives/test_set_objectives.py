"""Worked numbers and limits of the losses on candidate sets and groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffalign.objectives import (
    calibrated_rewards,
    crd,
    dgpo,
    group_advantages,
    lambda_listwise,
    nft,
    rank_dpo,
    ranking_weights,
    win_fractions,
)

B, K, M = 3, 5, 2
# Gains of three candidates over the reference: .002, -.001, 0.
ERR = torch.tensor([[0.100, 0.130, 0.110]], dtype=torch.float64)
REF_ERR = torch.tensor([[0.102, 0.129, 0.110]], dtype=torch.float64)


def draw(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(*values: float) -> Tensor:
    """(1, K, 1)."""
    return torch.tensor(values, dtype=torch.float64)[None, :, None]


def test_win_fractions_count_comparisons_over_metrics() -> None:
    """Metric 1 orders a > b > c, metric 2 has b and c tied below a: (4, 1 + .5, .5) of 4."""
    both = torch.cat([scores(3, 2, 1), scores(9, 1, 1)], dim=2)
    assert win_fractions(both).tolist() == [[1.0, 0.375, 0.125]]
    assert torch.equal(win_fractions(both), win_fractions(both.exp() * 7))  # scales do not matter
    torch.testing.assert_close(win_fractions(draw(B, K, M, seed=0)).sum(1), torch.full((B,), K / 2).double())


def test_calibrated_rewards_worked_numbers() -> None:
    """Leads of log 3 and log 9: sigmoids .75 and .9; the middle one .25 and .75."""
    found = calibrated_rewards(scores(math.log(9), math.log(3), 0.0))
    assert found[0].tolist() == pytest.approx([(0.75 + 0.9) / 2, (0.25 + 0.75) / 2, (0.25 + 0.1) / 2])


def test_advantages_are_centred_scaled_and_mixed() -> None:
    """Metric 1: 3, 1, 2 has mean 2, std sqrt(2/3). Metric 2 is flat: no advantage, whatever its level."""
    both = torch.cat([scores(3, 1, 2), scores(5, 5, 5)], dim=2)
    unit = math.sqrt(1.5)
    assert group_advantages(both, [1.0, 0.0])[0].tolist() == pytest.approx([unit, -unit, 0])
    assert group_advantages(both, [0.25, 0.75])[0].tolist() == pytest.approx([unit / 4, -unit / 4, 0])
    torch.testing.assert_close(group_advantages(draw(B, K, M, seed=0), [0.3, 0.7]).sum(1), torch.zeros(B).double())


def test_near_ties_are_not_blown_up() -> None:
    close = scores(1e-6, -1e-6, 0.0)
    assert group_advantages(close, [1.0])[0].tolist() == pytest.approx([0.01, -0.01, 0])
    assert group_advantages(close, [1.0], std_floor=1e-12)[0, 0].item() == pytest.approx(math.sqrt(1.5))


def test_ranking_weights_worked_numbers() -> None:
    """phi = 1, 1/2, 0: gains 2, sqrt 2, 1; discounts 1/log 2, 1/log 3, 1/log 4."""
    weights = ranking_weights(torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64))[0]
    discount = [1 / math.log(rank + 1) for rank in (1, 2, 3)]
    gain = [2.0, math.sqrt(2), 1.0]
    for i in range(3):
        for j in range(3):
            assert weights[i, j].item() == pytest.approx(abs(gain[i] - gain[j]) * abs(discount[i] - discount[j]))


def test_equal_candidates_share_a_rank_and_do_not_compare() -> None:
    """phi = 3/4, 3/4, 0: ranks 1.5, 1.5, 3."""
    weights = ranking_weights(torch.tensor([[0.75, 0.75, 0.0]], dtype=torch.float64))[0]
    expected = (2**0.75 - 1) * (1 / math.log(2.5) - 1 / math.log(4))
    assert weights[0, 1].item() == 0 and weights[0, 2].item() == weights[1, 2].item() == pytest.approx(expected)
    tied = rank_dpo(ERR, REF_ERR, scores(1, 1, 1), beta=2000.0)
    assert tied.loss.item() == 0 and tied.metrics["accuracy"].item() == 0.5


def test_rank_dpo_worked_numbers() -> None:
    """Ranking a > b > c against gains .002, -.001, 0: logits 3, 2 and -1 at beta/2 = 1000."""
    weights = ranking_weights(torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64))[0]
    output = rank_dpo(ERR, REF_ERR, scores(3, 2, 1), beta=2000.0)
    logits = {(0, 1): 3.0, (0, 2): 2.0, (1, 2): -1.0}
    expected = sum(weights[i, j].item() * math.log1p(math.exp(-z)) for (i, j), z in logits.items())
    assert output.loss.item() == pytest.approx(expected)
    assert output.metrics["accuracy"].item() == pytest.approx(2 / 3)
    assert output.metrics["chosen_excess"].item() == pytest.approx(-0.002)
    assert output.metrics["rejected_excess"].item() == pytest.approx(0, abs=1e-12)


def test_listwise_dpo_worked_numbers() -> None:
    """log softmax of (2, -1, 0) against softmax(scores/tau) of two metrics, mixed 1 : 3."""
    both = torch.cat([scores(1, 2, 4), scores(0, 3, 1)], dim=2)
    policy = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64).log_softmax(0)
    wanted = 0.25 * (both[0, :, 0] / 0.5).softmax(0) + 0.75 * (both[0, :, 1] / 2).softmax(0)
    found = lambda_listwise(ERR, REF_ERR, both, beta=2000.0, metric_weights=[0.25, 0.75], temperatures=[0.5, 2.0])
    assert found.loss.item() == pytest.approx(-(wanted * policy).sum().item())


def test_mixing_metrics_before_the_cross_entropy_equals_mixing_losses() -> None:
    err, ref_err = draw(B, K, seed=0, scale=0.01), draw(B, K, seed=1, scale=0.01)
    both, tau = draw(B, K, M, seed=2), [0.1, 0.7]
    one, two, mixed = (
        lambda_listwise(err, ref_err, both, beta=500.0, metric_weights=weights, temperatures=tau).loss
        for weights in ([1.0, 0.0], [0.0, 1.0], [0.3, 0.7])
    )
    torch.testing.assert_close(mixed, 0.3 * one + 0.7 * two)


def test_listwise_gradient_is_the_policys_distribution_less_the_wanted_one() -> None:
    """dL/de_i = beta/2 (P_i - softmax_i): candidates wanted more than they have are pulled."""
    err, ref_err, both = draw(B, K, seed=0, scale=0.01).requires_grad_(), draw(B, K, seed=1), draw(B, K, 1, seed=2)
    lambda_listwise(err, ref_err, both, beta=500.0, metric_weights=[1.0], temperatures=[1.0]).loss.sum().backward()
    policy, wanted = (250 * (ref_err - err.detach())).softmax(1), both[..., 0].softmax(1)
    torch.testing.assert_close(err.grad, 250 * (wanted - policy))


def test_dgpo_worked_numbers() -> None:
    """Advantages sqrt(1.5) (1, -1, 0), gains .002, -.001, 0: z = beta/3 sqrt(1.5) .003."""
    output = dgpo(ERR, REF_ERR, scores(3, 1, 2), beta=3000.0, metric_weights=[1.0])
    z = 3 * math.sqrt(1.5)
    assert output.metrics["margin"].item() == pytest.approx(z)
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-z)))


def test_a_flat_group_has_no_gradient() -> None:
    err = ERR.clone().requires_grad_()
    loss = dgpo(err, REF_ERR, scores(2, 2, 2), beta=3000.0, metric_weights=[1.0]).loss
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2)) and err.grad is not None and err.grad.abs().max() == 0


def test_crd_worked_numbers() -> None:
    """beta d = .2, -.1, 0 has mean .1/3; R = .5, .2, -.1 has mean .2."""
    output = crd(ERR, REF_ERR, scores(0.5, 0.2, -0.1), beta=100.0, metric_weights=[1.0])
    gains, rewards = (0.2, -0.1, 0.0), (0.5, 0.2, -0.1)
    expected = sum((g - 0.1 / 3 - (r - 0.2)) ** 2 for g, r in zip(gains, rewards, strict=True))
    assert output.loss.item() == pytest.approx(expected)
    shifted = crd(ERR, REF_ERR, scores(9.5, 9.2, 8.9), beta=100.0, metric_weights=[1.0])
    assert shifted.loss.item() == pytest.approx(expected)


def test_crd_is_0_where_gains_are_rewards_over_beta() -> None:
    rewards = draw(B, K, M, seed=0)
    mixed = 0.3 * rewards[..., 0] + 0.7 * rewards[..., 1]
    output = crd(0.5 - mixed / 40, torch.full((B, K), 0.5).double(), rewards, beta=40.0, metric_weights=[0.3, 0.7])
    torch.testing.assert_close(output.loss, torch.zeros(B).double())
    assert output.metrics["accuracy"].tolist() == [1] * B


def test_nft_optimum_lies_beyond_the_sample_by_its_advantage() -> None:
    """L is quadratic in f with optimum f_old + (2r - 1)/beta (u - f_old)."""
    old, target = draw(B, 4, 5, 6, seed=0), draw(B, 4, 5, 6, seed=1)
    r = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    best = old + ((2 * r - 1) / 0.5)[:, None, None, None] * (target - old)
    pred = best.clone().requires_grad_()
    nft(pred, old, target, r, beta=0.5).loss.sum().backward()
    assert pred.grad is not None and pred.grad.abs().max() < 1e-12


@pytest.mark.parametrize("shape", [(B, K), (B, 1, M), (B, K, 0)])
def test_scores_of_a_wrong_shape_are_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"scores \(B, K, M\)"):
        rank_dpo(draw(B, K, seed=0), draw(B, K, seed=1), torch.zeros(shape), beta=1.0)
    with pytest.raises(ValueError, match=r"scores \(B, K, M\)"):
        win_fractions(torch.zeros(shape))


def test_more_or_fewer_candidates_than_scores_are_an_error() -> None:
    with pytest.raises(ValueError, match="one shape"):
        rank_dpo(draw(B, K + 1, seed=0), draw(B, K + 1, seed=1), draw(B, K, M, seed=2), beta=1.0)


def test_a_nan_score_of_one_metric_reaches_the_ranking() -> None:
    broken = draw(B, K, M, seed=0)
    broken[1, 2, 0] = torch.nan
    assert win_fractions(broken)[1].isnan().all() and not win_fractions(broken)[[0, 2]].isnan().any()
