"""Processes that start with everything imported, in their folder, and end as they say."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from fresh import PRELOADED, Fresh


def tell() -> None:
    print(Path.cwd().name, os.environ["SAID"], [name for name in PRELOADED if name not in sys.modules])
    print("so far", file=sys.stderr)
    raise ValueError("and no further")


def leave(code: int) -> None:
    sys.exit(code)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_fresh_process_has_everything_imported_and_ends_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    told = Fresh(tell, (), tmp_path / "place", {"SAID": "yes"})
    assert told.returncode == 1 and told.stdout == "place yes []\n"
    assert told.stderr.startswith("so far") and "ValueError: and no further" in told.stderr
    assert [Fresh(leave, (code,), tmp_path).returncode for code in (0, 2)] == [0, 2]
    assert Fresh(die, (), tmp_path).returncode == -signal.SIGKILL
