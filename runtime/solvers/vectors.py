"""What solvers do with vectors as large as pictures: a chunk at a time, wherever they are kept.

A solver's vectors are where its start is (`impasto.runtime.scratch.like`): in memory, or in mapped files, of which no
more than a chunk each is in memory then. Both ways do the same arithmetic in the same order, so their results are the
same bits. Sums over chunks are added in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from impasto.models.conventions import FloatArray
from impasto.runtime.scratch import is_mapped, like, release

CHUNK = 1 << 20
"""Elements of each vector that are worked on at a time."""


def chunks(*vectors: FloatArray) -> Iterator[tuple[FloatArray, ...]]:
    """Yield vectors of one size part by part, as views; matrices, (rows, size), by some of their columns."""
    held = [row for vector in vectors if is_mapped(vector) for row in vector.reshape(-1, vector.shape[-1])]
    for begin in range(0, vectors[0].shape[-1], CHUNK):
        part = slice(begin, begin + CHUNK)
        try:
            yield tuple(vector[..., part] for vector in vectors)
        finally:
            release(*(row[part] for row in held))


def copied(vector: FloatArray) -> FloatArray:
    """Return a copy that is kept where the vector is."""
    copy = like(vector)
    assign(copy, vector)
    return copy


def assign(into: FloatArray, values: FloatArray) -> None:
    """Copy the values of one contiguous array into another of the same shape."""
    for whole, part in chunks(into.reshape(-1), values.reshape(-1)):
        np.copyto(whole, part)


def dot(a: FloatArray, b: FloatArray) -> float:
    """Return the inner product."""
    return sum(float(x @ y) for x, y in chunks(a, b))


def products(matrix: FloatArray, vector: FloatArray) -> NDArray[np.float64]:
    """Return the inner products of a matrix's rows with a vector."""
    found = np.zeros(len(matrix))
    for rows, part in chunks(matrix, vector):
        found += rows @ part
    return found


def is_zero(vector: FloatArray) -> bool:
    """Tell whether every element is zero."""
    return not any(part.any() for (part,) in chunks(vector))


def is_finite(vector: FloatArray) -> bool:
    """Tell whether every element is finite."""
    return all(bool(np.isfinite(part).all()) for (part,) in chunks(vector))


def are_equal(a: FloatArray, b: FloatArray) -> bool:
    """Tell whether all elements are the same."""
    return all(np.array_equal(x, y) for x, y in chunks(a, b))


def largest(vector: FloatArray) -> float:
    """Return the largest absolute value."""
    return max(max(float(part.max()), -float(part.min())) for (part,) in chunks(vector))


def power_of_two_scale(gradient: FloatArray) -> float:
    """Return the power of two by which the gradient's largest element comes to lie in 0.5–1.

    Multiplying by it rounds nothing, and makes float32 squares and products safe for a loss of any scale. The
    gradient must not be zero.
    """
    _, exponent = math.frexp(largest(gradient))
    # Beyond ±126 the factor itself would leave float32's normal range.
    return math.ldexp(1.0, max(-126, min(126, -exponent)))
