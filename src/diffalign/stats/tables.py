"""Scores of one or several models, lined up by prompt and seed; what is missing is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffalign.core import DiffalignError

__all__ = ["Floats", "Scores", "Table", "align"]

Floats: TypeAlias = NDArray[np.float64]

# (P, K): prompts x seeds, or the same as {(prompt_id, seed): value}; NaN is a missing value.
Scores: TypeAlias = ArrayLike | Mapping[tuple[str, int], float]


@dataclass(frozen=True)
class Table:
    """The (prompt, seed) rows for which every model has a value.

    Attributes:
        prompts: (N,) number of each row's prompt, 0..P-1.
        columns: (M, N) values, one row for each model.
        num_missing: (prompt, seed) rows left out because a model lacks a value.
    """

    prompts: NDArray[np.intp]
    columns: Floats
    num_missing: int

    def prompt_means(self, values: Floats) -> Floats:
        """(P,) mean over each prompt's rows of ``values`` (N,)."""
        return np.asarray(np.bincount(self.prompts, weights=values) / np.bincount(self.prompts))


def align(*scores: Scores, allow_missing: bool = False) -> Table:
    """Line up the scores of M models by prompt and seed.

    Args:
        scores: of each model, all (P, K) arrays of one shape, or all mappings. A key that only some mappings hold is
            missing in the others.
        allow_missing: leave out rows with a missing value, and count them, instead of refusing.

    Raises:
        DiffalignError: a value is missing and ``allow_missing`` is off; a value is infinite; fewer than 2 prompts.
        ValueError: arrays of other shapes, or arrays mixed with mappings.
    """
    mappings = [each for each in scores if isinstance(each, Mapping)]
    if mappings and len(mappings) < len(scores):
        raise ValueError("expected arrays only or mappings only, got both")
    keys, columns = _from_mappings(mappings) if mappings else _from_arrays([np.asarray(each, float) for each in scores])
    if np.isinf(columns).any():
        where = keys[int(np.isinf(columns).any(0).argmax())]
        raise DiffalignError(f"expected finite scores, got an infinite one at (prompt, seed) {where}; score it again")
    missing = np.asarray(np.isnan(columns).any(axis=0))
    if missing.any() and not allow_missing:
        raise DiffalignError(
            f"expected a score of every model for every (prompt, seed), got none for {int(missing.sum())} of "
            f"{len(keys)}, the first {keys[int(missing.argmax())]}; make them, or pass allow_missing=True to leave "
            "them out and have them counted"
        )
    names = np.array([prompt for (prompt, _), gone in zip(keys, missing, strict=True) if not gone])
    distinct, prompts = np.unique(names, return_inverse=True)
    if len(distinct) < 2:
        raise DiffalignError(f"expected scores of at least 2 prompts, got {len(distinct)}: the prompt is the unit")
    return Table(prompts, columns[:, ~missing], int(missing.sum()))


def _from_mappings(scores: list[Mapping[tuple[str, int], float]]) -> tuple[list[tuple[str, int]], Floats]:
    keys = sorted(set().union(*scores))
    return keys, np.array([[each.get(key, np.nan) for key in keys] for each in scores], float)


def _from_arrays(scores: list[Floats]) -> tuple[list[tuple[int, int]], Floats]:
    shapes = [each.shape for each in scores]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2:
        raise ValueError(f"expected arrays of one shape (prompts, seeds), got {shapes}")
    return list(np.ndindex(*shapes[0])), np.stack([each.ravel() for each in scores])
