"""Preferences to disk: a writer of whole shards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffalign.core import DiffalignError, atomic_path, folder_lock
from diffalign.core.files import remove_stale
from diffalign.data.files import shards_in
from diffalign.data.preferences import Preferences
from diffalign.data.schema import Form, Record, Row, arrow_schema, to_record
from diffalign.types import CandidateSet, Pair

__all__ = ["PreferenceWriter"]


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
        >>> from PIL import Image
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
            shards = shards_in(self.folder)
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
