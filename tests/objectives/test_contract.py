"""What every registered objective keeps to; a new one is picked up by itself."""

from __future__ import annotations

import doctest
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.objectives import OBJECTIVES, QUANTITIES, ObjectiveSpec, get_objective, objective
from diffalign.types import ObjectiveOutput

B, C, H, W, K, M = 3, 4, 5, 6, 7, 2
SETTINGS: dict[str, object] = {  # for settings without a default
    "beta": 500.0,
    "bias": 1.0,
    "label_smoothing": 0.1,
    "metric_weights": [0.25, 0.75],
    "mu": 0.9,
    "rejected_weight": 0.05,
    "temperature": 0.5,
    "temperatures": [0.5, 2.0],
    "threshold": 0.1,
}
SPECS = [OBJECTIVES.get(name) for name in OBJECTIVES]
NAN = float("nan")
OUT_OF_RANGE: dict[str, list[object]] = {
    "alpha": [-0.1, 0.6, NAN],
    "beta": [0.0, -1.0],
    "desirable_weight": [0.0],
    "eta": [-0.1, 0.6],
    "gamma": [0.0],
    "label_smoothing": [-0.1, 0.6],
    "metric_weights": [[1.0], [0.5, 0.6], [-0.5, 1.5], [NAN, NAN]],
    "mu": [-0.1, 1.1],
    "num_timesteps": [0.0],
    "rejected_weight": [-0.1, 1.1],
    "snr": [0.0],
    "temperature": [0.0],
    "temperatures": [[1.0], [0.0, 1.0], [NAN, 1.0], [1.0, NAN]],
    "undesirable_weight": [0.0],
}
FROZEN = ("ref_", "old_")
# a constant that all of a row's reference errors share changes these, by what they mean
LEVEL_MATTERS = {"kto", "kto_loss_averse", "kto_risk_seeking", "cw_dpo"}


def draw(name: str, seed: int, scale: float = 0.1, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"scores": (B, K, M), "err": (B, K), "ref_err": (B, K), "old_err": (B, K)}
    shape = shapes.get(name, (B, C, H, W) if name.endswith(("_pred", "_target")) else (B,))
    value = torch.rand(shape, generator=generator, dtype=torch.float64)
    if name.endswith("_pred"):  # off the targets in one direction, so that two images' gradients are alike
        value = value + 0.2
    return (value if name in ("label", "weight") else scale * value).to(dtype)


def inputs(spec: ObjectiveSpec, **draws: object) -> dict[str, Tensor]:
    return {name: draw(name, seed, **draws) for seed, name in enumerate(spec.inputs)}  # type: ignore[arg-type]


def settings(spec: ObjectiveSpec) -> dict[str, object]:
    return {name: SETTINGS[name] for name in spec.required}


def compute(spec: ObjectiveSpec, quantities: dict[str, Tensor]) -> ObjectiveOutput:
    return spec.bind(settings(spec))(quantities)


class Held:
    """Holds what a function detaches at its first call, so that a stop-gradient is a constant and not a function."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.complete = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        detach, place = torch.Tensor.detach, 0

        def replayed(tensor: Tensor) -> Tensor:
            nonlocal place
            if not self.complete:
                self.values.append(detach(tensor).clone())  # gradcheck writes into its inputs
            place += 1
            return self.values[place - 1]

        torch.Tensor.detach = replayed  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            torch.Tensor.detach = detach  # type: ignore[method-assign]
            self.complete = True


@pytest.fixture(params=SPECS, ids=lambda spec: spec.name)
def spec(request: pytest.FixtureRequest) -> ObjectiveSpec:
    return request.param  # type: ignore[no-any-return]


def only(condition: Callable[[ObjectiveSpec], bool]) -> pytest.MarkDecorator:
    """Instead of all objectives, those that a test is about."""
    return pytest.mark.parametrize("spec", [spec for spec in SPECS if condition(spec)], ids=lambda spec: spec.name)


def compares_images(spec: ObjectiveSpec) -> bool:
    return "err" in spec.inputs or {"ref_chosen_err", "ref_rejected_err"} <= set(spec.inputs)


def test_loss_and_metrics_are_per_row_and_only_the_loss_has_a_gradient(spec: ObjectiveSpec) -> None:
    quantities = {name: value.requires_grad_() for name, value in inputs(spec).items()}
    output = compute(spec, quantities)
    assert output.loss.shape == (B,) and output.loss.dtype == torch.float32 and output.loss.requires_grad
    for name, value in output.metrics.items():
        assert value.shape == (B,) and not value.requires_grad, name


def test_the_policy_gets_a_gradient_and_frozen_networks_do_not(spec: ObjectiveSpec) -> None:
    quantities = {name: value.requires_grad_() for name, value in inputs(spec).items()}
    compute(spec, quantities).loss.sum().backward()
    reached = {name for name, value in quantities.items() if value.grad is not None and value.grad.any()}
    assert any(not name.startswith(FROZEN) and name.endswith(("err", "pred")) for name in reached)
    assert not any(name.startswith(FROZEN) and name.endswith("pred") for name in reached)
    assert not any(name.startswith(FROZEN) for name in reached)
    assert not reached & {"label", "weight", "scores", "log_snr", "timesteps"}


@pytest.mark.parametrize("scale", [1e-4, 1e4, -1e4])
def test_extreme_errors_stay_finite(spec: ObjectiveSpec, scale: float) -> None:
    quantities = {name: value.requires_grad_() for name, value in inputs(spec, scale=scale).items()}
    loss = compute(spec, quantities).loss
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(value.grad is None or value.grad.isfinite().all() for value in quantities.values())


def test_policy_at_the_reference_is_finite_and_so_is_its_gradient(spec: ObjectiveSpec) -> None:
    given = inputs(spec)
    quantities = {name: given.get(name.removeprefix("ref_").removeprefix("old_"), given[name]) for name in given}
    quantities = {name: value.clone().requires_grad_() for name, value in quantities.items()}
    loss = compute(spec, quantities).loss
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(value.grad is None or value.grad.isfinite().all() for value in quantities.values())


def test_a_nan_is_never_lost(spec: ObjectiveSpec) -> None:
    """In the loss of its row, or where the loss is a closed gate, in a metric: the trainer stops on either."""
    for name in spec.inputs:
        quantities = inputs(spec)
        quantities[name].view(B, -1)[1, -1] = torch.nan
        output = compute(spec, quantities)
        gated = spec.name.startswith("gated_sft") and name != "chosen_err"
        seen = [output.loss, *output.metrics.values()] if gated else [output.loss]
        assert any(value[1].isnan() for value in seen), name
        assert spec.couples_batch or not output.loss[[0, 2]].isnan().any(), name


def test_rows_do_not_depend_on_their_order(spec: ObjectiveSpec) -> None:
    quantities, order = inputs(spec), torch.tensor([2, 0, 1])
    straight = compute(spec, quantities).loss
    permuted = compute(spec, {name: value[order] for name, value in quantities.items()}).loss
    if spec.couples_batch:  # sums over the batch round in their order
        torch.testing.assert_close(straight[order], permuted)
    else:
        assert torch.equal(straight[order], permuted)


@only(lambda spec: "err" in spec.inputs)
def test_candidates_do_not_depend_on_their_order(spec: ObjectiveSpec) -> None:
    quantities, order = inputs(spec), torch.randperm(K, generator=torch.Generator().manual_seed(0))
    permuted = {name: value[:, order] for name, value in quantities.items()}
    torch.testing.assert_close(compute(spec, quantities).loss, compute(spec, permuted).loss)


def test_rows_do_not_depend_on_each_other_unless_declared(spec: ObjectiveSpec) -> None:
    quantities = inputs(spec)
    losses, gradients = [], []
    for rows in (slice(None), slice(1)):
        leaves = {name: value[rows].clone().requires_grad_() for name, value in quantities.items()}
        loss = compute(spec, leaves).loss
        loss[0].backward()
        losses.append(loss[0])
        gradients.append([value.grad[0] for value in leaves.values() if value.grad is not None])
    same = torch.equal(losses[0], losses[1]) and all(
        torch.equal(one, two) for one, two in zip(gradients[0], gradients[1], strict=True)
    )
    assert same != spec.couples_batch


@only(compares_images)
def test_a_constant_in_all_reference_errors_cancels(spec: ObjectiveSpec) -> None:
    """A loss of differences of gains does not see what all images of a row have in common."""
    names = [name for name in spec.inputs if name.startswith(FROZEN) and name.endswith("err")]
    fixed = inputs(spec, dtype=torch.float64)
    losses = [
        compute(spec, fixed | {name: fixed[name] + constant for name in names}).loss for constant in (0.0, 0.2, -0.2)
    ]
    unchanged = [torch.allclose(losses[0], loss, rtol=1e-9, atol=1e-12) for loss in losses[1:]]
    assert all(unchanged) != (spec.name in LEVEL_MATTERS)


def test_inputs_are_not_changed(spec: ObjectiveSpec) -> None:
    quantities = inputs(spec)
    before = {name: value.clone() for name, value in quantities.items()}
    compute(spec, quantities)
    assert all(torch.equal(before[name], value) for name, value in quantities.items())


def test_gradients_are_those_of_the_function_with_stopped_parts_held(spec: ObjectiveSpec) -> None:
    names = [n for n in spec.inputs if not n.startswith(FROZEN) and n.endswith(("err", "_pred"))]
    fixed, held = inputs(spec, dtype=torch.float64), Held()

    def loss(*values: Tensor) -> Tensor:
        with held():
            return compute(spec, fixed | dict(zip(names, values, strict=True))).loss

    assert torch.autograd.gradcheck(loss, [fixed[name].clone().requires_grad_() for name in names])


@only(lambda spec: any(name.endswith("_pred") for name in spec.inputs))
def test_half_precision_outputs_give_a_float32_loss(spec: ObjectiveSpec) -> None:
    preds = [name for name in spec.inputs if name.endswith("_pred")]
    quantities = inputs(spec)
    half = quantities | {name: quantities[name].bfloat16() for name in preds}
    rounded = quantities | {name: quantities[name].bfloat16().float() for name in preds}
    assert compute(spec, half).loss.dtype == torch.float32
    assert torch.equal(compute(spec, half).loss, compute(spec, rounded).loss)


@only(lambda spec: len(spec.inputs) > 1)
def test_shapes_that_would_broadcast_are_errors(spec: ObjectiveSpec) -> None:
    for name in spec.inputs:
        quantities = inputs(spec)
        quantities[name] = quantities[name][:1]
        with pytest.raises(ValueError, match="one shape"):
            compute(spec, quantities)


def test_it_is_documented(spec: ObjectiveSpec) -> None:
    text = inspect.getdoc(spec.function) or ""
    for part in ("Args:", "Returns:", "Source:", "Example:", "L ="):
        assert part in text, f"{spec.name} has no {part}"
    for name in (*spec.inputs, *spec.settings):
        assert f"{name}:" in text, f"{spec.name} does not explain {name}"


def test_its_example_runs(spec: ObjectiveSpec) -> None:
    module = sys.modules[spec.function.__module__]
    found = doctest.DocTestFinder(recurse=False).find(spec.function, spec.name, globs=dict(vars(module)))
    assert found and found[0].examples
    runner, report = doctest.DocTestRunner(), []
    runner.run(found[0], out=report.append)
    assert runner.failures == 0, "".join(report)


def test_settings_out_of_range_are_errors(spec: ObjectiveSpec) -> None:
    for name in set(spec.settings) & set(OUT_OF_RANGE):
        for value in OUT_OF_RANGE[name]:
            with pytest.raises(ValueError, match=f"expected {name}"):
                spec.bind(settings(spec) | {name: value})(inputs(spec))


def test_a_setting_that_is_no_number_is_an_error(spec: ObjectiveSpec) -> None:
    for name in set(spec.settings) - {"metric_weights", "temperatures"}:
        with pytest.raises(DiffalignError, match=f"needs a number as {name}"):
            spec.bind(settings(spec) | {name: True})


def test_unknown_quantities_settings_and_names_list_the_nearest() -> None:
    with pytest.raises(DiffalignError, match="chosen_err"):
        objective("wrong")(lambda chosen_error: ObjectiveOutput(chosen_error))
    with pytest.raises(DiffalignError, match="beta"):
        OBJECTIVES.get("diffusion_dpo").bind({"betta": 1.0})
    with pytest.raises(DiffalignError, match="needs the setting beta"):
        OBJECTIVES.get("diffusion_dpo").bind({})
    with pytest.raises(DiffalignError, match="diffusion_dpo"):
        get_objective("difusion_dpo")
    with pytest.raises(ValueError, match="already registered"):
        objective("sft")(lambda chosen_err: ObjectiveOutput(chosen_err))
    assert "wrong" not in OBJECTIVES


def test_a_users_own_function_is_an_objective(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from diffalign.types import ObjectiveOutput\n"
        "def squared(chosen_err, weight, *, power: float = 2.0):\n"
        "    return ObjectiveOutput(weight * chosen_err**power)\n"
        "def positional(chosen_err, beta=1.0): ...\n"
    )
    (tmp_path / "my_objectives.py").write_text(code)  # type: ignore[operator]
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = get_objective("my_objectives:squared")
    assert spec.inputs == ("chosen_err", "weight") and spec.settings == ("power",) and spec.required == ()
    loss = spec.bind({"power": 3.0})({"chosen_err": torch.tensor([2.0]), "weight": torch.tensor([0.5])}).loss
    assert loss.tolist() == [4.0]
    with pytest.raises(DiffalignError, match="after the star"):
        get_objective("my_objectives:positional")
    assert set(spec.inputs) <= set(QUANTITIES)
