"""Guidance on the command line: ranges of strengths, options to settings, plans, and a sweep start to end."""

from __future__ import annotations

import doctest
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffalign.cli import guiding, main
from diffalign.cli.guiding import GuideOptions, parse_strengths
from diffalign.core import DiffalignError, read_json, read_jsonl
from diffalign.models import LoraSettings, adapter_parameters, add_adapter, load_family, remove_adapter, save_adapter
from diffalign.sample import GuideConfig

Run = Callable[..., tuple[int, str, str]]
CPGD = ("--guide", "cpgd", "--positive", "pos", "--negative", "neg")


@pytest.mark.parametrize(
    ("text", "strengths"),
    [
        ("4", (4.0,)),
        ("0:10:2", (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)),
        ("0:0.3:0.1", (0.0, 0.1, 0.2, 0.3)),
        ("1e-1:0.5:.2", (0.1, 0.3, 0.5)),
        ("0:49:1", tuple(float(number) for number in range(50))),
    ],
)
def test_a_range_holds_both_its_ends(text: str, strengths: tuple[float, ...]) -> None:
    assert parse_strengths(text, "--scale") == strengths
    assert doctest.testmod(guiding).failed == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", "'many' is no number"),
        ("0:10", "another number of colons"),
        ("0::2", "'' is no number"),
        ("10:0:2", "B must be above A"),
        ("3:3:1", "B must be above A"),
        ("0:10:0", "STEP above 0"),
        ("-2:2:1", "at least 0"),
        ("0:inf:1", "not finite"),
        ("nan", "not finite"),
        ("0:10:3", "lead to 9 and 12, and never to 10"),
        ("0:50:1", "these are 51 strengths, and 50 are the most"),
        ("0:1:1e-30", "very many strengths"),
    ],
)
def test_nonsense_is_refused_with_its_reason(text: str, message: str) -> None:
    with pytest.raises(DiffalignError, match=rf"expected --scale as a number or a range A:B:STEP.*{message}"):
        parse_strengths(text, "--scale")


@pytest.mark.parametrize(
    ("name", "given", "settings"),
    [
        ("pgd", {"positive": "p", "scale": (2.0,)}, {"tuned": "p", "scale": 2.0}),
        ("cpgd", {"positive": "p", "negative": "n", "scale": (0.5, 2.0)},
         {"positive": "p", "negative": "n", "scale": 0.5}),
        ("plus_minus", {"positive": "p"}, {"module": "p"}),
        ("npo", {"positive": "p", "negative": "n"}, {"positive": "p", "negative": "n"}),
        ("chats", {"positive": "p", "negative": "n"}, {"winner": "p", "loser": "n"}),
        ("nag", {"negative": "n", "scale": (1.0,)}, {"negative_adapter": "n", "phi": 1.0}),
    ],
)  # fmt: skip
def test_options_become_the_guides_own_settings(name: str, given: dict[str, Any], settings: dict[str, Any]) -> None:
    assert GuideOptions(name=name, **given).merged(None) == GuideConfig(name=name, settings=settings)


def test_options_change_a_guide_of_a_file_and_another_name_begins_anew() -> None:
    before = GuideConfig(name="cpgd", settings={"positive": "p", "negative": "n", "scale": 1.0}, packed=False)
    changed = GuideOptions(scale=(3.0,)).merged(before)
    assert changed == before.replace(settings={"positive": "p", "negative": "n", "scale": 3.0})
    assert GuideOptions().merged(before) == before
    assert GuideOptions(name="pgd", positive="x").merged(before) == GuideConfig(name="pgd", settings={"tuned": "x"})
    nag = GuideConfig(name="nag")
    assert (
        GuideOptions(scale=(0.0, 1.0)).axis(nag) == "phi" and GuideOptions(guidance=(2.0, 3.0)).axis(nag) == "guidance"
    )
    for given, message in (
        ({"scale": (1.0,)}, "--scale: expected --guide"),
        ({"name": "cpdg"}, "nearest: cpgd"),
        ({"name": "npo", "scale": (1.0,)}, "text guidance is its strength, so give --guidance"),
        ({"name": "pgd", "negative": "n"}, "takes no --negative"),
        ({"name": "nag", "positive": "n"}, "takes no --positive"),
        ({"name": "weighted", "negative": "n"}, r"takes no --negative.* as positives \(--set .* and negatives \("),
    ):
        with pytest.raises(DiffalignError, match=message):
            GuideOptions(**given).merged(None)  # type: ignore[arg-type]
    with pytest.raises(DiffalignError, match="one range at most"):
        GuideOptions(scale=(0.0, 1.0), guidance=(2.0, 3.0))


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the LoRAs pos and neg of tiny-sd."""
    folder, family = tmp_path_factory.mktemp("loras"), load_family("tiny-sd")
    for seed, name in enumerate(("pos", "neg")):
        add_adapter(family.denoiser, name, LoraSettings(rank=2, alpha=2, targets=("to_q", "to_v")), seed=seed)
        for weight in adapter_parameters(family.denoiser, name).values():
            torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(seed))
        save_adapter(family.denoiser, name, folder / name, prefix=family.lora_prefix)
        remove_adapter(family.denoiser, name)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, loras: Path) -> Run:
    """Arguments to (exit code, stdout, stderr), in a folder with the LoRAs and prompts."""
    for name in ("pos", "neg"):
        (tmp_path / name).symlink_to(loras / name)
    (tmp_path / "prompts.txt").write_text(
        "\n".join(f"a photo of {each}" for each in ("grass", "gravel", "bricks", "fog"))
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diffalign", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


TINY = ("sample", "--model", "tiny-sd", "--prompts", "prompts.txt", "--guidance", "3")


def line(printed: str, start: str) -> str:
    return " ".join(next(each for each in printed.splitlines() if each.startswith(start)).split())


def test_a_plan_counts_the_guides_passes(run: Run, tmp_path: Path) -> None:
    """4 steps with text guidance: 2 passes a step, of cPGD 6; half the way, about half of the steps."""
    code, out, err = run(*TINY, *CPGD, "--scale", "2", "--steps", "4", "--seeds", "3", "--dry-run")
    assert code == 0 and "24 passes of the denoiser per image" in line(out, "steps"), err
    assert line(out, "passes") == f"passes {24 * 12} in all"
    assert line(out, "guide").startswith("guide cpgd: positive pos, hash ") and "scale 2.0" in line(out, "guide")
    code, out, _ = run(
        *TINY, *CPGD, "--scale", "0:4:2", "--steps", "4", "--set", "guide.settings.stop=0.5", "--dry-run"
    )
    assert code == 0 and line(out, "scale 0") == "scale 0 8 passes of the denoiser per image"
    assert line(out, "scale 4") == "scale 4 16 passes of the denoiser per image"
    assert line(out, "passes") == f"passes {4 * (8 + 16 + 16)} in all" and "scale 4.0" not in line(out, "guide")
    several = ("--guide", "weighted", "--set", "guide.settings.positives={pos: 0.5, neg: 0.25}", "--scale", "0:1:1")
    code, out, err = run(*TINY, *several, "--steps", "4", "--dry-run")
    assert code == 0 and line(out, "scale 1") == "scale 1 24 passes of the denoiser per image", err
    assert re.search(r"weighted: positives pos x 0.5, hash \w{12}; positives neg x 0.25, hash", line(out, "guide"))
    text = ("sample", "--model", "tiny-sd", "--prompts", "prompts.txt", "--guide", "npo", "--negative", "neg")
    code, out, _ = run(*text, "--guidance", "2:4:1", "--steps", "5", "--dry-run")
    assert code == 0 and line(out, "guidance 3") == "guidance 3 10 passes of the denoiser per image"
    assert {entry.name for entry in tmp_path.iterdir()} == {"pos", "neg", "prompts.txt"}


def test_mistakes_are_told_in_a_line(run: Run) -> None:
    for arguments, words in (
        (("--guide", "cpgd", "--positive", "pos", "--scale", "1"), "guide 'cpgd' needs negative (--negative)"),
        ((*CPGD, "--scale", "0:4:3"), "never to 4"),
        ((*CPGD, "--scale", "1", "--set", "guide.settings.stpo=0.5"), "nearest: stop"),
        ((*CPGD, "--scale", "1", "--set", "guide.packd=true"), "nearest: guide.packed"),
        (("--guide", "npo", "--negative", "neg", "--guidance", "1"), "text guidance is off"),
        ((*CPGD, "--scale", "0:4:2", "--set", "guide.settings.scale=9"), "scale is what the sweep changes, got 9"),
        ((*CPGD, "--scale", "0:4:2", "--set", "guide.settings={positive: pos, negative: neg, scale: 9}"), "got 9"),
        (("--guidance", "2:4:1", "--set", "guidance_scale=9"), "guidance_scale is what the sweep changes, got 9"),
    ):
        for also in ((), ("--dry-run",)):
            code, _, err = run(*TINY, *arguments, *also)
            assert code == 2 and words in err and "Traceback" not in err


def test_from_a_range_to_a_chosen_strength(run: Run, tmp_path: Path) -> None:
    code, _, err = run(*TINY, *CPGD, "--scale", "0:8:4", "--seeds", "2", "--steps", "1", "--out", "s")
    assert code == 0 and "s/grid.png" in err and "diffalign sweep s" in err, err
    before = (tmp_path / "s" / "scale-4" / "manifest.jsonl").read_bytes()
    assert next(read_jsonl(tmp_path / "s" / "scale-4" / "manifest.jsonl"))["guide"]["scale"] == 4.0
    code, _, err = run("sample", "s/config.yaml", "--out", "s")  # goes on by its own settings: nothing is left to do
    assert code == 0 and (tmp_path / "s" / "scale-4" / "manifest.jsonl").read_bytes() == before, err
    code, _, err = run("sample", "s/config.yaml", "--set", "guide.settings.scale=9", "--dry-run")
    assert code == 2 and "scale is what the sweep changes, got 9" in err
    code, out, _ = run("sample", "s/config.yaml", "--scale", "8", "--dry-run")
    assert code == 0 and "scale 8.0" in line(out, "guide") and "strengths" not in out
    rewards = ("--reward", "saturation", "--reward", "tiny-clip", "--choose-by", "tiny-clip")
    code, out, err = run("sweep", "s", *rewards, "--held-out", "saturation")
    assert code == 2 and "saturation has no better direction" in err
    code, out, err = run("sweep", "s", *rewards, "--json", "also.json", "--min-diversity", "0")
    assert code == 0, err
    found = read_json(tmp_path / "s" / "sweep-results.json")
    assert read_json(tmp_path / "also.json") == found and found["chosen"] in (0.0, 4.0, 8.0)
    assert f"chosen: scale {found['chosen']:g}: the highest mean tiny-clip on 2 validation prompts" in out
    assert "Only 2 prompts choose" in out and "saturation (undeclared)" in out and "tiny-clip (in-training)" in out
    assert found["settings"]["num_steps"] == 1 and found["guide"]["name"] == "cpgd"
    page = (tmp_path / "s" / "sweep.html").read_text()
    assert "How it was chosen" in page and "Quality against diversity" in page and "data:image/" in page
    assert (tmp_path / "s" / "sweep.svg").read_text().startswith("<?xml")
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["folders"] == ["scale-0", "scale-4", "scale-8"]


def test_help_teaches_with_an_example(run: Run) -> None:
    code, out, _ = run("sample", "--help")
    assert code == 0 and "--guide cpgd --positive pos --negative neg --scale 0:4:1" in " ".join(out.split())
    code, out, _ = run("sweep", "--help")
    assert code == 0 and "diffalign sweep runs/strengths --reward pickscore" in " ".join(out.split())
    assert line(run("--help")[1], "  sweep").startswith("sweep Score a sweep")
