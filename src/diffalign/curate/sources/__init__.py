"""Photographs to start from: the embedded ones, folders, Parquet, tars, tables, the hub, on the disk or behind URLs."""

from __future__ import annotations

from diffalign.curate.sources.embedded import embedded_photographs
from diffalign.curate.sources.folder import photo_folder
from diffalign.curate.sources.opening import open_photos
from diffalign.curate.sources.photo import Photo, PhotoReader, PhotoRecipe, Photos, Rejected

__all__ = [
    "Photo",
    "PhotoReader",
    "PhotoRecipe",
    "Photos",
    "Rejected",
    "embedded_photographs",
    "open_photos",
    "photo_folder",
]
