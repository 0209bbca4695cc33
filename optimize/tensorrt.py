"""Engines for NVIDIA GPUs: ONNX graphs compiled by TensorRT 10.4 to 11, kept in the engine cache.

Networks are strongly typed, so the precision is the graph's: what is float16 there is computed in float16. An engine
runs only on the GPU, the driver and the exact TensorRT version that it was built with, and all of them are part of
its key. It is executable code, so it is only ever taken from `EngineCache`, which checks owner, mode and digest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from impasto.errors import GraphError, UsageError
from impasto.export.graph import Graph
from impasto.optimize.cache import EngineCache
from impasto.optimize.fold import fold_constants
from impasto.optimize.gpus import GpuFacts
from impasto.optimize.keys import EngineKey
from impasto.optimize.tensorrt_library import Messages, load, make_logger, refusal, start
from impasto.optimize.timing_cache import TimingCache

ENGINE = "engine.trt"

Shape = tuple[int, ...]
Ranges = Mapping[str, tuple[Shape, Shape, Shape]]
"""For each input with free dimensions: the smallest shape, the one to be fastest at, and the largest."""

Progress = Callable[[str, int, int], None]
"""Called with a phase of the build, how many of its steps are done, and how many there are; phases nest."""


@dataclass(frozen=True)
class BuildOptions:
    """How TensorRT builds.

    ``tf32`` lets float32 convolutions round their inputs to TF32 (10 bits of mantissa); ``workspace`` is the most
    device memory that a layer may use beside its tensors, in bytes, None for no limit; ``level``, 0 to 5, is how hard
    the builder searches (3 is TensorRT's own default, 5 takes several times as long); ``refit`` leaves the weights
    replaceable, so that other weights need no other engine, at some cost in speed.

    Raises `UsageError` for values of another type, and for those that TensorRT does not have.
    """

    tf32: bool = False
    workspace: int | None = None
    level: int = 3
    refit: bool = False

    def __post_init__(self) -> None:
        # By type, since True is a 1: both would be taken, and be engines of different keys.
        if type(self.level) is not int or not 0 <= self.level <= 5:
            raise UsageError(f"builder level {self.level} does not exist: give 0 to 5")
        if self.workspace is not None and (type(self.workspace) is not int or not 0 < self.workspace < 1 << 63):
            raise UsageError(f"a workspace of {self.workspace} bytes is none: give a positive whole number")
        for name in ("tf32", "refit"):
            if type(getattr(self, name)) is not bool:
                raise UsageError(f"builder option {name} is {getattr(self, name)!r}: give true or false")


def build_engine(
    graph: Graph,
    gpu: GpuFacts,
    cache: EngineCache | None = None,
    *,
    options: BuildOptions | None = None,
    ranges: Ranges | None = None,
    progress: Progress | None = None,
    current: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> bytes:
    """Return the graph compiled for the GPU that ``gpu`` describes: from the cache, or built.

    ``ranges`` names exactly the inputs that have free dimensions. Building takes a thread of its own, in which the
    context that ``current`` returns is entered, to make the GPU's CUDA context current (by default CUDA takes the
    first GPU), and ``progress`` is called. What that raises cancels the build and is raised here, as is a
    KeyboardInterrupt, and the cache stays as it was.

    Raises `UnavailableError` without TensorRT, a GPU or a new enough driver, `GraphError` for a graph that TensorRT
    does not read or cannot compile, `LimitError` where the device's memory does not suffice to build.
    """
    trt = load()
    options = options or BuildOptions()
    ranges = dict(ranges or {})
    free = {name for name, (_, shape) in graph.inputs.items() if not all(isinstance(d, int) for d in shape)}
    if free != set(ranges):
        raise GraphError(f"graph {graph.name!r} has free dimensions in {sorted(free)}, ranges for {sorted(ranges)}")
    if cache is None:
        return _cancellable(_Build(trt, graph, options, ranges, None), _Monitored(trt, progress), current)
    version = str(trt.__version__)
    build = _Build(trt, graph, options, ranges, TimingCache(cache.root, version, gpu))
    key = engine_key(graph, gpu, version, options, ranges)

    def write(folder: Path) -> None:
        (folder / ENGINE).write_bytes(_cancellable(build, _Monitored(trt, progress), current))

    def found() -> bytes:
        return (cache.get_or_build(key, write) / ENGINE).read_bytes()

    try:
        return found()
    except FileNotFoundError:  # another process pruned the cache just now
        return found()


def engine_key(graph: Graph, gpu: GpuFacts, version: str, options: BuildOptions, ranges: Ranges) -> EngineKey:
    """Return what an engine depends on; with ``options.refit`` that is the graph without its weights' values."""
    from impasto import __version__

    shape = next(iter(graph.inputs.values()))[1]
    settings = {name: str(value) for name, value in asdict(options).items()}
    spans = {f"range.{name}": "/".join("x".join(map(str, s)) for s in span) for name, span in ranges.items()}
    return EngineKey(
        kind="tensorrt",
        graph=(_without_weights(graph) if options.refit else graph).digest(),
        weights="",
        shape=() if ranges else tuple(d for d in shape if isinstance(d, int)),
        precision=_precision(graph),
        options=settings | spans,
        versions={"tensorrt": version, "impasto": __version__},
        machine=gpu.machine(),
    )


class _Build:
    """One build: called with a progress monitor it returns the engine, or raises what `build_engine` says."""

    def __init__(
        self, trt: Any, graph: Graph, options: BuildOptions, ranges: Ranges, timings: TimingCache | None
    ) -> None:
        self._trt, self._graph, self._options, self._ranges, self._timings = trt, graph, options, ranges, timings

    def __call__(self, monitor: Any) -> bytes:
        messages = Messages()
        log = make_logger(self._trt, messages)
        builder = start(self._trt.Builder, log, messages)
        network = builder.create_network(1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = self._trt.OnnxParser(network, log)  # it owns the weights until the engine is built
        if not parser.parse(fold_constants(self._graph).model().SerializeToString()):
            raise GraphError(
                f"TensorRT does not read graph {self._graph.name!r}: {parser_errors(parser) or messages.reason}"
            )
        config = self._configure(builder, monitor)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            what = f"TensorRT cannot compile graph {self._graph.name!r}"
            raise refusal(messages, what, "give it more workspace, or another size or precision", GraphError)
        if self._timings is not None:
            self._timings.keep(config)
        return bytes(engine)

    def _configure(self, builder: Any, monitor: Any) -> Any:
        trt, options = self._trt, self._options
        config = builder.create_builder_config()
        if options.tf32:
            config.set_flag(trt.BuilderFlag.TF32)
        else:
            config.clear_flag(trt.BuilderFlag.TF32)  # it is on by default
        if options.refit:
            config.set_flag(trt.BuilderFlag.REFIT)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
        config.builder_optimization_level = options.level
        config.progress_monitor = monitor
        if self._ranges:
            profile = builder.create_optimization_profile()
            for name, (smallest, usual, largest) in self._ranges.items():
                profile.set_shape(name, smallest, usual, largest)
            if config.add_optimization_profile(profile) < 0:
                raise GraphError(f"graph {self._graph.name!r} does not take the ranges {self._ranges!r}")
        if self._timings is not None:
            self._timings.attach(config)
        return config


def parser_errors(parser: Any) -> str:
    """Return all errors of a `tensorrt.OnnxParser` or `OnnxParserRefitter` on one line, each with its node."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return "; ".join(
        f"{error.node_operator() or 'model'} {error.node_name()!r}: {' '.join(error.desc().split())}"
        for error in errors
    )


def _cancellable(build: _Build, monitored: _Monitored, current: Callable[[], AbstractContextManager[object]]) -> bytes:
    """Build in a thread of its own, so that this one is in Python when a KeyboardInterrupt comes.

    One that came while this thread is in TensorRT would be raised in the logger or the monitor, where the bindings
    swallow every exception.
    """

    def work() -> bytes:
        with current():
            return build(monitored.monitor)

    with ThreadPoolExecutor(1, "impasto-build") as pool:
        try:
            return pool.submit(work).result()
        except BaseException:
            monitored.cancelled.set()
            if monitored.raised is not None:
                raise monitored.raised from None
            raise


class _Monitored:
    """A build's progress: ``monitor`` is TensorRT's, ``raised`` what the callback raised, and that cancels."""

    def __init__(self, trt: Any, progress: Progress | None) -> None:
        self.cancelled = threading.Event()
        self.raised: BaseException | None = None
        self.monitor = self._make(trt)
        self._progress = progress
        self._steps: dict[str, int] = {}

    def _make(self, trt: Any) -> Any:
        outer = self

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
                outer._steps[phase_name] = num_steps
                outer._tell(phase_name, 0)

            def step_complete(self, phase_name: str, step: int) -> bool:
                outer._tell(phase_name, step + 1)
                return not outer.cancelled.is_set()

            def phase_finish(self, phase_name: str) -> None:
                outer._steps.pop(phase_name, None)

        return Monitor()

    def _tell(self, phase: str, done: int) -> None:
        steps = self._steps.get(phase)
        if self._progress is None or steps is None or self.cancelled.is_set():
            return
        try:
            self._progress(phase, done, steps)
        except BaseException as error:  # the bindings would swallow it
            self.raised = error
            self.cancelled.set()


def _without_weights(graph: Graph) -> Graph:
    """Return the graph with zeros for what a refit replaces: its float constants but the scalars, which are options."""
    bare = graph.copy(graph.name)
    for name, value in graph.constants.items():
        if value.ndim and _is_float(value.dtype):
            bare.constants[name] = np.broadcast_to(np.zeros((), value.dtype), value.shape)
    return bare


def _precision(graph: Graph) -> str:
    """Return what the graph computes its layers in: its narrowest float type."""
    types = {value.dtype for value in graph.constants.values()} | {dtype for dtype, _ in graph.inputs.values()}
    if np.dtype(np.float16) in types:
        return "fp16"
    return "bf16" if np.dtype(ml_dtypes.bfloat16) in types else "fp32"


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype == ml_dtypes.bfloat16 or np.issubdtype(dtype, np.floating)
