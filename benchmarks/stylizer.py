"""Impasto's side: a painting as `Stylizer` does it, timed between its steps."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import numpy as np

# Imported here and not when first used, so that their memory counts as that of imports.
import onnx  # noqa: F401
import onnxruntime  # noqa: F401

from benchmarks.descent import Descent
from benchmarks.pictures import square
from benchmarks.task import Run, Task, answer, peak_bytes
from benchmarks.watch import watch
from impasto.optimize.cache import EngineCache
from impasto.runtime.backends.protocol import Backend
from impasto.runtime.problem import FloatArray
from impasto.runtime.stylizer import Stylizer

_IMPORTS = {"openvino": ("openvino",), "torch": ("impasto.runtime.backends.torch",)}


def paint(task: Task) -> Run:
    """Paint the task."""
    for module in _IMPORTS.get(task.backend, ()):
        import_module(module)
    imports = peak_bytes()
    preset = replace(task.preset, evaluations=task.evaluations)
    content, style = square(task.content, task.size), square(task.style, task.size)
    descent = Descent(task)
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
        seen = _Seen(stylizer.backend) if task.iterate is not None or task.trail is not None else None
        times: list[float] = []
        painting = stylizer.begin(content, style, size=task.size, scales=1)
        for step in painting:
            times = times or [descent.clock() - step.seconds]
            times.append(descent.clock())
            descent.evaluated(step.loss, lambda: seen.image if seen else _NOTHING)
            if descent.over:
                break
        found = descent.run(times, imports)
        return replace(found, plan=painting.result().plan)


class _Seen:
    """Knows the image that was evaluated last, as it is: results are rounded to what a picture can hold."""

    def __init__(self, backend: Backend) -> None:
        self.image = _NOTHING
        watch(backend, self._see)

    def _see(self, image: FloatArray, _seconds: float) -> None:
        self.image = image


_NOTHING: FloatArray = np.empty(0, np.float32)

if __name__ == "__main__":
    answer(paint)
