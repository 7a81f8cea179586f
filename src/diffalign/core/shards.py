"""Anything long is a list of shards: a stopped run goes on where it was, and the engine does not change the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from diffalign.core.console import progress
from diffalign.core.errors import DiffalignError
from diffalign.core.files import atomic_path, read_json, remove_stale, write_json
from diffalign.core.locks import folder_lock

__all__ = ["Mapper", "Shard", "plan_shards", "run_shards", "shard_name"]

Work = Callable[["Shard", Path], None]


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``stop`` (exclusive) of a longer list, number ``index`` of ``count``."""

    index: int
    count: int
    start: int
    stop: int

    @property
    def rows(self) -> range:
        """The numbers of the shard's rows."""
        return range(self.start, self.stop)


class Mapper(Protocol):
    """What applies a function to every shard: the builtin ``map``, or a pool's ``map`` with the same signature."""

    def __call__(self, function: Callable[[Shard], Path], shards: Iterable[Shard], /) -> Iterable[Path]:
        """Yield a result per shard, in any order."""
        ...


def plan_shards(num_rows: int, rows_per_shard: int) -> list[Shard]:
    """Cut ``num_rows`` rows into shards of ``rows_per_shard``; the last one may be shorter.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> [(shard.start, shard.stop) for shard in plan_shards(7, 3)]
        [(0, 3), (3, 6), (6, 7)]
    """
    if num_rows < 0 or rows_per_shard < 1:
        raise ValueError(f"expected num_rows >= 0 and rows_per_shard >= 1, got {num_rows} and {rows_per_shard}")
    count = -(-num_rows // rows_per_shard)
    return [
        Shard(index, count, index * rows_per_shard, min((index + 1) * rows_per_shard, num_rows))
        for index in range(count)
    ]


def shard_name(shard: Shard, suffix: str = "") -> str:
    """The shard's file name.

    Example:
        >>> shard_name(Shard(2, 10, 200, 300), ".parquet")
        '00002-of-00010.parquet'
    """
    return f"{shard.index:05d}-of-{shard.count:05d}{suffix}"


def run_shards(
    shards: Sequence[Shard],
    work: Work,
    folder: str | Path,
    *,
    suffix: str = "",
    key: str = "",
    description: str = "shards",
    mapper: Mapper = map,
) -> list[Path]:
    """Do ``work`` for each shard whose file is not in ``folder`` yet, and return every shard's file in order.

    ``work(shard, temporary_path)`` writes one file (or folder), which is then renamed into place: a file under its
    final name is whole and is never done again. The folder is locked meanwhile and should hold nothing else. With a
    pool, ``mapper=pool.imap_unordered`` (or an executor's ``map``) sends the same shards to its workers; ``work`` must
    then be a function of a module.

    Args:
        shards: all of them, from ``plan_shards``.
        work: writes one shard's result.
        folder: where the files go; made when missing.
        suffix: of each file, such as ``".parquet"``.
        key: whatever else decides the results, such as a config's hash; another key refuses to mix with what is there.
        description: names the progress bar.
        mapper: applies the work to the shards that are left.

    Raises:
        DiffalignError: the folder was begun with another plan or key, or is in use.
    """
    folder = Path(folder)
    with folder_lock(folder):
        remove_stale(folder)
        _check_plan(shards, folder / "plan.json", key)
        left = [shard for shard in shards if not (folder / shard_name(shard, suffix)).exists()]
        done = len(shards) - len(left)
        label = f"{description} ({done} of {len(shards)} were done)" if done and left else description
        one = partial(_run_one, work=work, folder=folder, suffix=suffix)
        for _ in progress(mapper(one, left), total=len(left), description=label, unit="shards"):
            pass
    return [folder / shard_name(shard, suffix) for shard in shards]


def _run_one(shard: Shard, work: Work, folder: Path, suffix: str) -> Path:
    path = folder / shard_name(shard, suffix)
    with atomic_path(path) as temporary:
        work(shard, temporary)
    return path


def _check_plan(shards: Sequence[Shard], path: Path, key: str) -> None:
    """Write the plan at the first run; refuse a later run whose shards would mean other rows."""
    plan = {"key": key, "shards": [asdict(shard) for shard in shards]}
    if not path.exists():
        write_json(path, plan)
        return
    if (found := read_json(path)) != plan:
        what = "key" if found.get("key") != key else "division into shards"
        raise DiffalignError(
            f"{path.parent} was begun with another {what}, so its files are not this run's. "
            "Use the former settings to go on, or an empty folder to begin anew."
        )
