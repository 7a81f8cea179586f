"""Many rows into a folder that is there once it is whole, by a run that may be killed on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from diffalign.core import DiffalignError, atomic_path
from diffalign.data.preferences import Preferences
from diffalign.data.schema import Form, Row
from diffalign.data.writer import PreferenceWriter

__all__ = ["MadeRow", "write_preferences"]

MadeRow = tuple[Row, Sequence[bytes] | None]  # a row, and its images' encoded bytes where they are to be kept


def write_preferences(
    folder: str | Path, form: Form, rows: Iterable[tuple[str, Callable[[], MadeRow]]], *, rows_per_shard: int = 256
) -> None:
    """Write rows into ``folder``, which appears whole at the end; a killed run goes on beside it.

    Until then complete shards lie in ``<folder>-unfinished``, and the rows that they hold are not made again. The same
    rows give the same bytes, interrupted or not. A folder that is there is left as it is.

    Args:
        folder: of the Parquet files.
        form: "pair" or "candidates".
        rows: in order, the id of each and what makes it: the row, and the encoded bytes of its images, or None to
            encode them as PNG.
        rows_per_shard: what a kill loses at most.

    Raises:
        DiffalignError: the unfinished folder holds rows that are not among these, or ``PreferenceWriter`` refuses one.
    """
    folder = Path(folder)
    if folder.exists():
        return
    unfinished = folder.with_name(f"{folder.name}-unfinished")
    with PreferenceWriter(unfinished, form=form, rows_per_shard=rows_per_shard, resume=True) as writer:
        stored = set(Preferences(unfinished).ids()) if any(unfinished.glob("*.parquet")) else set()
        for name, make in rows:
            if name in stored:
                stored.remove(name)
            else:
                row, original = make()
                writer.write(row, original=original)
        if stored:
            raise DiffalignError(f"{unfinished} holds other rows, such as {min(stored)!r}: remove it to begin anew")
    with atomic_path(folder) as temporary:
        unfinished.replace(temporary)
