"""What the objectives have to do with each other, numbered; all in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffalign.objectives import (
    OBJECTIVES,
    calibrated_rewards,
    capo,
    cdpo,
    crd,
    dgpo,
    diffusion_dpo,
    diffusion_dro,
    diffusion_npo,
    group_advantages,
    hinge,
    ipo,
    kto,
    kto_loss_averse,
    kto_risk_seeking,
    lambda_listwise,
    linear_dpo,
    mapo,
    mapo_score,
    nft,
    rank_dpo,
    ranking_weights,
    sdpo,
    sft,
    smpo,
    soft_dpo,
)
from diffalign.types import ObjectiveOutput

B = 3
KTO = (kto, kto_loss_averse, kto_risk_seeking)


def draw(*shape: int, seed: int, scale: float = 0.01) -> Tensor:
    return scale * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Policy errors on both images, then the reference's."""
    return draw(B, seed=0), draw(B, seed=1), draw(B, seed=2), draw(B, seed=3)


def as_set(one: Tensor, two: Tensor) -> Tensor:
    return torch.stack([one, two], dim=1)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    loss(leaf).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def score_pairs(gap: float | Tensor) -> Tensor:
    """(B, 2, 1): the first candidate leads by the gap."""
    scores = torch.zeros(B, 2, 1, dtype=torch.float64)
    scores[:, 0, 0] = gap
    return scores


def test_01_listwise_dpo_of_two_is_dpo_if_sure_and_soft_dpo_if_not() -> None:
    """Softmax over two is a sigmoid: P = (1, 0) from a gap of 1000, P = (p, 1 - p) from the gap log(p/(1 - p))."""
    chosen, rejected, ref_chosen, ref_rejected = pair()
    errors = as_set(chosen, rejected), as_set(ref_chosen, ref_rejected)
    fixed = {"beta": 500.0, "metric_weights": [1.0], "temperatures": [1.0]}
    sure = lambda_listwise(*errors, score_pairs(1000.0), **fixed).loss  # type: ignore[arg-type]
    torch.testing.assert_close(sure, diffusion_dpo(*pair(), beta=500.0).loss)
    p = torch.tensor([0.3, 0.8, 0.5], dtype=torch.float64)
    unsure = lambda_listwise(*errors, score_pairs(p.logit()), **fixed).loss  # type: ignore[arg-type]
    torch.testing.assert_close(unsure, soft_dpo(*pair(), p, beta=500.0).loss)
    ninety = lambda_listwise(*errors, score_pairs(math.log(9)), **fixed).loss  # type: ignore[arg-type]
    torch.testing.assert_close(ninety, cdpo(*pair(), beta=500.0, label_smoothing=0.1).loss)


def test_02_dgpo_of_two_is_dpo() -> None:
    """Two different scores have advantages +1 and -1; the 1/G of the mean is Diffusion-DPO's 1/2."""
    chosen, rejected, ref_chosen, ref_rejected = pair()
    scores = score_pairs(torch.tensor([0.2, 3.0, 40.0], dtype=torch.float64))
    assert group_advantages(scores, [1.0]).tolist() == [[1, -1]] * B
    errors = as_set(chosen, rejected), as_set(ref_chosen, ref_rejected)
    loss = dgpo(*errors, scores, beta=500.0, metric_weights=[1.0]).loss
    torch.testing.assert_close(loss, diffusion_dpo(*pair(), beta=500.0).loss)


def test_03_crd_of_two_is_half_of_capo_at_full_weight() -> None:
    """Centring two numbers leaves half their difference twice: 2 (x/2)^2 = x^2/2, with x = beta D - dR."""
    chosen, rejected, ref_chosen, ref_rejected = pair()
    gap = torch.tensor([0.2, -0.4, 0.9], dtype=torch.float64)
    errors = as_set(chosen, rejected), as_set(ref_chosen, ref_rejected)
    loss = crd(*errors, score_pairs(gap), beta=70.0, metric_weights=[1.0]).loss
    whole = capo(*pair(), (1 + gap) / 2, torch.zeros_like(gap), beta=70.0, bias=1e3).loss
    torch.testing.assert_close(loss, whole / 2)


def test_04_ipo_is_capo_with_a_gap_of_one() -> None:
    """(1 - 2 b D)^2 = (2b)^2 (D - 1/(2b))^2."""
    sure, level = torch.ones(B, dtype=torch.float64), torch.zeros(B, dtype=torch.float64)
    whole = capo(*pair(), sure, level, beta=140.0, bias=1e3).loss
    torch.testing.assert_close(ipo(*pair(), beta=70.0).loss * 140.0**2, whole)


def test_05_dro_against_true_noise_is_the_hinge_loss() -> None:
    """max(0, m - D) = m max(0, 1 - beta/2 D) with beta = 2/m."""
    chosen, own, ref_chosen, ref_own = (draw(40, seed=seed) for seed in range(4))
    slic = hinge(chosen, own, ref_chosen, ref_own, beta=2 / 0.004).loss
    torch.testing.assert_close(diffusion_dro(chosen, ref_chosen, own, ref_own, margin=0.004).loss, 0.004 * slic)
    assert 0 < (slic > 0).sum() < 40


def test_06_dgpo_has_the_gradient_of_a_weighted_sum_of_errors() -> None:
    """d/de_i of -log sigmoid(beta/K sum A d) is beta/K sigmoid(beta/K sum A (e - e_ref)) A_i."""
    err, ref_err, scores = draw(B, 5, seed=0), draw(B, 5, seed=1), draw(B, 5, 2, seed=2, scale=1.0)
    weights, beta = [0.3, 0.7], 400.0
    advantages = group_advantages(scores, weights)
    sigmoid = (beta / 5 * (advantages * (err - ref_err)).sum(1, keepdim=True)).sigmoid()
    found = gradient(lambda e: dgpo(e, ref_err, scores, beta=beta, metric_weights=weights).loss, err)
    torch.testing.assert_close(found, beta / 5 * gradient(lambda e: sigmoid * advantages * e, err))


def test_07_linear_dpo_replaces_the_logistic_weight_by_a_steeper_line() -> None:
    """At D = 0 both weights are 1/2; their slopes in D are -beta/5 and -beta/8; the outer beta/2 is dropped."""
    level, step, beta = torch.full((1,), 0.1, dtype=torch.float64), 1e-6, 100.0

    def weights(difference: float) -> tuple[float, float]:
        chosen = level - difference
        logistic = gradient(lambda e: diffusion_dpo(e, level, level, level, beta=beta).loss, chosen) / (beta / 2)
        linear = gradient(lambda e: linear_dpo(e, level, level, level, beta=beta).loss, chosen)
        return logistic.item(), linear.item()

    assert weights(0.0) == pytest.approx((0.5, 0.5))
    slopes = [(b - a) / (2 * step) for a, b in zip(weights(-step), weights(step), strict=True)]
    assert slopes == pytest.approx([-0.125 * beta, -0.2 * beta], rel=1e-6)


@pytest.mark.parametrize(("mu", "sign", "scale"), [(0.5, -1.0, 1.0), (1.0, 1.0, 0.0)])
def test_08_sdpo_at_full_scale_is_dpo_and_at_none_keeps_the_chosen_side(mu: float, sign: float, scale: float) -> None:
    """Opposed gradients need no gate; with mu = 1 and gradients alike nothing may be pushed."""
    chosen, rejected, ref_chosen, ref_rejected = pair()
    outputs = torch.ones(4, B, 4, 5, 6, dtype=torch.float64)
    tensors = outputs[0], torch.zeros_like(outputs[0]), sign * outputs[1], torch.zeros_like(outputs[0])

    def gated(one: Tensor, two: Tensor) -> ObjectiveOutput:
        return sdpo(one, two, ref_chosen, ref_rejected, *tensors, beta=500.0, mu=mu)

    def plain(one: Tensor, two: Tensor) -> ObjectiveOutput:
        return diffusion_dpo(one, two, ref_chosen, ref_rejected, beta=500.0)

    assert gated(chosen, rejected).metrics["rejected_scale"].tolist() == [scale] * B
    assert torch.equal(gated(chosen, rejected).loss, plain(chosen, rejected).loss)
    for_chosen = [gradient(lambda e, one=one: one(e, rejected).loss, chosen) for one in (gated, plain)]
    for_rejected = [gradient(lambda e, one=one: one(chosen, e).loss, rejected) for one in (gated, plain)]
    assert torch.equal(for_chosen[0], for_chosen[1])
    assert torch.equal(for_rejected[0], scale * for_rejected[1]) and for_rejected[1].abs().min() > 0


def test_09_calibrated_rewards_of_a_set_add_up_to_half_its_size() -> None:
    """sigmoid(x) + sigmoid(-x) = 1: K (K - 1)/2 comparisons, each shared out whole, over K - 1."""
    rewards = calibrated_rewards(draw(B, 7, 2, seed=0, scale=5.0))
    torch.testing.assert_close(rewards.sum(1), torch.full((B,), 3.5, dtype=torch.float64))
    assert rewards.min() >= 0 and rewards.max() <= 1 and rewards.std() > 0.05


def test_10_nft_of_good_samples_is_sft_and_of_even_ones_the_pull_to_the_old_policy() -> None:
    """r = 1, beta = 1: f+ = f. r = 1/2: beta |f - f_old|^2 + |f_old - u|^2 / beta."""
    pred, old, target = (draw(B, 4, 5, 6, seed=seed, scale=1.0) for seed in range(3))
    one = torch.ones(B, dtype=torch.float64)
    error = (pred - target).square().mean((1, 2, 3))
    torch.testing.assert_close(nft(pred, old, target, one).loss, sft(error).loss)
    even = 2.5 * (pred - old).square().mean((1, 2, 3)) + (old - target).square().mean((1, 2, 3)) / 2.5
    torch.testing.assert_close(nft(pred, old, target, one / 2, beta=2.5).loss, even)


def test_11_mapo_score_near_zero_and_far_away() -> None:
    """x/(e^x - 1) = 1 - x/2 + x^2/12 - ..., = x e^-x/(1 - e^-x), = -x for x far below 0."""
    tiny = torch.tensor([0.0, 1e-9, 1e-5], dtype=torch.float64)
    torch.testing.assert_close(mapo_score(tiny, 0.5), 1 - tiny / 4, rtol=0, atol=1e-11)
    torch.testing.assert_close(gradient(lambda e: mapo_score(e, 0.5), tiny), torch.full_like(tiny, -0.25) + tiny / 24)
    middle = torch.tensor([-3.0, -0.5, 0.5, 3.0, 60.0], dtype=torch.float64)
    torch.testing.assert_close(mapo_score(middle, 0.5), (middle / 2) / (torch.exp(middle / 2) - 1))
    seam = torch.tensor([0.02 - 1e-9, 0.02 + 1e-9], dtype=torch.float64)
    assert (mapo_score(seam, 0.5)[0] - mapo_score(seam, 0.5)[1]).item() == pytest.approx(2e-9 * 0.249, rel=0.01)
    assert mapo_score(torch.tensor([1e4, -1e4]), 0.5).tolist() == [0, 5000]


@pytest.mark.parametrize("name", ["kto", "kto_loss_averse", "kto_risk_seeking", "rank_dpo", "mapo", "linear_dpo"])
def test_12_one_unanimous_pair_pulls_the_chosen_error_down_and_pushes_the_other_up(name: str) -> None:
    chosen, rejected, ref_chosen, ref_rejected = (one.requires_grad_() for one in pair())
    if name == "rank_dpo":
        scores = score_pairs(1.0)
        loss = rank_dpo(as_set(chosen, rejected), as_set(ref_chosen, ref_rejected), scores, beta=500.0).loss
        plain = diffusion_dpo(chosen, rejected, ref_chosen, ref_rejected, beta=500.0).loss
        weight = ranking_weights(torch.tensor([[1.0, 0.0]]))[0, 0, 1].double()
        torch.testing.assert_close(loss, weight * plain)
    else:
        spec = OBJECTIVES.get(name)
        given = {"chosen_err": chosen, "rejected_err": rejected, "ref_chosen_err": ref_chosen} | {
            "ref_rejected_err": ref_rejected
        }
        loss = spec.bind({"beta": 500.0} if spec.required else {})(given).loss
    loss.sum().backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert (chosen.grad > 0).all() and (rejected.grad < 0).all()


@pytest.mark.parametrize(
    ("name", "settings", "loss"),
    [
        ("diffusion_dpo", {}, math.log(2)),
        ("diffusion_npo", {}, math.log(2)),
        ("cdpo", {"label_smoothing": 0.2}, math.log(2)),
        ("soft_dpo", {}, math.log(2)),
        ("smpo", {}, math.log(2)),
        ("sdpo", {"mu": 0.5}, math.log(2)),
        ("sdpo_batch", {"mu": 0.5}, math.log(2)),
        ("cw_dpo", {"threshold": 0.1, "temperature": 0.1}, math.log(2)),
        ("hinge", {}, 1.0),
        ("ipo", {}, 1 / (4 * 40.0**2)),
        ("dmpo", {"alpha": 0.1}, 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)),
    ],
)
def test_13_at_the_reference_every_pair_has_margin_0(name: str, settings: dict[str, float], loss: float) -> None:
    spec = OBJECTIVES.get(name)
    error = draw(B, seed=0)
    tensor = draw(B, 4, 5, 6, seed=1)
    given = {n: error if n.endswith("err") else tensor for n in spec.inputs} | {"label": draw(B, seed=2, scale=1.0)}
    output = spec.bind({"beta": 40.0} | settings)(given)
    assert output.metrics["margin"].tolist() == [0] * B
    assert output.metrics["accuracy"].tolist() == [0.5] * B
    assert output.loss.tolist() == pytest.approx([loss] * B)


@pytest.mark.parametrize("function", KTO)
def test_14_kto_looks_at_levels_and_not_at_differences(function: Callable[..., ObjectiveOutput]) -> None:
    """Where both images lost against the reference the baseline stays at 0, and losing more costs the chosen image."""
    level = torch.full((B,), 0.1, dtype=torch.float64)
    less, more = (function(level, level, level - lost, level - lost, beta=500.0) for lost in (0.001, 0.003))
    assert less.metrics["baseline"].tolist() == more.metrics["baseline"].tolist() == [0] * B
    assert not torch.isclose(less.metrics["chosen_excess"], more.metrics["chosen_excess"]).any()
    gained = function(level, level, level + 0.001, level + 0.001, beta=500.0)
    moved = function(level, level, level + 0.003, level + 0.003, beta=500.0)
    torch.testing.assert_close(gained.loss, moved.loss)  # above 0 the baseline moves along


def test_15_npo_is_dpo_with_the_images_swapped_and_smpo_of_a_label_below_half_too() -> None:
    chosen, rejected, ref_chosen, ref_rejected = pair()
    swapped = diffusion_dpo(rejected, chosen, ref_rejected, ref_chosen, beta=500.0).loss
    torch.testing.assert_close(diffusion_npo(*pair(), beta=500.0).loss, swapped)
    label = torch.full((B,), 0.45, dtype=torch.float64)
    torch.testing.assert_close(smpo(*pair(), label, beta=500.0).loss, swapped)


def test_16_mapo_without_its_margin_is_sft() -> None:
    chosen, rejected = draw(B, seed=0), draw(B, seed=1)
    torch.testing.assert_close(mapo(chosen, rejected, beta=1e-12).loss, sft(chosen).loss, rtol=0, atol=1e-9)
