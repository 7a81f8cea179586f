"""The folder of one run: its settings, its versions, and one process at a time."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from diffalign.core.config import Config, config_to_yaml, dump_config
from diffalign.core.console import warn
from diffalign.core.errors import DiffalignError
from diffalign.core.files import read_json, read_text, remove_stale, write_json, write_text
from diffalign.core.locks import folder_lock, utc_now
from diffalign.core.yamls import parse_yaml

__all__ = ["RunFolder", "versions"]

_PACKAGES = (
    "diffalign",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "datasets",
    "numpy",
)


@dataclass(frozen=True)
class RunFolder:
    """An open run folder; see ``open``.

    Attributes:
        path: the folder.
        config: the run's settings.
        resumed: whether the run had been begun before.
    """

    path: Path
    config: Config
    resumed: bool

    @classmethod
    @contextmanager
    def open(cls, path: str | Path, config: Config, *, kind: str) -> Iterator[RunFolder]:
        """Begin a run in a new or empty folder, or go on with the same run, holding the folder's lock.

        Writes ``run.json`` (the kind of run and when it began), ``config.yaml`` (every setting; can be run again) and
        ``versions.json`` (what it ran with: one entry per opening that changed something).

        Args:
            path: the folder; made when missing.
            config: every setting that decides the results.
            kind: what is done here, such as ``"train"``.

        Raises:
            DiffalignError: the folder is in use, belongs to another run, or holds something else.
        """
        path = Path(path)
        _refuse_foreign(path)
        with folder_lock(path):
            remove_stale(path)
            resumed = (path / "config.yaml").exists()
            if resumed:
                _refuse_another(path, config, kind)
            else:
                write_json(path / "run.json", {"kind": kind, "began": utc_now()})
                write_text(path / "config.yaml", config_to_yaml(config))
            _record_versions(path / "versions.json")
            yield cls(path, config, resumed)


def versions() -> dict[str, str]:
    """What decides numbers besides the settings: Python, packages, platform, and diffalign's git revision.

    Nothing heavy is imported; a package that is absent has the version ``""``.
    """
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    found["git_revision"] = _git_revision(Path(__file__).parent)
    return found


def _git_revision(folder: Path) -> str:
    """The commit of the checkout that tracks ``folder``, with ``-dirty`` when changed; empty when none does."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return ""  # no git, no revision
        return done.stdout.strip() if done.returncode == 0 else ""

    # installed inside somebody else's repository, the package is not tracked by it
    if not git("ls-files", "--error-unmatch", "runs.py"):
        return ""
    return git("describe", "--always", "--dirty", "--exclude=*", "--abbrev=40")


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise DiffalignError(f"expected a folder for the run, but {path} is a file")
    if not path.exists() or (path / "run.json").exists():
        return
    others = sorted(entry.name for entry in path.iterdir() if entry.name != ".lock" and entry.name[:5] != ".tmp-")
    if others:
        raise DiffalignError(
            f"{path} holds something else than a run ({', '.join(others[:3])}{', ...' if others[3:] else ''}). "
            "Choose a new or empty folder."
        )


def _refuse_another(path: Path, config: Config, kind: str) -> None:
    found_kind = read_json(path / "run.json").get("kind")
    if found_kind != kind:
        raise DiffalignError(f"{path} holds a run of kind {found_kind!r}, not {kind!r}; choose another folder")
    found = _flat(parse_yaml(read_text(path / "config.yaml"), where=str(path / "config.yaml")))
    wanted = _flat(dump_config(config))
    absent = "(absent)"
    changed = [
        f"  {key}: {found.get(key, absent)!r} there, {wanted.get(key, absent)!r} now"
        for key in dict.fromkeys([*found, *wanted])
        if found.get(key, absent) != wanted.get(key, absent)
    ]
    if changed:
        raise DiffalignError(
            f"{path} was begun with other settings:\n" + "\n".join(changed) + "\n"
            "Use those to go on, or another folder to begin anew."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            value = {str(index): one for index, one in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _record_versions(path: Path) -> None:
    entries = read_json(path) if path.exists() else []
    now = versions()
    if entries:
        before = entries[-1]["versions"]
        changed = [f"{name} {before.get(name, '')} -> {now[name]}" for name in now if before.get(name, "") != now[name]]
        if not changed:
            return
        warn(f"going on with other versions than before, so numbers may change: {', '.join(changed)}")
    write_json(path, [*entries, {"since": utc_now(), "versions": now}])
