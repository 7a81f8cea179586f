"""The demo, shortened: every part runs, goes on after an interruption, and its results have their form."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import diffalign.recipes.demo as demo
from curate.curate_helpers import hostile_folder, picture, png
from diffalign.core import DiffalignError
from diffalign.data import Preferences
from diffalign.recipes.demo import MODELS, DemoConfig, evaluation_prompts, run_demo, trainings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHORT = DemoConfig(
    num_photos=28,
    num_pairs=16,
    min_gap=0.0,
    num_fit_steps=2,
    num_pair_steps=2,
    batch_size=8,
    num_prompts=10,
    num_steps=2,
    shown_scales=(0.0, 2.0),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Interrupted before the measuring, then gone on with."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "measure_models", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_demo(SHORT, folder)
    return folder, run_demo(SHORT, folder)


def test_results_have_their_form(run: tuple[Path, dict[str, Any]]) -> None:
    folder, results = run
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert tuple(results["models"]) == MODELS
    for measured in results["models"].values():
        assert measured["num_images"] == 20
        for metric in ("kid", "realism", "detail", "subject_accuracy", "diversity"):
            numbers = measured[metric]
            assert numbers["low"] <= numbers["mean"] <= numbers["high"] and numbers["num_missing"] == 0
    found = {(row["model"], row["baseline"], row["metric"]) for row in results["differences"]}
    assert ("stage2", "base", "kid") in found and ("stage2", "sft", "realism") in found
    assert {row["metric"] for row in results["win_rates"]} >= {"realism", "detail"}
    assert results["roles"]["realism"] == results["roles"]["kid"] == "held-out"
    assert results["roles"]["choice"] == "in-training"
    assert results["seconds"] == pytest.approx(sum(results["parts"].values())) and results["versions"]["torch"]


def test_the_report_is_one_page_without_network(run: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = run
    page = (folder / "report.html").read_text()
    headings = ("Preference pairs", "The same prompts and noise", "Results", "Realism against texture detail",
                "Quality against guidance strength", "Training", "Alarms", "Configuration and versions")  # fmt: skip
    for heading in headings:
        assert f">{heading}<" in page, heading
    assert "Under realism, Stage 1 + 2 is" in page
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page)


def test_every_model_is_shown_the_same_noise(run: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = run
    manifests = {
        name: [json.loads(line) for line in (folder / "samples" / name / "manifest.jsonl").read_text().splitlines()]
        for name in MODELS
    }
    keys = {name: [(row["prompt_id"], row["seed"]) for row in rows] for name, rows in manifests.items()}
    assert all(one == keys["base"] for one in keys.values())
    images = {name: [row["sha256"] for row in rows] for name, rows in manifests.items()}
    assert all(one != images["base"] for name, one in images.items() if name != "base")


def test_strength_0_is_the_base(run: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = run
    rows = {
        where: {
            (row["prompt_id"], row["seed"]): row["sha256"]
            for row in map(json.loads, (folder / where / "manifest.jsonl").read_text().splitlines())
        }
        for where in ("strengths/0", "samples/base")
    }
    assert rows["strengths/0"].items() <= rows["samples/base"].items()


def test_pairs_are_masked_and_scored(run: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = run
    pairs = list(Preferences(folder / "pairs"))
    assert len(pairs) == 16
    for pair in pairs:
        assert pair.mask is not None and pair.provenance.method == "inpaint" and len(pair.scores) == 1


def test_controls_share_images_and_steps_and_stage_2_follows_stage_1(tmp_path: Path) -> None:
    plans = trainings(DemoConfig(), tmp_path / "pairs", tmp_path)
    assert list(plans).index("stage1") < list(plans).index("stage2")
    assert plans["stage2"].start.endswith("stage1/policy") and plans["dpo"].start == ""
    for name in ("negative", "stage1"):
        one = plans[name].replace(objective="sft", settings={})
        assert one == plans["sft"]
    assert plans["dpo"].replace(start=plans["stage2"].start) == plans["stage2"]


def test_evaluation_prompts_leave_some_for_validation(tmp_path: Path) -> None:
    prompts = evaluation_prompts(DemoConfig(), tmp_path)
    assert len({row.id for row in prompts}) == 64


def test_too_few_pairs_are_told(tmp_path: Path) -> None:
    with pytest.raises(DiffalignError, match="pairs are left after curation, fewer than a batch of 16"):
        run_demo(SHORT.replace(num_photos=8, batch_size=16), tmp_path / "run")


def test_a_hostile_folder_of_ones_own_photographs_ends_in_a_report(tmp_path: Path) -> None:
    photos = hostile_folder(tmp_path / "photos")
    for number in range(20, 40):
        (photos / f"{number}.png").write_bytes(png(picture(number)))
        (photos / f"{number}.txt").write_text(f"<b>photo</b> {number}<script>alert(1)</script>")
    config = SHORT.replace(photos=str(photos), num_photos=0, batch_size=4, num_seeds=2)
    results = run_demo(config, tmp_path / "run")
    assert "kid" not in results["models"]["base"] and results["roles"]["diversity"] == "held-out"
    dropped = results["funnel"]["dropped"]["read"]
    assert dropped["too_large"] == dropped["truncated"] == 1 and dropped["outside"] == 2
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No photographs were held out" in page and "<script>alert" not in page and "photo 2" in page


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_reads_well_in_a_browser_of_a_phones_width(run: tuple[Path, dict[str, Any]], scheme: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    folder, _ = run
    troubles: list[str] = []
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto((folder / "report.html").as_uri())
        assert page.locator("h1").inner_text() == "Aligned with real photographs"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        broken = page.locator("main img").evaluate_all(
            "async all => (await Promise.all(all.map(e => e.decode().then(() => e.naturalWidth, () => 0))))"
            ".filter(width => width === 0).length"
        )
        assert broken == 0 and page.locator("main img").count() > 20
        browser.close()
    assert troubles == []
