"""Rescaling: weights whose activations stay near 1, so that half precision holds them.

With 0–255 pictures, VGG's activations go beyond fp16's largest number, 65504, and with 0–1 pictures other networks'
fall to where it is coarse. ReLU, pooling and convolutions without bias are positively homogeneous, so every
convolution's output may be multiplied by a factor s of its own,

    W' = W · s_out / s_in,   b' = b · s_out   ⇒   F' = s · F,

and with powers of two nothing is rounded.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.errors import GraphError, WeightsError
from impasto.export.forward import Pooling, forward_graph
from impasto.models.layers import IMAGE, Conv, Halve, Pool, Relu
from impasto.models.weights import FloatArray, Weights

PROBE_SIZE = 128

_LARGEST = 4096.0
"""What a probe's activations may reach; a sixteenth of fp16's range, for pictures that excite a channel more."""

_OPPONENTS = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]]) / np.sqrt([[3.0], [6.0], [2.0]])
_DEVIATIONS = np.array([0.4, 0.1, 0.05])
"""Of light–dark, blue–yellow and red–green, whose variances in photographs fall in this order."""


def rescaled(weights: Weights, pooling: Pooling = "max") -> tuple[Weights, dict[str, float]]:
    """Return weights that bring the mean of every rectified activation near 1, and each tap's factor s, F' = s·F.

    s is the power of two nearest, in ratio, to one over the mean that a picture (`probe`) gives; smaller where an
    activation, rectified or not, would exceed 4096. Pools and ReLUs keep the factor of their source, and so do
    convolutions that the probe leaves at zero. Every tap that the weights reach has a factor; a backbone without
    convolutions, the filter bank, keeps its weights, and its factors are 1.

    Exact, but that a number of the result below float32's normal range, 2^-126, is rounded to a multiple of 2^-149.
    Raises `WeightsError` for weights whose activations overflow float32.
    """
    if not any(isinstance(weights.backbone.layer(tap), Conv) for tap in weights.taps):
        return weights, dict.fromkeys(weights.taps, 1.0)
    exponents = {IMAGE: 0}
    measured = _exponents(weights, pooling)
    tensors = dict(weights.tensors)
    for layer in map(weights.backbone.layer, weights.taps):
        before = exponents[layer.source]
        match layer:
            case Conv():
                after = measured.get(layer.name, before)
                kernel, bias = layer.tensors()
                tensors[kernel] = np.ldexp(tensors[kernel], after - before)
                tensors[bias] = np.ldexp(tensors[bias], after)
                exponents[layer.name] = after
            case Relu() | Pool() | Halve():
                exponents[layer.name] = before
            case _:
                raise GraphError(f"layer {layer.name!r}: a {type(layer).__name__} after convolutions is not rescaled")
    factors = {tap: 2.0 ** exponents[tap] for tap in weights.taps}
    return replace(weights, tensors=tensors), factors


def probe(size: int = PROBE_SIZE, seed: int = 0) -> FloatArray:
    """Draw a picture, (size, size, 3) float32 RGB in 0–1, with the second-order statistics of photographs.

    Amplitudes fall as 1/f (Field 1987, "Relations between the statistics of natural images …") in three independent
    opponent colours (Ruderman et al. 1998, "Statistics of cone responses to natural images").
    """
    noise = np.random.RandomState(seed).standard_normal((3, size, size))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = np.inf
    planes = np.fft.irfft2(np.fft.rfft2(noise) / frequency, (size, size))
    planes *= (_DEVIATIONS / planes.std(axis=(1, 2)))[:, None, None]
    rgb: NDArray[Any] = 0.5 + np.tensordot(planes, _OPPONENTS, (0, 0))
    return rgb.clip(0, 1).astype(np.float32)


def _exponents(weights: Weights, pooling: Pooling) -> dict[str, int]:
    """Measure log2 of the factor that each convolution's output should have; those that stay at zero are left out."""
    import onnxruntime

    convs = [tap for tap in weights.taps if isinstance(weights.backbone.layer(tap), Conv)]
    graph = forward_graph(weights, convs, pooling=pooling, shape=(PROBE_SIZE, PROBE_SIZE))
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    found: dict[str, int] = {}
    for conv, output in zip(convs, session.run(convs, {IMAGE: weights.convention.encode(probe())[None]}), strict=True):
        largest = float(np.abs(output).max())
        if not math.isfinite(largest):
            raise WeightsError(f"weights {weights.name!r}: {conv} overflows float32 on a picture: use other weights")
        if largest == 0:
            continue
        mean = float(output.clip(min=0).mean(dtype=np.float64))
        found[conv] = math.floor(math.log2(_LARGEST / largest))
        if mean > 0:
            found[conv] = min(found[conv], round(-math.log2(mean)))
    return found
