"""What people see: messages and progress on stderr, results on stdout; plain lines where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from functools import cache
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["get_console", "print_table", "progress", "warn"]

T = TypeVar("T")

_QUIET_SECONDS = 2.0
_LINE_EVERY_SECONDS = 10.0


@cache
def get_console() -> Console:
    """The console of messages and progress: stderr, and plain unwrapped lines when that is not a terminal."""
    return Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def warn(message: str) -> None:
    """Tell people of something they should know and that does not stop the run."""
    get_console().print(f"[yellow]warning:[/yellow] {escape(message)}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print rows on stdout: a table for a terminal, aligned plain columns otherwise.

    Args:
        columns: their headings.
        rows: one cell per column; cells are shown by ``str``.
        title: a line above the table.
    """
    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if terminal else None, title=title or None, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    Console(highlight=False, emoji=False, width=None if terminal else 1000).print(table)


def progress(
    iterable: Iterable[T], *, total: int | None = None, description: str = "", unit: str = "items"
) -> Iterator[T]:
    """Pass the items on and show how far it is, the rate and the time left.

    Nothing is shown in the first 2 seconds. A terminal then gets a bar; anything else gets a plain line at most every
    10 seconds and one at the end.

    Args:
        iterable: what to pass on.
        total: number of items, when ``iterable`` has no length.
        description: what is going on.
        unit: plural of what an item is.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    display = (_Bar if get_console().is_terminal else _Lines)(total, description, unit)
    count = 0
    try:
        for item in iterable:
            yield item
            count += 1
            display.show(count)
    finally:
        display.close(count)


class _Lines:
    """Plain lines, for logs."""

    def __init__(self, total: int | None, description: str, unit: str) -> None:
        self.total, self.description, self.unit = total, description or "progress", unit
        self.start = time.monotonic()
        self.last = self.start + _QUIET_SECONDS - _LINE_EVERY_SECONDS
        self.shown = 0

    def show(self, count: int) -> None:
        now = time.monotonic()
        if now - self.last >= _LINE_EVERY_SECONDS:
            self._print(count, now)

    def close(self, count: int) -> None:
        now = time.monotonic()
        if now - self.start >= _QUIET_SECONDS and count > self.shown:
            self._print(count, now)

    def _print(self, count: int, now: float) -> None:
        self.last, self.shown = now, count
        elapsed = now - self.start
        of = "" if self.total is None else f"/{self.total}"
        left = "" if self.total is None else f", {_clock(max(self.total - count, 0) * elapsed / count)} left"
        get_console().print(
            f"{self.description}: {count}{of} {self.unit} in {_clock(elapsed)}, {_rate(count, elapsed)}{left}",
            markup=False,
        )


class _Bar:
    """A bar that appears once the quiet time is over, for terminals."""

    def __init__(self, total: int | None, description: str, unit: str) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.start = time.monotonic()
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def show(self, count: int) -> None:
        elapsed = time.monotonic() - self.start
        if self.bar is None:
            if elapsed < _QUIET_SECONDS:
                return
            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[count]}", markup=False),
                TimeRemainingColumn(),
                console=get_console(),
                transient=False,
            )
            self.task = self.bar.add_task(self.description, total=self.total, count="")
            self.bar.start()
        of = "" if self.total is None else f"/{self.total}"
        self.bar.update(self.task, completed=count, count=f"{count}{of} {self.unit}, {_rate(count, elapsed)}")

    def close(self, count: int) -> None:
        if self.bar is not None:
            self.show(count)
            self.bar.stop()


def _rate(count: int, seconds: float) -> str:
    rate = count / max(seconds, 1e-9)
    return f"{rate:.1f}/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s each"


def _clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    Example:
        >>> _clock(3725)
        '1:02:05'
    """
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}" if hours else f"{minutes}:{whole:02d}"
