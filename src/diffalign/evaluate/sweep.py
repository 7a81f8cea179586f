"""A sweep over the strength of guidance: its runs checked and scored, then concluded from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from diffalign.core import DiffalignError, unknown, versions
from diffalign.evaluate.choice import Key, broken_strengths, split_ids
from diffalign.evaluate.compare import SETTINGS
from diffalign.evaluate.scores import rewards_by_name, score_folder, values_by_prompt
from diffalign.evaluate.sources import OK, ImageRow, ScoreRow, checked_images, read_images
from diffalign.evaluate.strengths import DIVERSITY, SweepScores, conclude
from diffalign.rewards import clip_features, load_reward
from diffalign.sample import SweepFolder, read_sweep
from diffalign.stats import pairwise_diversity

__all__ = ["measure_sweep"]

Features = Callable[[Sequence[Path]], ArrayLike]


def measure_sweep(
    folder: str | Path,
    rewards: Sequence[str],
    *,
    choose_by: str | None = None,
    held_out: Sequence[str] = (),
    validation_share: float = 0.5,
    min_diversity: float = 0.9,
    weights: Mapping[str, str | Path] | None = None,
    features: Features | None = None,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Score every run of a sweep, choose a strength on the validation prompts and measure it on the others.

    The rule is ``choose_strength``, the parts are ``split_ids``'s. Scores are kept in each run's own folder (see
    ``score_folder``), so nothing is scored twice. An image without a score at one strength is left out at all of them,
    and counted. A strength that breaks images, by the rule's bound, is out of the choice: it takes no image from the
    others, and its numbers are those of what it has. The reward that chooses becomes in-training in the tables; so does
    diversity, which the rule looks at.

    Args:
        folder: of ``run_sweep``.
        rewards: names as ``load_reward`` takes them.
        choose_by: the one that chooses; None where there is only one.
        held_out: names of those that had no part in training and that claims may rest on.
        validation_share: share of the prompts that choose.
        min_diversity: share of the weakest strength's diversity that a strength must keep to be chosen.
        weights: of rewards, by name.
        features: paths of N images to (N, d) features for diversity; None for ``tiny-clip``'s, which sees layout and
            colour at 32 pixels.
        batch_size: images per call of a network.
        device: where to run.

    Returns:
        JSON values. Of the sweep: axis, strengths, folders, guide, settings. Of the choice: rule, chosen, weakest,
        chosen_by, validation (a row per strength: quality, diversity, num_images, num_failed, in_choice), left_out (the
        strengths that break images), prompts (ids by part). On the other
        prompts: models (by strength: metric -> mean, low, high, num_prompts; num_images), differences (chosen minus
        weakest), roles, higher_is_better. num_failed (images without a value, by metric and strength), notes and
        alarms (sentences), versions.

    Raises:
        DiffalignError: no sweep, a run that is missing or differs in more than the strength, an unknown reward, one
            that cannot choose or scores nothing, fewer than 3 prompts, or no whole image at a strength that is kept.
    """
    chooser = _chooser(rewards, choose_by, held_out)
    if not 0 <= min_diversity <= 1:
        raise DiffalignError(f"expected min_diversity from 0 to 1, a share of the weakest's, got {min_diversity}")
    sweep = read_sweep(folder)
    images = [read_images(run)[1] for run in sweep.folders]
    _refuse_unlike(sweep, images)
    ids = {row.prompt: row.prompt_id for row in sorted(images[0], key=lambda row: row.key, reverse=True)}
    split = split_ids(ids.values(), validation_share)  # what is wrong with it is told before anything is scored
    tables = _scored(sweep, rewards, chooser, held_out, weights or {}, batch_size, device)
    features = features or partial(clip_features, batch_size=batch_size, device=device)
    first = {name: runs[0][0] for name, runs in tables.items()}
    columns = {name: [values_by_prompt(rows) for rows in runs] for name, runs in tables.items()}
    validation = {prompt for prompt, one in ids.items() if one in split.validation}
    broken = broken_strengths(sweep.strengths, columns[chooser], validation)
    scores = SweepScores(
        axis=sweep.axis,
        strengths=sweep.strengths,
        ids=ids,
        columns=columns | {DIVERSITY: _spread(sweep, features, broken)},
        roles={name: row.role for name, row in first.items()} | {DIVERSITY: "in-training"},
        higher_is_better={name: row.higher_is_better for name, row in first.items()} | {DIVERSITY: True},
    )
    told = conclude(scores, chooser, validation_share=validation_share, min_diversity=min_diversity)
    return {**_described(sweep), **told, "versions": versions()}


def _chooser(rewards: Sequence[str], choose_by: str | None, held_out: Collection[str]) -> str:
    if choose_by is None:
        if len(rewards) != 1:
            raise DiffalignError(f"expected --choose-by to say which of {', '.join(rewards)} chooses the strength")
        choose_by = rewards[0]
    for what, name in (("reward that chooses", choose_by), *(("held-out reward", name) for name in held_out)):
        if name not in rewards:
            raise unknown(what, name, rewards)
    if choose_by in held_out:
        raise DiffalignError(f"{choose_by} chooses the strength, so it is not held out; let another reward choose")
    return choose_by


def _described(sweep: SweepFolder) -> dict[str, Any]:
    return {
        "axis": sweep.axis,
        "strengths": list(sweep.strengths),
        "folders": [run.name for run in sweep.folders],
        "guide": sweep.guide,
        "settings": sweep.settings,
    }


def _refuse_unlike(sweep: SweepFolder, images: Sequence[Sequence[ImageRow]]) -> None:
    """Raise for runs of other prompts, seeds or settings than the first, or of another strength than their folder's."""
    weakest = {row.key: row for row in images[0]}
    alike = [name for name in (*SETTINGS, "prompt", "model", "adapter") if (sweep.axis, name) != _TEXT]
    for run, strength, rows in zip(sweep.folders, sweep.strengths, images, strict=True):
        if {row.key for row in rows} != weakest.keys():
            raise DiffalignError(
                f"{run} and {sweep.folders[0]} have other prompts or seeds ({len(rows)} images and {len(weakest)}); "
                "sample both with the same"
            )
        for row in rows:
            wrong = [name for name in alike if getattr(row, name) != getattr(weakest[row.key], name)]
            guide = {**(sweep.guide or {}), **({} if sweep.axis == _TEXT[0] else {sweep.axis: strength})}
            wrong += ["guide"] if (row.guide or {}) != guide else []
            wrong += [_TEXT[1]] if sweep.axis == _TEXT[0] and row.guidance_scale != strength else []
            if wrong:
                raise DiffalignError(
                    f"{run} is not what {sweep.folders[0].parent / 'sweep.json'} says: {', '.join(wrong)} of prompt "
                    f"{row.prompt_id!r}, seed {row.seed} differs. Make the sweep again in a new folder"
                )


_TEXT = ("guidance", "guidance_scale")  # the axis of text guidance, and its column in a manifest


def _scored(
    sweep: SweepFolder,
    rewards: Sequence[str],
    chooser: str,
    held_out: Collection[str],
    weights: Mapping[str, str | Path],
    batch_size: int,
    device: str | torch.device,
) -> dict[str, list[list[ScoreRow]]]:
    """By reward the table of each run; one reward is loaded at a time, once for all runs."""
    named = rewards_by_name(rewards, weights, device)
    tables = {}
    for name in sorted(named, key=lambda one: one != chooser):  # its role is known before that of its style gap
        reward = named[name]
        if isinstance(reward, str):
            reward = load_reward(reward, weights=weights.get(name), device=device)
        tables[name] = [
            [
                row
                for row in score_folder(
                    run,
                    [reward],
                    in_training=[name] if name == chooser else [],
                    held_out=[name] if name in held_out else [],
                    batch_size=batch_size,
                    device=device,
                )
                if row.name == name
            ]
            for run in sweep.folders
        ]
        del reward  # the next may need its memory
        _refuse_without_scores(name, tables[name])
    return {name: tables[name] for name in named}


def _refuse_without_scores(name: str, runs: Sequence[Sequence[ScoreRow]]) -> None:
    if all(row.value is None for rows in runs for row in rows):
        raise DiffalignError(f"{name} has no score of any image, the first with {runs[0][0].status!r}")


def _spread(sweep: SweepFolder, features: Features, broken: Collection[float]) -> list[dict[Key, float]]:
    """At each strength the mean distance between a prompt's images, of those that are there at all but the broken."""
    found = {strength: _features(run, features) for strength, run in zip(sweep.strengths, sweep.folders, strict=True)}
    for strength, run in zip(sweep.strengths, sweep.folders, strict=True):
        if not found[strength] and strength not in broken:
            raise DiffalignError(f"{run} has no image that is whole; make it again")
    there = set.intersection(*(set(run) for strength, run in found.items() if strength not in broken))
    return [_distances({key: run[key] for key in sorted(there & run.keys())}) for run in found.values()]


def _distances(features: Mapping[Key, Any]) -> dict[Key, float]:
    """By prompt, where it has two images."""
    groups: dict[str, list[Any]] = {}
    for (prompt, _), one in features.items():
        groups.setdefault(prompt, []).append(one)
    return {(prompt, 0): pairwise_diversity(np.stack(group)) for prompt, group in groups.items() if len(group) > 1}


def _features(run: Path, features: Features) -> dict[Key, Any]:
    """Features by prompt and number, of the images that are what the manifest says."""
    folder, rows = checked_images(run)
    ordered = list(enumerate(sorted(rows, key=lambda row: row.key)))
    good = [(number, row) for number, row in ordered if row.status == OK]
    if not good:
        return {}
    made = np.asarray(features([folder / row.file for _, row in good]), dtype=np.float64)
    return {(row.prompt, number): one for (number, row), one in zip(good, made, strict=True)}
