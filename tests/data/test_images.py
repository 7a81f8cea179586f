"""Safe decoding: every kind of pixels, every kind of damage; resizing, hashing and tensors."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from diffalign.core import DiffalignError
from diffalign.data import (
    BadImage,
    ImageLimits,
    ResizeRecipe,
    decode_image,
    encode_png,
    from_tensor,
    image_sha256,
    resize_crop,
    to_tensor,
    try_decode,
)
from diffalign.data import images as images_module
from diffalign.data.images import BadImageReason


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def flat(mode: str, colour: object, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def reason_of(data: bytes | Path, limits: ImageLimits | None = None) -> str:
    bad = try_decode(data, limits=limits or ImageLimits())
    assert isinstance(bad, BadImage), f"decoded {bad}"
    assert bad.reason in get_args(BadImageReason)
    return bad.reason


# Kinds of pixels ----------------------------------------------------------------------------------------------------


def test_rgb_keeps_its_pixels(image, encoded):
    assert np.array_equal(pixels(decode_image(encoded(image()))), pixels(image()))


@pytest.mark.parametrize(
    ("mode", "colour", "file_format", "expected"),
    [
        ("L", 90, "PNG", (90, 90, 90)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("LA", (0, 51), "PNG", (204, 204, 204)),  # black at 20 % over white
        ("RGBA", (255, 0, 0, 0), "PNG", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), "PNG", (255, 0, 0)),
        ("CMYK", (0, 0, 0, 0), "TIFF", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("I;16", 65535, "PNG", (255, 255, 255)),
        ("I;16", 257 * 200, "PNG", (200, 200, 200)),
        ("I", 257 * 200, "TIFF", (200, 200, 200)),
        ("F", 0.4, "TIFF", (102, 102, 102)),
        ("F", 102.0, "TIFF", (102, 102, 102)),
    ],
)
def test_other_modes_become_rgb(mode, colour, file_format, expected, encoded):
    decoded = decode_image(encoded(flat(mode, colour), file_format))
    assert decoded.mode == "RGB" and decoded.size == (8, 6)
    assert np.array_equal(pixels(decoded), np.broadcast_to(np.array(expected, np.uint8), (6, 8, 3)))


def test_alpha_lies_on_the_stated_background(encoded):
    data = encoded(flat("RGBA", (0, 0, 0, 0)))
    assert decode_image(data, background=(10, 20, 30)).getpixel((3, 2)) == (10, 20, 30)


def test_palette_and_its_transparency(encoded):
    palette = flat("P", 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert decode_image(encoded(palette)).getpixel((0, 0)) == (10, 200, 30)
    assert decode_image(encoded(palette, transparency=1)).getpixel((0, 0)) == (255, 255, 255)


def test_transparent_colour_of_a_truecolour_png(encoded):
    assert decode_image(encoded(flat("RGB", (9, 8, 7)), transparency=(9, 8, 7))).getpixel((0, 0)) == (255, 255, 255)


def test_lab(encoded):
    white = Image.merge("LAB", [flat("L", 255), flat("L", 128), flat("L", 128)])
    red, green, blue = decode_image(encoded(white, "TIFF")).getpixel((0, 0))
    assert min(red, green, blue) >= 253


def test_cmyk_jpeg_as_adobe_writes_it(encoded):
    """Adobe stores CMYK inverted and marks it; the colour must not come out negative."""
    data = encoded(flat("CMYK", (0, 0, 0, 0), (16, 16)), "JPEG", quality=95)
    assert min(decode_image(data).getpixel((8, 8))) > 250


def test_first_frame_of_an_animation(encoded):
    frames = [flat("RGB", "red"), flat("RGB", "blue")]
    for file_format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        assert decode_image(data).getpixel((0, 0)) == (255, 0, 0), file_format


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied_once(orientation, file_format, encoded):
    """A red corner, stored so that the tag brings it back to the upper left of an upright 32 x 16 image."""
    upright = flat("RGB", "white", (32, 16))
    upright.paste("red", (0, 0, 16, 8))
    undo = [
        None,
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,  # the tag says: turn by 270 to see it upright
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_270,
    ][orientation - 1]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(stored, file_format, exif=exif))
    assert decoded.size == (32, 16)
    assert np.abs(pixels(decoded)[2, 4].astype(int) - [255, 0, 0]).max() < 40
    assert pixels(decoded)[12, 28].min() > 215


def test_broken_exif_does_not_lose_the_image(image, encoded):
    assert decode_image(encoded(image(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).size == (7, 5)


# Colour profiles ----------------------------------------------------------------------------------------------------


def swapped_profile() -> bytes:
    """sRGB with the red and green primaries exchanged: its effect cannot be overlooked."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    place = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 136 + 12 * i for i in range(count)}
    red, green = place[b"rXYZ"], place[b"gXYZ"]
    profile[red : red + 8], profile[green : green + 8] = profile[green : green + 8], profile[red : red + 8]
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_profile_is_converted(mode, encoded):
    data = encoded(flat("RGB", (255, 0, 0)).convert(mode), icc_profile=swapped_profile())
    decoded = decode_image(data)
    red, green, blue = decoded.getpixel((0, 0))
    assert green > 250 and red < 5 and blue < 5
    assert "icc_profile" not in decoded.info


@pytest.mark.parametrize("profile", [b"not a profile", b"\0" * 200])
def test_an_invalid_profile_is_ignored(profile, image, encoded):
    assert np.array_equal(pixels(decode_image(encoded(image(), icc_profile=profile))), pixels(image()))


def test_a_profile_for_other_pixels_is_ignored(encoded):
    data = encoded(flat("L", 77), icc_profile=swapped_profile())
    assert decode_image(data).getpixel((0, 0)) == (77, 77, 77)


# Damage and limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is text", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),  # would start an outside program
    ],
)
def test_what_is_not_an_image(data, reason):
    assert reason_of(data) == reason


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_truncated(file_format, image, encoded):
    whole = encoded(image(width=64, height=48), file_format)
    assert reason_of(whole[: len(whole) * 2 // 3]) == "truncated"


def test_truncated_is_found_even_where_pillow_was_told_to_look_away(image, encoded, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = encoded(image(width=64, height=48))
    assert reason_of(whole[: len(whole) * 2 // 3]) == "truncated"


def test_corrupt(image, encoded):
    data = bytearray(encoded(image(width=64, height=48)))
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    assert reason_of(bytes(data)) in ("corrupt", "truncated")


def test_not_finite_pixels_are_corrupt(encoded):
    assert reason_of(encoded(flat("F", float("nan")), "TIFF")) == "corrupt"


def png_claiming(width: int, height: int) -> bytes:
    """A valid PNG header with next to no data: a decompression bomb's first bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_bombs_are_refused_before_their_pixels_are_decoded(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    assert reason_of(png_claiming(9_000, 9_000)) == "too_large"  # ours: 64 Mi pixels
    assert reason_of(png_claiming(30_000, 30_000)) == "too_large"
    assert reason_of(png_claiming(101, 100), ImageLimits(max_pixels=10_000)) == "too_large"


def test_pillows_own_bomb_warning_is_a_reason(image, encoded, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    assert reason_of(encoded(image()), ImageLimits(max_pixels=10**9)) == "too_large"  # 35 > 30: a warning
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert reason_of(encoded(image()), ImageLimits(max_pixels=10**9)) == "too_large"  # 35 > 2 * 10: an error


def test_limits_are_inclusive(image, encoded):
    data = encoded(image())  # 7 x 5
    exactly = ImageLimits(max_bytes=len(data), max_pixels=35, min_side=5)
    assert decode_image(data, limits=exactly).size == (7, 5)
    assert reason_of(data, ImageLimits(max_bytes=len(data) - 1)) == "too_many_bytes"
    assert reason_of(data, ImageLimits(max_pixels=34)) == "too_large"
    assert reason_of(data, ImageLimits(min_side=6)) == "too_small"
    assert reason_of(encoded(flat("RGB", 0, (1, 1)))) == "too_small"


def test_files(tmp_path, image, encoded):
    file = tmp_path / "a.txt"  # the suffix does not matter
    file.write_bytes(encoded(image()))
    assert decode_image(file).size == (7, 5)
    assert reason_of(file, ImageLimits(max_bytes=20)) == "too_many_bytes"
    assert reason_of(tmp_path) == "unreadable"
    assert reason_of(tmp_path / "absent.png") == "unreadable"
    os.mkfifo(tmp_path / "pipe")
    assert reason_of(tmp_path / "pipe") == "unreadable"  # rather than waiting for a writer for ever


def test_fuzzed_files_decode_or_say_why(image, encoded):
    """Damaged bytes of every format end in an image or a reason, never in another exception."""
    rng = random.Random(0)
    outcomes = set()
    for file_format in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "AVIF", "PPM", "JPEG2000"):
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif} if file_format in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF") else {}
        whole = encoded(image(width=24, height=16), file_format, **options)
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            result = try_decode(bytes(data[: rng.randrange(1, len(data) + 1)]), limits=ImageLimits(max_pixels=10**6))
            outcomes.add(result.reason if isinstance(result, BadImage) else "decoded")
    assert {"decoded", "truncated", "corrupt", "not_an_image"} <= outcomes


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_decode_or_say_why(data):
    result = try_decode(data)
    assert isinstance(result, BadImage) or result.mode == "RGB"


def test_bad_image_survives_being_sent_to_another_process():
    bad = pickle.loads(pickle.dumps(BadImage("corrupt", "broken: here")))
    assert bad.reason == "corrupt" and str(bad) == "corrupt: broken: here"


def test_threads_that_decode_at_once_share_pillows_settings(image, encoded, monkeypatch):
    """A comes first and leaves first: B still decodes strictly, and the process's own settings are back at the end."""
    entered, leave = ({name: threading.Event() for name in "AB"} for _ in range(2))

    def held(decoded):
        name = threading.current_thread().name
        entered[name].set()
        assert leave[name].wait(10)
        return decoded

    monkeypatch.setattr(images_module, "_upright", held)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    filters = list(warnings.filters)
    threads = {name: threading.Thread(target=decode_image, args=(encoded(image()),), name=name) for name in "AB"}
    for name, thread in threads.items():
        thread.start()
        assert entered[name].wait(10)
    leave["A"].set()
    threads["A"].join(10)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False and warnings.filters != filters
    leave["B"].set()
    threads["B"].join(10)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True and warnings.filters == filters


# Bytes and hashes ---------------------------------------------------------------------------------------------------


def test_png_holds_pixels_alone_and_always_the_same(image):
    with_metadata = image()
    with_metadata.info.update(icc_profile=b"x" * 50, Comment="a prompt", transparency=(1, 2, 3))
    data = encode_png(with_metadata)
    assert data == encode_png(image())
    assert np.array_equal(pixels(Image.open(io.BytesIO(data))), pixels(image()))
    with pytest.raises(DiffalignError, match="RGBA"):
        encode_png(image().convert("RGBA"))


def test_image_hash_is_of_what_is_shown(image, encoded):
    assert image_sha256(decode_image(encoded(image()))) == image_sha256(decode_image(encoded(image(), "BMP")))
    assert image_sha256(flat("L", 0, (4, 6))) != image_sha256(flat("L", 0, (6, 4)))
    assert image_sha256(flat("L", 0, (6, 3))) != image_sha256(flat("RGB", 0, (3, 2)))
    assert image_sha256(flat("RGB", "red", (2, 1))) == hashlib.sha256(b"RGB 2x1\n\xff\0\0\xff\0\0").hexdigest()


# Resizing -----------------------------------------------------------------------------------------------------------


def test_centre_square(encoded):
    """Thirds of red, green and blue: the middle square is green."""
    wide = Image.new("RGB", (30, 10), "green")
    wide.paste("red", (0, 0, 10, 10))
    wide.paste("blue", (20, 0, 30, 10))
    for image, size in ((wide, 10), (wide.transpose(Image.Transpose.ROTATE_90), 10)):
        assert np.array_equal(pixels(resize_crop(image, size)), pixels(flat("RGB", "green", (size, size))))


def test_square_images_are_plainly_resized(image):
    square = image(width=40, height=40)
    expected = square.resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(pixels(resize_crop(square, 16)), pixels(expected))
    assert np.array_equal(pixels(resize_crop(square, 40)), pixels(square))
    assert not np.array_equal(pixels(resize_crop(square, 16, resample="bilinear")), pixels(expected))


def test_like_resizing_first_and_cropping_then(image):
    """With a whole-number scale the two orders agree."""
    wide = image(width=80, height=40)
    both = wide.resize((40, 20), Image.Resampling.LANCZOS).crop((10, 0, 30, 20))
    assert np.abs(pixels(resize_crop(wide, 20)).astype(int) - pixels(both)).max() <= 1


def test_a_very_long_image_never_becomes_a_very_large_one():
    assert resize_crop(Image.new("RGB", (200_000, 2)), 512).size == (512, 512)


def test_recipe(image):
    recipe = ResizeRecipe(size=4)
    assert np.array_equal(pixels(recipe(image())), pixels(resize_crop(image(), 4)))
    identities = {ResizeRecipe(size=s, resample=r).identity for s in (4, 5) for r in ("lanczos", "bicubic")}
    assert len(identities) == 4
    for wrong in ({"size": 0}, {"size": 4, "resample": "cubic"}, {"size": 4, "crop": "left"}):
        with pytest.raises(DiffalignError):
            ResizeRecipe(**wrong)


# Tensors ------------------------------------------------------------------------------------------------------------


def test_tensor_round_trip_of_every_value():
    every = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(3).reshape(16, 16, 3))
    tensor = to_tensor(every)
    assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(pixels(from_tensor(tensor)), pixels(every))


def test_tensor_layout(image):
    tensor = to_tensor(image())
    assert tensor.shape == (3, 5, 7)
    assert tensor[1, 4, 6].item() == pytest.approx(image().getpixel((6, 4))[1] / 127.5 - 1, abs=1e-6)


def test_from_tensor_clips_and_refuses_nan():
    assert from_tensor(torch.full((3, 2, 2), 7.0)).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(DiffalignError, match="NaN"):
        from_tensor(torch.full((3, 2, 2), float("nan")))
    with pytest.raises(DiffalignError, match="shape"):
        from_tensor(torch.zeros(4, 2, 2))
    with pytest.raises(DiffalignError, match="mode"):
        to_tensor(Image.new("L", (2, 2)))
