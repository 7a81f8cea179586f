"""Photographs in Parquet files, read by row groups, so that any part decodes its own groups alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffalign.core import DiffalignError, content_hash
from diffalign.curate.sources.columns import Columns, find_columns
from diffalign.curate.sources.photo import Photo, PhotoRecipe, Photos, Rejected, printable
from diffalign.curate.sources.store import Store, Unreadable

__all__ = ["parquet_photos"]

_CACHED_GROUPS = 2  # decoded row groups that a process keeps: the one being read, and the next of another reader


@dataclass(frozen=True)
class _Group:
    """A row group: its file, its number there, its first row there, and a fingerprint of its columns."""

    file: str
    number: int
    first_row: int
    fingerprint: str


@dataclass(frozen=True)
class _Reader:
    store: Store
    columns: Columns
    groups: tuple[_Group, ...]
    starts: tuple[int, ...]  # of each group, the number of its first row in all files
    recipe: PhotoRecipe

    def read(self, key: int) -> Photo | Rejected:
        place = bisect_right(self.starts, key) - 1
        group, index = self.groups[place], key - self.starts[place]
        source = f"{self.store.name}/{printable(group.file)}:{group.first_row + index}"
        try:
            row = _read_group(self.store, group, tuple(self.columns.all)).slice(index, 1).to_pylist()[0]
        except Unreadable as error:
            return Rejected(source, error.reason, error.detail)
        image = row[self.columns.image]
        data = image.get("bytes") if isinstance(image, Mapping) else image
        return self.columns.photo(row, data, source, self.recipe)


def parquet_photos(store: Store, files: Iterable[str], recipe: PhotoRecipe) -> Photos:
    """The rows of Parquet files in order.

    The image's column is found by its type, bytes or struct{bytes, path}, and among several by its name; the caption's
    by its name, ``text``, ``caption`` or ``prompt``. A path without bytes is not followed.

    Args:
        store: what holds the files.
        files: their names.
        recipe: how rows become photographs.

    Raises:
        DiffalignError: a file is not Parquet, lacks the columns, or there are no rows.
    """
    columns: Columns | None = None
    groups: list[_Group] = []
    starts: list[int] = []
    total = 0
    for file in files:
        where = f"{store.root}/{file}"
        footer = _read_footer(store, file)
        found = find_columns(footer.schema.to_arrow_schema(), where, need_captions=recipe.need_captions)
        columns = columns or found
        if found != columns:
            raise DiffalignError(f"{where}: expected the columns of the first file, {columns.all}, found {found.all}")
        first_row = 0
        for number in range(footer.num_row_groups):
            num_rows = footer.row_group(number).num_rows
            groups.append(_Group(file, number, first_row, _fingerprint(footer.row_group(number))))
            starts.append(total)
            first_row, total = first_row + num_rows, total + num_rows
    if columns is None or not total:
        raise DiffalignError(f"{store.root} holds no photographs: its Parquet files have no rows")
    reader = _Reader(store, columns, tuple(groups), tuple(starts), recipe)
    parts = [[one.file, one.number, one.fingerprint] for one in groups]
    return Photos(
        range(total), reader, content_hash("parquet", recipe.size, recipe.need_captions, columns.all, total, parts)
    )


def _read_footer(store: Store, file: str) -> Any:
    with store.open(file) as opened:
        try:
            return pq.read_metadata(opened)
        except (pa.ArrowException, OSError) as error:
            raise DiffalignError(f"{store.root}/{file} is not a whole Parquet file: {error}") from error


def _fingerprint(group: Any) -> str:
    """A hash of the columns' places, sizes and statistics: what the footer knows of the rows."""
    return content_hash([str(group.column(number).to_dict()) for number in range(group.num_columns)])[:16]


@lru_cache(maxsize=_CACHED_GROUPS)
def _read_group(store: Store, group: _Group, columns: tuple[str, ...]) -> Any:
    with store.open(group.file) as opened:
        try:
            with pq.ParquetFile(opened, pre_buffer=True) as parquet:
                return parquet.read_row_group(group.number, columns=list(columns))
        except (pa.ArrowException, OSError, IndexError) as error:
            raise Unreadable("unreadable", f"row group {group.number} cannot be read: {error}") from error
