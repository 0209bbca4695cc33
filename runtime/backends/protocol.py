"""What every backend can do."""

from __future__ import annotations

from typing import Literal, Protocol

from impasto.export.objective import Objective
from impasto.models.weights import Weights
from impasto.runtime.problem import Evaluator, FloatArray, Problem

Taps = tuple[str, ...]

Plan = Literal["fused", "sliced"]
PLANS: tuple[Plan, ...] = ("fused", "sliced")


class Backend(Protocol):
    """What executes graphs: the same few verbs for every runtime.

    ``name`` and ``precision`` are shown in results. Backends keep what they compiled, so that the next job of the
    same shape starts warm, until `close`. They are not thread-safe: one job at a time.
    """

    name: str
    precision: str

    def measure(
        self,
        weights: Weights,
        objective: Objective,
        image: FloatArray,
        content: tuple[str, ...],
        style: tuple[str, ...],
    ) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
        """Return activations (1, C, h, w) of the ``content`` taps and F·Fᵀ/N, (C, C), of the ``style`` taps.

        ``image`` is (1, 3, H, W) float32 in the objective's pixel space; any H and W that reach the taps.
        """
        ...

    def prepare(self, problem: Problem, plan: Plan) -> Evaluator:
        """Return an evaluator of the problem by the plan; raise `UsageError` for a plan that there is not here."""
        ...

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that results depend on."""
        ...

    def close(self) -> None:
        """Free what was kept warm."""
        ...
