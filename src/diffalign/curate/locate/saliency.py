"""Saliency without any weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, uniform_filter
from skimage.color import rgb2lab

from diffalign.curate.locate.contract import LOCATORS, Locator
from diffalign.curate.locate.masks import min_max, resized, salient_mask

__all__ = ["ColourSaliency", "SpectralResidual", "colour_saliency", "spectral_residual"]

_BLUR = 1 / 12  # of the shorter side; by eye on the embedded photographs: less gives speckles on texture
_MOST = 128  # pixels of the shorter side on which colours are compared: the blur leaves nothing finer
_FLAT = 1e-3  # of Lab's units; where nothing differs by more, the image is flat

_SIDE = 64  # pixels of the shorter side on which spectra are taken
_SMOOTH = 8  # pixels, of the map at that size
_SILENT = 1e-6  # of the largest amplitude; frequencies that an image lacks have no logarithm


def colour_saliency(image: Image.Image) -> np.ndarray:
    """How far each place's colour stands out from the image's mean colour.

        S(x) = | Lab_mean - Lab_blurred(x) |,  then scaled to [0, 1] by its minimum and maximum

    Args:
        image: RGB.

    Returns:
        (H, W) float32 in [0, 1]; all 0 for a flat image.

    Source:
        Achanta et al. 2009, Frequency-tuned salient region detection, Eq. 5. Departures: the blur is Gaussian with a
        width of 1/12 of the shorter side instead of a fixed 5x5 kernel, so that masks are blobs at every size; an image
        whose shorter side exceeds 128 pixels is reduced to that by averaging, and the map is enlarged bilinearly.

    Example:
        >>> dot = Image.new("RGB", (24, 24), "white")
        >>> dot.paste("red", (15, 3, 20, 8))
        >>> [int(each) for each in np.unravel_index(colour_saliency(dot).argmax(), (24, 24))]
        [5, 17]
    """
    scale = min(1.0, _MOST / min(image.size))
    small = round(scale * image.width), round(scale * image.height)
    lab = rgb2lab(np.asarray(image.convert("RGB").resize(small, Image.Resampling.BOX)))
    sigma = _BLUR * min(small)
    distance = np.linalg.norm(gaussian_filter(lab, sigma=(sigma, sigma, 0)) - lab.mean(axis=(0, 1)), axis=2)
    found = min_max(distance, flat=_FLAT)
    return found if small == image.size else resized(found, image.size)


def spectral_residual(image: Image.Image) -> np.ndarray:
    """What of an image's spectrum is unexpected, put back into the image.

        F = FFT(grey),  R = log|F| - mean_3x3(log|F|),  S = gauss * |IFFT(exp(R + i arg F))|^2,
        then scaled to [0, 1] by its minimum and maximum

    Args:
        image: RGB.

    Returns:
        (H, W) float32 in [0, 1]; all 0 for a flat image.

    Source:
        Hou & Zhang 2007, Saliency detection: a spectral residual approach, Eqs. 4-10, at 64 pixels with a Gaussian of
        width 8. Departures: the shorter side has 64 pixels; the mean over frequencies wraps around, as spectra do;
        masks are cut at 0.5 after scaling instead of at three times the mean.

    Example:
        >>> dot = Image.new("RGB", (64, 64), "white")
        >>> dot.paste("red", (40, 10, 50, 20))
        >>> bool(spectral_residual(dot)[15, 45] > 0.9)
        True
    """
    scale = _SIDE / min(image.size)
    small = tuple(max(1, round(side * scale)) for side in image.size)
    grey = resized(np.asarray(image.convert("L")), (small[0], small[1])).astype(np.float64)
    if np.ptp(grey) == 0:
        return np.zeros((image.height, image.width), dtype=np.float32)
    spectrum = np.fft.fft2(grey)
    amplitude = np.abs(spectrum)
    log_amplitude = np.log(np.maximum(amplitude, _SILENT * amplitude.max()))
    residual = log_amplitude - uniform_filter(log_amplitude, size=3, mode="wrap")
    surprise = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    return min_max(resized(gaussian_filter(surprise, _SMOOTH), image.size), flat=0.0)


@LOCATORS.register("colour_saliency")
class ColourSaliency(Locator):
    """`colour_saliency`, min-max scaled to [0, 1], cut at 0.5, within the area's bounds; None for a flat image."""

    name = "colour_saliency"

    def locate(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """Masks of the images alone."""
        return [salient_mask(colour_saliency(image), self.area) for image in images]


@LOCATORS.register("spectral_residual")
class SpectralResidual(Locator):
    """`spectral_residual`, min-max scaled to [0, 1], cut at 0.5, within the area's bounds; None for a flat image."""

    name = "spectral_residual"

    def locate(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Image.Image | None]:
        """Masks of the images alone."""
        return [salient_mask(spectral_residual(image), self.area) for image in images]
