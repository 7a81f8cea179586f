"""Every block of code in the README and the docs runs, in order, in an empty folder: Python as it stands, commands as
their tiny twins (see documentation_shim)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from diffalign.core import numpy_generator
from diffalign.data import draw_crop
from diffalign.models import LoraSettings, add_adapter, load_family, save_adapter
from documentation_shim import run_commands, run_python, tiny
from fresh import Fresh

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return "\n".join(found)


def with_code(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRAs in the place of trained ones, which docs/guidance.md makes in Python."""
    folder, family = tmp_path_factory.mktemp("modules"), load_family("tiny-sd")
    for seed, each in enumerate(("pos", "neg")):
        add_adapter(family.denoiser, each, LoraSettings(rank=2, alpha=2, targets=("to_q", "to_k", "to_v")), seed=seed)
        save_adapter(family.denoiser, each, folder / each, prefix=family.lora_prefix)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, modules: Path) -> Path:
    """What the documentation takes for granted: photographs, prompts and modules of guidance."""
    shutil.copytree(modules, tmp_path / "runs")
    for number in range(12):
        crop = draw_crop("train", numpy_generator("photographs of the documentation", number), size=48)
        for folder in ("photos", "my-photos"):
            (tmp_path / folder).mkdir(exist_ok=True)
            crop.image.save(tmp_path / folder / f"{number}.png")
            (tmp_path / folder / f"{number}.txt").write_text(crop.caption)
    (tmp_path / "prompts.txt").write_text("a photo of a tabby cat\na photo of a rocket at night\na photo of grass\n")
    return tmp_path


def test_there_is_code_to_run() -> None:
    assert blocks(ROOT / "README.md", "python") and "diffalign train" in blocks(ROOT / "README.md", "bash")


def test_the_twin_of_a_command_is_that_command() -> None:
    assert tiny(["sample", "--model", "tiny-sd", "--limit", "9"]) == ["sample", "--model", "tiny-sd", "--limit", "9"]
    assert tiny(["train", "x", "--tiny"]) == ["train", "x", "--tiny"]
    assert tiny(["sample", "--steps", "12", "--limit", "9"]) == ["sample", "--steps", "2", "--limit", "9"]


@pytest.mark.parametrize("command", ["diffalign nothing", "diffalign inspect nowhere", "rm -rf x", "make nothing"])
def test_a_command_that_fails_is_seen(command: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run_commands(command, tmp_path)


@pytest.mark.parametrize("page", with_code("python"), ids=name)
def test_python_runs(page: Path, tmp_path: Path) -> None:
    done = Fresh(run_python, (blocks(page, "python"), str(tmp_path / "cache")), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


LONG = ("quickstart.md", "curation.md", "demo.md")  # their commands are much like README's


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page.name in LONG)) for page in with_code("bash")], ids=name
)
def test_commands_run(page: Path, workplace: Path) -> None:
    run_commands(blocks(page, "bash"), workplace)
