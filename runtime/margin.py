"""A margin around what is painted, which is cut off at the end.

At the rim a pixel is seen by fewer filters than inside, and what is painted there may come out as it likes; with a
few pixels of reflected content around the picture, the rim that shows is inside.
"""

from __future__ import annotations

import numpy as np

from impasto.runtime.images import FloatArray


def surrounded(picture: FloatArray, margin: int) -> FloatArray:
    """Return a picture, (H, W, 3), with its reflection around it, (H + 2·margin, W + 2·margin, 3)."""
    return np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="reflect") if margin else picture


def trimmed(picture: FloatArray, margin: int) -> FloatArray:
    """Return a picture without its margin: undo `surrounded`."""
    return picture[margin:-margin, margin:-margin] if margin else picture
