"""The cotangent of a tap on the device, in one pass: Gram or covariance, content, and what comes from above."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from impasto.errors import UsageError
from impasto.runtime.gpu.protocol import Address, Device
from impasto.runtime.kernels.gram import check_features, gram_plan, has_wide_tiles

_POSITIONS = 128
_THREADS = 256


class GramVjp:
    """``mask·(seed·F' + bias + 2λc/s²·(F' - P') + upstream)`` for features F' = s·F, (channels, positions), planar.

    ``dtype``, float32, float16 or bfloat16, is that of F', P', upstream and the cotangent; sums are float32. With half
    types the seed is rounded to them, times a power of two (`Gram.compare` finds its range), for tensor cores.

    ``loss_count`` is the number of partial losses of the content term, float64, which add up to it. Raises as `Gram`.
    """

    def __init__(
        self, device: Device, channels: int, positions: int, dtype: np.dtype[Any], *, scale: float = 1.0
    ) -> None:
        suffix = check_features(channels, positions, dtype)
        if not (math.isfinite(scale) and scale > 0):
            raise UsageError(f"scale {scale} of the features: give a finite number above 0")
        columns = -(-positions // _POSITIONS)
        wide = channels > 64 and has_wide_tiles(device, suffix)
        # Tiles of 128 channels read seed and features half as often, but must leave no multiprocessor without a block.
        wide = wide and -(-channels // 128) * columns >= device.multiprocessors
        self._kernel = device.kernel("gram_vjp", f"gram_vjp{'_wide' if wide else ''}_{suffix}")
        self._sizes = np.int32(channels), np.int64(positions)
        self._scale = scale
        self._peak_count = gram_plan(device, channels, positions, dtype).blocks
        self._needs_peaks = suffix == "f16"
        self.loss_count = -(-channels // (128 if wide else 64)) * columns

    def enqueue(
        self,
        features: Address,
        cotangent: Address,
        *,
        seed: Address = 0,
        peaks: Address = 0,
        bias: Address = 0,
        target: Address = 0,
        content_weight: float = 0.0,
        cotangent_scale: float = 1.0,
        upstream: Address = 0,
        losses: Address = 0,
        masked: bool = False,
    ) -> None:
        """Enqueue writing ``cotangent``, (channels, positions), of F'; terms without an address are left out.

        ``seed``, float32 (channels, channels), ``bias``, float32 (channels,), and ``peaks`` are those of `Gram` with
        the same sizes, type and λ. ``target`` is P' = s·P, whose term is c·Σ(F - P)², c ``content_weight``, λ
        ``cotangent_scale``: ``losses`` gets `loss_count` float64 that add up to it. ``masked`` puts zero where F' is
        not positive, as a ReLU's gradient does. ``upstream`` may be ``cotangent`` itself; nothing else may overlap.

        Raises `UsageError` for a target without losses, and for a float16 seed without peaks, which might vanish.
        """
        if target and not losses:
            raise UsageError("a content target without losses: give the address of the partial losses")
        if seed and self._needs_peaks and not peaks:
            raise UsageError("a seed for float16 features without peaks: give those that Gram.compare wrote")
        weight = content_weight / self._scale**2
        self._kernel(
            (self.loss_count, 1),
            _THREADS,
            features,
            cotangent,
            *self._sizes,
            seed,
            peaks,
            np.int32(self._peak_count),
            bias,
            target,
            np.float64(weight),
            np.float32(2 * cotangent_scale * weight),
            upstream,
            losses,
            np.int32(masked),
        )
