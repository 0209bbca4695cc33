"""Backends by name."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from impasto.errors import UnavailableError, UnknownNameError, UsageError
from impasto.optimize.cache import EngineCache
from impasto.runtime.backends.protocol import Backend

BACKENDS = (
    "tensorrt",
    "cuda",
    "openvino",
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "torch",
    "torch-cuda",
)
"""Every backend; ``openvino:GPU`` and ``openvino:NPU`` name other devices of OpenVINO's.

``auto`` takes the first of `_AUTOMATIC` that can run here."""

_AUTOMATIC = {
    "tensorrt": ("tensorrt", "pycuda"),
    "cuda": ("pycuda",),
    "openvino": ("openvino",),
    "onnxruntime": (),
}
"""With the packages without which there is no point in trying; the order is that of speed, as measured
(`docs/decisions/0010-gpu-backends.md`, `docs/decisions/0011-cpu-backends.md`)."""
_ON_CPU = ("openvino", "onnxruntime")

PRECISIONS = ("fp32", "tf32", "fp16", "bf16")


def open_backend(
    name: str = "auto",
    cache: EngineCache | None = None,
    threads: int | None = None,
    precision: str | None = None,
    engine_options: Mapping[str, object] | None = None,
) -> Backend:
    """Return the backend of that name, or for ``auto`` the preferred one of those that can run here.

    A backend that is asked for by name is used, or this raises. ``precision`` is by default the backend's own: tf32 on
    GPUs, bf16 by OpenVINO on CPUs that multiply it natively, fp32 elsewhere. ``threads`` is for backends that run on
    the CPU; ``engine_options`` are the fields of `impasto.optimize.tensorrt.BuildOptions`, other than ``tf32``; with
    them ``auto`` stands for TensorRT.

    Raises `UnknownNameError` for an unknown name, `UnavailableError` where what it needs is not here, `UsageError` for
    a precision or options that the backend does not have, `LimitError` for a GPU without memory to begin with.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    if engine_options and name not in ("auto", "tensorrt"):
        raise UsageError(f"backend {name} has no engine options: they are TensorRT's")
    family, _, device = name.partition(":")
    match family if family == "openvino" else name:
        case "auto":
            return open_automatic(cache, threads, precision, engine_options)[0]
        case "onnxruntime":
            from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend

            _require_fp32(name, precision)
            return OnnxRuntimeBackend(cache, threads)
        case "openvino":
            from impasto.runtime.backends.openvino import OpenVinoBackend

            return OpenVinoBackend(cache, threads, precision, device or "CPU")
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

            return TensorRTBackend(cache, precision, options=engine_options)
    raise UnknownNameError("backend", name, ("auto", *BACKENDS))


def open_automatic(
    cache: EngineCache | None = None,
    threads: int | None = None,
    precision: str | None = None,
    engine_options: Mapping[str, object] | None = None,
) -> tuple[Backend, dict[str, str]]:
    """Return the backend that ``auto`` stands for here, and why not the ones before it, by name.

    GPUs are looked for only where the packages for them are installed. A precision that a backend for the CPU does not
    have rules it out, and ``engine_options`` all but TensorRT; where none is left, what is missing is an
    `UnavailableError`.
    """
    if engine_options:
        return open_backend("tensorrt", cache, threads, precision, engine_options), {}
    passed: dict[str, str] = {}
    for name, packages in _AUTOMATIC.items():
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            passed[name] = f"{' and '.join(missing)} not installed"
            continue
        try:
            return open_backend(name, cache, threads, precision), passed
        except UnavailableError as error:
            passed[name] = str(error)
        except UsageError as error:
            if name not in _ON_CPU:
                raise
            passed[name] = str(error)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed.items())
    raise UnavailableError(f"no backend that can do this can run here ({reasons})")


def _require_fp32(name: str, precision: str | None) -> None:
    if precision not in (None, "fp32"):
        raise UsageError(f"backend {name} has no precision {precision!r}: it computes in fp32")
