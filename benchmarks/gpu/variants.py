"""Which backends, precisions and plans there are to be tried on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from impasto.errors import UnavailableError
from impasto.optimize.cache import EngineCache
from impasto.runtime.backends.gpu import GPU_PRECISIONS
from impasto.runtime.backends.onnxruntime_gpu import PRECISIONS
from impasto.runtime.backends.protocol import Backend, Plan
from impasto.runtime.backends.select import open_backend
from impasto.runtime.gpu.protocol import Device


class Variant(NamedTuple):
    """A backend in one of its precisions, with the plans to try."""

    backend: str
    precision: str
    plans: tuple[Plan, ...]

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


Open = Callable[[Variant, EngineCache], Backend]
"""Opens a backend as a variant says; raises `UnavailableError` where it cannot run."""

DEVICE_LOOP = tuple(
    Variant(backend, p, ("fused", "sliced")) for backend in ("tensorrt", "cuda") for p in GPU_PRECISIONS
)
"""Those whose loop stays on the device."""

EVERY = (
    *DEVICE_LOOP,
    *(Variant(backend, p, ("fused",)) for backend, precisions in PRECISIONS.items() for p in precisions),
    Variant("torch-cuda", "fp32", ("fused",)),
)


PAINTERS = tuple(variant for variant in EVERY if variant.backend != "torch-cuda")
"""Those that promise the same bits every time. PyTorch's gradient of a reflected border is summed in any order."""

_BFLOAT16 = (8, 0)
_CACHE_BYTES = 64 << 30


def engine_cache() -> EngineCache:
    """Return the user's engine cache, in which the engines of a whole check have room beside each other."""
    return EngineCache(max_bytes=_CACHE_BYTES)


def open_variant(variant: Variant, cache: EngineCache) -> Backend:
    """Open a backend on the first GPU; raise `UnavailableError` for bfloat16 where the GPU has none."""
    backend = open_backend(variant.backend, cache, precision=variant.precision)
    device: Device | None = getattr(backend, "device", None)
    if variant.precision == "bf16" and device is not None and device.compute_capability < _BFLOAT16:
        backend.close()
        raise UnavailableError(f"{device.name} does not compute in bfloat16: GPUs do from Ampere on")
    return backend
