"""The times of kernels: what they reach of the device's copy bandwidth, and beside cuBLAS."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.check_gram import SHAPES, features
from benchmarks.gpu.peaks import torch_launches, torch_on_gpu
from benchmarks.gpu.room import F64, TYPES, Room
from benchmarks.gpu.timing import Measure, in_turns, launches
from impasto.errors import UnavailableError
from impasto.export.objective import TV_FORMS
from impasto.models.conventions import CAFFE
from impasto.runtime.gpu.protocol import Device
from impasto.runtime.kernels.gram import Gram
from impasto.runtime.kernels.gram_vjp import GramVjp
from impasto.runtime.kernels.image import ImageKernels
from impasto.runtime.kernels.solver import AdamVectors, SolverKernels, VectorKernels
from impasto.runtime.kernels.tv import TotalVariation

_ROUNDS = 7


@dataclass(frozen=True)
class Time:
    """The seconds of one launch; ``nbytes`` it has to read and write at least, ``flop`` it computes.

    ``rival`` is the seconds of what it is compared with, measured in turns, None where there is nothing.
    """

    what: str
    seconds: float
    nbytes: int
    flop: int = 0
    rival: float | None = None

    @property
    def speedup(self) -> float:
        """How many times as fast as the rival it is; NaN without one."""
        return math.nan if self.rival is None else self.rival / self.seconds


def gram_times(device: Device, quick: bool) -> Iterator[tuple[str, Time]]:
    """Measure the Gram matrix, both passes, beside cuBLAS's full product by PyTorch, and its gradient.

    Yields the precision with each. Without PyTorch on the GPU there is no rival.
    """
    for channels, positions in ((64, 1024),) if quick else SHAPES:
        for precision in TYPES:
            for time in _gram_times(device, channels, positions, precision, quick):
                yield precision, time


def _gram_times(device: Device, channels: int, positions: int, precision: str, quick: bool) -> tuple[Time, Time]:
    stored, dtype = features(channels, positions, precision).stored, TYPES[precision]
    square = np.zeros((channels, channels), np.float32)
    count, rounds = (2, 2) if quick else (20, _ROUNDS)
    with Room(device) as room:
        own, out = room.put(stored), room.empty(stored.shape, dtype)
        gram, vjp = Gram(device, channels, positions, dtype), GramVjp(device, channels, positions, dtype)
        partials, target, seed = room.empty(gram.partials_bytes // 4), room.put(square), room.empty(square.shape)
        losses, peaks = room.empty(gram.loss_count, F64), room.empty(gram.peak_count)

        def forward() -> None:
            gram.enqueue(own, partials)
            gram.compare(partials, target, seed, losses, weight=1.0, cotangent_scale=1.0, peaks=peaks)

        def backward() -> None:
            vjp.enqueue(own, out, seed=seed, peaks=peaks, masked=True)

        measures = {"forward": launches(device, forward, count), "backward": launches(device, backward, count)}
        with suppress(UnavailableError):  # the part tells why there is no PyTorch to compare with
            measures["cublas"] = _cublas(torch_on_gpu(), stored, precision, count)
        found = in_turns(measures, rounds)
    shape, nbytes = f"{precision} {channels}×{positions}", stored.nbytes
    flop = channels**2 * positions  # of a triangle; the gradient takes a whole product
    return (
        Time(f"gram {shape}", found["forward"], nbytes, flop, found.get("cublas")),
        Time(f"gram_vjp {shape}", found["backward"], 2 * nbytes, 2 * flop),
    )


def _cublas(torch: Any, stored: NDArray[Any], precision: str, count: int) -> Measure:
    torch.set_float32_matmul_precision("highest")  # in this process nothing else multiplies by torch
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    own = torch.from_numpy(stored.astype(np.float32)).cuda().to(dtype)
    out = torch.empty(own.shape[0], own.shape[0], dtype=dtype, device="cuda")
    return torch_launches(torch, lambda: torch.mm(own, own.T, out=out), count)


def streaming_times(device: Device, quick: bool) -> Iterator[Time]:
    """Measure the kernels that read and write and compute little, each beside a copy of as many bytes."""
    side = 32 if quick else 4096
    size = 3 * side * side
    with Room(device) as room:
        a, b, c, d = (room.empty(size) for _ in range(4))
        for place in (a, b, c, d):
            device.clear(place, 4 * size)
        vectors, solver = VectorKernels(device), SolverKernels(device, size, 1, room.memory)
        rgb = room.empty(size, np.dtype(np.uint8))
        image = ImageKernels(device, CAFFE)
        variations = {form: TotalVariation(device, side, side, form) for form in TV_FORMS}
        losses = room.empty(max(v.loss_count for v in variations.values()), F64)
        pairs = solver.reserve_pairs(3 if quick else 9)
        device.clear(pairs.rows, 4 * pairs.stride * 2 * pairs.slots)
        adam: dict[str, Any] = {"scale": 1.0, "betas": (0.9, 0.999), "bias": 1.0, "eps": 1.0, "rate": 1.0}
        unbounded: dict[str, Any] = {"bounds": (0, 0), "bound_size": size}
        kernels: dict[str, tuple[int, Callable[[], None]]] = {
            f"tv {form} {side}²": (
                8 * size,
                lambda v=v: v.enqueue(a, b, losses, weight=1.0),  # type: ignore[misc]
            )
            for form, v in variations.items()
        }
        kernels |= {
            "tv squared, with upstream": (
                12 * size, lambda: variations["squared"].enqueue(a, b, losses, weight=1.0, upstream=c)
            ),
            "image to planar": (5 * size, lambda: image.to_planar(rgb, a, side, side)),
            "image to rgb": (5 * size, lambda: image.to_rgb(a, rgb, side, side)),
            "solver accumulate fp32": (12 * size, lambda: vectors.accumulate(a, b, size, TYPES["fp32"])),
            "solver accumulate bf16": (6 * size, lambda: vectors.accumulate(a, b, size, TYPES["bf16"])),
            "solver receive": (12 * size, lambda: solver.receive(a, 1.0, b, c)),
            "solver move": (12 * size, lambda: solver.move(a, b, 1.0, c)),
            "solver pair": (28 * size, lambda: solver.pair(a, b, (c, d), *pairs.pair(0))),
            f"solver products of {pairs.slots} pairs": (
                4 * size * (2 * pairs.slots + 1), lambda: solver.products(pairs, 0, pairs.slots, a)
            ),
            "solver adam": (
                32 * size, lambda: solver.adam(AdamVectors(a, d, a, b, c, d), **adam, **unbounded)
            ),
        }  # fmt: skip
        yield from _beside_copies(device, kernels, quick)


def _beside_copies(
    device: Device, kernels: Mapping[str, tuple[int, Callable[[], None]]], quick: bool
) -> Iterator[Time]:
    count, rounds = (2, 2) if quick else (10, _ROUNDS)
    most = max(nbytes for nbytes, _ in kernels.values()) // 2
    with Room(device) as room:
        origin, to = room.empty(most, np.dtype(np.uint8)), room.empty(most, np.dtype(np.uint8))
        for what, (nbytes, enqueue) in kernels.items():
            half = nbytes // 2  # a copy reads as much as it writes
            copy = launches(device, lambda half=half: device.copy(to, origin, half), count)  # type: ignore[misc]
            found = in_turns({"kernel": launches(device, enqueue, count), "copy": copy}, rounds)
            yield Time(what, found["kernel"], nbytes, 0, found["copy"])
