"""Segment Anything: one of the largest parts of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffalign.core import Config, DiffalignError, numpy_generator, setting
from diffalign.curate.locate.contract import LOCATORS, Locator
from diffalign.curate.locate.models import find_model, load_image_processor, load_network, model_revision
from diffalign.rewards.contract import whole_float32

if TYPE_CHECKING:
    import torch

__all__ = ["SegmentAnything", "SegmentSettings", "draw_segment", "suppress_overlaps"]


class SegmentSettings(Config):
    """Settings of `SegmentAnything`."""

    weights: str = setting("facebook/sam-vit-huge", "model folder or hub id", source="RealAlign, early code: ViT-H")
    largest: int = setting(5, "the mask is drawn among so many", unit="masks", ge=1, source="RealAlign, early code")
    points_per_side: int = setting(32, "of the grid that asks for masks", unit="points", ge=1, source="SAM")
    points_per_batch: int = setting(64, "asked at a time", unit="points", ge=1, source="SAM")
    min_iou: float = setting(0.88, "that the network predicts of a mask it keeps", ge=0, le=1, source="SAM")
    min_stability: float = setting(0.95, "IoU of a mask's cuts at logits of -1 and 1", ge=0, le=1, source="SAM")
    max_overlap: float = setting(0.7, "IoU of the boxes of two masks; more is a duplicate", ge=0, le=1, source="SAM")


@LOCATORS.register("sam")
class SegmentAnything(Locator):
    """One of the k largest masks whose area lies in the bounds, drawn by the seed; None where none does.

    Logits are cut at 0, as SAM does: there is no min-max. Masks that are too large or too small are skipped, so a mask
    is a whole part of the image or nothing.

    Raises:
        DiffalignError: weights are missing or are no SAM.

    Source:
        Kirillov et al. 2023, Segment anything, arXiv 2304.02643, automatic mask generation without crops, by the
        steps of transformers' pipeline; RealAlign, arXiv 2605.19839, early code (a random one of the 5 largest).
        Departures: the area is bounded; duplicates are dropped here, which spares torchvision.
    """

    name = "sam"
    Settings = SegmentSettings
    settings: SegmentSettings

    def __init__(
        self, settings: SegmentSettings, *, area: tuple[float, float], device: str | torch.device = "cpu"
    ) -> None:
        from transformers import MaskGenerationPipeline, SamModel

        super().__init__(settings, area=area, device=device)
        folder = find_model(settings.weights)
        model = load_network(SamModel, folder, device)
        processor = load_image_processor(folder)
        self.generator = MaskGenerationPipeline(model=model, image_processor=processor, device=model.device)
        self.model_revision = model_revision(folder)

    def locate(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """Masks of images and seeds."""
        return [
            draw_segment(self._segments(image), seed, largest=self.settings.largest, area=self.area)
            for image, seed in zip(images, seeds, strict=True)
        ]

    def _segments(self, image: Image.Image) -> list[np.ndarray]:
        """Masks (H, W) of bool, the best score first."""
        asked = {"points_per_crop": self.settings.points_per_side, "points_per_batch": self.settings.points_per_batch}
        kept = {"pred_iou_thresh": self.settings.min_iou, "stability_score_thresh": self.settings.min_stability}
        with whole_float32():  # step by step, as the pipeline's last one needs torchvision
            asking = self.generator.preprocess(image, **asked)
            parts = [self.generator.forward(self._finite(part), **kept) for part in asking]
        boxes, scores = (
            np.concatenate([part[key].cpu().numpy() for part in parts]).astype(np.float64)
            for key in ("boxes", "iou_scores")
        )
        encoded = [mask for part in parts for mask in part["masks"]]
        return [_decoded(encoded[index]) for index in suppress_overlaps(boxes, scores, self.settings.max_overlap)]

    def _finite(self, part: dict[str, Any]) -> dict[str, Any]:
        """The part unchanged; scores that are NaN would only look like bad ones."""
        if not bool(part["image_embeddings"].isfinite().all()):
            raise DiffalignError(f"{self.settings.weights} gives numbers that are not finite")
        return part


def draw_segment(
    segments: Sequence[np.ndarray], seed: int, *, largest: int, area: tuple[float, float]
) -> Image.Image | None:
    """One of the largest segments whose area lies in the bounds.

    Args:
        segments: (H, W) of bool each.
        seed: of the draw.
        largest: it is drawn among so many, with equal chances.
        area: least and largest share of the image.

    Returns:
        "L" image, 255 inside; None where no segment lies in the bounds.

    Example:
        >>> whole, half, dot = np.ones((4, 5)), np.ones((4, 5)), np.zeros((4, 5))
        >>> half[2:] = 0
        >>> np.asarray(draw_segment([dot, whole, half], 0, largest=5, area=(0.1, 0.5)))[:, 0]
        array([255, 255,   0,   0], dtype=uint8)
    """
    fitting = [one for one in segments if area[0] <= np.mean(one) <= area[1]]
    if not fitting:
        return None
    fitting.sort(key=lambda one: -int(np.sum(one)))  # stable: of equals, the better score first
    chosen = fitting[int(numpy_generator("sam", seed).integers(min(largest, len(fitting))))]
    return Image.fromarray(chosen.astype(np.uint8) * 255)


def suppress_overlaps(boxes: np.ndarray, scores: np.ndarray, max_overlap: float) -> list[int]:
    """The boxes left when, from the best score down, those that overlap a kept one too much are dropped.

    Args:
        boxes: (N, 4) as left, top, right, bottom.
        scores: (N,).
        max_overlap: intersection over union of a kept box and a dropped one is above it.

    Returns:
        Indices, best score first.

    Example:
        >>> boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 3], [4, 4, 8, 8]])
        >>> suppress_overlaps(boxes, np.array([0.8, 0.9, 0.7]), 0.7)
        [1, 2]
    """
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        low, high = np.maximum(boxes[kept, :2], boxes[index, :2]), np.minimum(boxes[kept, 2:], boxes[index, 2:])
        shared = np.prod((high - low).clip(min=0), axis=1)
        if not (shared > max_overlap * (areas[kept] + areas[index] - shared)).any():
            kept.append(int(index))
    return kept


def _decoded(encoded: dict[str, Any]) -> np.ndarray:
    """A mask (H, W) of bool from lengths of runs down the columns, outside and inside by turns."""
    height, width = encoded["size"]
    inside = np.arange(len(encoded["counts"])) % 2 == 1
    return np.repeat(inside, encoded["counts"]).reshape(width, height).T
