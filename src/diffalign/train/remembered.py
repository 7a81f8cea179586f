"""Remembered reference errors: a fixed bank of draws per row, on which the reference is measured once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffalign.core import (
    DiffalignError,
    Shard,
    atomic_path,
    content_hash,
    plan_shards,
    progress,
    shard_name,
    torch_generator,
)

__all__ = ["draw_number", "remember_errors"]

FILE = "reference_errors.safetensors"
PARTS, SUFFIX = "reference_errors", ".safetensors"  # shards that are done, until all are

Measure = Callable[[Sequence[int], int], Tensor]


def draw_number(seed: int, step: int, place: int, count: int) -> int:
    """Which of its ``count`` remembered draws the row at ``place`` of the batch of ``step`` gets."""
    return int(torch.randint(count, (1,), generator=torch_generator("remembered draw", seed, step, place)))


def remember_errors(
    folder: Path,
    made_with: object,
    measure: Measure,
    accelerator: Accelerator,
    *,
    num_rows: int,
    count: int,
    batch_size: int,
) -> Tensor:
    """The reference's errors under every draw of every row: from ``folder``, or measured and kept there.

    Every process measures its share of shards, each kept as soon as it is done, so that a kill loses one. Batches never
    cross shards, which depend on the number of rows and on the batch alone: so does the result.

    Args:
        folder: of the run.
        made_with: what the errors depend on, as JSON; errors of something else are measured again.
        measure: (rows, number of the draw) -> (B, S) errors of S sides.
        accelerator: the processes; all of them call this.
        num_rows: N.
        count: draws per row.
        batch_size: rows per call.

    Returns:
        (N, count, S) float32 on the CPU.

    Raises:
        DiffalignError: shards of other processes are not in this process's folder.
    """
    path, parts, key = folder / FILE, folder / PARTS, content_hash(made_with)
    if _read(path, key, num_rows) is None:
        shards = plan_shards(num_rows, _rows_per_shard(num_rows, batch_size))
        own = shards[accelerator.process_index :: accelerator.num_processes]
        for shard in progress(own, description="measuring the reference", unit="shards"):
            if _read(parts / shard_name(shard, SUFFIX), key, len(shard.rows)) is None:
                errors = _measured(shard.rows, measure, count=count, batch_size=batch_size)
                _write(parts / shard_name(shard, SUFFIX), errors, key)
        accelerator.wait_for_everyone()
        errors = _joined(parts, shards, key)
        if accelerator.is_main_process:
            _write(path, errors, key)
        accelerator.wait_for_everyone()
    if accelerator.is_main_process and parts.exists():
        shutil.rmtree(parts)
    bank = _read(path, key, num_rows)
    assert bank is not None
    return bank


def _rows_per_shard(num_rows: int, batch_size: int) -> int:
    """Whole batches, of rows enough for 64 shards, but at most of about 256 rows."""
    wanted = min(256, -(-num_rows // 64))
    return -(-wanted // batch_size) * batch_size


def _measured(rows: range, measure: Measure, *, count: int, batch_size: int) -> Tensor:
    batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    return torch.cat(
        [torch.stack([measure(batch, number).float().cpu() for number in range(count)], dim=1) for batch in batches]
    )


def _joined(parts: Path, shards: Sequence[Shard], key: str) -> Tensor:
    """The errors of all rows; every process looks, so that none waits for one that gave up."""
    found = [_read(parts / shard_name(shard, SUFFIX), key, len(shard.rows)) for shard in shards]
    present = [errors for errors in found if errors is not None]
    if len(present) < len(shards):
        raise DiffalignError(
            f"{len(shards) - len(present)} of {len(shards)} shards of the reference's errors are missing in {parts}, "
            "though all processes are done: all of them need one shared folder for the run"
        )
    return torch.cat(present)


def _write(path: Path, errors: Tensor, key: str) -> None:
    with atomic_path(path) as temporary:
        save_file({"errors": errors}, temporary, metadata={"made_with": key})


def _read(path: Path, key: str, num_rows: int) -> Tensor | None:
    """The errors in a file; None where it is missing, damaged, of something else or of another number of rows."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("made_with") != key:
                return None
            errors: Tensor = file.get_tensor("errors")
    except (FileNotFoundError, SafetensorError):
        return None
    return errors if len(errors) == num_rows else None
