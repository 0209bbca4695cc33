"""An evaluation as one launch, where the device can make a CUDA graph of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from impasto.errors import DeviceError, LimitError
from impasto.runtime.gpu.protocol import Device, DeviceGraph

_logger = logging.getLogger("impasto")


def replay(device: Device, enqueue: Callable[[], None], graphs: Iterable[DeviceGraph]) -> Callable[[], None]:
    """Return what enqueues all that ``enqueue`` does, captured if the ``graphs`` that it runs can be.

    Where the capture fails all the same, that is logged as a warning, and ``enqueue`` itself is returned: it is slower
    by its launches, and computes the same. What it loads at its first run must be loaded.
    """
    if not all(graph.capturable for graph in graphs):
        return enqueue
    try:
        return device.capture(enqueue)
    except (DeviceError, LimitError) as error:
        _logger.warning("no CUDA graph, so that every evaluation is launched piece by piece: %s", error)
        return enqueue
