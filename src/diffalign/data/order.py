"""Which rows a step trains on: a function of the seed and the step alone, so any step can be recomputed."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from diffalign.core import DiffalignError, torch_generator

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["batch_rows", "sample_order"]


def sample_order(num_rows: int, *, seed: int, epoch: int) -> Tensor:
    """The order in which one epoch visits the rows.

    Args:
        num_rows: rows in the data set.
        seed: the run's seed.
        epoch: 0 for the first pass over the rows.

    Returns:
        (num_rows,) int64: a permutation of 0 .. num_rows - 1 drawn from (seed, epoch).

    Raises:
        DiffalignError: there are no rows, or the epoch is negative.
    """
    import torch

    if num_rows < 1 or epoch < 0:
        raise DiffalignError(f"an order needs at least 1 row and an epoch >= 0, got {num_rows} rows, epoch {epoch}")
    return torch.randperm(num_rows, generator=torch_generator("sample_order", seed, epoch))


def batch_rows(num_rows: int, *, batch_size: int, seed: int, step: int) -> list[int]:
    """The rows in the batch of a global step.

    Steps read one endless sequence, epoch after epoch: no row is dropped, a batch may cross into the next epoch, and
    eight steps of one row read the same rows as one step of eight.

    Args:
        num_rows: rows in the data set.
        batch_size: rows per step, over all processes and accumulation steps.
        seed: the run's seed.
        step: 0 for the first step.

    Returns:
        ``batch_size`` row numbers in order; each process or accumulation step takes its slice.

    Raises:
        DiffalignError: there are no rows, the batch is empty or the step negative.

    Example:
        >>> first = batch_rows(5, batch_size=4, seed=0, step=0) + batch_rows(5, batch_size=4, seed=0, step=1)
        >>> sorted(first[:5]), sorted(first[5:]) == sorted(set(first[5:]))
        ([0, 1, 2, 3, 4], True)
    """
    if num_rows < 1 or batch_size < 1 or step < 0:
        raise DiffalignError(
            "a batch needs at least 1 row of a data set of at least 1 row and a step >= 0, "
            f"got {batch_size} of {num_rows} rows, step {step}"
        )
    start = step * batch_size
    return [_epoch(num_rows, seed, i // num_rows)[i % num_rows] for i in range(start, start + batch_size)]


@lru_cache(maxsize=4)
def _epoch(num_rows: int, seed: int, epoch: int) -> list[int]:
    """`sample_order` remembered, since consecutive steps read the same epoch."""
    order: list[int] = sample_order(num_rows, seed=seed, epoch=epoch).tolist()
    return order
