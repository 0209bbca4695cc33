"""Part `kernels`: every kernel and type against float64, their times, and what they take of a multiprocessor."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from benchmarks.gpu import check_gram, check_picture, check_solver
from benchmarks.gpu.findings import Check, Part
from benchmarks.gpu.kernel_times import Time, gram_times, streaming_times
from benchmarks.gpu.peaks import torch_on_gpu
from benchmarks.gpu.resources import Resources, resources
from benchmarks.gpu.variants import engine_cache
from benchmarks.report import Bound, Table
from impasto.runtime.gpu.cuda import open_device
from impasto.runtime.gpu.protocol import Device, Kernel

CHECKS = {"gram, gram_vjp": check_gram.checks, "tv, image": check_picture.checks, "solver": check_solver.checks}

_LEAST_GRAM, _LEAST_TV = 1.3, 0.8


class Watched:
    """A device that remembers which kernels it was asked for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.kernels: set[tuple[str, str]] = set()

    def kernel(self, source: str, entry: str) -> Kernel:
        """Return the device's kernel."""
        self.kernels.add((source, entry))
        return self._device.kernel(source, entry)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)


def part(quick: bool) -> Part:
    """Check and measure on the first GPU."""
    found = Part("Kernels")
    with engine_cache() as cache, open_device(cache=cache) as device:
        watched = Watched(device)
        check(found, watched, quick)
        measure(found, watched, quick)
        with found.attempt("registers and memory of kernels"):
            figures = resources(device, watched.kernels, cache)
            found.body += [
                "What each kernel takes, as the driver tells: registers a thread, shared memory a block, and local "
                "memory a thread, which is where registers are spilled to.",
                resource_table(figures),
            ]
            found.data["resources"] = [asdict(figure) for figure in figures]
    return found


def checks(quick: bool) -> Part:
    """Check only, on the first GPU: what runs under compute-sanitizer."""
    found = Part("Kernels")
    with engine_cache() as cache, open_device(cache=cache) as device:
        check(found, device, quick)
    return found


def check(found: Part, device: Device, quick: bool) -> None:
    """Add the checks of every kernel on a device."""
    for name, run in CHECKS.items():
        print(f"  {name} …", file=sys.stderr, flush=True)
        with found.attempt(name):
            # One by one: what was found before an error stays found.
            for each in run(device, quick):
                found.checks.append(each)
    error = largest_gram_error(found.checks)
    if error is not None:
        found.targets.append(Bound("`gram` in fp32 against float64", "≤ 1e-6, relative", f"{error:.1e}", error <= 1e-6))


def measure(found: Part, device: Device, quick: bool) -> None:
    """Add the times of kernels on a device, beside cuBLAS's and beside copies."""
    with found.attempt("cuBLAS beside gram"):
        torch_on_gpu()
    print("  times …", file=sys.stderr, flush=True)
    with found.attempt("times of gram and gram_vjp"):
        timed = list(gram_times(device, quick))
        rivals = [(precision, time) for precision, time in timed if time.rival is not None]
        found.body += [
            "Times are of one launch of many in a CUDA graph, a median; those of Gram matrices are of both passes. "
            "cuBLAS is the full product `F @ F.T` by PyTorch, measured in turns; TFLOP/s of `gram` count the triangle.",
            gram_table(time for _, time in timed),
        ]
        found.data["gram"] = [asdict(time) for _, time in timed]
        slowest = min((time.speedup for precision, time in rivals if precision == "bf16"), default=None)
        if slowest is not None:
            what = "`gram` in bf16 beside cuBLAS's full product, at the worst shape"
            found.targets.append(Bound(what, f"≥ {_LEAST_GRAM}×", f"{slowest:.2f}×", slowest >= _LEAST_GRAM))
    with found.attempt("times of streaming kernels"):
        streamed = list(streaming_times(device, quick))
        found.body += [
            "Beside a copy within the device's memory that moves as many bytes as the kernel has to, in turns.",
            streaming_table(streamed),
        ]
        found.data["streaming"] = [asdict(time) for time in streamed]
        share = min(time.speedup for time in streamed if time.what.startswith("tv "))
        what = "`tv`, its slowest form, of the copy bandwidth"
        found.targets.append(Bound(what, f"≥ {_LEAST_TV:.0%}", f"{share:.0%}", share >= _LEAST_TV))


def largest_gram_error(found: Iterable[Check]) -> float | None:
    """Return the largest relative error of Gram matrices in float32; None if none was checked."""
    return max((c.error for c in found if c.what.startswith("gram fp32") and "," not in c.what), default=None)


def gram_table(times: Iterable[Time]) -> Table:
    """Return a row for each time."""
    rows = tuple(
        (
            time.what,
            "" if time.rival is None else f"{time.speedup:.2f}",
            f"{1e6 * time.seconds:.1f}",
            "" if time.rival is None else f"{1e6 * time.rival:.1f}",
            f"{1e-12 * time.flop / time.seconds:.1f}",
            f"{1e-9 * time.nbytes / time.seconds:.0f}",
        )
        for time in times
    )
    return Table(("kernel", "times as fast as cuBLAS", "µs", "cuBLAS, µs", "TFLOP/s", "GB/s"), rows)


def streaming_table(times: Iterable[Time]) -> Table:
    """Return a row for each time."""
    rows = tuple(
        (
            time.what,
            f"{time.speedup:.0%}",
            f"{1e6 * time.seconds:.1f}",
            f"{1e-9 * time.nbytes / time.seconds:.0f}",
            f"{1e-9 * time.nbytes / time.rival:.0f}" if time.rival else "",
        )
        for time in times
    )
    return Table(("kernel", "share of a copy's bandwidth", "µs", "GB/s", "copy, GB/s"), rows)


def resource_table(figures: Iterable[Resources]) -> Table:
    """Return a row for each kernel."""
    rows = tuple((f"{f.source}: {f.entry}", str(f.registers), str(f.shared), str(f.local)) for f in figures)
    return Table(("kernel", "registers", "shared, bytes", "local, bytes"), rows)
