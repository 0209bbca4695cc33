"""Arrays as large as pictures: in memory, or in a file that is mapped into it."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable

import numpy as np

from impasto.errors import StorageError
from impasto.runtime.problem import FloatArray

Allocate = Callable[[tuple[int, ...]], FloatArray]
"""Makes an array of zeros, float32, of a shape."""


def in_memory(shape: tuple[int, ...]) -> FloatArray:
    """Return an array of zeros, float32."""
    return np.zeros(shape, np.float32)


def mapped(shape: tuple[int, ...]) -> FloatArray:
    """Return an array of zeros, float32, in a file without a name in the folder for temporary files (``TMPDIR``).

    Its room is taken at once: raises `StorageError` if there is none. The file goes with the array.
    """
    size = 4 * int(np.prod(shape, dtype=np.int64))
    with tempfile.TemporaryFile(prefix="impasto-") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            raise StorageError(
                f"no room for {size} bytes in {tempfile.gettempdir()} ({error.strerror}): "
                "set TMPDIR to a folder on a larger disk"
            ) from error
        return np.memmap(file, np.float32, "r+", shape=shape)


def release(*arrays: FloatArray) -> None:
    """Let the pages of mapped arrays, or of views of them, go from this process's memory; their values stay.

    Pages that were touched count as its memory until then, though they are the file's. Other arrays are left alone.
    """
    for array in arrays:
        owner: object = array
        while isinstance(owner, np.ndarray):
            # A private map's changes are in these pages and nowhere else.
            kept = isinstance(owner, np.memmap) and owner.mode == "c"
            owner = None if kept else owner.base
        if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            owner.madvise(mmap.MADV_DONTNEED)


def clear(array: FloatArray) -> None:
    """Set an array, (1, C, H, W), to zero, a few rows at a time: no more of a mapped one is in memory at once."""
    rows = max(1, _STRIPE // (array.shape[1] * array.shape[3]))
    for top in range(0, array.shape[2], rows):
        array[:, :, top : top + rows] = 0
        release(array)


_STRIPE = 1 << 22
"""Elements that are cleared at a time."""
