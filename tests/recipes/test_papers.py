"""Recipes hold the numbers of their papers, say where each setting comes from, and train as tiny twins.

The numbers below are written from the papers' and releases' own settings, not from the recipes.
"""

from __future__ import annotations

import doctest
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline

import diffalign.recipes.sources
from diffalign.core import Config, DiffalignError
from diffalign.data import Preferences, PreferenceWriter
from diffalign.models import embedded_path, load_family
from diffalign.objectives import get_objective
from diffalign.recipes import BASE_MODELS, DATA_SETS, RECIPES, realalign_on_dpo_sd15, setting_sources, tiny_twin
from diffalign.train import Plan, fill_cache, run_plan, train
from diffalign.types import CandidateSet

MARK = re.compile(r"\[(paper|code|history|not stated)\]")
LOG_2 = math.log(2)

NUMBERS: list[tuple[str, int, dict[str, Any]]] = [
    ("diffusion_dpo_sd15", 0, {"settings.beta": 2000, "optimizer.learning_rate": 2.048e-5, "batch_size": 2048,
                               "optimizer.warmup_steps": 500, "num_steps": 2000, "prompt_drop": 0.2, "train": "full"}),
    ("diffusion_dpo_sdxl", 0, {"settings.beta": 5000, "optimizer.learning_rate": 2.048e-5, "resolution": 1024,
                               "optimizer.warmup_steps": 200, "batch_size": 2048}),
    ("diffusion_dro_sd15", 0, {"settings.margin": 0.001, "optimizer.learning_rate": 1e-4, "batch_size": 256,
                               "num_steps": 1600, "ema.decay": 0.9999, "samples.num_steps": 20, "train": "full",
                               "samples.refresh_every": 1, "samples.guidance_scale": 1, "prompt_drop": 0.2}),
    ("realalign_sd15", 0, {"lora.rank": 4, "lora.alpha": 4, "optimizer.learning_rate": 1e-4, "num_steps": 1600,
                           "samples.refresh_every": 16, "ema.decay": 0.9999, "settings.margin": 0.001}),
    ("realalign_sd15", 1, {"settings.beta": 2000, "optimizer.learning_rate": 2.56e-6, "num_steps": 800}),
    ("realalign_sd35m", 0, {"lora.rank": 32, "lora.alpha": 64, "optimizer.learning_rate": 2e-4, "num_steps": 3200,
                            "samples.num_steps": 10, "ema.every": 8, "max_sequence_length": 128}),
    ("realalign_sd35m", 1, {"settings.beta": 100, "optimizer.learning_rate": 2.56e-6, "num_steps": 450}),
    ("realalign_on_dpo_sd15", 1, {"settings.beta": 2000, "num_steps": 800}),
    ("realalign_on_flow_grpo_sd35m", 0, {"reference": "start", "start_as": "continue", "lora.rank": 32}),
    ("realalign_on_flow_grpo_sd35m", 1, {"settings.beta": 100, "num_steps": 350}),
    ("pgd_sd15", 0, {"objective": "diffusion_dpo", "settings.beta": 5000}),
    ("pgd_sdxl", 0, {"settings.beta": 5000, "optimizer.learning_rate": 2.048e-6, "optimizer.warmup_steps": 200,
                     "batch_size": 2048, "num_steps": 2000, "prompt_drop": 0.2, "resolution": 1024}),
    ("cpgd_positive_sdxl", 0, {"objective": "sft", "optimizer.learning_rate": 2.048e-6, "num_steps": 2000}),
    ("cpgd_negative_sdxl", 0, {"objective": "sft_on_rejected", "optimizer.learning_rate": 2.048e-6}),
    ("cpgd_positive_sd15", 0, {"objective": "sft", "resolution": 512}),
    ("cpgd_negative_sd15", 0, {"objective": "sft_on_rejected", "resolution": 512}),
    ("diffusion_npo_sd15", 0, {"settings.beta": 2 * 500, "lora.rank": 8, "lora.alpha": 8, "num_steps": 2000,
                               "optimizer.learning_rate": 5e-6, "optimizer.warmup_steps": 0, "prompt_drop": 0}),
    ("diffusion_npo_sdxl", 0, {"settings.beta": 2 * 2000, "lora.rank": 8, "num_steps": 2000, "batch_size": 60}),
    ("self_npo_sd15", 0, {"optimizer.learning_rate": 1e-6, "optimizer.weight_decay": 1e-3, "batch_size": 20,
                          "num_steps": 1000, "samples.truncate": 0, "samples.num_steps": 25, "ema.decay": 0.999,
                          "samples.guidance_scale": 1 + -1, "samples.state": "truncated"}),
    ("self_npo_sdxl", 0, {"optimizer.learning_rate": 1e-7, "optimizer.weight_decay": 0, "batch_size": 10,
                          "samples.guidance_scale": 1 + -5}),
    ("diffusion_kto_sd15", 0, {"settings.beta": 1000, "optimizer.learning_rate": 1e-7, "num_steps": 20000,
                               "settings.desirable_weight": 2 * 0.8, "settings.undesirable_weight": 2 * 0.2}),
    ("mapo_sdxl", 0, {"settings.beta": 0.1, "settings.snr": 0.5, "settings.num_timesteps": 1000,
                      "optimizer.learning_rate": 1e-5}),
    ("dspo_sd15", 0, {"settings.beta": 0.001, "optimizer.learning_rate": 2.048e-5, "num_steps": 2000}),
    ("sdpo_sd15", 0, {"settings.mu": 0.9, "settings.beta": 5000, "optimizer.learning_rate": 2.048e-5,
                      "batch_size": 2048}),
    ("sdpo_sdxl", 0, {"settings.mu": 0.6, "settings.beta": 5000, "optimizer.learning_rate": 2.048e-6}),
    ("dmpo_sd15", 0, {"settings.beta": 2000, "settings.alpha": 0.01}),
    ("dmpo_sdxl", 0, {"settings.beta": 6000, "settings.alpha": 0.01}),
    ("linear_dpo_sd15", 0, {"settings.beta": 100, "settings.eta": 1e-3, "optimizer.learning_rate": 5e-6,
                            "num_steps": 2000, "reference": "ema", "ema.every": 1, "ema.warmup": False,
                            "ema.decay": 0.99}),
    ("linear_dpo_sdxl", 0, {"settings.beta": 500, "settings.eta": 0, "optimizer.learning_rate": 1e-5,
                            "reference": "ema"}),
    ("inpo_sd15", 0, {"objective": "sft"}),
    ("inpo_sd15", 1, {"settings.beta": 2000, "num_steps": 400, "batch_size": 1024, "inversion.num_steps": 10,
                      "inversion.extra_noise": 0.1, "inversion.averaged": False, "optimizer.learning_rate": 1.024e-5}),
    ("inpo_sdxl", 0, {"settings.beta": 5000, "num_steps": 400, "batch_size": 1024, "inversion.num_steps": 10}),
    ("smpo_sd15", 1, {"settings.beta": 2000, "settings.gamma": 10, "num_steps": 200, "inversion.num_steps": 5,
                      "inversion.averaged": True}),
    ("smpo_sdxl", 0, {"settings.beta": 5000, "settings.gamma": 10, "num_steps": 200, "inversion.num_steps": 10,
                      "inversion.averaged": True}),
    ("rank_dpo_sdxl", 0, {"batch_size": 1024, "num_steps": 400, "metrics": ()}),
    ("rank_dpo_sd3m", 0, {"batch_size": 1024, "num_steps": 400}),
    ("cw_dpo_sd15", 0, {"objective": "cw_sft"}),
    ("cw_dpo_sd15", 1, {"objective": "cw_dpo", "reference": "start"}),
    ("lambda_listwise_sd15", 0, {"objective": "lambda_listwise"}),
    ("capo_sdxl", 0, {"objective": "capo", "resolution": 1024}),
    ("capo_sd3m", 0, {"objective": "capo"}),
]  # fmt: skip

# the same code as a sibling's, with other numbers: slow
SIBLINGS = [name for name in RECIPES if name.endswith("_sdxl") and name.replace("_sdxl", "_sd15") in RECIPES]
SIBLINGS += ["capo_sdxl", "rank_dpo_sdxl", "pgd_sd15"]
ELSEWHERE = [name for name in RECIPES if name.startswith("realalign")]  # below, and in test_recipes
TWINS = [pytest.param(name, marks=[pytest.mark.slow] * (name in SIBLINGS)) for name in RECIPES if name not in ELSEWHERE]
FROM_LOG_2 = ("diffusion_dpo", "diffusion_npo", "sdpo", "smpo", "cw_dpo")


def at(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pairs(make_pairs: Callable[[int, str], Path]) -> Path:
    return make_pairs(4, "noise")


@pytest.fixture(scope="module")
def sets(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Candidate sets of a row's two images and the next row's first, under three scores."""
    folder = tmp_path_factory.mktemp("sets") / "sets"
    rows = list(Preferences(pairs))
    with PreferenceWriter(folder, form="candidates") as writer:
        for number, row in enumerate(rows):
            images = (row.chosen, row.rejected, rows[number - 1].chosen)
            scores = {"hpsv2.1": (0.28, 0.25, 0.26), "image_reward": (0.9, -0.2, -1.0), "pickscore": (21.5, 20.5, 19.0)}
            writer.write(CandidateSet(id=row.id, prompt=row.prompt, images=images, scores=scores))
    return folder


@pytest.fixture(scope="module")
def cache(pairs: Path, sets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of all rows under both embedded models, which every twin reads."""
    folder = tmp_path_factory.mktemp("cache")
    for model in ("tiny-sd", "tiny-sd3"):
        family = load_family(model)
        fill_cache(folder, family, Preferences(pairs), resolution=32, flip=True)
        fill_cache(folder, family, Preferences(sets), resolution=32, flip=True)
    return folder


def run_twin(plan: Plan, folder: Path, cache: Path) -> list[list[dict[str, Any]]]:
    """Train the stages of a plan, each from the one before, on the common cache; what they logged."""
    before = ""
    for number, stage in enumerate(plan.stages, start=1):
        train(stage.replace(start=before or stage.start), folder / f"stage{number}", cache=cache)
        before = str(folder / f"stage{number}" / plan.feed)
    return [metrics(folder / f"stage{number}") for number in range(1, len(plan.stages) + 1)]


@pytest.mark.parametrize(
    ("name", "stage", "numbers"), NUMBERS, ids=[f"{name}-{stage + 1}" for name, stage, _ in NUMBERS]
)
def test_a_recipe_holds_the_numbers_of_its_paper(name: str, stage: int, numbers: dict[str, Any]) -> None:
    config = RECIPES.get(name).build("rows").stages[stage]
    assert {key: at(config, key) for key in numbers} == numbers


def test_every_recipe_has_numbers_to_hold() -> None:
    assert {name for name, _, _ in NUMBERS} | {"realalign_gated_sd15", "realalign_gated_sd35m"} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_says_where_it_comes_from(name: str) -> None:
    for config, stage in zip(
        RECIPES.get(name).build("rows").stages, setting_sources(RECIPES.get(name).build), strict=True
    ):
        unmarked = [one.key for one in stage if not (MARK.match(one.source) or one.source == "default")]
        assert unmarked in (["model", "data", "objective"], ["model", "data"])
        assert get_objective(config.objective).bind(config.settings)


def test_sources_are_those_of_the_changed_setting_and_of_its_stage() -> None:
    fit, compare = setting_sources(RECIPES.get("inpo_sd15").build)
    assert {one.key: one.source for one in fit}["num_steps"] == "[not stated]"
    assert {one.key: (one.value, one.source) for one in compare}["settings.beta"] == (2000.0, "[code]")
    assert {one.key: one.source for one in compare}["optimizer.eps"] == "default"


def test_the_example_of_sources_runs() -> None:
    assert doctest.testmod(diffalign.recipes.sources) == (0, 2)


@pytest.mark.parametrize("name", RECIPES)
def test_models_and_data_have_licences(name: str) -> None:
    made = RECIPES.get(name)
    assert made.base is BASE_MODELS[made.model] and made.base.licence
    assert all(DATA_SETS[source].licence for source in made.sources) and made.compute and made.data
    assert made.rows == ("candidate sets" if made.objectives[0] in ("rank_dpo", "lambda_listwise") else "pairs")


@pytest.mark.parametrize("name", TWINS)
def test_tiny_twin_trains(name: str, pairs: Path, sets: Path, cache: Path, tmp_path: Path) -> None:
    made = RECIPES.get(name)
    data = sets if made.rows == "candidate sets" else pairs
    plan = tiny_twin(made.build(str(data)), model=made.twin)
    for objective, stage in zip(made.objectives, run_twin(plan, tmp_path / "run", cache), strict=True):
        assert len(stage) == 2 and all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in stage)
        if objective in FROM_LOG_2:
            assert stage[0]["loss"] == pytest.approx(LOG_2, abs=1e-5), "the policy begins at its reference"


def test_on_a_flow_grpo_lora_both_stages_begin_at_what_came_before(pairs: Path, cache: Path, tmp_path: Path) -> None:
    plan = tiny_twin(RECIPES.get("realalign_on_flow_grpo_sd35m").build(str(pairs)), model="tiny-sd3")
    with pytest.raises(DiffalignError, match="there is no flow-grpo-pickscore"):
        run_plan(plan, tmp_path / "without")
    fit = {"objective": "sft", "settings": {}, "samples": None, "ema": None, "reference": "start", "start": ""}
    tuned = plan.stages[0].replace(**fit)
    lora = train(tuned, tmp_path / "flow-grpo", cache=cache)
    plan = plan.replace(stages=(plan.stages[0].replace(start=str(lora)), plan.stages[1]))
    first, second = run_twin(plan, tmp_path / "run", cache)
    assert first[0]["chosen_excess"] == pytest.approx(0, abs=1e-6), "the reference is the LoRA, not the base"
    assert second[0]["loss"] == pytest.approx(LOG_2, abs=1e-5)


def test_on_a_diffusion_dpo_model_the_reference_is_that_model(pairs: Path, tmp_path: Path) -> None:
    family = load_family("tiny-sd")
    for parameter in family.denoiser.parameters():
        parameter.data.mul_(1.01)
    pipeline = StableDiffusionPipeline.from_pretrained(embedded_path("tiny-sd"), unet=family.denoiser)
    pipeline.save_pretrained(tmp_path / "sd15-dpo")
    plan = tiny_twin(realalign_on_dpo_sd15(str(pairs)), model=str(tmp_path / "sd15-dpo"), num_steps=1)
    run_plan(plan, tmp_path / "run")
    first, second = (metrics(tmp_path / "run" / stage) for stage in ("stage1", "stage2"))
    assert first[0]["chosen_excess"] == pytest.approx(0, abs=1e-6)
    assert second[0]["loss"] == pytest.approx(LOG_2, abs=1e-5)


def test_the_documentation_names_every_recipe_and_licence() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    assert [name for name in RECIPES if f"`{name}`" not in page] == []
    known = {(one.name, one.licence) for one in BASE_MODELS.values()} | {("RealAlign", "CC-BY-NC-4.0")}
    told = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in page.splitlines() if line[:1] == "|"}
    assert known - told == {(BASE_MODELS["sd15-dpo"].name, BASE_MODELS["sd15-dpo"].licence)}
    assert {(one.name, one.licence) for one in DATA_SETS.values() if not one.name.startswith("Pick-a-Pic")} <= told
