"""Worked numbers and limits of the losses on pairs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffalign.objectives import (
    capo,
    cdpo,
    cw_dpo,
    cw_sft,
    diffusion_dpo,
    dmpo,
    dspo,
    hinge,
    ipo,
    kto,
    kto_loss_averse,
    kto_risk_seeking,
    linear_dpo,
    mapo,
    reward_weighted_sft,
    scale_gradient,
    sdpo,
    sdpo_batch,
    self_npo,
    smpo,
    soft_dpo,
    winner_preserving_scale,
)

# One pair: the policy is better than the reference on the chosen image by .002, and worse on the rejected one by .001.
PAIR = tuple(torch.tensor([value], dtype=torch.float64) for value in (0.100, 0.130, 0.102, 0.129))
NAN = float("nan")


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_reward_weights_multiply_the_error() -> None:
    assert reward_weighted_sft(double(0.1, 0.2, 0.3), double(0, 1, 2)).loss.tolist() == pytest.approx([0, 0.2, 0.6])


@pytest.mark.parametrize(("beta", "loss"), [(100, 4e-6), (50, 49e-6), (1000 / 6, 0.0)])
def test_ipo_worked_numbers(beta: float, loss: float) -> None:
    """D = .003; gaps 1/(2 beta) of .005, .01 and .003."""
    output = ipo(*PAIR, beta=beta)
    assert output.loss.item() == pytest.approx(loss, abs=1e-15)
    assert output.metrics["margin"].item() == pytest.approx(beta * 0.003)


def test_ipo_pulls_a_margin_back_that_is_too_wide() -> None:
    """dL/de_w = -2 (D - gap): above 0 (descent lowers e_w) below the gap, below 0 beyond it."""
    for beta, sign in ((100.0, 1), (500.0, -1)):
        chosen = PAIR[0].clone().requires_grad_()
        ipo(chosen, *PAIR[1:], beta=beta).loss.sum().backward()
        assert chosen.grad is not None and chosen.grad.sign().item() == sign


@pytest.mark.parametrize(("beta", "loss", "weight"), [(200, 0.7, 1), (600, 0.1, 1), (1000, 0.0, 0)])
def test_hinge_worked_numbers(beta: float, loss: float, weight: float) -> None:
    """z = beta/2 * .003 = .3, .9, 1.5."""
    output = hinge(*PAIR, beta=beta)
    assert output.loss.item() == pytest.approx(loss)
    assert output.metrics["gradient_weight"].item() == weight


def test_conservative_dpo_worked_numbers_and_its_finite_optimum() -> None:
    """z = 3: .9 * .0486 + .1 * 3.0486. The gradient is 0 at z = log(.9/.1), that is at beta = 2 log(9)/.003."""
    output = cdpo(*PAIR, beta=2000, label_smoothing=0.1)
    assert output.loss.item() == pytest.approx(-0.9 * log_sigmoid(3) - 0.1 * log_sigmoid(-3))
    assert output.metrics["gradient_weight"].item() == pytest.approx(abs(1 / (1 + math.exp(-3)) - 0.9))
    chosen = PAIR[0].clone().requires_grad_()
    cdpo(chosen, *PAIR[1:], beta=2 * math.log(9) / 0.003, label_smoothing=0.1).loss.sum().backward()
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(0, abs=1e-9)
    assert cdpo(*PAIR, beta=2000, label_smoothing=0).loss.item() == diffusion_dpo(*PAIR, beta=2000).loss.item()


def test_soft_labels_worked_numbers() -> None:
    """p = 1 is DPO, p = 0 the pair turned round, p = 1/4 a quarter of the way."""
    losses = [soft_dpo(*PAIR, double(p), beta=2000).loss.item() for p in (1.0, 0.0, 0.25)]
    assert losses == pytest.approx([-log_sigmoid(3), -log_sigmoid(-3), -log_sigmoid(3) + 0.75 * 3])
    chosen = PAIR[0].clone().requires_grad_()
    soft_dpo(chosen, PAIR[1], chosen.detach(), PAIR[1], double(0.5), beta=2000).loss.sum().backward()
    assert chosen.grad is not None and chosen.grad.item() == 0  # a tie at the reference is where it should be


@pytest.mark.parametrize(("label", "z"), [(0.55, 3.0), (0.6, 6.0), (0.5, 0.0), (0.45, -3.0)])
def test_smoothed_preference_worked_numbers(label: float, z: float) -> None:
    """z = 10 (2p - 1) * 3."""
    output = smpo(*PAIR, double(label), beta=2000)
    assert output.metrics["margin"].item() == pytest.approx(z)
    assert output.loss.item() == pytest.approx(-log_sigmoid(z))
    assert smpo(*PAIR, double(0.6), beta=2000, gamma=5.0).metrics["margin"].item() == pytest.approx(3)


def test_smoothed_preference_of_a_tie_has_no_gradient() -> None:
    chosen = PAIR[0].clone().requires_grad_()
    smpo(chosen, *PAIR[1:], double(0.5), beta=2000).loss.sum().backward()
    assert chosen.grad is not None and chosen.grad.item() == 0


def test_kto_worked_numbers() -> None:
    """Gains .002 and -.001: z0 = .0005, so both images are .0015 on their side; beta 1000 makes that 1.5."""
    x = 1.5
    sigmoid = 1 / (1 + math.exp(-x))
    losses = [one(*PAIR, beta=1000).loss.item() for one in (kto, kto_loss_averse, kto_risk_seeking)]
    assert losses == pytest.approx([1 - sigmoid, 1 - log_sigmoid(x), 1 + log_sigmoid(-x)])
    output = kto(*PAIR, beta=1000)
    assert output.metrics["baseline"].item() == pytest.approx(0.0005) and output.metrics["accuracy"].item() == 1
    weighted = kto(*PAIR, beta=1000, desirable_weight=1.6, undesirable_weight=0.4).loss.item()
    assert weighted == pytest.approx(1 - sigmoid)  # (1.6 + .4)/2 of two equal halves
    swapped = kto(PAIR[1], PAIR[0], PAIR[3], PAIR[2], beta=1000)
    assert swapped.metrics["accuracy"].item() == 0 and swapped.loss.item() == pytest.approx(sigmoid)


def test_kto_weighs_the_two_kinds_of_image_apart() -> None:
    """Slopes at the reference are beta/4 a_w/2 and -beta/4 a_l/2."""
    error = double(0.1, 0.2, 0.3)
    chosen, rejected = error.clone().requires_grad_(), error.clone().requires_grad_()
    kto(chosen, rejected, error, error, beta=8.0, desirable_weight=1.5, undesirable_weight=0.5).loss.sum().backward()
    assert chosen.grad is not None and chosen.grad.tolist() == pytest.approx([1.5] * 3)
    assert rejected.grad is not None and rejected.grad.tolist() == pytest.approx([-0.5] * 3)


def test_kto_baseline_is_never_below_zero_and_has_no_gradient() -> None:
    level = double(0.1, 0.2, 0.3).requires_grad_()
    worse = kto(level, level.detach(), level.detach() - 0.01, level.detach() - 0.02, beta=100.0)
    assert worse.metrics["baseline"].tolist() == [0, 0, 0]
    better = kto(level, level.detach(), level.detach() + 0.01, level.detach() + 0.02, beta=100.0)
    assert better.metrics["baseline"].tolist() == pytest.approx([0.015] * 3)
    better.loss[0].backward()
    assert level.grad is not None and level.grad[1:].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["kto_loss_averse", "kto_risk_seeking"])
def test_kto_utilities_differ_in_whom_they_listen_to(name: str) -> None:
    """Loss-averse: a desirable image far below the baseline has slope beta/2; risk-seeking: far above it."""
    function = {"kto_loss_averse": kto_loss_averse, "kto_risk_seeking": kto_risk_seeking}[name]
    chosen, same = double(0.15, 0.05, 0.1), double(0.1, 0.1, 0.1)
    leaf = chosen.clone().requires_grad_()
    output = function(leaf, same, same, same, beta=1000.0)
    assert output.metrics["baseline"].tolist() == pytest.approx([0] * 3, abs=1e-12)  # gains -.05, .05 and four of 0
    output.loss.sum().backward()
    assert leaf.grad is not None
    below, above = leaf.grad[:2].tolist()
    assert (below, above) == pytest.approx((500, 0) if name == "kto_loss_averse" else (0, 500), abs=1e-6)


def test_mapo_worked_numbers() -> None:
    """phi(.05) = .05/(e^.05 - 1), phi(.065); z = 1000 (phi_w - phi_l)."""
    z = 1000 * (0.05 / math.expm1(0.05) - 0.065 / math.expm1(0.065))
    output = mapo(PAIR[0], PAIR[1])
    assert output.metrics["margin"].item() == pytest.approx(z)
    assert output.loss.item() == pytest.approx(0.1 - 0.1 * log_sigmoid(z))
    assert mapo(PAIR[0], PAIR[1], num_timesteps=1.0).loss.item() == pytest.approx(0.1 - 0.1 * log_sigmoid(z / 1000))
    assert mapo(PAIR[0], PAIR[1], snr=0.25).metrics["margin"].item() == pytest.approx(
        1000 * (0.025 / math.expm1(0.025) - 0.0325 / math.expm1(0.0325))
    )


def test_dspo_worked_numbers_and_its_value_at_the_reference() -> None:
    """z = .003 beta/2; (f - u) = .3, (f - f_ref) = .2. At f = f_ref only the error of the chosen image is left."""
    outputs = [torch.full((1, 4, 5, 6), value, dtype=torch.float64) for value in (0.4, 0.2, 0.1)]
    for beta in (2.0, 0.001, 400.0):
        pull = beta / (1 + math.exp(0.0015 * beta))
        assert dspo(*PAIR, *outputs, beta=beta).loss.item() == pytest.approx((0.3 - pull * 0.2) ** 2)
    assert dspo(*PAIR, outputs[0], outputs[0], outputs[2], beta=400.0).loss.item() == pytest.approx(0.09)


def test_dspo_slope_at_the_reference_is_that_of_the_error_but_for_half_beta() -> None:
    pred, target = randn(1, 4, 5, 6, seed=0).requires_grad_(), randn(1, 4, 5, 6, seed=1)
    level = double(0.1)
    dspo(level, level, level, level, pred, pred.detach(), target, beta=0.5).loss.sum().backward()
    torch.testing.assert_close(pred.grad, (1 - 0.25) * 2 * (pred - target).detach() / 120)


@pytest.mark.parametrize("alpha", [0.01, 0.2])
def test_dmpo_worked_numbers_and_its_optimum(alpha: float) -> None:
    """KL of Bernoulli variables at z = 3; 0 where sigmoid(z) = 1 - alpha."""
    p = 1 / (1 + math.exp(-3))
    divergence = p * math.log(p / (1 - alpha)) + (1 - p) * math.log((1 - p) / alpha)
    assert dmpo(*PAIR, beta=2000, alpha=alpha).loss.item() == pytest.approx(divergence)
    best = 2 * math.log((1 - alpha) / alpha) / 0.003
    assert dmpo(*PAIR, beta=best, alpha=alpha).loss.item() == pytest.approx(0, abs=1e-12)


def test_dmpo_is_bounded_and_its_alpha_has_a_floor() -> None:
    """A pair that is wrong beyond hope costs log(1/alpha), not more, and pulls no more."""
    wrong = double(10.0).requires_grad_()
    loss = dmpo(wrong, *PAIR[1:], beta=2000, alpha=0.0).loss
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(1e6))
    assert wrong.grad is not None and wrong.grad.item() == 0
    assert torch.equal(dmpo(*PAIR, beta=2000, alpha=0.0).loss, dmpo(*PAIR, beta=2000, alpha=1e-6).loss)


@pytest.mark.parametrize(("beta", "eta", "weight"), [(100, 0.001, 0.44), (1000, 0.001, 0.001), (1000, 0.0, 0.0)])
def test_linear_dpo_worked_numbers(beta: float, eta: float, weight: float) -> None:
    """D = .003: 1/2 - .2 * beta * .003 = .44 and -.1; times e_w - e_l = -.03."""
    output = linear_dpo(*PAIR, beta=beta, eta=eta)
    assert output.metrics["gradient_weight"].item() == pytest.approx(weight)
    assert output.loss.item() == pytest.approx(-0.03 * weight)
    swapped = linear_dpo(PAIR[1], PAIR[0], PAIR[3], PAIR[2], beta=beta, eta=eta)
    assert swapped.metrics["gradient_weight"].item() == pytest.approx(1 - weight)


def test_linear_dpo_weight_has_no_gradient() -> None:
    chosen = PAIR[0].clone().requires_grad_()
    linear_dpo(chosen, *PAIR[1:], beta=100).loss.sum().backward()
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(0.44)


def test_sdpo_scale_worked_numbers() -> None:
    """(1 - mu) |g_w|^2 / (g_w . g_l), at most 1, and 1 where the product is not above 0; NaN stays."""
    square, product = double(1, 1, 1, 1, 0, 0, NAN), double(-1, 0, 0.1, 2, 0, 1, 1)
    scale = winner_preserving_scale(square, product, mu=0.5)
    assert scale[:6].tolist() == [1, 1, 1, 0.25, 1, 0] and scale[6].isnan()
    assert winner_preserving_scale(double(1.0), double(NAN), mu=0.5).isnan()


def test_scaled_gradient_keeps_the_value() -> None:
    value = double(0.3, 0.5).requires_grad_()
    scaled = scale_gradient(value, double(0.25, 2.0))
    assert scaled.tolist() == value.tolist()
    scaled.sum().backward()
    assert value.grad is not None and value.grad.tolist() == [0.25, 2.0]


@pytest.mark.parametrize("mu", [0.0, 0.3, 0.9, 1.0])
def test_sdpo_step_lowers_the_chosen_error_by_mu_of_its_own_descent_at_least(mu: float) -> None:
    """Outputs move alike: change of e_w along -(g_w - s g_l) is -(g_w - s g_l) . g_w <= -mu |g_w|^2, row by row.

    Plain Diffusion-DPO breaks the bound on some of these rows.
    """
    target = randn(6, 4, 5, 3, seed=0)
    chosen = (target + randn(6, 4, 5, 3, seed=1)).requires_grad_()
    away = target + 1.5 * (chosen.detach() - target) + 0.5 * randn(6, 4, 5, 3, seed=2)
    away[5] = 2 * target[5] - away[5]  # one row whose gradients oppose each other
    rejected = away.requires_grad_()
    errors = [(pred - target).square().flatten(1).mean(1) for pred in (chosen, rejected)]
    reference = [error.detach() for error in errors]
    output = sdpo(*errors, *reference, chosen, target, rejected, target, beta=4.0, mu=mu)
    on_chosen, on_rejected = torch.autograd.grad(output.loss.sum(), [chosen, rejected])  # both have weight beta/4 = 1
    change = -((on_chosen + on_rejected) * on_chosen).flatten(1).sum(1)
    bound = -mu * on_chosen.square().flatten(1).sum(1)
    assert (change <= bound + 1e-12).all()
    assert output.metrics["rejected_scale"][5] == 1 and (output.metrics["rejected_scale"][:5] < 1).all()
    plain = diffusion_dpo(*[(p - target).square().flatten(1).mean(1) for p in (chosen, rejected)], *reference, beta=4.0)
    on_chosen, on_rejected = torch.autograd.grad(plain.loss.sum(), [chosen, rejected])
    assert (-((on_chosen + on_rejected) * on_chosen).flatten(1).sum(1)[:5] > bound[:5]).all()


def test_sdpo_batch_has_one_scale_from_sums() -> None:
    """Rows: |g_w|^2 = .01, .04; g_w . g_l = .02, -.01 (times a constant): s = (1 - .5) .05 / .01, cut at 1; .9: .5."""
    zeros = torch.zeros(2, 4, 5, 6, dtype=torch.float64)
    chosen, rejected = zeros.clone(), zeros.clone()
    chosen[0], chosen[1], rejected[0], rejected[1] = 0.1, 0.2, 0.2, -0.05
    errors = [torch.cat([one, one]) for one in PAIR]
    for mu, scale, rows in ((0.5, 1.0, [0.25, 1.0]), (0.9, 0.5, [0.05, 1.0])):
        whole = sdpo_batch(*errors, chosen, zeros, rejected, zeros, beta=2000, mu=mu)
        assert whole.metrics["rejected_scale"].tolist() == pytest.approx([scale] * 2)
        apart = sdpo(*errors, chosen, zeros, rejected, zeros, beta=2000, mu=mu)
        assert apart.metrics["rejected_scale"].tolist() == pytest.approx(rows)


@pytest.mark.parametrize(("log_snr", "weight"), [(-1e4, 1.0), (1.0, 0.5), (1.0 + math.log(3), 0.25), (1e4, 0.0)])
def test_capo_worked_numbers(log_snr: float, weight: float) -> None:
    """Label .9 is a gap of .8; beta D = 100 * .003; the weight is sigmoid(1 - log_snr)."""
    output = capo(*PAIR, double(0.9), double(log_snr), beta=100, bias=1.0)
    assert output.metrics["margin"].item() == pytest.approx(weight * 0.3)
    assert output.loss.item() == pytest.approx((0.8 - weight * 0.3) ** 2)


def test_cw_dpo_worked_numbers() -> None:
    """rise = .130/.129 - 1 = .00775; q = sigmoid((.05 - rise)/.02); z = beta/2 (.002 + q .001)."""
    q = 1 / (1 + math.exp(-(0.05 - (0.130 / 0.129 - 1)) / 0.02))
    output = cw_dpo(*PAIR, beta=2000, threshold=0.05, temperature=0.02)
    assert output.metrics["cooling"].item() == pytest.approx(q)
    assert output.metrics["margin"].item() == pytest.approx(1000 * (0.002 + q * 0.001))
    assert output.metrics["rejected_excess"].item() == pytest.approx(0.001)


def test_cw_dpo_is_dpo_while_warm_and_leaves_ruined_images_alone() -> None:
    """Far below the threshold q = 1; far above it q = 0 and nothing pushes; in between the push is q times DPO's."""
    warm = cw_dpo(*PAIR, beta=2000, threshold=10.0, temperature=0.02).loss
    torch.testing.assert_close(warm, diffusion_dpo(*PAIR, beta=2000).loss)
    ruined = double(1.3).requires_grad_()
    chosen = PAIR[0].clone().requires_grad_()
    cw_dpo(chosen, ruined, *PAIR[2:], beta=2000, threshold=0.05, temperature=0.02).loss.sum().backward()
    assert ruined.grad is not None and abs(ruined.grad.item()) < 1e-100
    assert chosen.grad is not None and chosen.grad.item() > 1
    level = double(0.1)
    rejected, chosen = level.clone().requires_grad_(), level.clone().requires_grad_()
    cw_dpo(chosen, rejected, level, level, beta=2000, threshold=0.0, temperature=0.02).loss.sum().backward()
    assert rejected.grad is not None and rejected.grad.item() == pytest.approx(-250)  # half of beta/4
    assert chosen.grad is not None and chosen.grad.item() == pytest.approx(500)


def test_cw_sft_adds_a_little_of_the_rejected_image() -> None:
    assert cw_sft(double(0.1), double(0.2), rejected_weight=0.05).loss.item() == pytest.approx(0.11)
    assert torch.equal(cw_sft(double(0.1), double(0.2), rejected_weight=0.0).loss, double(0.1))


def test_self_npo_is_the_error_on_own_samples() -> None:
    error = double(0.1, 0.2)
    assert self_npo(error).loss is error


@pytest.mark.parametrize("beta", [0.0, -1.0, NAN])
def test_a_beta_that_is_not_above_0_is_an_error(beta: float) -> None:
    for function in (ipo, hinge, dmpo, linear_dpo, kto):
        with pytest.raises(ValueError, match="beta above 0"):
            function(*PAIR, beta=beta)
