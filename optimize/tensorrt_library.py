"""TensorRT as a library: found and fit for us, its messages logged, its refusals put into words.

Versions 10.4 to 11 have the same Python names for all that is used here. In 11 every network is strongly typed; in 10
it must be asked for.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from impasto.errors import ImpastoError, LimitError, UnavailableError

_OLDEST = (10, 4)
_NEWEST_MAJOR = 11

_INSTALL = "pip install 'impasto[gpu]'"
_NO_MEMORY = re.compile(
    r"out ?of ?memory|insufficient .*memory|memory .*insufficient|enough free memory|MemoryAllocation", re.IGNORECASE
)
_CUDA_ERROR = re.compile(r"CUDA initialization failure with error:? (\d+)")

_logger = logging.getLogger("impasto.tensorrt")


def load() -> Any:
    """Return the module ``tensorrt``; raise `UnavailableError` where it is absent, broken or of another version."""
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as cause:
        if isinstance(cause, ModuleNotFoundError) and cause.name == "tensorrt":
            raise UnavailableError(f"TensorRT is not installed: {_INSTALL}") from cause
        raise _broken(cause) from cause
    except OSError as cause:
        raise _broken(cause) from cause
    version = getattr(trt, "__version__", "of no version")
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < _OLDEST or int(found[1]) > _NEWEST_MAJOR:
        raise UnavailableError(
            f"TensorRT {version} is not supported: install one from {_OLDEST[0]}.{_OLDEST[1]} to {_NEWEST_MAJOR}.x "
            f"({_INSTALL})"
        )
    return trt


class Messages:
    """What TensorRT complained of lately, kept so that an exception can say it. Threads may share one."""

    def __init__(self) -> None:
        self._kept: deque[tuple[bool, str]] = deque(maxlen=16)
        self._lock = threading.Lock()

    def add(self, text: str, *, error: bool) -> None:
        """Keep an error, or else a warning."""
        with self._lock:
            self._kept.append((error, " ".join(text.split())))

    def clear(self) -> None:
        """Forget all; what is kept from then on belongs to what comes next."""
        with self._lock:
            self._kept.clear()

    @property
    def reason(self) -> str:
        """The last error, or else the last warning, on one line."""
        with self._lock:
            errors = [text for error, text in self._kept if error] or [text for _, text in self._kept]
        return errors[-1] if errors else "it gives no reason"

    @property
    def out_of_memory(self) -> bool:
        """Whether an error or a warning was about memory of the device."""
        with self._lock:
            return any(_NO_MEMORY.search(text) for _, text in self._kept)

    def cuda_error(self) -> int | None:
        """Return the number of the CUDA error that kept TensorRT from starting, or None if it told of none."""
        with self._lock:
            found = [match for _, text in self._kept if (match := _CUDA_ERROR.search(text))]
        return int(found[-1][1]) if found else None


def make_logger(trt: Any, messages: Messages) -> Any:
    """Return a `tensorrt.ILogger` that tells the logger ``impasto.tensorrt``, and keeps what is wrong in ``messages``.

    Errors become warnings and warnings infos: what matters of them ends in an exception of ours, and from the rest,
    such as a tactic that did not fit into memory, TensorRT recovers.
    """
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.WARNING,
        severity.ERROR: logging.WARNING,
        severity.WARNING: logging.INFO,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }
    errors = (severity.INTERNAL_ERROR, severity.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, msg: str) -> None:
            level = levels[severity]
            if severity in errors or severity == trt.ILogger.Severity.WARNING:
                messages.add(msg, error=severity in errors)
            if _logger.isEnabledFor(level):
                _logger.log(level, "TensorRT: %s", msg)

    return Logger()


def start(factory: Callable[[Any], Any], log: Any, messages: Messages) -> Any:
    """Return what ``factory``, `tensorrt.Builder` or `tensorrt.Runtime`, makes of a logger.

    Both bring CUDA up. Raises `UnavailableError` where there is no GPU or the driver is too old, and `LimitError` for
    one without memory to spare.
    """
    try:
        return factory(log)
    except (TypeError, RuntimeError) as cause:  # pybind11 reports a null pointer as TypeError
        raise _not_started(messages) from cause


def refusal(messages: Messages, what: str, remedy: str, error: type[ImpastoError]) -> ImpastoError:
    """Return the error for something that TensorRT did not do: `LimitError` if memory was the reason, else ``error``.

    ``what`` is what it did not do, ``remedy`` what to try when the reason is not memory.
    """
    if messages.out_of_memory:
        return LimitError(f"{what}, the GPU is out of memory ({messages.reason}): free some of it, or paint smaller")
    return error(f"{what} ({messages.reason}): {remedy}")


def _broken(cause: Exception) -> UnavailableError:
    return UnavailableError(
        f"TensorRT's libraries cannot be loaded ({' '.join(str(cause).split())}): {_INSTALL} --force-reinstall, or put "
        f"their folder on LD_LIBRARY_PATH"
    )


def _not_started(messages: Messages) -> ImpastoError:
    number = messages.cuda_error()
    if number == 35:  # cudaErrorInsufficientDriver
        return UnavailableError("the NVIDIA driver is too old for this TensorRT: update it, or install an older one")
    if number == 100:  # cudaErrorNoDevice
        return UnavailableError("TensorRT finds no NVIDIA GPU: look at nvidia-smi and at CUDA_VISIBLE_DEVICES")
    if number == 2:  # cudaErrorMemoryAllocation
        return LimitError("TensorRT cannot start, the GPU is out of memory: end what else runs on it (nvidia-smi)")
    return UnavailableError(f"TensorRT cannot start ({messages.reason}): look at nvidia-smi for a GPU and its driver")
