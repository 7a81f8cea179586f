"""Noise processes against diffusers' own schedulers, and the algebra of the conversions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffalign.models import (
    RectifiedFlow,
    VariancePreserving,
    denoising_error,
    flow_from_vp,
    process_from_scheduler,
    vp_from_flow,
)

SHAPE = (3, 4, 5, 6)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VP_QUANTITIES = ("epsilon", "sample", "v_prediction", "score")
FLOW_QUANTITIES = ("epsilon", "sample", "flow_prediction", "score")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def vp(prediction_type: str = "epsilon") -> VariancePreserving:
    return VariancePreserving.from_scheduler(DDPMScheduler(**SD, prediction_type=prediction_type))


def flow(shift: float = 3.0) -> RectifiedFlow:
    return RectifiedFlow.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=shift))


# ------------------------------------------------------------------------------------------- equal to diffusers


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(**SD),
        DDPMScheduler(beta_schedule="linear"),
        DDPMScheduler(**SD, prediction_type="v_prediction"),
        DDIMScheduler(**SD),
        DDIMScheduler(**SD, rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    ],
    ids=["scaled_linear", "linear", "v", "ddim", "zero_terminal_snr"],
)
def test_vp_equals_scheduler_at_every_timestep(scheduler):
    process = process_from_scheduler(scheduler)
    timesteps = torch.arange(1000)
    latents, noise = draw(1000, 2, 1, 3), draw(1000, 2, 1, 3, seed=1)
    expected = scheduler.add_noise(latents, noise, timesteps)
    assert torch.equal(process.alphas_cumprod, scheduler.alphas_cumprod)
    torch.testing.assert_close(process.add_noise(latents, noise, timesteps), expected, rtol=0, atol=1e-6)
    velocity = VariancePreserving(process.alphas_cumprod, "v_prediction").target(latents, noise, timesteps)
    torch.testing.assert_close(velocity, scheduler.get_velocity(latents, noise, timesteps), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_table_and_noise_equal_scheduler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = process_from_scheduler(scheduler)
    assert torch.equal(process.table, scheduler.sigmas)
    timesteps = process.num_train_timesteps * process.table
    assert torch.equal(timesteps, scheduler.timesteps)
    latents, noise = draw(1000, 2, 1, 3), draw(1000, 2, 1, 3, seed=1)
    expected = scheduler.scale_noise(latents, timesteps, noise)
    torch.testing.assert_close(process.add_noise(latents, noise, timesteps), expected, rtol=0, atol=1e-6)
    assert torch.equal(process.target(latents, noise, timesteps), noise - latents)


def test_flow_table_survives_set_timesteps_of_a_sampler():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    untouched = scheduler.sigmas.clone()
    scheduler.set_timesteps(7)
    assert torch.equal(RectifiedFlow.from_scheduler(scheduler).table, untouched)


def test_shift_three_by_hand():
    """s' = 3 s / (1 + 2 s): the level 0.5 becomes 0.75; the table descends from 1."""
    table = flow(3.0).table
    assert table[0] == 1.0 and bool((table.diff() < 0).all())
    assert math.isclose(table[500].item(), 0.75, abs_tol=1e-6)  # entry 500 is s = 0.5


def test_dynamic_shifting_needs_mu_and_applies_it():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="pass mu"):
        RectifiedFlow.from_scheduler(scheduler)
    with pytest.raises(ValueError, match="leave out mu"):
        RectifiedFlow.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0), mu=1.0)
    shifted = RectifiedFlow.from_scheduler(scheduler, mu=math.log(3.0)).table  # exp(mu) is the shift
    torch.testing.assert_close(shifted, flow(3.0).table, rtol=0, atol=1e-6)


def test_sigmas_follow_each_samplers_convention():
    euler = EulerDiscreteScheduler(**SD, timestep_spacing="linspace")
    euler.set_timesteps(1000)
    timesteps = torch.tensor([0, 1, 500, 999])
    expected = euler.sigmas[:-1].flip(0)[timesteps]
    torch.testing.assert_close(vp().sigmas(timesteps), expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(flow().sigmas(torch.tensor([0.0, 250.0, 1000.0])), torch.tensor([0.0, 0.25, 1.0]))


def test_log_snr():
    timesteps = torch.tensor([10, 500, 990])
    abar = vp().alphas_cumprod[timesteps]
    torch.testing.assert_close(vp().log_snr(timesteps), (abar / (1 - abar)).log())
    values = flow().log_snr(torch.tensor([0.0, 500.0, 750.0, 1000.0]))
    torch.testing.assert_close(values, torch.tensor([math.inf, 0.0, -2 * math.log(3.0), -math.inf]))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EulerDiscreteScheduler(**SD, prediction_type="unheard_of"), None),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
        (object(), "alphas_cumprod"),
    ],
)
def test_unfit_schedulers_are_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        process_from_scheduler(scheduler)


# ------------------------------------------------------------------------------------------- conversions


def quantities(process, timesteps: Tensor, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Noisy latents and every quantity, each from its definition rather than from a conversion."""
    x0, noise = draw(*SHAPE, dtype=dtype), draw(*SHAPE, seed=1, dtype=dtype)
    a, b = (level.view(-1, 1, 1, 1) for level in process.levels(timesteps, dtype=dtype))
    known = {"sample": x0, "epsilon": noise, "score": -noise / b}
    known["v_prediction"] = a * noise - b * x0
    known["flow_prediction"] = noise - x0
    return a * x0 + b * noise, known


CASES = [
    *(
        (vp(), torch.full((3,), t), pair)
        for t in (1, 100, 400, 700, 900)
        for pair in itertools.permutations(VP_QUANTITIES, 2)
    ),
    *(
        (flow(), torch.full((3,), 1000.0 * s), pair)
        for s in (0.05, 0.25, 0.5, 0.75, 0.9)
        for pair in itertools.permutations(FLOW_QUANTITIES, 2)
    ),
]


def test_every_pair_of_quantities_converts():
    for process, timesteps, (source, to) in CASES:
        noisy, known = quantities(process, timesteps, torch.float64)
        got = process.convert(known[source], noisy, timesteps, source=source, to=to)
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, known[to], rtol=1e-9, atol=1e-9, msg=f"{source} to {to} at {timesteps[0]}")


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_round_trips(dtype, bound):
    """There and back, relative to the size of the quantity: rounding grows by 1/a or 1/b on the way."""
    for process, timesteps, (source, to) in CASES:
        noisy, known = quantities(process, timesteps, dtype)
        there = process.convert(known[source], noisy, timesteps, source=source, to=to)
        back = process.convert(there, noisy, timesteps, source=to, to=source)
        assert there.dtype == dtype
        a, b = (level[0].item() for level in process.levels(timesteps))
        error = (back - known[source]).abs().max() / known[source].abs().max()
        assert error < bound / min(a, b), f"{source} to {to} at {timesteps[0]}: {error}"


def test_mixing_commutes_with_conversion():
    """CFG in any prediction form is the same step: conversions are affine and the weights -g+1, g sum to 1."""
    for process, timesteps, (source, to) in CASES:
        noisy, _ = quantities(process, timesteps, torch.float64)
        cond, uncond = draw(*SHAPE, seed=2, dtype=torch.float64), draw(*SHAPE, seed=3, dtype=torch.float64)

        def convert(value, source=source, to=to, process=process, noisy=noisy, timesteps=timesteps):
            return process.convert(value, noisy, timesteps, source=source, to=to)

        mixed_before = convert(uncond + 7.5 * (cond - uncond))
        mixed_after = convert(uncond) + 7.5 * (convert(cond) - convert(uncond))
        torch.testing.assert_close(mixed_before, mixed_after, rtol=1e-8, atol=1e-8)


def test_score_shift_rules():
    """g += gamma h means e -= gamma b h (VP) and u -= gamma s/(1-s) h (flow)."""
    h, gamma = draw(*SHAPE, seed=4, dtype=torch.float64), 0.3
    for process, timesteps in ((vp(), torch.tensor([50, 500, 900])), (flow(), torch.tensor([100.0, 500.0, 900.0]))):
        noisy, _ = quantities(process, timesteps, torch.float64)
        pred = draw(*SHAPE, seed=5, dtype=torch.float64)
        a, b = (level.view(-1, 1, 1, 1) for level in process.levels(timesteps, dtype=torch.float64))
        shifted = process.from_score(process.to_score(pred, noisy, timesteps) + gamma * h, noisy, timesteps)
        rule = b if isinstance(process, VariancePreserving) else b / a
        torch.testing.assert_close(shifted, pred - gamma * rule * h, rtol=1e-9, atol=1e-9)


def test_errors_convert_between_prediction_types():
    """VP: |dv|^2 = |de|^2/a^2, |dx0|^2 = (b/a)^2 |de|^2. Flow: |dx0|^2 = s^2 |du|^2, |de|^2 = (1-s)^2 |du|^2."""
    cases = (
        (vp(), torch.tensor([50, 500, 900]), "epsilon", {"v_prediction": (-1, 0), "sample": (-1, 1)}),
        (flow(), torch.tensor([100.0, 500.0, 900.0]), "flow_prediction", {"sample": (0, 1), "epsilon": (1, 0)}),
    )
    for process, timesteps, native, powers in cases:
        noisy, known = quantities(process, timesteps, torch.float64)
        pred = draw(*SHAPE, seed=6, dtype=torch.float64)
        native_err = denoising_error(pred, known[native])
        a, b = process.levels(timesteps, dtype=torch.float64)
        for other, (power_a, power_b) in powers.items():
            converted = process.convert(pred, noisy, timesteps, source=native, to=other)
            err = denoising_error(converted, known[other])
            torch.testing.assert_close(err, native_err * a ** (2 * power_a) * b ** (2 * power_b), rtol=1e-9, atol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_thin_names_start_from_what_the_network_predicts(prediction_type):
    process, timesteps = vp(prediction_type), torch.tensor([50, 500, 900])
    noisy, known = quantities(process, timesteps, torch.float64)
    pred = process.target(known["sample"], known["epsilon"], timesteps)
    names = {"x0": "sample", "noise": "epsilon", "velocity": "v_prediction", "score": "score"}
    for name, quantity in names.items():
        there = getattr(process, f"to_{name}")(pred, noisy, timesteps)
        torch.testing.assert_close(there, known[quantity], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            getattr(process, f"from_{name}")(there, noisy, timesteps), pred, rtol=1e-9, atol=1e-9
        )


def test_change_of_variables_between_processes():
    """VP latents rescaled by 1/(a+b) are the flow's latents at s = b/(a+b), for the same x0 and noise."""
    timesteps = torch.tensor([50, 500, 900])
    a, b = vp().levels(timesteps, dtype=torch.float64)
    x0, noise = draw(*SHAPE, dtype=torch.float64), draw(*SHAPE, seed=1, dtype=torch.float64)
    noisy_vp = vp().add_noise(x0, noise, timesteps)
    noisy_flow, s = flow_from_vp(noisy_vp, a, b)
    torch.testing.assert_close(noisy_flow, flow().add_noise(x0, noise, 1000 * s), rtol=1e-12, atol=1e-12)
    back, a_back, b_back = vp_from_flow(noisy_flow, s)
    for got, expected in ((back, noisy_vp), (a_back, a), (b_back, b)):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_singular_ends_raise_and_the_regular_routes_work():
    x0, noise = draw(*SHAPE), draw(*SHAPE, seed=1)
    pure_noise = torch.tensor([1000.0, 500.0, 500.0])
    with pytest.raises(ValueError, match="sample cannot be computed from epsilon at pure noise"):
        flow().convert(noise, noise, pure_noise, source="epsilon", to="sample")
    noisy = flow().add_noise(x0, noise, pure_noise)
    torch.testing.assert_close(flow().to_x0(noise - x0, noisy, pure_noise), x0, rtol=0, atol=1e-5)
    clean = torch.tensor([0.0, 500.0, 500.0])
    with pytest.raises(ValueError, match="at clean latents"):
        flow().to_score(noise - x0, flow().add_noise(x0, noise, clean), clean)

    zero_snr = VariancePreserving.from_scheduler(DDIMScheduler(**SD, rescale_betas_zero_snr=True))
    last = torch.tensor([999, 0, 0])
    with pytest.raises(ValueError, match="pure noise"):
        zero_snr.to_x0(noise, noise, last)
    velocity = VariancePreserving(zero_snr.alphas_cumprod, "v_prediction")
    noisy = velocity.add_noise(x0, noise, last)
    torch.testing.assert_close(velocity.to_x0(velocity.target(x0, noise, last), noisy, last), x0, rtol=0, atol=1e-5)


def test_wrong_shapes_values_and_names_are_refused():
    process, latents = vp(), draw(*SHAPE)
    with pytest.raises(ValueError, match="one shape"):
        process.add_noise(latents, latents[:, :1], torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        process.add_noise(latents, latents, torch.tensor([1]))
    for bad in ([-1, 0, 0], [1000, 0, 0], [0.5, 0.0, 0.0]):
        with pytest.raises(ValueError, match=r"0\.\.999"):
            process.add_noise(latents, latents, torch.tensor(bad))
    with pytest.raises(ValueError, match=r"0\.\.1000"):
        flow().add_noise(latents, latents, torch.tensor([0.0, 1.0, 1000.5]))
    with pytest.raises(ValueError, match="bfloat16"):
        flow().add_noise(latents, latents, torch.tensor([0.0, 1.0, 2.0], dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="flow_prediction"):
        process.convert(latents, latents, torch.tensor([1, 2, 3]), source="flow_prediction", to="epsilon")
    with pytest.raises(ValueError, match="prediction_type"):
        VariancePreserving(process.alphas_cumprod, "flow_prediction")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    latents, noise, timesteps = draw(*SHAPE).to(dtype), draw(*SHAPE, seed=1).to(dtype), torch.tensor([1, 500, 999])
    noisy = vp().add_noise(latents, noise, timesteps)
    assert noisy.dtype == torch.float32
    assert torch.equal(noisy, vp().add_noise(latents.float(), noise.float(), timesteps))


# ------------------------------------------------------------------------------------------- draws


def test_vp_draws_are_uniform_integers():
    timesteps = vp().draw_timesteps(20000, torch.Generator().manual_seed(0))
    assert timesteps.dtype == torch.int64 and timesteps.min() == 0 and timesteps.max() == 999
    histogram = torch.histc(timesteps.float(), bins=10, min=0, max=1000) / 20000
    assert (histogram - 0.1).abs().max() < 0.01
    with pytest.raises(ValueError, match="logit_normal"):
        vp().draw_timesteps(3, torch.Generator(), distribution="logit_normal")


def test_flow_draws_are_logit_normal_table_entries():
    """P(index < 1000 q) = Phi(logit q): at q = sigmoid(1) = .731 it is .841; the median index is 500, s' = .75."""
    process = flow()
    timesteps = process.draw_timesteps(20000, torch.Generator().manual_seed(0))
    assert timesteps.dtype == torch.float32
    assert torch.isin(timesteps, 1000 * process.table).all()
    index = torch.searchsorted(-process.table, -timesteps / 1000)
    assert abs((index < 731).float().mean().item() - 0.8413) < 0.01
    assert abs(timesteps.median().item() - 750) < 6
    uniform = process.draw_timesteps(20000, torch.Generator().manual_seed(0), distribution="uniform")
    assert abs((torch.searchsorted(-process.table, -uniform / 1000) < 731).float().mean().item() - 0.731) < 0.01
    with pytest.raises(ValueError, match="cosine"):
        process.draw_timesteps(3, torch.Generator(), distribution="cosine")


def test_draws_repeat_with_the_seed_and_strata_are_filled_once():
    for process in (vp(), flow()):
        one, two = (process.draw_timesteps(8, torch.Generator().manual_seed(7)) for _ in range(2))
        assert torch.equal(one, two)
    strata = vp().draw_timesteps(10, torch.Generator().manual_seed(0), stratified=True) // 100
    assert sorted(strata.tolist()) == list(range(10)) and strata.tolist() != list(range(10))


# ------------------------------------------------------------------------------------------- errors


def test_denoising_error_by_hand():
    """Sample i differs by i everywhere, so its mean square is i^2."""
    target = draw(*SHAPE)
    pred = target + torch.arange(3.0).view(3, 1, 1, 1)
    torch.testing.assert_close(denoising_error(pred, target), torch.tensor([0.0, 1.0, 4.0]))


def test_denoising_error_casts_before_subtracting():
    """In bfloat16, 1000 - 0.7 rounds to 1000; cast first, the difference is 1000 - 0.69921875."""
    pred, target = torch.full(SHAPE, 1000.0, dtype=torch.bfloat16), torch.full(SHAPE, 0.7, dtype=torch.bfloat16)
    err = denoising_error(pred, target)
    assert err.dtype == torch.float32
    torch.testing.assert_close(err, torch.full((3,), (1000 - 0.69921875) ** 2))


def test_masked_error_is_the_mean_inside_the_mask():
    pred, target = draw(*SHAPE), draw(*SHAPE, seed=1)
    mask = torch.zeros(3, 1, 5, 6)
    mask[:, :, 1:3, 2:5] = 1
    expected = (pred - target)[:, :, 1:3, 2:5].square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(denoising_error(pred, target, mask), expected)
    torch.testing.assert_close(denoising_error(pred, target, mask.expand(SHAPE)), expected)
    with pytest.raises(ValueError, match="mask of shape"):
        denoising_error(pred, target, torch.ones(5, 6))
    empty = mask.clone()
    empty[1] = 0
    with pytest.raises(ValueError, match="above 0"):
        denoising_error(pred, target, empty)
    with pytest.raises(ValueError, match="one shape"):
        denoising_error(pred, target[:1])
