"""Backends by name."""

from __future__ import annotations

from impasto.errors import UnknownNameError
from impasto.optimize.cache import EngineCache
from impasto.runtime.backends.protocol import Backend

BACKENDS = ("onnxruntime", "torch")
"""In the order in which ``auto`` prefers them: both are exact, and ONNX Runtime is always installed and faster."""


def open_backend(name: str = "auto", cache: EngineCache | None = None, threads: int | None = None) -> Backend:
    """Return the backend of that name, or for ``auto`` the preferred one; never another than asked for.

    Raises `UnknownNameError` for an unknown name, `UnavailableError` where its package is not installed.
    """
    if name in ("auto", "onnxruntime"):
        from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(cache, threads)
    if name == "torch":
        # The reference module names the missing package itself.
        import impasto.models.reference  # noqa: F401
        from impasto.runtime.backends.torch import TorchBackend

        return TorchBackend()
    raise UnknownNameError("backend", name, ("auto", *BACKENDS))
