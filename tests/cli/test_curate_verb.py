"""``diffalign curate`` from the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffalign.cli import main
from diffalign.core import numpy_generator, write_json
from diffalign.curate import DEGRADATIONS, LOCATORS, work
from diffalign.data import Preferences, draw_crop

Run = Callable[..., tuple[int, str, str]]
CHEAP = ("--degrade", "jpeg", "--set", "degrade.severity=0.9", "--set", "audit=false", "--workers", "1")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line as a shell would: arguments -> (exit code, stdout, stderr)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diffalign", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


@pytest.fixture
def photos(tmp_path: Path) -> str:
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(5):
        crop = draw_crop("train", numpy_generator("verb", number), size=40)
        crop.image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(crop.caption)
    return str(folder)


def test_photographs_become_pairs_and_the_next_step_is_told(run: Run, photos: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    code, printed, told = run("curate", photos, out, *CHEAP, "--set", "keep.min_gap=0.0")
    assert code == 0 and re.search(r"photographs +5", printed) and f"diffalign inspect {out}" in told
    pairs = Preferences(tmp_path / "run" / "pairs")
    assert len(pairs) >= 1 and pairs[0].provenance.method == "jpeg"
    write_json(tmp_path / "marks.json", {"reject": pairs.ids()})
    marks = str(tmp_path / "marks.json")
    code, printed, told = run("curate", photos, out, *CHEAP, "--set", "keep.min_gap=0.0", "--review", marks)
    assert code == 0 and f"{len(pairs)} rejected by hand" in printed and "no pair is left" in told


def test_a_dry_run_writes_nothing_and_tells_what_it_takes(run: Run, photos: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, printed, _ = run("curate", photos, str(tmp_path / "run"), "--dry-run", "--set", "degrade.num_steps=1",
                           "--set", "keep.keep=3", "--set", "select.min_scores={luminance: 0.1}")  # fmt: skip
    rows = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in printed.splitlines()[2:])
    assert code == 0 and rows["photographs"] == f"5 of {photos}"
    assert rows["degrade"] == "{'name': 'inpaint', 'num_steps': 1} with tiny-sd" and rows["score"] == "tiny-clip"
    assert rows["select"] == "contrast of at least 0.01, no near duplicates, luminance of at least 0.1"
    assert rows["keep"] == "gap above 0.52, best 3 by score" and "engine local" in rows["runs on"]
    assert re.fullmatch(r"[\d.]+ .?B for each worker", rows["memory"])
    assert rows["disk"] == "at most 71.7 kB"  # 5 pairs of 2 x 3 + 1 bytes for each of 32 x 32 pixels, twice
    assert re.match(r"about .* from 4 photographs timed on one worker", rows["time"])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_without_the_weights_tells_all_that_lacks(
    run: Run, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    code, printed, _ = run("curate", photos, str(tmp_path / "run"), "--recipe", "realalign", "--dry-run")
    assert code == 0 and "best 512 by score" in printed
    for what, missing in {
        "locate": "no file u2net.onnx",
        "degrade": "stable-diffusion-v1-5/stable-diffusion-inpainting",
        "rewards": "hf download yuvalkirstain/PickScore_v1",
        "select.photographic": "hf download Qwen/Qwen3-VL-8B-Instruct",
    }.items():
        (line,) = (line for line in printed.splitlines() if line.startswith(f"missing for {what} "))
        assert missing in line
    assert "unknown until these are here" in printed and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--degrade", "jpgg"], "unknown degradation 'jpgg'; nearest: jpeg"),
        (["--locate", "saliency"], "unknown locator 'saliency'; nearest: "),
        (["--recipe", "realaling"], "unknown recipe of curation 'realaling'; nearest: realalign"),
        (["--set", "keep.mingap=1"], "keep.mingap"),
        (["--reward", "tiny-clap"], "nearest: tiny-clip"),
        (["--review", "nowhere.json"], "cannot read nowhere.json"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_mistakes_end_with_a_message_and_write_nothing(
    arguments: list[str], message: str, dry: bool, run: Run, photos: str, tmp_path: Path
) -> None:
    code, printed, told = run("curate", photos, str(tmp_path / "run"), *arguments, *["--dry-run"][: int(dry)])
    if dry and arguments[0] == "--reward":  # in the plan, as any model that is missing
        assert code == 0 and message in printed
    else:
        assert code == 2 and message in told and "Traceback" not in told
    assert not (tmp_path / "run").exists()


def test_ctrl_c_ends_with_one_line_and_the_same_command_goes_on(
    run: Run, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_pairs, calls = work.score_pairs, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score_pairs(*arguments)

    command = ("curate", photos, str(tmp_path / "run"), *CHEAP, "--set", "shard_size=2", "--set", "batch_size=2")
    with monkeypatch.context() as patch:
        patch.setattr(work, "score_pairs", interrupted)
        code, _, told = run(*command)
    assert code == 130 and told.splitlines()[-1] == "interrupted; what was finished is kept"
    assert len(list((tmp_path / "run" / "made").glob("0*"))) == 1
    assert run(*command)[0] == 0


def test_the_help_teaches(run: Run) -> None:
    code, printed, told = run("curate", "--help")
    text = " ".join((printed + told).split())
    assert code == 0
    for word in ("--dry-run", "--recipe realalign", "hub:user/dataset", "--review marks.json", "goes on", "ray"):
        assert word in text
    for name in re.findall(r"How to damage: (.*?), \.\.\.", text)[0].split(", "):
        assert name in DEGRADATIONS
    for name in re.findall(r"Where: (.*?), \.\.\.", text)[0].split(", "):
        assert name in LOCATORS
