"""What a curation would take, from one batch of its own photographs."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from diffalign.core import DiffalignError
from diffalign.curate.config import CurateConfig
from diffalign.curate.pairs import open_source
from diffalign.curate.rows import Candidate
from diffalign.curate.stages import read_photos
from diffalign.curate.work import Look, Make, load_models

__all__ = ["CurationEstimate", "estimate_curation"]

_TRIED = 64  # photographs looked at to find a batch that can be read


@dataclass(frozen=True)
class CurationEstimate:
    """What a curation would take.

    Attributes:
        photos: how many there are.
        seconds: of one worker for all of them, were each like those of the batch that was timed.
        memory: of a worker, bytes: on a GPU what torch allocated, else the process.
        disk: bytes at most: both images of every pair as PNG, twice (as made, and as kept).
        timed: photographs in the batch that was timed.
    """

    photos: int
    seconds: float
    memory: int
    disk: int
    timed: int


def estimate_curation(config: CurateConfig, *, device: str = "cpu") -> CurationEstimate:
    """Load the models, make the pairs of one batch twice, time the second; nothing is written.

    Args:
        config: the settings.
        device: where the networks run.

    Raises:
        DiffalignError: a setting does not fit, a model is missing, or none of the first photographs can be read.
    """
    photos = open_source(config)
    models = load_models(config, device)
    models.check()
    readable = (one for one in photos[:_TRIED] if Candidate.of(one).dropped is None)
    batch = list(islice(readable, config.batch_size))
    if not batch:
        raise DiffalignError(
            f"none of the first {min(_TRIED, len(photos))} photographs can be read, so nothing is timed"
        )
    look, make = Look(config, photos, device), Make(config, photos, device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        began = time.monotonic()
        look.look(read_photos(batch))
        made = make.make(read_photos(batch))
        seconds = time.monotonic() - began
    return CurationEstimate(
        photos=len(photos),
        seconds=seconds * len(photos) / len(batch),
        memory=_memory(device),
        disk=2 * len(photos) * _pair_bytes(made),
        timed=len(batch),
    )


def _memory(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _pair_bytes(rows: Sequence[Candidate]) -> int:
    """Of the largest pair, as PNG at worst: three bytes a pixel, and a mask."""
    return max((7 * row.image.width * row.image.height for row in rows if row.photo), default=0)
