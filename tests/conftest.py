"""Weights and pictures that many tests share; weights are drawn once a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from impasto.models.conventions import CAFFE, TORCHVISION
from impasto.models.random_weights import random_weights
from impasto.models.weights import Weights, load_weights

REAL_BLOCKS = Path(__file__).resolve().parents[2] / "shared" / "weights" / "vgg19_blocks1-3.safetensors"


@pytest.fixture(scope="session")
def vgg19() -> Weights:
    """Full depth, Caffe's convention."""
    return random_weights("vgg19", 11, CAFFE)


@pytest.fixture(scope="session")
def vgg19_torchvision() -> Weights:
    """Full depth, torchvision's convention."""
    return random_weights("vgg19", 12, TORCHVISION)


@pytest.fixture(scope="session")
def shallow() -> Weights:
    """VGG-19 up to conv3_1: every kind of layer, at a fiftieth of the cost."""
    return random_weights("vgg19", 13, last_conv="conv3_1")


@pytest.fixture(scope="session")
def real_blocks() -> Weights:
    """Blocks 1 to 3 of the real VGG-19, where they lie beside the checkout."""
    if not REAL_BLOCKS.is_file():
        pytest.skip(f"the real VGG-19 blocks are not at {REAL_BLOCKS}")
    return load_weights(REAL_BLOCKS)


@pytest.fixture(scope="session")
def picture() -> Callable[..., NDArray[np.float32]]:
    """A function from seed, height and width to a random RGB picture, (H, W, 3) float32 in 0–1.

    Every seed has its own distribution of each channel, so that the Gram matrices of two pictures differ by as much
    as they are large. Between pictures of the same distribution they nearly cancel, and the loss would measure the
    rounding of both.
    """

    def make(seed: int, height: int, width: int) -> NDArray[np.float32]:
        stream = np.random.RandomState(seed)
        gamma = stream.uniform(0.2, 4.0, 3)
        return (stream.random_sample((height, width, 3)) ** gamma).astype(np.float32)

    return make


@pytest.fixture(autouse=True)
def no_saved_presets(monkeypatch, tmp_path_factory):
    """Presets that whoever runs the tests has saved are not seen."""
    monkeypatch.setenv("IMPASTO_CONFIG", str(tmp_path_factory.getbasetemp() / "no-settings"))


@pytest.fixture(autouse=True)
def exact_by_default(monkeypatch):
    """Where a test names no backend it is about exact float32: ``auto`` is ONNX Runtime, whatever is installed."""
    monkeypatch.setattr("impasto.runtime.backends.select._AUTOMATIC", {"onnxruntime": ()})
