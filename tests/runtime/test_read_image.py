"""Every kind of picture becomes the same sRGB values; every hostile one, a typed error."""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, features

from impasto.errors import ImageError, ImpastoError, LimitError
from impasto.runtime.images import Picture, to_uint8
from impasto.runtime.limits import Limits
from impasto.runtime.read_image import read_image

UNLIMITED = Limits(**dict.fromkeys(Limits().to_json()))
LOSSLESS = ["PNG", "TIFF", "BMP", "PPM"]


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def assert_pixels(picture: Picture, rgb: np.ndarray) -> None:
    """Compare to 0–255 values; each is one division away, correctly rounded, from the float it must be."""
    assert picture.rgb.dtype == np.float32
    assert picture.rgb.flags.c_contiguous
    np.testing.assert_array_equal(picture.rgb, rgb.astype(np.float32) / np.float32(255))


def tiff(pixel_data: bytes, width: int, height: int, **tags: int) -> bytes:
    """An uncompressed greyscale TIFF of one strip, by hand, for what Pillow does not write."""
    entries = {
        256: width,
        257: height,
        258: 16,
        259: 1,
        262: 1,
        273: 0,
        277: 1,
        278: height,
        279: len(pixel_data),
        339: 1,
    }
    entries |= {{"bits": 258, "photometric": 262, "sample_format": 339}[key]: value for key, value in tags.items()}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", 0) + pixel_data


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour_type: int, scanlines: bytes, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(scanlines))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + png_chunk(b"IEND", b"")


# Sources


@pytest.mark.parametrize("format", LOSSLESS)
def test_a_file_by_path_bytes_and_handle(tmp_path: Path, format: str) -> None:
    rgb = pixels(1, 5, 7, 3)
    path = tmp_path / "picture.misnamed"
    path.write_bytes(saved(Image.fromarray(rgb), format))
    with path.open("rb") as file:
        sources = [path, str(path), path.read_bytes(), file, io.BytesIO(path.read_bytes())]
        pictures = [read_image(source) for source in sources]
    for picture in pictures:
        assert_pixels(picture, rgb)
        assert (picture.alpha, picture.notes, picture.size) == (None, (), (7, 5))
    assert [picture.name for picture in pictures] == [str(path), str(path), "<bytes>", str(path), "<file>"]


def test_a_handle_is_read_from_where_it_stands() -> None:
    rgb = pixels(2, 3, 3, 3)
    file = io.BytesIO(b"header" + saved(Image.fromarray(rgb)))
    file.seek(6)
    assert_pixels(read_image(file), rgb)


@pytest.mark.parametrize(
    "format", ["JPEG", "WEBP", "GIF", *(["AVIF"] if "avif" in features.get_supported_modules() else [])]
)
def test_other_formats(format: str) -> None:
    colour = np.full((16, 24, 3), (200, 120, 40), dtype=np.uint8)
    picture = read_image(saved(Image.fromarray(colour), format))
    assert picture.size == (24, 16)
    assert np.abs(to_uint8(picture.rgb).astype(int) - colour).max() <= 4  # a flat colour through YCbCr at 8 bits


def test_a_pillow_image_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = pixels(3, 4, 6, 3)
    path.write_bytes(saved(Image.fromarray(rgb), exif=exif))
    with Image.open(path) as image:
        picture = read_image(image)
        assert (image.size, image.mode, image.getexif()[0x0112]) == ((6, 4), "RGB", 6)
        np.testing.assert_array_equal(np.asarray(image), rgb)
    assert_pixels(picture, np.rot90(rgb, -1))
    assert picture.name == str(path)
    assert read_image(Image.fromarray(rgb)).name == "<Pillow image>"


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (2, 9)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays(shape: tuple[int, int], dtype: Any, channels: int | None) -> None:
    values = np.random.default_rng(4).random(shape if channels is None else (*shape, channels))
    kind = np.dtype(dtype).kind
    top = 1 if kind == "f" else np.iinfo(dtype).max
    stored = (values if kind == "f" else np.rint(values * top)).astype(dtype)
    picture = read_image(stored)
    expected = stored.astype(np.float64).reshape(*shape, -1) / top
    alpha = expected[..., 3:] if channels == 4 else np.ones((*shape, 1))
    # Three roundings to float32 at most: of the value, and of the product and the sum over white.
    np.testing.assert_allclose(picture.rgb, expected[..., :3] * alpha + 1 - alpha + np.zeros(3), atol=2e-7)
    if channels == 4:
        assert picture.alpha is not None
        np.testing.assert_allclose(picture.alpha, alpha[..., 0], atol=1e-7)
    else:
        assert picture.alpha is None


def test_an_array_is_neither_changed_nor_shared() -> None:
    array = np.random.default_rng(5).random((4, 4, 3), dtype=np.float32)
    before = array.copy()
    picture = read_image(array)
    picture.rgb[...] = 0
    np.testing.assert_array_equal(array, before)


def test_views_of_any_strides_are_read() -> None:
    array = pixels(6, 8, 10, 3)
    assert_pixels(read_image(array[::-2, 1::3]), array[::-2, 1::3])
    assert_pixels(read_image(np.moveaxis(np.moveaxis(array, 2, 0).copy(), 0, 2)), array)


def test_floats_off_by_rounding_are_clipped() -> None:
    picture = read_image(np.array([[-1e-7, 1 + 1e-6]], dtype=np.float64))
    np.testing.assert_array_equal(picture.rgb[0, :, 0], [0, 1])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5),
        np.zeros((3, 5, 7)),
        np.zeros((5, 5, 2)),
        np.zeros((1, 5, 5, 3)),
        np.zeros((0, 5, 3)),
        np.zeros((5, 0)),
        np.zeros((5, 5, 3), dtype=bool),
        np.zeros((5, 5, 3), dtype=np.int64),
        np.zeros((5, 5, 3), dtype=np.uint32),
        np.zeros((5, 5, 3), dtype=complex),
        np.full((5, 5, 3), None),
        np.full((5, 5, 3), np.nan),
        np.array([[0.5, np.nan]]),
        np.array([[0.5, np.inf]]),
        np.array([[0.5, -np.inf]]),
        np.array([[0.5, 1.001]]),
        np.array([[0.5, -0.001]]),
        np.full((5, 5, 3), 255.0),
        np.full((5, 5), 1e300),
    ],
    ids=lambda array: f"{array.shape}-{array.dtype}-{array.flat[0] if array.size else ''}",
)
def test_arrays_that_are_no_pictures(array: np.ndarray) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(array)
    assert "\n" not in str(caught.value)


# Modes


def palette_image(seed: int) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A palette image with its indices and its colours."""
    indices, colours = pixels(seed, 5, 7) % 16, pixels(seed + 1, 16, 3)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(colours.tobytes())
    return image, indices, colours


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "GIF"])
def test_palette(format: str) -> None:
    image, indices, colours = palette_image(10)
    assert_pixels(read_image(saved(image, format)), colours[indices])


def test_palette_with_one_transparent_colour() -> None:
    image, indices, colours = palette_image(12)
    for format in ("PNG", "GIF"):
        picture = read_image(saved(image, format, transparency=3))
        assert picture.alpha is not None
        np.testing.assert_array_equal(picture.alpha, indices != 3)
        assert_pixels(picture, np.where((indices == 3)[..., np.newaxis], 255, colours[indices]))


def test_palette_with_an_opacity_for_each_colour() -> None:
    image, indices, colours = palette_image(14)
    opacity = pixels(16, 16)
    picture = read_image(saved(image, transparency=opacity.tobytes()))
    assert picture.alpha is not None
    np.testing.assert_array_equal(to_uint8(picture.alpha), opacity[indices])
    alpha = opacity[indices][..., np.newaxis] / 255
    np.testing.assert_allclose(picture.rgb, colours[indices] / 255 * alpha + 1 - alpha, atol=2e-7)


@pytest.mark.parametrize("format", LOSSLESS)
def test_greyscale_and_bilevel(format: str) -> None:
    grey = pixels(20, 5, 7)
    assert_pixels(read_image(saved(Image.fromarray(grey), format)), np.dstack([grey] * 3))
    bits = grey > 127
    assert_pixels(read_image(saved(Image.fromarray(bits), format)), np.dstack([bits * 255] * 3))


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB"])
def test_one_transparent_value(mode: str) -> None:
    """PNG's tRNS chunk outside palettes: one value is transparent, all others are opaque."""
    grey = np.array([[0, 255, 0], [255, 255, 0]], dtype=np.uint8)
    stored = {
        "1": Image.fromarray(grey > 0),
        "L": Image.fromarray(grey),
        "I;16": Image.fromarray(grey.astype(np.uint16)),
        "RGB": Image.fromarray(np.dstack([grey, grey, grey])),
    }[mode]
    picture = read_image(saved(stored, transparency=(0, 0, 0) if mode == "RGB" else 0))
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, grey != 0)
    assert (picture.rgb[grey == 0] == 1).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_opacity_is_kept_and_laid_over_white(mode: str) -> None:
    stored = pixels(21, 6, 5, 4)
    if mode == "RGBA":
        image, colour = Image.fromarray(stored), stored[..., :3] / 255
    else:
        image = Image.merge(mode, [Image.fromarray(np.ascontiguousarray(stored[..., c])) for c in (0, 3)])
        colour = stored[..., [0, 0, 0]] / 255
    alpha = stored[..., 3:] / 255
    if mode == "PA":  # which files that Pillow writes cannot hold
        palette = pixels(29, 256, 3)
        image.putpalette(palette.tobytes())
        colour = palette[stored[..., 0]] / 255
        picture = read_image(image)
    else:
        picture = read_image(saved(image))
    assert picture.alpha is not None
    np.testing.assert_array_equal(to_uint8(picture.alpha), stored[..., 3])
    np.testing.assert_allclose(picture.rgb, colour * alpha + 1 - alpha, atol=2e-7)
    assert 0 <= picture.rgb.min() <= picture.rgb.max() <= 1


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_opacity(mode: str) -> None:
    straight = np.full((2, 2, 4), (90, 90, 90, 128), dtype=np.uint8)
    picture = read_image(Image.fromarray(straight).convert(mode.upper()).convert(mode))
    assert picture.alpha is not None
    np.testing.assert_array_equal(to_uint8(picture.alpha), straight[..., 3])
    # Premultiplied values of 8 bits lose up to half a level, of 255.
    np.testing.assert_allclose(picture.rgb, 90 / 255 * 128 / 255 + 1 - 128 / 255, atol=1 / 255)


def test_full_opacity_is_none() -> None:
    rgb = pixels(22, 4, 4, 3)
    opaque = np.dstack([rgb, np.full((4, 4), 255, dtype=np.uint8)])
    for source in (opaque, Image.fromarray(opaque), saved(Image.fromarray(opaque))):
        picture = read_image(source)
        assert picture.alpha is None
        assert_pixels(picture, rgb)


@pytest.mark.parametrize("mode", ["RGBX", "YCbCr", "HSV", "CMYK", "LAB"])
def test_other_colour_models(mode: str) -> None:
    colours = np.array([[[255, 255, 255], [0, 0, 0], [128, 128, 128]]], dtype=np.uint8)
    image = Image.fromarray(colours)
    if mode == "LAB":
        converted = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
        assert converted is not None
        image = converted
    else:
        image = image.convert(mode)
    picture = read_image(image)
    assert np.abs(to_uint8(picture.rgb).astype(int) - colours).max() <= 1  # L of 8 bits has fewer greys than sRGB
    assert picture.alpha is None


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_greyscale_of_16_bits_keeps_them_all(format: str) -> None:
    grey = np.random.default_rng(23).integers(0, 65536, (5, 7), dtype=np.uint16)
    grey[0, :2] = 0, 65535
    if format == "PPM":
        picture = read_image(b"P5 7 5 65535\n" + grey.astype(">u2").tobytes())
    else:
        picture = read_image(saved(Image.fromarray(grey), format))
    np.testing.assert_array_equal(picture.rgb[..., 1], grey.astype(np.float32) / np.float32(65535))
    np.testing.assert_array_equal(np.rint(picture.rgb[..., 2] * 65535.0), grey)
    assert picture.notes == ()


def test_tiff_of_12_bits_and_white_is_zero() -> None:
    twelve = read_image(tiff(bytes([0xFF, 0xF8, 0x00, 0x00, 0x10, 0x00]), 2, 2, bits=12))
    np.testing.assert_allclose(twelve.rgb[..., 0], np.array([[4095, 2048], [1, 0]]) / 4095, atol=1e-7)
    stored = np.array([[0, 65535], [30000, 1]], dtype="<u2")
    inverted = read_image(tiff(stored.tobytes(), 2, 2, photometric=0))
    np.testing.assert_allclose(inverted.rgb[..., 0], 1 - stored / 65535, atol=1e-7)


def test_tiff_numbers_without_a_range_are_refused() -> None:
    signed = np.array([1, -5, 7, 9], dtype="<i2").tobytes()
    with pytest.raises(ImageError, match="uint16"):
        read_image(tiff(signed, 2, 2, sample_format=2))
    with pytest.raises(ImageError, match="uint16"):
        read_image(tiff(np.arange(4, dtype="<u4").tobytes(), 2, 2, bits=32))


def test_float_files_follow_the_rule_for_arrays() -> None:
    grey = np.random.default_rng(24).random((3, 5), dtype=np.float32)
    np.testing.assert_array_equal(read_image(saved(Image.fromarray(grey), "TIFF")).rgb[..., 0], grey)
    for value in (np.nan, 2.0):
        with pytest.raises(ImageError):
            read_image(saved(Image.fromarray(np.full_like(grey, value)), "TIFF"))


def test_colour_of_16_bits_comes_at_8_and_says_so() -> None:
    values = np.random.default_rng(25).integers(0, 65536, (2, 3, 3)).astype(">u2")
    picture = read_image(png(3, 2, 16, 2, b"".join(b"\0" + row.tobytes() for row in values)))
    np.testing.assert_allclose(picture.rgb, values / 65535, atol=1 / 255)
    assert "16 bits" in " ".join(picture.notes)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    lossless = {"lossless": True} if format == "WEBP" else {}
    picture = read_image(saved(frames[0], format, save_all=True, append_images=frames[1:], **lossless))
    assert_pixels(picture, np.broadcast_to([250, 0, 0], (4, 6, 3)))


# Orientation

# How an upright picture U is stored, from the places that EXIF 2.3 (tag 0x0112) gives row 0 and column 0.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda u: u,
    2: lambda u: u[:, ::-1],  # row 0 top, column 0 right
    3: lambda u: u[::-1, ::-1],  # bottom, right
    4: lambda u: u[::-1],  # bottom, left
    5: lambda u: u.swapaxes(0, 1),  # left, top
    6: lambda u: u[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda u: u[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda u: u[::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation(format: str, mode: str, orientation: int) -> None:
    upright = pixels(30, 3, 5, 4)
    upright[..., 3] |= 1
    if mode == "P":
        upright[..., :3] = upright[..., :1]
    stored = np.ascontiguousarray(STORED[orientation](upright))
    image = {
        "L": lambda: Image.fromarray(np.ascontiguousarray(stored[..., 0])),
        "RGB": lambda: Image.fromarray(np.ascontiguousarray(stored[..., :3])),
        "RGBA": lambda: Image.fromarray(stored),
        "P": lambda: Image.fromarray(np.ascontiguousarray(stored[..., 0])).convert("P"),
        "I;16": lambda: Image.fromarray(stored[..., 0].astype(np.uint16) * 257),
    }[mode]()
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_image(saved(image, format, exif=exif))
    assert picture.size == (5, 3)
    seen = picture.rgb
    if mode == "RGBA":
        assert picture.alpha is not None
        np.testing.assert_array_equal(to_uint8(picture.alpha), upright[..., 3])
        alpha = upright[..., 3:] / 255
        np.testing.assert_allclose(seen, upright[..., :3] / 255 * alpha + 1 - alpha, atol=2e-7)
    elif mode == "RGB":
        assert_pixels(picture, upright[..., :3])
    else:
        assert_pixels(picture, np.dstack([upright[..., 0]] * 3))


@pytest.mark.parametrize("orientation", STORED)
def test_orientation_of_a_jpeg(orientation: int) -> None:
    # Blocks of 16 px, so that what JPEG does to a pixel does not hide which it is.
    upright = np.kron(np.array([[0, 90, 160], [250, 40, 120]], dtype=np.uint8), np.ones((16, 16), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    picture = read_image(saved(image, "JPEG", exif=exif, quality=95))
    assert np.abs(to_uint8(picture.rgb)[..., 0].astype(int) - upright).max() <= 3


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    rgb = pixels(31, 3, 5, 3)
    assert_pixels(read_image(saved(Image.fromarray(rgb), exif=exif)), rgb)


def test_damaged_exif_is_noted() -> None:
    rgb = pixels(32, 3, 5, 3)
    picture = read_image(saved(Image.fromarray(rgb), exif=b"Exif\0\0not a TIFF header"))
    assert_pixels(picture, rgb)
    assert "EXIF" in " ".join(picture.notes)


# Colour profiles


def icc(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile, version 2 (ICC.1:2001-04), with these tags and the required descriptions."""
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)  # D50, as s15Fixed16
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": white,
    } | tags
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += padded
    size = offset + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"test", 0x02400000, b"prtr", space, connection)
    header += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white[8:]
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def linear_grey_profile() -> bytes:
    return icc(b"GRAY", {b"kTRC": b"curv\0\0\0\0" + struct.pack(">I", 0)})  # no entries: the identity


def black_only_cmyk_profile() -> bytes:
    """A press whose C, M and Y inks are invisible: lightness is 100·(1 − K)."""
    identity = bytes(range(256))
    # lut8Type: 4 inputs, 3 outputs, 2 grid points; the last input, K, varies fastest.
    grid = bytes(value for _ in range(8) for lightness in (255, 0) for value in (lightness, 128, 128))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + identity * 4 + grid + identity * 3
    return icc(b"CMYK", {b"A2B0": lut}, b"Lab ")


def swapped_primaries_profile() -> bytes:
    """SRGB whose red and green have changed places."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert profile.count(b"rXYZ") == profile.count(b"gXYZ") == 1
    return profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_rgb_profile(format: str, with_alpha: bool) -> None:
    stored = pixels(40, 9, 8, 4 if with_alpha else 3)
    picture = read_image(saved(Image.fromarray(stored), format, icc_profile=swapped_primaries_profile()))
    expected = stored[..., [1, 0, 2]] / 255
    if with_alpha:
        assert picture.alpha is not None
        np.testing.assert_array_equal(to_uint8(picture.alpha), stored[..., 3])
        expected = expected * stored[..., 3:] / 255 + 1 - stored[..., 3:] / 255
    # Both curves are sRGB's, so that only the order changes, but for the rounding of 8 bits.
    np.testing.assert_allclose(picture.rgb, expected, atol=1.01 / 255)
    assert picture.notes == ()


def test_palette_with_a_profile() -> None:
    image, indices, colours = palette_image(41)
    picture = read_image(saved(image, icc_profile=swapped_primaries_profile()))
    np.testing.assert_allclose(picture.rgb, colours[indices][..., [1, 0, 2]] / 255, atol=1.01 / 255)


def srgb_encoded(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_grey_profile() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.dstack([srgb_encoded(grey / 255)] * 3)
    picture = read_image(saved(Image.fromarray(grey), icc_profile=linear_grey_profile()))
    np.testing.assert_allclose(picture.rgb, expected, atol=1.01 / 255)
    deep = read_image(saved(Image.fromarray(grey.astype(np.uint16) * 257), icc_profile=linear_grey_profile()))
    np.testing.assert_allclose(deep.rgb, expected, atol=1.01 / 255)
    assert "8 bits" in " ".join(deep.notes)


def test_grey_with_an_rgb_profile() -> None:
    grey = pixels(42, 4, 4)
    picture = read_image(saved(Image.fromarray(grey), icc_profile=swapped_primaries_profile()))
    # Exchanged primaries leave grey as it is.
    np.testing.assert_allclose(picture.rgb, np.dstack([grey] * 3) / 255, atol=1.01 / 255)
    assert picture.notes == ()


@pytest.mark.parametrize("format", ["TIFF", "JPEG"])
def test_cmyk_profile(format: str) -> None:
    inks = np.zeros((8, 24, 4), dtype=np.uint8)
    inks[:, 8:16] = 255, 255, 255, 0
    inks[:, 16:] = 0, 0, 0, 255
    image = Image.fromarray(inks, mode="CMYK")
    followed = to_uint8(read_image(saved(image, format, icc_profile=black_only_cmyk_profile())).rgb)[4, 4::8, 0]
    plain = to_uint8(read_image(saved(image, format)).rgb)[4, 4::8, 0]
    np.testing.assert_allclose(followed, [255, 255, 0], atol=3)
    np.testing.assert_allclose(plain, [255, 0, 0], atol=3)


@pytest.mark.parametrize(
    "profile",
    [b"nonsense", linear_grey_profile(), black_only_cmyk_profile(), swapped_primaries_profile()[:200]],
    ids=["nonsense", "grey", "cmyk", "cut"],
)
def test_a_profile_that_cannot_be_followed_is_noted(profile: bytes) -> None:
    rgb = pixels(43, 4, 5, 3)
    picture = read_image(saved(Image.fromarray(rgb), icc_profile=profile))
    assert_pixels(picture, rgb)
    assert len(picture.notes) == 1
    assert "profile was ignored" in picture.notes[0]


# Limits


def test_file_bytes(tmp_path: Path) -> None:
    data = saved(Image.fromarray(pixels(50, 8, 8, 3)))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    exact, less = Limits(max_file_bytes=len(data)), Limits(max_file_bytes=len(data) - 1)
    for source in (lambda: path, lambda: data, lambda: io.BytesIO(data)):
        assert read_image(source(), exact).size == (8, 8)
        with pytest.raises(LimitError, match="max_file_bytes"):
            read_image(source(), less)


def test_a_large_file_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as file:
        file.truncate(2**34)  # sparse: it takes no room, but reading it would
    with pytest.raises(LimitError, match=f"has {2**34} bytes"):
        read_image(path)


def test_a_file_without_end_is_not_read_to_it() -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert 0 <= size <= 1001
            return bytes(size)

    with pytest.raises(LimitError, match="1000"):
        read_image(Endless(), Limits(max_file_bytes=1000))  # type: ignore[arg-type]


def test_pixels() -> None:
    image = Image.fromarray(pixels(51, 6, 7, 3))
    exact, less = Limits(max_pixels=42), Limits(max_pixels=41)
    for source in (image, saved(image), np.asarray(image)):
        assert read_image(source, exact).size == (7, 6)
        with pytest.raises(LimitError, match=r"7×6 = 42 pixels.*max_pixels"):
            read_image(source, less)


@pytest.mark.parametrize("format", ["png", "gif", "bmp", "ppm", "tiff"])
def test_a_bomb_is_refused_by_its_header_without_a_warning(format: str) -> None:
    side = 60_000  # 3.6e9 pixels, beyond what Pillow itself would open
    bombs = {
        "png": png(side, side, 1, 0, b""),
        "gif": b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0) + b"\x2c" + bytes(9) + b"\x02\x01\x00\x00;",
        "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0),
        "ppm": b"P6 %d %d 255\n" % (side, side),
        "tiff": tiff(b"", side, side),
    }
    with pytest.raises(LimitError, match=r"60000×60000 = 3600000000 pixels"):
        read_image(bombs[format])


def test_limits_are_the_callers_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    rgb = pixels(52, 8, 8, 3)
    for format in ("PNG", "JPEG", "BMP", "PPM", "GIF"):
        assert read_image(saved(Image.fromarray(rgb), format), UNLIMITED).size == (8, 8)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("alarm", [Image.DecompressionBombError, Image.DecompressionBombWarning])
def test_a_plugin_that_applies_pillows_limit_itself(monkeypatch: pytest.MonkeyPatch, alarm: type[Exception]) -> None:
    def load(image: Image.Image) -> None:
        raise alarm("Image size (64 pixels) exceeds limit")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)  # which plugins do varies between versions
    with pytest.raises(LimitError, match="MAX_IMAGE_PIXELS"):
        read_image(saved(Image.fromarray(pixels(53, 8, 8, 3))), UNLIMITED)


# Hostile files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\0", "convert it"),
        (b"just text", "convert it"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "convert it"),
        (b"%PDF-1.7\n", "convert it"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "convert it"),
        (b"P9 1 1 255\n\0", "convert it"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff", "damaged"),
        (b"GIF89a", "damaged"),
        (b"BM", "damaged"),
        (b"P6 ", "damaged"),
        (b"P6 0 5 255\n", "damaged"),
        (b"P6 2 2 255\n123", "damaged"),
        (b"II*\0", "damaged"),
        (b"RIFF\0\0\0\0WEBP", "damaged"),
        (png(0, 5, 8, 0, b""), "damaged"),
        (png(5, 5, 7, 0, b""), "damaged"),
        (png(5, 5, 8, 0, b"\0" * 7), "damaged"),
    ],
)
def test_what_is_no_picture(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_image(data)
    assert "\n" not in str(caught.value)
    if message == "convert it":
        assert "PNG, JPEG, WebP, TIFF, GIF, BMP, PNM, AVIF" in str(caught.value)


def test_a_plugin_that_pillow_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.AvifImagePlugin", None)  # as before Pillow 11.3
    with pytest.raises(ImageError, match="install a newer"):
        read_image(b"\0\0\0\x20ftypavif" + bytes(20))


def test_other_formats_of_pillow_are_not_reached() -> None:
    image = Image.fromarray(pixels(60, 8, 8, 3))
    for format in ("EPS", "PDF", "TGA", "ICO", "PCX", "SGI"):
        with pytest.raises(ImageError, match="no format that is read"):
            read_image(saved(image, format))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_truncated_anywhere(format: str) -> None:
    data = saved(Image.fromarray(pixels(61, 24, 24, 3)), format)
    for kept in sorted({1, 2, 5, 11, 16, 30, *range(40, len(data) * 9 // 10, 97)}):
        with pytest.raises(ImageError):
            read_image(data[:kept])


def mend_checksums(data: np.ndarray) -> None:
    """Give a PNG's chunks the checksums of what they hold, so that damage gets past the first test there is."""
    start = 8
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4].tobytes(), "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = np.frombuffer(struct.pack(">I", zlib.crc32(data[start + 4 : end])), dtype=np.uint8)
        start = end + 4


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_damaged_bytes_end_in_a_picture_or_a_typed_error(format: str) -> None:
    rng = np.random.default_rng(62)
    image = Image.fromarray(pixels(63, 9, 11, 4 if format in ("PNG", "TIFF", "WEBP") else 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif, "icc_profile": swapped_primaries_profile()} if format not in ("GIF", "BMP", "PPM") else {}
    whole = np.frombuffer(saved(image, format, **options), dtype=np.uint8)
    pictures, errors = 0, []
    for _ in range(150):
        data = whole.copy()
        # Headers are where a wrong byte does most.
        places = rng.integers(0, min(len(data), rng.choice([40, 400, len(data)])), rng.integers(1, 5))
        data[places] = rng.integers(0, 256, len(places))
        if format == "PNG":
            mend_checksums(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, and a filter of "error" hides what follows
            try:
                picture = read_image(data.tobytes(), Limits(max_pixels=100_000))
            except ImpastoError as error:
                errors.append(str(error))
            else:
                pictures += 1
                assert picture.rgb.ndim == 3
                assert np.isfinite(picture.rgb).all()
    assert pictures
    assert errors
    assert not any("\n" in error for error in errors)


@pytest.mark.parametrize("name", ["missing.png", "missing/a.png", "", "a\0b.png", "\ud800.png", "x" * 300])
def test_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError) as caught:
        read_image(name)
    assert "\n" not in str(caught.value)


def test_folders_and_forbidden_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="folder"):
        read_image(tmp_path)
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.new("L", (1, 1))))
    path.chmod(0)
    if not os.access(path, os.R_OK):  # root reads it all the same
        with pytest.raises(ImageError, match="Permission denied"):
            read_image(path)


@pytest.mark.parametrize("source", [None, 5, [1, 2], {"a": 1}, object()])
def test_other_sources(source: Any) -> None:
    with pytest.raises(ImageError, match=type(source).__name__):
        read_image(source)


def test_handles_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"ascii")
    with path.open() as text, pytest.raises(ImageError, match="binary"):
        read_image(text)  # type: ignore[arg-type]
    with path.open("ab") as file, pytest.raises(ImageError, match="cannot be read"):
        read_image(file)
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(file)  # closed


def test_a_pillow_image_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.fromarray(pixels(64, 64, 64, 3)))[:-3000])
    with Image.open(path) as image, pytest.raises(ImageError, match="truncated"):
        read_image(image)
    with pytest.raises(ImageError, match="no pixels"):
        read_image(Image.new("RGB", (0, 5)))
