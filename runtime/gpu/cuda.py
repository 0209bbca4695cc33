"""A GPU through PyCUDA, on its primary context, which TensorRT, ONNX Runtime and PyTorch share.

PyCUDA keeps a stack of contexts for every thread, and ends the process if one is left on it when the thread ends. So
contexts are pushed only around PyCUDA calls that make or free something. Everything else needs but the driver's own
current context, which is set at every call, as CUDA's runtime API does, and stays for libraries that rely on it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from impasto.errors import DeviceError, LimitError, UnavailableError
from impasto.optimize import cubins
from impasto.optimize.cache import EngineCache
from impasto.optimize.gpus import GpuFacts
from impasto.runtime.gpu.driver import Driver, DriverError
from impasto.runtime.gpu.protocol import Address, Argument, TensorSpec

_P = ParamSpec("_P")
_R = TypeVar("_R")

OLDEST = (7, 5)
"""The compute capability that the kernels are written for and later ones: Turing."""

# What travels often is small: the report of an evaluation. Larger arrays, read and written once a job, go unstaged.
_STAGING_BYTES = 1 << 20
# CU_STREAM_NON_BLOCKING: work on it never waits for the default stream, which other libraries of the process may use.
_NON_BLOCKING = 1


def open_device(index: int = 0, cache: EngineCache | None = None) -> CudaDevice:
    """Open a GPU, counted among those that CUDA_VISIBLE_DEVICES leaves; cubins of its kernels are kept in ``cache``.

    Raises `UnavailableError` without PyCUDA, driver or such a GPU, or for one that is older than `OLDEST`, and
    `LimitError` if its memory is full. A context that failed in this process before, and that another library keeps
    alive, stays broken until the process ends: that is an `UnavailableError` too.
    """
    cuda = _import()
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        raise UnavailableError(
            f"no GPU that CUDA can use ({error}; {_visible()}): look at nvidia-smi; containers need --gpus all, and "
            f"processes forked from one that uses CUDA cannot use it"
        ) from error
    if not 0 <= index < count:
        raise UnavailableError(f"there is no GPU {index}: CUDA shows {count} to this process ({_visible()})")
    return CudaDevice(cuda, index, cache)


def _guarded(
    method: Callable[Concatenate[CudaDevice, _P], _R],
) -> Callable[Concatenate[CudaDevice, _P], _R]:
    """Make the device's context current before a method, and what CUDA refuses in it a failure of the device."""

    @functools.wraps(method)
    def guarded(self: CudaDevice, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        self.make_current()
        try:
            return method(self, *args, **kwargs)
        except self._cuda.Error as error:
            raise self._failed(error) from error

    return guarded


class CudaDevice:
    """A GPU, its memory, one stream, and kernels: a `Device`. Made by `open_device`.

    Several may be open on one GPU, one for each job; they share its primary context, and each has a stream of its
    own. One device serves one thread at a time, any thread. Once an operation fails on the GPU, everything but `close`
    raises `DeviceError`: what CUDA reports then is late and of no particular operation.
    """

    def __init__(self, cuda: Any, index: int, cache: EngineCache | None) -> None:
        self._cuda, self._cache, self._driver = cuda, cache, Driver()
        device = cuda.Device(index)
        self.facts = GpuFacts(
            str(device.name()), tuple(device.compute_capability()), device.total_memory(), cuda.get_driver_version()
        )
        self.name = self.facts.name
        self.compute_capability = self.facts.compute_capability
        self.multiprocessors = int(device.get_attribute(cuda.device_attribute.MULTIPROCESSOR_COUNT))
        self._title = f"GPU {index} ({self.name})"
        if self.compute_capability < OLDEST:
            raise UnavailableError(
                f"{self._title} has compute capability {self.compute_capability[0]}.{self.compute_capability[1]}: "
                f"{OLDEST[0]}.{OLDEST[1]} (Turing) or later is needed"
            )
        self._failure = ""
        self._context: Any = None
        self._stream: Any = None
        self._staging: Any = None
        self._staged = False  # whether the GPU may still have to read the staging memory
        self._modules: dict[str, Any] = {}
        self._kernels: dict[tuple[str, str], _CudaKernel] = {}
        self._buffers: dict[Address, _CudaBuffer] = {}
        self._captured: weakref.WeakSet[_CapturedWork] = weakref.WeakSet()
        try:
            self._context = device.retain_primary_context()
            with self._pushed():
                self._stream = cuda.Stream(_NON_BLOCKING)
                self._staging = cuda.pagelocked_empty(_STAGING_BYTES, np.uint8)
            self.make_current()
            self._stream.synchronize()
        except BaseException as error:
            self.close()
            if isinstance(error, cuda.MemoryError):
                raise LimitError(f"{self._title} has no memory left to begin with: stop other jobs on it") from error
            if isinstance(error, cuda.Error):
                raise UnavailableError(
                    f"{self._title} does not start ({error}): restart the process if a job failed on it in this one; "
                    f"otherwise look at nvidia-smi whether another process holds it alone"
                ) from error
            raise

    @property
    def stream(self) -> int:
        """The handle of the stream."""
        return int(self._stream.handle)

    def versions(self) -> dict[str, str]:
        """Return the GPU's name, the CUDA version of its driver, and PyCUDA's."""
        import pycuda

        driver = self.facts.driver_version
        return {
            "gpu": self.name,
            "cuda_driver": f"{driver // 1000}.{driver % 1000 // 10}",
            "pycuda": pycuda.VERSION_TEXT,
        }

    def make_current(self) -> None:
        """Make the primary context the calling thread's current one, for libraries that use whichever is.

        Every other method does that too. Raises `DeviceError` if the device has failed or is closed.
        """
        if self._failure:
            raise DeviceError(f"{self._title} cannot go on ({self._failure}): close it and open it anew")
        try:
            self._driver.set_context(self._context.handle)
        except DriverError as error:
            raise self._failed(error) from error

    @_guarded
    def memory_info(self) -> tuple[int, int]:
        """Return the bytes of device memory that are free, for all processes, and that there are."""
        free, total = self._cuda.mem_get_info()
        return int(free), int(total)

    @_guarded
    def allocate(self, nbytes: int) -> _CudaBuffer:
        """Allocate, as `Device.allocate` says; CUDA aligns to 256 bytes at least."""
        try:
            with self._pushed():
                allocation = self._cuda.mem_alloc(nbytes)
        except self._cuda.MemoryError as error:
            raise self._full(nbytes) from error
        buffer = _CudaBuffer(self, allocation, nbytes)
        self._buffers[buffer.address] = buffer
        return buffer

    def kernel(self, source: str, entry: str) -> _CudaKernel:
        """Return a kernel, as `Device.kernel` says, compiling its source at first, if need be during a capture.

        Raises what `cubins.cubin` raises, and `UnavailableError` for a driver too old for what the compiler made.
        """
        self.make_current()
        if (source, entry) not in self._kernels:
            try:
                if source not in self._modules:
                    binary = cubins.cubin(source, self.compute_capability, self._cache)
                    with self._pushed(), self._driver.relaxed():
                        self._modules[source] = self._cuda.module_from_buffer(binary)
                with self._driver.relaxed():  # drivers that load lazily do it now
                    self._kernels[source, entry] = _CudaKernel(self, self._modules[source].get_function(entry))
            except self._cuda.MemoryError as error:
                raise self._full(1) from error
            except (self._cuda.Error, DriverError) as error:
                if self._lasting_failure():  # of what was enqueued before
                    raise self._failed(error) from error
                raise UnavailableError(
                    f"{self._title} does not take kernel {entry!r} of {source}.cu ({str(error).strip()}): update its "
                    f"driver, or compile by an older CUDA toolkit (CUDA_HOME chooses it)"
                ) from error
        return self._kernels[source, entry]

    @_guarded
    def upload(self, address: Address, values: NDArray[Any]) -> None:
        """Upload, as `Device.upload` says."""
        raw = values.reshape(-1).view(np.uint8)
        if raw.nbytes > _STAGING_BYTES:
            self._cuda.memcpy_htod_async(address, raw, self._stream)
            self._stream.synchronize()
            return
        if self._staged:
            self._stream.synchronize()
        staging = self._staging[: raw.nbytes]
        staging[:] = raw
        self._staged = True
        self._cuda.memcpy_htod_async(address, staging, self._stream)

    @_guarded
    def download(self, address: Address, spec: TensorSpec) -> NDArray[Any]:
        """Download, as `Device.download` says; raise `DeviceError` if anything that was enqueued failed."""
        values = np.empty(spec.shape, spec.dtype)
        raw = values.reshape(-1).view(np.uint8)
        staging = self._staging[: raw.nbytes] if raw.nbytes <= _STAGING_BYTES else raw
        self._cuda.memcpy_dtoh_async(staging, address, self._stream)
        self._stream.synchronize()
        self._staged = False
        if staging is not raw:
            raw[:] = staging
        return values

    @_guarded
    def copy(self, to: Address, origin: Address, nbytes: int) -> None:
        """Enqueue a copy within the device."""
        self._cuda.memcpy_dtod_async(to, origin, nbytes, self._stream)

    @_guarded
    def clear(self, address: Address, nbytes: int) -> None:
        """Enqueue filling with zero bytes."""
        self._cuda.memset_d8_async(address, 0, nbytes, self._stream)

    @_guarded
    def synchronize(self) -> None:
        """Wait, as `Device.synchronize` says."""
        self._stream.synchronize()
        self._staged = False

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Capture a CUDA graph, as `Device.capture` says.

        Raises what ``enqueue`` raises, and `DeviceError` for what cannot be captured; the device stays usable after
        both. The graph is freed with what is returned, or by `close`.
        """
        self.make_current()
        try:
            self._driver.begin_capture(self.stream)
            try:
                enqueue()
                captured = _CapturedWork(self, self._driver, self._driver.end_capture(self.stream))
            except BaseException:
                self._driver.abandon_capture(self.stream)
                self._failure = self._lasting_failure()
                raise
        except DriverError as error:
            raise DeviceError(f"{self._title} cannot capture a CUDA graph ({error}): run without one") from error
        self._captured.add(captured)
        return captured

    def close(self) -> None:
        """Free everything, whatever state the device is in; closing twice is harmless."""
        context, self._context = self._context, None
        self._failure = self._failure or "it is closed"
        if context is None:
            return
        handle = context.handle
        for captured in tuple(self._captured):
            captured.free()
        with contextlib.suppress(self._cuda.Error):
            context.push()
            if self._lasting_failure():
                # All went with the context; freeing one by one would only add a complaint of PyCUDA's for each.
                context.detach()
        for kernel in self._kernels.values():
            kernel.release()
        self._kernels.clear()
        self._modules.clear()
        for buffer in tuple(self._buffers.values()):
            buffer.release()
        if self._staging is not None:
            self._staging.base.free()
        self._staging = self._stream = None
        with contextlib.suppress(self._cuda.Error):  # it may be detached already
            context.detach()
        with contextlib.suppress(DriverError):
            while self._driver.context() == handle:
                self._driver.pop_context()

    def __enter__(self) -> CudaDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _pushed(self) -> Iterator[None]:
        """Have the context on PyCUDA's stack."""
        self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def _lasting_failure(self) -> str:
        """Return what the GPU still reports after a failure, or nothing if it can go on."""
        try:
            if self._stream is not None:
                self._stream.synchronize()
        except self._cuda.Error as error:
            return str(error)
        return ""

    def _failed(self, error: Exception) -> DeviceError:
        """Mark the device as failed and return the error to raise."""
        self._failure = str(error).strip()
        return DeviceError(f"{self._title} failed: {self._failure}: start the job again; if it fails again, restart")

    def _full(self, nbytes: int) -> LimitError:
        free, total = self.memory_info()
        return LimitError(
            f"{self._title} has no room for {_mebibytes(nbytes)}: {_mebibytes(free)} of {_mebibytes(total)} are free: "
            f"choose a smaller size, or run fewer jobs at once"
        )


class _CudaBuffer:
    def __init__(self, device: CudaDevice, allocation: Any, nbytes: int) -> None:
        self._device, self._allocation = device, allocation
        self.address: Address = int(allocation)
        self.nbytes = nbytes

    def free(self) -> None:
        """Free the memory; what was enqueued before may still use it. After a failure, `CudaDevice.close` does it."""
        if self._allocation is not None and not self._device._failure:
            with self._device._pushed():
                self.release()

    def release(self) -> None:
        """Free the memory, with the context on PyCUDA's stack."""
        if self._allocation is not None:
            allocation, self._allocation = self._allocation, None
            del self._device._buffers[self.address]
            allocation.free()


class _CudaKernel:
    def __init__(self, device: CudaDevice, function: Any) -> None:
        self._device, self._function = device, function
        self._types: tuple[type, ...] | None = None

    def __call__(self, grid: tuple[int, int], block: int, *arguments: Argument) -> None:
        """Launch, as `Kernel.__call__` says."""
        device = self._device
        device.make_current()
        types = tuple(map(type, arguments))
        if types != self._types:
            # PyCUDA takes any type that it does not know for an address, but a NumPy dtype for what it is.
            self._function.prepare([np.dtype(np.uintp if kind is int else kind) for kind in types])
            self._types = types
        try:
            self._function.prepared_async_call(grid, (block, 1, 1), device._stream, *arguments)
        except device._cuda.Error as error:
            raise device._failed(error) from error

    def release(self) -> None:
        """Let go of the function, which keeps its module loaded."""
        self._function = None


class _CapturedWork:
    def __init__(self, device: CudaDevice, driver: Driver, executable: int) -> None:
        self._device, self._driver, self._executable = device, driver, executable

    def __call__(self) -> None:
        """Enqueue what was captured."""
        self._device.make_current()
        try:
            self._driver.launch_graph(self._executable, self._device.stream)
        except DriverError as error:
            raise self._device._failed(error) from error

    def __del__(self) -> None:
        self.free()

    def free(self) -> None:
        """Free the graph."""
        executable, self._executable = self._executable, 0
        if executable:
            with contextlib.suppress(DriverError):
                self._driver.destroy_graph(executable)


def _import() -> Any:
    try:
        import pycuda.driver
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"PyCUDA cannot be imported ({error}): pip install 'impasto[gpu]', with the CUDA toolkit's headers at hand"
        ) from error
    except ImportError as error:
        if "undefined symbol" in str(error):
            raise UnavailableError(
                f"PyCUDA was built by a CUDA toolkit newer than the NVIDIA driver ({error}): update the driver, or "
                f"build PyCUDA anew by an older toolkit"
            ) from error
        if "libcurand" in str(error):
            raise UnavailableError(
                f"PyCUDA does not find the CUDA toolkit's cuRAND ({error}): put the toolkit's lib64 on LD_LIBRARY_PATH"
            ) from error
        raise UnavailableError(
            f"PyCUDA finds no NVIDIA driver ({error}): install one (nvidia-smi must work); containers need --gpus all"
        ) from error
    return pycuda.driver


def _visible() -> str:
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "CUDA_VISIBLE_DEVICES is not set" if value is None else f"CUDA_VISIBLE_DEVICES is {value!r}"


def _mebibytes(nbytes: int) -> str:
    return f"{-(-nbytes // (1 << 20))} MiB"
