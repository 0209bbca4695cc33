"""The Gram term on the device: F·Fᵀ, its comparison with a target, and the seed of its gradient.

Features are F' = s·F, (channels, positions), planar, of float32, float16 or bfloat16; s is the power of two by which
they are stored. Sums are float32 within a chunk of positions and float64 beyond, in a fixed order, so that the same
features give the same bits on the same kind of device. For features of one sign, as after a ReLU, a float32 Gram matrix
is within 1e-6 of the exact one, relatively, element by element; otherwise within 1e-6·Σ|FᵢFⱼ|/N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from impasto.errors import LimitError, UsageError
from impasto.runtime.gpu.protocol import Address, Device

SUFFIXES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""What the entry points for a feature type end in."""

_THREADS = 256
_MOST_CHANNELS = 2**15
_SHORTEST_CHUNK = 256
"""Shorter ones would write more partial products than they read features."""


@dataclass(frozen=True)
class GramPlan:
    """How the work is cut: tiles of ``tile`` × ``tile`` channels of the lower triangle, ``splits`` chunks of positions.

    In the second pass a block of 256 threads deals the splits of each element out to ``groups`` of them.
    """

    tile: int
    tiles: int
    chunk: int
    splits: int
    groups: int

    @property
    def padded(self) -> int:
        """Channels, rounded up to whole tiles."""
        rows = (math.isqrt(8 * self.tiles + 1) - 1) // 2
        return rows * self.tile

    @property
    def elements(self) -> int:
        """Elements of one split's partial products."""
        return self.tiles * self.tile**2

    @property
    def blocks(self) -> int:
        """Blocks of the second pass."""
        return self.elements * self.groups // _THREADS


def check_features(channels: int, positions: int, dtype: np.dtype[Any]) -> str:
    """Return the suffix of the kernels for such features.

    Raises `UsageError` for another type and for sizes below one, `LimitError` for more than 2¹⁵ channels.
    """
    if dtype.name not in SUFFIXES:
        raise UsageError(f"features are {dtype.name}, which no kernel takes: give {', '.join(SUFFIXES)}")
    if channels < 1 or positions < 1:
        raise UsageError(f"{channels} channels of {positions} positions are no features: give at least one of each")
    if channels > _MOST_CHANNELS:
        raise LimitError(f"{channels} channels are too many for the Gram kernels: give at most {_MOST_CHANNELS}")
    return SUFFIXES[dtype.name]


def has_wide_tiles(device: Device, suffix: str) -> bool:
    """Tell whether there are kernels with tiles of 128 channels: on tensor cores, which know bfloat16 from sm_80 on."""
    return suffix == "f16" or (suffix == "bf16" and device.compute_capability >= (8, 0))


def gram_plan(device: Device, channels: int, positions: int, dtype: np.dtype[Any]) -> GramPlan:
    """Choose tiles and splits: at most two blocks a multiprocessor, and the least memory traffic.

    Tiles of 128 read features half as often as tiles of 64, and write four times the partial products a block. They are
    not taken where they would leave a multiprocessor without a block.
    """
    suffix = check_features(channels, positions, dtype)
    plans = [_cut(device, channels, positions, 64)]
    if channels > 64 and has_wide_tiles(device, suffix):
        wide = _cut(device, channels, positions, 128)
        if wide.tiles * wide.splits >= device.multiprocessors:
            plans.append(wide)

    def traffic(plan: GramPlan) -> int:
        # A tile on the diagonal reads one panel and any other two: as many panels as tiles in the full square.
        reads = plan.padded**2 // plan.tile * positions * dtype.itemsize
        # Partial products are written, read, and a third time as dear, for nothing is done while they are.
        return reads + 3 * 4 * plan.splits * plan.elements

    return min(plans, key=traffic)


def _cut(device: Device, channels: int, positions: int, tile: int) -> GramPlan:
    rows = -(-channels // tile)
    tiles = rows * (rows + 1) // 2
    wanted = max(1, 2 * device.multiprocessors // tiles)
    # A multiple of every kernel's panel, which is 32 or 64 positions deep.
    chunk = -(-max(-(-positions // wanted), _SHORTEST_CHUNK) // 64) * 64
    splits = -(-positions // chunk)
    groups = 1
    while groups < 8 and 4 * groups <= splits and tiles * tile**2 * groups < _THREADS * 4 * device.multiprocessors:
        groups *= 2
    return GramPlan(tile, tiles, chunk, splits, groups)


class Gram:
    """``c·Σ(G - A)²`` for G = F·Fᵀ/N, or, ``centred``, ``c·Σ(V - A)² + d·Σ(μ - m)²`` for V = F·Fᵀ/N - μμᵀ.

    ``partials_bytes`` is the scratch memory between the passes, which taps may share one after the other;
    ``loss_count`` the number of partial losses, float64, which add up to the loss; ``peak_count`` the number of float32
    that `GramVjp` reads the seed's range from. Raises `UsageError` for another type, sizes below one, or a ``scale``
    that is not positive, `LimitError` for more than 2¹⁵ channels.
    """

    def __init__(
        self,
        device: Device,
        channels: int,
        positions: int,
        dtype: np.dtype[Any],
        *,
        centred: bool = False,
        scale: float = 1.0,
    ) -> None:
        suffix = check_features(channels, positions, dtype)
        if not (math.isfinite(scale) and scale > 0):
            raise UsageError(f"scale {scale} of the features: give a finite number above 0")
        plan = gram_plan(device, channels, positions, dtype)
        self._plan, self._channels, self._positions = plan, channels, positions
        self._centred, self._scale = centred, scale
        self._first = device.kernel("gram", f"gram{'_wide' if plan.tile == 128 else ''}_{suffix}")
        self._product = device.kernel("gram", "gram_product")
        self._compare = device.kernel("gram", "gram_compare")
        self._mean = device.kernel("gram", "gram_mean")
        self._bias = device.kernel("gram", "gram_bias")
        # Behind the partial products lie the sums, and behind these the means, float64.
        self._sums = 4 * plan.splits * plan.elements
        self._means = self._sums + -(-4 * plan.splits * plan.padded // 8) * 8
        self._mean_blocks = -(-channels // 32)
        self.partials_bytes = self._means + 8 * channels if centred else self._sums
        self.loss_count = plan.blocks + (self._mean_blocks if centred else 0)
        self.peak_count = plan.blocks

    def enqueue(self, features: Address, partials: Address) -> None:
        """Enqueue the first pass: partial products, and when centred sums, of ``features`` (channels, positions)."""
        plan = self._plan
        self._first(
            (plan.tiles, plan.splits),
            2 * plan.tile,
            features,
            np.int32(self._channels),
            np.int64(self._positions),
            np.int32(plan.chunk),
            partials,
            partials + self._sums if self._centred else 0,
        )

    def compare(
        self,
        partials: Address,
        target: Address,
        seed: Address,
        losses: Address,
        *,
        weight: float,
        cotangent_scale: float,
        peaks: Address = 0,
        mean_target: Address = 0,
        mean_weight: float = 0.0,
        bias: Address = 0,
    ) -> None:
        """Enqueue the second pass; the cotangent of F' is λ times the loss's derivative, λ the ``cotangent_scale``.

        ``target`` A, float32 (channels, channels), is symmetric: its lower triangle is read. ``seed``, of that shape
        and type, gets ``λ·4c/(N·s²)·(G - A)``: the cotangent of F' is seed·F', plus ``bias``, float32 (channels,),
        when centred, which is ``λ·2d/(N·s)·(μ - m) - seed·(s·μ)``; c is ``weight``, d ``mean_weight``, and m
        ``mean_target``, float32 (channels,). ``losses`` gets `loss_count` float64, ``peaks``, if given, `peak_count`
        float32. NaN in the features is NaN in seed and losses, and infinity is one of the two.

        Raises `UsageError` where a centred term has no ``mean_target`` or ``bias``.
        """
        if self._centred and not (mean_target and bias):
            raise UsageError("a centred Gram term without mean_target or bias: give both addresses")
        plan, count = self._plan, self._positions
        means = 0
        if self._centred:
            means = partials + self._means
            mean_losses = losses + 8 * plan.blocks
            self._enqueue_means(partials, 0, mean_target, mean_weight, mean_losses)
        factor = cotangent_scale * 4 * weight / (count * self._scale**2)
        numbers = np.float64(weight), np.float64(factor)
        self._compare((plan.blocks, 1), _THREADS, *self._second(partials, means), target, *numbers, seed, losses, peaks)
        if self._centred:
            level = cotangent_scale * 2 * mean_weight / (count * self._scale)
            channels = np.int32(self._channels)
            grid = -(-self._channels // (_THREADS // 32)), 1
            numbers = np.float64(level), np.float64(self._scale)
            self._bias(grid, _THREADS, seed, means, channels, mean_target, *numbers, bias)

    def gram(self, partials: Address, product: Address, mean: Address = 0) -> None:
        """Enqueue, instead of `compare`, writing G or V, float32 (channels, channels), and μ, float32 (channels,).

        Raises `UsageError` for a ``mean`` that is asked for where the term is not centred.
        """
        if mean and not self._centred:
            raise UsageError("the mean of a Gram term that is not centred: ask for none, or for a centred term")
        means = partials + self._means if self._centred else 0
        if self._centred:
            self._enqueue_means(partials, mean, 0, 0.0, 0)
        self._product((self._plan.blocks, 1), _THREADS, *self._second(partials, means), product)

    def _enqueue_means(
        self, partials: Address, rounded: Address, target: Address, weight: float, losses: Address
    ) -> None:
        plan = self._plan
        sizes = np.int32(self._channels), np.int32(plan.padded), np.int32(plan.splits)
        over = np.float64(1 / (self._positions * self._scale))
        grid = self._mean_blocks, 1
        means = partials + self._means
        self._mean(
            grid, _THREADS, partials + self._sums, *sizes, over, means, rounded, target, np.float64(weight), losses
        )

    def _second(self, partials: Address, means: Address) -> tuple[Address | np.generic, ...]:
        """Return the arguments that the second pass's kernels begin with."""
        plan = self._plan
        sizes = np.int32(self._channels), np.int32(plan.tile), np.int32(plan.splits), np.int32(plan.groups)
        return partials, *sizes, np.float64(1 / (self._positions * self._scale**2)), means
