"""Targets: what the content and style pictures measure at the taps of an objective."""

from __future__ import annotations

from impasto.export.forward import check_size
from impasto.export.objective import Objective, Targets
from impasto.models.conventions import pixel_space
from impasto.models.weights import Weights
from impasto.runtime.backends.protocol import Backend
from impasto.runtime.problem import FloatArray


def measure_targets(
    backend: Backend, weights: Weights, objective: Objective, content: FloatArray, style: FloatArray
) -> Targets:
    """Measure both pictures, each (H, W, 3) float32 RGB in 0–1; the content picture has the result's size.

    Raises `ImageError` for a picture that is too small for one of its taps.
    """
    content_taps, style_taps = tuple(objective.content), tuple(objective.style)
    activations: dict[str, FloatArray] = {}
    grams: dict[str, FloatArray] = {}
    if content_taps:
        check_size(weights, content_taps, (content.shape[0], content.shape[1]))
        activations, _ = backend.measure(weights, objective, encoded(objective, content), content_taps, ())
    if style_taps:
        check_size(weights, style_taps, (style.shape[0], style.shape[1]))
        _, grams = backend.measure(weights, objective, encoded(objective, style), (), style_taps)
    positions = {}
    for tap in style_taps:
        stride = weights.backbone.stride(tap)
        positions[tap] = (style.shape[0] // stride) * (style.shape[1] // stride)
    return Targets(activations, grams, positions)


def encoded(objective: Objective, rgb: FloatArray) -> FloatArray:
    """Return an RGB picture, (H, W, 3) in 0–1, as an image of the objective: (1, 3, H, W) in its pixel space."""
    return pixel_space(objective.pixels).encode(rgb)[None]


def decoded(objective: Objective, image: FloatArray) -> FloatArray:
    """Return an image of the objective as an RGB picture, (H, W, 3) float32, clipped to 0–1."""
    return pixel_space(objective.pixels).decode(image[0]).clip(0, 1)
