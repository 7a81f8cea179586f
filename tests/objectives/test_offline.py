"""Worked numbers, limits and identities of the offline objectives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from diffalign.objectives import diffusion_dpo, diffusion_dro, gated_sft, gated_sft_proxy_drift, sft

# One pair: the policy is better than the reference on the chosen image by .002, and worse on the rejected one by .001.
PAIR = tuple(torch.tensor([value], dtype=torch.float64) for value in (0.100, 0.130, 0.102, 0.129))


@pytest.mark.parametrize(("beta", "z"), [(2000, 3.0), (5000, 7.5), (1000, 1.5), (100, 0.15)])
def test_dpo_worked_numbers(beta: float, z: float) -> None:
    """delta_w = .102 - .100 = .002, delta_l = .129 - .130 = -.001, z = beta/2 * .003, loss = log(1 + e^-z)."""
    output = diffusion_dpo(*PAIR, beta=beta)
    assert output.metrics["margin"].item() == pytest.approx(z)
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-z)))
    assert output.metrics["gradient_weight"].item() == pytest.approx(1 / (1 + math.exp(z)))
    assert output.metrics["chosen_excess"].item() == pytest.approx(-0.002)
    assert output.metrics["rejected_excess"].item() == pytest.approx(0.001)
    assert output.metrics["accuracy"].item() == 1


def test_dpo_beta_in_the_convention_without_the_half() -> None:
    """A code base whose logit is beta' (delta_w - delta_l) says beta' = beta / 2."""
    delta = (PAIR[2] - PAIR[0]) - (PAIR[3] - PAIR[1])
    assert diffusion_dpo(*PAIR, beta=5000).loss.item() == pytest.approx(math.log1p(math.exp(-2500 * delta.item())))


def test_dpo_at_the_reference_is_log_2_with_slope_beta_over_4() -> None:
    chosen = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.4, 0.1, 0.7], dtype=torch.float64, requires_grad=True)
    output = diffusion_dpo(chosen, rejected, chosen.detach(), rejected.detach(), beta=2000)
    assert torch.equal(output.loss, torch.full((3,), math.log(2), dtype=torch.float64))
    assert output.metrics["accuracy"].tolist() == [0.5, 0.5, 0.5]
    output.loss.sum().backward()
    assert chosen.grad.tolist() == [500.0] * 3 and rejected.grad.tolist() == [-500.0] * 3


def test_dpo_swapping_the_pair_flips_the_margin_and_a_constant_cancels() -> None:
    chosen, rejected, ref_chosen, ref_rejected = PAIR
    straight = diffusion_dpo(chosen, rejected, ref_chosen, ref_rejected, beta=2000).metrics["margin"]
    swapped = diffusion_dpo(rejected, chosen, ref_rejected, ref_chosen, beta=2000).metrics["margin"]
    assert torch.equal(straight, -swapped)
    shifted = diffusion_dpo(chosen, rejected, ref_chosen + 0.05, ref_rejected + 0.05, beta=2000).metrics["margin"]
    assert shifted.item() == pytest.approx(straight.item())


def test_sft_is_the_error() -> None:
    error = torch.tensor([0.1, 0.2])
    assert sft(error).loss is error


def test_gate_opens_until_the_margin_is_gained() -> None:
    """Gains over the reference of 0, m/2, 2m: the last row has gained enough."""
    reference = torch.full((3,), 0.1)
    errors = (reference - torch.tensor([0.0, 0.0005, 0.002])).requires_grad_()
    output = gated_sft(errors, reference, margin=0.001)
    assert output.metrics["gate"].tolist() == [1, 1, 0]
    output.loss.sum().backward()
    assert errors.grad.tolist() == [1, 1, 0]


def test_proxy_drift_keeps_the_gate_open_and_takes_no_gradient() -> None:
    """The policy's output is 0.1 off the reference's everywhere: drift .01 outweighs a gain of .005."""
    pred = torch.zeros(2, 4, 5, 6, requires_grad=True)
    errors = torch.tensor([0.095, 0.080], requires_grad=True)
    output = gated_sft_proxy_drift(errors, torch.full((2,), 0.1), pred, torch.full((2, 4, 5, 6), 0.1))
    assert output.metrics["drift"].tolist() == pytest.approx([0.01, 0.01])
    assert output.metrics["gate"].tolist() == [1, 0]
    output.loss.sum().backward()
    assert pred.grad is None


def test_dro_worked_numbers() -> None:
    """G_w = .102 - .100 = .002, G_p = .004 - .001 = .003, loss = .001 + .003 - .002; with G_p = 0 max(0, -.001)."""
    errors = [torch.tensor([value, value]) for value in (0.100, 0.102)]
    output = diffusion_dro(*errors, torch.tensor([0.001, 0.004]), torch.tensor([0.004, 0.004]))
    assert output.loss.tolist() == pytest.approx([0.002, 0.0], abs=1e-7)
    assert output.metrics["gate"].tolist() == [1, 0]
    assert output.metrics["drift"].tolist() == pytest.approx([0.003, 0.0])


def test_dro_starts_active_at_the_reference() -> None:
    error = torch.tensor([0.1])
    assert diffusion_dro(error, error, error, error).loss.item() == pytest.approx(0.001)


def test_dro_against_true_noise_is_the_hinge_of_slic() -> None:
    """relu(m - (delta_w - delta_p)) = m relu(1 - kappa (delta_w - delta_p)) with kappa = 1/m."""
    generator = torch.Generator().manual_seed(0)
    chosen, ref_chosen, own, ref_own = torch.rand(4, 9, generator=generator, dtype=torch.float64) / 100
    margin = 0.004
    delta = (ref_chosen - chosen) - (ref_own - own)
    slic = margin * (1 - delta / margin).clamp_min(0)
    assert torch.allclose(diffusion_dro(chosen, ref_chosen, own, ref_own, margin=margin).loss, slic)


class Toy(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def error(pred: Tensor, target: Tensor) -> Tensor:
    return (pred - target).square().mean((1, 2, 3))


def test_dro_on_the_live_policy_has_the_gradient_of_gated_sft() -> None:
    """At M = 1 the own-sample target is the policy's own output, so its term has no gradient: only the gate remains."""
    policy, reference = Toy(0), Toy(1)
    generator = torch.Generator().manual_seed(2)
    real, target, own = torch.randn(3, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        ref_chosen, ref_own = error(reference(real), target), error(reference(own), policy(own))
    chosen = error(policy(real), target)
    own_pred = policy(own)
    own_err = error(own_pred, own_pred.detach())
    dro = diffusion_dro(chosen, ref_chosen, own_err, ref_own)
    assert dro.metrics["gate"].sum() > 0
    published = torch.autograd.grad(dro.loss.sum(), policy.parameters(), retain_graph=True)
    repulsion = torch.autograd.grad(own_err.sum(), policy.parameters(), retain_graph=True)
    gate = ((chosen - ref_chosen + ref_own + 0.001) > 0).double()
    gated = torch.autograd.grad((gate * chosen).sum(), policy.parameters())
    assert all(grad.abs().max() == 0 for grad in repulsion)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(published, gated, strict=True))
