"""The box in which a solver's points may lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from impasto.models.conventions import FloatArray
from impasto.runtime.solvers.protocol import require
from impasto.runtime.solvers.vectors import chunks


@dataclass(frozen=True)
class Bounds:
    """Lowest and highest values of x, in x's own units; ``None`` leaves a side open.

    Each side has one value for each of k equal, consecutive blocks of x: one value bounds every element, three bound
    the planes of a (3, H, W) picture (see `impasto.models.conventions.PixelSpace.bounds`), and as many as x has
    elements bound each one. Raises `impasto.errors.UsageError` if the sides do not fit together.
    """

    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, side in (("low", self.low), ("high", self.high)):
            if side is None:
                continue
            # From JSON the sides come as lists.
            object.__setattr__(self, name, tuple(side))
            require(len(side) > 0, f"bounds: {name} is empty; give at least one value, or None")
            require(all(map(math.isfinite, side)), f"bounds: {name} is {side}; give finite values, or None")
        if self.low is not None and self.high is not None:
            require(
                len(self.low) == len(self.high),
                f"bounds: {len(self.low)} low and {len(self.high)} high values; give as many of each",
            )
            pairs = zip(self.low, self.high, strict=True)
            wrong = next((pair for pair in pairs if pair[0] > pair[1]), None)
            require(wrong is None, f"bounds: low above high in {wrong}; swap them")

    def clamp(self, x: FloatArray) -> None:
        """Project a flat, contiguous x onto the box, in place.

        Raises `impasto.errors.UsageError` if x does not divide into the blocks.
        """
        for side, project in ((self.low, np.maximum), (self.high, np.minimum)):
            if side is not None:
                self._check(side, x.size)
                blocks = x.reshape(len(side), -1)
                limits = np.asarray(side, dtype=np.float32)[:, None]
                for (part,) in chunks(blocks):
                    project(part, limits, out=part)

    def arrays(self, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return low and high, float32 numbers as float64 of that size, infinite where open; raise as `clamp` does."""
        sides = (self.low or (-math.inf,), self.high or (math.inf,))
        for side in sides:
            self._check(side, size)
        low, high = (np.repeat(np.asarray(side, dtype=np.float32), size // len(side)) for side in sides)
        return low.astype(np.float64), high.astype(np.float64)

    def _check(self, side: tuple[float, ...], size: int) -> None:
        require(size % len(side) == 0, f"bounds: {len(side)} values for {size} elements; give a divisor of that")
