"""Impasto's side: a painting as `Stylizer` does it, timed between its steps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

# Imported here and not when first used, so that their memory counts as that of imports.
import onnx  # noqa: F401
import onnxruntime  # noqa: F401

from benchmarks.pictures import square
from benchmarks.task import Run, Task, answer, peak_bytes
from impasto.optimize.cache import EngineCache
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.backends.protocol import Plan
from impasto.runtime.problem import Evaluator, FloatArray, Losses, Problem
from impasto.runtime.stylizer import Stylizer


def paint(task: Task) -> Run:
    """Paint the task."""
    if task.backend.startswith("openvino"):
        import openvino  # noqa: F401
    imports = peak_bytes()
    preset = replace(task.preset, evaluations=task.evaluations)
    content, style = square(task.content, task.size), square(task.style, task.size)
    seconds: list[float] = []
    losses: list[float] = []
    last = 0.0
    with (
        EngineCache() as cache,
        Stylizer(
            preset,
            weights=task.weights,
            backend=task.backend,
            plan=task.plan,
            precision=task.precision,
            cache=cache,
        ) as stylizer,
    ):
        keeping = _KeepingBackend(cache)
        if task.iterate is not None:
            stylizer.backend = keeping
        for step in stylizer.steps(content, style, size=task.size):
            seconds.append(step.seconds - last)
            losses.append(step.loss)
            last = step.seconds
    if task.iterate is not None:
        np.save(task.iterate, keeping.lowest.image)
    return Run(seconds, losses, peak_bytes(), imports)


class _KeepingBackend(OnnxRuntimeBackend):
    """Keeps the iterate of the lowest loss as it is: results are rounded to what a picture can hold."""

    lowest: _Lowest

    def prepare(self, problem: Problem, plan: Plan, memory: int | None = None) -> Evaluator:
        self.lowest = _Lowest(super().prepare(problem, plan, memory))
        return self.lowest


class _Lowest:
    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._loss = math.inf
        self.image: FloatArray = np.empty(0, np.float32)

    def evaluate(self, image: FloatArray) -> Losses:
        losses = self._evaluator.evaluate(image)
        if losses.total < self._loss:
            self._loss, self.image = losses.total, image.copy()
        return losses


if __name__ == "__main__":
    answer(paint)
