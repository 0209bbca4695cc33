"""Backend ``cuda``: graphs by ONNX Runtime's CUDA provider on the device loop's stream, kernels and solver by ours."""

from __future__ import annotations

from impasto.export.graph import Graph
from impasto.optimize.cache import EngineCache
from impasto.optimize.onnxruntime import version
from impasto.optimize.onnxruntime_gpu import Provider, cuda_provider, require_provider, require_working
from impasto.runtime.backends.gpu import GpuBackend, checked_precision
from impasto.runtime.gpu.onnxruntime import OnnxRuntimeGraph
from impasto.runtime.gpu.protocol import Device, DeviceGraph
from impasto.runtime.gpu.session import Shapes


class CudaBackend(GpuBackend):
    """Compiles within seconds, and runs the network about as fast as PyTorch does.

    ``device`` and ``provider`` are for tests; by default they are those of the first GPU that is visible. Raises
    `UnavailableError` where the GPU, PyCUDA or ONNX Runtime's provider is missing or cannot run.
    """

    name = "cuda"

    def __init__(
        self,
        cache: EngineCache | None = None,
        precision: str | None = None,
        *,
        device: Device | None = None,
        provider: Provider | None = None,
    ) -> None:
        precision = checked_precision(self.name, precision)
        if provider is None:
            require_provider("CUDAExecutionProvider")
        if device is None:
            from impasto.runtime.gpu.cuda import open_device

            device = open_device(cache=cache)
        super().__init__(device, precision, cache)
        self._provider = provider or cuda_provider(stream=device.stream, tf32=precision == "tf32")
        try:
            require_working(self._provider)
        except BaseException:
            self.close()
            raise

    def compile_for_device(self, graph: Graph, shapes: Shapes) -> DeviceGraph:
        """Return the graph as ONNX Runtime runs it."""
        return OnnxRuntimeGraph(graph.with_shapes(shapes), self._provider)

    def versions(self) -> dict[str, str]:
        """Return the versions of ONNX Runtime and of what the kernels run by."""
        return {"onnxruntime": version(), **self.device.versions()}
