"""The whole run: what comes out, interrupted or not, and what is refused."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curate_helpers import HOSTILE, hostile_folder
from PIL import Image

import diffalign.curate
from diffalign.core import DiffalignError, read_json, read_jsonl
from diffalign.curate import STAGES, CurateConfig, curate, make, pairs
from diffalign.data import Preferences, image_sha256
from diffalign.models import load_family


def config(**changes: Any) -> CurateConfig:
    base = CurateConfig(model="tiny-sd", count=7, num_steps=2, guidance_scale=2.0, batch_size=3, min_gap=0.2)
    return base.replace(**changes)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards of the seven crops."""
    monkeypatch.setattr(pairs, "_SHARD_PHOTOS", 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("curate") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_SHARD_PHOTOS", 3)
        curate(config(), folder)
    return folder


def results(folder: Path) -> dict[str, bytes]:
    files = [*(folder / "pairs").glob("*.parquet"), folder / "rejected.jsonl", folder / "funnel.json"]
    return {file.name: file.read_bytes() for file in sorted(files)}


def test_pairs_differ_inside_the_mask_alone_and_lead_by_the_gap(whole: Path) -> None:
    found = Preferences(whole / "pairs")
    assert 1 <= len(found) < 7
    for pair in found:
        assert pair.mask is not None and pair.label == 1
        outside = np.asarray(pair.mask) == 0
        changed = (np.asarray(pair.chosen) != np.asarray(pair.rejected)).any(axis=2)
        assert not changed[outside].any() and changed[~outside].mean() > 0.5
        assert 0.15 <= 1 - outside.mean() <= 0.5 and pair.provenance.parameters["area"] == 1 - outside.mean()
        ((metric, (chosen, rejected)),) = pair.scores.items()
        assert metric.startswith("tiny-clip@") and chosen - rejected > 0.2


def test_provenance_says_how_a_pair_was_made(whole: Path) -> None:
    pair = Preferences(whole / "pairs")[0]
    origin = pair.provenance
    assert origin.source.startswith("photographs/") and origin.license and origin.method == "inpaint"
    assert (
        origin.sha256 == (image_sha256(pair.chosen), image_sha256(pair.rejected)) and pair.id == origin.sha256[0][:16]
    )
    assert origin.model_revision == load_family("tiny-sd").revision
    assert origin.parameters["num_steps"] == 2 and origin.parameters["solver"] == "dpm++"


def test_provenance_is_enough_to_make_a_pair_again(whole: Path) -> None:
    pair = Preferences(whole / "pairs")[0]
    family = load_family("tiny-sd")
    drawn = diffalign.curate.inpaint(
        family, [pair.chosen], [pair.mask], [pair.prompt], seeds=[pair.provenance.seed], num_steps=2, guidance_scale=2.0
    )
    again = np.asarray(diffalign.curate.composite(pair.chosen, drawn[0], pair.mask), dtype=int)
    assert np.abs(again - np.asarray(pair.rejected)).max() <= 1


def test_the_funnel_adds_up(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    funnel = curate(config(), whole)
    rejected = list(read_jsonl(whole / "rejected.jsonl"))
    assert funnel.photos == 7 == funnel.kept + len(rejected) and funnel.kept == len(Preferences(whole / "pairs"))
    assert sum(sum(reasons.values()) for reasons in funnel.dropped.values()) == len(rejected)
    assert read_json(whole / "funnel.json")["passed"] == dict(funnel.passed)
    assert all(row["stage"] in STAGES and row["reason"] and row["name"] for row in rejected)
    assert f"{len(rejected)} gap too small" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["second shard", "scoring", "selection", "last file"])
def test_interrupted_and_continued_is_never_interrupted(
    place: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, call = {
        "second shard": ("make_pairs", 1),
        "selection": ("select_pairs", 0),
        "last file": ("write_json", 0),
        "scoring": ("score", 2),
    }[place]
    module: Any = make if name == "score" else pairs
    function, calls = getattr(module, name), iter(range(100))

    def interrupted(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            curate(config(), tmp_path / "run")
    done = len(list((tmp_path / "run" / "shards").glob("0*")))
    assert done == {"second shard": 1, "scoring": 2}.get(place, 3)
    curate(config(), tmp_path / "run")
    assert results(tmp_path / "run") == results(whole)


def test_the_best_few_of_them(whole: Path, tmp_path: Path) -> None:
    curate(config(keep=1), tmp_path / "run")
    (only,), others = Preferences(tmp_path / "run" / "pairs"), Preferences(whole / "pairs")
    (metric,) = only.scores
    assert only.scores[metric][0] == max(pair.scores[metric][0] for pair in others)
    reasons = [row["reason"] for row in read_jsonl(tmp_path / "run" / "rejected.jsonl")]
    assert reasons.count("not among the best") == len(others) - 1


def test_a_hostile_folder_is_sorted_out(tmp_path: Path) -> None:
    folder = hostile_folder(tmp_path / "album")
    Image.new("RGB", (40, 40), "navy").save(folder / "tabby_cat" / "flat.png")
    funnel = curate(config(photos=str(folder), count=0, min_gap=0.0), tmp_path / "run")
    rejected = {row["name"].removeprefix("album/"): row for row in read_jsonl(tmp_path / "run" / "rejected.jsonl")}
    assert funnel.photos == len(HOSTILE) + 1 and funnel.captions_cleaned == 1
    read = {name: row["reason"] for name, row in rejected.items() if row["stage"] == "read"}
    expected = {name: reason for name, reason in HOSTILE.items() if reason} | {"tabby_cat/again.png": "repeated"}
    assert read == expected and sum(funnel.dropped["read"].values()) == len(expected)
    assert rejected["tabby_cat/flat.png"]["reason"] == "flat" and funnel.dropped["locate"] == {"flat": 1}
    assert funnel.kept == len(Preferences(tmp_path / "run" / "pairs")) == funnel.photos - len(rejected) >= 1


def test_what_has_no_image_or_no_score_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inpaint = make.inpaint
    monkeypatch.setattr(make, "inpaint", lambda *args, **options: [None, *inpaint(*args, **options)[1:]])
    monkeypatch.setattr(pairs, "_SHARD_PHOTOS", 7)
    funnel = curate(config(reward="curate_helpers:nan_for_flowers", num_steps=1, min_gap=0.0), tmp_path / "run")
    rows = list(read_jsonl(tmp_path / "run" / "rejected.jsonl"))
    without = [row for row in rows if row["stage"] == "score"]
    assert funnel.dropped["inpaint"] == {"not finite": 1} and funnel.dropped["score"] == {"no score": len(without)}
    assert without and all("flower" in row["name"] and "nan" in row["detail"] for row in without)


def test_no_pair_left_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert curate(config(count=2, min_gap=1e6), tmp_path / "run").kept == 0
    assert "no pair is left" in capsys.readouterr().err


def test_a_folder_of_another_run_is_refused(whole: Path, tmp_path: Path) -> None:
    before = results(whole)
    with pytest.raises(DiffalignError, match=r"min_gap: 0\.2 there, 0\.3 now"):
        curate(config(min_gap=0.3), whole)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(DiffalignError, match="holds something else than a run"):
        curate(config(), tmp_path)
    assert results(whole) == before


def test_photographs_that_changed_are_another_run(tmp_path: Path) -> None:
    (tmp_path / "album" / "cats").mkdir(parents=True)
    path = tmp_path / "album" / "cats" / "1.png"
    Image.effect_noise((40, 40), 60).save(path)
    wanted = config(photos=str(tmp_path / "album"), count=0, num_steps=1)
    curate(wanted, tmp_path / "run")
    Image.effect_noise((41, 41), 90).save(path)
    with pytest.raises(DiffalignError, match="another key"):
        curate(wanted, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "expected a count"),
        ({"min_area": 0.6}, "0 < least <= largest < 1"),
        ({"size": 33}, "in multiples of 2"),
        ({"reward": "luminance"}, "sees no damage"),
        ({"reward": "tiny-clap"}, "nearest: tiny-clip"),
        ({"model": "tiny-sd3"}, "cannot inpaint"),
        ({"photos": "nowhere"}, "found none at nowhere"),
        ({"photos": "."}, "outside the photographs"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    changes: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DiffalignError, match=message):
        curate(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(diffalign.curate.__path__)])
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"diffalign.curate.{name}")).failed == 0
