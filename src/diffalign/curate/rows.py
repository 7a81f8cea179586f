"""The row that the stages of curation hand on: a photograph on its way to becoming a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from diffalign.curate.sources import Photo, Rejected
from diffalign.data import image_sha256
from diffalign.types import Pair, Provenance

__all__ = ["STAGES", "Candidate", "Dropped", "Record", "only_left"]

STAGES = ("read", "select", "locate", "degrade", "score", "gap", "keep", "review")

Record = dict[str, Any]


@dataclass(frozen=True)
class Dropped:
    """Where and why a photograph or pair was left out.

    Attributes:
        stage: of `STAGES`.
        reason: a few words from a small set, for counting.
        detail: what exactly.
    """

    stage: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A photograph on its way to a pair. A stage adds to it, or drops it; the rows that are dropped travel along.

    Attributes:
        name: data set or folder, and the name there.
        photo: None where it could not be read.
        mask: "L", 255 where it is damaged.
        rejected: "RGB", the damaged photograph.
        statistics: of the photograph, by name.
        fingerprint: 16 hex digits of its perceptual hash; empty for a flat image.
        scores: by the reward's identity, of the photograph and of the damaged one.
        method: what damaged it.
        parameters: of the method.
        seed: of the damage.
        model_revision: of the weights that did it.
        dropped: where and why it was left out; None while it is in.
    """

    name: str
    photo: Photo | None = None
    mask: Image.Image | None = None
    rejected: Image.Image | None = None
    statistics: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str = ""
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    model_revision: str = ""
    dropped: Dropped | None = None

    @classmethod
    def of(cls, one: Photo | Rejected) -> Candidate:
        """The row of what a source gave."""
        if isinstance(one, Rejected):
            return cls(name=one.name, dropped=Dropped("read", one.reason, one.detail))
        return cls(name=one.source, photo=one)

    def drop(self, stage: str, reason: str, detail: str = "") -> Candidate:
        """The row, left out."""
        return replace(self, dropped=Dropped(stage, reason, detail))

    @property
    def image(self) -> Image.Image:
        """The photograph's.

        Raises:
            ValueError: it could not be read.
        """
        if self.photo is None:
            raise ValueError(f"{self.name} was not read")
        return self.photo.image

    def record(self) -> Record:
        """The row without its images, as JSON values: name, id, cleaned, statistics, fingerprint, scores, and where it
        was dropped stage, reason and detail."""
        record = {
            "name": self.name,
            "id": self.photo.id if self.photo else "",
            "cleaned": bool(self.photo and self.photo.raw_caption),
            "statistics": dict(self.statistics),
            "fingerprint": self.fingerprint,
            "method": self.method,
            "scores": {identity: list(two) for identity, two in self.scores.items()},
        }
        return record | (asdict(self.dropped) if self.dropped else {})

    def pair(self) -> Pair:
        """The preference pair.

        Raises:
            ValueError: it was dropped, or a stage is missing.
        """
        if self.dropped or self.photo is None or self.rejected is None:
            raise ValueError(f"{self.name} is not a pair yet, or no longer: {self.dropped}")
        photo, parameters = self.photo, dict(self.parameters)
        if self.mask is not None:
            parameters["area"] = float((np.asarray(self.mask) > 0).mean())
        if photo.raw_caption:
            parameters["raw_caption"] = photo.raw_caption
        return Pair(
            id=photo.id,
            prompt=photo.prompt,
            chosen=photo.image,
            rejected=self.rejected,
            mask=self.mask,
            scores=dict(self.scores),
            provenance=Provenance(
                source=photo.source,
                license=photo.license,
                sha256=(image_sha256(photo.image), image_sha256(self.rejected)),
                method=self.method,
                parameters=parameters,
                seed=self.seed,
                model_revision=self.model_revision,
            ),
        )


def only_left(rows: Sequence[Candidate], stage: Callable[[list[Candidate]], Sequence[Candidate]]) -> list[Candidate]:
    """Apply a stage to the rows that are still in; the others keep their places.

    Args:
        rows: all of them.
        stage: N rows that are in to N rows.
    """
    changed = iter(stage([row for row in rows if row.dropped is None]))
    return [row if row.dropped else next(changed) for row in rows]
