"""What PyCUDA does not bind of the CUDA driver API: a thread's current context, and graphs.

https://docs.nvidia.com/cuda/cuda-driver-api/ (contexts, streams, graphs). Graphs need a driver for CUDA 11.4 or later.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

# Only the capturing thread has to keep from calls that a capture forbids; jobs in other threads may go on allocating.
_THREAD_LOCAL = 1
_RELAXED = 2


class DriverError(Exception):
    """A call that the driver refused, as ``<function> failed: <its text>``."""


class Driver:
    """The driver's library, which PyCUDA has loaded before. Handles are ints."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")

    def context(self) -> int:
        """Return the calling thread's current context, 0 for none."""
        context = ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        return context.value or 0

    def set_context(self, context: int) -> None:
        """Make a context the calling thread's current one, in place of the one that is."""
        self._call("cuCtxSetCurrent", ctypes.c_void_p(context))

    def pop_context(self) -> None:
        """Make the context below the current one current, or none."""
        self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def begin_capture(self, stream: int) -> None:
        """Record, from now on, what this thread enqueues on a stream instead of running it."""
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """End the recording and return it as an executable graph."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return executable.value or 0

    def abandon_capture(self, stream: int) -> None:
        """End a recording that is of no use any more, if there is one."""
        graph = ctypes.c_void_p()
        with contextlib.suppress(DriverError):
            self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        if graph:
            self._call("cuGraphDestroy", graph)

    @contextlib.contextmanager
    def relaxed(self) -> Iterator[None]:
        """Allow calls in this thread that have nothing to do with the capture under way, but would end it."""
        mode = ctypes.c_int(_RELAXED)
        self._call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        try:
            yield
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))

    def launch_graph(self, executable: int, stream: int) -> None:
        """Enqueue an executable graph."""
        self._call("cuGraphLaunch", ctypes.c_void_p(executable), ctypes.c_void_p(stream))

    def destroy_graph(self, executable: int) -> None:
        """Free an executable graph; one that runs is freed when it has ended."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(executable))

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise DriverError(f"{function} failed: {(text.value or str(status).encode()).decode()}")
