"""Engines for ONNX Runtime on the CPU: optimised models, kept in the engine cache.

An engine here is the model after constant folding (which turns the convolution kernels over for the gradient),
fusion and the layout that suits the CPU. Loading it takes a fifth of the time of optimising again.

Session options, chosen by measurement (`docs/decisions/0003-onnxruntime-session-options.md`): all optimisations;
no memory pattern, which costs 0.8 GB at 512 px and gains nothing; one thread per available CPU; sequential execution.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from impasto.errors import EngineError, GraphError, UnavailableError
from impasto.export.graph import Graph
from impasto.optimize.cache import EngineCache
from impasto.optimize.cpus import available_cpus
from impasto.optimize.keys import EngineKey

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

ENGINE = "engine.onnx"
_PROVIDERS = ["CPUExecutionProvider"]
_ERRORS_ONLY = 3


def build_session(
    graph: Graph, cache: EngineCache | None = None, *, threads: int | None = None, arena: bool = True
) -> InferenceSession:
    """Return a session that runs ``graph``, its engine taken from the cache or built and put there.

    Without a cache the graph is optimised in memory. ``threads`` is the number of threads of one run, by default
    the CPUs available to this process. ``arena`` keeps the memory of one run for the next. Raises
    `UnavailableError` without ONNX Runtime, `GraphError` for a graph that it refuses, `EngineError` for an engine
    that it cannot load.
    """
    ort = import_onnxruntime()
    threads = threads or available_cpus()
    if cache is None:
        return _session(ort, graph.model().SerializeToString(), _options(ort, threads, arena), GraphError, graph.name)

    def build(folder: Path) -> None:
        options = _options(ort, threads, arena)
        options.optimized_model_filepath = str(folder / ENGINE)
        _session(ort, graph.model().SerializeToString(), options, GraphError, graph.name)

    options = _options(ort, threads, arena)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    key = _key(ort, graph)
    engine = cache.get_or_build(key, build) / ENGINE
    if not engine.exists():  # another process pruned the cache just now
        engine = cache.get_or_build(key, build) / ENGINE
    return _session(ort, str(engine), options, EngineError, graph.name)


def version() -> str:
    """Return ONNX Runtime's version; raise `UnavailableError` where it is not installed."""
    return str(import_onnxruntime().__version__)


def import_onnxruntime() -> Any:
    """Return the package; raise `UnavailableError` where it cannot be imported."""
    try:
        import onnxruntime
    except ImportError as cause:
        raise UnavailableError(f"ONNX Runtime cannot be imported ({cause}): pip install onnxruntime") from cause
    return onnxruntime


def _key(ort: Any, graph: Graph) -> EngineKey:
    from impasto import __version__

    shape = next(iter(graph.inputs.values()))[1]
    return EngineKey(
        kind="onnxruntime",
        graph=graph.digest(),
        weights="",
        shape=tuple(d for d in shape if isinstance(d, int)) if all(isinstance(d, int) for d in shape) else (),
        precision="fp32",
        options={"optimization": "all"},
        versions={"onnxruntime": str(ort.__version__), "impasto": __version__},
    )


def _options(ort: Any, threads: int, arena: bool) -> SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = _ERRORS_ONLY
    return options


def _session(
    ort: Any, model: bytes | str, options: SessionOptions, error: type[GraphError | EngineError], name: str
) -> InferenceSession:
    try:
        return ort.InferenceSession(model, options, providers=_PROVIDERS)
    except Exception as cause:  # ONNX Runtime's exceptions have no common base class
        first = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise error(f"ONNX Runtime refuses {name!r}: {first}") from cause
