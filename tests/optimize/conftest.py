"""A stand-in for TensorRT in both of its majors."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from impasto.export.graph import Graph
from impasto.optimize.gpus import GpuFacts
from tests.optimize import fake_tensorrt


@pytest.fixture
def pretend(monkeypatch):
    """A function that puts a stand-in of a version in TensorRT's place and returns its world."""

    def install(version):
        trt, world = fake_tensorrt.make(version)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        return world

    return install


@pytest.fixture(params=["10.16.1.11", "11.4.0.106"])
def world(request, pretend):
    return pretend(request.param)


@pytest.fixture
def gpu():
    return GpuFacts("NVIDIA H200", (9, 0), 150 << 30, 13020)


@pytest.fixture
def make_graph():
    """A function that returns a small graph; its gradient's kernel is turned over by nodes, as autodiff does."""

    def make(seed=0, shape=(1, 3, 8, 9), dtype=np.float32, name="small"):
        random = np.random.default_rng(seed)
        graph = Graph(name)
        image = graph.input("image", shape, dtype)
        kernel = graph.weight("kernel", random.standard_normal((4, 3, 3, 3)).astype(dtype))
        bias = graph.weight("bias", random.standard_normal(4).astype(dtype))
        features = graph.add("Conv", image, kernel, bias, name="features", pads=[1, 1, 1, 1])
        swapped = graph.add("Transpose", kernel, perm=[1, 0, 2, 3])
        ends = graph.ints(*[np.iinfo(np.int64).min] * 2)
        turned = graph.add("Slice", swapped, graph.ints(-1, -1), ends, graph.ints(2, 3), graph.ints(-1, -1))
        scaled = graph.add("Mul", features, graph.literal(0.5, dtype))
        graph.add("Conv", scaled, turned, name="gradient", pads=[1, 1, 1, 1])
        graph.outputs = ["features", "gradient"]
        return graph

    return make
