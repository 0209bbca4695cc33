"""The power of two by which cotangents are multiplied so that half precision holds them."""

from __future__ import annotations

import math
from collections.abc import Callable

_GOAL = 6
"""Exponent that the largest element of the scaled gradient is brought to: 2⁶ leaves 2¹⁰ up to float16's end, for layers
whose cotangents are larger, and 2³⁰ down to its smallest subnormal."""
_SLACK = 5
"""How far it may wander, in powers of two, before the scale follows."""
_LARGEST = 60
_ATTEMPTS = 24
_BACK = 8
"""By how many powers of two to go down after an overflow."""


class GradientScale:
    """λ, found at a job's first evaluation and kept in range from then on.

    Being a power of two it rounds nothing that stays in range.
    """

    def __init__(self) -> None:
        self._exponent = 0
        self.known = False

    @property
    def value(self) -> float:
        """λ."""
        return math.ldexp(1.0, self._exponent)

    def restart(self) -> None:
        """Look for it again at the next evaluation, from where it is."""
        self.known = False

    def find(self, measure: Callable[[], float]) -> None:
        """Find λ; ``measure()`` evaluates with `value` and returns the largest element of the scaled gradient."""
        for _ in range(_ATTEMPTS):
            if not self.follow(measure()):
                break
        self.known = True

    def follow(self, scaled: float) -> bool:
        """Tell whether λ had to change, given the largest element of the last gradient times λ."""
        before = self._exponent
        if not math.isfinite(scaled):
            self._exponent -= _BACK
        elif scaled == 0:
            self._exponent += _BACK
        elif abs(math.frexp(scaled)[1] - _GOAL) > _SLACK:
            self._exponent += _GOAL - math.frexp(scaled)[1]
        self._exponent = max(-_LARGEST, min(_LARGEST, self._exponent))
        return self._exponent != before
