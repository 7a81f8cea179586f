"""diffalign generate-candidates and diffalign label, from the command line to printed tables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from diffalign.cli import main
from diffalign.core import load_config
from diffalign.data import LabelConfig, Preferences, PreferenceWriter
from diffalign.sample import CandidatesConfig, SampleConfig
from diffalign.types import CandidateSet, Pair

TINY = ("--model", "tiny-sd", "--prompts", "prompts.txt", "--steps", "1", "--guidance", "2")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a verb in a folder with prompts, pairs and sets: arguments -> (exit code, stdout, stderr)."""
    (tmp_path / "prompts.txt").write_text("a photo of grass\na photo of the moon\na photo of bricks\n")
    greys = [Image.new("RGB", (6, 5), (level,) * 3) for level in (0, 90, 180)]
    with PreferenceWriter(tmp_path / "pairs", form="pair") as writer:
        for number, gap in enumerate((2.0, -2.0, 0.0, 0.01)):
            scores = {"clip@1": (gap, 0.0), "hps@2": (1.0, 0.0)}
            writer.write(Pair(id=str(number), prompt="a cat", chosen=greys[0], rejected=greys[1], scores=scores))
    with PreferenceWriter(tmp_path / "sets", form="candidates") as writer:
        scores = {"clip@1": (0.0, 2.0, 1.0), "hps@2": (0.0, 0.0, 3.0)}
        writer.write(CandidateSet(id="a", prompt="a dog", images=tuple(greys), scores=scores))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diffalign", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return (int(left.value.code or 0), *capsys.readouterr())

    return run


def table(printed: str) -> dict[str, str]:
    """The two columns of a printed table."""
    lines = [line.rsplit(None, 1) for line in printed.splitlines()[2:] if line.strip()]
    return {line[0].strip(): line[1] for line in lines}


def test_pairs_get_labels_and_a_table(run: Run) -> None:
    arguments = ("label", "pairs", "out", "--metric", "clip", "--rule", "binary", "--tie", "0.05", "--drop-ties")
    code, out, err = run(*arguments)
    assert code == 0 and "diffalign inspect out" in err, err
    assert table(out) == {
        "rows in": "4", "pairs out": "2", "of these ties": "0", "of these swapped": "1", "dropped: tie": "2",
        "mean label": "1.0000",
    }  # fmt: skip
    assert Preferences("out").labels() == [1, 1] and Preferences("out").ids() == ["0", "1"]
    assert run(*arguments)[1] == out  # finished: nothing is written, the same is told
    code, _, err = run("label", "pairs", "out", "--metric", "clip")
    assert code == 2 and "rules.0.name: 'binary' there, 'bradley_terry' now" in err


def test_sets_become_pairs(run: Run) -> None:
    arguments = ("--metric", "clip", "--metric", "hps", "--temperature", "1", "--temperature", "3")
    code, out, err = run("label", "sets", "out", *arguments, "--weight", "0.5", "--weight", "0.5", "--pairs", "pareto")
    assert code == 0, err
    assert table(out)["rows in"] == "1" and "of these swapped" not in table(out)
    assert Preferences("out").ids() == ["a:1-0", "a:2-0"]
    found = load_config(LabelConfig, "out/config.yaml")
    assert (
        found.pairs == "pareto" and found.rules[0].temperatures == (1.0, 3.0) and found.rules[0].weights == (0.5, 0.5)
    )


def test_a_dry_run_of_label_writes_nothing(run: Run, tmp_path: Path) -> None:
    before = sorted(entry.name for entry in tmp_path.iterdir())
    code, out, err = run("label", "sets", "out", "--metric", "hps", "--pairs", "all", "--min-gap", "0.5", "--dry-run")
    assert code == 0, err
    assert table(out)["pairs out"] == "2" and table(out)["dropped: gap below min_gap"] == "1"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before


def test_mixtures_are_settings(run: Run) -> None:
    mixture = "rules=[{metrics: [clip], share: 0.25}, {name: majority, metrics: [hps], share: 0.75}]"
    code, _, err = run("label", "pairs", "out", "--metric", "clip", "--set", mixture)
    assert code == 0, err
    assert [rule.share for rule in load_config(LabelConfig, "out/config.yaml").rules] == [0.25, 0.75]
    assert Preferences("out").labels()[2] == 0.875  # 0.25 / 2 + 0.75


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("label", "pairs", "out", "--metric", "clap"), "row '0': unknown metric 'clap'; nearest: clip"),
        (("label", "nowhere", "out", "--metric", "clip"), "there is no nowhere"),
        (("label", "pairs", "out", "--metric", "clip", "--rule", "median"), "'median' is not one of"),
        (("label", "pairs", "out", "--metric", "clip", "--tie", "0.1"), "rule bradley_terry has none"),
        (("label", "pairs", "out", "--metric", "clip", "--min-gap", "9"), "no pair is left of 4 rows"),
        (("label", "pairs", "sets", "--metric", "clip"), "holds something else than a run"),
        (("generate-candidates", *TINY), "at least one --reward"),
        (("generate-candidates", *TINY, "--reward", "saturatoin"), "nearest: saturation"),
        (("generate-candidates", *TINY, "--reward", "saturation", "--candidates", "1"), "at least 2 images"),
        (("generate-candidates", *TINY, "--reward", "saturation", "--weights", "x=y"), "reward with weights 'x'"),
    ],
)
def test_mistakes_are_told_in_a_line(run: Run, arguments: tuple[str, ...], words: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2 and words in " ".join(err.split()) and "Traceback" not in err


def test_the_plan_of_candidates(run: Run, tmp_path: Path) -> None:
    before = sorted(entry.name for entry in tmp_path.iterdir())
    rewards = ("--reward", "saturation", "--reward", "tiny-clip")
    code, out, err = run("generate-candidates", *TINY, *rewards, "--candidates", "5", "--limit", "2", "--dry-run")
    assert code == 0, err
    assert "10: 2 prompts x 5 seeds, 32 x 32 pixels each" in out and "20 in all" in out
    assert "saturation, tiny-clip" in out and "20: 10 images x 2 rewards" in out
    assert "at most 2, of 5 images each" in out
    code, _, err = run("generate-candidates", *TINY, "--reward", "saturatoin", "--dry-run")
    assert code == 2 and "nearest: saturation" in err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before


def test_candidates_and_their_own_config_run_again(run: Run) -> None:
    arguments = ("--reward", "saturation", "--reward", "luminance", "--candidates", "2", "--set", "sample.solver=ddim")
    code, out, err = run("generate-candidates", *TINY, *arguments, "--out", "first")
    assert code == 0 and "diffalign label" in err, err
    assert table(out) == {"prompts": "3", "candidate sets": "3"}
    assert load_config(CandidatesConfig, "first/config.yaml").sample.solver == "ddim"
    code, _, err = run("generate-candidates", "first/config.yaml", "--out", "second")
    assert code == 0, err
    one, two = (next(Path(name).glob("candidates/*.parquet")).read_bytes() for name in ("first", "second"))
    assert one == two


def test_help_has_examples_and_the_defaults(run: Run) -> None:
    code, out, _ = run("generate-candidates", "--help")
    text = " ".join(out.split())
    assert code == 0 and "diffalign generate-candidates --model tiny-sd --prompts photographs" in text
    for option, name in (("steps", "num_steps"), ("guidance", "guidance_scale")):
        default = SampleConfig.model_fields[name].default
        assert f"; {default} by default" in text.partition(f"--{option} <")[2].partition(" --")[0]
    code, out, _ = run("label", "--help")
    assert code == 0 and "diffalign label runs/curated runs/soft" in " ".join(out.split())
