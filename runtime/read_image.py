"""Reading pictures from anywhere, hostile files included, into sRGB values in 0–1."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from impasto.errors import ImageError, ImpastoError, LimitError
from impasto.runtime.images import ByteArray, Colours, FloatArray, Picture, srgb_profile, to_uint8, to_unit
from impasto.runtime.limits import DEFAULT_LIMITS, Limits

Source = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any]
"""What a picture can be read from; a ``str`` is a path, ``bytes`` are a file's content."""

# Pillow's plugins by the first bytes of a file. The list is closed, so that no file can reach a plugin that starts
# another program (EPS) or is rarely looked at.
_SIGNATURES = {
    "Png": rb"\x89PNG\r\n\x1a\n",
    "Jpeg": rb"\xff\xd8\xff",
    "WebP": rb"RIFF....WEBP",
    "Tiff": rb"II(\*\0|\+\0)|MM(\0\*|\0\+)",
    "Gif": rb"GIF8[79]a",
    "Bmp": rb"BM",
    "Ppm": rb"P[1-6f]\s",
    "Avif": rb"....ftyp(avif|avis|mif1|msf1)",
}
_FORMATS = "PNG, JPEG, WebP, TIFF, GIF, BMP, PNM, AVIF"

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags
_WHITE_IS_ZERO = 0

_STRIPE = 1 << 20  # pixels that are copied at a time

# How far floats may leave 0–1 before they are taken for another range: what float32 arithmetic on colours costs.
_ROUNDING = 1e-5


def read_image(source: Source, limits: Limits = DEFAULT_LIMITS) -> Picture:
    """Read a picture as sRGB, and keep its opacity aside.

    ``source`` is a path, the bytes of a file, a binary file object (read from where it stands), a Pillow image (its
    current frame; it is not changed), or an array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8, uint16
    or floating point in 0–1, sRGB-encoded, the fourth channel being opacity.

    Files may be PNG, JPEG, WebP, TIFF, GIF, BMP, PNM and, where Pillow has it, AVIF, recognised by content. The
    first frame is taken. The EXIF orientation is applied. An ICC profile is followed to sRGB (perceptual intent);
    without one, colours are taken as sRGB, CMYK by the plain formula. A profile that is broken or of another colour
    model is ignored, and `Picture.notes` says so. Greyscale of 16 bits keeps its precision unless it has a profile;
    Pillow reads colour of 16 bits at 8, which `Picture.notes` says too. Opacity is not premultiplied; pixels are laid
    over white: rgb·α + 1 − α, on encoded values, as browsers do.

    What is stored as opaque colours of 8 bits stays uint8; everything else becomes float32.

    Raises `ImageError` when the source does not exist, is not a picture of those formats, is damaged or truncated,
    or holds values that are not finite or not in 0–1; `LimitError` when the file is above ``limits.max_file_bytes``
    or the picture above ``limits.max_pixels``, which is known before pixels are decoded.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, limits)
    if isinstance(source, Image.Image):
        return _from_pillow(source, getattr(source, "filename", "") or "<Pillow image>", limits)
    image, name = _opened(source, limits)
    return _from_pillow(image, name, limits)


def _opened(source: str | os.PathLike[str] | bytes | BinaryIO, limits: Limits) -> tuple[Image.Image, str]:
    """Return an image whose header is read, and what to call it; no other than the image holds the file's bytes."""
    data, name = _file_bytes(source, limits)
    with _typed_errors(name):
        return _open(data, name), name


def _file_bytes(source: str | os.PathLike[str] | bytes | BinaryIO, limits: Limits) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        limits.check_file_bytes(len(source), "picture <bytes>")
        return source, "<bytes>"
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        try:
            with Path(name).open("rb") as file:
                status = os.fstat(file.fileno())
                if stat.S_ISREG(status.st_mode):
                    limits.check_file_bytes(status.st_size, f"picture {name!r}")
                return _read(file, name, limits), name
        except FileNotFoundError:
            raise ImageError(f"picture {name!r} does not exist: check the path") from None
        except IsADirectoryError:
            raise ImageError(f"picture {name!r} is a folder: give a file in it") from None
        except (OSError, ValueError) as error:
            raise ImageError(f"picture {name!r} cannot be read: {_reason(error)}") from None
    if not hasattr(source, "read"):
        raise ImageError(
            f"a picture cannot be read from a {type(source).__name__}: give a path, bytes, a binary file, a Pillow "
            "image or an array"
        )
    name = str(getattr(source, "name", "<file>"))
    return _read(source, name, limits), name


def _read(file: BinaryIO, name: str, limits: Limits) -> bytes:
    # One byte more than allowed tells a file that is too large, even one that has no size (a pipe, /dev/zero).
    bound = -1 if limits.max_file_bytes is None else limits.max_file_bytes + 1
    try:
        data = file.read(bound)
    except (OSError, ValueError) as error:
        raise ImageError(f"picture {name!r} cannot be read: {_reason(error)}") from None
    if not isinstance(data, bytes):
        raise ImageError(f"picture {name!r} was opened as text: open it in binary mode ('rb')")
    if limits.max_file_bytes is not None and len(data) > limits.max_file_bytes:
        raise LimitError(
            f"picture {name!r} has more bytes than the limit of {limits.max_file_bytes}: raise max_file_bytes "
            "(--max-file-bytes) to accept it"
        )
    return data


def _open(data: bytes, name: str) -> Image.Image:
    """Read the header.

    The plugin is called directly and not through `Image.open`, which warns or fails beyond `Image.MAX_IMAGE_PIXELS`:
    that is one number for the whole process, and ``limits`` is the caller's own.
    """
    if not data:
        raise ImageError(f"picture {name!r} is empty: give a file of {_FORMATS}")
    for plugin, signature in _SIGNATURES.items():
        if re.match(signature, data, re.DOTALL):
            try:
                module = import_module(f"PIL.{plugin}ImagePlugin")
            except ModuleNotFoundError:
                raise ImageError(
                    f"picture {name!r} is {plugin}, which this Pillow lacks: install a newer one"
                ) from None
            image: Image.Image = getattr(module, f"{plugin}ImageFile")(io.BytesIO(data))
            return image
    raise ImageError(f"picture {name!r} is of no format that is read here: convert it to one of {_FORMATS}")


def _from_pillow(image: Image.Image, name: str, limits: Limits) -> Picture:
    limits.check_pixels(*image.size, f"picture {name!r}")
    if 0 in image.size:
        raise ImageError(f"picture {name!r} has no pixels ({image.width}×{image.height}): give one that has")
    notes: list[str] = []
    with _typed_errors(name):
        # The tiles, which `load` consumes, name the raw mode that is decoded: RGB;16B, RGBA;16L, ….
        if ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I"):
            notes.append("colours of 16 bits were read at 8 bits")
        image.load()
        upright = _upright(image, notes)
        profile = image.info.get("icc_profile") or None
        alpha: FloatArray | None = None
        if image.mode.startswith("I"):
            # The range is asked of the original: turning an image leaves its format and tags behind.
            rgb, alpha = _deep_grey(upright, _grey_range(image, name), profile, notes)
        elif image.mode == "F":
            rgb = _grey_to_rgb(_unit_values(np.asarray(upright), name))
        else:
            rgb, alpha = _colours(upright, profile, notes)
    return _picture(rgb, alpha, name, notes)


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    # Not `ImageOps.exif_transpose`: it rewrites the EXIF data as well, and fails on tags that are none of our concern.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever the parser stumbles over
        notes.append("the EXIF data are damaged: the picture was taken as upright")
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _grey_range(image: Image.Image, name: str) -> tuple[int, int]:
    """Return the stored values of black and white in a picture of more than 8 bits (modes I;16… and I)."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ImageError(
            f"picture {name!r} holds signed or 32-bit whole numbers, which have no white: save it as uint16"
        )
    tags = getattr(image, "tag_v2", {})
    white = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    return (white, 0) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else (0, white)


def _deep_grey(
    image: Image.Image, black_white: tuple[int, int], profile: bytes | None, notes: list[str]
) -> tuple[Colours, FloatArray | None]:
    black, white = black_white
    stored = np.asarray(image)
    transparent = image.info.get("transparency")
    alpha = None if transparent is None else (stored != transparent).astype(np.float32)
    grey = (stored.astype(np.float32) - black) / np.float32(white - black)
    if profile is None or profile == srgb_profile():
        return _grey_to_rgb(grey), alpha
    # LittleCMS, as Pillow binds it, gives colours of 8 bits only.
    notes.append("greyscale of 16 bits was read at 8 bits, to follow its colour profile")
    return _bytes_of(_to_srgb(Image.fromarray(to_uint8(grey)), profile, notes)), alpha


def _colours(image: Image.Image, profile: bytes | None, notes: list[str]) -> tuple[Colours, FloatArray | None]:
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())  # premultiplied
    alpha: FloatArray | None = None
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = to_unit(np.asarray(rgba.getchannel("A")))
        image = image.convert("L") if image.mode in ("1", "L", "LA") else rgba.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    return _bytes_of(_to_srgb(image, profile, notes)), alpha


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Convert an image of mode L, RGB, CMYK or LAB to RGB, by its profile if that can be followed."""
    srgb = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":  # its own reference; a profile beside it has nothing to add
        lab = ImageCms.createProfile("LAB")
        return _transformed(image, ImageCms.ImageCmsProfile(lab), ImageCms.ImageCmsProfile(srgb))
    if profile is not None and profile != srgb_profile():
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            if image.mode == "L" and space == "RGB":
                image = image.convert("RGB")
            if space != {"L": "GRAY"}.get(image.mode, image.mode):
                raise ValueError(f"it is for {space}, the picture is {image.mode}")
            return _transformed(image, source, ImageCms.ImageCmsProfile(srgb))
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
            notes.append(f"the colour profile was ignored: {_reason(error)}")
    return image if image.mode == "RGB" else image.convert("RGB")


def _transformed(image: Image.Image, source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile) -> Image.Image:
    if image.mode == "L":
        # LittleCMS tabulates a grey curve at a few points, which is off by up to ten levels in the darks: convert each
        # of the 256 greys exactly, once.
        levels = Image.fromarray(np.arange(256, dtype=np.uint8)[np.newaxis])
        exact = ImageCms.Flags.NOOPTIMIZE
        table = ImageCms.profileToProfile(levels, source, target, outputMode="RGB", flags=exact)
        return Image.fromarray(np.asarray(table)[0][np.asarray(image)])
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert converted is not None  # None is for conversions in place
    return converted


def _from_array(array: NDArray[Any], limits: Limits) -> Picture:
    name = "<array>"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ImageError(f"array of shape {array.shape} is no picture: give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    limits.check_pixels(array.shape[1], array.shape[0], f"picture {name!r}")
    if array.size == 0:
        raise ImageError(f"array of shape {array.shape} has no pixels: give one that has")
    stored = array.reshape(*array.shape[:2], channels)
    if array.dtype == np.uint8 and channels == 3:
        # A copy, since the caller's array may change before it is painted.
        return _picture(stored.astype(np.uint8), None, name, [])
    values = _unit_values(stored, name)
    rgb = _grey_to_rgb(values[..., 0]) if channels == 1 else values[..., :3]
    return _picture(rgb, values[..., 3] if channels == 4 else None, name, [])


def _unit_values(array: NDArray[Any], name: str) -> FloatArray:
    """Scale stored values to 0–1 by their type."""
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    if array.dtype.kind != "f":
        raise ImageError(f"picture {name!r} is of {array.dtype}: give uint8, uint16, or floats in 0–1")
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"picture {name!r} holds values that are not finite (NaN or infinity): replace them")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ImageError(f"picture {name!r} holds floats in {low:g}–{high:g}: scale them to 0–1, or give uint8")
    values: FloatArray = np.clip(array, 0.0, 1.0).astype(np.float32)
    return values


def _bytes_of(image: Image.Image) -> ByteArray:
    """Return the bytes of an image of mode RGB; a few rows at a time, since Pillow gives them as two more copies."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIPE // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _grey_to_rgb(grey: FloatArray) -> FloatArray:
    return np.repeat(grey[..., np.newaxis], 3, axis=2)


def _picture(rgb: Colours, alpha: FloatArray | None, name: str, notes: list[str]) -> Picture:
    if alpha is None or (alpha == 1).all():
        return Picture(rgb if rgb.flags.c_contiguous else rgb.copy(), None, name, tuple(notes))
    alpha = np.ascontiguousarray(alpha)
    opacity = alpha[..., np.newaxis]
    return Picture(to_unit(rgb) * opacity + (1 - opacity), alpha, name, tuple(notes))


@contextlib.contextmanager
def _typed_errors(name: str) -> Iterator[None]:
    try:
        yield
    except ImpastoError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # A few plugins apply Pillow's own limit to frames and tiles.
        raise LimitError(
            f"picture {name!r} is larger than Pillow allows ({_reason(error)}): raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except MemoryError:
        raise LimitError(f"picture {name!r} does not fit in memory: make it smaller") from None
    except Exception as error:  # plugins raise nearly every built-in exception on damaged files
        raise ImageError(f"picture {name!r} is damaged or truncated: {_reason(error)}; get a whole copy") from None


def _reason(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())
