"""Arrays as large as pictures: in memory, or in a file that is mapped into it."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.errors import StorageError
from impasto.models.conventions import FloatArray

_MOUNTS = Path("/proc/self/mounts")

Allocate = Callable[[tuple[int, ...]], FloatArray]
"""Makes an array of zeros, float32, of a shape."""


def in_memory(shape: tuple[int, ...]) -> FloatArray:
    """Return an array of zeros, float32."""
    return np.zeros(shape, np.float32)


def mapped(shape: tuple[int, ...]) -> FloatArray:
    """Return an array of zeros, float32, in a file without a name in the folder for temporary files (``TMPDIR``).

    Its room is taken at once: raises `StorageError` if there is none. The file goes with the array, and with the
    process, however that ends.
    """
    size = 4 * int(np.prod(shape, dtype=np.int64))
    try:
        with tempfile.TemporaryFile(prefix="impasto-") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.ndarray(shape, np.float32, mmap.mmap(file.fileno(), size))
    except OSError as error:
        raise StorageError(
            f"no room for {size} bytes in {tempfile.gettempdir()} ({error.strerror}): "
            "set TMPDIR to a folder on a larger disk"
        ) from error


def free_room(mounts: Path = _MOUNTS) -> int:
    """Return how many bytes files made by `mapped` may take together: none where their folder is itself in memory.

    ``mounts`` is where the system tells what is mounted; where it does not, every folder is taken to be on a disk.
    """
    folder = Path(os.path.realpath(tempfile.gettempdir()))
    try:
        mounted = [line.split(" ")[1:3] for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        mounted = []
    kinds = {Path(point.replace(r"\040", " ")): kind for point, kind in mounted}
    kind = next((kinds[each] for each in (folder, *folder.parents) if each in kinds), "")
    return 0 if kind in ("tmpfs", "ramfs") else shutil.disk_usage(folder).free


def like(array: FloatArray, shape: tuple[int, ...] | None = None) -> FloatArray:
    """Return an array of zeros, of the same shape if none is given, that is kept where ``array`` is."""
    allocate = mapped if is_mapped(array) else in_memory
    return allocate(array.shape if shape is None else shape)


def is_mapped(array: NDArray[Any]) -> bool:
    """Tell whether an array, or what it is a view of, is mapped from a file to which its changes go."""
    return _map(array) is not None


def release(*arrays: NDArray[Any]) -> None:
    """Let the pages of mapped arrays, or those that views of them lie in, go from this process's memory.

    Their values stay. Pages that were touched count as its memory until then, though they are the file's. Other arrays
    are left alone.
    """
    for array in arrays:
        file = _map(array)
        if file is None or array.size == 0 or not hasattr(mmap, "MADV_DONTNEED"):
            continue
        spans = [(count - 1) * stride for count, stride in zip(array.shape, array.strides, strict=True)]
        at = _address(array) - _address(np.frombuffer(file, np.uint8, 1))
        first = (at + sum(span for span in spans if span < 0)) // mmap.PAGESIZE * mmap.PAGESIZE
        end = at + sum(span for span in spans if span > 0) + array.itemsize
        file.madvise(mmap.MADV_DONTNEED, first, end - first)


def clear(array: FloatArray) -> None:
    """Set an array, (1, C, H, W), to zero, a few rows at a time: no more of a mapped one is in memory at once."""
    rows = max(1, _STRIPE // (array.shape[1] * array.shape[3]))
    for top in range(0, array.shape[2], rows):
        array[:, :, top : top + rows] = 0
        release(array)


_STRIPE = 1 << 22
"""Elements that are cleared at a time."""


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _map(array: NDArray[Any]) -> mmap.mmap | None:
    owner: object = array
    while isinstance(owner, np.ndarray):
        # A private map's changes are in these pages and nowhere else.
        kept = isinstance(owner, np.memmap) and owner.mode == "c"
        owner = None if kept else owner.base
    return owner if isinstance(owner, mmap.mmap) else None
