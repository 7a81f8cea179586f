"""What tests of curation need: a folder such as people have, and a reward that fails."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from diffalign.core import numpy_generator
from diffalign.data import draw_crop

SIZE = 32


def picture(number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A crop of a photograph, another for each number."""
    return draw_crop("train", numpy_generator("hostile", number), size=64).image.resize(size)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side: int = 50_000) -> bytes:
    """A PNG of few bytes whose header promises billions of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


ODD = "\\udcff.png"  # how the name of the byte 255 is shown

# every name below the folder and why it is rejected; None where it is a photograph
HOSTILE: dict[str, str | None] = {
    "../outside.png": "missing",
    "/etc/hostname": "missing",
    "animated.gif": None,
    "a..b.png": None,
    "bad caption.png": "bad caption",
    "bomb.png": "too_large",
    "cmyk.jpg": None,
    "corrupt.png": "corrupt",
    "deep.png": None,
    "empty.png": "empty",
    "link.png": "unreadable",
    "long caption.png": "bad caption",
    "markup.png": None,
    "no caption.png": "no caption",
    "notes.pdf": "not_an_image",
    "one.png": "too_small",
    "only markup.png": "no caption",
    "small.png": "too_small",
    "tabby_cat/1.png": None,
    "tabby_cat/again.png": None,  # the same picture as 1.png
    "truncated.jpg": "truncated",
    "turned.jpg": None,
    "two\nlines.png": None,
    ODD: None,
}


def hostile_folder(folder: Path) -> Path:
    """Writes the photographs of `HOSTILE`."""
    folder.mkdir()
    (folder / "tabby_cat").mkdir()
    whole = png(picture(1))
    files = {
        "a..b.png": png(picture(2)),
        "bad caption.png": whole,
        "bomb.png": bomb(),
        "corrupt.png": whole[:60] + bytes(byte ^ 0xFF for byte in whole[60:90]) + whole[90:],
        "empty.png": b"",
        "long caption.png": whole,
        "markup.png": png(picture(3)),
        "no caption.png": whole,
        "notes.pdf": b"%PDF-1.7",
        "one.png": png(Image.new("RGB", (1, 1))),
        "only markup.png": whole,
        "small.png": png(picture(4, (SIZE - 1, 90))),
        "tabby_cat/1.png": png(picture(5)),
        "tabby_cat/again.png": png(picture(5)),
        "two\nlines.png": png(picture(6)),
        ".hidden.png": whole,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(png(picture(7)))
    (folder / "link.png").symlink_to("nowhere.png")
    picture(8).convert("CMYK").save(folder / "cmyk.jpg")
    picture(9).save(folder / "truncated.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:-300])
    frames = [Image.new("RGB", (SIZE, 33), colour) for colour in ("red", "lime", "blue")]
    frames[0].paste("white", (4, 4, 12, 12))
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    ramp = np.linspace(0, 65535, 36 * 32).reshape(36, 32).astype(np.uint16)
    Image.fromarray(ramp).save(folder / "deep.png")
    lying = Image.new("RGB", (64, 32), "blue")
    lying.paste("red", (0, 0, 32, 32))  # the left half comes to the top
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    lying.save(folder / "turned.jpg", quality=95, exif=exif)
    write_captions(folder)
    return folder


def write_captions(folder: Path) -> None:
    (folder / "markup.txt").write_text("<p>A <b>cat</b>,\n1 &amp; only</p><script>alert('x')</script>")
    (folder / "only markup.txt").write_text("<img src=x onerror=alert(1)>")
    (folder / "bad caption.txt").write_bytes("ein schönes Bild".encode("latin-1"))
    (folder / "long caption.txt").write_text("cat " * 10_000)
    captioned = [name for name, reason in HOSTILE.items() if reason != "no caption" and "/1" not in name]
    alone = {"markup.png", "only markup.png", "no caption.png", "tabby_cat/again.png"}
    names = [os.fsdecode(b"\xff.png") if name == ODD else name for name in captioned if name not in alone]
    rows = [{"file_name": name, "text": f"a photo, number {number}"} for number, name in enumerate(names)]
    rows[names.index("cmyk.jpg")]["license"] = "CC0-1.0"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def nan_for_flowers(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """A reward that has no score for flowers, and else prefers contrast."""
    return [
        float("nan") if "flower" in prompt else float(np.asarray(image).std())
        for image, prompt in zip(images, prompts, strict=True)
    ]
