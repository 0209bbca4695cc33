"""What the GPU reaches at best: copies within its memory, and PyTorch's (cuBLAS's) large matrix products."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.timing import Measure, in_turns, launches
from impasto.errors import UnavailableError
from impasto.runtime.gpu.protocol import Device

COPIED_BYTES = 1 << 28
"""More than any second-level cache holds."""
PRECISIONS = ("bf16", "fp16", "tf32", "fp32")


def copy_bandwidth(device: Device, nbytes: int = COPIED_BYTES, rounds: int = 7) -> float:
    """Return the bytes a second, read and written, of copies within the device's memory."""
    origin, to = device.allocate(nbytes), device.allocate(nbytes)
    try:
        measure = launches(device, lambda: device.copy(to.address, origin.address, nbytes), 10)
        return 2 * nbytes / in_turns({"copy": measure}, rounds)["copy"]
    finally:
        origin.free()
        to.free()


def torch_on_gpu() -> Any:
    """Return the module torch; raise `UnavailableError` where it is not installed or sees no GPU."""
    try:
        import torch
    except ImportError:
        raise UnavailableError("PyTorch is not installed: pip install 'impasto[reference]'") from None
    if not torch.cuda.is_available():
        raise UnavailableError(f"torch {torch.__version__} sees no GPU: install a build of torch for CUDA")
    return torch


@functools.cache
def matrix_tflops(precision: str, size: int = 8192, rounds: int = 7) -> float:
    """Return the TFLOP/s of a product of two matrices of ``size`` squared by PyTorch; raise as `torch_on_gpu`."""
    torch = torch_on_gpu()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        a, b, c = (torch.rand(size, size, device="cuda").to(dtype) for _ in range(3))
        measure = torch_launches(torch, lambda: torch.mm(a, b, out=c), 5)
        return 2e-12 * size**3 / in_turns({precision: measure}, rounds)[precision]
    finally:
        torch.set_float32_matmul_precision(before)


def torch_launches(torch: Any, enqueue: Callable[[], object], count: int) -> Measure:
    """Return a measurement of what ``enqueue`` has PyTorch enqueue, just as `launches` measures ours."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries set themselves up at the first calls, which a capture does not allow
            enqueue()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(count):
            enqueue()
    graph.replay()
    torch.cuda.synchronize()

    def measure() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    return measure
