"""The sixteen real photographs inside the scikit-image and scikit-learn wheels, cut into strips, crops and captions.

They train and test the embedded tiny models without any download. Each photograph is divided by area into four strips
along one axis: two for training, one for validation, one held out. A crop lies inside one strip, so no pixel of a
held-out strip is seen by any training, and the largest crop is bounded by the thinnest strip.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageStat

from diffalign.core import DiffalignError, unknown

__all__ = [
    "PHOTOGRAPHS",
    "Crop",
    "Photograph",
    "Split",
    "captions",
    "draw_crop",
    "load_photograph",
    "photograph",
    "strips",
    "subject_index",
]

Split = Literal["train", "validation", "held_out"]
Framing = Literal["close-up", "wide"]

NO_RESTRICTIONS = "no known copyright restrictions"
NOT_STATED = "not stated in the wheel"

TRAIN_SHARE, VALIDATION_SHARE, HELD_OUT_SHARE = 0.26, 0.22, 0.26  # two training strips
MIN_SIDE = 64  # pixels; smaller crops would be enlarged, and a clean crop must not be blurred
MIN_CONTRAST = 12.0  # standard deviation of luma, of 255; an empty sky shows neither its subject nor a flaw
MAX_TRIES = 8  # draws before a flat crop is taken all the same


@dataclass(frozen=True)
class Photograph:
    """One photograph of the wheels.

    Attributes:
        name: its short name.
        subject: the noun phrase that captions use.
        path: import package and file inside its wheel.
        license: licence or public-domain statement.
        attribution: author and source.
        columns: True when the strips are columns (cut along x), False for rows.
        held_out_first: the held-out strip is the first one instead of the last.
    """

    name: str
    subject: str
    path: str
    license: str
    attribution: str
    columns: bool = True
    held_out_first: bool = False


# fmt: off
PHOTOGRAPHS: tuple[Photograph, ...] = (
    Photograph("astronaut", "an astronaut", "skimage/data/astronaut.png", "public domain", "NASA, Great Images", columns=False),
    Photograph("cat", "a tabby cat", "skimage/data/chelsea.png", "CC0-1.0", "Stefan van der Walt", held_out_first=True),
    Photograph("coffee", "a cup of coffee", "skimage/data/coffee.png", "CC0-1.0", "Rachel Michetti, courtesy of Pikolo Espresso Bar"),
    Photograph("rocket", "a rocket at night", "skimage/data/rocket.jpg", "public domain", "SpaceX, launch of DSCOVR"),
    Photograph("motorcycle", "a motorcycle", "skimage/data/motorcycle_left.png", NOT_STATED, "D. Scharstein et al., Middlebury 2014"),
    Photograph("galaxies", "distant galaxies", "skimage/data/hubble_deep_field.jpg", "public domain", "NASA, Hubble Deep Field"),
    Photograph("retina", "a retina", "skimage/data/retina.jpg", "CC0-1.0", "Mikael Haggstrom, Wikimedia Commons"),
    Photograph("tissue", "stained tissue", "skimage/data/ihc.png", NO_RESTRICTIONS, "Center for Microscopy and Molecular Imaging"),
    Photograph("grass", "grass", "skimage/data/grass.png", "CC0-1.0", "linolafett, DeviantArt"),
    Photograph("gravel", "gravel", "skimage/data/gravel.png", "CC0-1.0", "CC0Textures, Gravel04"),
    Photograph("bricks", "bricks", "skimage/data/brick.png", "CC0-1.0", "CC0Textures, Bricks25"),
    Photograph("moon", "the moon", "skimage/data/moon.png", NOT_STATED, "scikit-image, author not stated"),
    Photograph("coins", "old coins", "skimage/data/coins.png", NO_RESTRICTIONS, "Brooklyn Museum, coins from Pompeii"),
    Photograph("cameraman", "a cameraman", "skimage/data/camera.png", "CC0-1.0", "Lav Varshney", held_out_first=True),
    Photograph("pagoda", "a pagoda", "sklearn/datasets/images/china.jpg", "CC-BY-2.0", "danielbuechele, Flickr", held_out_first=True),
    Photograph("flower", "a dahlia flower", "sklearn/datasets/images/flower.jpg", "CC-BY-2.0", "vultilion, Flickr", columns=False),
)
# fmt: on


@dataclass(frozen=True)
class Crop:
    """A square of one strip, resized, with its caption.

    Attributes:
        image: RGB image of the size asked for.
        caption: names the subject, the framing and the place in the photograph.
        subject: index into ``PHOTOGRAPHS``.
        box: left, top, right, bottom in pixels of the photograph.
        flipped: mirrored left to right.
    """

    image: Image.Image
    caption: str
    subject: int
    box: tuple[int, int, int, int]
    flipped: bool


def photograph(name: str) -> Photograph:
    """Return the photograph called ``name``; an unknown name is an error that lists the nearest."""
    by_name = {photo.name: photo for photo in PHOTOGRAPHS}
    if name not in by_name:
        raise unknown("photograph", name, by_name)
    return by_name[name]


def subject_index(caption: str) -> int:
    """Index into ``PHOTOGRAPHS`` of the subject that ``caption`` names; an error when it names none."""
    for index, photo in enumerate(PHOTOGRAPHS):
        if f"of {photo.subject}" in caption:
            return index
    raise DiffalignError(f"no embedded photograph's subject in the caption {caption!r}")


@cache
def load_photograph(name: str) -> Image.Image:
    """Read a whole photograph as RGB (held-out strip included: cut it with ``strips`` before any training)."""
    package, _, file = photograph(name).path.partition("/")
    with files(package).joinpath(file).open("rb") as opened, Image.open(opened) as image:
        return image.convert("RGB")


def strips(photo: Photograph, split: Split) -> tuple[tuple[int, int, int, int], ...]:
    """Boxes (left, top, right, bottom) in pixels of the strips of ``split``; strips never overlap."""
    if split not in get_args(Split):
        raise unknown("split", split, get_args(Split))
    width, height = load_photograph(photo.name).size
    extent = width if photo.columns else height
    order = [("train", TRAIN_SHARE), ("validation", VALIDATION_SHARE), ("train", TRAIN_SHARE)]
    order.insert(0 if photo.held_out_first else 3, ("held_out", HELD_OUT_SHARE))
    edges = np.rint(np.cumsum([0.0] + [share for _, share in order]) * extent).astype(int).tolist()
    boxes: list[tuple[int, int, int, int]] = []
    for (name, _), start, stop in zip(order, edges[:-1], edges[1:], strict=True):
        if name == split:
            boxes.append((start, 0, stop, height) if photo.columns else (0, start, width, stop))
    return tuple(boxes)


def max_side(photo: Photograph) -> int:
    """Side in pixels of the largest crop: the thickness of the thinnest strip, so that all splits share the scales."""
    width, height = load_photograph(photo.name).size
    return int(VALIDATION_SHARE * (width if photo.columns else height)) - 1


def _places(photo: Photograph) -> tuple[str, str, str]:
    return ("top", "middle", "bottom") if photo.columns else ("left", "middle", "right")


def caption(photo: Photograph, framing: Framing | None, place: str | None) -> str:
    """Caption of a crop; None leaves the framing or the place unsaid."""
    kind = "a photo" if framing is None else f"a {framing} photo"
    return f"{kind} of {photo.subject}" + (f", {place}" if place else "")


def captions(*, plain: bool = True) -> list[str]:
    """Every distinct caption: 16 subjects x 2 framings x 3 places, and with ``plain`` the 16 bare ones.

    Example:
        >>> len(captions()), len(captions(plain=False))
        (112, 96)
    """
    full = [caption(p, f, w) for p in PHOTOGRAPHS for f in get_args(Framing) for w in _places(p)]
    return ([caption(p, None, None) for p in PHOTOGRAPHS] if plain else []) + full


def draw_crop(
    split: Split,
    generator: np.random.Generator,
    *,
    size: int,
    plain_share: float = 0.2,
    flip: bool = True,
    subject: int | None = None,
) -> Crop:
    """Draw one crop: subject, strip, size, place and mirror uniformly; flat crops are drawn again a few times.

    Args:
        split: which strips; the crop lies inside one of them.
        generator: the only source of randomness.
        size: side of the returned image in pixels; crops are 64 pixels and more, so up to 64 nothing is enlarged.
        plain_share: share of captions that say neither framing nor place.
        flip: mirror half of the crops (left and right in the caption follow).
        subject: index of the photograph; None draws one.
    """
    index = int(generator.integers(len(PHOTOGRAPHS))) if subject is None else subject
    photo = PHOTOGRAPHS[index]
    largest = max_side(photo)
    smallest = max(MIN_SIDE, largest // 2)
    for _ in range(MAX_TRIES):
        left, top, right, bottom = _pick(strips(photo, split), generator)
        side = int(generator.integers(smallest, largest + 1))
        x = int(generator.integers(left, right - side + 1))
        y = int(generator.integers(top, bottom - side + 1))
        box = (x, y, x + side, y + side)
        # cut first: resize(box=...) would read beyond the box, across the strip's border
        image = load_photograph(photo.name).crop(box).resize((size, size), Image.Resampling.LANCZOS)
        if ImageStat.Stat(image.convert("L")).stddev[0] >= MIN_CONTRAST:
            break
    flipped = flip and bool(generator.random() < 0.5)
    if flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    words: tuple[Framing | None, str | None] = (None, None)
    if generator.random() >= plain_share:
        words = (_framing(side, smallest, largest), _place(photo, box, flipped))
    return Crop(image, caption(photo, *words), index, box, flipped)


def _pick(boxes: tuple[tuple[int, int, int, int], ...], generator: np.random.Generator) -> tuple[int, int, int, int]:
    return boxes[int(generator.integers(len(boxes)))]


def _framing(side: int, smallest: int, largest: int) -> Framing:
    return "close-up" if side < (smallest + largest) / 2 else "wide"


def _place(photo: Photograph, box: tuple[int, int, int, int], flipped: bool) -> str:
    width, height = load_photograph(photo.name).size
    left, top, right, bottom = box
    centre = (top + bottom) / (2 * height) if photo.columns else (left + right) / (2 * width)
    if flipped and not photo.columns:
        centre = 1 - centre
    return _places(photo)[min(2, int(3 * centre))]
