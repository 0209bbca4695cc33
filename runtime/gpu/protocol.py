"""What the device loop asks of a device and of a graph compiled for it.

Everything is enqueued on the device's one stream, in order, and nothing waits but `Device.download` and
`Device.synchronize`. An address is a plain int; 0 is the null pointer of an optional argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Address = int
Argument = Address | np.generic
"""What a kernel is called with: an int is a device address, every other argument a NumPy scalar of the C type."""


@dataclass(frozen=True)
class TensorSpec:
    """Element type and shape of a tensor; bfloat16 is `ml_dtypes.bfloat16`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Buffer(Protocol):
    """Device memory, aligned to 256 bytes, freed by `free` (twice is harmless)."""

    @property
    def address(self) -> Address:
        """Where it begins."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...

    def free(self) -> None:
        """Give the memory back."""
        ...


class Kernel(Protocol):
    """A kernel ready to launch."""

    def __call__(self, grid: tuple[int, int], block: int, *arguments: Argument) -> None:
        """Enqueue ``grid`` blocks of ``block`` threads; arguments in the order and of the types of the C signature."""
        ...


class Device(Protocol):
    """One GPU as the loop sees it, or what stands in for it."""

    @property
    def name(self) -> str:
        """The name that results show."""
        ...

    @property
    def compute_capability(self) -> tuple[int, int]:
        """(9, 0) is sm_90."""
        ...

    @property
    def multiprocessors(self) -> int:
        """How many blocks it takes to occupy it."""
        ...

    @property
    def stream(self) -> int:
        """The handle of the stream, for libraries that enqueue on it."""
        ...

    def versions(self) -> dict[str, str]:
        """Return the versions of what runs it, and the GPU's name as ``gpu``."""
        ...

    def allocate(self, nbytes: int) -> Buffer:
        """Return memory of at least one byte, not initialised; raise `LimitError` where there is not that much."""
        ...

    def kernel(self, source: str, entry: str) -> Kernel:
        """Return the kernel ``entry`` of ``runtime/kernels/<source>.cu``, compiled for this device."""
        ...

    def upload(self, address: Address, values: NDArray[Any]) -> None:
        """Copy a C-contiguous array to the device; the array may change as soon as this returns."""
        ...

    def download(self, address: Address, spec: TensorSpec) -> NDArray[Any]:
        """Wait for everything that was enqueued and return a copy of a tensor."""
        ...

    def copy(self, to: Address, origin: Address, nbytes: int) -> None:
        """Enqueue a copy within the device."""
        ...

    def clear(self, address: Address, nbytes: int) -> None:
        """Enqueue filling with zero bytes."""
        ...

    def synchronize(self) -> None:
        """Wait for everything that was enqueued; raise `DeviceError` if any of it failed."""
        ...

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Return what enqueues, in one launch, all that ``enqueue`` enqueues: a CUDA graph.

        ``enqueue`` is called once; it must not allocate, upload or wait.
        """
        ...

    def close(self) -> None:
        """Free what the device holds: loaded kernels, the stream, the context."""
        ...


class DeviceGraph(Protocol):
    """An ONNX graph compiled for the device, its shapes fixed."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Its inputs by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Its outputs by name."""
        ...

    @property
    def scratch_bytes(self) -> int:
        """What it needs for itself while it runs; graphs that run one after the other share it."""
        ...

    @property
    def capturable(self) -> bool:
        """Whether `enqueue` may be captured in a CUDA graph."""
        ...

    def bind(self, addresses: Mapping[str, Address], scratch: Address) -> None:
        """Fix the device address of every input and output, 256-byte aligned, and of the scratch memory."""
        ...

    def enqueue(self) -> None:
        """Run on the device's stream; raise `DeviceError` where that cannot be enqueued, `LimitError` for no room."""
        ...

    def close(self) -> None:
        """Free what the graph holds."""
        ...
