"""Images in and out: safe decoding, one resize recipe, tensors and hashes.

Whatever an image file holds (CMYK, 16 bits, palettes, alpha, colour profiles, orientation tags, animation), everything
after `decode_image` sees an upright 8-bit sRGB image, or a `BadImage` that says why not.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, UnidentifiedImageError

from diffalign.core import DiffalignError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BadImage",
    "BadImageReason",
    "ImageLimits",
    "ResizeRecipe",
    "decode_image",
    "encode_png",
    "from_tensor",
    "image_sha256",
    "resize_crop",
    "to_tensor",
    "try_decode",
]

BadImageReason = Literal[
    "unreadable", "empty", "too_many_bytes", "not_an_image", "too_large", "too_small", "truncated", "corrupt"
]
Resample = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]

# Raster formats only: Pillow also opens formats that call outside programs (EPS) or hold scenes rather than pixels.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "JPEG2000", "PPM")

# What undoes each value of the EXIF orientation tag (1 is upright).
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(DiffalignError):  # noqa: N818 (a result of try_decode as much as an exception)
    """An image that cannot be used.

    Attributes:
        reason: one word of the closed set `BadImageReason`, for counting.
    """

    def __init__(self, reason: BadImageReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: BadImageReason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return BadImage, (self.reason, str(self).removeprefix(f"{self.reason}: "))


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What a decoder accepts, checked before any pixel is decoded.

    Attributes:
        max_bytes: size of the encoded file, bytes.
        max_pixels: width times height. Pillow's own `Image.MAX_IMAGE_PIXELS` holds as well, whichever is smaller.
        min_side: shorter side in pixels; the default refuses the one-pixel placeholders of dead links.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64 * 2**20
    min_side: int = 2


_DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, kw_only=True)
class ResizeRecipe:
    """How an image becomes a square of ``size`` pixels: short side to ``size``, then a crop.

    Attributes:
        size: side of the result, pixels.
        crop: which part of the longer side is kept.
        resample: resampling filter.
    """

    size: int
    crop: Literal["center"] = "center"
    resample: Resample = "lanczos"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise DiffalignError(f"a resize recipe needs a size of at least 1 pixel, got {self.size}")
        if self.crop != "center":
            raise DiffalignError(f"unknown crop {self.crop!r}; known: center")
        _resampling(self.resample)

    @property
    def identity(self) -> str:
        """A name of the recipe for cache keys: two recipes share it exactly when they give the same pixels."""
        return f"short{self.size}-{self.crop}-{self.resample}"

    def __call__(self, image: Image.Image) -> Image.Image:
        """Apply the recipe: see `resize_crop`."""
        return resize_crop(image, self.size, resample=self.resample)


def decode_image(
    source: bytes | Path,
    *,
    limits: ImageLimits = _DEFAULT_LIMITS,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Image.Image:
    """Decode untrusted bytes or a file into an upright 8-bit sRGB image.

    Orientation tags are applied; a colour profile is converted to sRGB (an invalid one is ignored); 16-bit and
    floating-point grey becomes 8-bit; transparency is composited on ``background``; an animation gives its first frame.

    Args:
        source: encoded bytes, or the path of a regular file.
        limits: sizes accepted; bytes and pixels are checked before pixels are decoded.
        background: RGB colour, 0 to 255, behind transparent pixels.

    Returns:
        A fresh "RGB" image without metadata.

    Raises:
        BadImage: with a ``reason`` of the closed set `BadImageReason`.
    """
    data = _read_bytes(source, limits.max_bytes)
    image = _open(data)
    check_size(image.size, len(data), limits)
    try:
        with _STRICT:
            image.load()
            rgb = _to_srgb(_upright(image), background)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_large", str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders of untrusted bytes raise nearly any type
        raise BadImage("truncated" if _says_truncated(error) else "corrupt", _one_line(error)) from error
    rgb.info.clear()
    return rgb


def check_size(size: tuple[int, int], num_bytes: int, limits: ImageLimits) -> None:
    """Raise `BadImage` if an image of this (width, height), encoded in so many bytes, is outside the limits."""
    width, height = size
    if num_bytes > limits.max_bytes:
        raise BadImage("too_many_bytes", f"the file is larger than the {limits.max_bytes} bytes allowed")
    if width * height > limits.max_pixels:
        raise BadImage("too_large", f"{width}x{height} pixels, at most {limits.max_pixels} are allowed")
    if min(width, height) < limits.min_side:
        raise BadImage("too_small", f"{width}x{height} pixels, the shorter side must have at least {limits.min_side}")


def try_decode(source: bytes | Path, *, limits: ImageLimits = _DEFAULT_LIMITS) -> Image.Image | BadImage:
    """`decode_image` for loops: a bad image comes back instead of being raised."""
    try:
        return decode_image(source, limits=limits)
    except BadImage as bad:
        return bad


def encode_png(image: Image.Image) -> bytes:
    """Lossless PNG bytes of an "RGB" or "L" image: pixels only, the same bytes for the same pixels.

    Raises:
        DiffalignError: the image has another mode.
    """
    if image.mode not in ("RGB", "L"):
        raise DiffalignError(f'can encode images of mode "RGB" or "L", got {image.mode!r}; convert it first')
    bare = Image.frombytes(image.mode, image.size, image.tobytes())  # leaves profiles, text and tags behind
    buffer = io.BytesIO()
    bare.save(buffer, "PNG")
    return buffer.getvalue()


def image_sha256(image: Image.Image) -> str:
    """SHA-256 (hex) of an image's mode, size and raw pixels: of what it shows, not of the file it came from."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def resize_crop(image: Image.Image, size: int, *, resample: Resample = "lanczos") -> Image.Image:
    """Short side to ``size``, then the centre square, in one resampling pass.

    The crop is taken in source coordinates, so a very long image never becomes a very large one in between. An image
    that already is ``size`` x ``size`` keeps its pixels.

    Args:
        image: any size and mode.
        size: side of the result, pixels.
        resample: resampling filter.

    Returns:
        A new image of ``size`` x ``size`` pixels.
    """
    width, height = image.size
    side = min(width, height)
    if (width, height) == (size, size):
        return image.copy()
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), _resampling(resample), box=(left, top, left + side, top + side))


def to_tensor(image: Image.Image) -> Tensor:
    """An "RGB" image as a (3, H, W) float32 tensor in [-1, 1]."""
    import torch

    if image.mode != "RGB":
        raise DiffalignError(f'expected an image of mode "RGB", got {image.mode!r}')
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.float().div(127.5).sub(1.0).contiguous()


def from_tensor(pixels: Tensor) -> Image.Image:
    """A (3, H, W) tensor in [-1, 1] as an "RGB" image: values outside are clipped, then rounded to 8 bits.

    Raises:
        DiffalignError: another shape, or values that are not finite.
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise DiffalignError(f"expected a (3, H, W) tensor, got shape {tuple(pixels.shape)}")
    values = pixels.detach().float().cpu()
    if not bool(values.isfinite().all()):
        raise DiffalignError("cannot make an image from values that are not finite (NaN or infinite)")
    bytes_ = values.clamp(-1, 1).add(1.0).mul(127.5).round().byte()
    return Image.fromarray(bytes_.permute(1, 2, 0).contiguous().numpy())


def _resampling(name: str) -> Image.Resampling:
    if name not in get_args(Resample):
        raise DiffalignError(f"unknown resampling filter {name!r}; known: {', '.join(get_args(Resample))}")
    return Image.Resampling[name.upper()]


def _read_bytes(source: bytes | Path, max_bytes: int) -> bytes:
    if isinstance(source, Path):
        try:
            if not source.is_file():  # a pipe or device would keep us waiting
                raise BadImage("unreadable", f"{source} does not exist or is not a file")
            with source.open("rb") as file:
                source = file.read(max_bytes + 1)
        except OSError as error:
            raise BadImage("unreadable", _one_line(error)) from error
    if len(source) > max_bytes:
        raise BadImage("too_many_bytes", f"the file is larger than the {max_bytes} bytes allowed")
    if not source:
        raise BadImage("empty", "the file has no bytes")
    return source


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    try:
        with _STRICT:
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise BadImage("not_an_image", f"no decoder among {', '.join(_FORMATS)} recognises it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too_large", str(error)) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders of untrusted bytes raise nearly any type
        raise BadImage("truncated" if _says_truncated(error) else "corrupt", _one_line(error)) from error


class _Strict:
    """Pillow refuses bombs and truncated files, whatever the process has told it, and keeps its remarks to itself.

    These are settings of the whole process: of all threads that decode, the first one sets and the last one restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._restore = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._restore.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
                self._restore.enter_context(warnings.catch_warnings())
                ImageFile.LOAD_TRUNCATED_IMAGES = False
                warnings.filterwarnings("ignore", module=r"PIL\.")
                warnings.simplefilter("error", Image.DecompressionBombWarning)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._restore.close()


_STRICT = _Strict()


def _upright(image: Image.Image) -> Image.Image:
    """Apply the orientation tag; tags that cannot be parsed are ignored, as viewers do."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the parser of untrusted tags raises nearly any type
        return image
    return image.transpose(_ORIENTATIONS[orientation]) if orientation in _ORIENTATIONS else image


def _to_srgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    profile = image.info.get("icc_profile")
    colour, alpha = _split_alpha(image)
    colour = _to_8_bit(colour)
    rgb = _apply_profile(colour, profile) if profile else None
    if rgb is None:
        rgb = colour.convert("RGB")
    if alpha is not None:
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, background), alpha)
    return rgb


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour without alpha, and the alpha channel if there is one; palettes are resolved."""
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert("RGBA")
    elif image.mode in ("P", "PA") or (image.mode in ("1", "L", "RGB") and image.has_transparency_data):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if image.mode == "RGBA":
        return image.convert("RGB"), image.getchannel("A")
    return image, None


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of other depths to "L": integers count to 65535, floats to 1 (or to 255 where any exceeds 1)."""
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64) / 65535
    elif image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("pixels that are not finite (NaN or infinite)")
        values = values / 255 if values.max() > 1 else values
    else:
        return image
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The image converted to sRGB; None when the profile is invalid or belongs to another kind of pixels."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, _srgb_profile(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None


def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _says_truncated(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, EOFError) or any(word in text for word in ("truncated", "end of file", "premature"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
