"""diffalign recipes: the table of all, one whole, JSON, a name that is nearly right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from diffalign.cli import app
from diffalign.core import load_config
from diffalign.recipes import RECIPES
from diffalign.train import Plan


def diffalign(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["recipes", *arguments])


def test_the_table_names_every_recipe_its_paper_and_stages() -> None:
    done = diffalign()
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line for line in done.stdout.splitlines()[1:]}
    assert set(lines) == set(RECIPES)
    assert "arXiv 2605.19839" in lines["realalign_sd15"] and "diffusion_dro, diffusion_dpo" in lines["realalign_sd15"]
    assert "512 pairs" in lines["realalign_sd15"] and "16 A100" in lines["diffusion_dpo_sd15"]


def test_one_recipe_is_shown_with_sources_licences_and_commands() -> None:
    done = diffalign("realalign_sd15")
    assert done.exit_code == 0, done.output
    rows = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    assert ["1", "samples.refresh_every", "16", "[code] optimiser steps, so that a weak repulsion exists"] in [
        [*row[:3], row[3].strip()] for row in rows if len(row) == 4
    ]
    for said in ("CreativeML OpenRAIL-M", "CC-BY-NC-4.0", "read_realalign", "in two stages"):
        assert said in done.stdout
    assert "diffalign train realalign_sd15 --data ROWS --out runs/realalign_sd15" in done.stdout
    assert "--tiny --model tiny-sd " in done.stdout and "--start" not in done.stdout
    assert "--start LORA" in diffalign("realalign_on_flow_grpo_sd35m").stdout


def test_json_holds_the_plan_and_every_setting(tmp_path: Any) -> None:
    shown = json.loads(diffalign("inpo_sd15", "--json").stdout)
    (tmp_path / "plan.json").write_text(json.dumps(shown["plan"]))
    assert load_config(Plan, tmp_path / "plan.json") == RECIPES.get("inpo_sd15").build("DATA")
    assert {"key": "inversion.num_steps", "value": 10, "source": "[code]"} in shown["settings"][1]
    assert shown["model"]["licence"] == "CreativeML OpenRAIL-M" and shown["sources"][0]["licence"] == "not stated"
    listed = json.loads(diffalign("--json").stdout)
    assert [one["name"] for one in listed] == list(RECIPES)
    assert next(one for one in listed if one["name"] == "rank_dpo_sdxl")["rows"] == "candidate sets"


def test_a_base_model_without_a_family_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffalign.models as models

    monkeypatch.setattr(models, "families", {"StableDiffusionPipeline"})
    assert "no family for Stable Diffusion XL" in diffalign("mapo_sdxl").stdout
    assert "no family" not in diffalign("dspo_sd15").stdout


def test_a_misspelt_name_gives_the_nearest() -> None:
    from diffalign.core import DiffalignError

    with pytest.raises(DiffalignError, match="nearest: realalign_sd15"):
        RECIPES.get("realalign_sd51")
    done = diffalign("realalign_sd51")
    assert done.exit_code == 2 and "realalign_sd15" in done.output
