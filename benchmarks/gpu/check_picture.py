"""`tv` against float64, and `image` against the bits of the host."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.findings import Check, differing, worst
from benchmarks.gpu.room import F64, Room
from impasto.export.objective import TV_FORMS, TvForm
from impasto.models.conventions import PIXEL_SPACES
from impasto.runtime.gpu.protocol import Device
from impasto.runtime.images import to_uint8
from impasto.runtime.kernels.image import ImageKernels
from impasto.runtime.kernels.tv import TotalVariation

_BOUND = 8 * 2.0**-23
"""A slope has at most eight roundings, two of a root that is within two units; sums and products add four."""


def checks(device: Device, quick: bool) -> Iterator[Check]:
    """Check each form of the total variation, rows of whole vectors and others, and each pixel space."""
    for size in ((9, 13), (34, 132)) if quick else ((1, 1), (9, 13), (35, 65), (34, 132), (1021, 1023), (1024, 1024)):
        for form in TV_FORMS:
            yield from _variation(device, form, size)
    yield _no_variation(device, (35, 66))
    for name in PIXEL_SPACES:
        yield from _picture(device, name, 24 if quick else 512)


def _variation(device: Device, form: TvForm, size: tuple[int, int]) -> Iterator[Check]:
    title = f"tv {form} {size[1]}×{size[0]}"
    stream = np.random.default_rng(4)
    image, upstream = (stream.standard_normal((3, *size), np.float32) * 30 for _ in range(2))
    weight, factor = 0.3, 0.125
    with Room(device) as room:
        variation = TotalVariation(device, *size, form)
        source, above, losses = room.put(image), room.put(upstream), room.empty(variation.loss_count, F64)

        def run() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
            gradient = room.empty(image.shape)
            variation.enqueue(source, gradient, losses, weight=weight, upstream=above, factor=factor)
            return room.get(gradient, image.shape), room.get(losses, variation.loss_count, F64)

        (gradient, partial), (again, partial_again) = run(), run()
    loss, slope, magnitude = variation_reference(image, form)
    carried = factor * upstream.astype(np.float64)
    yield Check(
        title, worst(gradient, weight * slope + carried, weight * magnitude + np.abs(carried)), _BOUND, "of its terms"
    )
    error = abs(partial.sum() - weight * loss) / (weight * loss) if loss else float(partial.sum() != 0)
    yield Check(f"{title}, loss", error, _BOUND, "of the loss")
    yield Check(f"{title}, again", differing(again, gradient) + differing(partial_again, partial), 0, "bits")


def _no_variation(device: Device, size: tuple[int, int]) -> Check:
    """Check that a weight of zero leaves what comes from above."""
    upstream = np.random.default_rng(18).standard_normal((3, *size), np.float32)
    with Room(device) as room:
        variation = TotalVariation(device, *size, "squared")
        gradient, losses = room.empty(upstream.shape), room.empty(variation.loss_count, F64)
        variation.enqueue(0, gradient, losses, weight=0.0, upstream=room.put(upstream), factor=0.3)
        error = differing(room.get(gradient, upstream.shape), upstream * np.float32(0.3))
        error += differing(room.get(losses, variation.loss_count, F64), np.zeros(variation.loss_count))
    return Check("tv of no weight", error, 0, "bits")


def variation_reference(
    image: NDArray[np.float32], form: str
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Return total variation and gradient in float64, and the sum of the magnitudes that cancel in the gradient."""
    wide = image.astype(np.float64)
    dx, dy = np.zeros_like(wide), np.zeros_like(wide)
    dx[:, :, :-1], dy[:, :-1] = np.diff(wide, axis=2), np.diff(wide, axis=1)
    if form == "power":
        dx[:, -1], dy[:, :, -1] = 0, 0
        squares = dx**2 + dy**2
        slope = 2.5 * squares**0.25
        loss, slope_x, slope_y = (squares**1.25).sum(), slope * dx, slope * dy
    elif form == "squared":
        loss, slope_x, slope_y = (dx**2 + dy**2).sum() / 2, dx, dy
    else:
        loss, slope_x, slope_y = (np.abs(dx) + np.abs(dy)).sum(), np.sign(dx), np.sign(dy)
    gradient, magnitude = -slope_x - slope_y, np.abs(slope_x) + np.abs(slope_y)
    for slopes, after, before in (
        (slope_x, np.s_[:, :, 1:], np.s_[:, :, :-1]),
        (slope_y, np.s_[:, 1:], np.s_[:, :-1]),
    ):
        gradient[after] += slopes[before]
        magnitude[after] += np.abs(slopes[before])
    return float(loss), gradient, magnitude


def _picture(device: Device, name: str, side: int) -> Iterator[Check]:
    space, shape = PIXEL_SPACES[name], (side, side + 5, 3)
    stream = np.random.default_rng(5)
    rgb = stream.integers(0, 256, shape, np.uint8)
    with Room(device) as room:
        kernels = ImageKernels(device, space)
        planar = room.empty((3, *shape[:2]))
        kernels.to_planar(room.put(rgb), planar, *shape[:2])
        found = room.get(planar, (3, *shape[:2]))
        yield Check(f"image to {name}", differing(found, space.encode(rgb / np.float32(255))), 0, "bits")
        painted = space.encode(stream.uniform(-0.5, 1.5, shape).astype(np.float32))
        levels = room.empty((side - 4, side + 1, 3), np.dtype(np.uint8))
        kernels.to_rgb(room.put(painted), levels, *shape[:2], margin=2)
        expected = to_uint8(space.decode(painted).clip(0, 1)[2:-2, 2:-2])
        found = room.get(levels, expected.shape, np.dtype(np.uint8))
        yield Check(f"image from {name}", differing(found, expected), 0, "levels")
