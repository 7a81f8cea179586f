"""One process per output folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from diffalign.core.errors import DiffalignError

__all__ = ["folder_lock", "utc_now"]


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold ``folder`` for this process alone while the block runs; the folder is made when missing.

    The kernel's lock (flock) on ``folder/.lock`` decides, so a killed process frees it by dying; children forked inside
    the block hold it too, until the last of them ends. The file's JSON (pid, host, start time) only tells the second
    comer whom to ask. A second block of the same process is refused like any other.

    Raises:
        DiffalignError: another block holds the folder (naming it), or the folder cannot be written.
    """
    path = Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)
    except OSError as error:
        raise DiffalignError(f"cannot use {folder} as an output folder: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": utc_now()}
            file.write(json.dumps(holder).encode())
        except BlockingIOError:
            raise DiffalignError(
                f"{folder} is in use by {_holder(path)}. Wait for it to end, stop it, or choose another folder."
            ) from None
        except OSError as error:
            raise DiffalignError(
                f"cannot lock {path}: {error.strerror}; is the disk full, or a network disk without locks?"
            ) from error
        try:
            yield
        finally:
            file.truncate(0)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} (since {holder['started']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # it has locked the file but not yet written its name


def utc_now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
