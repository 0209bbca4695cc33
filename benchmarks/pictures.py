"""What is painted: the field's customary pictures where they lie beside the checkout, otherwise generated ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from impasto.runtime.images import FloatArray, resize
from impasto.runtime.read_image import read_image

SHARED = Path(__file__).parents[2] / "shared"
"""Pictures and weights that developers have beside the project; a user's checkout has none."""

_CUSTOMARY = (
    ("tubingen", "starry_night"),
    ("tubingen", "the_scream"),
    ("tubingen", "shipwreck"),
    ("shipwreck", "starry_night"),
)
_GENERATED = (("noise-0", "noise-1"), ("noise-0", "noise-2"), ("noise-0", "noise-3"), ("noise-3", "noise-1"))
_GENERATED_SIZE = 512


def pairs() -> tuple[tuple[str, str], ...]:
    """Return four pairs of content and style, by the names that `square` knows."""
    return _CUSTOMARY if (SHARED / "images").is_dir() else _GENERATED


def square(name: str, size: int) -> FloatArray:
    """Return a picture's central square, (size, size, 3) float32 RGB in 0–1.

    ``noise-<seed>`` is generated; any other name is a picture in `SHARED`.
    """
    if name.startswith("noise-"):
        return resize(_pink_noise(int(name.removeprefix("noise-"))), (size, size))
    rgb = read_image(SHARED / "images" / f"{name}.jpg").rgb
    side = min(rgb.shape[:2])
    top, left = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
    return resize(rgb[top : top + side, left : left + side], (size, size))


def _pink_noise(seed: int) -> FloatArray:
    """Draw a picture whose amplitudes fall as 1/frequency, as those of photographs do."""
    n = _GENERATED_SIZE
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    frequency[0, 0] = np.inf  # no mean: it is set below
    white = np.random.RandomState(seed).standard_normal((n, n, 3))
    pink = np.fft.irfft2(np.fft.rfft2(white, axes=(0, 1)) / frequency[..., None], s=(n, n), axes=(0, 1))
    rgb: FloatArray = np.clip(0.5 + 0.2 * pink / pink.std(), 0, 1).astype(np.float32)
    return rgb
