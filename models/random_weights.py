"""Weights that are drawn: the filter bank's, and those of VGG's shape for tests and benchmarks of full depth."""

from __future__ import annotations

import numpy as np

from impasto.models import filterbank
from impasto.models.backbones import backbone
from impasto.models.conventions import CAFFE, UNIT, PixelSpace
from impasto.models.weights import Weights


def random_weights(name: str, seed: int, convention: PixelSpace = CAFFE, last_conv: str | None = None) -> Weights:
    """Draw weights from N(0, 2 / fan-in) (He et al., arXiv:1502.01852) and biases from N(0, 0.01).

    The stream is NumPy's legacy ``RandomState``, whose numbers are frozen: a seed gives the same weights on every
    machine and version. ``last_conv`` stops early, as partial weights do.
    """
    net = backbone(name)
    stream = np.random.RandomState(seed)
    tensors = {}
    for conv in net.convs:
        shape = (conv.out_channels, conv.in_channels, conv.kernel, conv.kernel)
        deviation = np.sqrt(2.0 / (conv.in_channels * conv.kernel**2))
        tensors[f"{conv.name}.weight"] = (stream.standard_normal(shape) * deviation).astype(np.float32)
        tensors[f"{conv.name}.bias"] = (stream.standard_normal(shape[0]) * 0.1).astype(np.float32)
        if conv.name == last_conv:
            break
    return Weights(f"random-{seed}", net, convention, tensors)


def filterbank_weights(seed: int = 0) -> Weights:
    """Return the filter bank that `impasto.models.filterbank` draws with a seed."""
    name = f"filterbank-{seed}" if seed else "filterbank"
    return Weights(name, backbone("filterbank"), UNIT, filterbank.tensors(seed))
