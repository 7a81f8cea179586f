"""Validation while a run goes: the same prompts from the same noise, scored; the weights of the chosen step are kept.

validation.jsonl     a row per validated step: reward means, diversity, alarms
validation/          step-00000100.png: prompts as rows, seeds as columns; prompts.jsonl
best/                the weights of the step that the rule chooses so far
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from PIL import Image
from torch import Tensor

from diffalign.core import (
    DiffalignError,
    atomic_path,
    get_console,
    progress,
    read_json,
    read_jsonl,
    remove_stale,
    seed_from,
    warn,
    write_jsonl,
)
from diffalign.data import encode_png, from_tensor
from diffalign.rewards import Reward, load_reward, score
from diffalign.sample import PromptRow, draw_grid, initial_noise, sample_latents
from diffalign.train.build import Run, save_weights
from diffalign.train.config import TrainConfig, ValidationConfig
from diffalign.train.validation import (
    chosen,
    diversity,
    diversity_collapse,
    prompt_means,
    validated_weights,
    validation_prompts,
    validation_steps,
)

__all__ = ["Validator", "check_rewards"]

COLLAPSE = "diversity_collapse"
Row = dict[str, Any]


class Validator:
    """Validates a run where its config asks for it; does nothing otherwise.

    Every process draws its share of the images; the main one scores and writes.

    Args:
        run: what is trained.
        folder: of the run.
        first: steps that the run goes on after; later rows are dropped, they will be made again.

    Raises:
        DiffalignError: rows of steps before ``first`` are not there.
    """

    def __init__(self, run: Run, folder: Path, first: int) -> None:
        self._run, self._folder = run, folder
        self._prompts = validation_prompts(run.config)
        self._steps = set(validation_steps(run.config))
        self._rewards: list[Reward] | None = None
        self._rows: list[Row] = []
        if self._steps:
            read = self._restore(first) if run.accelerator.is_main_process else []
            self._rows = broadcast_object_list([read])[0]

    def after(self, step: int) -> None:
        """Validate the weights as they are after so many optimiser steps, if it is time and has not been done.

        Raises:
            DiffalignError: before the first step, no image comes out, or a reward scores none; or a reward is not the
                one of the rows before.
        """
        wanted = self._run.config.validation
        if wanted is None or step not in self._steps or any(row["step"] == step for row in self._rows):
            return
        with _apart(self._run):
            if self._run.accelerator.is_main_process:
                self._load(wanted)  # what cannot be loaded is told before anything is drawn
            images = self._draw(wanted)
            if self._run.accelerator.is_main_process:
                self._record(wanted, step, images)

    def _restore(self, first: int) -> list[Row]:
        """The rows that stay."""
        path = self._folder / "validation.jsonl"
        remove_stale(self._folder / "validation")
        rows = [row for row in read_jsonl(path) if row["step"] <= first] if path.exists() else []
        lost = {step for step in self._steps if step < first} - {row["step"] for row in rows}
        if lost:
            raise DiffalignError(
                f"{path} has no row of step {min(lost)}, from which this run goes on: put the file back, or begin anew "
                "in another folder"
            )
        write_jsonl(path, rows)
        prompts = [{"id": row.id, "prompt": row.prompt} for row in self._prompts]
        write_jsonl(self._folder / "validation" / "prompts.jsonl", prompts)
        return rows

    def _load(self, wanted: ValidationConfig) -> None:
        if self._rewards is not None:
            return
        device = self._run.accelerator.device
        self._rewards = _load_rewards(wanted, device)
        for name, reward in zip(wanted.rewards, self._rewards, strict=True):
            before = self._rows[-1]["rewards"][name]["identity"] if self._rows else reward.card.identity
            if before != reward.card.identity:
                raise DiffalignError(
                    f"reward {name!r} is now {reward.card.identity}, the steps before were scored by {before}: put its "
                    "weights back, or begin a new run in another folder"
                )

    def _draw(self, wanted: ValidationConfig) -> list[Image.Image | str]:
        """Prompt by prompt, seed by seed, an image or why there is none. Batches are the same on any number of
        processes, and so are the images."""
        accelerator, size = self._run.accelerator, self._run.config.micro_batch_size
        items = [(prompt, seed) for prompt in self._prompts for seed in range(wanted.num_seeds)]
        own = range(0, len(items), size)[accelerator.process_index :: accelerator.num_processes]
        drawn = []
        for start in progress(own, description="validation", unit="batches"):
            drawn.append((start, self._sample(wanted, items[start : start + size])))
        return [image for _, batch in sorted(gather_object(drawn), key=lambda one: one[0]) for image in batch]

    def _sample(self, wanted: ValidationConfig, items: Sequence[tuple[PromptRow, int]]) -> list[Image.Image | str]:
        """After a number that is not finite, one item at a time."""
        run = self._run
        shape = run.family.latent_shape(run.config.resolution, run.config.resolution)
        noise = torch.stack([initial_noise(shape, prompt.id, seed) for prompt, seed in items])
        condition = _stacked([run.latents.prompt(prompt.prompt) for prompt, _ in items], run.accelerator.device)
        negative = _stacked([run.latents.prompt("")] * len(items), run.accelerator.device)
        try:
            with torch.no_grad(), run.autocast(), run.weights.active(validated_weights(run.config)) as predict:
                latents = sample_latents(
                    run.family,
                    condition,
                    noise.to(run.accelerator.device),
                    num_steps=wanted.num_steps,
                    guidance_scale=wanted.guidance_scale,
                    negative_condition=negative,
                    predict=predict,
                ).latents
                return [self._decoded(one[None]) for one in latents]
        except FloatingPointError as error:
            if len(items) == 1:
                return [str(error)]
        return [image for item in items for image in self._sample(wanted, [item])]

    def _decoded(self, latents: Tensor) -> Image.Image:
        """One image at a time: an autoencoder takes more memory than the batch that trains."""
        pixels = self._run.family.decode(latents)
        if not bool(pixels.isfinite().all()):
            raise FloatingPointError("the decoded image is not finite")
        return from_tensor(pixels[0])

    def _record(self, wanted: ValidationConfig, step: int, drawn: Sequence[Image.Image | str]) -> None:
        """Score and write. The row comes last: a kill before it leaves a step that is validated anew."""
        images = [None if isinstance(image, str) else image for image in drawn]
        failed = [why for why in drawn if isinstance(why, str)]
        if failed:
            told = f"{len(failed)} of {len(drawn)} validation images could not be drawn, the first: {failed[0]}"
            if step == 0 and len(failed) == len(drawn):
                raise DiffalignError(f"{told}. Look at validation.guidance_scale, num_steps, and mixed_precision")
            warn(f"step {step}: {told}")
        row: Row = {
            "step": step,
            "weights": validated_weights(self._run.config),
            "grid": f"validation/step-{step:08d}.png",
            "num_images": len(images),
            "num_failed": len(failed),
            "diversity": diversity(images, wanted.num_seeds, device=self._run.accelerator.device),
            "rewards": {
                name: self._scored(wanted, step, reward, images)
                for name, reward in zip(wanted.rewards, self._rewards or (), strict=True)
            },
        }
        rows = [*self._rows, row]
        message = diversity_collapse(rows, wanted.min_diversity)
        if message is not None and not any(COLLAPSE in each.get("alarms", ()) for each in rows):
            warn(f"step {step}, {COLLAPSE}: {message}")
            row["alarms"] = [COLLAPSE]
        grid = draw_grid(
            f"step {step} of {self._run.config.num_steps}, {row['weights']}",
            [one.prompt for one in self._prompts],
            images,
        )
        with atomic_path(self._folder / row["grid"]) as temporary:
            temporary.write_bytes(encode_png(grid))
        _tell(row)
        if wanted.choose:
            self._choose(wanted, rows)
        write_jsonl(self._folder / "validation.jsonl", rows)
        self._rows = rows

    def _scored(
        self, wanted: ValidationConfig, step: int, reward: Reward, images: Sequence[Image.Image | None]
    ) -> dict[str, Any]:
        """What a reward says of the images that there are; those without a score are left out and counted."""
        texts = [prompt.prompt for prompt in self._prompts for _ in range(wanted.num_seeds)]
        there = {number: image for number, image in enumerate(images) if image is not None}
        values: list[float | None] = [None] * len(images)
        if there:
            found = score(reward, list(there.values()), [texts[number] for number in there])
            for number, value, status in zip(there, found.values.tolist(), found.statuses, strict=True):
                values[number] = value if status == "ok" else None
            if step == 0 and set(values) == {None}:
                raise DiffalignError(
                    f"reward {reward.card.name!r} scores none of the {len(images)} validation images before the first "
                    f"step, the first with {found.statuses[0]}: leave it out, or mend it"
                )
        by_prompt = prompt_means(values, wanted.num_seeds)
        means = [mean for mean in by_prompt if mean is not None]
        return {
            "identity": reward.card.identity,
            "mean": fmean(means) if means else None,
            "num_missing": values.count(None),
            "by_prompt": dict(zip([prompt.id for prompt in self._prompts], by_prompt, strict=True)),
        }

    def _choose(self, wanted: ValidationConfig, rows: Sequence[Row]) -> None:
        """Keep the weights of now where the rule chooses them; at the end, say what it chose."""
        best, row, folder = chosen(rows, wanted.choose, wanted.min_diversity), rows[-1], self._folder / "best"
        if best is row:
            made_with = {
                "validation": {
                    "rule": f"of the steps after the start whose diversity is at least {wanted.min_diversity:g} of the "
                    f"start's, the one with the highest mean of {wanted.choose}; of equal ones the first",
                    "step": row["step"],
                    "weights": row["weights"],
                    "reward": wanted.choose,
                    "identity": row["rewards"][wanted.choose]["identity"],
                    "mean": row["rewards"][wanted.choose]["mean"],
                    "diversity": row["diversity"],
                },
                "in_training": list(dict.fromkeys([wanted.choose, wanted.choose.removeprefix("sgp:")])),
            }
            with atomic_path(folder) as temporary:
                save_weights(self._run, row["weights"], temporary, **made_with)
                if folder.exists():
                    shutil.rmtree(folder)
        if row["step"] == self._run.config.num_steps:
            _tell_choice(wanted, rows[0], best, folder)


def _tell(row: Mapping[str, Any]) -> None:
    said = [f"{name} {one['mean']:.4g}" for name, one in row["rewards"].items() if one["mean"] is not None]
    said += [f"diversity {row['diversity']:.3g}"] if row["diversity"] is not None else []
    get_console().print(f"validation after step {row['step']}: {', '.join([*said, row['grid']])}", markup=False)


def _tell_choice(
    wanted: ValidationConfig, start: Mapping[str, Any], best: Mapping[str, Any] | None, folder: Path
) -> None:
    """The last word of the rule. Weights of another step than the chosen one are not kept under its name."""
    kept = read_json(folder / "made_with.json")["validation"]["step"] if folder.exists() else None
    if best is None:
        warn(
            f"no validated step has both a mean of {wanted.choose} and {wanted.min_diversity:g} of the start's "
            "diversity: there is no best/"
        )
    elif kept == best["step"]:
        mean, before = (row["rewards"][wanted.choose]["mean"] for row in (best, start))
        get_console().print(f"best/ holds step {kept}, {wanted.choose} {mean:.4g}", markup=False)
        if before is not None and mean <= before:
            warn(f"no step is better than the start by {wanted.choose}: {before:.4g} before training")
    else:
        warn(
            f"the rule chooses step {best['step']}, whose weights are gone: after an interruption this machine came to "
            "other numbers. There is no best/"
        )
    if kept is not None and (best is None or kept != best["step"]):
        shutil.rmtree(folder)


def check_rewards(config: TrainConfig) -> None:
    """Load the rewards of a stage's validation on the CPU and let them go: what is missing is told before anything is
    encoded.

    Raises:
        DiffalignError: weights are missing, or the reward that chooses says not what is better.
    """
    if config.validation is not None:
        with _own_chance(config.seed, torch.device("cpu")):
            _load_rewards(config.validation, torch.device("cpu"))


def _load_rewards(wanted: ValidationConfig, device: torch.device) -> list[Reward]:
    rewards = [load_reward(name, weights=wanted.weights.get(name), device=device) for name in wanted.rewards]
    for name, reward in zip(wanted.rewards, rewards, strict=True):
        if name == wanted.choose and reward.card.higher_is_better is not True:
            raise DiffalignError(
                f"validation.choose {name!r}: more of it is not better. Choose by another reward, or by a function "
                "of your own as module:function"
            )
    return rewards


def _stacked(conditions: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    return {key: torch.stack([one[key] for one in conditions]).to(device) for key in conditions[0]}


@contextmanager
def _apart(run: Run) -> Iterator[None]:
    """Inside the block chance is the validation's own, and networks are called without the wrapper under which
    processes wait for each other at every pass."""
    wrapped = dict(run.weights.wrapped)
    with _own_chance(run.config.seed, run.accelerator.device):
        try:
            run.weights.wrapped.clear()
            yield
        finally:
            run.weights.wrapped.update(wrapped)


@contextmanager
def _own_chance(run_seed: int, device: torch.device) -> Iterator[None]:
    """Inside the block chance begins anew from the run's seed, and training's goes on afterwards where it was."""
    seed, ours, numpy_state = seed_from("validation", run_seed), random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpy_state)
