"""Networks of salient objects, of foregrounds and of mattes, by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffalign.core import Config, DiffalignError, read_json, setting
from diffalign.curate.locate.contract import LOCATORS, Locator
from diffalign.curate.locate.masks import resized, salient_mask
from diffalign.curate.locate.models import find_model, load_image_processor, load_network, model_revision
from diffalign.curate.locate.onnx_saliency import IMAGENET_MEAN, IMAGENET_STD, square_pixels
from diffalign.rewards.contract import whole_float32

if TYPE_CHECKING:
    import torch

__all__ = ["SaliencyModel", "SaliencyModelSettings", "foreground"]

_OWN_CODE = "AutoModelForImageSegmentation"  # under which BiRefNet and its kin publish their code


class SaliencyModelSettings(Config):
    """Settings of `SaliencyModel`."""

    weights: str = setting(..., "model folder or hub id", min_length=1)
    trust_remote_code: bool = setting(False, "run the Python files that come with the weights, as BiRefNet needs")
    size: int = setting(
        1024, "side of the input, where the folder names no preprocessing", unit="pixels", ge=1, source="BiRefNet"
    )
    batch_size: int = setting(4, "images at a time", unit="images", ge=1)


@LOCATORS.register("saliency_model")
class SaliencyModel(Locator):
    """The probability of foreground, cut at 0.5, within the area's bounds; None where nothing exceeds 0.5.

    It is a probability already: there is no min-max. What transformers offers: semantic segmentation (SegFormer, BEiT,
    DPT, ... with a label "background", with two labels of which the first is the background, or with one label), image
    matting without a trimap (Sapiens2), and models that bring their own code for AutoModelForImageSegmentation
    (BiRefNet, RMBG-2.0), which runs with ``trust_remote_code`` alone. The folder's own preprocessing, else (BiRefNet)
    a square of 1024 pixels with ImageNet's mean and std.

    Raises:
        DiffalignError: weights, packages or trust are missing, or the model tells no foreground.

    Source:
        Zheng et al. 2024, BiRefNet, arXiv 2401.03407, and its released example (last output, sigmoid).
    """

    name = "saliency_model"
    Settings = SaliencyModelSettings
    settings: SaliencyModelSettings

    def __init__(
        self, settings: SaliencyModelSettings, *, area: tuple[float, float], device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(settings, area=area, device=device)
        folder = find_model(settings.weights, code=settings.trust_remote_code)
        model_class, options = _model_class(folder, settings)
        self.model = load_network(model_class, folder, device, **options)
        self.background = _background(self.model.config)
        has_processor = any((folder / f"{name}_config.json").is_file() for name in ("preprocessor", "processor"))
        self.processor = load_image_processor(folder) if has_processor else None
        self.model_revision = model_revision(folder)

    def locate(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """Masks of the images alone."""
        masks = []
        for start in range(0, len(images), self.settings.batch_size):
            batch = images[start : start + self.settings.batch_size]
            for image, values in zip(batch, self._foregrounds(batch), strict=True):
                masks.append(salient_mask(resized(values, image.size), self.area))
        return masks

    def _foregrounds(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """Probabilities (h, w) of B images; those that preprocessing leaves at different sizes run one by one."""
        import torch

        pixels = [self._prepare(image) for image in images]
        together = [torch.stack(pixels)] if len({one.shape for one in pixels}) == 1 else [one[None] for one in pixels]
        found: list[np.ndarray] = []
        with torch.no_grad(), whole_float32():
            for part in together:
                found += list(foreground(self.model(part.to(self.device)), self.background).cpu().numpy())
        return found

    def _prepare(self, image: Image.Image) -> torch.Tensor:
        import torch

        if self.processor is not None:
            pixels: torch.Tensor = self.processor(image, return_tensors="pt").pixel_values[0]
            return pixels
        return torch.from_numpy(square_pixels(image, self.settings.size, IMAGENET_MEAN, IMAGENET_STD, peak=255))


def foreground(output: Any, background: int | None) -> torch.Tensor:
    """Probability of foreground, (B, h, w), from what a network returns.

    Args:
        output: with ``alphas`` (B, 1, h, w) in [0, 1]; or with ``logits`` (B, C, h, w): sigmoid for one channel,
            1 - softmax at the background for more; or a sequence whose last item is logits (B, 1, h, w).
        background: the channel of the background; None where there is none.

    Raises:
        DiffalignError: it is none of these.

    Example:
        >>> import torch
        >>> foreground([torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)], None)
        tensor([[[0.5000]]])
    """
    import torch

    alphas, logits = getattr(output, "alphas", None), getattr(output, "logits", None)
    if alphas is None and logits is None and isinstance(output, (list, tuple)) and output:
        logits = output[-1]
    found = alphas if alphas is not None else logits
    if isinstance(found, torch.Tensor) and found.ndim == 4 and found.shape[1] >= 1:
        if found.shape[1] == 1:
            return (found if alphas is not None else found.sigmoid())[:, 0].float()
        if alphas is None and background is not None:
            return 1 - found.softmax(1)[:, background].float()
    told = f"{type(output).__name__} of {type(found).__name__} {tuple(getattr(found, 'shape', ()))}"
    raise DiffalignError(f"expected a network that tells foreground from background, got {told}")


def _model_class(folder: Path, settings: SaliencyModelSettings) -> tuple[Any, dict[str, bool]]:
    """The class that loads a folder, and options for it."""
    import transformers
    from transformers.models.auto import modeling_auto

    file = folder / "config.json"
    if not file.is_file():
        raise DiffalignError(f"expected a model folder with config.json, found none in {folder}")
    config = read_json(file)
    if _OWN_CODE in config.get("auto_map", {}):
        if not settings.trust_remote_code:
            raise DiffalignError(
                f"{settings.weights} brings Python code of its own: read it, and if you trust it, set trust_remote_code"
            )
        return transformers.AutoModelForImageSegmentation, {"trust_remote_code": True}
    kind = (config.get("architectures") or ["none"])[0]
    if kind in modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.values():
        return transformers.AutoModelForSemanticSegmentation, {}
    if kind in modeling_auto.MODEL_FOR_IMAGE_MATTING_MAPPING_NAMES.values() and "VitMatte" not in kind:
        return transformers.AutoModelForImageMatting, {}
    raise DiffalignError(
        f"expected a model of semantic segmentation, of matting without a trimap, or with code for {_OWN_CODE}, "
        f"got {kind} in {settings.weights}"
    )


def _background(config: Any) -> int | None:
    """The label of the background: the one of that name, else the first of two."""
    labels = getattr(config, "id2label", None) or {}
    named = [int(index) for index, label in labels.items() if str(label).casefold() == "background"]
    if named:
        return named[0]
    return 0 if len(labels) == 2 else None
