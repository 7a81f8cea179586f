"""Where a run starts, what it is measured against, and what is written about both."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from train_helpers import config, interrupt_at, metrics

from diffalign.core import DiffalignError, parse_yaml
from diffalign.train import Plan, check_plan, run_plan, train

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
    kept = config(data, start=str(lora), start_as="keep", reference=str(lora))
    assert first_loss(kept, tmp_path / "kept", cache) == pytest.approx(LOG_2, abs=1e-6), "the reference is not doubled"
    with pytest.raises(DiffalignError, match="belongs on the base"):
        train(kept.replace(start_as="fuse"), tmp_path / "fused", cache=cache)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_fine_tuned_denoiser_as_start(data: Path, cache: Path, tmp_path: Path, tuned: Path, kind: str) -> None:
    settings = config(data, start=str(tuned), train=kind)
    assert first_loss(settings, tmp_path / "start", cache) == pytest.approx(LOG_2, abs=1e-6)
    made_with = json.loads((tmp_path / "start" / "policy" / "made_with.json").read_text())
    assert made_with["start"] == str(tuned) and made_with["start_as"] == "base" and made_with["hashes"]["start"]
    with pytest.raises(DiffalignError, match="the base is gone"):
        train(settings.replace(reference="base"), tmp_path / "base", cache=cache)


def test_full_weights_against_a_denoiser_from_a_folder(data: Path, cache: Path, tmp_path: Path, tuned: Path) -> None:
    assert abs(first_loss(config(data, train="full", reference=str(tuned)), tmp_path / "a", cache) - LOG_2) > 1e-4
    with pytest.raises(DiffalignError, match="a LoRA as reference"):
        train(config(data, reference=str(tuned)), tmp_path / "b", cache=cache)


@pytest.mark.parametrize("way", ["continue", "keep", "fuse"])
def test_what_a_result_belongs_on_is_written_beside_it(
    data: Path, cache: Path, tmp_path: Path, lora: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(data, start=str(lora), start_as=way, num_steps=1, lora={"alpha": 8.0}), tmp_path, cache=cache)
    said = " ".join(capsys.readouterr().err.split())
    assert ("of rank 4 and alpha 4; lora.rank 4 and lora.alpha 8 are not used" in said) == (way == "continue")
    for name in ("policy", "ema"):
        made_with = json.loads((tmp_path / name / "made_with.json").read_text())
        assert (made_with["model"], made_with["start"], made_with["start_as"]) == ("tiny-sd3", str(lora), way)
        assert set(made_with["hashes"]) >= {"base model", "data", "start"}


def test_a_start_that_changed_is_named_on_resume(
    data: Path, cache: Path, tmp_path: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(lora, mine)
    settings = config(data, start=str(mine), num_steps=3)
    interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "run", cache=cache)
    (file,) = mine.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({key: value * 1.01 for key, value in load_file(file).items()}, file, metadata)
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


def test_stages_draw_other_rows_and_noise(data: Path, tmp_path: Path) -> None:
    """Stage 2 must not be judged on the very draws that Stage 1 was fitted to; stage 1 keeps the plan's seed."""
    stage = config(data, num_steps=1, objective="sft", settings={})
    run_plan(Plan(stages=(stage, stage)), tmp_path / "run")
    seeds = [
        parse_yaml((tmp_path / "run" / name / "config.yaml").read_text(), where=name)["seed"]
        for name in ("stage1", "stage2")
    ]
    assert seeds[0] == stage.seed != seeds[1]


def test_a_plans_folder_may_move(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 2 finds Stage 1 in the plan's folder, wherever that is now."""
    stages = (config(data, num_steps=1, objective="sft", settings={}), config(data, num_steps=2, checkpoint_every=1))
    interrupt_at(monkeypatch, 1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_plan(Plan(stages=stages), "here")
    (tmp_path / "here").rename(tmp_path / "there")
    result = run_plan(Plan(stages=stages), tmp_path / "there")
    assert result == tmp_path / "there" / "stage2" / "policy" and result.is_dir()


def test_every_stage_is_checked_before_the_first_one_trains(data: Path, tmp_path: Path) -> None:
    stages = (config(data, num_steps=1, objective="sft", settings={}), config(data, settings={}))
    with pytest.raises(DiffalignError, match="needs the setting beta"):
        run_plan(Plan(stages=stages), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(DiffalignError, match="no base to refer to"):
        Plan(stages=(stages[0], config(data, start_as="fuse", reference="base")))
    with pytest.raises(DiffalignError, match="rounds part of the LoRA away"):
        config(data, start="somewhere", start_as="fuse", mixed_precision="bf16")


def test_a_start_that_the_next_stage_would_lose_is_refused(data: Path, tmp_path: Path) -> None:
    """Stage 2 puts Stage 1's LoRA on the bare model, so nothing else may lie under it."""
    sft = config(data, num_steps=1, objective="sft", settings={})
    lora = train(sft, tmp_path / "lora")
    whole = train(sft.replace(train="full"), tmp_path / "whole")
    for stage, words in (
        (sft.replace(start=str(whole)), "on the denoiser in .*save a pipeline"),
        (sft.replace(start=str(lora), start_as="keep"), "beside .*start_as to continue"),
        (sft.replace(start=str(lora), start_as="fuse"), "beside .*start_as to continue"),
    ):
        with pytest.raises(DiffalignError, match=words):
            run_plan(Plan(stages=(stage, config(data, num_steps=1))), tmp_path / "run")
    last = sft.replace(start_as="keep")
    check_plan(Plan(stages=(sft.replace(start=str(lora)), last)))
