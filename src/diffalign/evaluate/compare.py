"""Two scored sets of images on the same prompts and seeds: which model is better, by how much, and how surely."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from diffalign.core import DiffalignError, unknown, warn
from diffalign.evaluate.scores import NOT_GENERATED, read_scores, values_by_prompt
from diffalign.evaluate.sources import Role, ScoreRow
from diffalign.stats import (
    Estimate,
    WinRate,
    holm,
    mean_interval,
    minimum_detectable_win_rate,
    paired_difference,
    reward_hacking_alarms,
    win_rate,
)

__all__ = ["SETTINGS", "MetricComparison", "compare", "hacking_alarms"]

# What must agree image by image; model and adapter may differ, for they are what is compared.
SETTINGS = ("width", "height", "sampler", "num_steps", "guidance_scale")

T = TypeVar("T")
Table = dict[tuple[str, int], ScoreRow]  # one metric, by (prompt id, seed)


@dataclass(frozen=True, kw_only=True)
class MetricComparison:
    """Model A against model B under one metric, over the images that both have a score of.

    Attributes:
        name: of the metric.
        metric: its identity.
        role: "in-training" if either table says so, else "held-out" if either does, else "undeclared".
        higher_is_better: None for a metric without a direction, of which A's being higher is shown.
        mean_a: of A.
        mean_b: of B.
        difference: paired, positive where A is better; None for fewer than 2 prompts.
        win_rate: of A over B, a tie (equal scores) half a win; None for fewer than 2 prompts.
        p_holm: the difference's p value after Holm's adjustment over the held-out metrics; None for others.
        num_prompts: prompts compared.
        num_seeds: images per prompt compared, on average.
        num_missing_a: images without a score of A.
        num_missing_b: images without a score of B.
        smallest_win_rate: the smallest win rate that so many prompts and seeds tell from 1/2 with 80 % power at 5 %;
            above 1 where none can be told.
        no_worse: whether the interval excludes that A is worse by the stated margin or more; None without a margin.
    """

    name: str
    metric: str
    role: Role
    higher_is_better: bool | None
    mean_a: float | None = None
    mean_b: float | None = None
    difference: Estimate | None = None
    win_rate: WinRate | None = None
    p_holm: float | None = None
    num_prompts: int = 0
    num_seeds: float = 0.0
    num_missing_a: int
    num_missing_b: int
    smallest_win_rate: float | None = None
    no_worse: bool | None = None


def compare(
    a: str | Path,
    b: str | Path,
    *,
    metrics: Sequence[str] | None = None,
    margins: Mapping[str, float] | None = None,
    ignore: Sequence[str] = (),
) -> list[MetricComparison]:
    """Compare two models by the scores of their images, metric by metric.

    Images are paired by prompt and seed, and the prompt is the unit. An image without a score on either side is left
    out of the pairs and counted.

    Args:
        a: folder (or table) that `score_folder` wrote, of model A.
        b: the same, of model B.
        metrics: names; by default all that both have.
        margins: by metric, in its unit: by how much A may be worse and still count as no worse.
        ignore: names of `SETTINGS` that may differ.

    Raises:
        DiffalignError: prompts, seeds, resolution, sampler, steps, guidance or metric versions differ (naming what); an
            unknown metric, or none in common.

    Source:
        Miller 2024, arXiv 2411.00640, for paired differences with the prompt as unit.
    """
    tables_a, tables_b = _tables(a), _tables(b)
    names = _names(tables_a, tables_b, metrics)
    _check_arguments(tables_a, names, margins or {}, ignore)
    differences = _differences(tables_a, tables_b, names, [each for each in SETTINGS if each not in ignore])
    if differences:
        raise DiffalignError(
            f"{a} (A) and {b} (B) cannot be compared:\n"
            + "\n".join(f"  {each}" for each in differences)
            + "\nSample and score both alike, or say which settings to ignore."
        )
    return _with_holm([_compare(tables_a[name], tables_b[name], (margins or {}).get(name)) for name in names])


def hacking_alarms(comparisons: Iterable[MetricComparison]) -> list[str]:
    """A sentence for each held-out metric that fell from B to A while one in training rose; B is the base model.

    See `diffalign.stats.reward_hacking_alarms`.
    """
    by_role: dict[str, dict[str, Estimate]] = {"in-training": {}, "held-out": {}, "undeclared": {}}
    for each in comparisons:
        if each.difference is not None and each.higher_is_better is not None:
            by_role[each.role][each.name] = each.difference
    return reward_hacking_alarms(by_role["in-training"], by_role["held-out"], {})


def _tables(path: str | Path) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for row in read_scores(path):
        tables.setdefault(row.name, {})[row.key] = row
    return tables


def _names(a: Mapping[str, Table], b: Mapping[str, Table], metrics: Sequence[str] | None) -> list[str]:
    shared = [name for name in a if name in b]
    for name in metrics or ():
        if name not in shared:
            raise unknown("metric that both have", name, shared)
    if not shared:
        raise DiffalignError(f"no metric in common: A has {', '.join(a)}; B has {', '.join(b)}")
    for side, there in (("A", a), ("B", b)):
        alone = [name for name in there if name not in shared]
        if alone and metrics is None:
            warn(f"only {side} has {', '.join(alone)}: not compared")
    return list(dict.fromkeys(metrics)) if metrics else shared


def _check_arguments(
    tables: Mapping[str, Table], names: Sequence[str], margins: Mapping[str, float], ignore: Sequence[str]
) -> None:
    for name in ignore:
        if name not in SETTINGS:
            raise unknown("setting to ignore", name, SETTINGS)
    for name, margin in margins.items():
        if name not in names:
            raise unknown("metric with a margin", name, names)
        if not margin > 0:
            raise DiffalignError(f"expected a margin above 0 for {name}, got {margin}")
        if _any(tables[name]).higher_is_better is None:
            raise DiffalignError(
                f"{name} has no better direction, so no model can be worse by it; leave its margin out"
            )


def _differences(
    a: Mapping[str, Table], b: Mapping[str, Table], names: Sequence[str], settings: Sequence[str]
) -> list[str]:
    """A sentence for each thing that differs and should not."""
    found: list[str] = []
    for name in names:
        found += _other_images(a[name], b[name]) or _other_settings(a[name], b[name], ("prompt", *settings))
        mine, other = _any(a[name]).metric, _any(b[name]).metric
        if mine != other:
            found.append(f"version of metric {name}: {mine} in A, {other} in B")
    return list(dict.fromkeys(found))


def _other_images(a: Table, b: Table) -> list[str]:
    prompts_a, prompts_b = ({prompt for prompt, _ in table} for table in (a, b))
    found = _alone("prompts", prompts_a, prompts_b)
    return found or _alone("seeds, as (prompt, seed)", set(a), set(b))


def _alone(what: str, a: set[T], b: set[T]) -> list[str]:
    sides = (("A", a - b), ("B", b - a))
    return [f"{what}: {len(left)} in {side} alone, e.g. {next(iter(left))!r}" for side, left in sides if left]


def _other_settings(a: Table, b: Table, settings: Sequence[str]) -> list[str]:
    made = [key for key in a if not any(row.status.startswith(NOT_GENERATED) for row in (a[key], b[key]))]
    found = []
    for setting in settings:
        differing = [key for key in made if getattr(a[key], setting) != getattr(b[key], setting)]
        if differing:
            mine, other = (_word(getattr(table[differing[0]], setting)) for table in (a, b))
            prompt, seed = differing[0]
            found.append(
                f"{setting}: {mine} in A, {other} in B (in {len(differing)} of {len(made)} images, the first of prompt "
                f"{prompt!r}, seed {seed})"
            )
    return found


def _word(value: object) -> str:
    return "unknown" if value is None else repr(value)


def _compare(a: Table, b: Table, margin: float | None) -> MetricComparison:
    row = _any(a)
    values_a, values_b = values_by_prompt(a.values()), values_by_prompt(b.values())
    both = [key for key in values_a if not (math.isnan(values_a[key]) or math.isnan(values_b[key]))]
    found = MetricComparison(
        name=row.name,
        metric=row.metric,
        role=_role(row.role, _any(b).role),
        higher_is_better=row.higher_is_better,
        num_missing_a=sum(map(math.isnan, values_a.values())),
        num_missing_b=sum(map(math.isnan, values_b.values())),
        num_prompts=len({prompt for prompt, _ in both}),
    )
    if found.num_prompts < 2:
        return found
    sign = -1 if row.higher_is_better is False else 1
    signed_a, signed_b = ({key: sign * values[key] for key in both} for values in (values_a, values_b))
    difference, wins = paired_difference(signed_a, signed_b), win_rate(signed_a, signed_b)
    num_seeds = len(both) / found.num_prompts
    return replace(
        found,
        mean_a=sign * mean_interval(signed_a).mean,
        mean_b=sign * mean_interval(signed_b).mean,
        difference=difference,
        win_rate=wins,
        num_seeds=num_seeds,
        smallest_win_rate=minimum_detectable_win_rate(found.num_prompts, num_seeds, max(0.0, wins.correlation or 0.0)),
        no_worse=None if margin is None else difference.low > -margin,
    )


def _role(first: Role, second: Role) -> Role:
    for role in ("in-training", "held-out"):
        if role in (first, second):
            return role
    return "undeclared"


def _with_holm(comparisons: Sequence[MetricComparison]) -> list[MetricComparison]:
    p_values = {
        each.name: each.difference.p_value
        for each in comparisons
        if each.role == "held-out" and each.difference is not None and each.difference.p_value is not None
    }
    adjusted = holm(p_values) if p_values else {}
    return [replace(each, p_holm=adjusted.get(each.name)) for each in comparisons]


def _any(table: Table) -> ScoreRow:
    return next(iter(table.values()))
