"""Where files lie: a folder on the disk, or a folder behind a URL that fsspec reads. Names in it are text with "/".

What is wrong with one file, today and tomorrow, is `Unreadable`; what is wrong with the way there (a network that
fails, a key that is refused) is a DiffalignError that ends the run, so that results never depend on the weather.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote

from diffalign.core import DiffalignError
from diffalign.curate.sources.photo import printable

__all__ = ["LocalStore", "RemoteStore", "Store", "Unreadable", "is_url", "open_file", "open_store"]


_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_DRIVERS = {protocol: f"pip install {package}; " for protocol, package in _PACKAGES.items()}


class Unreadable(DiffalignError):  # noqa: N818 (a reason to leave a photograph out)
    """A file that cannot be read.

    Attributes:
        reason: "missing", "outside" or "unreadable".
        detail: what exactly.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[Any, ...]:
        return Unreadable, (self.reason, self.detail)


class Store(Protocol):
    """Files below a root."""

    @property
    def root(self) -> str:
        """Path or URL."""
        ...

    @property
    def name(self) -> str:
        """The root's own name, as photographs show it."""
        ...

    def __hash__(self) -> int: ...

    def files(self) -> tuple[dict[str, int], dict[str, str]]:
        """By name, the bytes of each visible file below the root; and why a folder cannot be read."""
        ...

    def names(self) -> list[str]:
        """What lies in the root itself."""
        ...

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to read, with seek; what goes wrong with reading it comes out as this module's errors."""
        ...

    def read(self, name: str, start: int, size: int) -> bytes:
        """At most ``size`` bytes from ``start`` on."""
        ...

    def check_inside(self, name: str) -> None:
        """Raise `Unreadable` where a name that data gives leads out of the root."""
        ...


@dataclass(frozen=True)
class LocalStore:
    """A folder on the disk.

    Attributes:
        root: its absolute path.
    """

    root: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return printable(Path(self.root).resolve().name)

    def files(self) -> tuple[dict[str, int], dict[str, str]]:
        """By name, the bytes of each visible file; and why a folder cannot be read. Links to folders are passed over.

        Paths stay text and folders a list: with pathlib and recursion, 10^5 files take seconds and deep trees fail.
        """
        files: dict[str, int] = {}
        unreadable: dict[str, str] = {}
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(f"{self.root}/{folder}") as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(f"{folder}{entry.name}/")
                        elif not (entry.is_symlink() and Path(entry.path).is_dir()):
                            files[folder + entry.name] = _num_bytes(entry)
            except OSError as error:
                unreadable[folder.rstrip("/") or "."] = error.strerror or str(error)
        return files, unreadable

    def names(self) -> list[str]:
        """What lies in the folder itself.

        Raises:
            DiffalignError: it cannot be read.
        """
        try:
            return [path.name for path in Path(self.root).iterdir()]
        except OSError as error:
            raise DiffalignError(f"cannot read the folder {self.root}: {error.strerror}") from error

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file to read."""
        with _one_file(name), self._path(name).open("rb") as file:
            yield file

    def read(self, name: str, start: int, size: int) -> bytes:
        """At most ``size`` bytes from ``start`` on."""
        with _one_file(name), self._path(name).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def check_inside(self, name: str) -> None:
        """Raise `Unreadable` where a name leads out of the folder: by "..", from the root of the disk, or by a link."""
        with _one_file(name):
            place = Path(self.root, name).resolve()
        if Path(name).is_absolute() or not place.is_relative_to(Path(self.root).resolve()):
            raise Unreadable("outside", f"{name!r} leads out of the data set's folder; names start in it")

    def _path(self, name: str) -> Path:
        path = Path(self.root, name)
        if not path.is_file():  # a pipe or device would keep us waiting
            raise Unreadable(
                "unreadable" if os.path.lexists(path) else "missing", f"{name!r} does not exist or is not a file"
            )
        return path


@dataclass(frozen=True)
class RemoteStore:
    """A folder behind a URL, read by fsspec: s3://, gs://, https://, hf://, memory:// and others.

    Attributes:
        root: the URL, without a needless "/" at its end.
    """

    root: str

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return printable(self.root.rsplit("/", 1)[-1])

    def files(self) -> tuple[dict[str, int], dict[str, str]]:
        """By name, the bytes of each visible file."""
        files, path = self._system()
        with self._way(""):
            found = files.find(path, detail=True)
        names = {full.removeprefix(f"{path}/"): info for full, info in found.items() if full.startswith(f"{path}/")}
        visible = {name: info for name, info in names.items() if not any(p.startswith(".") for p in name.split("/"))}
        return {name: int(info.get("size") or 0) for name, info in visible.items()}, {}

    def names(self) -> list[str]:
        """What lies in the folder itself."""
        files, path = self._system()
        with self._way(""):
            return [full.rstrip("/").rsplit("/", 1)[-1] for full in files.ls(path, detail=False)]

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file to read."""
        files, path = self._system()
        with self._way(name), files.open(f"{path}/{name}", "rb") as file:
            yield file

    def read(self, name: str, start: int, size: int) -> bytes:
        """At most ``size`` bytes from ``start`` on, and no more asked of the server."""
        files, path = self._system()
        with self._way(name), files.open(f"{path}/{name}", "rb", cache_type="none") as file:
            if start:
                file.seek(start)
            data: bytes = file.read(size)
        return data

    def check_inside(self, name: str) -> None:
        """Raise `Unreadable` where a name leads out of the folder: by "..", or as a URL or path of its own."""
        plain = unquote(name)
        if plain.startswith("/") or ".." in plain.replace("\\", "/").split("/") or "://" in plain or "::" in plain:
            raise Unreadable("outside", f"{name!r} leads out of the data set's folder; names start in it")

    def _system(self) -> tuple[Any, str]:
        """fsspec's file system and the root's path in it; made anew, since connections do not travel to workers."""
        import fsspec  # type: ignore[import-untyped]

        protocol = self.root.split("://")[0]
        try:
            system, path = fsspec.core.url_to_fs(self.root)
        except ImportError as error:
            raise DiffalignError(
                f"reading {protocol}:// needs a package that is not here: {_DRIVERS.get(protocol, '')}{error}"
            ) from error
        except ValueError as error:
            raise DiffalignError(
                f"cannot read {self.root}: {error}; expected s3://, gs://, https:// or a path"
            ) from error
        return system, path.rstrip("/")

    @contextmanager
    def _way(self, name: str) -> Iterator[None]:
        """What a file system raises, told apart: a file that is not there, or a way that is closed."""
        try:
            yield
        except DiffalignError:
            raise
        except FileNotFoundError as error:
            raise Unreadable("missing", f"there is no {self.root}/{name}") from error
        except Exception as error:  # every protocol has its own
            raise DiffalignError(f"cannot read {self.root}/{name}: {type(error).__name__}: {error}") from error


def is_url(spec: str) -> bool:
    """Whether this is a URL rather than a path on the disk."""
    return "://" in spec


def open_store(place: str) -> Store:
    """The store of a path or URL; ``file://`` is the disk.

    Example:
        >>> open_store("memory://album/").name
        'album'
    """
    if place.startswith("file://"):
        place = unquote(place.removeprefix("file://"))
    if not is_url(place):
        return LocalStore(str(Path(place or ".").absolute()))
    plain = place.rstrip("/")
    return RemoteStore(f"{plain}//" if plain.endswith(":") else plain)


def open_file(place: str) -> tuple[Store, str]:
    """The store of the folder that a file lies in, and the file's name there.

    Example:
        >>> open_file("memory://album/1.tar")
        (RemoteStore(root='memory://album'), '1.tar')
    """
    folder, slash, name = place.rpartition("/")
    return open_store(folder + slash), name


def _num_bytes(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link that leads nowhere, say; reading will tell
        return 0


@contextmanager
def _one_file(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # no permission, a loop of links, a NUL in the name
        reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise Unreadable(reason, f"{name!r}: {getattr(error, 'strerror', None) or error}") from error
