"""A sweep's folder to its results: runs that do not fit, scores made once, roles, and the verb."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluate_helpers import write_run
from PIL import Image

from diffalign.core import DiffalignError, read_json, read_jsonl, write_json, write_jsonl
from diffalign.evaluate import compare, compared_models, measure_sweep, read_images, read_scores

GUIDE = {"name": "cpgd", "positive": "aa", "negative": "bb"}
STRENGTHS = (0.0, 1.0, 2.5)
KEYS = [(f"p{prompt}", seed) for prompt in range(6) for seed in (0, 1)]


def level_features(paths: Sequence[Path]) -> np.ndarray:
    """Two numbers whose angle is the grey level, so that images of one prompt differ by their levels."""
    angles = [np.asarray(Image.open(path)).mean() / 100 for path in paths]
    return np.array([[np.cos(one), np.sin(one)] for one in angles])


@pytest.fixture
def own_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Rewards ``my_levels:level`` and ``my_levels:dark``; gives the number of images scored so far."""
    (tmp_path / "my_levels.py").write_text(
        "seen = []\n"
        "def level(images, prompts):\n"
        "    seen.extend(images)\n"
        "    return [float(one.getpixel((0, 0))[0]) for one in images]\n"
        "def dark(images, prompts):\n"
        "    return [-value for value in level(images, prompts)]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_levels", raising=False)
    return lambda: len(sys.modules["my_levels"].seen)


def write_sweep(folder: Path, levels: Callable[[int, int, float], int | None]) -> Path:
    """A sweep of grey images: (number of the prompt, seed, strength) -> level."""
    names = [f"scale-{each:g}" for each in STRENGTHS]
    for name, strength in zip(names, STRENGTHS, strict=True):
        images = {key: levels(int(key[0][1:]), key[1], strength) for key in KEYS}
        write_run(folder / name, images, guide={**GUIDE, "scale": strength})
        rows = [{**row, "model": "m"} for row in read_jsonl(folder / name / "manifest.jsonl")]
        write_jsonl(folder / name / "manifest.jsonl", rows)
    table = {
        "axis": "scale",
        "strengths": list(STRENGTHS),
        "folders": names,
        "guide": GUIDE,
        "settings": {"model": "m"},
    }
    write_json(folder / "sweep.json", table)
    return folder


def brighter(prompt: int, seed: int, strength: float) -> int:
    """Brighter with strength, and ever more alike."""
    return int(60 + 5 * prompt + 10 * strength + seed * (20 - 4 * strength))


def test_from_a_folder_to_a_choice(tmp_path: Path, own_rewards: Callable[[], int]) -> None:
    """Seeds differ by 20, 16 and 10 levels, so with 0.6 strength 1 is diverse enough (about 0.64) and 2.5 is not."""
    folder, metrics = write_sweep(tmp_path / "sweep", brighter), ["my_levels:level", "my_levels:dark"]
    options: dict[str, Any] = {"choose_by": metrics[0], "held_out": [metrics[1]], "features": level_features}
    found = measure_sweep(folder, metrics, min_diversity=0.6, **options)
    assert found == json.loads(json.dumps(found)) and found["chosen"] == 1.0
    assert [row["in_choice"] for row in found["validation"]] == [True, True, False]
    assert own_rewards() == 2 * 3 * len(KEYS)
    gains = {row["metric"]: row["mean"] for row in found["differences"]}
    assert gains[metrics[0]] == pytest.approx(8) and gains[metrics[1]] == pytest.approx(-8) and gains["diversity"] < 0
    assert found["roles"] == {metrics[0]: "in-training", metrics[1]: "held-out", "diversity": "in-training"}
    assert {row.role for row in read_scores(folder / "scale-1") if row.name == metrics[0]} == {"in-training"}
    assert read_scores(folder / "scale-1")[0].guide == {**GUIDE, "scale": 1.0}
    sides = compared_models(folder / "scale-1", folder / "scale-0")
    assert sides["a"]["guide"] == {**GUIDE, "scale": 1.0} and sides["b"]["guide"] == {**GUIDE, "scale": 0.0}
    assert compare(folder / "scale-1", folder / "scale-0")[0].mean_a == pytest.approx(60 + 12.5 + 18)
    again = measure_sweep(folder, metrics, min_diversity=0.0, **options)
    assert again["chosen"] == 2.5 and own_rewards() == 2 * 3 * len(KEYS)  # nothing is scored twice


def test_failed_images_are_counted_and_the_others_compared(tmp_path: Path, own_rewards: Callable[[], int]) -> None:
    folder = write_sweep(
        tmp_path / "sweep", lambda prompt, seed, strength: None if (prompt, seed, strength) == (2, 1, 2.5) else 90
    )
    (folder / "scale-0" / "images" / "p1-0.png").write_bytes(b"broken")
    found = measure_sweep(folder, ["my_levels:level"], features=level_features)
    assert found["num_failed"] == {"my_levels:level": [1, 0, 1]} and found["chosen"] == 0.0  # all alike: the weakest
    assert sum(each["num_images"] for each in found["models"].values()) >= 3 * 6 - 2


@pytest.mark.parametrize("alive", [0, 1])
def test_a_strength_that_breaks_images_decides_nothing(
    tmp_path: Path, own_rewards: Callable[[], int], alive: int
) -> None:
    """At 2.5 the images of the first prompts alone are there: diversity of the others is over all prompts still."""
    whole = measure_sweep(write_sweep(tmp_path / "whole", brighter), ["my_levels:level"], features=level_features)
    folder = write_sweep(
        tmp_path / "sweep",
        lambda prompt, seed, strength: brighter(prompt, seed, strength) if strength < 2 or prompt < alive else None,
    )
    found = measure_sweep(folder, ["my_levels:level"], features=level_features, min_diversity=0.6)
    assert found["chosen"] == 1.0 and found["left_out"] == [2.5] and "left out of the choice" in found["alarms"][0]
    for name in ("scale 0", "scale 1"):
        assert found["models"][name] == whole["models"][name]
    assert [row["diversity"] for row in found["validation"][:2]] == [
        row["diversity"] for row in whole["validation"][:2]
    ]


def test_a_weakest_strength_without_images_is_refused(tmp_path: Path, own_rewards: Callable[[], int]) -> None:
    folder = write_sweep(tmp_path / "sweep", lambda prompt, seed, strength: 90 if strength else None)
    with pytest.raises(DiffalignError, match="scale-0 has no image that is whole"):
        measure_sweep(folder, ["my_levels:level"], features=level_features)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("scale-1", {"num_steps": 99}, "scale-1 is not what .*sweep.json says: num_steps of prompt 'p0', seed 0"),
        ("scale-1", {"guide": {**GUIDE, "scale": 2.0}}, "guide of prompt 'p0', seed 0 differs"),
        ("scale-1", {"seed": 7}, "other prompts or seeds"),
        ("scale-2.5", {"prompt": "another"}, "scale-2.5 .* prompt of prompt 'p0'"),
        ("scale-2.5", {"adapter": "x"}, "adapter of prompt"),
    ],
)
def test_runs_that_do_not_fit_are_refused(tmp_path: Path, file: str, change: dict[str, Any], message: str) -> None:
    folder = write_sweep(tmp_path / "sweep", brighter)
    rows = list(read_jsonl(folder / file / "manifest.jsonl"))
    write_jsonl(folder / file / "manifest.jsonl", [rows[0] | change, *rows[1:]])
    with pytest.raises(DiffalignError, match=message):
        measure_sweep(folder, ["luminance"])


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        (["tiny-clip", "saturation"], {}, "--choose-by to say which"),
        (["tiny-clip"], {"choose_by": "tiny-clib"}, "nearest: tiny-clip"),
        (["tiny-clip", "saturation"], {"choose_by": "tiny-clip", "held_out": ["tiny-clip"]}, "is not held out"),
        (["tiny-clib"], {}, "nearest: tiny-clip"),
        (["tiny-clip"], {"min_diversity": 1.5}, "from 0 to 1"),
        (["tiny-clip"], {"validation_share": 1.0}, "below 1"),
        (["luminance"], {}, "luminance has no better direction"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, rewards: list[str], options: dict[str, Any], message: str) -> None:
    folder = write_sweep(tmp_path / "sweep", brighter)
    with pytest.raises(DiffalignError, match=message):
        measure_sweep(folder, rewards, features=level_features, **options)
    assert rewards == ["luminance"] or not (folder / "scale-0" / "scores.jsonl").exists()


def test_a_sweep_is_no_folder_of_images(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", brighter)
    with pytest.raises(DiffalignError, match="score all with diffalign sweep"):
        read_images(folder)
    (folder / "scale-1" / "manifest.jsonl").unlink()
    with pytest.raises(DiffalignError, match="scale-1 of 3 runs are not finished"):
        measure_sweep(folder, ["tiny-clip"])
    assert read_json(folder / "sweep.json")["axis"] == "scale"
