"""What runs between slices, in NumPy: the terms of the objective and their cotangents.

Features are (1, C, h, w) float32; sums are accumulated in float64 where they are scalars.
"""

from __future__ import annotations

import numpy as np

from impasto.errors import UnknownNameError
from impasto.export.objective import TV_FORMS, TvForm
from impasto.runtime.problem import FloatArray


def content(features: FloatArray, target: FloatArray, weight: float) -> tuple[float, FloatArray]:
    """Return ``c·Σ(F - P)²`` and its cotangent ``2c·(F - P)``."""
    difference: FloatArray = features - target
    loss = weight * sum_of_squares(difference)
    difference *= np.float32(2 * weight)
    return loss, difference


def gram(features: FloatArray) -> FloatArray:
    """Return F·Fᵀ/N, (C, C)."""
    flat = features.reshape(features.shape[1], -1)
    product: FloatArray = flat @ flat.T
    product *= np.float32(1 / flat.shape[1])
    return product


def style(features: FloatArray, target: FloatArray, weight: float) -> tuple[float, FloatArray]:
    """Return ``c·Σ(G - A)²`` for G = F·Fᵀ/N, and its cotangent ``4c/N·(G - A)·F``."""
    flat = features.reshape(features.shape[1], -1)
    difference: FloatArray = gram(features) - target
    loss = weight * sum_of_squares(difference)
    difference *= np.float32(4 * weight / flat.shape[1])
    return loss, (difference @ flat).reshape(features.shape)


def covariance(
    features: FloatArray, target: FloatArray, weight: float, mean_target: FloatArray, mean_weight: float
) -> tuple[float, FloatArray]:
    """Return ``c·Σ(V - A)² + d·Σ(μ - m)²`` for mean μ, (C, 1), and covariance V = F·Fᵀ/N - μμᵀ, and its cotangent.

    That is ``4c/N·(V - A)·(F - μ) + 2d/N·(μ - m)`` at every position.
    """
    flat = features.reshape(features.shape[1], -1)
    mean = flat.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    level = mean - mean_target
    spread = gram(features) - mean @ mean.T - target
    loss = weight * sum_of_squares(spread) + mean_weight * sum_of_squares(level)
    spread *= np.float32(4 * weight / flat.shape[1])
    level *= np.float32(2 * mean_weight / flat.shape[1])
    seed = spread @ flat
    seed += level - spread @ mean
    return loss, seed.reshape(features.shape)


def total_variation(image: FloatArray, weight: float, form: TvForm) -> tuple[float, FloatArray]:
    """Return the weighted total variation of an image, (1, 3, H, W), in a form of `Objective`, and its gradient."""
    gradient = np.zeros_like(image)
    if form == "power":
        window = image[:, :, :-1, :-1]
        dy = image[:, :, 1:, :-1] - window
        dx = image[:, :, :-1, 1:] - window
        squares = dx * dx + dy * dy
        slope = np.float32(2.5 * weight) * squares**0.25
        _scatter(gradient[:, :, :, :-1], slope * dy, axis=2)
        _scatter(gradient[:, :, :-1, :], slope * dx, axis=3)
        return weight * float(np.sum(squares**1.25, dtype=np.float64)), gradient
    loss = 0.0
    for axis in (2, 3):
        difference = np.diff(image, axis=axis)
        match form:
            case "squared":
                loss += 0.5 * weight * sum_of_squares(difference)
                _scatter(gradient, difference * np.float32(weight), axis)
            case "absolute":
                loss += weight * float(np.sum(np.abs(difference), dtype=np.float64))
                _scatter(gradient, np.sign(difference) * np.float32(weight), axis)
            case _:
                raise UnknownNameError("total variation", form, TV_FORMS)
    return loss, gradient


def sum_of_squares(values: FloatArray) -> float:
    """Return Σ values² in float64."""
    return float(np.einsum("i,i->", values.ravel(), values.ravel(), dtype=np.float64))


def _scatter(gradient: FloatArray, slope: FloatArray, axis: int) -> None:
    """Add the adjoint of forward differences along ``axis`` to ``gradient``."""
    near: list[slice] = [slice(None)] * 4
    far = list(near)
    near[axis], far[axis] = slice(None, -1), slice(1, None)
    gradient[tuple(far)] += slope
    gradient[tuple(near)] -= slope
