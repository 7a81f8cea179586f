"""diffalign sample: the plan, images from the command line, and its own config run again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from diffalign.cli import main
from diffalign.sample import SampleConfig

TINY = ("--model", "tiny-sd", "--prompts", "prompts.txt", "--steps", "2", "--guidance", "3")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run the verb in a folder with prompts.txt: arguments -> (exit code, stdout, stderr)."""
    (tmp_path / "prompts.txt").write_text("a photo of grass\na photo of the moon\na photo of bricks\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diffalign", "sample", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


def test_dry_run_prints_the_plan_and_makes_nothing(sample: Run, tmp_path: Path) -> None:
    code, out, err = sample(*TINY, "--seeds", "4", "--size", "16x24", "--limit", "2", "--dry-run")
    assert code == 0, err
    assert "8: 2 prompts x 4 seeds, 16 x 24 pixels each" in out and "32 in all" in out
    assert [entry.name for entry in tmp_path.iterdir()] == ["prompts.txt"]


def test_it_samples_and_its_own_config_runs_again(sample: Run, tmp_path: Path) -> None:
    code, _, err = sample(*TINY, "--seeds", "2", "--set", "solver=ddim", "--out", "first")
    assert code == 0 and "images: first/manifest.jsonl" in err, err
    rows = [json.loads(line) for line in (tmp_path / "first" / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and {row["sampler"] for row in rows} == {"ddim"} and {row["num_steps"] for row in rows} == {2}
    assert all((tmp_path / "first" / row["file"]).is_file() for row in rows)
    code, _, err = sample("first/config.yaml", "--out", "second")
    assert code == 0, err
    assert (tmp_path / "first" / "manifest.jsonl").read_bytes() == (tmp_path / "second" / "manifest.jsonl").read_bytes()


def test_mistakes_are_told_in_a_line(sample: Run) -> None:
    for arguments, words in (
        (("--model", "tiny-sd"), "--prompts"),
        ((*TINY, "--size", "12cm"), "768x512"),
        ((*TINY, "--seeds", "0"), "num_seeds"),
    ):
        code, _, err = sample(*arguments)
        assert code == 2 and words in err


def test_help_has_an_example_and_the_defaults(sample: Run) -> None:
    code, out, _ = sample("--help")
    text = " ".join(out.split())
    assert code == 0 and "diffalign sample --model tiny-sd --prompts photographs" in text
    for option, name in (("seeds", "num_seeds"), ("steps", "num_steps"), ("guidance", "guidance_scale")):
        default = SampleConfig.model_fields[name].default
        assert f"; {default} by default" in text.partition(f"--{option} <")[2].partition(" --")[0]
