"""Settings that would silently do nothing are refused, or told, before any weight loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from train_helpers import config

import diffalign.train.build as build
from diffalign.core import DiffalignError
from diffalign.data import Preferences, PreferenceWriter
from diffalign.models import embedded_path
from diffalign.objectives import OBJECTIVES
from diffalign.train import Plan, check_plan, train
from diffalign.train.checks import check, tell_unused, usable_rows

SFT: dict[str, Any] = {"objective": "sft", "settings": {}}
DRO: dict[str, Any] = {"objective": "diffusion_dro", "settings": {}}
DENOISER = str(embedded_path("tiny-sd3") / "transformer")


@pytest.fixture(scope="module")
def masked(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    with PreferenceWriter(folder, form="pair") as writer:
        for pair in Preferences(data):
            writer.write(dataclasses.replace(pair, mask=Image.new("L", pair.chosen.size, 255)))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (SFT | {"reference": "base"}, "'sft' compares with no reference .*leave reference at start, not base"),
        (SFT | {"reference": "ema"}, "leave reference at start, not ema"),
        (SFT | {"reference": DENOISER, "train": "full"}, "leave reference at start"),
        ({"start_as": "keep"}, "start_as keep .*start is empty"),
        ({"start_as": "fuse", "start": DENOISER}, "start_as fuse .*a denoiser"),
        (DRO | {"samples": {"noise": "shared"}}, "samples.noise shared needs samples.state renoised: a trajectory"),
        (DRO | {"samples": {"noise": "shared", "state": "truncated"}}, "samples.noise shared needs"),
        (DRO | {"samples": {"truncate": 3}}, "samples.truncate 3 needs samples.state truncated: a trajectory"),
        (DRO | {"samples": {"noise": "shared", "state": "renoised"}, "inversion": {}}, "samples.noise .* inversion"),
        (
            {"validation": {"prompts": "photographs", "num_seeds": 1, "min_diversity": 0.3}},
            "validation.min_diversity 0.3 needs validation.num_seeds",
        ),
    ],
)
def test_settings_without_effect_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(build, "load_family", lambda *_, **__: pytest.fail("a weight was loaded"))
    with pytest.raises(DiffalignError, match=words):
        train(config(data, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_masks_need_an_error_that_they_weigh(masked: Path) -> None:
    own = {"objective": "self_npo", "settings": {}, "samples": {}, "outside_weight": 0.5}
    with pytest.raises(DiffalignError, match="'self_npo' has no error of an image to weigh: leave outside_weight at 1"):
        check(config(masked, **own))
    check(config(masked, outside_weight=0.5))


def test_what_has_an_effect_is_not_refused(data: Path) -> None:
    for changes in (
        {"reference": "base"},
        DRO | {"samples": {"noise": "shared", "state": "renoised"}},
        DRO | {"samples": {"truncate": 3, "state": "truncated"}},
        {"validation": {"prompts": "photographs", "num_seeds": 1}},
        {"settings": {"beta": "auto"}, "strength": {"num_steps": 3}},
    ):
        check(config(data, **changes))


def test_later_stages_say_what_becomes_of_the_stage_before(data: Path) -> None:
    """Their start is not there yet when a plan is checked."""
    stage = config(data, lora={"rank": 8})
    check_plan(Plan(stages=(stage, stage.replace(start_as="keep"))))
    check_plan(Plan(stages=(stage, config(data))))
    with pytest.raises(DiffalignError, match="start is empty"):
        check_plan(Plan(stages=(stage.replace(start_as="keep"), stage)))
    with pytest.raises(DiffalignError, match=r"stages\[0\].train full .* start_as fuse"):
        Plan(stages=(config(data, train="full"), config(data, train="full", start_as="fuse")))
    with pytest.raises(DiffalignError, match=r"stages\[1\].lora has no effect.*stages\[0\].lora"):
        Plan(stages=(stage, config(data, lora={"rank": 16})))
    Plan(stages=(stage, config(data, lora={"rank": 16}, start_as="keep")))


def test_sections_of_another_kind_of_training_are_told(data: Path, capsys: Any) -> None:
    """A stage that is a variant of another may hold them."""
    tell_unused(config(data, train="full", lora={"rank": 8}, strength={"num_steps": 7}))
    said = capsys.readouterr().err
    assert "the section lora is not used" in said and "the section strength is not used" in said
    tell_unused(config(data, train="full"))
    tell_unused(config(data, lora={"rank": 8}, settings={"beta": "auto"}, strength={"num_steps": 7}))
    assert capsys.readouterr().err == ""


def test_probabilities_that_are_all_1_are_told(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usable_rows(Preferences(data), OBJECTIVES.get("capo"))
    assert "all 6 of them are 1: diffalign label makes soft ones" in " ".join(capsys.readouterr().err.split())
    usable_rows(Preferences(data), OBJECTIVES.get("diffusion_dpo"))
    assert "of them are 1" not in capsys.readouterr().err
