"""How long things take on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

from impasto.runtime.gpu.protocol import Device

Measure = Callable[[], float]
"""Returns the seconds of one launch, from one measurement."""


def launches(device: Device, enqueue: Callable[[], None], count: int) -> Measure:
    """Return a measurement of what ``enqueue`` enqueues: ``count`` of them in a CUDA graph, between two waits.

    So the host's part in launching is not measured. The graph runs once before.
    """

    def repeated() -> None:
        for _ in range(count):
            enqueue()

    enqueue()  # kernels are loaded at their first launch, which a capture does not allow
    device.synchronize()
    replay = device.capture(repeated)
    replay()
    device.synchronize()

    def measure() -> float:
        device.synchronize()
        start = time.perf_counter()
        replay()
        device.synchronize()
        return (time.perf_counter() - start) / count

    return measure


def in_turns(measures: Mapping[str, Measure], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, measured in turns."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: median(values) for name, values in found.items()}
