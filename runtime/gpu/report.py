"""What the host is told of an evaluation on the device, in the one download that it makes."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np

from impasto.runtime.gpu.evaluator import DeviceEvaluator
from impasto.runtime.gpu.memory import Memory
from impasto.runtime.gpu.protocol import Address, TensorSpec
from impasto.runtime.kernels.solver import REPORT_HEAD, SolverKernels


@dataclass(frozen=True, slots=True)
class DeviceTrial:
    """Says that a point to evaluate is on its way to the evaluator's image, and what to do with the gradient there.

    ``scale`` times the gradient is written to ``scaled``, and its slope taken along ``direction``, both float32 of the
    image's size, 0 where that is not wanted. ``iteration`` is as in `impasto.runtime.solvers.protocol.Trial`.
    """

    iteration: int
    scale: float = 1.0
    direction: Address = 0
    scaled: Address = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What was found at a trial.

    ``slope`` is that of the scaled gradient along the trial's direction, ``largest`` the largest absolute element of
    the gradient, NaN if any element is not finite. The last three are L-BFGS's: the slope at the line's origin, the
    first step along it (0 if that slope is not negative), and whether the last pair was kept.
    """

    terms: Mapping[str, float]
    slope: float
    largest: float
    origin_slope: float
    first_step: float
    kept: bool

    @property
    def loss(self) -> float:
        """The sum of the terms, in float64."""
        return float(sum(self.terms.values()))


@dataclass(frozen=True, slots=True)
class DeviceEvaluation:
    """What a device solver is sent: the loss, not finite where the trial failed, and the report."""

    loss: float
    report: Report


DeviceTrials = Generator[DeviceTrial, DeviceEvaluation, None]


class Reporter:
    """Evaluates trials, with one download each; ``kernels`` are for the solver to share."""

    def __init__(self, evaluator: DeviceEvaluator, memory: Memory) -> None:
        self._evaluator = evaluator
        self.kernels = SolverKernels(evaluator.device, evaluator.size, len(evaluator.terms), memory)
        self._spec = TensorSpec(np.dtype(np.float64), (len(REPORT_HEAD) + len(evaluator.terms),))

    def evaluate(self, trial: DeviceTrial) -> Report:
        """Evaluate at the evaluator's image, wait for it, and return what was found."""
        evaluator, kernels = self._evaluator, self.kernels
        evaluator.enqueue()
        kernels.receive(evaluator.gradient, trial.scale, trial.direction, trial.scaled)
        kernels.write_report(evaluator.losses)
        values = evaluator.device.download(kernels.report, self._spec).tolist()
        slope, largest, spoilt, origin_slope, first_step, kept = values[: len(REPORT_HEAD)]
        report = Report(
            terms=dict(zip(evaluator.terms, values[len(REPORT_HEAD) :], strict=True)),
            slope=slope,
            largest=math.nan if spoilt else largest,
            origin_slope=origin_slope,
            first_step=first_step,
            kept=bool(kept),
        )
        evaluator.observed(report.largest)
        return report
