"""Runs the commands of the documentation as their tiny twins, each in a fresh process.

``diffalign`` runs with embedded models in place of hub ones, and short. What sets a machine up (make, pip, git) or
takes hours (scripts, benchmarks) is only looked at: CI's own stages run the former.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import datasets

from diffalign.cli import app
from fresh import Fresh

ROOT = Path(__file__).parents[1]
EMBEDDED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "tiny-sd",
    "pickscore": "tiny-clip",
    "hub:user/dataset": "my-photos",
    "hub:user/photos": "my-photos",
    "s3://bucket/images": "my-photos",
    "size=512": "size=32",
    "reward=pickscore": "reward=tiny-clip",
}
SHORT = {
    "demo": ["num_photos=24", "num_pairs=16", "min_gap=0", "num_fit_steps=2", "num_pair_steps=2", "num_prompts=10",
             "num_steps=2", "batch_size=4", "shown_scales=[0,2]"],
    "curate": ["keep.min_gap=0", "select.max_likeness=-1", "select.min_contrast=0"],
}  # fmt: skip
ONLY_LOOKED_AT = ("make", "pip", "python", "python3", "git", "source", "cd")


def tiny(arguments: list[str]) -> list[str]:
    """The arguments of the tiny twin of a ``diffalign`` command."""
    verb, rest = arguments[0], [EMBEDDED.get(one, one) for one in arguments[1:]]
    rest = ["2" if before == "--steps" else one for before, one in zip(["", *rest], rest, strict=False)]
    for setting in SHORT.get(verb, []):
        rest += ["--set", setting]
    if verb == "curate":
        drawn = not {"--degrade", "--recipe"} & set(rest) and not any(one.startswith("degrade=") for one in rest)
        rest += ["--workers", "1", *(["--set", "degrade.num_steps=2"] if drawn else [])]
    if verb == "train" and "--tiny" not in rest:
        rest += ["--tiny", *([] if "--model" in rest else ["--model", "tiny-sd"])]
    if verb == "sample" and "--limit" not in rest:
        rest += ["--limit", "4", "--steps", "2"]
    return [verb, *rest]


def run_commands(text: str, folder: Path) -> None:
    """Run the lines of shell blocks one by one: assignments of variables, and commands.

    Raises:
        AssertionError: a command fails, or is none that is known.
    """
    variables: dict[str, str] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if line.startswith("#"):
            continue
        if found := re.fullmatch(r"(\w+)=(.*)", line):
            variables[found[1]] = found[2].strip("\"'")
            continue
        for name, value in variables.items():
            line = re.sub(rf"\${name}\b", value, line)
        words = shlex.split(line, comments=True)
        name = Path(words[0]).name
        if name == "diffalign":
            _run(tiny(words[1:]), folder)
        else:
            assert name in ONLY_LOOKED_AT, f"the tests do not know the command {name!r}"
            _look_at(name, words[1:])


def _look_at(name: str, arguments: list[str]) -> None:
    if name == "python" and arguments[0].endswith(".py"):
        assert (ROOT / arguments[0]).is_file(), f"{arguments[0]} is not there"
    if name == "make":
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text(), f"the Makefile has no {arguments[0]}"


def _run(arguments: list[str], folder: Path) -> None:
    done = Fresh(_command, (arguments,), folder)
    assert done.returncode == 0, f"diffalign {shlex.join(arguments)}\n{(done.stdout + done.stderr)[-3000:]}"


def _command(arguments: list[str]) -> None:
    app(args=arguments, prog_name="diffalign")


def run_python(code: str, cache: str) -> None:
    """Run code as a script would; data sets that it opens are kept in ``cache``."""
    datasets.config.HF_DATASETS_CACHE = Path(cache)
    exec(compile(code, "documentation", "exec"), {"__name__": "__main__"})
