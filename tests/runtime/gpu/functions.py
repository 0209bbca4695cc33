"""Functions as device evaluators: NumPy at work in the memory of an emulated device."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tests.emulation.host import HostDevice

Vector = NDArray[np.float32]
Function = Callable[[Vector], tuple[float, Vector]]


def view(address: int, size: int, dtype: type[np.generic] = np.float32) -> NDArray[np.generic]:
    """The memory of an emulated device as an array."""
    return np.ctypeslib.as_array((ctypes.c_byte * (size * np.dtype(dtype).itemsize)).from_address(address)).view(dtype)


class CountingDevice(HostDevice):
    """Counts downloads, and knows which memory is in use."""

    def __init__(self) -> None:
        super().__init__()
        self.downloads = 0

    def download(self, address, spec):
        self.downloads += 1
        return super().download(address, spec)

    @property
    def held(self) -> int:
        return sum(not buffer.freed for buffer in self._buffers)


class FunctionEvaluator:
    """A function of a flat x as a `DeviceEvaluator` of two terms; notes where it is evaluated."""

    terms = ("style.a", "tv")

    def __init__(self, function: Function, size: int, device: CountingDevice | None = None) -> None:
        self.device = CountingDevice() if device is None else device
        self.size = size
        self._function = function
        self.image, self.gradient, self.losses = (self.device.allocate(n).address for n in (4 * size, 4 * size, 16))
        self.points: list[Vector] = []
        self.largest: list[float] = []

    def enqueue(self) -> None:
        self.points.append(view(self.image, self.size).copy())
        loss, gradient = self._function(self.points[-1])
        view(self.gradient, self.size)[:] = gradient
        view(self.losses, 2, np.float64)[:] = loss * 0.25, loss * 0.75

    def observed(self, largest: float) -> None:
        self.largest.append(largest)


def quadratic(size: int, condition: float = 100.0) -> Function:
    """½Σcᵢ(xᵢ−1)², c from 1/condition to 1, evaluated in float64 and rounded; 0 at x = 1."""
    curvatures = np.geomspace(1 / condition, 1, size)

    def function(x: Vector) -> tuple[float, Vector]:
        away = x.astype(np.float64) - 1
        return 0.5 * float(curvatures @ away**2), (curvatures * away).astype(np.float32)

    return function


def rosenbrock(x: Vector) -> tuple[float, Vector]:
    """Σ 100(xᵢ₊₁−xᵢ²)² + (1−xᵢ)²; 0 at x = 1."""
    x64 = x.astype(np.float64)
    bend = x64[1:] - x64[:-1] ** 2
    gradient = np.zeros_like(x64)
    gradient[:-1] = -400 * x64[:-1] * bend - 2 * (1 - x64[:-1])
    gradient[1:] += 200 * bend
    return float(100 * bend @ bend + ((1 - x64[:-1]) ** 2).sum()), gradient.astype(np.float32)
