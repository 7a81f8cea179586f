"""diffalign score and diffalign compare, from files to printed tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from evaluate_helpers import write_run

from diffalign.cli import main

LEVELS = {("cat", 0): 100, ("dog", 0): 120, ("hen", 0): 140, ("fox", 0): 160}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Arguments to (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diffalign", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return (left.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]

    return run


def line(printed: str, start: str) -> list[str]:
    return next(each for each in printed.splitlines() if each.startswith(start)).split()


def test_from_images_to_a_comparison(tmp_path: Path, run: Run) -> None:
    """Every image of A is 10 levels lighter; one of B failed, one is broken."""
    a = write_run(tmp_path / "a", {key: level + 10 for key, level in LEVELS.items()})
    b = write_run(tmp_path / "b", LEVELS | {("fox", 0): None, ("owl", 0): 50})  # type: ignore[operator]
    write_run(a, {key: level + 10 for key, level in LEVELS.items()} | {("owl", 0): 60})
    (b / "images" / "owl-0.png").write_bytes(b"broken")
    scoring = ("--reward", "luminance", "--reward", "tiny-clip", "--reward", "tiny-judge-realism")
    code, out, err = run("score", a, *scoring)
    assert code == 0 and "scores.jsonl" in err
    assert line(out, "luminance")[1:3] == ["undeclared", f"{(110 + 130 + 150 + 170 + 60) / 5 / 255:.4g}"]
    assert line(out, "luminance")[-3:] == ["5", "5", "none"] and line(out, "tiny-clip")[1] == "in-training"
    code, out, err = run("score", b, *scoring)
    assert "5       3       1 not generated, 1 error" in out and "1 of 5 images are not those of the manifest" in err
    code, out, err = run("compare", a, b, "--json", tmp_path / "rows.json")
    assert code == 0 and "Positive: A is better." in out and "a tie, half a win" in out
    assert line(out, "luminance")[4] == f"{10 / 255:+.4g}" and "100.0%" in out and "3/0/0" in out and "0, 2" in out
    assert line(out, "tiny-judge-realism")[1] == "held-out"
    assert "Smallest win rate that can be told from 50 %" in out and "luminance none" in out
    assert "positive means A is higher: luminance" in out and "ignored" not in out
    assert "Fewer than 10 prompts: intervals assume normal means of prompts; p is at least 0.25 with 3." in out
    found = json.loads((tmp_path / "rows.json").read_text())
    assert found["a"] == {"folder": str(a), "model": "a", "adapter": ""} and found["ignored"] == []
    assert found["positive"] == "A is better" and found["metrics"][0]["name"] == "luminance"
    assert found["metrics"][0]["num_missing_b"] == 2 and found["metrics"][2]["p_holm"] is not None


def test_the_summary_as_json(tmp_path: Path, run: Run) -> None:
    folder, out = write_run(tmp_path / "a", LEVELS), tmp_path / "scores"
    declared = ("--in-training", "saturation", "--held-out", "tiny-judge-realism")
    rewards = ("--reward", "saturation", "--reward", "tiny-judge-realism")
    code, _, _ = run("score", folder, *rewards, *declared, "--out", out, "--json", tmp_path / "summary.json")
    found = json.loads((tmp_path / "summary.json").read_text())
    summaries = found["metrics"]
    assert (
        code == 0
        and found["source"] == str(folder)
        and [each["role"] for each in summaries] == ["in-training", "held-out"]
    )
    assert summaries[0]["mean"]["mean"] == 0 and summaries[0]["counts"] == {"ok": 4} and (out / "scores.jsonl").exists()


def test_margins_and_settings_to_ignore(tmp_path: Path, run: Run) -> None:
    a = write_run(tmp_path / "a", {key: level + level // 40 for key, level in LEVELS.items()})
    b = write_run(tmp_path / "b", LEVELS, num_steps=50)
    for folder in (a, b):
        run("score", folder, "--reward", "tiny-judge-realism")
    code, _, err = run("compare", a, b)
    assert code == 2 and "num_steps: 10 in A, 50 in B" in err
    code, out, _ = run("compare", a, b, "--ignore", "num_steps", "--margin", "tiny-judge-realism=50")
    assert code == 0 and "A no worse than B by its margin: tiny-judge-realism yes." in out
    assert "ignored: num_steps (10 in A, 50 in B)" in out and "constant" not in out
    run("compare", a, b, "--ignore", "num_steps", "--json", tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text())["ignored"] == ["num_steps (10 in A, 50 in B)"]


def test_a_constant_difference_and_enough_prompts(tmp_path: Path, run: Run) -> None:
    levels = {(f"p{number}", 0): 100 + number for number in range(10)}
    folder = write_run(tmp_path / "a", levels)
    run("score", folder, "--reward", "luminance")
    code, out, _ = run("compare", folder, folder)
    assert code == 0 and line(out, "luminance")[4:6] == ["+0", "constant"] and "no interval: luminance." in out
    assert "Fewer than" not in out


def test_a_metric_that_fails_everywhere_is_an_error(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_broken.py").write_text("def score(images, prompts):\n    raise RuntimeError('no weights')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = write_run(tmp_path / "a", LEVELS | {("owl", 0): None})  # type: ignore[operator]
    code, out, err = run("score", folder, "--reward", "luminance", "--reward", "my_broken:score")
    assert code == 2 and "my_broken:score failed on every image, the first with error: RuntimeError: no weights" in err
    assert line(out, "luminance")[-5:] == ["5", "4", "1", "not", "generated"] and (folder / "scores.jsonl").exists()
    assert run("score", folder, "--reward", "saturation")[0] == 0  # what failed before is no mistake of now


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("score", "nowhere", "--reward", "luminance"), "there is no nowhere"),
        (("score", "{run}", "--reward", "luminanze"), "nearest: luminance"),
        (("score", "{run}", "--reward", "luminance", "--weights", "luminance"), "expected NAME=PATH"),
        (("score", "{run}", "--reward", "luminance", "--weights", "luminance=x"), "has no weights"),
        (("compare", "{run}", "{run}"), "run diffalign score on it first"),
        (("compare", "{run}", "{run}", "--margin", "luminance=x"), "expected a number as the margin of luminance"),
        (("compare", "{run}", "{run}", "--margin", "a=1", "--margin", "a=2"), "a is given twice"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path: Path, run: Run, arguments: tuple[str, ...], words: str) -> None:
    folder = write_run(tmp_path / "run", LEVELS)
    code, _, err = run(*(argument.format(run=folder) for argument in arguments))
    assert code == 2 and words in err and "Traceback" not in err
