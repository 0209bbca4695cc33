"""The total variation of an image on the device: loss and gradient in one pass."""

from __future__ import annotations

import math

import numpy as np

from impasto.errors import LimitError, UnknownNameError, UsageError
from impasto.export.objective import TV_FORMS, TvForm
from impasto.runtime.gpu.protocol import Address, Device

_THREADS = 256
_TILE_ROWS = 32


class TotalVariation:
    """The total variation of a planar float32 image, (planes, height, width), in one of its forms.

    With dx and dy the forward differences to the right and down: ``squared`` is ``½(Σdx²+Σdy²)``, ``absolute`` is
    ``Σ|dx|+Σ|dy|``, whose slope is 0 where a difference is, and ``power`` is ``Σ(dx²+dy²)^power`` over the
    (height-1) × (width-1) window, whose slope is 0 where both differences are (Mahendran & Vedaldi,
    https://arxiv.org/abs/1412.0035). A form that is a mean is the sum with a weight that many times smaller.

    ``loss_count`` is the number of partial losses, float64, which add up to the loss; they are the same bits for the
    same image every time. Raises `UnknownNameError` for another form, `UsageError` unless ``power`` is finite and
    positive, `LimitError` for planes of 2³¹ pixels or more.
    """

    def __init__(
        self, device: Device, height: int, width: int, form: TvForm, *, planes: int = 3, power: float = 1.25
    ) -> None:
        if form not in TV_FORMS:
            raise UnknownNameError("total variation", form, TV_FORMS)
        if not (math.isfinite(power) and power > 0):
            raise UsageError(f"power {power} of the total variation: give a finite number above 0")
        if height * width >= 2**31:
            raise LimitError(f"{width} × {height} pixels are too many for the total variation: give fewer than 2³¹")
        vector = 4 if width % 4 == 0 else 1
        kernel = "five_quarters" if form == "power" and power == 1.25 else form
        self._kernel = device.kernel("tv", f"tv_{kernel}" + ("_float4" if vector == 4 else ""))
        self._none = device.kernel("tv", "tv_none")
        self._grid = -(-width // (32 * vector)) * -(-height // _TILE_ROWS), planes
        self._size = np.int32(height), np.int32(width)
        self._elements = np.int64(planes * height * width)
        self._power = np.float32(power)
        self.loss_count = self._grid[0] * planes

    def enqueue(
        self,
        image: Address,
        gradient: Address,
        losses: Address,
        *,
        weight: float,
        upstream: Address = 0,
        factor: float = 1.0,
    ) -> None:
        """Enqueue ``gradient = factor·upstream + weight·∂TV/∂image`` and the weighted partial losses.

        ``upstream`` is float32 of the image's shape, or the null pointer, and may be ``gradient`` itself; ``image``
        may be neither's. Addresses are multiples of 16. With a weight of zero the image is not looked at and the
        losses are zero.
        """
        scale = np.float32(factor)
        if weight == 0:
            self._none((self.loss_count, 1), _THREADS, upstream, gradient, losses, self._elements, scale)
            return
        arguments = *self._size, np.float64(weight), scale, self._power
        self._kernel(self._grid, _THREADS, image, upstream, gradient, losses, *arguments)
