"""What every backend can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from impasto.export.objective import Objective, Targets
from impasto.models.weights import Weights
from impasto.runtime.problem import Evaluator, FloatArray, Problem

Plan = Literal["fused", "sliced", "tiled"]
PLANS: tuple[Plan, ...] = ("fused", "sliced", "tiled")


Calibration = Mapping[str, FloatArray]
"""The inputs ``<layer>.scale`` and ``<layer>.threshold``, each (C,), of filters."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What a picture measures, all float32.

    ``activations`` are (1, C, h, w). ``style`` is F·Fᵀ/N, (C, C), or the covariance, as the objective's statistic says;
    ``means``, (C, 1), are there for the latter.
    """

    activations: Mapping[str, FloatArray]
    style: Mapping[str, FloatArray]
    means: Mapping[str, FloatArray]


class Backend(Protocol):
    """What executes graphs: the same few verbs for every runtime.

    ``name`` and ``precision`` are shown in results. Backends keep what they compiled, so that the next job of the same
    shape starts warm, until `close`. They are not thread-safe: one job at a time.
    """

    name: str
    precision: str
    plans: tuple[Plan, ...]
    """Those among which `plan_for` chooses."""
    progress: Callable[[str, int, int], None] | None
    """Called while something is compiled for minutes: a phase, how many of its steps are done, of how many."""

    def settle(self, weights: Weights, objective: Objective, plan: Plan | None) -> None:
        """Take the ``precision`` that suits a network and a plan, where none was asked for."""
        ...

    def calibrate(self, weights: Weights, objective: Objective, image: FloatArray) -> Calibration:
        """Return scale and threshold of every `Filters` layer that the objective needs, for the style picture.

        ``image`` is (1, 3, H, W) float32 in the objective's pixel space. Empty for a backbone without filters.
        """
        ...

    def measure(
        self,
        weights: Weights,
        objective: Objective,
        image: FloatArray,
        content: tuple[str, ...],
        style: tuple[str, ...],
        calibration: Calibration,
    ) -> Measured:
        """Measure ``content`` and ``style`` taps of the objective.

        ``image`` is (1, 3, H, W) float32 in the objective's pixel space; any H and W that reach the taps.
        """
        ...

    def measure_tiled(
        self,
        weights: Weights,
        objective: Objective,
        content: FloatArray,
        style: FloatArray,
        memory: int | None = None,
    ) -> Targets:
        """Measure the targets of the plan ``tiled``, window by window; images as for `measure`.

        ``memory`` is what that may take in bytes, beside the caller's arrays, None for 1 GiB.

        Raises `UsageError` for a backend without that plan.
        """
        ...

    def prepare(self, problem: Problem, plan: Plan, memory: int | None = None) -> Evaluator:
        """Return an evaluator of the problem by the plan.

        ``memory`` is what an evaluation by the plan ``tiled`` may take in bytes, beside the caller's arrays, None for
        1 GiB. Raises `UsageError` for a plan that there is not here, `LimitError` where even the smallest tiles need
        more.
        """
        ...

    def plan_for(self, problem: Problem) -> Plan:
        """Return the plan to take where nobody names one."""
        ...

    def took(self, problem: Problem, plan: Plan, seconds: float) -> None:
        """Be told what an evaluation of the problem took by a plan."""
        ...

    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that results depend on."""
        ...

    def close(self) -> None:
        """Free what was kept warm."""
        ...
