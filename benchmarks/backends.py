"""What an evaluation costs by each backend for the CPU, and each precision that it has here, in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from benchmarks.evaluation import WARM_UP
from benchmarks.machine import Machine
from benchmarks.pictures import pairs
from benchmarks.report import Section, Table, spread
from benchmarks.task import Run, Task, Worker, run
from impasto.optimize.openvino import native_precisions
from impasto.runtime.recipes import FILTERBANK, JOHNSON

TORCH = "PyTorch, fp32"


@dataclass(frozen=True)
class Variant:
    """Who paints, by what, in which precision."""

    worker: Worker
    backend: str
    precision: str


VARIANTS: Mapping[str, Variant] = {
    TORCH: Variant("plain_torch", "torch", "fp32"),
    "PyTorch, bf16 (channels_last)": Variant("plain_torch", "torch", "bf16"),
    "Impasto, onnxruntime": Variant("stylizer", "onnxruntime", "fp32"),
    "Impasto, openvino fp32": Variant("stylizer", "openvino", "fp32"),
    "Impasto, openvino bf16": Variant("stylizer", "openvino", "bf16"),
}


def variants_here() -> dict[str, Variant]:
    """Return the variants that can run here and compute natively."""
    native = native_precisions()
    return {
        name: variant
        for name, variant in VARIANTS.items()
        if variant.precision in native and (variant.backend != "openvino" or find_spec("openvino"))
    }


def measure(task: Task, variants: Mapping[str, Variant], rounds: int) -> dict[str, list[Run]]:
    """Run the task by every variant, ``rounds`` times in turns."""
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(rounds):
            for name, variant in variants.items():
                asked = replace(task, backend=variant.backend, precision=variant.precision)
                runs[name].append(run(variant.worker, asked, Path(cache)))
    return runs


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    size, rounds, evaluations = (96, 1, 5) if quick else (512, 5, 12)
    variants = variants_here()
    johnson = measure(Task(JOHNSON, "random", *pairs()[0], size, evaluations), variants, rounds)
    ours = {name: variant for name, variant in variants.items() if variant.worker == "stylizer"}
    filterbank = replace(FILTERBANK, stages=())
    bank = measure(Task(filterbank, FILTERBANK.weights, *pairs()[0], size, evaluations), ours, rounds)
    return Section(
        title="Backends for the CPU",
        body=(
            f"One evaluation at {size}×{size} px, solver and loop included: the median of the "
            f"{evaluations - WARM_UP} evaluations after the first {WARM_UP}, in each of {rounds} rounds. First "
            "`johnson`, full VGG-19 with random weights, then the filter bank.",
            backends_table(johnson),
            backends_table(bank),
        ),
        bounds=(),
        data={
            preset: {name: [asdict(one) for one in found] for name, found in runs.items()}
            for preset, runs in (("johnson", johnson), ("filterbank", bank))
        },
    )


def backends_table(runs: Mapping[str, list[Run]]) -> Table:
    """Return a row for each variant, ratios to the first first."""
    times = {name: [1e3 * median(one.seconds[WARM_UP:]) for one in found] for name, found in runs.items()}
    first = next(iter(times))
    rows = tuple(
        (
            name,
            "1" if name == first else spread([a / b for a, b in zip(times[first], own, strict=True)]),
            spread(own, ".0f"),
            f"{max(one.peak_bytes for one in runs[name]) / 1e9:.2f}",
        )
        for name, own in times.items()
    )
    return Table(("", f"times as fast as {first}", "ms", "peak memory, GB"), rows)
