"""Ctrl-C and a scheduler's SIGTERM end a run between two steps, with nothing lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["finish_step_first"]


@contextmanager
def finish_step_first() -> Iterator[Callable[[], bool]]:
    """Inside the block the first SIGINT or SIGTERM only makes the yielded function true; a second one acts at once.

    Outside the main thread signals cannot be caught, and the function stays false.
    """
    asked = False

    def take_note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, take_note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
