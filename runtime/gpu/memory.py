"""Buffers that live and die together."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.errors import DeviceError
from impasto.runtime.gpu.protocol import Address, Buffer, Device, TensorSpec


def settle(device: Device) -> None:
    """Wait for what is enqueued before what it uses is freed; on a device that has failed nothing is under way."""
    with contextlib.suppress(DeviceError):
        device.synchronize()


class Memory:
    """Device memory of one owner, by name, freed at once by `close`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffers: dict[str, Buffer] = {}

    def __getitem__(self, name: str) -> Address:
        return self._buffers[name].address

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def reserve(self, name: str, nbytes: int) -> Address:
        """Allocate under a new name, at least one byte, and return the address; raise `LimitError` as the device does.

        What was allocated before stays until `close`.
        """
        assert name not in self._buffers, name
        self._buffers[name] = self._device.allocate(max(1, nbytes))
        return self[name]

    def tensor(self, name: str, spec: TensorSpec) -> Address:
        """Allocate a tensor under a new name and return its address."""
        return self.reserve(name, spec.nbytes)

    def upload(self, name: str, values: NDArray[Any]) -> None:
        """Copy an array to the memory of that name, which must be of its size."""
        assert values.nbytes <= self._buffers[name].nbytes, name
        self._device.upload(self[name], np.ascontiguousarray(values))

    def close(self) -> None:
        """Free everything."""
        while self._buffers:
            self._buffers.popitem()[1].free()
