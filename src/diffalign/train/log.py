"""What a run writes while it goes: metrics.jsonl always, TensorBoard if asked, alarms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from diffalign.core import DiffalignError, warn, write_jsonl
from diffalign.train.monitor import Monitor

__all__ = ["MetricsLog"]


class MetricsLog:
    """Appends a row per step and watches them.

    Args:
        folder: of the run.
        first: steps that the run goes on after; later rows are dropped, they will be made again.
        tensorboard: also write event files into ``tensorboard/``.
    """

    def __init__(self, folder: Path, first: int, *, tensorboard: bool = False) -> None:
        self._path = folder / "metrics.jsonl"
        rows = [row for row in _whole_rows(self._path) if row["step"] <= first]
        write_jsonl(self._path, rows)
        self._monitor = Monitor()
        for row in rows:
            self._monitor.watch(row)  # what was said before the interruption is not said again
        self._file = self._path.open("a", encoding="utf-8")
        self._board = _summary_writer(folder / "tensorboard", first) if tensorboard else None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one step's row, with the names of alarms that are new in it."""
        alarms = self._monitor.watch(row)
        for alarm in alarms:
            warn(f"step {alarm.step}, {alarm.name}: {alarm.message}")
        named = {"alarms": [alarm.name for alarm in alarms]} if alarms else {}
        self._append({**row, **named})
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, row["step"])

    def stop(self, step: int, ids: list[str]) -> None:
        """Append the last row of a run that cannot go on: which rows were not finite."""
        self._append({"step": step, "alarms": ["non_finite"], "rows": ids})

    def _append(self, row: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise DiffalignError(f"cannot write {self._path}: {error.strerror}. Checkpoints are kept.") from error

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # of a full disk, which has been told
            self._file.close()
        if self._board is not None:
            self._board.close()


def _whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file whose last line a kill or a full disk may have cut."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _summary_writer(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise DiffalignError("TensorBoard was asked for and is not installed: pip install tensorboard") from error
    return SummaryWriter(str(folder), purge_step=first + 1)  # type: ignore[no-untyped-call]
