"""A painting's state between two evaluations, as a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.runtime.loop import Best, LoopState
from impasto.runtime.result import TracePoint
from impasto.runtime.scratch import Allocate, in_memory
from impasto.runtime.solvers import SolverState
from impasto.runtime.solvers.vectors import assign

_SOLVER = "solver."
"""What the names of the solver's arrays begin with."""


@dataclass(frozen=True, eq=False)
class PaintingState:
    """Where a painting is: the number of its stage, the stage's best iterate and its loop's state.

    ``trace`` has every evaluation so far, ``began`` of which are of earlier stages; ``seconds`` are the whole job's.
    """

    stage: int
    began: int
    seconds: float
    trace: Sequence[TracePoint]
    best: Best
    loop: LoopState

    def to_checkpoint(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return JSON types and arrays; the arrays are not copied."""
        state = {
            "stage": self.stage,
            "began": self.began,
            "seconds": self.seconds,
            "loss": self.best.loss,
            "terms": dict(self.best.terms or {}),
            "evaluation": self.loop.evaluation,
            "ceiling": self.loop.ceiling,
            "solver": dict(self.loop.solver.numbers),
        }
        trace = np.array([(p.iteration, p.evaluation, p.seconds, p.loss) for p in self.trace], np.float64)
        solver = {_SOLVER + name: array for name, array in self.loop.solver.arrays.items()}
        return state, {"trace": trace, "best": self.best.image, **solver}

    @classmethod
    def from_checkpoint(
        cls, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], allocate: Allocate = in_memory
    ) -> PaintingState:
        """Return the state that `to_checkpoint` described; the solver's arrays stay where they are until used.

        ``allocate`` makes the best iterate's.
        """
        trace = [TracePoint(int(i), int(e), float(seconds), float(loss)) for i, e, seconds, loss in arrays["trace"]]
        saved = arrays["best"]
        best = Best(allocate(saved.shape), state["loss"], state["terms"])
        assign(best.image, saved)
        solver = SolverState(state["solver"], _Below(arrays))
        loop = LoopState(state["evaluation"], state["ceiling"], solver)
        return cls(state["stage"], state["began"], state["seconds"], trace, best, loop)


class _Below(Mapping[str, NDArray[Any]]):
    """The solver's arrays among others, by their own names."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[_SOLVER + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(_SOLVER) for name in self._arrays if name.startswith(_SOLVER))

    def __len__(self) -> int:
        return sum(1 for _ in self)
