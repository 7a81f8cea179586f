"""Processes that start with everything imported, in their folder, and end as they say."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

import fresh
from fresh import PRELOADED, Fresh


def tell() -> None:
    print(Path.cwd().name, os.environ["SAID"], [name for name in PRELOADED if name not in sys.modules])
    print("so far", file=sys.stderr)
    raise ValueError("and no further")


def leave(code: int) -> None:
    sys.exit(code)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "PATIENCE", 0.1)
    running = Fresh(time.sleep, (20,), tmp_path)
    with pytest.raises(AssertionError, match="longer than 0"):
        assert running.returncode
    running.process.join(60)
    assert running.process.exitcode == -signal.SIGKILL


def test_a_fresh_process_has_everything_imported_and_ends_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    told = Fresh(tell, (), tmp_path / "place", {"SAID": "yes"})
    assert told.returncode == 1 and told.stdout == "place yes []\n"
    assert told.stderr.startswith("so far") and "ValueError: and no further" in told.stderr
    assert [Fresh(leave, (code,), tmp_path).returncode for code in (0, 2)] == [0, 2]
    assert Fresh(die, (), tmp_path).returncode == -signal.SIGKILL
