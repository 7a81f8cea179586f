"""What every source gives: photographs in a fixed order, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from PIL import Image

from diffalign.core import DiffalignError
from diffalign.curate.captions import MAX_LENGTH, clean_caption
from diffalign.data import BadImage, ImageLimits, ResizeRecipe, decode_image, image_sha256

__all__ = ["MAX_BYTES", "Photo", "PhotoReader", "PhotoRecipe", "Photos", "Rejected", "photo_id", "printable"]

MAX_BYTES = ImageLimits().max_bytes


@dataclass(frozen=True, kw_only=True)
class Photo:
    """A photograph ready to be curated.

    Attributes:
        id: 16 digits of a sha256 over its pixels, or the data set's own id where it has one.
        image: RGB, a square of the size asked for.
        prompt: its caption, plain text on one line; empty only where captions are not needed.
        source: data set or folder, and the name there.
        license: SPDX id or the source's own words; empty when unknown.
        raw_caption: the caption as it came, where ``prompt`` is another; else empty.
    """

    id: str
    image: Image.Image
    prompt: str
    source: str
    license: str = ""
    raw_caption: str = ""


@dataclass(frozen=True)
class Rejected:
    """What was left out.

    Attributes:
        name: as ``Photo.source``.
        reason: a few words from a small set, for counting.
        detail: what exactly; empty when the reason says it all.
    """

    name: str
    reason: str
    detail: str = ""


class PhotoReader(Protocol):
    """Reads the photographs of a source one by one. A small frozen class, so that it travels to worker processes."""

    def read(self, key: Any) -> Photo | Rejected:
        """The photograph of a key, or why there is none."""
        ...


@dataclass(frozen=True, eq=False)
class Photos(Sequence[Photo | Rejected]):
    """Photographs in a fixed order, each read when it is asked for, so that any part can be worked on alone.

    Attributes:
        keys: one for each photograph; all that ``reader`` has to know of it.
        reader: what makes a photograph of a key.
        identity: a hash of what decides them; another one means other photographs.
    """

    keys: Sequence[Any]
    reader: PhotoReader
    identity: str

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        """The photograph at ``index``, or why there is none; for a slice, those photographs."""
        if isinstance(index, slice):
            return replace(self, keys=self.keys[index])
        return self.read(self.keys[index])

    def read(self, key: Any) -> Photo | Rejected:
        """The photograph of one of ``keys``, or why there is none."""
        return self.reader.read(key)


@dataclass(frozen=True)
class PhotoRecipe:
    """How bytes and captions become a photograph.

    Attributes:
        size: side in pixels; short side to it, then the centre. A smaller image is rejected: enlarged, it would be
            blurred.
        need_captions: whether a photograph without caption is rejected; else its prompt is empty.
    """

    size: int
    need_captions: bool = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise DiffalignError(f"expected a size of at least 1 pixel, got {self.size}")

    def __call__(
        self, data: bytes, texts: Iterable[str], source: str, *, license: str = "", id: str = ""
    ) -> Photo | Rejected:
        """The photograph, or why it is none.

        Args:
            data: of the encoded image; of a large one at least ``MAX_BYTES + 1``.
            texts: captions, of which the first counts that says something.
            source: as ``Photo.source``.
            license: as ``Photo.license``.
            id: the data set's own; without one the pixels name it.
        """
        raw = ""
        for text in texts:
            if len(text) > MAX_LENGTH:
                return Rejected(source, "bad caption", f"it is longer than {MAX_LENGTH} characters")
            if clean_caption(text):
                raw = text
                break
        if not raw and self.need_captions:
            return Rejected(source, "no caption")
        try:
            decoded = decode_image(data, limits=ImageLimits(min_side=max(2, self.size)))
        except BadImage as bad:
            return Rejected(source, bad.reason, str(bad).removeprefix(f"{bad.reason}: "))
        image = ResizeRecipe(size=self.size)(decoded)
        prompt = clean_caption(raw)
        altered = raw if prompt != " ".join(raw.split()) else ""
        return Photo(
            id=id or photo_id(image),
            image=image,
            prompt=prompt,
            source=source,
            license=license,
            raw_caption=printable(altered),
        )


def photo_id(image: Image.Image) -> str:
    """16 digits of a sha256 over an image's pixels."""
    return image_sha256(image)[:16]


def printable(name: str) -> str:
    """A name as valid Unicode: bytes of another encoding become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
