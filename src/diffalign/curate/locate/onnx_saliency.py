"""Saliency networks as ONNX files: U2-Net and its kin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from scipy.special import expit

from diffalign.core import Config, DiffalignError, setting, sha256_file
from diffalign.curate.locate.contract import LOCATORS, Locator
from diffalign.curate.locate.masks import min_max, resized, salient_mask

if TYPE_CHECKING:
    import torch

__all__ = ["OnnxSaliency", "OnnxSettings", "square_pixels"]

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_FLAT = 1e-3  # of a sigmoid's output; scaling up less would make objects of noise


class OnnxSettings(Config):
    """Settings of `OnnxSaliency`."""

    weights: str = setting(..., "the ONNX file", min_length=1)
    size: int = setting(0, "side of the input; 0 for the file's own, or 320", unit="pixels", ge=0, source="U2-Net")
    mean: list[float] = setting(IMAGENET_MEAN, "of the channels", min_length=3, max_length=3, source="U2-Net")
    std: list[float] = setting(IMAGENET_STD, "of the channels", min_length=3, max_length=3, source="U2-Net")
    output: Literal["saliency", "logits"] = setting(
        "saliency", "what the first output holds: a saliency to scale by minimum and maximum, or logits of an object"
    )
    batch_size: int = setting(8, "images at a time, where the file allows more than one", unit="images", ge=1)
    threads: int = setting(1, "of an operator on the CPU; another number may change float noise", ge=1)


@LOCATORS.register("onnx_saliency")
class OnnxSaliency(Locator):
    """A saliency network's first output, cut at 0.5, within the area's bounds; None where nothing exceeds 0.5.

        x = (image_320 / max image_320 - mean) / std,   s = (d - min d) / (max d - min d),   bilinear to the image

    With ``output="logits"`` it is s = sigmoid(d), without min-max, as BiRefNet's files want; then None where there is
    no object. With min-max there is always something, unless the output is flat (within 0.001).

    Raises:
        DiffalignError: onnxruntime is not installed, or the file is missing or is no such network.

    Source:
        Qin et al. 2020, U2-Net, arXiv 2005.09007; preprocessing and min-max of its released test script (every image
        is divided by its own largest value, then ImageNet's mean and std). Departure: resized by Pillow's bilinear
        filter, as RealAlign's code has it, not by scikit-image's; the map stays float.
    """

    name = "onnx_saliency"
    Settings = OnnxSettings
    settings: OnnxSettings

    def __init__(
        self, settings: OnnxSettings, *, area: tuple[float, float], device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(settings, area=area, device=device)
        if min(settings.std) <= 0:
            raise DiffalignError(f"locator 'onnx_saliency': expected std above 0, got {settings.std}")
        self.session = _open_session(Path(settings.weights), settings.threads, device)
        self.batch_size, self.size = _input_shape(self.session, settings)
        self.model_revision = sha256_file(settings.weights)[:12]
        self.parameters |= {"size": self.size}

    def locate(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """Masks of the images alone."""
        masks = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            for image, values in zip(batch, self._run(batch), strict=True):
                if not np.isfinite(values).all():
                    raise DiffalignError(f"{self.settings.weights} gives numbers that are not finite")
                masks.append(salient_mask(resized(self._normalised(values), image.size), self.area))
        return masks

    def _run(self, images: Sequence[Image.Image]) -> np.ndarray:
        """First output (B, h, w) of B images."""
        pixels = np.stack([self._prepare(image) for image in images])
        first = self.session.run(None, {self.session.get_inputs()[0].name: pixels})[0]
        if first.ndim == 4 and first.shape[1] == 1:
            first = first[:, 0]
        if first.ndim != 3 or len(first) != len(images):
            told = f"{first.shape} for {len(images)} images"
            raise DiffalignError(f"expected {self.settings.weights} to give (B, 1, h, w) first, got {told}")
        return np.asarray(first, dtype=np.float32)

    def _prepare(self, image: Image.Image) -> np.ndarray:
        return square_pixels(image, self.size, self.settings.mean, self.settings.std)

    def _normalised(self, values: np.ndarray) -> np.ndarray:
        if self.settings.output == "logits":
            return np.asarray(expit(values), dtype=np.float32)
        return min_max(values, flat=_FLAT)


def square_pixels(
    image: Image.Image, size: int, mean: Sequence[float], std: Sequence[float], *, peak: float | None = None
) -> np.ndarray:
    """An RGB image squeezed to a square and normalised as (pixels / peak - mean) / std.

    Args:
        image: RGB.
        size: side of the square, pixels.
        mean: of the three channels.
        std: of the three channels.
        peak: the value that becomes 1; None for the largest of the resized image.

    Returns:
        (3, size, size) float32.

    Example:
        >>> square_pixels(Image.new("RGB", (4, 5), (50, 100, 200)), 1, [0.0] * 3, [0.5] * 3).ravel()
        array([0.5, 1. , 2. ], dtype=float32)
    """
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float64)
    pixels = pixels / (max(pixels.max(), 1e-6) if peak is None else peak)
    return np.asarray(((pixels - mean) / std).transpose(2, 0, 1), dtype=np.float32)


def _open_session(path: Path, threads: int, device: str | torch.device) -> Any:
    try:
        import onnxruntime  # type: ignore[import-untyped, import-not-found]
    except ImportError as error:
        raise DiffalignError(
            "locator 'onnx_saliency' needs onnxruntime, which is not installed: pip install 'diffalign[onnx]'"
        ) from error
    if not path.is_file():
        raise DiffalignError(f"there is no file {path}; give the path of an ONNX file, such as u2net.onnx, as weights")
    provider = _provider(device)
    available = onnxruntime.get_available_providers()
    if provider[0] not in available:
        raise DiffalignError(
            f"this onnxruntime cannot use the device {str(device)!r}; it has {', '.join(available)}: install "
            "onnxruntime-gpu in its place, or use the device 'cpu'"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors alone
    try:
        return onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # onnxruntime's own errors share no other class
        raise DiffalignError(f"cannot load {path} as an ONNX file: {str(error).splitlines()[0]}") from error


def _provider(device: str | torch.device) -> tuple[str, dict[str, str]]:
    """onnxruntime's name for a device, and its options."""
    import torch

    wanted = torch.device(device)
    if wanted.type == "cpu":
        return "CPUExecutionProvider", {}
    if wanted.type == "cuda":
        return "CUDAExecutionProvider", {"device_id": str(wanted.index or 0)}
    raise DiffalignError(f"locator 'onnx_saliency': expected the device 'cpu' or 'cuda', got {str(device)!r}")


def _input_shape(session: Any, settings: OnnxSettings) -> tuple[int, int]:
    """Images at a time and the side of the input; what the file leaves open comes from the settings."""
    inputs = session.get_inputs()
    shape = list(inputs[0].shape)
    fits = len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(shape) == 4
    if not fits or any(isinstance(got, int) and got != known for got, known in zip(shape, (1, 3), strict=False)):
        told = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
        raise DiffalignError(f"expected {settings.weights} to take floats (B, 3, H, W) with a free B or 1, got {told}")
    batch, _, *sides = shape
    fixed = {side for side in sides if isinstance(side, int)}
    if len(fixed) > 1 or (fixed and settings.size not in (0, *fixed)):
        wanted = f"{settings.size} pixels" if settings.size else "any size"
        raise DiffalignError(f"{settings.weights} takes {sides[0]}x{sides[1]} pixels, expected a square of {wanted}")
    return (1 if batch == 1 else settings.batch_size), (fixed.pop() if fixed else settings.size or 320)
