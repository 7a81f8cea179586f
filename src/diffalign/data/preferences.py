"""Preferences on disk: a lazy reader."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from diffalign.core import DiffalignError, content_hash, sha256_file
from diffalign.data.files import parquet_files, read_footer
from diffalign.data.images import ImageLimits
from diffalign.data.schema import (
    LABEL_METRIC,
    Form,
    Record,
    Row,
    arrow_schema,
    decode_stored,
    form_of,
    from_record,
    pair_as_candidates,
)
from diffalign.types import Pair

__all__ = ["Preferences"]


class Preferences(Sequence[Row]):
    """Rows on disk, read lazily: opening reads the files' footers and ids, an access reads one row group.

    Args:
        path: a folder of Parquet files, one file, or a list of files; rows come in the order of the files (a folder's
            in the order of their names).
        limits: what its images may measure.

    Attributes:
        form: "pair" or "candidates": what an access gives.

    Raises:
        DiffalignError: no files, columns missing or of another type (naming the nearest), mixed forms, or ids that come
            twice.
    """

    def __init__(self, path: str | Path | Sequence[str | Path], *, limits: ImageLimits | None = None) -> None:
        self._files = parquet_files(path)
        self._limits = limits or ImageLimits()
        self._metadata = [read_footer(file) for file in self._files]
        forms = [
            form_of(data.schema.to_arrow_schema(), file) for data, file in zip(self._metadata, self._files, strict=True)
        ]
        if len(set(forms)) > 1:
            raise DiffalignError(f"{path}: pairs and candidate sets are mixed; open them apart")
        self._stored_form: Form = forms[0]
        self._schema = arrow_schema(self._stored_form)
        self._groups = [(shard, i) for shard, data in enumerate(self._metadata) for i in range(data.num_row_groups)]
        sizes = [self._metadata[shard].row_group(group).num_rows for shard, group in self._groups]
        self._starts = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
        self._rows: Sequence[int] = range(self._starts[-1])
        self._view: Form = self._stored_form
        self._loaded: tuple[int, Any] = (-1, None)
        self._fingerprint = ""
        self._refuse_duplicates(path)

    @property
    def form(self) -> Form:
        """The form of the rows this gives: "pair" or "candidates"."""
        return self._view

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """The row at ``index`` (negative counts from the end), or for a slice a view of its rows."""
        if isinstance(index, slice):
            return self._with(self._rows[index], self._view)
        row = from_record(self._record(self._rows[index]), self._stored_form, self._limits)
        return pair_as_candidates(row) if self._view == "candidates" and isinstance(row, Pair) else row

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def ids(self) -> list[str]:
        """The id of every row; no image is read."""
        return self._column("id")

    def prompts(self) -> list[str]:
        """The prompt of every row; no image is read."""
        return self._column("prompt")

    def labels(self) -> list[float]:
        """The label of every pair; no image is read.

        Raises:
            DiffalignError: the rows are candidate sets, which have scores instead.
        """
        if self._stored_form != "pair":
            raise DiffalignError("expected pairs, got candidate sets: they have scores, not labels")
        return [float(label) for label in self._column("label")]

    def scores(self) -> list[dict[str, tuple[float, ...]]]:
        """Per row and metric, the scores of its images (chosen, rejected; or K); no image is read."""
        stored = self._column("scores")
        if self._stored_form == "candidates":
            return [{one["metric"]: tuple(one["values"]) for one in row or ()} for row in stored]
        rows: list[dict[str, tuple[float, ...]]]
        rows = [{one["metric"]: (one["chosen"], one["rejected"]) for one in row or ()} for row in stored]
        if self._view == "pair":
            return rows
        return [{LABEL_METRIC: (label, 1 - label), **row} for label, row in zip(self.labels(), rows, strict=True)]

    def masks(self) -> Iterator[Image.Image | None]:
        """The mask of every pair, or None where it has none; chosen and rejected images are not read.

        Raises:
            DiffalignError: the rows are candidate sets, which have none; or a mask cannot be decoded.
        """
        if self._stored_form != "pair":
            raise DiffalignError("expected pairs, got candidate sets: they have no masks")
        for name, stored in zip(self.ids(), self._column("mask"), strict=True):
            yield None if stored is None else decode_stored(stored, name, "mask", self._limits).convert("L")

    def image_hashes(self) -> list[tuple[str, ...]]:
        """Per row, the content hash of each of its images (chosen, rejected; or K); no image is read.

        Raises:
            DiffalignError: a row lacks them, since another program wrote it.
        """
        hashes = [tuple((provenance or {}).get("sha256") or ()) for provenance in self._column("provenance")]
        for name, row_hashes in zip(self.ids(), hashes, strict=True):
            if not row_hashes or (self._stored_form == "pair" and len(row_hashes) != 2):
                raise DiffalignError(
                    f"row {name!r} does not hold the hash of each of its images in provenance.sha256; "
                    "write the rows again with PreferenceWriter, which adds them"
                )
        return hashes

    def record(self, index: int) -> Record:
        """The row at ``index`` as it is stored, its images encoded.

        Raises:
            DiffalignError: this is a view of pairs as candidate sets, which are not stored so.
        """
        if self._view != self._stored_form:
            raise DiffalignError("pairs that are read as candidate sets are not stored as such; take the pairs")
        return self._record(self._rows[index])

    def images(self, positions: Collection[int] | None = None) -> Iterator[tuple[str, Callable[[], Image.Image]]]:
        """Every distinct image once, in the order of rows: its content hash and a function that decodes it.

        Args:
            positions: which images of a row: 0 the chosen and 1 the rejected one, or among the K; all by default.
        """
        seen: set[str] = set()
        for row, hashes in zip(self._rows, self.image_hashes(), strict=True):
            for position, sha256 in enumerate(hashes):
                if sha256 not in seen and (positions is None or position in positions):
                    seen.add(sha256)
                    yield sha256, partial(self._image, row, position)

    def as_candidates(self) -> Preferences:
        """A view in which a pair reads as a candidate set with K = 2 (see `pair_as_candidates`)."""
        return self._with(self._rows, "candidates")

    def select(self, indices: Sequence[int]) -> Preferences:
        """A view of the rows at ``indices``, in that order; the files stay as they are."""
        return self._with([self._rows[index] for index in indices], self._view)

    def fingerprint(self) -> str:
        """A hash of the files' bytes, the rows selected and the form: another one means that the data changed."""
        if not self._fingerprint:
            files = [sha256_file(file) for file in self._files]
            everything = range(self._starts[-1])
            selection = None if self._rows == everything else [int(row) for row in self._rows]
            self._fingerprint = content_hash("preferences", files, selection, self._view)
        return self._fingerprint

    def _with(self, rows: Sequence[int], view: Form) -> Preferences:
        other = object.__new__(Preferences)
        other.__dict__.update(self.__dict__)
        other._rows, other._view, other._fingerprint = rows, view, ""
        return other

    def _record(self, row: int) -> Record:
        """One stored row as a record; its row group stays loaded until another is asked for."""
        group = bisect_right(self._starts, row) - 1
        if self._loaded[0] != group:
            self._loaded = (group, self._read_group(group, self._schema.names))
        record: Record = self._loaded[1].slice(row - self._starts[group], 1).to_pylist()[0]
        return record

    def _read_group(self, group: int, columns: list[str]) -> Any:
        shard, group_in_shard = self._groups[group]
        schema = pa.schema([self._schema.field(name) for name in columns])
        try:
            with pq.ParquetFile(self._files[shard], metadata=self._metadata[shard]) as file:
                return file.read_row_group(group_in_shard, columns=columns).select(columns).cast(schema)
        except (OSError, pa.ArrowException) as error:
            raise DiffalignError(f"cannot read rows of {self._files[shard]}: {error}; write it again") from error

    def _column(self, name: str) -> list[Any]:
        values = [
            value for group in range(len(self._groups)) for value in self._read_group(group, [name])[name].to_pylist()
        ]
        return [values[row] for row in self._rows]

    def _image(self, row: int, position: int) -> Image.Image:
        record = self._record(row)
        stored = (record["chosen"], record["rejected"]) if self._stored_form == "pair" else record["images"]
        if position >= len(stored):
            raise DiffalignError(f"row {record['id']!r} lists more hashes in provenance.sha256 than it has images")
        return decode_stored(stored[position], record["id"], "images", self._limits)

    def _refuse_duplicates(self, path: object) -> None:
        if not self._groups:
            return
        counts = pc.value_counts(pa.array(self.ids(), pa.string()))
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(repeated):
            name = repeated.field("values")[0].as_py()
            raise DiffalignError(f"{path}: {len(repeated)} ids come more than once, the first is {name!r}")
