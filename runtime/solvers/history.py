"""The curvature pairs of L-BFGS and the quasi-Newton direction from them, in two passes over memory.

The two-loop recursion (Nocedal & Wright, "Numerical Optimization", 2nd ed., algorithm 7.4) needs only inner products
of the pairs with each other and with the gradient, and its result is a combination of the same vectors (Chen, Wang &
Zhou, "Large-scale L-BFGS using MapReduce", 2014). So a direction costs one product of all pairs with the new
gradient, arithmetic on numbers, and one combination of all pairs: two matrix-vector products at memory speed. Inner
products with a new y = g_new − g_old are differences of two such products, hence cost nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.models.conventions import FloatArray
from impasto.runtime.scratch import like
from impasto.runtime.solvers.protocol import SolverState, overflow_fails
from impasto.runtime.solvers.vectors import assign, chunks, dot, products


class History:
    """At most ``pairs`` pairs of a step s and the gradient's change y over it, each float32, and kept where the
    vector ``start`` of their size is.

    The caller writes a pair into `step` and `change`, looks at `curvature`, and may `keep` it. ``scale`` is γ, the
    multiple of the identity that the pairs correct: s·y / y·y of the last pair kept, 1 before any.
    """

    def __init__(self, pairs: int, start: FloatArray) -> None:
        # One slot more than there are pairs is where the next one is written. Rows 2i and 2i + 1 are slot i's step
        # and change, so that the slots in use are one contiguous matrix; the rest is memory not yet touched.
        self._rows = like(start, (2 * (pairs + 1), start.size))
        self._pairs = pairs
        self._order: list[int] = []  # the slots kept, oldest first
        self._spare = 0
        # [i, j] holds s_i·y_j, for pairs i not newer than j, and y_i·y_j.
        self._sy = np.zeros((pairs + 1, pairs + 1))
        self._yy = np.zeros((pairs + 1, pairs + 1))
        self._products = np.zeros(2 * (pairs + 1))  # of the rows with the gradient of the last direction
        self._new: int | None = None  # the slot kept since then
        self.scale = 1.0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def step(self) -> FloatArray:
        """Where the caller writes the next pair's s."""
        row: FloatArray = self._rows[2 * self._spare]
        return row

    @property
    def change(self) -> FloatArray:
        """Where the caller writes the next pair's y: the next direction's gradient minus the last direction's."""
        row: FloatArray = self._rows[2 * self._spare + 1]
        return row

    @overflow_fails
    def curvature(self) -> tuple[float, float, float]:
        """Return s·y, s·s and y·y of the pair last written."""
        s, y = self.step, self.change
        return dot(s, y), dot(s, s), dot(y, y)

    def keep(self) -> None:
        """Add the pair last written, in place of the oldest one if the history is full; its s·y must be positive."""
        sy, _, yy = self.curvature()
        new = self._spare
        self._sy[new, new], self._yy[new, new] = sy, yy
        self.scale = sy / yy
        self._order.append(new)
        self._new = new
        self._spare = self._order.pop(0) if len(self._order) > self._pairs else len(self._order)

    def clear(self) -> None:
        """Forget the pairs, not the scale."""
        self._order.clear()
        self._spare, self._new = 0, None

    def state(self) -> SolverState:
        """Return everything, the pairs as they lie in memory, one array each: only those kept."""
        numbers = {"order": list(self._order), "spare": self._spare, "new": self._new, "gamma": self.scale}
        arrays: dict[str, NDArray[Any]] = {"sy": self._sy, "yy": self._yy, "products": self._products}
        for slot in self._order:
            arrays[f"step.{slot}"], arrays[f"change.{slot}"] = self._rows[2 * slot], self._rows[2 * slot + 1]
        return SolverState(numbers, arrays)

    def restore(self, state: SolverState) -> None:
        """Hold what the state of a history of the same length and size says."""
        numbers, arrays = state.numbers, state.arrays
        self._order, self._spare, self._new = list(numbers["order"]), numbers["spare"], numbers["new"]
        self.scale = numbers["gamma"]
        for name, values in (("sy", self._sy), ("yy", self._yy), ("products", self._products)):
            np.copyto(values, arrays[name])
        for slot in self._order:
            assign(self._rows[2 * slot], arrays[f"step.{slot}"])
            assign(self._rows[2 * slot + 1], arrays[f"change.{slot}"])
        # Between others it is multiplied by zero, which must not find NaN in memory that nothing was written to.
        for step, change in chunks(self.step, self.change):
            step.fill(0)
            change.fill(0)

    @overflow_fails
    def direction(self, gradient: FloatArray, out: FloatArray) -> None:
        """Write −H·gradient to ``out``, H being the pairs' approximation of the inverse Hessian.

        To be called once for each gradient that the changes are differences of.
        """
        if not self._order:
            for slope, into in chunks(gradient, out):
                np.multiply(slope, -self.scale, out=into)
            return
        used = self._rows[: 2 * (max(self._order) + 1)]
        found = products(used, gradient)
        self._complete(found)
        coefficients = np.zeros(len(used), dtype=np.float32)
        slots = np.array(self._order)
        steps, changes = self._recursion(found[2 * slots], found[2 * slots + 1])
        coefficients[2 * slots], coefficients[2 * slots + 1] = steps, changes
        for rows, slope, into in chunks(used, gradient, out):
            np.dot(coefficients, rows, out=into)
            into -= slope * np.float32(self.scale)

    def _complete(self, found: NDArray[np.float64]) -> None:
        """Fill in the new pair's inner products with the older ones."""
        if self._new is not None:
            older, new = self._order[:-1], self._new
            with_change = found - self._products[: len(found)]
            self._sy[older, new] = with_change[0::2][older]
            self._yy[older, new] = self._yy[new, older] = with_change[1::2][older]
            self._new = None
        self._products[: len(found)] = found

    def _recursion(
        self, sg: NDArray[np.float64], yg: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the direction's coefficients of the steps and of the changes, from s·g and y·g, oldest first."""
        grid = np.ix_(self._order, self._order)
        sy, yy = self._sy[grid], self._yy[grid]
        count = len(sg)
        alpha = np.zeros(count)
        for i in range(count - 1, -1, -1):
            alpha[i] = (sg[i] - sy[i, i + 1 :] @ alpha[i + 1 :]) / sy[i, i]
        # y·r for r = γ(g − Σ αy), which the second loop then corrects by the steps already added.
        yr = self.scale * (yg - yy @ alpha)
        steps = np.zeros(count)
        for i in range(count):
            steps[i] = alpha[i] - (yr[i] + sy[:i, i] @ steps[:i]) / sy[i, i]
        return -steps, self.scale * alpha
