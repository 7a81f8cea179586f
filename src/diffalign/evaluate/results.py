"""Several models on the same prompts and noise: what each scores, and how it differs from the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from diffalign.core import DiffalignError
from diffalign.evaluate.scores import score_folder, values_by_prompt
from diffalign.evaluate.sources import read_images
from diffalign.stats import (
    Estimate,
    kid_difference,
    kid_interval,
    mean_interval,
    paired_difference,
    pairwise_diversity,
    win_rate,
)

__all__ = ["measure_models"]

Features = Callable[[Sequence[Path]], ArrayLike]


def measure_models(
    folders: Mapping[str, str | Path],
    *,
    metrics: Mapping[str, str],
    features: Features,
    real: ArrayLike | None,
    baselines: Sequence[str],
    in_training: Sequence[str] = (),
    held_out: Sequence[str] = (),
    weights: Mapping[str, str | Path] | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Measure sample runs that share prompts and seeds.

    Args:
        folders: of the sample runs, by the model's name.
        metrics: what to call a metric -> the reward behind it.
        features: paths of N images to (N, d) features, for ``kid`` and ``diversity``.
        real: (n, d) features of held-out real images; None leaves ``kid`` out.
        baselines: names of the models that every other is compared with.
        in_training: rewards that had a part in choosing data, settings or checkpoints.
        held_out: rewards that had none.
        weights: of rewards, by name.
        device: where rewards run.

    Returns:
        ``models``: per model and metric {mean, low, high, num_prompts, num_missing}, and ``num_images``;
        ``differences`` and ``win_rates``: rows of model, baseline, metric, mean, low, high (``win_rates`` for metrics
        of single images); ``roles`` and ``higher_is_better`` per metric. Intervals of 95 %, over prompts. ``kid`` is
        the distance to real images (lower is better), ``diversity`` the mean distance between a prompt's images.

    Raises:
        DiffalignError: a baseline that is not there, runs of other prompts or seeds, or an image that cannot be read.
    """
    absent = [name for name in baselines if name not in folders]
    if absent:
        raise DiffalignError(f"expected every baseline among the models, {', '.join(absent)} is not there")
    columns, about = _columns(folders, metrics, in_training, held_out, weights, device)
    sets = {name: _features(folder, features) for name, folder in folders.items()}
    if len({tuple(prompts) for _, prompts in sets.values()}) > 1:
        raise DiffalignError("expected the same prompts and seeds from every model, with an image for each")
    models: dict[str, Any] = {}
    differences: list[dict[str, Any]] = []
    win_rates: list[dict[str, Any]] = []
    for model in folders:
        found, prompts = sets[model]
        spread = _diversity(found, prompts)
        measured = {metric: mean_interval(column[model], allow_missing=True) for metric, column in columns.items()}
        measured["diversity"] = mean_interval(spread[:, None])
        if real is not None:
            measured["kid"] = kid_interval(real, found, groups=prompts)
        models[model] = {metric: _numbers(one) for metric, one in measured.items()} | {"num_images": len(found)}
        for baseline in (name for name in baselines if name != model):
            pair = {"model": model, "baseline": baseline}
            for metric, column in columns.items():
                both = column[model], column[baseline]
                difference = paired_difference(*both, allow_missing=True)
                differences.append({**pair, "metric": metric, **_numbers(difference)})
                wins = win_rate(*(both[::-1] if about[metric][1] is False else both), allow_missing=True)
                win_rates.append({**pair, "metric": metric, **_numbers(wins)})
            other = _diversity(*sets[baseline])
            difference = paired_difference(spread[:, None], other[:, None])
            differences.append({**pair, "metric": "diversity", **_numbers(difference)})
            if real is not None:
                difference = kid_difference(real, found, sets[baseline][0], groups=prompts)
                differences.append({**pair, "metric": "kid", **_numbers(difference)})
    extra = {"diversity": ("held-out", True)} | ({} if real is None else {"kid": ("held-out", False)})
    about = about | extra
    return {
        "models": models,
        "differences": differences,
        "win_rates": win_rates,
        "roles": {metric: role for metric, (role, _) in about.items()},
        "higher_is_better": {metric: higher for metric, (_, higher) in about.items()},
    }


def _columns(
    folders: Mapping[str, str | Path],
    metrics: Mapping[str, str],
    in_training: Sequence[str],
    held_out: Sequence[str],
    weights: Mapping[str, str | Path] | None,
    device: str | torch.device,
) -> tuple[dict[str, dict[str, dict[tuple[str, int], float]]], dict[str, tuple[str, bool | None]]]:
    """Per metric the scores of each model, and (role, direction) per metric."""
    columns: dict[str, dict[str, dict[tuple[str, int], float]]] = {metric: {} for metric in metrics}
    about: dict[str, tuple[str, bool | None]] = {}
    for model, folder in folders.items():
        rows = score_folder(
            folder,
            list(metrics.values()),
            in_training=in_training,
            held_out=held_out,
            weights=weights,
            device=device,
        )
        for metric, reward in metrics.items():
            own = [row for row in rows if row.name == reward]
            columns[metric][model] = values_by_prompt(own)
            about[metric] = (own[0].role, own[0].higher_is_better)
    return columns, about


def _features(folder: str | Path, features: Features) -> tuple[NDArray[np.float64], list[str]]:
    """Features of a run's images in order of prompt and seed, and their prompts."""
    place, rows = read_images(folder)
    rows = sorted(rows, key=lambda row: row.key)
    failed = [row for row in rows if row.status != "ok"]
    if failed:
        raise DiffalignError(f"{folder}: {len(failed)} images failed ({failed[0].status}); distances need every image")
    return np.asarray(features([place / row.file for row in rows]), dtype=np.float64), [row.prompt for row in rows]


def _diversity(features: NDArray[np.float64], prompts: Sequence[str]) -> NDArray[np.float64]:
    """(P,) mean distance between each prompt's images."""
    groups = {prompt: [i for i, one in enumerate(prompts) if one == prompt] for prompt in dict.fromkeys(prompts)}
    return np.array([pairwise_diversity(features[rows]) for rows in groups.values()])


def _numbers(estimate: Estimate) -> dict[str, Any]:
    return {
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "num_prompts": estimate.num_prompts,
        "num_missing": estimate.num_missing,
    }
