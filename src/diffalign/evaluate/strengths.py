"""Which strength of guidance to take, and what it gains: split, rule and numbers. No files, no networks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from diffalign.core import DiffalignError, content_hash
from diffalign.evaluate.sources import Role
from diffalign.stats import Estimate, mean_interval, paired_difference, reward_hacking_alarms

__all__ = ["DIVERSITY", "Measured", "Split", "SweepScores", "choose_strength", "complete_keys", "conclude", "split_ids"]

DIVERSITY = "diversity"
FEW_PROMPTS = 10

Key = tuple[str, int]  # prompt, number of its image
Column = Mapping[Key, float]  # one metric at one strength; NaN where there is no value


@dataclass(frozen=True)
class Split:
    """Ids of prompts by their part.

    Attributes:
        validation: those that choose.
        report: those that numbers are told of.
    """

    validation: tuple[str, ...]
    report: tuple[str, ...]


def split_ids(prompt_ids: Iterable[str], validation_share: float) -> Split:
    """Two parts, by nothing but the ids: in the order of their hashes, the first share chooses.

    Args:
        prompt_ids: each once, at least 3.
        validation_share: in (0, 1); rounded, so that at least 1 prompt chooses and 2 are reported on.

    Raises:
        DiffalignError: too few prompts, or another share.

    Example:
        >>> split_ids(["a", "b", "c", "d", "e"], 0.4)
        Split(validation=('d', 'b'), report=('c', 'a', 'e'))
    """
    if not 0 < validation_share < 1:
        raise DiffalignError(f"expected a validation share above 0 and below 1, got {validation_share}")
    ordered = sorted(prompt_ids, key=lambda one: content_hash("part of a sweep", one))
    if len(ordered) < 3:
        raise DiffalignError(
            f"expected at least 3 prompts, 1 to choose by and 2 to report on, got {len(ordered)}: sample more of them"
        )
    count = min(max(1, round(validation_share * len(ordered))), len(ordered) - 2)
    return Split(tuple(ordered[:count]), tuple(ordered[count:]))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One strength on the validation prompts.

    Attributes:
        strength: of guidance.
        quality: mean over prompts of the metric that chooses, higher is better; None where nothing was scored.
        diversity: mean over prompts of the distance between a prompt's images; None where no prompt has two.
    """

    strength: float
    quality: float | None
    diversity: float | None


def choose_strength(measured: Sequence[Measured], min_diversity: float) -> Measured:
    """The best strength among those whose images are as diverse as they should be; the weaker of equal ones.

        s* = argmax q_s  over  s with d_s >= min_diversity d_0,    0 the weakest strength

    Without a diversity at the weakest strength (one image per prompt) every strength with a quality is in the choice.

    Args:
        measured: by rising strength.
        min_diversity: share of the weakest strength's diversity, in [0, 1].

    Raises:
        DiffalignError: no strength has a quality.

    Example:
        >>> rows = [(0.0, 0.1, 0.8), (2.0, 0.3, 0.7), (4.0, 0.3, 0.9), (8.0, 0.5, 0.3)]
        >>> measured = [Measured(strength=s, quality=q, diversity=d) for s, q, d in rows]
        >>> choose_strength(measured, min_diversity=0.8).strength
        2.0
    """
    fit = [each for each in measured if each.quality is not None and _is_diverse(each, measured[0], min_diversity)]
    if not fit:
        raise DiffalignError("no strength can be chosen: what chooses scores none of the validation images")
    return max(fit, key=lambda each: each.quality or 0.0)  # of equal ones, max takes the first


def _is_diverse(one: Measured, weakest: Measured, min_diversity: float) -> bool:
    if weakest.diversity is None:
        return True
    return one.diversity is not None and one.diversity >= min_diversity * weakest.diversity


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
    """

    axis: str
    strengths: tuple[float, ...]
    ids: Mapping[str, str]
    columns: Mapping[str, Sequence[Column]]
    roles: Mapping[str, Role]
    higher_is_better: Mapping[str, bool | None]

    def name(self, strength: float) -> str:
        """What tables call a strength."""
        return f"{self.axis} {strength:.10g}"

    def on(self, metric: str, prompts: Collection[str]) -> list[dict[Key, float]]:
        """A metric at each strength, on the images of these prompts that have a value at all strengths."""
        columns = [
            {key: one for key, one in column.items() if key[0] in prompts and not math.isnan(one)}
            for column in self.columns[metric]
        ]
        keys = complete_keys(columns)
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
    measured = _measured(scores, choose_by, {texts[one] for one in split.validation})
    chosen = choose_strength(measured, min_diversity)
    reported = {texts[one] for one in split.report}
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
                "in_choice": each.quality is not None and _is_diverse(each, measured[0], min_diversity),
            }
            for each in measured
        ],
        "prompts": {"validation": list(split.validation), "report": list(split.report)},
        "models": _models(scores, reported),
        "differences": [{**pair, "metric": metric, **_numbers(each)} for metric, each in differences.items()],
        "roles": dict(scores.roles),
        "higher_is_better": dict(scores.higher_is_better),
        "num_failed": _failed(scores),
        "notes": _notes(scores, choose_by, split, chosen),
        "alarms": _alarms(scores, differences),
    }


def _measured(scores: SweepScores, choose_by: str, prompts: Collection[str]) -> list[Measured]:
    sign = 1 if scores.higher_is_better[choose_by] else -1
    qualities = [_mean(column) for column in scores.on(choose_by, prompts)]
    spreads = [_mean(column) for column in scores.on(DIVERSITY, prompts)]
    return [
        Measured(strength=strength, quality=None if quality is None else sign * quality, diversity=spread)
        for strength, quality, spread in zip(scores.strengths, qualities, spreads, strict=True)
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
    rule = f"the {best} mean {choose_by} on {len(split.validation)} validation prompts"
    if scores.has_diversity:
        weakest = scores.name(scores.strengths[0])
        rule += f" among the strengths whose images keep at least {min_diversity:g} of the diversity at {weakest}"
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
    for metric, counts in _failed(scores).items():
        told = [f"{count} at {scores.name(one)}" for count, one in zip(counts, scores.strengths, strict=True) if count]
        if told:
            notes.append(f"Images without {metric}: {', '.join(told)}; left out at every strength that has others.")
    return notes


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
