"""What kernels take of a multiprocessor, as the driver tells: registers, shared memory, and what was spilled."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass

from impasto.errors import UnavailableError
from impasto.optimize import cubins
from impasto.optimize.cache import EngineCache
from impasto.runtime.gpu.cuda import CudaDevice

_SHARED, _LOCAL, _REGISTERS = 1, 3, 4
"""CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, …_LOCAL_SIZE_BYTES, …_NUM_REGS."""


@dataclass(frozen=True)
class Resources:
    """Of one kernel: registers a thread, static shared bytes a block, and local bytes a thread, where spills are."""

    source: str
    entry: str
    registers: int
    shared: int
    local: int


def resources(
    device: CudaDevice, kernels: Iterable[tuple[str, str]], cache: EngineCache | None = None
) -> list[Resources]:
    """Return what each kernel, a source and an entry point, takes; raise `UnavailableError` where it is not told.

    PyCUDA knows it too, of functions that it has loaded; `CudaDevice` keeps those to itself.
    """
    device.make_current()
    library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")

    def call(function: str, *arguments: object) -> None:
        status = getattr(library, function)(*arguments)
        if status:
            raise UnavailableError(f"{function} of the driver failed with error {status}: update the driver")

    modules: dict[str, ctypes.c_void_p] = {}
    found = []
    try:
        for source, entry in sorted(kernels):
            if source not in modules:
                module = ctypes.c_void_p()
                image = cubins.cubin(source, device.compute_capability, cache)
                call("cuModuleLoadDataEx", ctypes.byref(module), image, 0, None, None)
                modules[source] = module
            function, value = ctypes.c_void_p(), ctypes.c_int()
            call("cuModuleGetFunction", ctypes.byref(function), modules[source], entry.encode())
            values = []
            for attribute in (_REGISTERS, _SHARED, _LOCAL):
                call("cuFuncGetAttribute", ctypes.byref(value), attribute, function)
                values.append(value.value)
            found.append(Resources(source, entry, *values))
    finally:
        for module in modules.values():
            library.cuModuleUnload(module)
    return found
