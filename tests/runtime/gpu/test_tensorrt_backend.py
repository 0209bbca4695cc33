"""Backend ``tensorrt`` as a whole: engines by a stand-in whose code is ONNX Runtime's, kernels on the emulation."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import UsageError
from impasto.models.random_weights import random_weights
from impasto.optimize.cache import EngineCache
from impasto.optimize.gpus import GpuFacts
from impasto.runtime.backends.tensorrt import TensorRTBackend
from impasto.runtime.recipes import PRESETS
from impasto.runtime.solvers import LBFGS
from impasto.runtime.stylizer import Stylizer
from tests.emulation.host import HostDevice, compiler
from tests.optimize import fake_tensorrt

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to compile the kernels for the host")


@pytest.fixture(params=["10.16.1.11", "11.4.0.106"])
def world(request, monkeypatch):
    trt, world = fake_tensorrt.make(request.param)
    world.computes = True
    monkeypatch.setitem(sys.modules, "tensorrt", trt)

    def open_device(cache=None):
        device = HostDevice()
        device.facts = GpuFacts("H", (9, 0), 1 << 30, 13020)
        return device

    monkeypatch.setattr("impasto.runtime.gpu.cuda.open_device", open_device)
    return world


@pytest.fixture(scope="module")
def vgg():
    return random_weights("vgg19", 1, last_conv="conv2_1")


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(2)
    return random.random((72, 80, 3), np.float32), random.random((66, 70, 3), np.float32)


def recipe(**changes):
    return replace(PRESETS["impasto"], name="test", margin=0, stages=(), solver=LBFGS(3), **changes)


@pytest.mark.parametrize("plan", ["sliced", "fused"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_paints_what_the_cpu_paints(world, vgg, pictures, plan, precision):
    host = Stylizer(recipe(), weights=vgg, backend="onnxruntime", cache=False).stylize(*pictures, size=80)
    with Stylizer(recipe(), weights=vgg, backend="tensorrt", plan=plan, precision=precision, cache=False) as stylizer:
        found = stylizer.stylize(*pictures, size=80)
    assert (found.backend, found.plan, found.precision) == ("tensorrt", plan, precision)
    assert found.versions["tensorrt"] == world.version
    # Three steps of a descent that rounding leads a little astray, in half precision more so.
    assert found.loss["total"] == pytest.approx(host.loss["total"], rel={"fp32": 1e-3, "fp16": 2e-2}[precision])


def test_the_second_stylizer_finds_its_engines_in_the_cache(world, vgg, pictures, tmp_path):
    for _ in range(2):
        with Stylizer(recipe(), weights=vgg, backend="tensorrt", cache=EngineCache(tmp_path / "engines")) as stylizer:
            stylizer.stylize(*pictures, size=80)
    # Statistics for pictures of any size, and for each of the three taps a slice and its gradient; the last tap is
    # content's and style's.
    graphs = [build["model"].graph.name for build in world.built]
    assert len(graphs) == len(set(graphs))
    assert all(build["flags"] == {"TF32"} for build in world.built)


def test_one_engine_measures_pictures_of_all_sizes_up_to_a_power_of_two(world, vgg, pictures, tmp_path):
    with Stylizer(recipe(), weights=vgg, backend="tensorrt", cache=EngineCache(tmp_path / "engines")) as stylizer:
        stylizer.stylize(*pictures, size=80)
    profiles = [build["profile"] for build in world.built if build["profile"]]
    assert profiles == [{"image": [[1, 3, 64, 64], [1, 3, 512, 512], [1, 3, 1024, 1024]]}]


def test_engine_options_reach_the_builder(world, vgg, pictures):
    options = {"level": 5, "workspace": 1 << 28, "refit": True}
    with Stylizer(recipe(), weights=vgg, backend="tensorrt", cache=False, engine_options=options) as stylizer:
        stylizer.stylize(*pictures, size=80)
    assert {build["level"] for build in world.built} == {5}
    assert all("REFIT" in build["flags"] for build in world.built)
    with pytest.raises(UsageError, match="level"):
        TensorRTBackend(options={"levle": 5})


def test_a_gpu_that_tensorrt_does_not_start_on_is_closed_again(world, monkeypatch):
    closed = []
    monkeypatch.setattr(HostDevice, "close", lambda device: closed.append(device))
    monkeypatch.setattr("impasto.runtime.backends.tensorrt.TensorRTRuntime", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        TensorRTBackend()
    assert len(closed) == 1
    with pytest.raises(UsageError, match="level 6"):  # before there is anything to close
        TensorRTBackend(options={"level": 6})
    assert len(closed) == 1


def test_builds_tell_how_far_they_are(world, vgg, pictures):
    told = []
    with Stylizer(recipe(), weights=vgg, backend="tensorrt", cache=False) as stylizer:
        stylizer.backend.progress = lambda *step: told.append(step)
        stylizer.stylize(*pictures, size=80)
    assert ("Building", 4, 4) in told
