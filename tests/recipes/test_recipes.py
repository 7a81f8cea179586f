"""Every recipe is complete, and its tiny twin runs through both stages and resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diffalign.train.loop as loop
from diffalign.core import DiffalignError
from diffalign.recipes import RECIPES, tiny_twin
from diffalign.train import Plan, run_plan

TWO_STAGES = ("realalign_sd15", "realalign_sd35m", "realalign_gated_sd15", "realalign_gated_sd35m")


@pytest.fixture(scope="module")
def data(make_pairs: Callable[[int, str], Path]) -> str:
    return str(make_pairs(5, "noise"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_where_they_come_from(name: str) -> None:
    made = RECIPES.get(name)
    assert made.paper and made.data and made.compute and made.build.__doc__
    assert isinstance(made.build("pairs"), Plan)


@pytest.mark.parametrize("name", TWO_STAGES)
def test_tiny_twin_runs_and_goes_on_after_a_kill(name: str, data: str, tmp_path: Path, monkeypatch: Any) -> None:
    plan = tiny_twin(RECIPES.get(name).build(data), model=RECIPES.get(name).twin)
    step, kills = loop.take_step, ["diffusion_dpo"]

    def dying(run: Any, number: int, stop: Any) -> Any:
        if kills and run.config.objective == kills[0] and number == 1:
            kills.pop()
            raise KeyboardInterrupt
        return step(run, number, stop)

    monkeypatch.setattr(loop, "take_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, tmp_path / "run")
    result = run_plan(plan, tmp_path / "run")
    final = "policy" if plan.stages[-1].ema is None else plan.feed
    assert result == tmp_path / "run" / "stage2" / final and list(result.glob("*.safetensors"))
    first, second = metrics(tmp_path / "run" / "stage1"), metrics(tmp_path / "run" / "stage2")
    assert first[0]["gate"] == 1 and "drift" in first[0]
    assert second[0]["loss"] == pytest.approx(0.693147, abs=1e-5), "stage 2 starts from and refers to stage 1"
    assert len(first) == len(second) == 2


def test_plans_that_contradict_themselves_are_refused(data: str) -> None:
    plan = RECIPES.get("realalign_sd15").build(data)
    with pytest.raises(DiffalignError, match="moving average in stage 1"):
        plan.replace(stages=(plan.stages[0].replace(ema=None), plan.stages[1]))
    with pytest.raises(DiffalignError, match="leave its start empty"):
        plan.replace(stages=(plan.stages[0], plan.stages[1].replace(start="somewhere")))


@pytest.mark.parametrize("model", ["sd15", "sd35m"])
def test_a_gated_recipe_is_the_published_one_without_own_samples(model: str) -> None:
    gated, published = (RECIPES.get(name).build("pairs") for name in (f"realalign_gated_{model}", f"realalign_{model}"))
    first = gated.stages[0]
    assert first.objective == "gated_sft" and first.samples is None and gated.stages[1] == published.stages[1]
    assert published.stages[0].replace(objective="gated_sft", settings=first.settings, samples=None) == first
