"""Two scored sets of images on the same prompts and seeds: which model is better, by how much, and how surely."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

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

__all__ = ["SETTINGS", "MetricComparison", "compare", "compared_models", "hacking_alarms"]

# What must agree image by image; model and adapter may differ, for they are what is compared.
SETTINGS = ("width", "height", "sampler", "num_steps", "guidance_scale", "negative_prompt", "dtype", "sampler_hash")

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
        p_holm: the difference's p value after Holm's adjustment over all held-out metrics that both tables have,
            compared now or not; None for others.
        num_prompts: prompts compared.
        num_seeds: images per prompt compared, on average.
        num_missing_a: images without a score of A.
        num_missing_b: images without a score of B.
        smallest_win_rate: the smallest win rate that so many prompts and seeds tell from 1/2 with 80 % power at 5 %;
            above 1 where none can be told.
        no_worse: whether the interval excludes that A is worse by the stated margin or more; None without a margin.
            Where all prompts differ by the same there is no interval, so it is not shown.
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
        DiffalignError: prompts, seeds, one of `SETTINGS` or metric versions differ or a version is unknown (naming
            what); an unknown metric, or none in common; a table with two versions of a metric, or an image twice.

    Source:
        Miller 2024, arXiv 2411.00640, for paired differences with the prompt as unit.
    """
    tables_a, tables_b = _tables(a), _tables(b)
    names = _names(tables_a, tables_b, metrics)
    _check_arguments(tables_a, names, margins or {}, ignore)
    settings = [each for each in SETTINGS if each not in ignore]
    differences = [each for name in names for each in _differences(tables_a[name], tables_b[name], settings)]
    if differences:
        raise DiffalignError(
            f"{a} (A) and {b} (B) cannot be compared:\n"
            + "\n".join(f"  {each}" for each in dict.fromkeys(differences))
            + "\nSample and score both alike, or say which settings to ignore."
        )
    _warn_of_unknown_settings(tables_a[names[0]], tables_b[names[0]], settings)
    compared = [_compare(tables_a[name], tables_b[name], (margins or {}).get(name)) for name in names]
    adjusted = _holm(compared, tables_a, tables_b, settings)
    return [replace(each, p_holm=adjusted.get(each.name)) for each in compared]


def compared_models(a: str | Path, b: str | Path, *, ignore: Sequence[str] = ()) -> dict[str, Any]:
    """What the two sides are, as JSON values, for the record of a comparison.

    Args:
        a: as in `compare`.
        b: as in `compare`.
        ignore: as in `compare`.

    Returns:
        ``a`` and ``b``: folder, model, adapter (None where unknown), guide (where there is one); ``ignored``: a text
        for each ignored setting that does differ, such as "num_steps (6 in A, 5 in B)".
    """
    one, other = ([row for table in _tables(path).values() for row in table.values()] for path in (a, b))
    sides = {
        side: {"folder": str(path), "model": _told(rows, "model"), "adapter": _told(rows, "adapter")}
        | ({"guide": guide} if (guide := next((row.guide for row in rows if row.guide), None)) else {})
        for side, path, rows in (("a", a, one), ("b", b, other))
    }
    told = {name: (_told(one, name), _told(other, name)) for name in ignore}
    ignored = [f"{name} ({mine} in A, {yours} in B)" for name, (mine, yours) in told.items() if mine != yours]
    return {**sides, "ignored": ignored}


def _told(rows: Iterable[ScoreRow], setting: str) -> str | None:
    """What the rows say of a setting: one value, or all there are."""
    values = {str(getattr(row, setting)) for row in rows if getattr(row, setting) is not None}
    return ", ".join(sorted(values)) if values else None


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
        table = tables.setdefault(row.name, {})
        if row.key in table:
            raise DiffalignError(f"{path}: {row.name} has two scores of (prompt id, seed) {row.key}; score it again")
        table[row.key] = row
    for name, table in tables.items():
        versions = {row.metric for row in table.values()}
        if len(versions) > 1:
            raise DiffalignError(f"{path}: {name} has scores of {', '.join(sorted(versions))}; score it again")
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


def _differences(a: Table, b: Table, settings: Sequence[str]) -> list[str]:
    """A sentence for each thing that differs between two tables of a metric and should not."""
    found = _other_images(a, b) or _other_values(a, b, ["prompt"], list(a)) + _other_values(a, b, settings, _made(a, b))
    mine, other = _any(a), _any(b)
    if mine.metric != other.metric:
        found.append(f"version of metric {mine.name}: {mine.metric} in A, {other.metric} in B")
    elif not mine.has_version:
        found.append(f"version of metric {mine.name}: unknown; give the function an attribute version and score again")
    return found


def _other_images(a: Table, b: Table) -> list[str]:
    prompts_a, prompts_b = ({prompt for prompt, _ in table} for table in (a, b))
    found = _alone("prompts", prompts_a, prompts_b)
    return found or _alone("seeds, as (prompt, seed)", set(a), set(b))


def _alone(what: str, a: set[T], b: set[T]) -> list[str]:
    sides = (("A", a - b), ("B", b - a))
    return [f"{what}: {len(left)} in {side} alone, e.g. {next(iter(left))!r}" for side, left in sides if left]


def _made(a: Table, b: Table) -> list[tuple[str, int]]:
    """The images that both models made; others may lack settings."""
    return [key for key in a if not any(row.status.startswith(NOT_GENERATED) for row in (a[key], b[key]))]


def _other_values(a: Table, b: Table, columns: Sequence[str], keys: Sequence[tuple[str, int]]) -> list[str]:
    found = []
    for column in columns:
        differing = [key for key in keys if getattr(a[key], column) != getattr(b[key], column)]
        if differing:
            mine, other = (_word(getattr(table[differing[0]], column)) for table in (a, b))
            prompt, seed = differing[0]
            found.append(
                f"{column}: {mine} in A, {other} in B (in {len(differing)} of {len(keys)} images, the first of prompt "
                f"{prompt!r}, seed {seed})"
            )
    return found


def _word(value: object) -> str:
    return "unknown" if value is None else repr(value)


def _warn_of_unknown_settings(a: Table, b: Table, settings: Sequence[str]) -> None:
    made = _made(a, b)
    unknowns = [name for name in settings if made and all(getattr(a[key], name) is None for key in made)]
    if unknowns:
        warn(f"unknown on both sides and so not compared: {', '.join(unknowns)}")


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
    correlation = 1.0 if wins.correlation is None else max(0.0, wins.correlation)  # unknown: seeds add nothing
    return replace(
        found,
        mean_a=sign * mean_interval(signed_a).mean,
        mean_b=sign * mean_interval(signed_b).mean,
        difference=difference,
        win_rate=wins,
        num_seeds=num_seeds,
        smallest_win_rate=minimum_detectable_win_rate(found.num_prompts, num_seeds, correlation),
        no_worse=None if margin is None else difference.low > -margin and difference.method != "constant",
    )


def _role(first: Role, second: Role) -> Role:
    for role in ("in-training", "held-out"):
        if role in (first, second):
            return role
    return "undeclared"


def _holm(
    compared: Sequence[MetricComparison], a: Mapping[str, Table], b: Mapping[str, Table], settings: Sequence[str]
) -> dict[str, float]:
    """Adjusted p values of the held-out metrics; those not compared now, or without a p value, count too."""
    done = {each.name: each for each in compared}
    p_values: dict[str, float | None] = {}
    for name in (name for name in a if name in b and _role(_any(a[name]).role, _any(b[name]).role) == "held-out"):
        each = done.get(name)
        if each is None and not _differences(a[name], b[name], settings):
            each = _compare(a[name], b[name], None)
        p_values[name] = each.difference.p_value if each is not None and each.difference is not None else None
    adjusted = holm({name: 1.0 if p is None else p for name, p in p_values.items()}) if p_values else {}
    return {name: p for name, p in adjusted.items() if p_values[name] is not None}


def _any(table: Table) -> ScoreRow:
    return next(iter(table.values()))
