"""Writing pictures: PNG, JPEG, WebP and TIFF files, tagged as sRGB, the same bytes for the same picture."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from impasto.errors import ImageError, OutputError, UnknownNameError, UsageError
from impasto.runtime.files import write_atomically
from impasto.runtime.images import ByteArray, Pixels, srgb_profile, to_uint8

IMAGE_FORMATS = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
}
"""The format that each suffix of an output file stands for."""

# The longest side that the format, or libjpeg, can hold.
_LONGEST_SIDE = {"jpeg": 65_500, "webp": 16_383}


def image_format(path: str | os.PathLike[str]) -> str:
    """Return the format that the path's suffix stands for; raise `OutputError` for any other suffix."""
    suffix = Path(path).suffix.lower()
    if suffix not in IMAGE_FORMATS:
        raise OutputError(
            f"output {os.fspath(path)!r} has the suffix {suffix!r}, which is no picture's: use one of "
            f"{', '.join(IMAGE_FORMATS)}"
        )
    return IMAGE_FORMATS[suffix]


def write_image(
    path: str | os.PathLike[str],
    rgb: Pixels,
    alpha: Pixels | None = None,
    *,
    quality: int = 95,
    overwrite: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a picture in the format of the path's suffix, whole or not at all.

    The picture is as in `encode_image`, the file as in `write_atomically`, and so are the errors; besides,
    `OutputError` for a suffix that is not in `IMAGE_FORMATS`.
    """
    save = _encoder(rgb, image_format(path), alpha, quality, metadata or {})
    write_atomically(path, save, overwrite)


def encode_image(
    rgb: Pixels,
    format: str = "png",
    alpha: Pixels | None = None,
    *,
    quality: int = 95,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Return a picture as the content of a file.

    ``rgb`` is (H, W, 3), sRGB, floating point in 0–1 (quantised by `to_uint8`) or uint8; ``alpha`` is (H, W) of the
    same types, not premultiplied. ``format`` is ``png``, ``jpeg``, ``webp`` or ``tiff``. JPEG has no opacity and
    leaves ``alpha`` out. ``quality``, 1 to 100, is that of JPEG, which keeps full chroma resolution (4:4:4), and
    WebP; PNG and TIFF are lossless. ``metadata`` become text chunks in PNG, and a JSON object in the image description
    (TIFF's, EXIF's) elsewhere. An sRGB profile is embedded, and no date: equal arguments and library versions give
    equal bytes.

    Raises `ImageError` for another shape or type or values that are not finite, `UnknownNameError` for another
    format, `UsageError` for another quality, `OutputError` when the format cannot hold the size or the metadata.
    """
    buffer = io.BytesIO()
    _encoder(rgb, format, alpha, quality, metadata or {})(buffer)
    return buffer.getvalue()


def _encoder(
    rgb: Pixels, format: str, alpha: Pixels | None, quality: int, metadata: Mapping[str, str]
) -> Callable[[BinaryIO], None]:
    """Return what writes a picture to a file; raise what can be known before."""
    if format not in IMAGE_FORMATS.values():
        raise UnknownNameError("image format", format, sorted(set(IMAGE_FORMATS.values())))
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise UsageError(f"quality {quality!r}: give a whole number from 1 to 100")
    image = _image(rgb, None if format == "jpeg" else alpha)
    longest = _LONGEST_SIDE.get(format)
    if longest is not None and max(image.size) > longest:
        raise OutputError(
            f"{format} holds at most {longest} pixels a side, the picture has {image.width}×{image.height}: use png or "
            "tiff"
        )
    options = _options(format, quality, metadata)

    def save(file: BinaryIO) -> None:
        try:
            image.save(file, format, icc_profile=srgb_profile(), **options)
        except (OSError, ValueError) as error:
            # What has a number is the file's.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise OutputError(
                f"{format} cannot hold this picture ({error}): use another format or less metadata"
            ) from None

    return save


def _image(rgb: Pixels, alpha: Pixels | None) -> Image.Image:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ImageError(f"an array of shape {rgb.shape} cannot be written: give (H, W, 3)")
    planes = [_quantised(rgb)]
    if alpha is not None:
        if alpha.shape != rgb.shape[:2]:
            raise ImageError(f"alpha of shape {alpha.shape} does not fit a picture of {rgb.shape[:2]}: resize it")
        planes.append(_quantised(alpha)[..., np.newaxis])
    return Image.fromarray(planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2))


def _quantised(values: Pixels) -> ByteArray:
    if values.dtype != np.uint8 and values.dtype.kind != "f":
        raise ImageError(f"an array of {values.dtype} cannot be written: give floats in 0–1, or uint8")
    return to_uint8(values)


def _options(format: str, quality: int, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the format's own arguments to Pillow's ``save``."""
    if format == "png":
        return {"pnginfo": _text_chunks(metadata)}
    description = json.dumps(dict(metadata)) if metadata else None  # ASCII, as EXIF wants it
    if format == "tiff":
        tags = {} if description is None else {int(ExifTags.Base.ImageDescription): description}
        return {"compression": "tiff_deflate", "tiffinfo": tags}
    options: dict[str, Any] = {"quality": quality}
    if format == "jpeg":
        options["subsampling"] = "4:4:4"
    if description is not None:
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = description
        options["exif"] = exif.tobytes()
    return options


def _text_chunks(metadata: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for keyword, text in metadata.items():
        # PNG specification, 11.3.3.2: 1 to 79 Latin-1 characters; NUL ends a keyword, and no text may hold one.
        latin = keyword.encode("latin-1", errors="ignore").decode("latin-1")
        if latin != keyword or not 1 <= len(keyword) <= 79 or "\0" in keyword + text:
            raise OutputError(f"PNG cannot hold the metadata {keyword!r}: use 1 to 79 Latin-1 characters, and no NUL")
        chunks.add_text(keyword, text)
    return chunks
