"""A filter bank, what its graphs need besides pictures, and how far off they may be in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from impasto.export.graph import Graph
from impasto.models.layers import Filters
from impasto.models.random_weights import filterbank_weights
from impasto.models.reference import Reference
from impasto.models.weights import Weights

ROUNDOFF = 2.0**-24
"""Of float32."""

Calibration = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="session")
def bank() -> Weights:
    """The filter bank of some seed."""
    return filterbank_weights(3)


@pytest.fixture(scope="session")
def run() -> Callable[[Graph, Mapping[str, NDArray[np.float32]]], dict[str, NDArray[np.float32]]]:
    """Run a graph on ONNX Runtime's CPU; of the values, it is given those that it has inputs for."""

    def on_cpu(graph: Graph, values: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
        outputs = session.run(graph.outputs, {name: values[name] for name in graph.inputs})
        return dict(zip(graph.outputs, outputs, strict=True))

    return on_cpu


@pytest.fixture(scope="session")
def calibration(bank: Weights, picture: Callable[..., NDArray[np.float32]]) -> Calibration:
    """What the float64 reference makes of a style picture for every level that a picture of 66 pixels reaches."""
    style = torch.from_numpy(bank.convention.encode(picture(77, 70, 66))[None]).double()
    taps = [tap for tap in bank.backbone.taps if bank.backbone.smallest(tap) <= 66]
    found = Reference(bank, taps, dtype=torch.float64).calibrate(style)
    return {name: value.float().numpy() for name, value in found.items()}


@pytest.fixture(scope="session")
def bank_rounding(bank: Weights) -> Callable[..., NDArray[np.float64]]:
    """A function from a tap, a calibration and the largest pixel to how far off the tap may be, (C, 1, 1)."""

    def bound(tap: str, calibration: Mapping[str, NDArray[np.float32]], largest: float = 1.0) -> NDArray[np.float64]:
        """Sum up the roundings of every step; a sum of n products is off by n of their sizes at most (Higham, γₙ).

        A halving has 25 products and weights that sum to 1; the last 10 are for the pixel space, the kernels' scales
        and the threshold. Rectifying makes no difference larger.
        """
        level = int(tap[-1])
        if tap.startswith("level"):
            return np.full((3, 1, 1), (30 * level + 10) * ROUNDOFF * largest)
        layer = bank.backbone.layer(f"response{level}")
        assert isinstance(layer, Filters)
        scale, threshold = (calibration[name].astype(np.float64) for name in layer.calibration())
        kernels = np.abs(bank.tensors[f"{layer.name}.weight"].astype(np.float64))
        products = kernels[0].size
        sizes = scale * kernels.sum(axis=(1, 2, 3)) * largest + np.abs(threshold)
        return ((products + 30 * level + 10) * ROUNDOFF * sizes).reshape(-1, 1, 1)

    return bound
