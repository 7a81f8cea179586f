"""Remembered reference errors: a fixed bank of draws per row, on which the reference is measured once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffalign.core import atomic_path, content_hash, progress, torch_generator

__all__ = ["draw_number", "remember_errors"]

FILE = "reference_errors.safetensors"


def draw_number(seed: int, step: int, place: int, count: int) -> int:
    """Which of its ``count`` remembered draws the row at ``place`` of the batch of ``step`` gets."""
    return int(torch.randint(count, (1,), generator=torch_generator("remembered draw", seed, step, place)))


def remember_errors(
    folder: Path,
    made_with: object,
    measure: Callable[[Sequence[int], int], Tensor] | None,
    *,
    num_rows: int,
    count: int,
    batch_size: int,
) -> Tensor:
    """The reference's errors under every draw of every row: from ``folder``, or measured and kept there.

    Args:
        folder: of the run.
        made_with: what the errors depend on, as JSON; a file of other errors is measured again.
        measure: (rows, number of the draw) -> (B, S) errors of S sides; None where another process measures.
        num_rows: N.
        count: draws per row.
        batch_size: rows per call.

    Returns:
        (N, count, S) float32 on the CPU.
    """
    path, key = folder / FILE, content_hash(made_with)
    found = _read(path, key)
    if found is None:
        assert measure is not None
        chunks = [range(first, min(first + batch_size, num_rows)) for first in range(0, num_rows, batch_size)]
        rows = [
            torch.stack([measure(chunk, number).float().cpu() for number in range(count)], dim=1)
            for chunk in progress(chunks, description="measuring the reference", unit="batches")
        ]
        found = torch.cat(rows)
        with atomic_path(path) as temporary:
            save_file({"errors": found}, temporary, metadata={"made_with": key})
    return found


def _read(path: Path, key: str) -> Tensor | None:
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("made_with") != key:
                return None
            errors: Tensor = file.get_tensor("errors")
    except (FileNotFoundError, SafetensorError):
        return None
    return errors
