"""A line search for the strong Wolfe conditions, by reverse communication on numbers.

Nocedal & Wright, "Numerical Optimization", 2nd ed., algorithms 3.5 (bracketing) and 3.6 (zoom), with cubic
interpolation (3.59). Two departures:

- Losses come from float32 arithmetic. Differences below its rounding say nothing, so comparisons of losses allow for
  it and slopes decide instead, in the spirit of Hager & Zhang's approximate Wolfe conditions ("A new conjugate
  gradient method with guaranteed descent and an efficient line search", 2005, section 4); and a bracket over which the
  predicted change is below the rounding is not refined further. The allowance is relative to the loss: no tolerance
  here depends on the loss's scale.
- A trial may fail (a loss that is not finite). The search then shortens the step, and next to a failure a sufficient
  decrease is enough.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import NamedTuple

ROUNDING = 2.0**-21
"""Rounding allowed for in a loss, relative: a few units in the last place of float32."""


class Point(NamedTuple):
    """A point on the line: the step to it, the loss there, and the slope (loss per unit of step)."""

    step: float
    loss: float
    slope: float


Search = Generator[float, Point, float | None]


def strong_wolfe(origin: Point, first: float, c1: float, c2: float, max_trials: int) -> Search:
    """Yield steps to try, ``first`` first, be sent what is there, and return the step to take.

    ``origin`` has step 0 and a negative slope. The step satisfies loss ≤ origin's + c1·step·slope (sufficient
    decrease, up to rounding) and |slope| ≤ c2·|origin's slope| (curvature); or, after ``max_trials`` trials, at the
    limit of rounding, or beside a failure, it is that of the lowest loss tried. None if no trial was lower than the
    origin.
    """
    noise = ROUNDING * abs(origin.loss)
    best = origin

    def decreased(point: Point) -> bool:
        return point.loss <= origin.loss + c1 * point.step * origin.slope + noise

    def flat(point: Point) -> bool:
        return abs(point.slope) <= c2 * abs(origin.slope)

    def give_up() -> float | None:
        return best.step if best.step > 0 else None

    low = origin
    high: Point | None = None  # once it is known, the step to take lies between the two, whichever is the longer
    failed = False
    step = first
    for _ in range(max_trials):
        point = yield step
        if not math.isfinite(point.loss):
            failed = True
            high = Point(step, math.inf, math.nan)
        else:
            if point.loss < best.loss:
                best = point
            if not decreased(point) or point.loss > low.loss + noise:
                high = point
            elif flat(point) or failed:
                return point.step
            else:
                if point.slope * (point.step - low.step) >= 0:
                    high = low
                elif high is None:
                    step = _extrapolate(low, point)
                    low = point
                    continue
                low = point
        width = high.step - low.step
        if not math.isinf(high.loss) and abs(low.slope * width) <= noise:
            return give_up()
        step = low.step + width * _fraction(low, high)
        if step in (low.step, high.step):
            return give_up()
    return give_up()


def _extrapolate(before: Point, point: Point) -> float:
    """Return a longer step to try: by the cubic through both points, ten times as long at most."""
    longest = 10 * point.step
    minimum = _cubic(before, point)
    if minimum is None or minimum <= 1:
        return longest  # the slope grows steeper
    return min(before.step + (point.step - before.step) * minimum, longest)


def _fraction(low: Point, high: Point) -> float:
    """Return where to look between ``low`` and ``high``, as a fraction of the way, at least a tenth from both."""
    if math.isinf(high.loss):
        return 0.25  # nothing is known of the failed end but that it is too far
    minimum = _cubic(low, high)
    return 0.5 if minimum is None else min(max(minimum, 0.1), 0.9)


def _cubic(a: Point, b: Point) -> float | None:
    """Return the minimum of the cubic with both losses and slopes, as a fraction of the way from a to b (may exceed 1).

    None if the cubic has no minimum. Formula (3.59), made relative to a.
    """
    width = b.step - a.step
    slope_a, slope_b = a.slope * width, b.slope * width
    d1 = slope_a + slope_b - 3 * (b.loss - a.loss)
    inside = d1 * d1 - slope_a * slope_b
    if not inside >= 0:
        return None
    d2 = math.sqrt(inside)
    bottom = slope_b - slope_a + 2 * d2
    if bottom == 0:
        return None
    return 1 - (slope_b + d2 - d1) / bottom
