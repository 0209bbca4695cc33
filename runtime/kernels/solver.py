"""Launchers of ``solver.cu``: the solvers' arithmetic, and small things that a plan needs between graphs.

Vectors are float32 of ``size`` elements, sums float64. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from impasto.runtime.gpu.memory import Memory
from impasto.runtime.gpu.protocol import Address, Device, Kernel

_THREADS = 256
_BLOCKS = 8  # on a multiprocessor at once
_ROWS, _RUN, _LENGTH = 8, 4, 2  # as in solver.cu
_SUFFIXES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_ELEMENTWISE = ("accumulate", "fill", "narrow", "widen")
_PASSES = ("receive", "write_report", "move", "pair", "products", "recursion", "combine", "aim", "adam")

REPORT_HEAD = ("slope", "largest", "spoilt", "origin_slope", "first_step", "kept")
"""The float64 numbers of a report that come before the losses."""
_SEGMENT = np.dtype([("values", np.uint64), ("count", np.uint64), ("term", np.uint64)])


class _Source:
    """Kernels of ``solver.cu`` on one device, loaded at once: later there may be a capture under way."""

    def __init__(self, device: Device, entries: Iterable[str]) -> None:
        self._device = device
        self._kernels: dict[str, Kernel] = {entry: device.kernel("solver", entry) for entry in entries}

    def __getitem__(self, entry: str) -> Kernel:
        return self._kernels[entry]

    @property
    def most(self) -> int:
        """As many blocks as the device has room for at once."""
        return _BLOCKS * self._device.multiprocessors

    def blocks(self, count: int) -> int:
        """Into how many blocks a pass is split that has work for so many threads."""
        return min(-(-count // _THREADS), self.most)


class VectorKernels:
    """Element-wise work on vectors of a feature type: float32, float16 or bfloat16."""

    def __init__(self, device: Device) -> None:
        elementwise = [f"{name}_{suffix}" for name in _ELEMENTWISE for suffix in _SUFFIXES.values()]
        self._source = _Source(device, ["gather_scalars", *elementwise])

    def accumulate(self, to: Address, origin: Address, count: int, dtype: np.dtype[Any]) -> None:
        """Add ``count`` elements of that type to as many others, in place; sums are rounded once."""
        self._elementwise("accumulate", dtype, count, to, origin)

    def fill(self, to: Address, value: float, count: int, dtype: np.dtype[Any]) -> None:
        """Set ``count`` elements of that type to a value."""
        self._elementwise("fill", dtype, count, to, np.float32(value))

    def narrow(self, to: Address, origin: Address, count: int, dtype: np.dtype[Any], factor: float = 1.0) -> None:
        """Convert ``count`` elements from float32, times a factor, to that type; ties go to even."""
        self._elementwise("narrow", dtype, count, to, origin, np.float32(factor))

    def widen(self, to: Address, origin: Address, count: int, dtype: np.dtype[Any], factor: float = 1.0) -> None:
        """Convert ``count`` elements of that type to float32, times a factor."""
        self._elementwise("widen", dtype, count, to, origin, np.float32(factor))

    def gather_scalars(self, scalars: Address, stride: int, count: int, losses: Address) -> None:
        """Write ``count`` float32 scalars, ``stride`` bytes from one to the next, as consecutive float64."""
        self._source["gather_scalars"]((1, 1), _THREADS, scalars, np.uint64(stride), np.int32(count), losses)

    def _elementwise(self, name: str, dtype: np.dtype[Any], count: int, *arguments: Address | np.generic) -> None:
        kernel = self._source[f"{name}_{_SUFFIXES[dtype.name]}"]
        kernel((self._source.blocks(count), 1), _THREADS, *arguments, np.uint64(count))


class SegmentSums:
    """Adds up partial losses: ``segments`` holds, of every piece, its term's number, the address, and the count.

    Partial losses are float64. ``out[i]`` becomes the sum of all segments of term i, in a fixed order, for every i up
    to the highest number.
    """

    def __init__(self, device: Device, segments: Sequence[tuple[int, Address, int]], out: Address) -> None:
        table = np.array([(address, count, term) for term, address, count in segments], _SEGMENT)
        self._terms = 1 + max(term for term, _, _ in segments)
        self._count, self._out = len(segments), out
        self._table = device.allocate(table.nbytes)
        device.upload(self._table.address, table)
        self._kernel = device.kernel("solver", "sum_segments")

    def enqueue(self) -> None:
        """Add them up."""
        self._kernel((self._terms, 1), _THREADS, self._table.address, np.int32(self._count), self._out)

    def close(self) -> None:
        """Free the table."""
        self._table.free()


@dataclass(frozen=True)
class Pairs:
    """Where L-BFGS's pairs lie: a ring of ``slots``, one of which is where the next pair is written.

    ``rows`` is (2·slots, stride) float32: row 2i is slot i's step s, row 2i + 1 the change y of the gradient over it.
    The rest are sums of products, ``product_blocks`` a row, and ``numbers`` and ``entries`` as solver.cu has them.
    """

    slots: int
    stride: int
    rows: Address
    products: Address
    product_blocks: int
    numbers: Address
    entries: Address

    def pair(self, slot: int) -> tuple[Address, Address]:
        """Return where a slot's step and change are."""
        step = self.rows + 4 * self.stride * 2 * slot
        return step, step + 4 * self.stride


class SolverKernels:
    """The passes over vectors of ``size`` elements that solvers make; the sums of one are gone with the next.

    ``report`` is where numbers go that the host is to have: `REPORT_HEAD`, then ``losses`` of them.
    """

    def __init__(self, device: Device, size: int, losses: int, memory: Memory) -> None:
        self._device, self._memory = device, memory
        self._source = _Source(device, _PASSES)
        self._size, self._losses = size, losses
        self._blocks = self._source.blocks(size)
        self._sums = memory.reserve("sums", 3 * 8 * self._blocks)
        length = 8 * (len(REPORT_HEAD) + losses)
        self.report = memory.reserve("report", length)
        device.clear(self.report, length)  # not every solver fills all of it

    def receive(self, gradient: Address, scale: float, direction: Address, scaled: Address) -> None:
        """Write scale · gradient to ``scaled`` and measure it; either of ``direction`` and ``scaled`` may be 0.

        Measured are the scaled gradient's slope along the direction, the largest absolute element of the gradient, and
        the number of those that are not finite.
        """
        self._pass("receive", gradient, np.float32(scale), direction, scaled, self._sums)

    def write_report(self, losses: Address) -> None:
        """Write what `receive` has measured, and the losses, to the report."""
        self._one_block("write_report", self._sums, np.int32(self._blocks), losses, np.int32(self._losses))

    def move(self, x: Address, direction: Address, step: float | None, trial: Address) -> None:
        """Write x + step · direction to ``trial``; None takes the report's first step."""
        report, given = (self.report, 0.0) if step is None else (0, step)
        self._pass("move", x, direction, report, np.float64(given), trial)

    def reserve_pairs(self, slots: int) -> Pairs:
        """Allocate room for so many pairs; there are none yet, and γ is 1."""
        stride = -(-self._size // 64) * 64  # rows begin at multiples of 256 bytes
        groups = -(-2 * slots // _ROWS)
        product_blocks = min(self._source.blocks(-(-self._size // _RUN)), max(1, self._source.most // groups))
        pairs = Pairs(
            slots=slots,
            stride=stride,
            rows=self._memory.reserve("pairs", 4 * stride * 2 * slots),
            products=self._memory.reserve("products", 8 * product_blocks * 2 * slots),
            product_blocks=product_blocks,
            numbers=self._memory.reserve("numbers", 8 * (3 + 6 * slots + 2 * slots**2)),
            entries=self._memory.reserve("entries", 8 * 2 * slots),
        )
        self._device.upload(pairs.numbers, np.array([1.0, 0.0, 0.0]))
        return pairs

    def pair(
        self, trial: Address, x: Address, gradients: tuple[Address, Address], step: Address, change: Address
    ) -> None:
        """Write trial − x and the change of the gradient, from x to the trial, measure both, and make the trial x.

        ``gradients`` are those at the trial and at x.
        """
        self._pass("pair", trial, x, *gradients, step, change, self._sums)

    def products(self, pairs: Pairs, first: int, count: int, gradient: Address) -> None:
        """Multiply the rows of ``count`` slots, from ``first`` on around the ring, with the gradient."""
        grid = pairs.product_blocks, -(-2 * count // _ROWS)
        ring = np.int32(first), np.int32(pairs.slots), np.int32(count)
        rows = pairs.rows, np.uint64(pairs.stride)
        self._source["products"](grid, _THREADS, *rows, *ring, gradient, pairs.products, np.uint64(self._size))

    def recursion(self, pairs: Pairs, first: int, count: int, min_cosine: float) -> None:
        """Decide on the new pair, which is in the slot after ``count`` pairs, and find the direction's coefficients.

        To be called after its `pair` and `products` of count + 1 slots. The pair is kept if s·y is more than
        ``min_cosine`` · |s||y|, as the report then says; the oldest one is dropped where no slot would be left.
        """
        sums = self._sums, np.int32(self._blocks), pairs.products, np.int32(pairs.product_blocks)
        ring = np.int32(first), np.int32(count), np.int32(pairs.slots)
        self._one_block("recursion", *sums, *ring, np.float64(min_cosine), pairs.numbers, pairs.entries)

    def drop_pairs(self, pairs: Pairs) -> None:
        """Make −γ · gradient the direction that `combine` writes."""
        self._device.clear(pairs.numbers + 8 * _LENGTH, 8)

    def combine(self, pairs: Pairs, gradient: Address, direction: Address) -> None:
        """Write the direction whose coefficients were found, and measure it."""
        rows = pairs.rows, np.uint64(pairs.stride)
        self._pass("combine", *rows, pairs.numbers, pairs.entries, gradient, direction, self._sums)

    def aim(self, pairs: Pairs, first_move: float) -> None:
        """Write the direction's slope and the first step along it to the report.

        That is 1, or, before any pair was kept, what moves the largest element by ``first_move``, and 0 if the slope
        is not negative.
        """
        self._one_block("aim", self._sums, np.int32(self._blocks), pairs.numbers, np.float64(first_move))

    def adam(
        self,
        vectors: AdamVectors,
        *,
        scale: float,
        betas: tuple[float, float],
        bias: float,
        eps: float,
        rate: float,
        bounds: tuple[Address, Address],
        bound_size: int,
    ) -> None:
        """Take Adam's step from ``vectors.origin``, which is copied to ``good``, to ``x``.

        ``m ← β₁m + (1−β₁)·scale·g``, ``v ← β₂v + (1−β₂)(scale·g)²``, ``x ← origin − rate · m / (√v / bias + eps)``,
        clamped to bounds, float32, with one value for every ``bound_size`` elements; 0 leaves a side open.
        """
        factors = [np.float32(value) for beta in betas for value in (beta, 1 - beta)]
        scalars = np.float32(scale), *factors, np.float32(bias), np.float32(eps), np.float32(rate)
        self._pass("adam", *vectors, *scalars, *bounds, np.uint64(bound_size))

    def _pass(self, entry: str, *arguments: Address | np.generic) -> None:
        self._source[entry]((self._blocks, 1), _THREADS, *arguments, np.uint64(self._size))

    def _one_block(self, entry: str, *arguments: Address | np.generic) -> None:
        self._source[entry]((1, 1), _THREADS, *arguments, self.report)


class AdamVectors(NamedTuple):
    """Where Adam's vectors are; ``origin`` may be ``good`` or ``x``."""

    origin: Address
    good: Address
    x: Address
    gradient: Address
    m: Address
    v: Address
