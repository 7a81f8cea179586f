"""What a mask covers, filled from its surroundings without weights, by OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from diffalign.core import Config, DiffalignError, setting
from diffalign.curate.degrade.contract import DEGRADATIONS, Damaged, Degradation, Kind, Setup

__all__ = ["SurroundingsFill", "SurroundingsSettings"]

_FLAGS = {"telea": "INPAINT_TELEA", "navier_stokes": "INPAINT_NS"}


class SurroundingsSettings(Config):
    """How a mask is filled from its surroundings."""

    radius: float = setting(3.0, "of the known pixels that a filled one looks at", unit="pixels", gt=0, le=100)


class SurroundingsFill(Degradation):
    """Smears the surroundings over what a mask covers; nothing is drawn, so the seed does not matter.

    Args:
        name: "telea" for fast marching, "navier_stokes" for a fluid's equations.
        radius: in pixels.

    Raises:
        DiffalignError: OpenCV is not installed.

    Source:
        Telea 2004, An Image Inpainting Technique Based on the Fast Marching Method; Bertalmio, Bertozzi and Sapiro
        2001, Navier-Stokes, Fluid Dynamics, and Image and Video Inpainting; both as OpenCV has them.
    """

    def __init__(self, name: str, radius: float = 3.0) -> None:
        super().__init__(name, {"radius": radius})
        self._cv2 = _opencv(name)
        self._flag, self._radius = getattr(self._cv2, _FLAGS[name]), radius

    def damage(
        self, images: Sequence[Image.Image], masks: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> Damaged:
        """Each image by itself.

        Raises:
            DiffalignError: a mask covers the whole image, so that there are no surroundings.
        """
        return [self._fill(np.asarray(image), np.asarray(mask)) for image, mask in zip(images, masks, strict=True)]

    def _fill(self, image: np.ndarray, mask: np.ndarray) -> Image.Image:
        if mask.all():
            raise DiffalignError(
                f"{self.name} fills a mask from its surroundings: expected masks that leave some of the image, got one "
                "that covers it all; locate the damage, or choose another degradation"
            )
        return Image.fromarray(self._cv2.inpaint(np.ascontiguousarray(image), mask, self._radius, self._flag))


def _opencv(name: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise DiffalignError(f"{name} needs OpenCV ({error}): pip install 'diffalign[opencv]'") from error
    return cv2


def _register(name: str) -> None:
    def build(settings: SurroundingsSettings, setup: Setup) -> Degradation:
        return SurroundingsFill(name, float(settings.radius))

    DEGRADATIONS.register(name)(Kind(SurroundingsSettings, build))


for _name in _FLAGS:
    _register(_name)
