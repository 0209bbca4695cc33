"""Backend ``tensorrt``: graphs compiled by TensorRT, kernels and solver by ours, nothing leaves the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

from impasto.errors import UsageError
from impasto.export.graph import Graph
from impasto.optimize.cache import EngineCache
from impasto.optimize.gpus import GpuFacts
from impasto.optimize.tensorrt import BuildOptions, Ranges, build_engine
from impasto.runtime.backends.gpu import GpuBackend, checked_precision
from impasto.runtime.gpu.protocol import DeviceGraph
from impasto.runtime.gpu.session import Shapes
from impasto.runtime.gpu.tensorrt import TensorRTRuntime

_SMALLEST = 64
"""Sides below this get an engine of their own; above, one engine serves every picture up to the next power of two."""
_USUAL = 512


class TensorRTBackend(GpuBackend):
    """Compiles each graph for minutes, once, and runs it as fast as the GPU can.

    ``options`` are fields of `BuildOptions` other than ``tf32``, which the precision says. Raises `UnavailableError`
    where the GPU, PyCUDA or TensorRT is missing, `UsageError` for options that there are not.
    """

    name = "tensorrt"

    def __init__(
        self,
        cache: EngineCache | None = None,
        precision: str | None = None,
        *,
        options: Mapping[str, object] | None = None,
    ) -> None:
        from impasto.optimize.tensorrt_library import load
        from impasto.runtime.gpu.cuda import open_device

        precision = checked_precision(self.name, precision)
        self._options = _build_options(precision == "tf32", options or {})
        load()
        device = open_device(cache=cache)
        super().__init__(device, precision, cache)
        self._cache = cache
        self._gpu: GpuFacts = device.facts
        try:
            self._runtime = TensorRTRuntime(device.stream)
        except BaseException:
            device.close()
            raise

    def compile_for_device(self, graph: Graph, shapes: Shapes) -> DeviceGraph:
        """Return the graph's engine, from the cache or built now."""
        ranges = _ranges(graph, shapes)
        free = {name: shapes[name] for name in ranges}
        if not ranges:
            graph = graph.with_shapes(shapes)
        engine = build_engine(
            graph, self._gpu, self._cache, options=self._options, ranges=ranges, progress=self.progress
        )
        return self._runtime.graph(graph.name, engine, free, graph if self._options.refit else None)

    def versions(self) -> dict[str, str]:
        """Return the versions of TensorRT and of what the kernels run by."""
        return {"tensorrt": self._runtime.version, **self.device.versions()}

    def close(self) -> None:
        """Free what was kept warm, TensorRT's runtime, and the device."""
        super(GpuBackend, self).close()
        self._runtime.close()
        self.device.close()


def _build_options(tf32: bool, given: Mapping[str, object]) -> BuildOptions:
    try:
        return BuildOptions(tf32=tf32, **given)  # type: ignore[arg-type] # what does not fit is caught here
    except TypeError as error:
        known = ", ".join(field.name for field in fields(BuildOptions) if field.name != "tf32")
        raise UsageError(f"engine options {sorted(given)}: choose among {known}") from error


def _ranges(graph: Graph, shapes: Shapes) -> Ranges:
    """Return, for the inputs with free dimensions, which shapes one engine shall take; none for small pictures."""
    ranges: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {}
    for name, (_, declared) in graph.inputs.items():
        if all(isinstance(length, int) for length in declared):
            continue
        shape = shapes[name]
        free = [length for length, known in zip(shape, declared, strict=True) if not isinstance(known, int)]
        if min(free) < _SMALLEST:
            return {}
        most = max(2 * _USUAL, 2 ** math.ceil(math.log2(max(free))))

        def spanned(side: int, declared: tuple[object, ...] = declared) -> tuple[int, ...]:
            return tuple(known if isinstance(known, int) else side for known in declared)

        ranges[name] = spanned(_SMALLEST), spanned(_USUAL), spanned(most)
    return ranges
