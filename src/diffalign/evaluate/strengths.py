"""What a sweep over strengths of guidance tells: the choice, and every number on the other prompts. No files."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from diffalign.core import DiffalignError
from diffalign.evaluate.choice import (
    MORE_FAILED,
    Column,
    Key,
    Measured,
    Split,
    broken_strengths,
    choose_strength,
    count_failed,
    is_fit,
    split_ids,
)
from diffalign.evaluate.sources import Role
from diffalign.stats import Estimate, mean_interval, paired_difference, reward_hacking_alarms

__all__ = ["DIVERSITY", "SweepScores", "complete_keys", "conclude"]

DIVERSITY = "diversity"
FEW_PROMPTS = 10


def complete_keys(columns: Iterable[Column]) -> set[Key]:
    """Images that have a value at every strength, so that strengths are compared on the same ones.

    A strength without any value does not count: it would take away those of all others.

    Example:
        >>> nan = math.nan
        >>> sorted(complete_keys([{("cat", 0): 1.0, ("cat", 1): 2.0}, {("cat", 0): 3.0, ("cat", 1): nan}]))
        [('cat', 0)]
    """
    found = [{key for key, value in column.items() if not math.isnan(value)} for column in columns]
    found = [keys for keys in found if keys]
    return set.intersection(*found) if found else set()


@dataclass(frozen=True, kw_only=True)
class SweepScores:
    """What the images of a sweep scored.

    Attributes:
        axis: what changes.
        strengths: rising.
        ids: prompt -> its id.
        columns: metric -> its values at each strength. Diversity is one of them, a value per prompt; empty columns
            where no prompt has two images.
        roles: of each metric.
        higher_is_better: of each metric.
        left_out: strengths that break images; which images the others are compared on does not hang on them.
    """

    axis: str
    strengths: tuple[float, ...]
    ids: Mapping[str, str]
    columns: Mapping[str, Sequence[Column]]
    roles: Mapping[str, Role]
    higher_is_better: Mapping[str, bool | None]
    left_out: frozenset[float] = frozenset()

    def name(self, strength: float) -> str:
        """What tables call a strength."""
        return f"{self.axis} {strength:.10g}"

    def on(self, metric: str, prompts: Collection[str]) -> list[dict[Key, float]]:
        """A metric at each strength, on the images of these prompts that have a value at all that are not left out.

        Those that are left out have what they have of these images.
        """
        columns = [
            {key: one for key, one in column.items() if key[0] in prompts and not math.isnan(one)}
            for column in self.columns[metric]
        ]
        kept = [column for one, column in zip(self.strengths, columns, strict=True) if one not in self.left_out]
        keys = complete_keys(kept)
        return [{key: one for key, one in column.items() if key in keys} for column in columns]

    def count(self, strength: float, prompts: Collection[str]) -> int:
        """Images of these prompts that have a value of any metric."""
        at = self.strengths.index(strength)
        columns = [each[at] for metric, each in self.columns.items() if metric != DIVERSITY]
        there = {key for column in columns for key, value in column.items() if not math.isnan(value)}
        return sum(prompt in prompts for prompt, _ in there)

    @property
    def has_diversity(self) -> bool:
        """Whether any prompt has two images."""
        return any(self.columns[DIVERSITY])


def conclude(
    scores: SweepScores, choose_by: str, *, validation_share: float = 0.5, min_diversity: float = 0.9
) -> dict[str, Any]:
    """Choose a strength on the validation prompts, and measure all of them on the others.

    Args:
        scores: of all images.
        choose_by: the metric that chooses.
        validation_share: see ``split_ids``.
        min_diversity: see ``choose_strength``.

    Returns:
        See ``measure_sweep``.

    Raises:
        DiffalignError: the metric has no direction, too few prompts, or no strength can be chosen.
    """
    if scores.higher_is_better[choose_by] is None:
        raise DiffalignError(
            f"{choose_by} has no better direction, so it cannot choose a strength; name another reward"
        )
    texts = {prompt_id: prompt for prompt, prompt_id in scores.ids.items()}
    split = split_ids(texts, validation_share)
    validation, reported = ({texts[one] for one in part} for part in (split.validation, split.report))
    broken = broken_strengths(scores.strengths, scores.columns[choose_by], validation)
    scores = replace(scores, left_out=broken)
    measured = _measured(scores, choose_by, validation)
    chosen = choose_strength(measured, min_diversity)
    differences = _differences(scores, reported, chosen.strength)
    pair = {"model": scores.name(chosen.strength), "baseline": scores.name(scores.strengths[0])}
    sign = 1 if scores.higher_is_better[choose_by] else -1
    return {
        "rule": _rule(scores, choose_by, min_diversity, split),
        "chosen": chosen.strength,
        "weakest": scores.strengths[0],
        "chosen_by": choose_by,
        "validation": [
            {
                "strength": each.strength,
                "quality": None if each.quality is None else sign * each.quality,
                "diversity": each.diversity,
                "num_images": each.num_images,
                "num_failed": each.num_failed,
                "in_choice": is_fit(each, measured[0], min_diversity),
            }
            for each in measured
        ],
        "left_out": sorted(broken),
        "prompts": {"validation": list(split.validation), "report": list(split.report)},
        "models": _models(scores, reported),
        "differences": [{**pair, "metric": metric, **_numbers(each)} for metric, each in differences.items()],
        "roles": dict(scores.roles),
        "higher_is_better": dict(scores.higher_is_better),
        "num_failed": _failed(scores),
        "notes": _notes(scores, choose_by, split, chosen),
        "alarms": [*_told_broken(scores, choose_by, measured), *_alarms(scores, differences)],
    }


def _measured(scores: SweepScores, choose_by: str, prompts: Collection[str]) -> list[Measured]:
    sign = 1 if scores.higher_is_better[choose_by] else -1
    qualities = [_mean(column) for column in scores.on(choose_by, prompts)]
    spreads = [_mean(column) for column in scores.on(DIVERSITY, prompts)]
    count, failed = count_failed(scores.columns[choose_by], prompts)
    return [
        Measured(
            strength=strength,
            quality=None if quality is None else sign * quality,
            diversity=spread,
            num_images=count,
            num_failed=lacking,
        )
        for strength, quality, spread, lacking in zip(scores.strengths, qualities, spreads, failed, strict=True)
    ]


def _mean(column: Column) -> float | None:
    """Over prompts, of the means over their images."""
    by_prompt: dict[str, list[float]] = {}
    for (prompt, _), value in column.items():
        by_prompt.setdefault(prompt, []).append(value)
    return fmean(map(fmean, by_prompt.values())) if by_prompt else None


def _models(scores: SweepScores, prompts: Collection[str]) -> dict[str, dict[str, Any]]:
    """By strength every metric with its interval, where 2 prompts have values; and the number of images scored."""
    models: dict[str, dict[str, Any]] = {
        scores.name(strength): {"num_images": scores.count(strength, prompts)} for strength in scores.strengths
    }
    for metric in scores.columns:
        for model, column in zip(models.values(), scores.on(metric, prompts), strict=True):
            if _has_interval(column):
                model[metric] = _numbers(mean_interval(column))
    return models


def _differences(scores: SweepScores, prompts: Collection[str], chosen: float) -> dict[str, Estimate]:
    """Chosen minus weakest by metric; none where the weakest is chosen."""
    at = scores.strengths.index(chosen)
    found = {}
    for metric in scores.columns if at else ():
        columns = scores.on(metric, prompts)
        if _has_interval(columns[at]) and _has_interval(columns[0]):
            found[metric] = paired_difference(columns[at], columns[0])
    return found


def _numbers(estimate: Estimate) -> dict[str, Any]:
    return {name: getattr(estimate, name) for name in ("mean", "low", "high", "num_prompts")}


def _has_interval(column: Column) -> bool:
    return len({prompt for prompt, _ in column}) > 1


def _failed(scores: SweepScores) -> dict[str, list[int]]:
    """By metric and strength, images without a value."""
    return {
        metric: [sum(map(math.isnan, column.values())) for column in columns]
        for metric, columns in scores.columns.items()
        if metric != DIVERSITY
    }


def _rule(scores: SweepScores, choose_by: str, min_diversity: float, split: Split) -> str:
    best = "highest" if scores.higher_is_better[choose_by] else "lowest"
    rule = (
        f"the {best} mean {choose_by} on {len(split.validation)} validation prompts among the strengths whose share of "
        f"images without a score is at most {MORE_FAILED:g} above that at {scores.name(scores.strengths[0])}"
    )
    if scores.has_diversity:
        rule += f", and whose images keep at least {min_diversity:g} of the diversity there"
    return f"{rule}; of equal ones the weaker"


def _notes(scores: SweepScores, choose_by: str, split: Split, chosen: Measured) -> list[str]:
    """What a reader should know before believing the numbers, a sentence each."""
    notes = []
    if len(split.validation) < FEW_PROMPTS:
        notes.append(
            f"Only {len(split.validation)} prompts choose, fewer than {FEW_PROMPTS}: the choice may be chance."
        )
    if len(split.report) < FEW_PROMPTS:
        few = f"Only {len(split.report)} prompts are reported on, fewer than {FEW_PROMPTS}"
        notes.append(f"{few}: their intervals assume normal means of prompts.")
    if not scores.has_diversity:
        notes.append(
            f"No prompt has two images, so there is no diversity and {choose_by} alone chose; sample with --seeds 2."
        )
    if chosen.strength == scores.strengths[0]:
        notes.append(
            "The weakest strength was chosen: by this rule more of it is not better, so there is no difference to tell."
        )
    elif chosen.strength == scores.strengths[-1]:
        notes.append("The strongest strength was chosen: the best may lie beyond it, so extend the range.")
    but = ", but for those that only a strength out of the choice lacks" if scores.left_out else ""
    for metric, counts in _failed(scores).items():
        told = [f"{count} at {scores.name(one)}" for count, one in zip(counts, scores.strengths, strict=True) if count]
        if told:
            notes.append(
                f"Images without {metric}: {', '.join(told)}; left out at every strength that has others{but}."
            )
    return notes


def _told_broken(scores: SweepScores, choose_by: str, measured: Sequence[Measured]) -> list[str]:
    """Which strengths are left out because they break images, a sentence each."""
    weakest = f"{measured[0].num_failed} at {scores.name(measured[0].strength)}"
    return [
        f"{scores.name(each.strength)} is left out of the choice: {each.num_failed} of {each.num_images} validation "
        f"images have no {choose_by}, {weakest}"
        for each in measured
        if each.strength in scores.left_out
    ]


def _alarms(scores: SweepScores, differences: Mapping[str, Estimate]) -> list[str]:
    """Whether what was not chosen by fell while what was chosen by rose, or the images became alike."""
    by_role: dict[str, dict[str, Estimate]] = {"in-training": {}, "held-out": {}, "undeclared": {}}
    for metric, each in differences.items():
        higher = scores.higher_is_better[metric]
        if metric != DIVERSITY and higher is not None:
            turned = each if higher else replace(each, mean=-each.mean, low=-each.high, high=-each.low)
            by_role[scores.roles[metric]][metric] = turned
    spread = {"of a prompt's images": differences[DIVERSITY]} if DIVERSITY in differences else {}
    return reward_hacking_alarms(by_role["in-training"], by_role["held-out"], spread)
