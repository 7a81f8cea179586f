"""Prompts to candidate sets: what stands in them, what is set aside, and runs that were stopped or killed."""

from __future__ import annotations

import doctest
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffalign.core import DiffalignError, config_to_yaml, content_hash, read_json, read_jsonl, write_text
from diffalign.data import Preferences, decode_image
from diffalign.data import writing as writing_module
from diffalign.rewards import load_reward
from diffalign.sample import (
    CandidatesConfig,
    SampleConfig,
    adapter_identity,
    generate_candidates,
    load_sampler,
    wanted_prompts,
)
from diffalign.sample import candidates as module
from diffalign.types import CandidateSet

REWARDS = ("saturation", "luminance")


def config(rewards: tuple[str, ...] = REWARDS, score_batch_size: int = 2, **changes: Any) -> CandidatesConfig:
    """Five prompts with three images each, in batches of two."""
    fields = {"model": "tiny-sd", "prompts": "photographs", "limit": 5, "num_seeds": 3, "num_steps": 1, "batch_size": 2}
    images = SampleConfig(**{**fields, "guidance_scale": 2.0, **changes})
    return CandidatesConfig(sample=images, rewards=rewards, score_batch_size=score_batch_size)


def results(folder: Path) -> dict[str, str]:
    """Every file of the results by its hash."""
    files = [folder / "counts.json", folder / "rejected.jsonl", *sorted((folder / "candidates").glob("*.parquet"))]
    return {file.name: content_hash(file.read_bytes()) for file in files}


Change = Callable[[str, Image.Image, int], Image.Image]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Puts a model that paints the noise in the model's place, and what changes (prompt, image, number of the call)."""

    class Toy:
        latent_shape = (3, 7, 5)
        identity: ClassVar[dict[str, Any]] = {
            "model": "toy", "adapter": "", "sampler": "none", "num_steps": 1, "guidance_scale": 2.0, "height": 7,
            "width": 5, "negative_prompt": "", "dtype": "torch.float32",
        }  # fmt: skip

        def __init__(self, change: Change) -> None:
            self.change, self.calls = change, 0

        def __call__(self, prompts: Sequence[str], noise: Tensor) -> list[Image.Image]:
            self.calls += 1
            pixels = (noise * 60 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
            images = [Image.fromarray(np.ascontiguousarray(one)) for one in pixels]
            return [self.change(prompt, image, self.calls) for prompt, image in zip(prompts, images, strict=True)]

    def install(change: Change) -> None:
        monkeypatch.setattr(module, "load_sampler", lambda *args, **kwargs: nullcontext(Toy(change)))

    install(lambda prompt, image, calls: image)
    return install


@pytest.fixture
def own_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module with ``score(images, prompts)`` of this body; gives the reward's name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a module of the same second and size would be the old one

    def write(body: str) -> str:
        (tmp_path / "own_candidates_reward.py").write_text(f"def score(images, prompts):\n    {body}\n")
        sys.modules.pop("own_candidates_reward", None)
        return "own_candidates_reward:score"

    return write


def test_sets_hold_the_images_of_the_prompts_and_every_score(tmp_path: Path) -> None:
    wanted = config()
    counts = generate_candidates(wanted, tmp_path / "run")
    assert (counts.prompts, counts.sets, counts.set_aside) == (5, 5, {})
    rows = Preferences(tmp_path / "run")
    prompts = wanted_prompts(wanted.sample)
    assert rows.form == "candidates" and rows.ids() == [one.id for one in prompts]
    assert rows.prompts() == [one.prompt for one in prompts]
    manifest = list(read_jsonl(tmp_path / "run" / "sample" / "manifest.jsonl"))
    for number, row in enumerate(rows):
        assert isinstance(row, CandidateSet) and len(row.images) == 3
        made = manifest[3 * number : 3 * number + 3]
        assert [one["seed"] for one in made] == [0, 1, 2]
        for image, one in zip(row.images, made, strict=True):
            assert image.tobytes() == decode_image(tmp_path / "run" / "sample" / one["file"]).tobytes()
        for name in REWARDS:
            reward = load_reward(name)
            expected = reward(row.images, [row.prompt] * 3).tolist()
            assert row.scores[reward.card.identity] == pytest.approx(expected)
        assert row.provenance.sha256 == tuple(one["sha256"] for one in made)
    assert (tmp_path / "run" / "rejected.jsonl").read_text() == ""


def test_the_provenance_says_how_the_images_can_be_made_again(tmp_path: Path) -> None:
    wanted = config(limit=1)
    generate_candidates(wanted, tmp_path / "run")
    origin = Preferences(tmp_path / "run")[0].provenance
    with load_sampler(wanted.sample) as sampler:
        identity = sampler.identity
    assert origin.model_revision == identity["model"] and origin.seed == 0 and origin.method == "sample"
    assert origin.parameters == {**identity, "model": "tiny-sd", "seeds": [0, 1, 2]}
    assert origin.parameters["adapter"] == adapter_identity(wanted.sample) == ""
    assert read_json(tmp_path / "run" / "inputs.json")["rewards"]["saturation"].startswith("saturation@")


def test_settings_that_make_no_sense_are_refused_before_anything_loads(tmp_path: Path) -> None:
    for changes, message in (
        ({"num_seeds": 1}, "at least 2 images per prompt"),
        ({"rewards": ()}, "expected at least one"),
        ({"rewards": ("saturation", "saturation")}, "each once"),
    ):
        with pytest.raises(DiffalignError, match=message):
            config(**changes)  # type: ignore[arg-type]
    with pytest.raises(DiffalignError, match="unknown reward with weights 'hps'"):
        config().replace(weights={"hps": "x"})
    for rewards, message in ((("saturatoin",), "nearest: saturation"), (("nothing_there:x",), "no module")):
        with pytest.raises(DiffalignError, match=message):
            generate_candidates(config(rewards), tmp_path / "run")
    with pytest.raises(DiffalignError, match="nowhere"):
        generate_candidates(config(model="nowhere"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_failed_is_set_aside_with_its_reason(
    tmp_path: Path, toy: Callable[[Change], None], own_reward: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One prompt diverges, one gets a black image, one has no score; the other two are kept."""
    prompts = [one.prompt for one in wanted_prompts(config().sample)]

    def change(prompt: str, image: Image.Image, call: int) -> Image.Image:
        if prompt == prompts[0]:
            raise FloatingPointError("diverged")
        return Image.new("RGB", image.size) if prompt == prompts[2] else image

    toy(change)
    reward = own_reward(f"return [float('nan') if prompt == {prompts[3]!r} else 0.5 for prompt in prompts]")
    counts = generate_candidates(config(("saturation", reward)), tmp_path / "run")
    assert (counts.prompts, counts.sets) == (5, 2)
    assert counts.set_aside == {"not generated": 1, "black image": 1, "no score": 1}
    rejected = list(read_jsonl(tmp_path / "run" / "rejected.jsonl"))
    assert [row["prompt"] for row in rejected] == [prompts[0], prompts[2], prompts[3]]
    assert [row["detail"].partition("@")[0] for row in rejected] == [
        "seed 0: not finite", "seed 0: black image", f"seed 0: nan, by {reward}"
    ]  # fmt: skip
    assert Preferences(tmp_path / "run").prompts() == [prompts[1], prompts[4]]
    assert "3 of 5 prompts have no candidate set" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("toy")
def test_a_run_without_a_set_says_so(tmp_path: Path, own_reward: Callable[[str], str]) -> None:
    reward = own_reward("return [float('nan')] * len(prompts)")
    with pytest.raises(DiffalignError, match=r"5 of 5 prompts have no candidate set.*first: seed 0: nan"):
        generate_candidates(config((reward,)), tmp_path / "run")


@pytest.mark.usefixtures("toy")
def test_a_broken_reward_stops_the_run_and_is_tried_again(tmp_path: Path, own_reward: Callable[[str], str]) -> None:
    version = "score.version = '1'"
    reward = own_reward(f"raise RuntimeError('out of memory')\n{version}")
    with pytest.raises(DiffalignError, match=r"failed on all of 8 images, the first with error.*out of memory"):
        generate_candidates(config((reward,)), tmp_path / "run")
    own_reward(f"return [0.5] * len(prompts)\n{version}")
    assert generate_candidates(config((reward,)), tmp_path / "run").sets == 5


@pytest.mark.usefixtures("toy")
def test_another_version_of_a_reward_or_other_settings_are_refused(
    tmp_path: Path, own_reward: Callable[[str], str]
) -> None:
    reward = own_reward("return [0.5] * len(prompts)\nscore.version = '1'")
    generate_candidates(config((reward,)), tmp_path / "run")
    own_reward("return [0.7] * len(prompts)\nscore.version = '2'")
    with pytest.raises(DiffalignError, match="begun with other versions of its rewards"):
        generate_candidates(config((reward,)), tmp_path / "run")
    with pytest.raises(DiffalignError, match=r"sample.num_seeds: 3 there, 4 now"):
        generate_candidates(config((reward,), num_seeds=4), tmp_path / "run")


def test_stopped_anywhere_and_resumed_is_never_stopped(
    tmp_path: Path, toy: Callable[[Change], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while it samples, while it scores, while it writes; then it goes on, and redoes little."""
    wanted = config(limit=9)
    generate_candidates(wanted, tmp_path / "whole")

    def stops_at(call: int) -> Change:
        def change(prompt: str, image: Image.Image, calls: int) -> Image.Image:
            if calls == call:
                raise KeyboardInterrupt
            return image

        return change

    toy(stops_at(10))
    with pytest.raises(KeyboardInterrupt):
        generate_candidates(wanted, tmp_path / "parts")
    toy(stops_at(7))  # of 14 batches the 8 of the first shard are not made again, so there is no seventh
    score, scored = module.score, []

    def stops(reward: Any, images: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        scored.append((reward.card.name, len(images)))
        if len(scored) == 6:
            raise KeyboardInterrupt
        return score(reward, images, *arguments, **options)

    monkeypatch.setattr(module, "score", stops)
    with pytest.raises(KeyboardInterrupt):
        generate_candidates(wanted, tmp_path / "parts")
    write = writing_module.PreferenceWriter.write
    written: list[str] = []

    def stops_writing(self: Any, row: CandidateSet, **options: Any) -> bool:
        written.append(row.id)
        if len(written) == 5:
            raise KeyboardInterrupt
        return write(self, row, **options)

    monkeypatch.setattr(writing_module.PreferenceWriter, "write", stops_writing)
    with pytest.raises(KeyboardInterrupt):
        generate_candidates(wanted, tmp_path / "parts")
    assert not (tmp_path / "parts" / "candidates").exists()
    generate_candidates(wanted, tmp_path / "parts")
    assert [name for name, _ in scored] == ["saturation"] * 4 + ["luminance"] * 5  # the sixth was made again
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    generate_candidates(wanted, tmp_path / "parts")
    assert len(scored) == 9 and len(written) == 5 + 9
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


# Everything is imported once; each try is a fork of that state.
KILLER = """
import os, random, signal, sys, time
from diffalign.core import load_config
from diffalign.sample import CandidatesConfig, generate_candidates
config, kills = load_config(CandidatesConfig, "config.yaml"), int(sys.argv[1])

def start(folder):
    child = os.fork()
    if child == 0:
        try:
            generate_candidates(config, folder)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child

def finish(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

began = time.monotonic()
assert finish(start("whole")) == 0
seconds, landed, finished = time.monotonic() - began, 0, 0
moments = random.Random(int(sys.argv[2]))
while landed < kills:
    child = start(f"parts{finished}")
    time.sleep(moments.uniform(0.0, 0.9) * seconds)
    os.kill(child, signal.SIGKILL)
    code = finish(child)
    assert code in (0, -signal.SIGKILL), code
    finished, landed = finished + (code == 0), landed + (code != 0)
assert finish(start(f"parts{finished}")) == 0
"""


@pytest.mark.parametrize("kills", [2, pytest.param(15, marks=pytest.mark.slow)])
def test_killed_at_random_moments_equals_never_killed(tmp_path: Path, kills: int) -> None:
    write_text(tmp_path / "config.yaml", config_to_yaml(config(limit=6, num_seeds=4)))
    seed = random.SystemRandom().randrange(10**6)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(kills), str(seed)], cwd=tmp_path, timeout=600, text=True,
        capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"moments of seed {seed}: {done.stderr[-3000:]}"
    for parts in tmp_path.glob("parts*"):
        assert results(parts) == results(tmp_path / "whole"), f"seed {seed}"
        assert not list(parts.rglob(".tmp-*")) and not list(parts.glob("*-unfinished")), f"seed {seed}"


def test_the_example() -> None:
    found = doctest.testmod(module)
    assert found.failed == 0 and found.attempted > 0
