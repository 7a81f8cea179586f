"""Fresh processes that have everything imported: forks of one server, each started in a fraction of a second.

What is preloaded are installed modules: the server does not look where tests are.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

PRELOADED = [
    "diffalign.cli.app",
    "diffalign.curate",
    "diffalign.evaluate",
    "diffalign.recipes.demo",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
]
PATIENCE = 1200.0  # seconds
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # read when libraries are imported


@cache
def server() -> Any:
    """The context of ``multiprocessing`` whose processes start so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with patch.dict(os.environ, QUIET):
        forkserver.ensure_running()
    return context


@dataclass
class Fresh:
    """A process that calls ``function(*arguments)`` in ``folder``; what it prints goes to files.

    It ends with 1 where the function raises, and otherwise as the function says by ``sys.exit``.
    """

    function: Callable[..., object]
    arguments: tuple[Any, ...]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._printed = Path(tempfile.mkdtemp(dir=self.folder.parent))
        work = (self.function, self.arguments, self.folder, dict(self.environment), self._printed)
        self.process = server().Process(target=_call, args=work)
        self.process.start()

    @property
    def stdout(self) -> str:
        return (self._printed / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self._printed / "stderr").read_text()

    @property
    def returncode(self) -> int:
        """The exit code, once the process has ended; minus the number of a signal that ended it."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"it takes longer than {PATIENCE:g} seconds: {self.stderr[-2000:]}")
        code: int = self.process.exitcode
        return code


def _call(
    function: Callable[..., object],
    arguments: tuple[Any, ...],
    folder: Path,
    environment: dict[str, str],
    printed: Path,
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    for number, name in ((1, "stdout"), (2, "stderr")):
        with (printed / name).open("w") as file:
            os.dup2(file.fileno(), number)
    try:
        function(*arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
