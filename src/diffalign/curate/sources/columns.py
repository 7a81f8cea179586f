"""Which columns of a table hold the image, the caption and the licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from diffalign.core import DiffalignError
from diffalign.curate.captions import CAPTION_NAMES
from diffalign.curate.sources.photo import MAX_BYTES, Photo, PhotoRecipe, Rejected

__all__ = ["Columns", "find_columns"]

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "photo", "image_bytes", "bytes")


@dataclass(frozen=True)
class Columns:
    """Names of columns.

    Attributes:
        image: bytes, or struct{bytes, path}.
        captions: texts, of which the first counts that says something.
        license: a text; None where there is none.
    """

    image: str
    captions: tuple[str, ...]
    license: str | None

    @property
    def all(self) -> list[str]:
        """All of them."""
        return [self.image, *self.captions, *((self.license,) if self.license else ())]

    def photo(self, row: Mapping[str, Any], data: bytes | None, source: str, recipe: PhotoRecipe) -> Photo | Rejected:
        """The photograph of a row, whose image's bytes are ``data``."""
        if data is None:
            return Rejected(source, "no image", f"column {self.image!r} holds no bytes there")
        texts = [row[name] for name in self.captions if isinstance(row[name], str)]
        license = row[self.license] if self.license else ""
        return recipe(data[: MAX_BYTES + 1], texts, source, license=license or "")


def find_columns(schema: Any, where: str, *, need_captions: bool) -> Columns:
    """The columns of a table by their types, then by their names.

    Args:
        schema: of Arrow.
        where: the table, for messages.
        need_captions: whether a caption's column must be there.

    Raises:
        DiffalignError: no column fits, or several; lists them all with their types.

    Example:
        >>> schema = pa.schema({"id": pa.int64(), "jpg": pa.binary(), "caption": pa.string()})
        >>> find_columns(schema, "a table", need_captions=True)
        Columns(image='jpg', captions=('caption',), license=None)
    """
    types = {field.name: field.type for field in schema}
    images = [name for name, kind in types.items() if _holds_image(kind)]
    known = [name for name in IMAGE_NAMES if name in images]
    if len(images) != 1 and not known:
        raise DiffalignError(
            f"{where}: expected a column of images, of bytes or struct{{bytes, path}}, by the name of "
            f"{', '.join(IMAGE_NAMES)} if there are several, found {images or 'none'}; columns: {_listed(types)}"
        )
    captions = tuple(name for name in CAPTION_NAMES if name in types and _holds_text(types[name]))
    if need_captions and not captions:
        raise DiffalignError(
            f"{where}: expected a column of captions named {', '.join(CAPTION_NAMES)}, found none; "
            f"columns: {_listed(types)}"
        )
    license = "license" if "license" in types and _holds_text(types["license"]) else None
    return Columns(known[0] if known else images[0], captions, license)


def _holds_image(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return _holds_bytes(kind)


def _holds_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _holds_text(kind: Any) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value))


def _listed(types: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in types.items()) or "none"
