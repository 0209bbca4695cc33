"""`gram` and `gram_vjp` against float64, on the features as they are rounded.

Features are as after a ReLU: not negative, many zeros. So elements of the Gram matrix are their own sums of magnitudes,
and an error relative to those is one relative to the elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.findings import Check, differing, worst
from benchmarks.gpu.room import F64, TYPES, Room
from impasto.runtime.gpu.protocol import Device
from impasto.runtime.kernels.gram import Gram, gram_plan
from impasto.runtime.kernels.gram_vjp import GramVjp

SHAPES = ((64, 262144), (128, 65536), (256, 16384), (512, 4096), (512, 1024))
"""Channels and positions of VGG-19's style taps at 512 px, and of the last one's block at 256 px."""
ODD = ((1, 1), (3, 37), (70, 1001), (130, 264), (200, 2049))
QUICK = ((3, 37), (70, 301), (130, 264), (128, 1030))

_WEIGHT, _MEAN_WEIGHT, _SCALE = 0.7, 0.3, 2.0
"""Of the term and of its means; what features are stored times."""
_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
_OWN = "of the element"
_ALLOWED = "of what rounding allows"


class Features(NamedTuple):
    """F' = s·F as it is stored, and in float64."""

    stored: NDArray[Any]
    wide: NDArray[np.float64]
    precision: str


def features(channels: int, positions: int, precision: str, seed: int = 0) -> Features:
    """Draw rectified features."""
    normal = np.random.default_rng(seed).standard_normal((channels, positions), np.float32)
    stored = normal.clip(min=0).astype(TYPES[precision])
    return Features(stored, stored.astype(np.float64), precision)


def checks(device: Device, quick: bool) -> Iterator[Check]:
    """Check every type at every shape, with and without means."""
    for channels, positions in QUICK if quick else (*SHAPES, *ODD):
        for precision in TYPES:
            own = features(channels, positions, precision)
            for centred in (False, True):
                with Room(device) as room:
                    yield from _Case(room, own, centred).checks()


def gram_bound(device: Device, channels: int, positions: int, precision: str) -> float:
    """Return the relative error that sums of positive products may have.

    float32: compensated sums of eight products have 6e-7, and the result is rounded. Tensor cores add 16 products at a
    time to float32 accumulators, and drop what is below: up to 2⁻²³ for the sum and as much for the products.
    """
    if precision == "fp32":
        return 1e-6
    plan = gram_plan(device, channels, positions, TYPES[precision])
    return (plan.chunk / 16 + 2) * 2 * 2.0**-23


class _Case:
    """One shape and type, Gram matrix or covariance: the kernels as `impasto.runtime.gpu.sliced` calls them."""

    def __init__(self, room: Room, own: Features, centred: bool) -> None:
        self.room, self.own, self.centred = room, own, centred
        self.channels, self.positions = own.stored.shape
        self.title = f"{'covariance' if centred else 'gram'} {own.precision} {self.channels}×{self.positions}"
        self.bound = (2 if centred else 1) * gram_bound(room.device, *own.stored.shape, own.precision)
        stream = np.random.default_rng(1)
        square = stream.random((self.channels, self.channels), np.float32)
        self.target = (square + square.T) / 8
        self.mean_target = stream.random(self.channels, np.float32)
        self.features = room.put(own.stored)
        # Cotangents of about 1, where float16 has its full precision.
        self.cotangent_scale = 2.0 ** round(math.log2(self.positions))

    def checks(self) -> Iterator[Check]:
        """Check the product, the comparison, and the cotangent."""
        room, dtype = self.room, self.own.stored.dtype
        gram = Gram(room.device, self.channels, self.positions, dtype, centred=self.centred, scale=_SCALE)
        partials = room.empty(gram.partials_bytes // 4)
        gram.enqueue(self.features, partials)
        mean = self.own.wide.mean(axis=1) / _SCALE
        exact = self.own.wide @ self.own.wide.T / (self.positions * _SCALE**2)
        magnitude = exact + np.outer(mean, mean) if self.centred else exact
        exact = exact - np.outer(mean, mean) if self.centred else exact

        square, means = room.empty((self.channels,) * 2), room.empty(self.channels) if self.centred else 0
        gram.gram(partials, square, means)
        found = room.get(square, (self.channels,) * 2)
        yield Check(self.title, worst(found, exact, magnitude), self.bound, _OWN)
        if self.centred:
            yield Check(f"{self.title}, mean", worst(room.get(means, self.channels), mean, mean), 1e-6, _OWN)
        yield from self._compared(gram, partials, exact, magnitude, mean)

    def _compared(
        self,
        gram: Gram,
        partials: int,
        exact: NDArray[np.float64],
        magnitude: NDArray[np.float64],
        mean: NDArray[np.float64],
    ) -> Iterator[Check]:
        room, channels = self.room, self.channels
        seed, bias = room.empty((channels, channels)), room.empty(channels) if self.centred else 0
        losses, peaks = room.empty(gram.loss_count, F64), room.empty(gram.peak_count)

        def compare() -> tuple[NDArray[Any], NDArray[Any]]:
            gram.compare(
                partials,
                room.put(self.target),
                seed,
                losses,
                weight=_WEIGHT,
                cotangent_scale=self.cotangent_scale,
                peaks=peaks,
                mean_target=room.put(self.mean_target) if self.centred else 0,
                mean_weight=_MEAN_WEIGHT if self.centred else 0.0,
                bias=bias,
            )
            return room.get(seed, (channels, channels)), room.get(losses, gram.loss_count, F64)

        found, partial = compare()
        factor = self.cotangent_scale * 4 * _WEIGHT / (self.positions * _SCALE**2)
        yield Check(
            f"{self.title}, seed",
            worst(found, factor * (exact - self.target), factor * (magnitude + self.target)),
            self.bound,
            "of G and target",
        )
        yield Check(
            f"{self.title}, largest of the seed",
            differing(room.get(peaks, gram.peak_count).max(keepdims=True), np.abs(found).max(keepdims=True).ravel()),
            0,
            "bits",
        )
        difference, slack = np.abs(exact - self.target), self.bound * magnitude
        loss = _WEIGHT * np.square(difference).sum()
        allowed = _WEIGHT * (2 * difference * slack + slack**2).sum()
        if self.centred:
            off = np.abs(mean - self.mean_target)
            loss += _MEAN_WEIGHT * np.square(off).sum()
            allowed += _MEAN_WEIGHT * (2 * off * 1e-6 * mean + (1e-6 * mean) ** 2).sum()
        yield Check(f"{self.title}, loss", abs(partial.sum() - loss) / loss, allowed / loss + 1e-12, "of the loss")
        shift = np.zeros(channels)
        if self.centred:
            level = self.cotangent_scale * 2 * _MEAN_WEIGHT / (self.positions * _SCALE)
            product, products = found.astype(np.float64) @ (_SCALE * mean), np.abs(found) @ (_SCALE * mean)
            shift = room.get(bias, channels).astype(np.float64)
            wanted = level * (mean - self.mean_target) - product
            yield Check(
                f"{self.title}, bias",
                worst(shift, wanted, level * (mean + self.mean_target) + products),
                2e-6,
                "of its terms",
            )
        yield from self._cotangent(seed, found.astype(np.float64), peaks, bias, shift)
        again, partial_again = compare()
        yield Check(f"{self.title}, again", differing(again, found) + differing(partial_again, partial), 0, "bits")

    def _cotangent(
        self, seed: int, seed_values: NDArray[np.float64], peaks: int, bias: int, shift: NDArray[np.float64]
    ) -> Iterator[Check]:
        room, own = self.room, self.own
        target = features(*own.stored.shape, own.precision, seed=2)
        size = float(np.abs(seed_values).max() * self.channels)
        upstream = (np.random.default_rng(3).standard_normal(own.stored.shape) * size).astype(own.stored.dtype)
        vjp = GramVjp(room.device, *own.stored.shape, own.stored.dtype, scale=_SCALE)
        losses, cotangent = room.empty(vjp.loss_count, F64), room.put(upstream)
        weight = size / (20 * self.cotangent_scale)
        vjp.enqueue(
            self.features,
            cotangent,
            seed=seed,
            peaks=peaks,
            bias=bias,
            target=room.put(target.stored),
            content_weight=weight,
            cotangent_scale=self.cotangent_scale,
            upstream=cotangent,
            losses=losses,
            masked=True,
        )
        found = room.get(cotangent, own.stored.shape, own.stored.dtype)
        content = 2 * self.cotangent_scale * weight / _SCALE**2
        difference = own.wide - target.wide
        parts = [seed_values @ own.wide, np.broadcast_to(shift[:, None], own.wide.shape), content * difference]
        exact = np.where(own.wide > 0, sum(parts) + upstream.astype(np.float64), 0)
        # The seed is rounded to the features' type (for float16 after being brought near its largest number), sums
        # are float32 of as many terms as channels, and the result is rounded to the type.
        unit = _ROUNDOFF[own.precision]
        products = np.abs(seed_values) @ own.wide
        seed_unit = 0.0 if own.precision == "fp32" else unit
        smallest = np.abs(seed_values).max() * 2.0**-38 * own.wide.sum(axis=0)
        plain = sum(np.abs(part) for part in parts[1:]) + np.abs(upstream.astype(np.float64))
        allowed = (seed_unit + (self.channels + 8) * 2.0**-23) * products + smallest + 8 * 2.0**-24 * plain
        allowed += unit * (np.abs(exact) + allowed) + (2.0**-25 if own.precision == "fp16" else 2.0**-149)
        yield Check(f"{self.title}, cotangent", worst(found, exact, allowed), 1, _ALLOWED)
        loss = weight / _SCALE**2 * np.square(difference).sum()
        partial = room.get(losses, vjp.loss_count, F64)
        # Four squares at a time are added in float32, everything else in float64.
        error = abs(partial.sum() - loss) / loss if loss else float(partial.sum() != 0)
        yield Check(f"{self.title}, content loss", error, 1e-6, "of the loss")
