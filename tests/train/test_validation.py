"""Validation: what it measures and chooses, that training does not notice it, and that it survives kills."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_distributed import launch
from train_helpers import config, equal, interrupt_at, metrics, tensors

import diffalign.train.build as build
import diffalign.train.validator as validator
from diffalign.core import DiffalignError, dump_config, read_json, read_jsonl, write_json
from diffalign.models import is_denoiser, load_family
from diffalign.rewards import clip_features, load_reward
from diffalign.sample import family_sampler, initial_noise, read_prompts
from diffalign.stats import pairwise_diversity
from diffalign.train import TrainConfig, train
from diffalign.train.validation import chosen, diversity, prompt_means, validation_calls, validation_steps

LEFT, TOP, CELL, PITCH, ENLARGED = 220, 32, 128, 132, 4  # pixels of a grid of 32-pixel images

REWARDS = """
import random
import numpy as np, torch
from diffalign.rewards import colourfulness
calls = []
def greyness(images, prompts):
    return [-colourfulness(image) for image in images]
def restless(images, prompts):
    return [torch.rand(()).item() + random.random() + np.random.rand()] * len(images)
def nan_for_cats(images, prompts):
    return [float("nan") if "cat" in prompt else 2.0 for prompt in prompts]
def raises_for_cats(images, prompts):
    if any("cat" in prompt for prompt in prompts):
        raise ValueError("no cats")
    return [3.0] * len(images)
def never(images, prompts):
    raise ValueError("out of order")
def once(images, prompts):
    calls.append(len(images))
    return [1.0 if len(calls) == 1 else float("nan")] * len(images)
"""


def validated(data: Path, *, every: int = 2, **changes: Any) -> TrainConfig:
    """Two prompts of two seeds, beside the cheapest training."""
    names = ("rewards", "choose", "num_seeds", "min_diversity", "prompts", "limit", "weights", "guidance_scale")
    wanted = {name: changes.pop(name) for name in names if name in changes}
    wanted = {"prompts": "photographs", "limit": 2, "num_steps": 2, "guidance_scale": 3.0, "every": every} | wanted
    small = {"objective": "sft", "settings": {}, "batch_size": 4, "micro_batch_size": 4, "ema": None}
    return config(data, validation=wanted, **small | changes)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(folder / "validation.jsonl"))


def images_of(grid: Path) -> list[Image.Image]:
    """The four images of a grid of two prompts, as they were before they were enlarged."""
    pixels = np.asarray(Image.open(grid))
    tops, lefts = (TOP, TOP + PITCH), (LEFT, LEFT + PITCH)
    return [Image.fromarray(pixels[y : y + CELL : ENLARGED, x : x + CELL : ENLARGED]) for y in tops for x in lefts]


@pytest.fixture
def own_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of rewards, new for every test."""
    name = f"rewards_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_training_does_not_notice(data: Path, cache: Path, tmp_path: Path, own_rewards: str) -> None:
    """Bit for bit the same weights, metrics and chance, although a reward draws at random: the same each time."""
    left = {}
    for name in ("without", "with"):
        dpo = {"objective": "diffusion_dpo", "settings": {"beta": 100.0}, "num_steps": 2, "ema": {"decay": 0.9}}
        settings = validated(data, rewards=(f"{own_rewards}:restless",), every=1, **dpo)
        torch.manual_seed(3)
        random.seed(4)
        np.random.seed(5)
        train(settings if name == "with" else settings.replace(validation=None), tmp_path / name, cache=cache)
        left[name] = torch.rand(5).tolist(), random.random(), np.random.rand()
    assert left["with"] == left["without"]
    for weights in ("policy", "ema"):
        assert equal(tensors(tmp_path / "with", weights), tensors(tmp_path / "without", weights))
    timeless = [[row | {"rows_per_second": 0.0} for row in metrics(tmp_path / name)] for name in left]
    assert timeless[0] == timeless[1]
    drawn = [row["rewards"][f"{own_rewards}:restless"]["mean"] for row in rows_of(tmp_path / "with")]
    assert len(drawn) == 3 and len(set(drawn)) == 1


def test_chance_and_wrappers_are_put_back() -> None:
    """Also after an error. Inside, chance is that of the run's seed, and networks are bare."""
    run: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu")),
        config=SimpleNamespace(seed=0),
        weights=SimpleNamespace(wrapped={"policy": torch.nn.Identity()}),
    )
    inside, after = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with pytest.raises(KeyboardInterrupt), validator._apart(run):
            assert not run.weights.wrapped
            inside.append((torch.rand(3).tolist(), random.random(), np.random.rand()))
            raise KeyboardInterrupt
        after.append(torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed))))
    assert inside[0] == inside[1] and after == [True, True] and list(run.weights.wrapped) == ["policy"]


def test_the_start_shows_the_base_from_the_noise_of_sampling(data: Path, cache: Path, tmp_path: Path) -> None:
    """What `diffalign sample` draws for the same prompts, but for rounding; scored as the rewards score it."""
    train(validated(data, num_steps=1, rewards=("tiny-clip", "luminance")), tmp_path, cache=cache)
    found = images_of(tmp_path / "validation" / "step-00000000.png")
    prompts = read_prompts("photographs")[:2]
    sampler = family_sampler(load_family("tiny-sd3"), num_steps=2, guidance_scale=3.0)
    for number, prompt in enumerate(prompts):
        noise = torch.stack([initial_noise(sampler.latent_shape, prompt.id, seed) for seed in range(2)])
        for image, other in zip(sampler([prompt.prompt] * 2, noise), found[2 * number : 2 * number + 2], strict=True):
            assert np.abs(np.asarray(image, dtype=int) - np.asarray(other, dtype=int)).max() <= 1
    row = rows_of(tmp_path)[0]
    scores = load_reward("tiny-clip")(found, [prompt.prompt for prompt in prompts for _ in range(2)])
    by_prompt = scores.reshape(2, 2).mean(1).tolist()
    assert row["rewards"]["tiny-clip"]["by_prompt"] == pytest.approx(
        dict(zip([p.id for p in prompts], by_prompt, strict=True))
    )
    assert row["rewards"]["tiny-clip"]["mean"] == pytest.approx(scores.mean().item())
    features = clip_features(found)
    spread = (pairwise_diversity(features[:2].numpy()) + pairwise_diversity(features[2:].numpy())) / 2
    assert row["diversity"] == pytest.approx(spread, abs=1e-6) and spread > 0
    assert {key: row[key] for key in ("step", "weights", "num_images", "num_failed")} == {
        "step": 0, "weights": "policy", "num_images": 4, "num_failed": 0
    }  # fmt: skip


def test_a_choice_below_the_start_is_told(tmp_path: Path, capsys: Any) -> None:
    wanted: Any = SimpleNamespace(choose="r", min_diversity=0.9)
    start, best = ({"step": step, "rewards": {"r": {"mean": mean}}} for step, mean in ((0, 3.5), (2, 3.0)))
    write_json(tmp_path / "made_with.json", {"validation": {"step": 2}})
    validator._tell_choice(wanted, start, best, tmp_path)
    assert "no step is better than the start by r: 3.5" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("kind", "averaged"), [("lora", True), ("full", False)])
def test_best_holds_the_weights_of_the_chosen_step(
    data: Path, cache: Path, tmp_path: Path, kind: str, averaged: bool, own_rewards: str, capsys: Any
) -> None:
    """A run that ends at that step ends with these weights: the average where there is one, else the policy."""
    ema, name = ({"decay": 0.5}, "ema") if averaged else (None, "policy")
    reward = f"{own_rewards}:greyness"  # rises while these images are trained on, so best/ is replaced
    settings = validated(data, train=kind, ema=ema, rewards=(reward,), choose=reward, num_steps=3, every=1)
    train(settings, tmp_path / "run", cache=cache)
    rows, made_with = rows_of(tmp_path / "run"), read_json(tmp_path / "run" / "best" / "made_with.json")
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and {row["weights"] for row in rows} == {name}
    best = max(rows[1:], key=lambda row: row["rewards"][reward]["mean"])
    said = made_with["validation"]
    assert said["step"] == best["step"] > 1 and said["mean"] == best["rewards"][reward]["mean"]
    assert said["reward"] == reward and said["identity"].startswith(f"{reward}@") and "highest mean" in said["rule"]
    assert made_with["in_training"] == [reward] and made_with["model"] == "tiny-sd3"
    told = capsys.readouterr().err
    assert f"best/ holds step {best['step']}" in told and "no step is better than the start" not in told
    train(settings.replace(validation=None, num_steps=best["step"]), tmp_path / "short", cache=cache)
    assert equal(tensors(tmp_path / "run", "best"), tensors(tmp_path / "short", name))
    assert is_denoiser(tmp_path / "run" / "best") == (kind == "full")


def test_an_average_that_is_the_reference_is_not_validated(data: Path) -> None:
    assert validator.validated_weights(config(data)) == "ema"
    assert validator.validated_weights(config(data, reference="ema")) == "policy"


def test_killed_and_resumed_equals_never_interrupted(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_rewards: str
) -> None:
    """Rows, grids and best/, byte for byte: killed before the start's row, after best/ and before its row, after a row
    that no checkpoint holds, and after the last row."""
    reward = f"{own_rewards}:greyness"
    settings = validated(data, rewards=(reward,), choose=reward, num_steps=4, every=1, checkpoint_every=2)
    train(settings, tmp_path / "whole", cache=cache)
    write, save = validator.write_jsonl, validator.save_weights
    ahead = ["row of 0", "best of 1", "row of 4 written"]

    def die(where: str) -> None:
        if ahead and ahead[0] == where:
            ahead.pop(0)
            raise KeyboardInterrupt

    def dying_write(path: Path, rows: Any) -> int:
        last = rows[-1].get("step") if rows and path.name == "validation.jsonl" else None
        die(f"row of {last}")
        count = write(path, rows)
        die(f"row of {last} written")
        return count

    def dying_save(run: Any, name: str, folder: Path, **more: Any) -> None:
        save(run, name, folder, **more)
        die(f"best of {more['validation']['step']}")

    monkeypatch.setattr(validator, "write_jsonl", dying_write)
    monkeypatch.setattr(validator, "save_weights", dying_save)
    interrupt_at(monkeypatch, 3)
    for kills in range(4):
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "parts", cache=cache)
        if kills == 2:  # a row that no checkpoint holds: it must be made again
            rows = rows_of(tmp_path / "parts")
            assert [row["step"] for row in rows] == [0, 1, 2, 3]
            write(tmp_path / "parts" / "validation.jsonl", [*rows[:3], rows[3] | {"num_failed": 7}])
    assert not ahead
    train(settings, tmp_path / "parts", cache=cache)
    for name in (
        "validation.jsonl",
        "best/made_with.json",
        *(f"validation/step-0000000{step}.png" for step in range(5)),
    ):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    for name in ("policy", "best"):
        assert equal(tensors(tmp_path / "whole", name), tensors(tmp_path / "parts", name))
    assert not list((tmp_path / "parts").rglob(".tmp-*"))
    monkeypatch.setattr(build, "load_family", lambda *_, **__: pytest.fail("a finished run is left alone"))
    train(settings, tmp_path / "parts", cache=cache)


def test_what_changed_is_refused_on_resume(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, run = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("a photo of grass\n")
    settings = validated(data, prompts=str(prompts), every=1, rewards=("luminance",), num_steps=3, checkpoint_every=1)
    interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(settings, run, cache=cache)
    prompts.write_text("a photo of gravel\n")
    with pytest.raises(DiffalignError, match="the validation prompts is not what"):
        train(settings, run, cache=cache)
    prompts.write_text("a photo of grass\n")
    written = (run / "validation.jsonl").read_text()
    (run / "validation.jsonl").write_text(written.replace("luminance@none/grey8", "luminance@none/grey16"))
    with pytest.raises(DiffalignError, match="luminance@none/grey8, the steps before were scored by luminance@none/gr"):
        train(settings, run, cache=cache)
    (run / "validation.jsonl").write_text("".join(written.splitlines(keepends=True)[1:]))
    with pytest.raises(DiffalignError, match="no row of step 0"):
        train(settings, run, cache=cache)
    (run / "validation.jsonl").write_text(written)
    train(settings, run, cache=cache)
    assert [row["step"] for row in rows_of(run)] == [0, 1, 2, 3]


def row(step: int, mean: float | None, spread: float | None) -> dict[str, Any]:
    return {"step": step, "rewards": {"r": {"mean": mean}}, "diversity": spread}


def test_the_rule_of_choice() -> None:
    """d_0 = 0.4 and a share of 1/2: steps below 0.2 are out, 0.2 itself is in; ties go to the earlier step; the start
    is never chosen, however well it scores."""
    rows = [row(0, 9.0, 0.4), row(1, 5.0, 0.19), row(2, 3.0, 0.2), row(3, 3.0, 0.5), row(4, 1.0, 0.4)]
    for min_diversity, step in ((0.5, 2), (0.4, 1), (0.6, 3), (1.0, 3)):
        best = chosen(rows, "r", min_diversity)
        assert best is not None and best["step"] == step
    assert chosen(rows, "r", 2.0) is None and chosen(rows[:1], "r", 0.5) is None
    unscored = [row(0, 9.0, 0.4), row(1, None, 0.4), row(2, 7.0, None)]
    assert chosen(unscored, "r", 0.5) is None
    single = [row(0, 9.0, None), row(1, 1.0, None), row(2, None, None)]
    best = chosen(single, "r", 0.5)
    assert best is not None and best["step"] == 1


def test_diversity_is_of_images_of_one_prompt() -> None:
    grey, red, blue, green = (Image.new("RGB", (32, 32), colour) for colour in ("grey", "red", "blue", "green"))
    assert diversity([grey, grey, red, red], 2) == pytest.approx(0, abs=1e-6)
    one, two = diversity([red, blue], 2), diversity([green, grey, red], 3)
    assert one is not None and two is not None and one > 1e-3
    both = diversity([red, blue, None, green, grey, red], 3)
    assert both == pytest.approx((one + two) / 2, abs=1e-6)  # an image that is not there is no difference
    assert diversity([red, blue, red], 1) is None and diversity([red, None], 2) is None
    assert prompt_means([None, 1.0, 3.0, 5.0], 2) == [1.0, 4.0]


def test_collapse_raises_the_alarm_once_and_leaves_no_best(
    data: Path, cache: Path, tmp_path: Path, capsys: Any
) -> None:
    """Ten times the start's diversity is asked for, so every later step collapses."""
    settings = validated(data, rewards=("tiny-clip",), choose="tiny-clip", min_diversity=10.0, every=1, num_steps=2)
    train(settings, tmp_path, cache=cache)
    said = capsys.readouterr().err
    assert [row.get("alarms", []) for row in rows_of(tmp_path)] == [[], ["diversity_collapse"], []]
    assert said.count("step 1, diversity_collapse: images of one prompt differ by") == 1 and "step 2, div" not in said
    assert "there is no best/" in said and not (tmp_path / "best").exists()


def test_one_seed_has_no_diversity_and_still_a_choice(data: Path, cache: Path, tmp_path: Path) -> None:
    settings = validated(data, rewards=("tiny-clip",), choose="tiny-clip", num_seeds=1, num_steps=1)
    train(settings, tmp_path, cache=cache)
    assert [row["diversity"] for row in rows_of(tmp_path)] == [None, None] and (tmp_path / "best").exists()


def test_images_without_a_score_are_left_out_and_counted(
    data: Path, cache: Path, tmp_path: Path, own_rewards: str, capsys: Any
) -> None:
    names = tuple(f"{own_rewards}:{name}" for name in ("nan_for_cats", "raises_for_cats"))
    train(validated(data, rewards=names, num_steps=1), tmp_path / "run", cache=cache)
    person, cat = (prompt.id for prompt in read_prompts("photographs")[:2])
    for name, value in zip(names, (2.0, 3.0), strict=True):
        for found in rows_of(tmp_path / "run"):
            said = found["rewards"][name]
            assert (
                said["mean"] == value and said["num_missing"] == 2 and said["by_prompt"] == {person: value, cat: None}
            )
    assert "no cats" in capsys.readouterr().err


def test_a_reward_that_scores_nothing_stops_at_the_start_and_not_later(
    data: Path, cache: Path, tmp_path: Path, own_rewards: str
) -> None:
    with pytest.raises(DiffalignError, match=r"scores none of the 4 validation images before the first.*out of order"):
        train(validated(data, rewards=(f"{own_rewards}:never",)), tmp_path / "never", cache=cache)
    assert metrics(tmp_path / "never") == [] and rows_of(tmp_path / "never") == []
    name = f"{own_rewards}:once"
    train(validated(data, rewards=(name,), choose=name, every=1, num_steps=2), tmp_path / "once", cache=cache)
    assert [row["rewards"][name]["mean"] for row in rows_of(tmp_path / "once")] == [1.0, None, None]
    assert not (tmp_path / "once" / "best").exists()


def test_images_that_are_not_finite_are_grey_and_counted(
    data: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The second prompt's first seed fails, and takes no other image of its batch along."""
    bad, sample = initial_noise((4, 16, 16), read_prompts("photographs")[1].id, 0), validator.sample_latents
    wrong = [bad]

    def failing(family: Any, condition: Any, noise: torch.Tensor, **options: Any) -> Any:
        if any(torch.equal(one, each) for one in noise for each in wrong):
            raise FloatingPointError("the prediction is not finite at step 1 of 2")
        return sample(family, condition, noise, **options)

    monkeypatch.setattr(validator, "sample_latents", failing)
    train(validated(data, num_steps=1, rewards=("tiny-clip",)), tmp_path / "run", cache=cache)
    for found in rows_of(tmp_path / "run"):
        assert found["num_failed"] == 1 and found["rewards"]["tiny-clip"]["num_missing"] == 1
        means = found["rewards"]["tiny-clip"]["by_prompt"].values()
        assert None not in means and found["diversity"] > 0
        greys = [image.getextrema() == ((128, 128),) * 3 for image in images_of(tmp_path / "run" / found["grid"])]
        assert greys == [False, False, True, False]
    assert "1 of 4 validation images could not be drawn, the first: the prediction is not" in capsys.readouterr().err
    wrong += [initial_noise((4, 16, 16), prompt.id, seed) for prompt in read_prompts("photographs") for seed in (0, 1)]
    with pytest.raises(DiffalignError, match="4 of 4 validation images could not be drawn"):
        train(validated(data, num_steps=1), tmp_path / "none", cache=cache)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": ("tiny-clp",)}, "unknown reward 'tiny-clp'; nearest: tiny-clip"),
        ({"rewards": ("sgp:tiny-clp",)}, "unknown reward 'tiny-clp'"),
        ({"rewards": ("no_such_module:reward",)}, "there is no module 'no_such_module'"),
        ({"rewards": ("tiny-clip",), "choose": "luminance"}, "in validation.choose 'luminance'"),
        ({"rewards": ("tiny-clip",), "weights": {"tiny-clap": "there"}}, "in validation.weights 'tiny-clap'; nearest"),
        ({"rewards": ("tiny-clip", "tiny-clip")}, "every one of validation.rewards once"),
        ({"rewards": ("hpsv2.1",)}, "reward 'hpsv2.1' needs converted weights: get "),
        ({"rewards": ("sgp:tiny-clip",), "weights": {"sgp:tiny-clip": "no/such"}}, "no/such is neither a folder nor"),
        ({"rewards": ("luminance",), "choose": "luminance"}, "more of it is not better"),
        ({"prompts": "photgraphs"}, "nearest: photographs"),
        ({"prompts": "empty.txt"}, "holds no prompts"),
        ({"prompts": "absent.txt"}, "cannot read absent.txt"),
    ],
)
def test_mistakes_are_told_before_any_weight_loads(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(build, "load_family", lambda *_, **__: pytest.fail("a weight was loaded"))
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    with pytest.raises(DiffalignError, match=words):
        train(validated(data, **changes), tmp_path / "run")
    with pytest.raises(DiffalignError, match=r"validation.num_steps"):
        config(data, validation={"prompts": "photographs", "num_steps": 1001})


def test_when_and_how_much(data: Path) -> None:
    """5 validations of 2 prompts, 2 seeds, 2 solver steps, 2 branches of text: 80 images pass the network."""
    settings = validated(data, num_steps=7)
    assert validation_steps(settings) == [0, 2, 4, 6, 7] and validation_calls(settings) == 5 * 2 * 2 * 2 * 2
    assert validation_calls(validated(data, num_steps=7, guidance_scale=1.0)) == 5 * 2 * 2 * 2
    assert validation_steps(config(data)) == [] and validation_calls(config(data)) == 0


def test_two_processes_draw_what_one_draws(data: Path, cache: Path, tmp_path: Path) -> None:
    """Three batches for two processes."""
    settings = validated(data, rewards=("tiny-clip",), choose="tiny-clip", num_steps=1, num_seeds=3, micro_batch_size=2)
    train(settings, tmp_path / "one", cache=cache)
    write_json(tmp_path / "config.json", dump_config(settings))
    done = launch(2, tmp_path, "config.json", "two", str(cache))
    assert done.returncode == 0, done.stderr[-3000:]
    for one, two in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert one["step"] == two["step"] and one["diversity"] == pytest.approx(two["diversity"], rel=1e-2)
        assert one["rewards"]["tiny-clip"]["mean"] == pytest.approx(two["rewards"]["tiny-clip"]["mean"], rel=1e-2)
        grids = [np.asarray(Image.open(tmp_path / name / one["grid"]), dtype=int) for name in ("one", "two")]
        assert np.abs(grids[0] - grids[1]).max() <= 2  # of 255: rounding, and the order of sums
    assert (tmp_path / "two" / "best" / "made_with.json").exists()
