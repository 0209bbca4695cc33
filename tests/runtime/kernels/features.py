"""What the tests of the Gram kernels are given: features of every type, and where they lie on the device."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

F32 = np.dtype(np.float32)
TYPES = [F32, np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
UNIT = 2.0**-24  # the relative error of a float32 rounding

types = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.name)


def random(seed, channels, positions, dtype=F32, mean=0.0):
    values = np.random.RandomState(seed).standard_normal((channels, positions)) + mean
    return values.astype(np.float32).astype(dtype)


def put(device, values, offset=0):
    """Upload an array, ``offset`` bytes into a buffer, and return its address."""
    buffer = device.allocate(values.nbytes + offset)
    device.upload(buffer.address + offset, values)
    return buffer.address + offset
