"""The command line: one verb per module; each imports what it needs when it runs, so that help stays quick."""

from __future__ import annotations

from diffalign.cli.app import app, main

__all__ = ["app", "main"]
