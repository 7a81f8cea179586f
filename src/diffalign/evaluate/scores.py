"""A folder of images to the long table of scores; every score is kept, so that nothing is scored twice."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path

import torch

from diffalign.core import (
    DiffalignError,
    folder_lock,
    remove_stale,
    safe_name,
    unknown,
    warn,
    write_jsonl,
)
from diffalign.evaluate.sources import OK, ImageRow, Role, ScoreRow, checked_images, parse_rows
from diffalign.rewards import REWARDS, UNVERSIONED, Reward, load_reward, score
from diffalign.stats import Estimate, mean_interval

__all__ = ["MetricSummary", "read_scores", "rewards_by_name", "score_folder", "summarise", "values_by_prompt"]

TABLE = "scores.jsonl"
CACHE = "scores-cache"  # a file of scores per metric
NOT_GENERATED, NOT_SCORED = "not generated", "not scored"
_BATCHES_PER_SAVE = 16

# (sha256, prompt): (value, status)
Outcomes = dict[tuple[str, str], tuple[float | None, str]]


def score_folder(
    source: str | Path,
    rewards: Sequence[str | Reward],
    *,
    out: str | Path | None = None,
    weights: Mapping[str, str | Path] | None = None,
    in_training: Sequence[str] = (),
    held_out: Sequence[str] = (),
    prompts: Mapping[str, str] | None = None,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
) -> list[ScoreRow]:
    """Score the images of a sample run or of a plain folder, and write ``scores.jsonl``.

    A score is kept by (image's sha256, prompt, metric's identity) in ``scores-cache``: a further metric scores only
    itself, a rerun scores nothing, and a killed run goes on where it was. What has no score is a row with its status
    and without a value, and is tried again by a rerun. Metrics that the table already has stay in it, with the roles
    declared then; of a metric's name, only the version scored last. An image whose pixels are not those of the
    manifest has no score. The scores of a reward of one's own without a version are not kept.

    Args:
        source: as in `read_images`.
        rewards: names as `diffalign.rewards.load_reward` takes them, or loaded rewards.
        out: folder of the table and the cache; by default the images' own.
        weights: of rewards, by name.
        in_training: names of the metrics that selected data, checkpoints or settings, or were optimised; ``sgp:<name>``
            has the part that <name> has.
        held_out: names of the metrics that had no such part and that claims may rest on, declared beforehand.
        prompts: as in `read_images`.
        batch_size: images per call of a network.
        device: where to run.

    Returns:
        The table: for each metric, a row for each image of the source.

    Raises:
        DiffalignError: see `read_images`; an unknown name; a metric with two roles; a reward that cannot be loaded.
    """
    named = rewards_by_name(rewards, weights or {}, device)
    folder, images = checked_images(source, prompts=prompts)
    out = folder if out is None else Path(out)
    with folder_lock(out):
        earlier = read_scores(out) if (out / TABLE).exists() else []
        roles = _roles(earlier, in_training, held_out, set(named))
        shown = [_relative(image, folder, out) for image in images]
        rows = _kept(earlier, shown, set(named), roles)
        for name, reward in named.items():
            if isinstance(reward, str):
                reward = load_reward(reward, weights=(weights or {}).get(name), device=device)
            card = reward.card
            if card.role == "in-training" and roles.get(name) == "held-out":
                raise DiffalignError(f"{name} is in-training by its nature and cannot be held-out")
            role = roles.get(name) or card.role or "undeclared"
            outcomes = _outcomes(reward, folder, images, out / CACHE, batch_size)
            rows += _rows(shown, outcomes, card.identity, name, role, card.higher_is_better)
            del reward  # the next may need its memory
        write_jsonl(out / TABLE, map(asdict, rows))
    return rows


def read_scores(path: str | Path) -> list[ScoreRow]:
    """The table that `score_folder` wrote, from its folder or file.

    Raises:
        DiffalignError: there is none, or a row is wrong.
    """
    file = Path(path) / TABLE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise DiffalignError(f"{path} has no {TABLE}; run diffalign score on it first")
    rows = parse_rows(ScoreRow, file)
    if not rows:
        raise DiffalignError(f"{file} is empty; run diffalign score again")
    return rows


@dataclass(frozen=True, kw_only=True)
class MetricSummary:
    """One metric over a table.

    Attributes:
        name: of the metric.
        metric: its identity.
        role: see `ScoreRow`.
        mean: over prompts, of the images that have a score; None for fewer than 2 prompts.
        counts: images by status; "ok" are those with a score.
    """

    name: str
    metric: str
    role: Role
    mean: Estimate | None
    counts: Mapping[str, int]


def summarise(rows: Iterable[ScoreRow]) -> list[MetricSummary]:
    """Mean with its 95 % interval, and how many images have no score and why, for each metric."""
    summaries = []
    for metric, group in groupby(rows, key=lambda row: row.metric):
        of_metric = list(group)
        values = values_by_prompt(of_metric)
        scored = {prompt for (prompt, _), value in values.items() if not math.isnan(value)}
        summaries.append(
            MetricSummary(
                name=of_metric[0].name,
                metric=metric,
                role=of_metric[0].role,
                mean=mean_interval(values, allow_missing=True) if len(scored) > 1 else None,
                counts=dict(Counter(row.status.partition(":")[0] for row in of_metric)),
            )
        )
    return summaries


def values_by_prompt(rows: Iterable[ScoreRow]) -> dict[tuple[str, int], float]:
    """One metric's values, NaN where there is none, by (prompt, number of the row in order of prompt id and seed).

    By the text, because prompts that differ in their id alone are not independent.
    """
    ordered = sorted(rows, key=lambda row: row.key)
    return {(row.prompt, number): math.nan if row.value is None else row.value for number, row in enumerate(ordered)}


def rewards_by_name(
    rewards: Sequence[str | Reward], weights: Mapping[str, str | Path], device: str | torch.device
) -> dict[str, str | Reward]:
    """Rewards by name, all known before the first is loaded; the user's own are loaded, since they name themselves."""
    named: dict[str, str | Reward] = {}
    for reward in rewards:
        if isinstance(reward, str) and ":" in reward.removeprefix("sgp:"):
            reward = load_reward(reward, weights=weights.get(reward), device=device)
        elif isinstance(reward, str):
            REWARDS.get(reward.removeprefix("sgp:"))
        name = reward if isinstance(reward, str) else reward.card.name
        if name in named:
            raise DiffalignError(f"reward {name!r} is given twice")
        named[name] = reward
    if not named:
        raise DiffalignError(f"expected at least one reward, such as {', '.join(REWARDS.names()[:3])}")
    for name in weights:
        if name not in named:
            raise unknown("reward with weights", name, named)
    return named


def _roles(
    earlier: Sequence[ScoreRow], in_training: Sequence[str], held_out: Sequence[str], scored: set[str]
) -> dict[str, Role]:
    """Roles declared now or, of metrics in the table, before."""
    before: dict[str, Role] = {row.name: row.role for row in earlier}
    names = scored | set(before)
    known = names | {name.removeprefix("sgp:") for name in names}
    for name in (*in_training, *held_out):
        if name not in known:
            raise unknown("metric with a role", name, known)
    trained = {*in_training, *(name for name, role in before.items() if role == "in-training")}
    trained |= {name for name in names if name.removeprefix("sgp:") in trained}  # a style gap is made of its score
    for name in held_out:
        if name in trained:
            raise DiffalignError(f"{name} is declared in-training; what once had a part in training is not held-out")
    now: dict[str, Role] = {**dict.fromkeys(trained, "in-training"), **dict.fromkeys(held_out, "held-out")}
    return {name: role for name, role in before.items() if role != "undeclared"} | now


def _relative(image: ImageRow, folder: Path, out: Path) -> ImageRow:
    """The row with its file as seen from ``out``."""
    if not image.file or folder == out:
        return image
    return replace(image, file=Path(os.path.relpath(folder / image.file, out)).as_posix())


def _outcomes(reward: Reward, folder: Path, images: Sequence[ImageRow], cache: Path, batch_size: int) -> Outcomes:
    """Value and status by (sha256, prompt), from the cache or else from the reward."""
    cache.mkdir(exist_ok=True)
    remove_stale(cache)
    file = cache / f"{safe_name(reward.card.identity)}.jsonl"
    has_version = reward.card.weights != UNVERSIONED
    if not has_version:
        warn(f"{reward.card.name} has no version, so its scores are not kept; give it an attribute version")
    found = _cached(file) if has_version else {}
    made = {(image.sha256, image.prompt): image for image in images if image.status == OK}
    _warn_of_long_prompts(reward, made.values())
    left = [(key, folder / image.file) for key, image in made.items() if key not in found]
    for start in range(0, len(left), _BATCHES_PER_SAVE * batch_size):
        keys, files = zip(*left[start : start + _BATCHES_PER_SAVE * batch_size], strict=True)
        scores = score(reward, files, [prompt for _, prompt in keys], batch_size=batch_size)
        for key, value, status in zip(keys, scores.values.tolist(), scores.statuses, strict=True):
            found[key] = (value if status == OK else None, status)
        if not has_version:
            continue
        write_jsonl(
            file,
            (
                {"sha256": sha256, "prompt": prompt, "value": value}
                for (sha256, prompt), (value, status) in found.items()
                if status == OK
            ),
        )
    return found


def _cached(file: Path) -> Outcomes:
    """The scores in a file; a line that is none counts as absent."""
    found: Outcomes = {}
    for line in file.read_bytes().splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
            if isinstance(row["value"], float) and math.isfinite(row["value"]):
                found[row["sha256"], row["prompt"]] = row["value"], OK
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _warn_of_long_prompts(reward: Reward, images: Iterable[ImageRow]) -> None:
    prompts = list(dict.fromkeys(image.prompt for image in images))
    if count := reward.num_truncated(prompts):
        warn(f"{reward.card.name}: {count} of {len(prompts)} prompts are longer than it reads; it saw their beginnings")


def _kept(
    earlier: Sequence[ScoreRow], images: Sequence[ImageRow], renewed: set[str], roles: Mapping[str, Role]
) -> list[ScoreRow]:
    """The rows of the metrics that are not scored now, for the images that there are now."""
    rows = []
    for metric, group in groupby(earlier, key=lambda row: row.metric):
        before = list(group)
        name = before[0].name
        if name not in renewed:
            outcomes: Outcomes = {(row.sha256, row.prompt): (row.value, row.status) for row in before}
            rows += _rows(images, outcomes, metric, name, roles.get(name, before[0].role), before[0].higher_is_better)
    return rows


def _rows(
    images: Iterable[ImageRow], outcomes: Outcomes, metric: str, name: str, role: Role, higher_is_better: bool | None
) -> list[ScoreRow]:
    """The table of one metric."""
    if role == "held-out" and higher_is_better is None:
        raise DiffalignError(f"{name} has no better direction, so no claim can rest on it: it cannot be held-out")
    rows = []
    for image in images:
        known = {field.name: getattr(image, field.name) for field in fields(ImageRow)}
        value, known["status"] = outcomes.get((image.sha256, image.prompt), (None, NOT_SCORED))
        if image.status != OK:  # one that has a file was made, and is not what the manifest says
            value, known["status"] = None, image.status if image.file else f"{NOT_GENERATED}: {image.status}"
        rows.append(
            ScoreRow(**known, metric=metric, name=name, value=value, role=role, higher_is_better=higher_is_better)
        )
    return rows
