"""The shared vocabulary: small frozen dataclasses without logic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

__all__ = ["CandidateSet", "ObjectiveOutput", "Pair", "Provenance"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where an image of a row came from and how it was made.

    Attributes:
        source: data set, folder or file it was read from, e.g. ``"pickapic_v2"``.
        license: SPDX id or the source's own words; empty when unknown.
        sha256: content hash (hex) of each image of the row, in the row's order of images.
        method: how the rejected image (or the candidates) were made, e.g. ``"human_vote"``, ``"inpaint"``.
        parameters: JSON-like settings of ``method``.
        seed: seed of ``method``; None when it draws nothing.
        model_revision: hash or hub revision of the network behind ``method``; empty when none.
    """

    source: str = ""
    license: str = ""
    sha256: tuple[str, ...] = ()
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    model_revision: str = ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One prompt, a chosen and a rejected image.

    Attributes:
        id: unique in its data set.
        prompt: the caption both images belong to.
        chosen: RGB image, preferred when ``label`` > 0.5.
        rejected: RGB image.
        mask: optional "L" image of the chosen image's size, 255 where the rejected one was damaged.
        label: probability in [0, 1] that chosen is better; 1 surely, 0.5 a tie.
        scores: per metric identity, (score of chosen, score of rejected).
        provenance: source, licence, hashes, method.
    """

    id: str
    prompt: str
    chosen: Image.Image
    rejected: Image.Image
    mask: Image.Image | None = None
    label: float = 1.0
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)


@dataclass(frozen=True, kw_only=True)
class CandidateSet:
    """One prompt and K images of it with M scores each.

    Attributes:
        id: unique in its data set.
        prompt: the caption of every image.
        images: K RGB images.
        scores: per metric identity, K scores in the order of ``images``.
        provenance: source, licence, hashes, method.
    """

    id: str
    prompt: str
    images: tuple[Image.Image, ...]
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=Provenance)


@dataclass(frozen=True)
class ObjectiveOutput:
    """What an objective returns.

    Attributes:
        loss: (B,) float32, unreduced; the trainer takes the mean once.
        metrics: detached (B,) tensors to log by name.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
