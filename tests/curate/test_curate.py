"""The whole run: what comes out, interrupted or not, and what is refused."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffalign.curate
from diffalign.core import DiffalignError, read_json, read_jsonl, write_json
from diffalign.curate import (
    STAGES,
    CurateConfig,
    KeepConfig,
    SelectConfig,
    composite,
    curate,
    inpaint,
    mask_of,
    pairs,
    read_audit,
    work,
)
from diffalign.data import Preferences, image_sha256
from diffalign.models import load_family

STEPS = {"num_steps": 2, "guidance_scale": 2.0}


def config(**changes: Any) -> CurateConfig:
    """Seven crops in three shards."""
    base = CurateConfig(
        model="tiny-sd",
        count=7,
        degrade={"name": "inpaint", **STEPS},
        keep=KeepConfig(min_gap=0.2),
        batch_size=3,
        shard_size=3,
        audit=False,
    )
    return base.replace(**changes)


def results(folder: Path) -> dict[str, bytes]:
    """What must not depend on how the run went."""
    names = ("rejected.jsonl", "funnel.json", "audit.json")
    files = [*(folder / "pairs").glob("*.parquet"), *(folder / name for name in names if (folder / name).exists())]
    return {file.name: file.read_bytes() for file in sorted(files)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("curate") / "whole"
    curate(config(), folder)
    return folder


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
    assert origin.sha256 == (image_sha256(pair.chosen), image_sha256(pair.rejected))
    assert pair.id == origin.sha256[0][:16]
    assert origin.model_revision == load_family("tiny-sd").revision
    assert origin.parameters["num_steps"] == 2 and origin.parameters["solver"] == "dpm++"
    assert origin.parameters["locate"] == {"name": "colour_saliency", "area": [0.15, 0.5], "model_revision": ""}


def test_provenance_is_enough_to_make_a_pair_again(whole: Path) -> None:
    pair = Preferences(whole / "pairs")[0]
    mask = mask_of(diffalign.curate.colour_saliency(pair.chosen), area=(0.15, 0.5))
    assert mask.tobytes() == pair.mask.tobytes()
    family = load_family("tiny-sd")
    drawn = inpaint(family, [pair.chosen], [mask], [pair.prompt], seeds=[pair.provenance.seed], **STEPS)[0]
    assert drawn is not None
    again = np.asarray(composite(pair.chosen, drawn, mask), dtype=int)
    assert np.abs(again - np.asarray(pair.rejected)).max() <= 1


def test_the_funnel_adds_up(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    funnel = curate(config(), whole)
    rejected = list(read_jsonl(whole / "rejected.jsonl"))
    assert funnel.photos == 7 == funnel.kept + len(rejected) and funnel.kept == len(Preferences(whole / "pairs"))
    assert sum(sum(reasons.values()) for reasons in funnel.dropped.values()) == len(rejected)
    assert read_json(whole / "funnel.json")["passed"] == dict(funnel.passed)
    assert all(row["stage"] in STAGES and row["reason"] and row["detail"] and row["name"] for row in rejected)
    assert all(row["statistics"]["contrast"] > 0 and len(row["fingerprint"]) == 16 for row in rejected)
    assert f"{len(rejected)} gap too small" in capsys.readouterr().out


PLACES: dict[str, tuple[Any, str, int]] = {  # where a run stops, at which call
    "the second shard is looked at": (work, "select_photos", 1),
    "duplicates": (pairs, "drop_repeated", 0),
    "the second shard is made": (work, "degrade_regions", 1),
    "scoring": (work, "score_pairs", 2),
    "selection": (pairs, "select_pairs", 0),
    "writing": (pairs, "write_jsonl", 0),
    "the last file": (pairs, "write_json", 1),
}


@pytest.mark.parametrize("place", PLACES)
def test_interrupted_and_continued_is_never_interrupted(
    place: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, call = PLACES[place]
    function, calls = getattr(module, name), iter(range(100))

    def interrupted(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            curate(config(), tmp_path / "run")
    done = len(list((tmp_path / "run" / "looked").glob("0*"))), len(list((tmp_path / "run" / "made").glob("0*")))
    looked, made = {"the second shard is looked at": (1, 0), "duplicates": (3, 0)}.get(place, (3, 3))
    assert done == {"the second shard is made": (3, 1), "scoring": (3, 2)}.get(place, (looked, made))
    curate(config(), tmp_path / "run")
    assert results(tmp_path / "run") == results(whole)


def test_a_finished_run_is_not_done_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("worked again")

    for module, name in ((work, "select_photos"), (work, "degrade_regions"), (pairs, "select_pairs")):
        monkeypatch.setattr(module, name, never)
    assert curate(config(), whole).photos == 7


def test_the_audit_goes_with_the_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curate(config(count=3, audit=True), tmp_path / "run")
    audit = read_audit(tmp_path / "run")
    assert audit is not None and audit.num_pairs == len(Preferences(tmp_path / "run" / "pairs"))
    assert "pairs that differ outside the mask" in capsys.readouterr().out
    assert read_audit(tmp_path) is None


def test_what_draws_may_be_of_half_precision(whole: Path, tmp_path: Path) -> None:
    curate(config(precision="bfloat16", keep=KeepConfig(min_gap=0.0)), tmp_path / "run")
    ours = {pair.id: pair for pair in Preferences(tmp_path / "run" / "pairs")}
    for pair in Preferences(whole / "pairs"):
        if half := ours.get(pair.id):
            difference = np.abs(np.asarray(half.rejected, dtype=int) - np.asarray(pair.rejected))
            assert 0 < difference.mean() < 8  # of 255
    assert set(ours) & set(Preferences(whole / "pairs").ids())


def test_no_pair_left_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert curate(config(count=2, keep=KeepConfig(min_gap=1e6), audit=True), tmp_path / "run").kept == 0
    assert "no pair is left" in capsys.readouterr().err and not (tmp_path / "run" / "audit.json").exists()


def test_a_folder_of_another_run_is_refused(whole: Path, tmp_path: Path) -> None:
    before = results(whole)
    with pytest.raises(DiffalignError, match=r"keep\.min_gap: 0\.2 there, 0\.3 now"):
        curate(config(keep=KeepConfig(min_gap=0.3)), whole)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(DiffalignError, match="holds something else than a run"):
        curate(config(), tmp_path)
    assert results(whole) == before


def test_a_run_of_other_models_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config(count=2, degrade={"name": "jpeg"})
    curate(wanted, tmp_path / "run")
    inputs = read_json(tmp_path / "run" / "inputs.json")
    write_json(tmp_path / "run" / "inputs.json", inputs | {"models": ["others"]})
    with pytest.raises(DiffalignError, match=r"begun with other models \(files"):
        curate(wanted, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, r"expected a count.*\./photographs"),
        ({"min_area": 0.6}, "0 < least <= largest < 1"),
        ({"rewards": ("luminance",)}, "sees no damage"),
        ({"rewards": ("tiny-clap",)}, "nearest: tiny-clip"),
        ({"rewards": ()}, "at least one reward"),
        ({"rewards": ("tiny-clip", "tiny-clip")}, "each once"),
        ({"keep": KeepConfig(min_agreement=2)}, "min_agreement of at most 1"),
        ({"keep": KeepConfig(clusters=2, cluster_by="luminance")}, "expected keep.cluster_by to be a CLIP score"),
        ({"select": SelectConfig(photographic="luminance")}, "a reward that compares images with texts"),
        ({"select": SelectConfig(above_mean=("colourfull",))}, "nearest: colourfulness"),
        ({"model": "tiny-sdx"}, "neither a folder nor"),
        ({"degrade": {"name": "jpegg"}}, "nearest: jpeg"),
        ({"degrade": {"name": "jpeg", "severty": 1}}, "nearest: severity"),
        ({"locate": {"name": "colour_salience"}}, "nearest: colour_saliency"),
        ({"captioner": "nowhere/blip"}, "neither a folder nor"),
        ({"photos": "nowhere"}, "found none at nowhere"),
        ({"photos": "."}, "outside the photographs"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DiffalignError, match=message):
        curate(config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_all_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    wanted = config(locate={"name": "onnx_saliency", "weights": "nowhere.onnx"}, rewards=("tiny-clap",))
    with pytest.raises(DiffalignError, match=r"(?s)no file nowhere.onnx.*nearest: tiny-clip"):
        curate(wanted, tmp_path / "run")


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(diffalign.curate.__path__)])
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"diffalign.curate.{name}")).failed == 0
