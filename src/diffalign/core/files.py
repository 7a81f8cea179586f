"""Files that are either whole or absent: everything is written beside its name and renamed into place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from diffalign.core.errors import DiffalignError

__all__ = [
    "atomic_path",
    "read_json",
    "read_jsonl",
    "read_text",
    "remove_stale",
    "safe_name",
    "sha256_file",
    "write_json",
    "write_jsonl",
    "write_text",
]

_TEMPORARY = ".tmp-"
_STALE = ".tmp*"  # ours, and those that safetensors makes beside the file it was asked for


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write to; renamed onto ``path`` when the block ends well, else removed.

    The block may make a file, or a folder if ``path`` does not exist yet. The name keeps its suffix, so writers that
    look at it still work. What is in place has reached the disk (fsync), and a file has the permissions of any new
    file, also where a library makes private ones.

    Args:
        path: the final name; missing parent folders are made. An existing file is replaced.

    Yields:
        The temporary path. It does not exist yet.

    Raises:
        DiffalignError: the disk is full, the place cannot be written, or the block wrote nothing.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    _make_folder(path.parent)
    temporary = path.parent / f"{_TEMPORARY}{secrets.token_hex(4)}-{path.name[-80:]}"
    try:
        mode = _mode_of_new_files(temporary)
        yield temporary
        if not temporary.exists():
            raise DiffalignError(f"nothing was written for {path}: expected a file or folder at the path handed out")
        if temporary.is_file():
            temporary.chmod(mode)
        for entry in [temporary, *temporary.rglob("*")]:
            _fsync(entry)
        temporary.replace(path)
        _fsync(path.parent)
    except Exception as error:
        if _is_full(error):
            raise DiffalignError(
                f"no space left on the disk while writing {path}. Nothing was lost: the unfinished file was removed "
                "and what was there before is unchanged. Free some space and run the same command again."
            ) from error
        if isinstance(error, OSError) and error.filename is not None and temporary.name in str(error.filename):
            raise DiffalignError(f"cannot write {path}: {error.strerror}; choose another place") from error
        raise
    finally:
        _remove(temporary)


def _make_folder(folder: Path) -> None:
    try:
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            _fsync(made.parent)
    except OSError as error:
        raise DiffalignError(f"cannot make the folder {folder}: {error.strerror}; choose another place") from error


def _mode_of_new_files(path: Path) -> int:
    """The umask can only be read by setting it, which other threads would notice; so a file is made and looked at."""
    path.touch(exist_ok=False)
    mode = stat.S_IMODE(path.stat().st_mode)
    path.unlink()
    return mode


def _is_full(error: Exception) -> bool:
    """True also where a library words the system's error its own way, as safetensors does."""
    full = {errno.ENOSPC, errno.EDQUOT}
    return (isinstance(error, OSError) and error.errno in full) or os.strerror(errno.ENOSPC) in str(error)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_stale(folder: str | Path) -> int:
    """Remove what killed writers left in ``folder`` and return how many there were.

    The caller holds the folder's lock, or it would remove the temporaries of a running process.
    """
    stale = list(Path(folder).glob(_STALE))
    for path in stale:
        _remove(path)
    return len(stale)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(_encode(text, path))


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        DiffalignError: the file is missing, unreadable or not UTF-8.
    """
    with _open(path) as file:
        try:
            return file.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DiffalignError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    Raises:
        DiffalignError: JSON has no word for ``value`` (NaN, infinity, an object); the file is untouched.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(_encode(_to_json(value, path, indent=2) + "\n", path))


def read_json(path: str | Path) -> Any:
    """The value of a JSON file.

    Raises:
        DiffalignError: the file is missing or is not JSON (with the line).
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DiffalignError(f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or endless nesting
        raise DiffalignError(f"{path} is not JSON that can be read: {error}") from error


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object per line, whole or not at all, and return the number of rows."""
    count = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for row in rows:
            file.write(_encode(_to_json(row, path) + "\n", path))
            count += 1
    return count


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file, one at a time; empty lines are skipped.

    Raises:
        DiffalignError: the file is missing, or a line is not a JSON object (with its number).
    """
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or endless nesting
                raise DiffalignError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DiffalignError(f"{path}, line {number}: expected an object {{...}}, got {type(row).__name__}")
            yield row


def _open(path: str | Path) -> BufferedReader:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise DiffalignError(f"cannot read {path}: {error.strerror}") from error


def _to_json(value: Any, path: str | Path, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DiffalignError(
            f"cannot write {path}: {error}; JSON holds text, finite numbers, lists, objects"
        ) from error


def _encode(text: str, path: str | Path) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DiffalignError(f"cannot write {path}: character {error.start} is not valid Unicode text") from error


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hex.

    Raises:
        DiffalignError: the file cannot be read.
    """
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_name(text: str, max_length: int = 100) -> str:
    """A file name made from text nobody vouches for, such as a prompt or a row's id.

    Only ASCII letters, digits and ``. _ -`` remain, and it never starts with a dot. Where anything was altered, a hash
    of the original follows, so two texts share a name only if 64 bits of sha256 agree.

    Args:
        text: anything, also empty or with slashes and newlines.
        max_length: the name's bound in characters, at least 24.

    Example:
        >>> safe_name("cat_01.png")
        'cat_01.png'
        >>> safe_name("../cat")
        'cat-91249a680387a0b3'
    """
    if max_length < 24:
        raise ValueError(f"expected max_length of at least 24 (a 16-digit hash needs room), got {max_length}")
    kept = re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip("._-")
    looks_hashed = re.search(r"(^|-)[0-9a-f]{16}$", kept) is not None
    if kept == text and 0 < len(kept) <= max_length and not looks_hashed:
        return kept
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    stem = kept[: max_length - 17].rstrip("._-")
    return f"{stem}-{digest}" if stem else digest
