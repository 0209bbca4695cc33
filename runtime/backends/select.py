"""Backends by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from impasto.errors import UnavailableError, UnknownNameError, UsageError
from impasto.optimize.cache import EngineCache
from impasto.runtime.backends.protocol import Backend

BACKENDS = (
    "tensorrt",
    "cuda",
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "torch",
    "torch-cuda",
)
"""Every backend; ``auto`` takes the first of `_AUTOMATIC` that can run here."""

_AUTOMATIC = ("tensorrt", "cuda", "onnxruntime")
_GPU_PACKAGES = {"tensorrt": ("tensorrt", "pycuda"), "cuda": ("pycuda",)}
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")


def open_backend(
    name: str = "auto", cache: EngineCache | None = None, threads: int | None = None, precision: str | None = None
) -> Backend:
    """Return the backend of that name, or for ``auto`` the preferred one of those that can run here.

    A backend that is asked for by name is used, or this raises. ``precision`` is by default the backend's own: tf32 on
    GPUs, fp32 elsewhere. ``threads`` is for backends that run on the CPU.

    Raises `UnknownNameError` for an unknown name, `UnavailableError` where what it needs is not here, `UsageError` for
    a precision that the backend does not have.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    if name == "auto":
        return _first(_AUTOMATIC, cache, threads, precision)
    match name:
        case "onnxruntime":
            from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend

            _require_fp32(name, precision)
            return OnnxRuntimeBackend(cache, threads)
        case "torch" | "torch-cuda":
            # The reference module names the missing package itself.
            import impasto.models.reference  # noqa: F401
            from impasto.runtime.backends.torch import TorchBackend

            _require_fp32(name, precision)
            return TorchBackend(device="cuda" if name == "torch-cuda" else "cpu")
        case "onnxruntime-cuda" | "onnxruntime-tensorrt":
            from impasto.runtime.backends.onnxruntime_gpu import OnnxRuntimeGpuBackend

            return OnnxRuntimeGpuBackend(name, cache, precision)
        case "cuda":
            from impasto.runtime.backends.cuda import CudaBackend

            return CudaBackend(cache, precision)
        case "tensorrt":
            from impasto.runtime.backends.tensorrt import TensorRTBackend

            return TensorRTBackend(cache, precision)
    raise UnknownNameError("backend", name, ("auto", *BACKENDS))


def _first(names: Sequence[str], cache: EngineCache | None, threads: int | None, precision: str | None) -> Backend:
    """Open the first that can run; GPUs are looked for only where the packages for them were installed."""
    for name in names[:-1]:
        if all(find_spec(package) for package in _GPU_PACKAGES[name]):
            try:
                return open_backend(name, cache, threads, precision)
            except UnavailableError:
                continue
    return open_backend(names[-1], cache, threads, precision)


def _require_fp32(name: str, precision: str | None) -> None:
    if precision not in (None, "fp32"):
        raise UsageError(f"backend {name} has no precision {precision!r}: it computes in fp32")
