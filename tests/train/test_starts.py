"""Where a run starts, what it is measured against, and what is written about both."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from train_helpers import config, metrics

from diffalign.core import DiffalignError
from diffalign.train import Plan, run_plan, train

LOG_2 = math.log(2)


@pytest.fixture(scope="module")
def lora(data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    return train(config(data, objective="sft", settings={}, num_steps=2), folder, cache=cache)


@pytest.fixture(scope="module")
def tuned(data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    return train(config(data, objective="sft", settings={}, num_steps=2, train="full"), folder, cache=cache)


def first_loss(settings: Any, folder: Path, cache: Path) -> float:
    train(settings.replace(num_steps=1), folder, cache=cache)
    return metrics(folder)[0]["loss"]


def test_another_adapter_as_reference(data: Path, cache: Path, tmp_path: Path, lora: Path) -> None:
    """From a LoRA against the same LoRA is log 2; from the base against it is not."""
    same = config(data, start=str(lora), reference=str(lora))
    assert first_loss(same, tmp_path / "same", cache) == pytest.approx(LOG_2, abs=1e-6)
    other = config(data, reference=str(lora))
    assert abs(first_loss(other, tmp_path / "other", cache) - LOG_2) > 1e-4


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_fine_tuned_denoiser_as_start(data: Path, cache: Path, tmp_path: Path, tuned: Path, kind: str) -> None:
    settings = config(data, start=str(tuned), train=kind)
    assert first_loss(settings, tmp_path / "start", cache) == pytest.approx(LOG_2, abs=1e-6)
    made_with = json.loads((tmp_path / "start" / "policy" / "made_with.json").read_text())
    assert made_with["start"] == str(tuned) and made_with["start_as"] == "base" and made_with["hashes"]["start"]
    with pytest.raises(DiffalignError, match="the base is gone"):
        settings.replace(reference="base")


def test_full_weights_against_a_denoiser_from_a_folder(data: Path, cache: Path, tmp_path: Path, tuned: Path) -> None:
    assert abs(first_loss(config(data, train="full", reference=str(tuned)), tmp_path / "a", cache) - LOG_2) > 1e-4
    with pytest.raises(DiffalignError, match="a LoRA as reference"):
        train(config(data, reference=str(tuned)), tmp_path / "b", cache=cache)


@pytest.mark.parametrize("way", ["continue", "keep", "fuse"])
def test_what_a_result_belongs_on_is_written_beside_it(
    data: Path, cache: Path, tmp_path: Path, lora: Path, way: str
) -> None:
    train(config(data, start=str(lora), start_as=way, num_steps=1), tmp_path, cache=cache)
    for name in ("policy", "ema"):
        made_with = json.loads((tmp_path / name / "made_with.json").read_text())
        assert (made_with["model"], made_with["start"], made_with["start_as"]) == ("tiny-sd3", str(lora), way)
        assert set(made_with["hashes"]) >= {"base model", "data", "start"}


def test_a_start_that_changed_is_named_on_resume(data: Path, cache: Path, tmp_path: Path, lora: Path) -> None:
    settings = config(data, start=str(lora), num_steps=2)
    train(settings, tmp_path / "run", cache=cache)
    (state,) = (tmp_path / "run" / "checkpoints").glob("step-*/state.json")
    written = json.loads(state.read_text())
    written["hashes"]["start"] = "0" * 64
    state.write_text(json.dumps(written))
    with pytest.raises(DiffalignError, match="the start is not what"):
        train(settings, tmp_path / "run", cache=cache)


def test_paths_that_are_not_there_are_told_before_any_weight_loads(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DiffalignError, match="as start, there is no nowhere"):
        train(config(data, start="nowhere"), tmp_path / "a")
    with pytest.raises(DiffalignError, match="known names are start, base and ema"):
        train(config(data, reference="strat"), tmp_path / "b")


def test_full_weights_feed_the_next_stage(data: Path, tmp_path: Path) -> None:
    stages = [config(data, train="full", num_steps=1, objective=name, settings=settings)
              for name, settings in (("sft", {}), ("diffusion_dpo", {"beta": 100.0}))]  # fmt: skip
    run_plan(Plan(stages=tuple(stages), feed="ema"), tmp_path)
    assert metrics(tmp_path / "stage2")[0]["loss"] == pytest.approx(LOG_2, abs=1e-6)
    with pytest.raises(DiffalignError, match="start_as to fuse"):
        Plan(stages=(stages[0].replace(train="lora"), stages[1]))
