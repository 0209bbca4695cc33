"""The solvers' kernels against NumPy: bits where every operation rounds as NumPy's does, float64 elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.findings import Check, differing, distance, worst
from benchmarks.gpu.room import F32, F64, TYPES, Room
from impasto.runtime.gpu.history import DeviceHistory
from impasto.runtime.gpu.protocol import Device
from impasto.runtime.kernels.solver import REPORT_HEAD, AdamVectors, SegmentSums, SolverKernels, VectorKernels


def checks(device: Device, quick: bool) -> Iterator[Check]:
    """Check vectors of a few sizes, the largest a picture's."""
    for size in (3, 1025) if quick else (1, 3, 1025, 3 * 512 * 512 + 1):
        yield from _conversions(device, size)
        yield from _passes(device, size)
        yield from _adam(device, size)
    yield from _sums(device)
    yield from _direction(device, 300 if quick else 3 * 512 * 512)


def _random(seed: int, size: int) -> NDArray[np.float32]:
    """Draw normal numbers of sizes 10⁻³ to 10³."""
    stream = np.random.default_rng(seed)
    return (stream.standard_normal(size) * 10 ** stream.uniform(-3, 3, size)).astype(np.float32)


def _conversions(device: Device, size: int) -> Iterator[Check]:
    x, y = _random(6, size), _random(7, size)
    for precision, dtype in TYPES.items():
        with Room(device) as room:
            vectors = VectorKernels(device)
            a, b = x.astype(dtype), y.astype(dtype)
            to, wide = room.put(a), room.empty(size)
            vectors.accumulate(to, room.put(b), size, dtype)
            added = (a.astype(F32) + b.astype(F32)).astype(dtype)
            error = differing(room.get(to, size, dtype), added)
            vectors.narrow(to, room.put(x), size, dtype, 3.0)
            narrowed = (x * np.float32(3)).astype(dtype)
            error += differing(room.get(to, size, dtype), narrowed)
            vectors.widen(wide, to, size, dtype, 0.25)
            error += differing(room.get(wide, size), narrowed.astype(F32) * np.float32(0.25))
            vectors.fill(to, 1.1, size, dtype)
            error += differing(room.get(to, size, dtype), np.full(size, 1.1, F32).astype(dtype))
        yield Check(f"solver accumulate, narrow, widen, fill {precision} {size}", error, 0, "bits")


def _passes(device: Device, size: int) -> Iterator[Check]:
    gradient, direction, x, other = (_random(seed, size) for seed in (8, 9, 10, 11))
    with Room(device) as room:
        kernels = SolverKernels(device, size, 2, room.memory)
        scaled, trial, losses = room.empty(size), room.empty(size), np.array([1.25, 3.5])
        places = room.put(gradient), room.put(direction), room.put(x)
        kernels.receive(places[0], 0.25, places[1], scaled)
        kernels.write_report(room.put(losses))
        report = room.get(kernels.report, len(REPORT_HEAD) + 2, F64)
        head = dict(zip(REPORT_HEAD, report, strict=False))
        error = differing(room.get(scaled, size), gradient * np.float32(0.25)) + differing(report[-2:], losses)
        error += abs(head["largest"] - float(np.abs(gradient).max())) + head["spoilt"]
        kernels.move(places[2], places[1], 0.1, trial)
        moved = x + direction * np.float32(0.1)
        error += differing(room.get(trial, size), moved)
        step, change = room.empty(size), room.empty(size)
        kernels.pair(trial, places[2], (places[0], room.put(other)), step, change)
        error += differing(room.get(step, size), moved - x) + differing(room.get(change, size), gradient - other)
        error += differing(room.get(places[2], size), moved)
        yield Check(f"solver receive, report, move, pair {size}", error, 0, "bits")
        products = (gradient * np.float32(0.25)).astype(F64) * direction
        # Products are exact in float64; every addition rounds by 1.1e-16 of a partial sum.
        slope = abs(head["slope"] - math.fsum(products)) / np.abs(products).sum()
        yield Check(f"solver slope {size}", slope, 1.2e-16 * size, "of its terms")


def _adam(device: Device, size: int) -> Iterator[Check]:
    x, gradient, m, v = (_random(seed, size) for seed in (12, 13, 14, 15))
    v, low, high = np.abs(v), np.array([-0.5], F32), np.array([0.5], F32)
    settings: dict[str, Any] = {"scale": 0.25, "betas": (0.9, 0.999), "bias": 0.4, "eps": 1e-3, "rate": 0.7}
    with Room(device) as room:
        places = [room.put(values) for values in (x, gradient, m, v)]
        good = room.empty(size)
        SolverKernels(device, size, 0, room.memory).adam(
            AdamVectors(places[0], good, places[0], *places[1:]),
            **settings,
            bounds=(room.put(low), room.put(high)),
            bound_size=size,
        )
        found = [room.get(place, size) for place in (good, places[0], places[2], places[3])]
    scaled = gradient * np.float32(0.25)
    new_m = m * np.float32(0.9) + scaled * np.float32(1 - 0.9)
    new_v = v * np.float32(0.999) + scaled * scaled * np.float32(1 - 0.999)
    step = new_m / (np.sqrt(new_v) / np.float32(0.4) + np.float32(1e-3)) * np.float32(0.7)
    expected = [x, (x - step).clip(low, high), new_m, new_v]
    error = sum(differing(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    yield Check(f"solver adam {size}", error, 0, "bits")


def _sums(device: Device) -> Iterator[Check]:
    stream = np.random.default_rng(16)
    parts = [(term, stream.random(count)) for term, count in ((2, 1), (0, 700), (2, 256), (0, 5))]
    scattered = np.full(64 * 5, np.nan, F32)
    scattered[::64] = stream.random(5)
    with Room(device) as room:
        out = room.empty(3, F64)
        sums = SegmentSums(device, [(term, room.put(values), len(values)) for term, values in parts], out)
        sums.enqueue()
        found = room.get(out, 3, F64)
        sums.close()
        gathered = room.empty(5, F64)
        VectorKernels(device).gather_scalars(room.put(scattered), 256, 5, gathered)
        error = differing(room.get(gathered, 5, F64), scattered[::64].astype(F64))
    exact = np.array(
        [math.fsum(np.concatenate([v for t, v in parts if t == term] or [np.zeros(1)])) for term in range(3)]
    )
    yield Check("solver sums of segments", worst(found, exact, exact), 1.2e-16 * 705, "of the sum")
    yield Check("solver gathered scalars", error, 0, "bits")


def _direction(device: Device, size: int) -> Iterator[Check]:
    """L-BFGS's direction after more pairs than are kept, on a quadratic, against the two-loop recursion in float64."""
    stream = np.random.default_rng(17)
    curvatures = stream.uniform(0.5, 2, size).astype(F32)
    points = stream.standard_normal((7, size), np.float32)
    gradients = points * curvatures
    kept = 4
    with Room(device) as room:
        kernels = SolverKernels(device, size, 0, room.memory)
        history = DeviceHistory(kernels, kept)
        x, direction, gradient = room.put(points[0]), room.empty(size), room.put(gradients[0])
        spoilt = 0.0
        for point, value in zip(points[1:], gradients[1:], strict=True):
            before, gradient = gradient, room.put(value)
            history.add(room.put(point), x, gradient, before)
            report = room.get(kernels.report, len(REPORT_HEAD), F64)
            spoilt += report[REPORT_HEAD.index("kept")] != 1
            history.learn(True)
        history.aim(gradient, direction, 1.0)
        found = room.get(direction, size)
        report = room.get(kernels.report, len(REPORT_HEAD), F64)
    pairs = [(points[i] - points[i - 1], gradients[i] - gradients[i - 1]) for i in range(7 - kept, 7)]
    exact = two_loops([(s.astype(F64), y.astype(F64)) for s, y in pairs], gradients[-1].astype(F64))
    # Products are float32 sums of four, 2.4e-7 each; γ and coefficients are float32; the recursion amplifies by the
    # condition of the pairs, which is about 4 for each.
    yield Check(f"solver direction of L-BFGS {size}", distance(found, exact) + spoilt, 1e-5, "of the direction")
    slope = report[REPORT_HEAD.index("origin_slope")]
    wanted = float(gradients[-1].astype(F64) @ found.astype(F64))
    yield Check(f"solver slope of the direction {size}", abs(slope / wanted - 1), 1e-12, "of the slope")


def two_loops(
    pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]], gradient: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return −H·gradient (Nocedal & Wright, "Numerical Optimization", 2nd ed., algorithm 7.4), oldest pair first."""
    q, alphas = gradient.copy(), []
    for s, y in reversed(pairs):
        alphas.append((s @ q) / (s @ y))
        q -= alphas[-1] * y
    s, y = pairs[-1]
    r = (s @ y) / (y @ y) * q
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        r += (alpha - (y @ r) / (s @ y)) * s
    return -r
