"""Where an image shows what its prompt says: boxes of a text-grounded detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffalign.core import Config, DiffalignError, setting
from diffalign.curate.locate.contract import LOCATORS, Locator
from diffalign.curate.locate.masks import salient_mask
from diffalign.curate.locate.models import find_model, load_image_processor, load_network, model_revision
from diffalign.rewards.contract import whole_float32
from diffalign.rewards.weights import load_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["Grounded", "GroundedSettings", "scaled_boxes"]

_GROUNDING_DINO, _OWL = ("grounding-dino", "mm-grounding-dino"), ("owlv2", "owlvit")


class GroundedSettings(Config):
    """Settings of `Grounded`."""

    weights: str = setting("IDEA-Research/grounding-dino-tiny", "model folder or hub id")
    threshold: float = setting(
        0.25, "score of a box that counts; OWLv2 scores lower: 0.1", ge=0, lt=1, source="Grounding DINO"
    )
    max_boxes: int = setting(5, "that count, the best first", unit="boxes", ge=1)


@LOCATORS.register("grounded")
class Grounded(Locator):
    """Boxes that a detector finds for the prompt, scaled about their centres to the area's bounds; None without any.

    Boxes count whose score, a sigmoid, exceeds ``threshold``; there is no min-max. The union of their maps (see
    `scaled_boxes`) is cut at 0.5, which is their very outline. The whole prompt asks, with all its words: Grounding
    DINO reads 256 tokens and takes text between full stops for one thing; OWL reads the first 16. A prompt without
    words finds nothing.

    Raises:
        DiffalignError: weights are missing or are no such detector.

    Source:
        Liu et al. 2023, Grounding DINO, arXiv 2303.05499; Minderer et al. 2023, OWLv2, arXiv 2306.09683.
    """

    name = "grounded"
    Settings = GroundedSettings
    settings: GroundedSettings

    def __init__(
        self, settings: GroundedSettings, *, area: tuple[float, float], device: str | torch.device = "cpu"
    ) -> None:
        from transformers import AutoModelForZeroShotObjectDetection

        super().__init__(settings, area=area, device=device)
        folder = find_model(settings.weights)
        self.model = load_network(AutoModelForZeroShotObjectDetection, folder, device)
        if self.model.config.model_type not in (*_GROUNDING_DINO, *_OWL):
            known = ", ".join((*_GROUNDING_DINO, *_OWL))
            raise DiffalignError(f"expected one of {known} in {folder}, got {self.model.config.model_type}")
        self.processor = load_image_processor(folder)
        self.tokenizer = load_tokenizer(folder)
        self.model_revision = model_revision(folder)

    def locate(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """Masks of images and prompts; one at a time, as padding to a neighbour's size would change them."""
        masks = []
        for image, prompt in zip(images, prompts, strict=True):
            boxes = self._boxes(image, prompt) if any(one.isalnum() for one in prompt) else np.empty((0, 4))
            masks.append(salient_mask(scaled_boxes(boxes, image.size), self.area) if len(boxes) else None)
        return masks

    def _boxes(self, image: Image.Image, prompt: str) -> np.ndarray:
        """Boxes (N, 4) in pixels, the best first."""
        import torch

        pixels = self.processor(image, return_tensors="pt")
        with torch.no_grad(), whole_float32():
            output = self.model(**(self._tokens(prompt) | dict(pixels.to(self.device))))
        if not bool(output.pred_boxes.isfinite().all()) or bool(output.logits.isnan().any()):
            raise DiffalignError(f"{self.settings.weights} gives numbers that are not finite")
        sizes = torch.tensor([[image.height, image.width]], device=self.device)
        found = self.processor.post_process_object_detection(
            output, threshold=self.settings.threshold, target_sizes=sizes
        )[0]
        best = found["scores"].argsort(descending=True, stable=True)[: self.settings.max_boxes]
        return np.asarray(found["boxes"][best].cpu().numpy(), dtype=np.float64)

    def _tokens(self, prompt: str) -> dict[str, Any]:
        config = self.model.config
        if config.model_type in _OWL:
            text, options = prompt, {"padding": "max_length", "max_length": config.text_config.max_position_embeddings}
        else:  # lower case and a full stop at the end, as it was trained
            text, options = prompt.strip().lower().rstrip(".") + ".", {"max_length": config.max_text_len}
        return dict(self.tokenizer([text], truncation=True, return_tensors="pt", **options).to(self.device))


def scaled_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map that exceeds c where a pixel lies in a box scaled about its own centre by 2 (1 - c): at 0.5, in a box.

        s(x) = max over boxes of 1 - max(|x - centre_x| / width, |y - centre_y| / height)

    Cut anywhere it gives all boxes larger or smaller by one factor, which is how `mask_of` keeps to an area.

    Args:
        boxes: (N, 4) as left, top, right, bottom in pixels, N at least 1; what lies outside the image is cut off.
        size: width and height of the image.

    Returns:
        (H, W) float64, at most 1.

    Example:
        >>> (scaled_boxes(np.array([[1.0, 0.0, 3.0, 2.0]]), (5, 2)) > 0.5).astype(int)
        array([[0, 1, 1, 0, 0],
               [0, 1, 1, 0, 0]])
    """
    width, height = size
    clipped = boxes.reshape(-1, 2, 2).clip(0, (width, height))
    centres, sides = clipped.mean(axis=1), np.maximum(np.diff(clipped, axis=1)[:, 0], 1e-6)
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    across = np.abs(x - centres[:, :1]) / sides[:, :1]
    down = np.abs(y - centres[:, 1:]) / sides[:, 1:]
    return np.asarray(1 - np.maximum(across[:, None, :], down[:, :, None]).min(axis=0))
