"""The Parquet files that rows lie in: which there are, and what their footers say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffalign.core import DiffalignError

__all__ = ["parquet_files", "read_footer", "shards_in"]

_SPLITS = ("train", "validation", "test")  # how files of published data sets begin


def parquet_files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The Parquet files that a folder, one path or a list of paths stands for, in order.

    Raises:
        DiffalignError: no files, or a folder of several splits, which would mix test rows into training.
    """
    if not isinstance(path, (str, Path)):
        files = [Path(one) for one in path]
    elif Path(path).is_dir():
        folders = (Path(path), Path(path) / "pairs", Path(path) / "candidates")  # runs hold their rows in these
        files = next(filter(None, map(shards_in, folders)), [])
        splits = [split for split in _SPLITS if any(file.name.startswith(split) for file in files)]
        if len(splits) > 1:
            raise DiffalignError(f"{path} holds several splits ({', '.join(splits)}): give a list of one split's files")
    else:
        files = [Path(path)]
    if not files:
        raise DiffalignError(
            f"{path}: no Parquet files (*.parquet) there. Folders of images become preference data by read_folders, "
            "photographs by diffalign curate"
        )
    for file in files:
        if not file.is_file():
            raise DiffalignError(f"there is no {file}: expected a folder of Parquet files, or one Parquet file")
    return files


def shards_in(folder: Path) -> list[Path]:
    """The Parquet files of one folder in the order of their names; hidden ones are what a writer has not finished."""
    return sorted(file for file in folder.glob("*.parquet") if not file.name.startswith("."))


def read_footer(file: Path) -> Any:
    """The metadata at a Parquet file's end.

    Raises:
        DiffalignError: it is not there or damaged.
    """
    try:
        return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise DiffalignError(f"{file} is not a whole Parquet file: {error}") from error
