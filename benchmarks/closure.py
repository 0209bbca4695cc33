"""What torch's L-BFGS is given by every program that uses it, so that all are counted and timed alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.descent import Descent
from benchmarks.task import Run, Task


class _Enough(Exception):
    pass


class Closure:
    """A closure for ``torch.optim.LBFGS`` around one that evaluates: ``evaluate`` returns the loss at ``x``.

    Times are from one call to the next, so that solver and loop are in them.
    """

    def __init__(self, task: Task, x: torch.Tensor, evaluate: Callable[[], torch.Tensor]) -> None:
        self._x = x
        self._evaluate = evaluate
        self._descent = Descent(task)
        self._times: list[float] = []

    def __call__(self) -> torch.Tensor:
        """Evaluate; leave the solver when enough evaluations were made: its own limits hold between line searches."""
        self._times.append(self._descent.clock())
        if self._descent.over:
            raise _Enough
        loss = self._evaluate()
        self._descent.evaluated(loss.item(), lambda: self._x.detach().numpy())
        return loss

    def run(self, solve: Callable[[Closure], Any], imports: int) -> Run:
        """Let a solver call this until it ends or it is enough; return what it took."""
        try:
            solve(self)
            self._times.append(self._descent.clock())
        except _Enough:
            pass
        return self._descent.run(self._times, imports)
