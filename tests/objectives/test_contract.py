"""What every registered objective keeps to; a new one is picked up by itself."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from diffalign.core import DiffalignError
from diffalign.objectives import OBJECTIVES, QUANTITIES, ObjectiveSpec, get_objective, objective
from diffalign.types import ObjectiveOutput

B, C, H, W, K, M = 3, 4, 5, 6, 7, 2
SETTINGS = {"beta": 500.0}  # for settings without a default
SPECS = [OBJECTIVES.get(name) for name in OBJECTIVES]


def draw(name: str, seed: int, scale: float = 0.1, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"scores": (B, K, M), "err": (B, K), "ref_err": (B, K), "old_err": (B, K)}
    shape = shapes.get(name, (B, C, H, W) if name.endswith(("_pred", "_target")) else (B,))
    value = torch.rand(shape, generator=generator, dtype=torch.float64)
    return (value if name in ("label", "weight") else scale * value).to(dtype)


def inputs(spec: ObjectiveSpec, **draws: object) -> dict[str, Tensor]:
    return {name: draw(name, seed, **draws) for seed, name in enumerate(spec.inputs)}  # type: ignore[arg-type]


def settings(spec: ObjectiveSpec) -> dict[str, float]:
    return {name: SETTINGS[name] for name in spec.required}


def compute(spec: ObjectiveSpec, quantities: dict[str, Tensor]) -> ObjectiveOutput:
    return spec.bind(settings(spec))(quantities)


@pytest.fixture(params=SPECS, ids=lambda spec: spec.name)
def spec(request: pytest.FixtureRequest) -> ObjectiveSpec:
    return request.param  # type: ignore[no-any-return]


def test_loss_and_metrics_are_per_row_and_only_the_loss_has_a_gradient(spec: ObjectiveSpec) -> None:
    quantities = {name: value.requires_grad_() for name, value in inputs(spec).items()}
    output = compute(spec, quantities)
    assert output.loss.shape == (B,) and output.loss.dtype == torch.float32 and output.loss.requires_grad
    for name, value in output.metrics.items():
        assert value.shape == (B,) and not value.requires_grad, name


def test_the_policy_gets_a_gradient_and_predictions_of_a_reference_do_not(spec: ObjectiveSpec) -> None:
    quantities = {name: value.requires_grad_() for name, value in inputs(spec).items()}
    compute(spec, quantities).loss.sum().backward()
    assert any(v.grad is not None for name, v in quantities.items() if not name.startswith(("ref_", "old_")))
    assert all(
        quantities[name].grad is None for name in quantities if name.startswith("ref_") and name.endswith("pred")
    )


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_extreme_errors_stay_finite(spec: ObjectiveSpec, scale: float) -> None:
    quantities = {name: value.requires_grad_() for name, value in inputs(spec, scale=scale).items()}
    loss = compute(spec, quantities).loss
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(value.grad is None or value.grad.isfinite().all() for value in quantities.values())


def test_rows_do_not_depend_on_their_order(spec: ObjectiveSpec) -> None:
    quantities, order = inputs(spec), torch.tensor([2, 0, 1])
    straight = compute(spec, quantities).loss
    permuted = compute(spec, {name: value[order] for name, value in quantities.items()}).loss
    assert torch.equal(straight[order], permuted)


def test_rows_do_not_depend_on_each_other_unless_declared(spec: ObjectiveSpec) -> None:
    quantities = inputs(spec)
    alone = compute(spec, {name: value[:1] for name, value in quantities.items()}).loss
    assert torch.equal(compute(spec, quantities).loss[:1], alone) != spec.couples_batch


def test_inputs_are_not_changed(spec: ObjectiveSpec) -> None:
    quantities = inputs(spec)
    before = {name: value.clone() for name, value in quantities.items()}
    compute(spec, quantities)
    assert all(torch.equal(before[name], value) for name, value in quantities.items())


def test_gradients_are_those_of_the_function(spec: ObjectiveSpec) -> None:
    names = [n for n in spec.inputs if not n.startswith(("ref_", "old_")) and n.endswith("err")]
    fixed = inputs(spec, dtype=torch.float64)

    def loss(*values: Tensor) -> Tensor:
        return compute(spec, fixed | dict(zip(names, values, strict=True))).loss

    assert torch.autograd.gradcheck(loss, [fixed[name].requires_grad_() for name in names])


def test_shapes_that_would_broadcast_are_errors(spec: ObjectiveSpec) -> None:
    if len(spec.inputs) == 1:
        pytest.skip("one input has nothing to disagree with")
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
