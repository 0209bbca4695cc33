"""The course of a painting as a moving picture."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from impasto.errors import OutputError, UnavailableError
from impasto.runtime.files import check_writable, write_atomically
from impasto.runtime.images import ByteArray
from impasto.runtime.loop import Step

FORMATS = (".webp", ".gif", ".mp4")
"""The suffixes of animations."""

LONG_SIDE = 512
"""Pixels of a frame at most; larger paintings are reduced."""
FRAMES = 120
"""Frames at most, over the iterations of all stages."""
PER_SECOND = 15
_LAST_SECONDS = 1
"""How much longer the last frame is shown, so that it can be looked at before the animation begins anew."""


class Animation:
    """Collects frames of a painting, and writes them at the end.

    ``path`` ends in ``.webp``, ``.gif`` or ``.mp4``; ``size`` is (width, height) of the result and ``iterations`` what
    the job will make. Frames are held in memory, at most `FRAMES` of at most `LONG_SIDE` pixels: 94 MB.

    Raises `OutputError` for another suffix or a file that cannot be written, `UnavailableError` for MP4 without PyAV.
    """

    def __init__(
        self, path: str | os.PathLike[str], size: tuple[int, int], iterations: int, *, overwrite: bool = False
    ) -> None:
        check_animation(path, overwrite)
        self._path, self._overwrite = Path(path), overwrite
        share = min(1.0, LONG_SIDE / max(size))
        self._size = (max(1, round(size[0] * share)), max(1, round(size[1] * share)))
        self._every = max(1, -(-iterations // (FRAMES - 1)))
        self._due = 0
        self._frames: list[ByteArray] = []

    def see(self, step: Step) -> None:
        """Take a frame of the best picture so far, if one is due."""
        if step.iteration >= self._due:
            self._due = step.iteration // self._every * self._every + self._every
            self._frames.append(self._frame(step.preview()))

    def write(self, last: ByteArray) -> None:
        """Write what was collected, and ``last``, the result, (H, W, 3) uint8; raises as `write_atomically` does."""
        frames = [*self._frames, self._frame(last)]
        encode = _encode_mp4 if self._path.suffix.lower() == ".mp4" else _encode_pillow
        write_atomically(self._path, encode(frames, self._path.suffix.lower()[1:]), self._overwrite)

    def _frame(self, picture: ByteArray) -> ByteArray:
        if (picture.shape[1], picture.shape[0]) == self._size:
            return picture
        image = Image.fromarray(picture).resize(self._size, Image.Resampling.LANCZOS)
        return np.asarray(image, dtype=np.uint8)


def check_animation(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Raise what `Animation` would raise."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise OutputError(f"animation {os.fspath(path)!r} has the suffix {suffix!r}: use one of {', '.join(FORMATS)}")
    if suffix == ".mp4" and find_spec("av") is None:
        raise UnavailableError(
            "MP4 needs PyAV, which is not installed: pip install 'impasto[video]', or write a .webp or .gif"
        )
    check_writable(path, overwrite)


def _encode_pillow(frames: Sequence[ByteArray], format: str) -> bytes:
    images = [Image.fromarray(frame) for frame in frames]
    shown = [round(1000 / PER_SECOND)] * (len(images) - 1) + [1000 * _LAST_SECONDS]
    buffer = io.BytesIO()
    options = {"quality": 85, "method": 2} if format == "webp" else {"optimize": False}
    images[0].save(buffer, format, save_all=True, append_images=images[1:], duration=shown, loop=0, **options)
    return buffer.getvalue()


def _encode_mp4(frames: Sequence[ByteArray], format: str) -> bytes:
    import av

    # Chroma of half the size, which every player shows, needs even sides; the rim is repeated, nothing is cut off.
    height, width = frames[0].shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = container.add_stream(codec, rate=Fraction(PER_SECOND))  # typed for every kind of stream
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        for picture in [*frames, *[frames[-1]] * (PER_SECOND * _LAST_SECONDS)]:
            frame = av.VideoFrame.from_ndarray(np.pad(picture, pad, mode="edge"), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
