"""Sessions of ONNX Runtime on NVIDIA GPUs, by its CUDA and TensorRT providers.

ONNX Runtime falls back to the CPU where a provider cannot be loaded, with no more than a line in a log. Here it is
asked what it did, and whatever is not the provider that was asked for is an error.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from impasto.errors import GraphError, LimitError, UnavailableError
from impasto.export.graph import Graph
from impasto.optimize.onnxruntime import import_onnxruntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_PACKAGE = "onnxruntime-gpu"
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class Provider:
    """An execution provider with its options, and the name of ONNX Runtime's memory that it computes in."""

    name: str
    options: Mapping[str, str]
    memory: str = "cuda"


def cuda_provider(index: int = 0, *, stream: int | None = None, tf32: bool = True) -> Provider:
    """Return the CUDA provider of the GPU with that index.

    ``stream`` is the handle of a CUDA stream to run on, by default one of its own; ``tf32`` allows products of float32
    to be rounded to TensorFloat-32.
    """
    options = {
        "device_id": str(index),
        "use_tf32": str(int(tf32)),
        # A search by the clock may end differently in the next process, and with other bits.
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        # By default an arena grows to the next power of two, and a sliced plan has two a tap.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if stream is not None:
        options |= {"user_compute_stream": str(stream)}
    return Provider("CUDAExecutionProvider", options)


def tensorrt_provider(index: int = 0, *, engines: str | os.PathLike[str] | None = None) -> Provider:
    """Return the TensorRT provider of the GPU with that index; ``engines`` is a folder where it keeps what it built.

    The folder must be the user's own: engines are code.
    """
    options = {"device_id": str(index)}
    if engines is not None:
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": os.fspath(engines),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": os.fspath(engines),
        }
    return Provider("TensorrtExecutionProvider", options)


def require_provider(name: str) -> None:
    """Raise `UnavailableError` unless the installed ONNX Runtime has the provider of that name."""
    ort = import_onnxruntime()
    if name not in ort.get_available_providers():
        raise UnavailableError(
            f"ONNX Runtime {ort.__version__} as installed has no {name}: pip uninstall -y onnxruntime, then pip "
            f"install --force-reinstall --no-deps {_PACKAGE} (the two packages hold the same files; for CUDA 12 "
            f"'{_PACKAGE}<1.27')"
        )


def require_working(provider: Provider) -> None:
    """Raise `UnavailableError` unless the provider runs here: installed, its libraries found, a GPU that it can use.

    A session of one node tells, for ONNX Runtime looks for none of these before there is a session. Raises `LimitError`
    for a GPU without memory to spare.
    """
    graph = Graph("trial")
    graph.outputs = [graph.add("Relu", graph.input("x", (1,)))]
    try:
        build_gpu_session(graph, provider, whole=False)
    except GraphError as cause:
        raise UnavailableError(f"{cause}: look at nvidia-smi for a GPU and its driver") from cause


def build_gpu_session(graph: Graph, provider: Provider, *, whole: bool = True) -> InferenceSession:
    """Return a session that runs ``graph`` by the provider.

    ``whole`` insists that every node does; otherwise arithmetic on shapes may run on the CPU, as free dimensions need.
    Raises `UnavailableError` where the provider is missing or cannot be loaded, `GraphError` for a graph that it
    refuses or cannot run whole, `LimitError` where the GPU's memory does not suffice.
    """
    require_provider(provider.name)
    ort = import_onnxruntime()
    if hasattr(ort, "preload_dlls"):
        # CUDA and cuDNN from pip's packages, where they are installed.
        ort.preload_dlls()
    if provider.name == "TensorrtExecutionProvider":
        # Its package loads TensorRT's libraries, which the provider then finds.
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.enable_mem_pattern = False
    options.use_deterministic_compute = True
    if whole and provider.memory != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers: list[Any] = [(provider.name, dict(provider.options))]
    if provider.name == "TensorrtExecutionProvider":
        # What TensorRT leaves over goes to CUDA, not to the CPU.
        providers.append(("CUDAExecutionProvider", {"device_id": provider.options["device_id"]}))
    try:
        # Without a fallback: Python's session would run on the CPU what failed on the GPU, and print that it does.
        session = ort.InferenceSession(
            graph.model().SerializeToString(), options, providers=providers, enable_fallback=0
        )
    except Exception as cause:  # ONNX Runtime's exceptions have no common base class
        if lacks_memory(cause):
            raise out_of_memory(graph.name) from cause
        raise GraphError(f"ONNX Runtime's {provider.name} refuses {graph.name!r}: {first_line(cause)}") from cause
    used = session.get_providers()
    if used[0] != provider.name:
        raise UnavailableError(
            f"ONNX Runtime could not load {provider.name} and fell back to {used[0]}: install the CUDA and cuDNN that "
            f"{_PACKAGE} {ort.__version__} was built for (pip install '{_PACKAGE}[cuda,cudnn]'), or a newer driver"
        )
    return session


def lacks_memory(error: Exception) -> bool:
    """Tell whether an exception of ONNX Runtime's is about memory of the device."""
    return any(text in str(error) for text in ("allocate memory", "out of memory"))


def out_of_memory(name: str) -> LimitError:
    """Return the error for a graph for which the device has no room."""
    return LimitError(f"out of GPU memory in {name!r}: lower --size, or close other programs")


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
