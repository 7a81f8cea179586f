import json
import math
from pathlib import Path
from typing import Literal

import pytest
from pydantic import model_validator

from diffalign.core import Config, DiffalignError, config_to_yaml, describe, dump_config, load_config, override, setting


class Dpo(Config):
    kind: Literal["dpo"] = setting("dpo", "the objective")
    beta: float = setting(2000.0, "preference strength", source="arXiv:2311.12908", gt=0)


class Kto(Config):
    kind: Literal["kto"] = setting("kto", "the objective")
    baseline: float = setting(0.5, "reference point")


class Train(Config):
    lr: float = setting(1e-4, "learning rate")
    steps: int = setting(100, "number of optimiser steps", unit="steps", ge=1)
    betas: tuple[float, float] = setting((0.9, 0.999), "Adam's decay rates")
    objective: Dpo | Kto = setting(Dpo(), "what is minimised", discriminator="kind")

    @model_validator(mode="after")
    def _ordered(self):
        if self.betas[0] > self.betas[1]:
            raise ValueError(f"betas must not fall, got {self.betas}")
        return self


class Run(Config):
    name: str = setting("run", "the run's name")
    out: Path = setting(Path("out"), "where results go")
    seed: int | None = setting(None, "seed; null draws one")
    train: Train = setting(Train(), "the loop")
    stages: tuple[Train, ...] = setting((), "further loops")
    warm: Train | None = setting(None, "a loop before the loop")
    extra: dict[str, float] = setting({}, "weights by name")
    clip: float = setting(1.0, "largest gradient norm; .inf is off", allow_inf_nan=True)


class Needy(Config):
    model: str = setting(..., "model folder")


def load(tmp_path, text, cls=Run):
    (tmp_path / "config.yaml").write_text(text)
    return load_config(cls, tmp_path / "config.yaml")


def test_defaults_are_frozen():
    run = Run()
    with pytest.raises(ValueError, match="frozen"):
        run.name = "other"
    assert run == Run()


def test_load_fills_tuples_paths_and_unions(tmp_path):
    run = load(
        tmp_path,
        "out: results\nseed: 3\nclip: .inf\nextra: {hps: 1e-4}\n"
        "train: {lr: 1e-4, steps: 5, betas: [0.5, 1], objective: {kind: kto, baseline: 2}}\nstages: [{steps: 2}, {}]\n",
    )
    assert (run.out, run.seed, run.clip, run.extra) == (Path("results"), 3, math.inf, {"hps": 1e-4})
    assert run.train == Train(lr=1e-4, steps=5, betas=(0.5, 1.0), objective=Kto(baseline=2.0))
    assert run.stages == (Train(steps=2), Train())


def test_load_json_and_empty_yaml(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"train": {"lr": 1e-4}}))
    assert load_config(Run, tmp_path / "config.json") == load(tmp_path, "") == Run()


def test_what_is_written_reads_back_equal(tmp_path):
    run = Run(
        out=Path("a b"), clip=math.inf, stages=(Train(lr=3e-7),), extra={"1e-4": 2.0}, warm=Train(objective=Kto())
    )
    assert load(tmp_path, config_to_yaml(run)) == run
    assert list(dump_config(run)) == list(Run.model_fields)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("trian: {}", r"config\.yaml: unknown setting 'trian'; nearest: train, extra \(known: clip, extra, name"),
        ("train: {stps: 3}", r"unknown setting 'train\.stps'; nearest: train\.steps \(known: train\.betas"),
        ("steps: 3", r"unknown setting 'steps'.*; there is train\.steps"),
        ("stages: [{}, {stps: 3}]", r"unknown setting 'stages\.1\.stps'; nearest: stages\.1\.steps"),
        ("warm: {stps: 3}", r"unknown setting 'warm\.stps'; nearest: warm\.steps"),
        ("train: {objective: {kind: kto, beta: 3}}", r"unknown setting 'train\.objective\.beta'.*baseline"),
        ("train: {objective: {kind: kot}}", r"train\.objective: .*'dpo', 'kto'"),
        ("train: {steps: fifty}", r"train\.steps: expected a valid integer, got 'fifty' \(str\)"),
        ("train: {steps: 1.5}", r"train\.steps: expected a valid integer, got 1\.5 \(float\)"),
        ("train: {steps: true}", r"train\.steps: expected a valid integer, got True \(bool\)"),
        ("train: {steps: 0}", r"train\.steps: expected greater than or equal to 1|train\.steps: expected.*1, got 0"),
        ("train: {lr: '1'}", r"train\.lr: expected a valid number, got '1' \(str\)"),
        ("train: {lr: .nan}", r"train\.lr: expected a finite number, got nan"),
        ("train: {lr: .inf}", r"train\.lr: expected a finite number, got inf"),
        ("extra: {hps: text}", r"extra\.hps: expected a valid number"),
        ("train: {betas: [1, 0.5]}", r"train: betas must not fall, got \(1\.0, 0\.5\)"),
        ("train: 3", r"train: expected an object, got 3 \(int\)"),
        ("name: 3", r"name: expected a valid string, got 3 \(int\)"),
        ("- 1", r"config\.yaml: expected settings as 'key: value' lines, got list"),
        ("a: 1\na: 2", r"config\.yaml, line 2.*given twice"),
    ],
)
def test_mistakes_in_a_file_name_the_setting(tmp_path, text, complaint):
    with pytest.raises(DiffalignError, match=complaint):
        load(tmp_path, text)


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(DiffalignError) as caught:
        load(tmp_path, "nmae: x\ntrain: {steps: x, lr: y}")
    assert len(str(caught.value).splitlines()) == 3


def test_a_long_value_is_shortened(tmp_path):
    with pytest.raises(DiffalignError) as caught:
        load(tmp_path, f"seed: {'x' * 5000}")
    assert len(str(caught.value)) < 400


def test_a_setting_without_default_must_be_given(tmp_path):
    with pytest.raises(DiffalignError, match="model: must be given"):
        load(tmp_path, "", Needy)


def test_mistakes_in_code_are_told_the_same_way():
    with pytest.raises(DiffalignError, match=r"unknown setting 'stps'; nearest: steps"):
        Train(stps=3)
    with pytest.raises(DiffalignError, match=r"unknown setting 'train\.stps'; nearest: train\.steps"):
        Run(train={"stps": 3})


def test_replace_validates():
    assert Train().replace(steps=7) == Train(steps=7)
    with pytest.raises(DiffalignError, match="steps"):
        Train().replace(steps="7")


def test_files_of_other_kinds_are_refused(tmp_path):
    with pytest.raises(DiffalignError, match=r"ending in \.yaml, \.yml or \.json"):
        load_config(Run, tmp_path / "config.toml")
    with pytest.raises(DiffalignError, match="cannot read"):
        load_config(Run, tmp_path / "absent.yaml")


def test_override_changes_a_copy_and_the_last_wins():
    run = Run(stages=(Train(),))
    changed = override(
        run,
        ["train.lr=1e-3", "train.lr=2e-3", "seed=3", "out=x=y", "stages.0.steps=9", "extra.hps=2", "warm.steps=4"],
    )
    changed = override(changed, ["train.betas=[0.1, 0.2]", "train.objective={kind: kto}"])
    assert changed == Run(
        seed=3,
        out=Path("x=y"),
        train=Train(lr=2e-3, betas=(0.1, 0.2), objective=Kto()),
        stages=(Train(steps=9),),
        extra={"hps": 2.0},
        warm=Train(steps=4),
    )
    assert run == Run(stages=(Train(),))
    assert override(changed, ["seed="]).seed is None


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("seed", r"expected key=value, such as stages\.0\.num_steps=50, got 'seed'"),
        ("=3", r"expected key=value"),
        ("train.stps=3", r"unknown setting 'train\.stps'; nearest: train\.steps"),
        ("trian.steps=3", r"unknown setting 'trian'; nearest: train"),
        ("lr=3", r"unknown setting 'lr'.*; there is train\.lr"),
        ("train.steps.x=3", r"train\.steps\.x: train\.steps is a single value without parts"),
        ("train.objective.beta.x=3", r"train\.objective\.beta is a single value"),
        ("train.steps=many", r"train\.steps: expected a valid integer, got 'many'"),
        ("stages.3.steps=1", r"stages\.3\.steps: expected a position"),
        ("train.betas.x=1", r"train\.betas\.x: expected a position from 0 to 1 of a list, got 'x'"),
        ("train.betas=[1", r"the value of 'train\.betas=\[1'.* is not valid YAML"),
        ("train..lr=1", r"unknown setting 'train\.'"),
        ("train.lr=.nan", r"train\.lr: expected a finite number"),
    ],
)
def test_override_says_what_is_wrong(assignment, complaint):
    with pytest.raises(DiffalignError, match=complaint):
        override(Run(), [assignment])


def test_describe_lists_every_setting_under_its_key():
    rows = {row.key: row for row in describe(Run)}
    assert rows["train.steps"].unit == "steps" and rows["train.steps"].default == "100"
    assert rows["train.objective.beta"].source == "arXiv:2311.12908"
    assert rows["train.objective.baseline"].doc == "reference point"
    assert rows["stages.*.lr"].type == "float" and rows["warm.lr"].default == "0.0001"
    assert "train" not in rows and rows["seed"].type == "int | None"
    assert describe(Needy)[0].default == "required"
