"""Targets: what the content and style pictures measure at the taps of an objective."""

from __future__ import annotations

import math
from collections.abc import Mapping

from impasto.export.forward import check_size
from impasto.export.objective import Objective, Targets
from impasto.models.conventions import pixel_space
from impasto.models.layers import Filters
from impasto.models.weights import Weights
from impasto.runtime.backends.protocol import Backend, Measured, Plan
from impasto.runtime.problem import FloatArray


def measure_targets(
    backend: Backend,
    weights: Weights,
    objective: Objective,
    content: FloatArray,
    style: FloatArray,
    plan: Plan = "fused",
    memory: int | None = None,
) -> Targets:
    """Measure both pictures, each (H, W, 3) float32 RGB in 0–1; the content picture has the result's size.

    The rest is as for `measure_images`.
    """
    images = encoded(objective, content), encoded(objective, style)
    return measure_images(backend, weights, objective, *images, plan, memory)


def measure_images(
    backend: Backend,
    weights: Weights,
    objective: Objective,
    content: FloatArray,
    style: FloatArray,
    plan: Plan = "fused",
    memory: int | None = None,
) -> Targets:
    """Measure two images of the objective's pixel space, each (1, 3, H, W) float32.

    Those of the plan ``tiled`` serve no other one: large content targets are not kept. ``memory`` is that plan's, as
    for `Backend.measure_tiled`.

    Raises `ImageError` for a picture that is too small for one of its taps.
    """
    content_taps, style_taps = tuple(objective.content), tuple(objective.style)
    # Filters are calibrated by the style picture whichever picture is compared by them; and a graph that measures one
    # picture at a few of the taps computes all of them, of which reflections, unlike poolings, have a smallest size.
    filtered = _has_filters(weights, objective)
    check_size(weights, objective.taps if filtered else content_taps, content.shape[2:])
    check_size(weights, objective.taps if filtered else style_taps, style.shape[2:])
    if plan == "tiled":
        return backend.measure_tiled(weights, objective, content, style, memory)
    calibration = backend.calibrate(weights, objective, style)
    activations: Mapping[str, FloatArray] = {}
    statistics = Measured({}, {}, {})
    if content_taps:
        activations = backend.measure(weights, objective, content, content_taps, (), calibration).activations
    if style_taps:
        statistics = backend.measure(weights, objective, style, (), style_taps, calibration)
    positions = {tap: math.prod(weights.backbone.grid(tap, style.shape[2:])) for tap in style_taps}
    return Targets(activations, statistics.style, positions, statistics.means, calibration)


def _has_filters(weights: Weights, objective: Objective) -> bool:
    return any(isinstance(layer, Filters) for layer in weights.backbone.needed(objective.taps))


def encoded(objective: Objective, rgb: FloatArray) -> FloatArray:
    """Return an RGB picture, (H, W, 3) in 0–1, as an image of the objective: (1, 3, H, W) in its pixel space."""
    return pixel_space(objective.pixels).encode(rgb)[None]
