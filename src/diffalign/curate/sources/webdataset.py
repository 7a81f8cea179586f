"""Photographs in tar files, as WebDataset and img2dataset write them: indexed once, read by offset, never unpacked."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from diffalign.core import DiffalignError, content_hash
from diffalign.curate.captions import MAX_LENGTH, BadCaption, decode_caption, decode_caption_json
from diffalign.curate.sources.photo import MAX_BYTES, Photo, PhotoRecipe, Photos, Rejected, printable
from diffalign.curate.sources.store import Store, Unreadable
from diffalign.data.readers import IMAGE_SUFFIXES

__all__ = ["tar_photos"]

_MAX_JSON = 2**20  # bytes of a member that describes an image
_NOWHERE = (0, 0)

Span = tuple[int, int]  # offset and number of bytes in the tar


@dataclass(frozen=True, slots=True)
class _Key:
    """An image's place in a tar, and its caption's; a span of no bytes where there is none."""

    tar: str
    name: str
    image: Span
    text: Span = _NOWHERE
    json: Span = _NOWHERE
    trouble: str = ""


@dataclass(frozen=True)
class _Reader:
    store: Store
    recipe: PhotoRecipe

    def read(self, key: _Key) -> Photo | Rejected:
        source = f"{self.store.name}/{printable(key.tar)}/{printable(key.name)}"
        if key.trouble:
            return Rejected(source, "unreadable", key.trouble)
        try:
            text = decode_caption(self._bytes(key.tar, key.text, MAX_LENGTH)) if key.text[1] else ""
            if key.json[1] > _MAX_JSON:
                raise BadCaption(f"its JSON is longer than {_MAX_JSON} bytes")
            row = decode_caption_json(self._bytes(key.tar, key.json, _MAX_JSON) if key.json[1] else b"{}")
            data = self._bytes(key.tar, key.image, MAX_BYTES)
        except BadCaption as error:
            return Rejected(source, "bad caption", str(error))
        except Unreadable as error:
            return Rejected(source, error.reason, error.detail)
        return self.recipe(data, (text, row.caption), source, license=row.license)

    def _bytes(self, tar: str, span: Span, limit: int) -> bytes:
        start, size = span
        return self.store.read(tar, start, min(size, limit + 1))


def tar_photos(store: Store, tars: Iterable[str], recipe: PhotoRecipe) -> Photos:
    """The images in tar files, in their order.

    The caption is the ``.txt`` member of the image's name, else ``text``, ``caption`` or ``prompt`` of its ``.json``
    member. As in WebDataset, a sample's members share the name up to the first dot of its last part; of a sample with
    ``1.jpg`` and ``1.mask.png`` only the former is a photograph. Nothing is unpacked: names remain text.

    Args:
        store: what holds the tars.
        tars: their names.
        recipe: how members become photographs.

    Raises:
        DiffalignError: a tar is broken or compressed, or there are no images.
    """
    keys: list[_Key] = []
    for tar in tars:
        with store.open(tar) as file:
            keys += _keys(tar, _index(file, f"{store.root}/{tar}"))
    if not keys:
        raise DiffalignError(f"the tar files in {store.root} hold no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    parts = [[key.tar, key.name, *key.image, *key.text, *key.json] for key in keys]
    identity = content_hash("tar", recipe.size, recipe.need_captions, parts)
    return Photos(tuple(keys), _Reader(store, recipe), identity)


def _index(file: BinaryIO, where: str) -> list[tarfile.TarInfo]:
    """The members that are not folders."""
    try:
        with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar:
            members = [member for member in tar if not member.isdir()]
            file.seek(tar.offset)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DiffalignError(f"{where} is not a whole, uncompressed tar file: {error}") from error
    if any(file.read(tarfile.BLOCKSIZE)):  # else Python takes broken headers for the end
        raise DiffalignError(f"{where} is broken after {len(members)} members; get it again")
    return members


def _keys(tar: str, members: Iterable[tarfile.TarInfo]) -> list[_Key]:
    spans: dict[str, Span] = {}
    images: dict[str, list[tarfile.TarInfo]] = {}
    for member in members:
        stem, suffix = posixpath.splitext(member.name)
        if suffix in (".txt", ".json"):
            spans[member.name] = _span(member)
        elif suffix.lower() in IMAGE_SUFFIXES and not posixpath.basename(stem).startswith("."):
            images.setdefault(_sample(member.name), []).append(member)
    return [
        _key(tar, member, sample, spans)
        for sample, found in images.items()
        for member in ([one for one in found if posixpath.splitext(one.name)[0] == sample] or found)
    ]


def _key(tar: str, member: tarfile.TarInfo, sample: str, spans: dict[str, Span]) -> _Key:
    stem = posixpath.splitext(member.name)[0]

    def beside(suffix: str) -> Span:
        return spans.get(stem + suffix) or spans.get(sample + suffix) or _NOWHERE

    trouble = "" if _is_plain(member) else "it is a link or another special member of the tar"
    return _Key(tar, member.name, _span(member), beside(".txt"), beside(".json"), trouble)


def _sample(name: str) -> str:
    """The name up to the first dot of its last part.

    Example:
        >>> _sample("a.b/1.mask.png")
        'a.b/1'
    """
    folder, last = posixpath.split(name)
    return posixpath.join(folder, last.split(".")[0])


def _span(member: tarfile.TarInfo) -> Span:
    return (member.offset_data, member.size) if _is_plain(member) else _NOWHERE


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()
