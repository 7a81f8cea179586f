"""beta auto: the strength at which learnt rows have lost a stated part of their gradient."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from train_helpers import config, equal, metrics, tensors

from diffalign.core import DiffalignError
from diffalign.objectives import beta_elsewhere, get_objective
from diffalign.train import train
from diffalign.train.strength import gradient_factor, refuse_auto, solve_beta

PAIR = ("chosen_err", "rejected_err", "ref_chosen_err", "ref_rejected_err")


def batch(margin: float | torch.Tensor, rows: int = 4) -> dict[str, torch.Tensor]:
    """Pairs whose (policy minus reference) error is ``margin`` better on the chosen image than on the rejected one."""
    errors = [torch.full((rows,), value) for value in (0.1, 0.2, 0.1, 0.2)]
    errors[0] = errors[0] - margin
    return dict(zip(PAIR, errors, strict=True))


def test_the_factor_of_diffusion_dpo_is_twice_the_mean_of_sigmoid_of_minus_the_size_of_z() -> None:
    spec = get_objective("diffusion_dpo")
    margins = torch.tensor([0.001, 0.002, -0.001, 0.004])
    expected = 2 * torch.sigmoid(-1000 * margins.double().abs()).mean().item()
    assert gradient_factor(spec, {}, 2000.0, [batch(margins)]) == pytest.approx(expected, rel=1e-4)
    assert gradient_factor(spec, {}, 2000.0, [batch(0.0)]) == pytest.approx(1.0)


def test_beta_is_solved_for() -> None:
    """All margins m: 2 sigmoid(-beta m / 2) = 0.6 at beta = 2 log(0.7 / 0.3) / m."""
    expected = 2 * torch.tensor(0.7 / 0.3).log().item() / 0.002
    for name in ("diffusion_dpo", "soft_dpo"):
        quantities = batch(0.002) | ({"label": torch.ones(4)} if name == "soft_dpo" else {})
        beta, factor = solve_beta(get_objective(name), {}, [quantities], 0.6)
        assert beta == pytest.approx(expected, rel=0.011) and factor <= 0.6 < factor * 1.02
    beta, _ = solve_beta(get_objective("diffusion_dpo"), {}, [batch(-0.002)], 0.6)
    assert beta == pytest.approx(expected, rel=0.011), "rows that are learnt the wrong way round are learnt"
    beta, _ = solve_beta(get_objective("ipo"), {}, [batch(0.002)], 0.6)
    assert 1 - 2 * beta * 0.002 == pytest.approx(0.6, abs=0.01), "IPO's slope is a line"


def test_what_has_no_such_beta_is_told() -> None:
    with pytest.raises(DiffalignError, match=r"the least is 1\.00: the trial has hardly moved"):
        solve_beta(get_objective("diffusion_dpo"), {}, [batch(0.0)], 0.6)
    with pytest.raises(DiffalignError, match="'dspo' has no gradient at policy = reference"):
        outputs = {name: torch.zeros(4, 4, 2, 2) for name in ("chosen_pred", "ref_chosen_pred", "chosen_target")}
        refuse_auto(get_objective("dspo"), {}, batch(0.001) | outputs)
    for name in ("sft", "mapo", "gated_sft"):
        with pytest.raises(DiffalignError, match="needs an objective with beta and with reference errors"):
            refuse_auto(get_objective(name), {}, batch(0.0))


def test_a_run_finds_its_beta_once_and_trains_as_if_it_had_been_written(
    data: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(data, settings={"beta": "auto"}, strength={"num_steps": 8}, num_steps=2, prompt_drop=0.0)
    train(settings, tmp_path / "auto", cache=cache)
    found = json.loads((tmp_path / "auto" / "beta.json").read_text())
    assert 0.59 < found["gradient_factor"] <= 0.6
    assert f"beta {found['beta']:g}; the same strength elsewhere" in capsys.readouterr().err
    train(settings.replace(settings={"beta": found["beta"]}), tmp_path / "written", cache=cache)
    assert equal(tensors(tmp_path / "auto"), tensors(tmp_path / "written"))
    assert metrics(tmp_path / "auto")[1]["loss"] == metrics(tmp_path / "written")[1]["loss"]


def test_betas_of_other_code_bases() -> None:
    """SD 1.5: 16,384 elements; betas 2000 and 5000 of Diffusion-DPO's code are 0.0610 and 0.1526 summed."""
    same = beta_elsewhere(2000.0, num_elements=16384)
    assert same["diffusers and Diffusion-NPO"] == 1000 and same["hinge margin"] == 0.001
    assert same["summed errors"] == pytest.approx(0.0610, abs=5e-5)
    assert beta_elsewhere(5000.0, num_elements=16384)["summed errors"] == pytest.approx(0.1526, abs=5e-5)
    assert beta_elsewhere(100.0, num_elements=65536)["summed errors"] == pytest.approx(7.6e-4, rel=0.01)


def test_converted_betas_give_the_same_logit() -> None:
    """Each formula written out as its code base has it, on the worked example of margin .003."""
    errors = {"w": 0.100, "l": 0.130, "rw": 0.102, "rl": 0.129}
    margin = (errors["rw"] - errors["w"]) - (errors["rl"] - errors["l"])
    same, elements = beta_elsewhere(2000.0, num_elements=100), 100
    assert 0.5 * same["Diffusion-DPO"] * margin == pytest.approx(3.0)
    assert same["diffusers and Diffusion-NPO"] * margin == pytest.approx(3.0)
    assert margin / same["hinge margin"] == pytest.approx(3.0)
    assert same["summed errors"] * (margin * elements) == pytest.approx(3.0)
