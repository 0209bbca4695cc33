"""L-BFGS's pairs on the device, and the quasi-Newton direction from them."""

from __future__ import annotations

from impasto.runtime.gpu.protocol import Address
from impasto.runtime.kernels.solver import SolverKernels
from impasto.runtime.solvers.lbfgs import MIN_COSINE


class DeviceHistory:
    """What `impasto.runtime.solvers.history.History` is on the host: at most ``pairs`` pairs of float32 vectors.

    Whether a pair is kept is decided on the device while the direction is computed; the host hears of it with the next
    report, and says so by `learn` before it adds another. Memory: 2·(pairs + 1) vectors.
    """

    def __init__(self, kernels: SolverKernels, pairs: int) -> None:
        self._kernels = kernels
        self._pairs = kernels.reserve_pairs(pairs + 1)
        self._first = 0
        self._count = 0  # of the pairs known to be kept, in consecutive slots of the ring
        self._undecided = False

    def __len__(self) -> int:
        return self._count

    def add(self, trial: Address, x: Address, trial_gradient: Address, gradient: Address) -> None:
        """Enqueue the coefficients of the direction at a trial that was accepted, from the pairs and a new one.

        The new pair is the step from x to the trial with the change of the scaled gradient; then x is the trial.
        """
        kernels, pairs = self._kernels, self._pairs
        step, change = pairs.pair((self._first + self._count) % pairs.slots)
        kernels.pair(trial, x, (trial_gradient, gradient), step, change)
        kernels.products(pairs, self._first, self._count + 1, trial_gradient)
        kernels.recursion(pairs, self._first, self._count, MIN_COSINE)
        self._undecided = True

    def learn(self, kept: bool) -> None:
        """Take note of what a report says of the pair added last."""
        if self._undecided and kept:
            if self._count + 1 == self._pairs.slots:
                self._first = (self._first + 1) % self._pairs.slots
            else:
                self._count += 1
        self._undecided = False

    def clear(self) -> None:
        """Forget the pairs, not γ: the direction is −γ times the gradient."""
        self._first = self._count = 0
        self._kernels.drop_pairs(self._pairs)

    def aim(self, gradient: Address, direction: Address, first_move: float) -> None:
        """Enqueue the direction at a scaled gradient, its slope, and the first step along it."""
        self._kernels.combine(self._pairs, gradient, direction)
        self._kernels.aim(self._pairs, first_move)
