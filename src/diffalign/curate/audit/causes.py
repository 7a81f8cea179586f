"""What caused a leak: each suspect is enacted on the audited images, and the traces it leaves are compared."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance

from diffalign.core import numpy_generator
from diffalign.curate.audit.traces import TRACES, Bools, Floats, Group, image_traces, pixels_of

__all__ = ["CAUSES", "Enacted", "enact", "likeness", "name_cause"]

CAUSES = {
    "blocking": "8x8 blocking: the {side} side went through JPEG",
    "smoothing": "smoothing: the {side} side went through an autoencoder or was resized",
    "noise": "noise: the {side} side has more of it, as from a sensor",
    "tone": "tone: the {side} side was made brighter or darker",
}
_TOUCHES: dict[str, tuple[Group, ...]] = {
    "blocking": ("blocking",),
    "smoothing": ("smoothing", "texture", "colour"),
    "noise": ("noise", "texture", "colour"),
    "tone": ("tone",),
}
_LIKE = 0.2  # below, no suspect resembles what is seen


@dataclass(frozen=True)
class Enacted:
    """A pair's own differences of traces and those that each suspect would make.

    Attributes:
        seen: (T,) chosen minus rejected.
        suspects: by cause and side, one (T,) for each strength.
    """

    seen: Floats
    suspects: Mapping[tuple[str, str], tuple[Floats, ...]]


def enact(chosen: Image.Image, rejected: Image.Image, outside: Bools, seed: int) -> Enacted:
    """Do to either side what each cause does, and measure the difference outside the mask that it makes.

    Args:
        chosen: RGB.
        rejected: RGB of the same size.
        outside: (H, W).
        seed: of the noise.
    """
    ours, theirs = (image_traces(pixels_of(side), outside) for side in (chosen, rejected))
    suspects = {}
    for cause, strengths in _SUSPECTS.items():
        on_rejected = (ours - image_traces(pixels_of(act(chosen, seed)), outside) for act in strengths)
        on_chosen = (image_traces(pixels_of(act(rejected, seed)), outside) - theirs for act in strengths)
        suspects[cause, "rejected"], suspects[cause, "chosen"] = tuple(on_rejected), tuple(on_chosen)
    return Enacted(ours - theirs, suspects)


def likeness(pairs: Sequence[Enacted]) -> dict[str, float]:
    """How much the differences of some pairs resemble those of each suspect, by ``cause on the side``.

        mean over traces t of  sum_i d_it e_it / sqrt(sum_i d_it^2  sum_i e_it^2),   the strength with the largest

    Args:
        pairs: d is seen, e is enacted.

    Returns:
        Numbers of at most 1; 0 is no resemblance. Empty without pairs.
    """
    found = {}
    seen = np.array([pair.seen for pair in pairs]).reshape(len(pairs), len(TRACES))
    for suspect in pairs[0].suspects if pairs else ():
        strengths = zip(*(pair.suspects[suspect] for pair in pairs), strict=True)
        found[" on the ".join(suspect)] = max(_resemblance(seen, np.array(one)) for one in strengths)
    return found


def name_cause(likenesses: Mapping[str, float], by_group: Mapping[str, float]) -> str:
    """The cause in words: the suspect that resembles most and whose traces tell, else the traces that tell most.

        likeness x (2 AUC - 1) of the best group that the suspect touches / (2 AUC - 1) of the best group of all

    The second factor clears JPEG where an autoencoder loses colour as JPEG does, but leaves no grid.
    """
    most = max(by_group, key=lambda one: by_group[one])
    told = {group: max(auc - 0.5, 0) / max(by_group[most] - 0.5, 1e-9) for group, auc in by_group.items()}

    def weight(suspect: str) -> float:
        return likenesses[suspect] * max(told[group] for group in _TOUCHES[suspect.split(" on the ")[0]])

    best = max(likenesses, key=weight, default="")
    if not best or weight(best) < _LIKE:
        return f"unknown: {most} tells most"
    cause, side = best.split(" on the ")
    return CAUSES[cause].format(side=side)


def _resemblance(seen: Floats, enacted: Floats) -> float:
    sizes = np.sqrt((seen**2).sum(axis=0) * (enacted**2).sum(axis=0))
    products = (seen * enacted).sum(axis=0)
    return float(np.divide(products, sizes, out=np.zeros_like(sizes), where=sizes > 0).mean())


Act = Callable[[Image.Image, int], Image.Image]


def _jpeg(quality: int) -> Act:
    def act(image: Image.Image, seed: int) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return act


def _resized(share: float) -> Act:
    def act(image: Image.Image, seed: int) -> Image.Image:
        smaller = [max(1, round(side * share)) for side in image.size]
        small = image.resize((smaller[0], smaller[1]), Image.Resampling.LANCZOS)
        return small.resize(image.size, Image.Resampling.BICUBIC)

    return act


def _noisy(deviation: float) -> Act:
    def act(image: Image.Image, seed: int) -> Image.Image:
        draw = numpy_generator("noise of the audit", seed).normal(0, deviation, (image.height, image.width, 3))
        return _image(pixels_of(image) + draw)

    return act


def _bottleneck(image: Image.Image, seed: int) -> Image.Image:
    """The best linear autoencoder of the image's own 2x2 patches with 4 numbers for 12: what networks drop first."""
    pixels = pixels_of(image)
    height, width = (side // 2 * 2 for side in pixels.shape[:2])
    if not height or not width:
        return image
    grid = height // 2, 2, width // 2, 2, 3
    patches = pixels[:height, :width].reshape(grid).transpose(0, 2, 1, 3, 4).reshape(-1, 12)
    mean = patches.mean(axis=0)
    kept = np.linalg.eigh(np.cov(patches, rowvar=False))[1][:, -4:]
    coded = (patches - mean) @ kept @ kept.T + mean
    pixels[:height, :width] = coded.reshape(*grid[::2][:2], 2, 2, 3).transpose(0, 2, 1, 3, 4).reshape(height, width, 3)
    return _image(pixels)


def _brighter(factor: float) -> Act:
    return lambda image, seed: ImageEnhance.Brightness(image).enhance(factor)


def _image(pixels: Floats) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


_SUSPECTS: dict[str, tuple[Act, ...]] = {
    "blocking": (_jpeg(90), _jpeg(65)),
    "smoothing": (_resized(0.5), _resized(0.8), _bottleneck),
    "noise": (_noisy(1.5), _noisy(4.0)),
    "tone": (_brighter(0.95), _brighter(1.05)),
}
