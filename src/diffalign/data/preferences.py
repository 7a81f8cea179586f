"""Preferences on disk: a writer of whole shards and a lazy reader."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from diffalign.core import DiffalignError, atomic_path, content_hash, folder_lock, sha256_file
from diffalign.core.files import remove_stale
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
    to_record,
)
from diffalign.types import CandidateSet, Pair

__all__ = ["PreferenceWriter", "Preferences"]


_SPLITS = ("train", "validation", "test")  # how files of published data sets begin


class PreferenceWriter:
    """Writes rows into ``folder`` as ``train-00000.parquet``, ``train-00001.parquet``, ...

    Each shard appears whole or not at all, so a killed writer leaves only complete shards; with ``resume`` the next one
    skips the rows they hold and goes on. The same rows give the same bytes, interrupted or not. The folder is
    locked for this process meanwhile.

    Args:
        folder: made when missing.
        form: "pair" or "candidates"; one folder holds one form.
        rows_per_shard: rows in a file; what a killed writer loses at most.
        rows_per_group: rows that a reader holds in memory at once.
        resume: continue a folder that has shards; otherwise such a folder is refused.

    Example:
        >>> import tempfile
        >>> grey, white = (Image.new("RGB", (4, 3), colour) for colour in ("grey", "white"))
        >>> folder = tempfile.mkdtemp()
        >>> with PreferenceWriter(folder, form="pair") as writer:
        ...     writer.write(Pair(id="1", prompt="a wall", chosen=white, rejected=grey))
        True
        >>> Preferences(folder)[0].prompt
        'a wall'
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        form: Form,
        rows_per_shard: int = 256,
        rows_per_group: int = 16,
        resume: bool = False,
    ) -> None:
        if rows_per_shard < 1 or rows_per_group < 1:
            raise DiffalignError(f"shards and groups need at least 1 row, got {rows_per_shard} and {rows_per_group}")
        self.folder = Path(folder)
        self.form: Form = form
        self._schema = arrow_schema(form)
        self._rows_per_shard = rows_per_shard
        self._rows_per_group = rows_per_group
        self._resume = resume
        self._lock = ExitStack()
        self._ready = False
        self._shard: ExitStack | None = None
        self._parquet: Any = None
        self._group: list[Record] = []
        self._rows_in_shard = 0
        self._num_shards = 0
        self._stored: set[str] = set()
        self._seen: set[str] = set()

    def __enter__(self) -> PreferenceWriter:
        with ExitStack() as lock:
            lock.enter_context(folder_lock(self.folder))
            remove_stale(self.folder)
            shards = _shards(self.folder)
            if shards and not self._resume:
                raise DiffalignError(
                    f"{self.folder} already holds {len(shards)} shards; resume (resume=True) or choose another folder"
                )
            if shards:
                self._continue(shards)
            self._lock = lock.pop_all()
        self._ready = True
        return self

    def _continue(self, shards: list[Path]) -> None:
        expected = [self._path(index).name for index in range(len(shards))]
        if [shard.name for shard in shards] != expected:
            raise DiffalignError(
                f"cannot resume {self.folder}: expected {expected[0]} to {expected[-1]}, "
                f"there are {', '.join(shard.name for shard in shards)}"
            )
        there = Preferences(shards)
        if there.form != self.form:
            raise DiffalignError(
                f"cannot resume {self.folder}: it holds rows of form {there.form!r}, not {self.form!r}"
            )
        self._stored = set(there.ids())
        self._num_shards = len(shards)

    def write(self, row: Row, *, original: Sequence[bytes] | None = None) -> bool:
        """Add a row; it is on disk for good once its shard is complete.

        Args:
            row: a Pair or a CandidateSet, as the writer's form says.
            original: encoded bytes of its images (chosen, rejected; or the K candidates), stored instead of PNG. They
                must decode to the same pixels.

        Returns:
            False when resuming and a complete shard already holds a row of this id; True when it was added.

        Raises:
            DiffalignError: the row is invalid or of the other form, or its id came twice; or the disk is full, after
                which the writer takes nothing more and complete shards can be resumed.
        """
        self._check_ready()
        if not isinstance(row, Pair if self.form == "pair" else CandidateSet):
            raise DiffalignError(f"this writer takes rows of form {self.form!r}, got a {type(row).__name__}")
        return self._add(row.id, lambda: to_record(row, original))

    def copy(self, source: Preferences, index: int) -> bool:
        """Add a stored row as it is, without decoding its images; see ``write``.

        Args:
            source: rows of the writer's form.
            index: of the row.
        """
        self._check_ready()
        if source.form != self.form:
            raise DiffalignError(f"this writer takes rows of form {self.form!r}, got {source.form!r}")
        record = source.record(index)
        return self._add(record["id"], lambda: record)

    def _add(self, name: str, record: Callable[[], Record]) -> bool:
        if name in self._seen:
            raise DiffalignError(f"row {name!r}: another row has this id; ids are unique in a data set")
        if name in self._stored:
            self._seen.add(name)
            return False
        self._group.append(record())
        self._seen.add(name)
        self._rows_in_shard += 1
        self._ready = False  # a write that fails loses the rows of its shard
        if self._rows_in_shard == self._rows_per_shard:
            self._finish_shard()
        elif len(self._group) == self._rows_per_group:
            self._flush_group()
        self._ready = True
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            if error is None:
                self._check_ready()
                self._ready = False
                self._finish_shard()
            elif self._shard is not None:
                abandoned, self._shard = self._shard, None
                # Its own exception: the caller's error has nothing to do with the file being written.
                abandoned.__exit__(_AbandonedError, _AbandonedError(), None)

    def _check_ready(self) -> None:
        """Refuse to lose rows: outside its block nothing would write them, and after a failed write some are gone."""
        if not self._ready:
            raise DiffalignError(
                f"the writer of {self.folder} is not open: use it in a `with` block, and after a failed write begin "
                "another with resume=True"
            )

    def _path(self, index: int) -> Path:
        return self.folder / f"train-{index:05d}.parquet"

    def _flush_group(self) -> None:
        table = pa.Table.from_pylist(self._group, schema=self._schema)
        self._group = []
        if self._shard is None:
            self._shard = ExitStack()
            temporary = self._shard.enter_context(atomic_path(self._path(self._num_shards)))
            # Images are compressed already, and statistics of their bytes would only swell the file's footer.
            parquet = pq.ParquetWriter(
                temporary, self._schema, compression="none", use_dictionary=False, write_statistics=["id"]
            )
            self._parquet = self._shard.enter_context(parquet)
        try:
            self._parquet.write_table(table, row_group_size=self._rows_per_group)
        except Exception:
            broken, self._shard = self._shard, None
            broken.__exit__(*sys.exc_info())
            raise

    def _finish_shard(self) -> None:
        if self._group:
            self._flush_group()
        if self._shard is not None:
            finished, self._shard = self._shard, None
            finished.close()
            self._num_shards += 1
        self._rows_in_shard = 0


class _AbandonedError(Exception):
    pass


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
        self._metadata = [_read_footer(file) for file in self._files]
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

    def images(self) -> Iterator[tuple[str, Callable[[], Image.Image]]]:
        """Every distinct image once, in the order of rows: its content hash and a function that decodes it."""
        seen: set[str] = set()
        for row, hashes in zip(self._rows, self.image_hashes(), strict=True):
            for position, sha256 in enumerate(hashes):
                if sha256 not in seen:
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


def parquet_files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The Parquet files that a folder, one path or a list of paths stands for, in order.

    Raises:
        DiffalignError: no files, or a folder of several splits, which would mix test rows into training.
    """
    if not isinstance(path, (str, Path)):
        files = [Path(one) for one in path]
    elif Path(path).is_dir():
        folders = (Path(path), Path(path) / "pairs", Path(path) / "candidates")  # runs hold their rows in these
        files = next(filter(None, map(_shards, folders)), [])
        splits = [split for split in _SPLITS if any(file.name.startswith(split) for file in files)]
        if len(splits) > 1:
            raise DiffalignError(f"{path} holds several splits ({', '.join(splits)}): give a list of one split's files")
    else:
        files = [Path(path)]
    if not files:
        raise DiffalignError(
            f"{path}: no Parquet files (*.parquet) there. Folders of images become preference data by read_folders, "
            "photographs by diffalign curate"
        )
    for file in files:
        if not file.is_file():
            raise DiffalignError(f"there is no {file}: expected a folder of Parquet files, or one Parquet file")
    return files


def _shards(folder: Path) -> list[Path]:
    # Hidden files are what a writer has not finished.
    return sorted(file for file in folder.glob("*.parquet") if not file.name.startswith("."))


def _read_footer(file: Path) -> Any:
    try:
        return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise DiffalignError(f"{file} is not a whole Parquet file: {error}") from error
