"""Engines for OpenVINO: compiled models, kept in the engine cache.

An engine is what OpenVINO's ``export_model`` writes: the model after its transformations, with constants folded (which
turns the convolution kernels over for the gradient). Loading it leaves these out; kernels for the CPU are still made.

The precision that a graph computes in is in the graph (`impasto.export.precision`), tensor by tensor, and OpenVINO
is told to keep to it. Its own way, a graph in float32 and a hint, would round Gram matrices to bf16 before targets are
taken from them (`docs/decisions/0011-cpu-backends.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from impasto.errors import EngineError, GraphError, ImpastoError, LimitError, UnavailableError, UnknownNameError
from impasto.export.graph import Graph
from impasto.export.precision import Precision
from impasto.optimize.cache import EngineCache
from impasto.optimize.channels_last import channels_last_grams
from impasto.optimize.cpus import available_cpus
from impasto.optimize.keys import EngineKey, cpu

if TYPE_CHECKING:
    from openvino import CompiledModel, Tensor

ENGINE = "engine.blob"
DEVICES = ("CPU", "GPU", "NPU")
"""Of several GPUs each has a number: ``GPU.0``, ``GPU.1``."""
_MOST_LINES = 3
"""Of OpenVINO's reasons that are worth telling; links follow."""


@dataclass(frozen=True, eq=False)
class Engine:
    """A compiled graph, and the file in memory that its weights may be read from: for as long as it is used."""

    model: CompiledModel
    memory: Tensor | None = None


def compile_graph(
    graph: Graph,
    cache: EngineCache | None = None,
    *,
    device: str = "CPU",
    precision: Precision = "fp32",
    threads: int | None = None,
) -> Engine:
    """Return the graph compiled for a device, taken from the cache or built and put there.

    ``precision`` is the one that the graph was exported in. ``threads`` is the number of CPU threads of one run, by
    default the CPUs available to this process. Raises `UnavailableError` without OpenVINO, `GraphError` for a graph
    that it refuses, `EngineError` for an engine that it cannot load, `LimitError` where memory does not suffice.
    """
    ov = import_openvino()
    core = ov.Core()
    settings = _settings(ov, device, precision, threads or available_cpus())
    if device == "CPU":
        graph = channels_last_grams(graph)

    def compiled() -> CompiledModel:
        model = graph.model().SerializeToString()
        try:
            return core.compile_model(core.read_model(model), device, settings)
        except Exception as cause:  # OpenVINO raises RuntimeError and what pybind11 makes of C++ exceptions
            raise failure(cause, GraphError, f"OpenVINO refuses {graph.name!r}", graph.name) from cause

    if cache is None:
        return Engine(compiled())

    def build(folder: Path) -> None:
        with (folder / ENGINE).open("wb") as file:
            file.write(compiled().export_model().getbuffer())

    key = _key(ov, core, graph, device, precision)
    engine = cache.get_or_build(key, build) / ENGINE
    if not engine.exists():  # another process pruned the cache just now
        engine = cache.get_or_build(key, build) / ENGINE
    try:
        # Over the mapped file, copied on a write that never comes: tensors have no other way to say that they are read.
        blob = ov.Tensor(np.memmap(engine, np.uint8, mode="c"), shared_memory=True)
        return Engine(core.import_model(blob, device, settings), blob)
    except Exception as cause:
        raise failure(cause, EngineError, f"OpenVINO cannot load the engine of {graph.name!r}", graph.name) from cause


def require_device(name: str) -> None:
    """Raise `UnknownNameError` for a device that OpenVINO has no name for, `UnavailableError` for one not here."""
    if name.split(".")[0] not in DEVICES:
        raise UnknownNameError("OpenVINO device", name, DEVICES)
    here = import_openvino().Core().available_devices
    if name not in here and f"{name}.0" not in here:
        raise UnavailableError(
            f"OpenVINO finds no {name} here, only {', '.join(here)}: install its driver, or take one"
        )


def native_precisions() -> tuple[Precision, ...]:
    """Return the precisions that this CPU multiplies natively, float32 first.

    Others are emulated, several times slower than float32 (bf16 on Cascade Lake: 16 s for what takes 3 s). OpenVINO's
    own word is no guide there: it takes any hint. Nor is x86's avx512_fp16, by which fp16 takes half as long again as
    float32.
    """
    features = set(cpu()["features"].split())
    half: dict[Precision, set[str]] = {"bf16": {"avx512_bf16", "amx_bf16"}, "fp16": {"asimdhp"}}
    return ("fp32", *(precision for precision, sets in half.items() if sets & features))


def version() -> str:
    """Return OpenVINO's version; raise `UnavailableError` where it is not installed."""
    return str(import_openvino().__version__).split("-")[0]


def import_openvino() -> Any:
    """Return the package; raise `UnavailableError` where it cannot be imported."""
    try:
        import openvino
    except (ImportError, OSError) as cause:  # OSError: a library that the loader cannot find
        raise UnavailableError(f"OpenVINO cannot be imported ({cause}): pip install 'impasto[openvino]'") from cause
    return openvino


def failure(cause: Exception, kind: type[GraphError | EngineError], what: str, name: str) -> ImpastoError:
    """Return the error to raise for one of OpenVINO's: `LimitError` for memory, else ``kind`` saying ``what``."""
    lines = [line for line in str(cause).splitlines() if line.strip()]
    if isinstance(cause, MemoryError) or any("bad_alloc" in line or "allocate" in line for line in lines):
        return LimitError(f"out of memory in {name!r}: lower --size, or close other programs")
    # The first lines say where in OpenVINO's sources it was noticed.
    reasons = [line for line in lines if not line.startswith("Exception from ")]
    return kind(f"{what}: {' '.join(reasons[:_MOST_LINES]) or type(cause).__name__}")


def _settings(ov: Any, device: str, precision: Precision, threads: int) -> dict[str, Any]:
    # "dynamic" leaves every tensor the type that the graph gives it.
    types = {"fp32": ov.Type.f32, "bf16": ov.Type.dynamic, "fp16": ov.Type.dynamic}
    properties = ov.properties
    settings: dict[str, Any] = {properties.hint.inference_precision(): types[precision]}
    if device == "CPU":
        settings |= {
            properties.num_streams(): 1,
            properties.inference_num_threads(): threads,
            # Threads pinned to processors suffer from whatever else runs there, and stay where the scheduler left.
            properties.hint.enable_cpu_pinning(): False,
        }
    return settings


def _key(ov: Any, core: Any, graph: Graph, device: str, precision: Precision) -> EngineKey:
    from impasto import __version__

    shape = next(iter(graph.inputs.values()))[1]
    machine = cpu() if device == "CPU" else {"device": str(core.get_property(device, "FULL_DEVICE_NAME"))}
    return EngineKey(
        kind="openvino",
        graph=graph.digest(),
        weights="",
        shape=tuple(d for d in shape if isinstance(d, int)) if all(isinstance(d, int) for d in shape) else (),
        precision=precision,
        options={"device": device},
        versions={"openvino": str(ov.__version__), "impasto": __version__},
        machine=machine,
    )
