"""Arrays on a device while a check or a measurement lasts."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from impasto.runtime.gpu.memory import Memory
from impasto.runtime.gpu.protocol import Address, Buffer, Device, TensorSpec

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
TYPES = {"fp32": F32, "fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
"""The types of features, by the names of precisions."""


class Room:
    """Device memory, all of it freed at the end of a ``with`` block."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.memory = Memory(device)
        self._buffers: list[Buffer] = []

    def put(self, values: NDArray[Any]) -> Address:
        """Copy an array to the device."""
        address = self._allocate(values.nbytes)
        self.device.upload(address, np.ascontiguousarray(values))
        return address

    def empty(self, shape: int | tuple[int, ...], dtype: np.dtype[Any] = F32) -> Address:
        """Allocate, filled with NaN, so that what a kernel does not write shows."""
        count = shape if isinstance(shape, int) else math.prod(shape)
        address = self._allocate(max(1, count * dtype.itemsize))
        if dtype.kind == "f" or dtype == TYPES["bf16"]:
            self.device.upload(address, np.full(count, np.nan, dtype))
        return address

    def get(self, address: Address, shape: int | tuple[int, ...], dtype: np.dtype[Any] = F32) -> NDArray[Any]:
        """Wait and return a copy."""
        return self.device.download(address, TensorSpec(dtype, (shape,) if isinstance(shape, int) else shape))

    def __enter__(self) -> Room:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for buffer in self._buffers:
            buffer.free()
        self.memory.close()

    def _allocate(self, nbytes: int) -> Address:
        self._buffers.append(self.device.allocate(nbytes))
        return self._buffers[-1].address
