"""Which evaluations a solver may use, and when it gives up."""

from __future__ import annotations

import math
from typing import Protocol

from impasto.errors import DivergenceError

MAX_FAILURES = 10
"""Failed evaluations in a row at which a solver raises `DivergenceError`."""


class HasLoss(Protocol):
    """An evaluation, wherever its gradient is."""

    @property
    def loss(self) -> float:
        """The loss, not finite where the evaluation failed."""
        ...


class Failures:
    """Counts the failed evaluations in a row."""

    def __init__(self, remedy: str) -> None:
        self._remedy = remedy
        self.in_a_row = 0

    def passed(self, evaluation: HasLoss, iteration: int) -> bool:
        """Tell whether the evaluation can be used.

        Raises `DivergenceError` if it is the last of `MAX_FAILURES` failed ones in a row, or the start's.
        """
        if math.isfinite(evaluation.loss):
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        if iteration == 0:
            raise DivergenceError(
                "the loss or its gradient is not finite at the start: check the picture, or lower the weights"
            )
        if self.in_a_row >= MAX_FAILURES:
            self.give_up(iteration)
        return False

    def give_up(self, iteration: int) -> None:
        """Raise `DivergenceError`."""
        times = "once" if self.in_a_row == 1 else f"{self.in_a_row} times in a row"
        raise DivergenceError(
            f"the loss or its gradient was not finite or exploded {times} at iteration {iteration}: {self._remedy}"
        )
