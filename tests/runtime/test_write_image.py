"""Pictures go out as files that any program reads back as they were, byte for byte the same each time."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from impasto.errors import ImageError, OutputError, UnknownNameError, UsageError
from impasto.runtime.images import srgb_profile, to_uint8
from impasto.runtime.read_image import read_image
from impasto.runtime.write_image import IMAGE_FORMATS, encode_image, image_format, write_image

FORMATS = sorted(set(IMAGE_FORMATS.values()))
LOSSLESS = ["png", "tiff"]
WITH_ALPHA = ["png", "tiff", "webp"]
METADATA = {"Software": "Impasto", "preset": "johnson", "title": "Sternennacht – été 星"}


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("format", LOSSLESS)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (1, 64)])
def test_lossless_formats_keep_every_pixel(format: str, size: tuple[int, int]) -> None:
    rgb, alpha = pixels(1, *size, 3), pixels(2, *size)
    np.testing.assert_array_equal(np.asarray(opened(encode_image(rgb, format))), rgb)
    np.testing.assert_array_equal(
        np.asarray(opened(encode_image(rgb / 255, format, alpha / 255))), np.dstack([rgb, alpha])
    )


@pytest.mark.parametrize("format", LOSSLESS)
def test_what_is_written_is_read_back(format: str) -> None:
    rgb, alpha = pixels(3, 9, 6, 3), pixels(4, 9, 6)
    opaque = read_image(encode_image(rgb, format))
    assert (opaque.alpha, opaque.notes) == (None, ())
    np.testing.assert_array_equal(to_uint8(opaque.rgb), rgb)
    seen = read_image(encode_image(rgb, format, alpha))
    assert seen.alpha is not None
    np.testing.assert_array_equal(to_uint8(seen.alpha), alpha)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_lossy_formats_come_close(format: str) -> None:
    y, x = np.mgrid[0:1:48j, 0:1:64j]
    rgb = np.stack([x, y, (x + y) / 2], axis=2)
    error = np.asarray(opened(encode_image(rgb, format))).astype(int) - to_uint8(rgb)
    # A smooth picture at quality 95 loses a few levels to quantised coefficients and to the YCbCr round trip.
    assert np.sqrt(np.mean(error**2)) < 2.5
    assert np.abs(error).max() <= 12


def test_jpeg_keeps_chroma_at_full_resolution() -> None:
    # Columns of red and green in turn: with chroma halved, all columns would get the same hue.
    rgb = np.zeros((16, 16, 3))
    rgb[:, 0::2, 0] = 1
    rgb[:, 1::2, 1] = 1
    red, green, _ = np.moveaxis(np.asarray(opened(encode_image(rgb, "jpeg"))).astype(int), 2, 0)
    assert (red - green)[:, 0::2].min() > 150
    assert (red - green)[:, 1::2].max() < -150


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_quality_trades_bytes(format: str) -> None:
    rgb = pixels(5, 32, 32, 3)
    sizes = [len(encode_image(rgb, format, quality=quality)) for quality in (1, 50, 100)]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("format", WITH_ALPHA)
def test_alpha_where_the_format_has_it(format: str) -> None:
    alpha = np.repeat([[0.0], [1.0]], 8, axis=1).repeat(8, axis=0)
    image = opened(encode_image(pixels(6, 16, 8, 3), format, alpha))
    np.testing.assert_array_equal(np.asarray(image.getchannel("A")), to_uint8(alpha))


def test_jpeg_leaves_alpha_out() -> None:
    rgb = pixels(7, 8, 8, 3)
    assert encode_image(rgb, "jpeg", pixels(8, 8, 8)) == encode_image(rgb, "jpeg")


@pytest.mark.parametrize("format", FORMATS)
def test_the_profile_and_the_metadata_are_inside(format: str) -> None:
    image = opened(encode_image(pixels(9, 4, 4, 3), format, metadata=METADATA))
    assert image.info["icc_profile"] == srgb_profile()
    if format == "png":
        assert {key: image.info[key] for key in METADATA} == METADATA
    else:
        assert json.loads(image.getexif()[0x010E]) == METADATA


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_bytes_in_another_process(format: str) -> None:
    code = (
        "import sys; import numpy as np; from impasto.runtime.write_image import encode_image\n"
        "rgb = np.random.default_rng(10).integers(0, 256, (8, 8, 3), dtype=np.uint8)\n"
        "sys.stdout.buffer.write(encode_image(rgb, sys.argv[1], metadata={'a': 'b'}))"
    )
    there = subprocess.run([sys.executable, "-c", code, format], capture_output=True, check=True, timeout=60).stdout
    assert there == encode_image(pixels(10, 8, 8, 3), format, metadata={"a": "b"})


@pytest.mark.parametrize("suffix", [*IMAGE_FORMATS, ".PNG", ".Jpg"])
def test_the_suffix_names_the_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(path, pixels(11, 3, 5, 3))
    with Image.open(path) as image:
        assert image.format is not None
        assert image.format.lower() == image_format(path) == IMAGE_FORMATS[suffix.lower()]
        assert image.size == (5, 3)


@pytest.mark.parametrize("name", ["a", "a.gif", "a.png.txt", ".png", "a."])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"\.png, \.jpg, \.jpeg, \.webp, \.tif, \.tiff"):
        write_image(tmp_path / name, pixels(12, 3, 5, 3))
    assert list(tmp_path.iterdir()) == []


def test_overwriting_is_asked_for(tmp_path: Path) -> None:
    path, first, second = tmp_path / "a.png", pixels(13, 3, 3, 3), pixels(14, 3, 3, 3)
    write_image(path, first)
    with pytest.raises(OutputError, match="exists"):
        write_image(path, second)
    assert path.read_bytes() == encode_image(first)
    write_image(path, second, overwrite=True)
    assert path.read_bytes() == encode_image(second)


GOOD = np.zeros((4, 4, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"rgb": np.zeros((4, 4))}, ImageError),
        ({"rgb": np.zeros((4, 4, 4))}, ImageError),
        ({"rgb": np.zeros((0, 4, 3))}, ImageError),
        ({"rgb": np.zeros((4, 4, 3), dtype=np.int64)}, ImageError),
        ({"rgb": np.full((4, 4, 3), np.nan)}, ImageError),
        ({"rgb": GOOD, "alpha": np.zeros((3, 4))}, ImageError),
        ({"rgb": GOOD, "alpha": np.zeros((4, 4), dtype=bool)}, ImageError),
        ({"rgb": GOOD, "format": "gif"}, UnknownNameError),
        ({"rgb": GOOD, "format": "jpg"}, UnknownNameError),
        ({"rgb": GOOD, "quality": 0}, UsageError),
        ({"rgb": GOOD, "quality": 101}, UsageError),
        ({"rgb": GOOD, "quality": 95.0}, UsageError),
        ({"rgb": GOOD, "metadata": {"": "x"}}, OutputError),
        ({"rgb": GOOD, "metadata": {"k" * 80: "x"}}, OutputError),
        ({"rgb": GOOD, "metadata": {"星": "x"}}, OutputError),
        ({"rgb": GOOD, "metadata": {"a": "x\0y"}}, OutputError),
        ({"rgb": GOOD, "format": "jpeg", "metadata": {"a": "x" * 70_000}}, OutputError),
        ({"rgb": np.zeros((1, 16_384, 3)), "format": "webp"}, OutputError),
        ({"rgb": np.zeros((65_501, 1, 3)), "format": "jpeg"}, OutputError),
    ],
)
def test_what_cannot_be_written_is_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        encode_image(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("format", "side"), [("webp", 16_383), ("jpeg", 65_500)])
def test_the_longest_side_that_is_allowed_works(format: str, side: int) -> None:
    assert opened(encode_image(np.zeros((1, side, 3), dtype=np.uint8), format)).size == (side, 1)
