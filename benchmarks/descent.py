"""What every worker counts, times and keeps of a descent, whoever descends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.task import Run, Task, peak_bytes
from impasto.runtime.problem import FloatArray


class Descent:
    """Evaluations of one task, told one by one; the clock stands while iterates are written."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._standing = 0.0
        self._lowest = math.inf
        self._image: FloatArray | None = None
        self.losses: list[float] = []

    def clock(self) -> float:
        """Return seconds."""
        return time.perf_counter() - self._standing

    @property
    def over(self) -> bool:
        """Whether all evaluations are made, or the loss is as low as asked."""
        return len(self.losses) >= self._task.evaluations or self._lowest <= self._task.until

    def evaluated(self, loss: float, image: Callable[[], FloatArray]) -> None:
        """Take note of an evaluation; ``image`` returns the iterate, (1, 3, size, size), which is copied if kept."""
        start = time.perf_counter()
        task = self._task
        if loss < self._lowest:
            self._lowest = loss
            if task.iterate is not None:
                self._image = image().copy()
            if task.trail is not None and loss <= task.trail_from:
                np.save(Path(task.trail) / f"{len(self.losses)}.npy", image())
        self.losses.append(loss)
        self._standing += time.perf_counter() - start

    def run(self, times: list[float], imports: int) -> Run:
        """Return what it took, and write the best iterate; ``times`` are the clock's at each evaluation and the end."""
        found = Run(np.diff(times).tolist(), self.losses, peak_bytes(), imports)
        if self._task.iterate is not None and self._image is not None:
            np.save(self._task.iterate, self._image)
        return found
