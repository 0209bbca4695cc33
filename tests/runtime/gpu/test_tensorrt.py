"""TensorRT engines as graphs of the device loop; TensorRT itself is a stand-in."""

from __future__ import annotations

import json
import sys

import ml_dtypes
import numpy as np
import pytest

from impasto.errors import DeviceError, EngineError, GraphError, LimitError, UnavailableError
from impasto.export.graph import Graph
from impasto.optimize.gpus import GpuFacts
from impasto.optimize.tensorrt import BuildOptions, build_engine
from impasto.runtime.gpu.protocol import DeviceGraph, TensorSpec
from impasto.runtime.gpu.tensorrt import TensorRTRuntime
from tests.optimize import fake_tensorrt

GPU = GpuFacts("NVIDIA H200", (9, 0), 150 << 30, 13020)
RANGES = {"image": ((1, 3, 4, 4), (1, 3, 8, 8), (1, 3, 64, 64))}
FREE = (1, 3, "height", "width")
STREAM = 0x5EED


@pytest.fixture(params=["10.16.1.11", "11.4.0.106"])
def world(request, monkeypatch):
    trt, world = fake_tensorrt.make(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    return world


@pytest.fixture
def runtime(world):
    return TensorRTRuntime(STREAM)


def make_graph(seed=0, shape=(1, 3, 8, 9), dtype=np.float32):
    kernel = np.random.default_rng(seed).standard_normal((4, 3, 3, 3)).astype(dtype)
    graph = Graph("small")
    graph.input("image", shape, dtype)
    graph.input("weight", (), dtype)
    graph.add("Conv", "image", graph.weight("kernel", kernel), name="features", pads=[1, 1, 1, 1])
    graph.add("Mul", "features", "weight", name="scaled")
    graph.outputs = ["scaled"]
    return graph


def addresses(graph, start=0x7F0000000000):
    return {name: start + 256 * number for number, name in enumerate((*graph.inputs, *graph.outputs))}


def test_a_graph_tells_its_tensors(runtime, world):
    graph: DeviceGraph = runtime.graph("small", build_engine(make_graph(), GPU))
    assert graph.inputs == {
        "image": TensorSpec(np.dtype(np.float32), (1, 3, 8, 9)),
        "weight": TensorSpec(np.dtype(np.float32), ()),
    }
    assert graph.outputs == {"scaled": TensorSpec(np.dtype(np.float32), (1, 4, 8, 9))}
    assert graph.scratch_bytes == 1 << 20
    assert graph.capturable
    assert runtime.version == world.version


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precisions_keep_their_type(runtime, dtype):
    graph = runtime.graph("small", build_engine(make_graph(dtype=dtype), GPU))
    assert {spec.dtype for spec in (*graph.inputs.values(), *graph.outputs.values())} == {np.dtype(dtype)}


def test_free_dimensions_take_the_shapes_that_are_given(runtime):
    engine = build_engine(make_graph(shape=FREE), GPU, ranges=RANGES)
    graph = runtime.graph("small", engine, {"image": (1, 3, 5, 7)})
    assert graph.inputs["image"].shape == (1, 3, 5, 7)
    assert graph.outputs["scaled"].shape == (1, 4, 5, 7)
    # What these shapes need, not the most that the range allows.
    assert graph.scratch_bytes == 3 * 5 * 7


def test_free_dimensions_that_are_not_given_are_named(runtime):
    engine = build_engine(make_graph(shape=FREE), GPU, ranges=RANGES)
    with pytest.raises(GraphError, match=r"'image'.*free dimensions"):
        runtime.graph("small", engine)


def test_a_shape_outside_the_range_is_a_limit(runtime):
    engine = build_engine(make_graph(shape=FREE), GPU, ranges=RANGES)
    with pytest.raises(LimitError, match=r"\(1, 3, 5, 65\).*'image'.*out of the profile's range"):
        runtime.graph("small", engine, {"image": (1, 3, 5, 65)})


def test_an_element_type_that_the_loop_does_not_have_is_refused(runtime):
    source = Graph("bytes")
    source.input("image", (2, 3), np.int8)
    source.outputs = [source.add("Neg", "image")]
    with pytest.raises(GraphError, match="'image'"):
        runtime.graph("bytes", build_engine(source, GPU))


def test_binding_fixes_every_address_and_settles_the_engine(runtime, world):
    graph = runtime.graph("small", build_engine(make_graph(), GPU))
    given = addresses(graph)
    graph.bind(given | {"another graph's": 512}, 0x7F1000000000)
    assert world.named("set_device_memory") == [[0x7F1000000000, graph.scratch_bytes]]
    assert dict(world.named("set_tensor_address")) == given
    # The first run cannot be captured; it is made here.
    assert world.named("execute_async_v3") == [[STREAM]]
    graph.enqueue()
    graph.enqueue()
    assert world.named("execute_async_v3") == [[STREAM]] * 3


def test_a_tensor_without_an_address_is_an_error(runtime):
    graph = runtime.graph("small", build_engine(make_graph(), GPU))
    given = addresses(graph)
    del given["weight"]
    with pytest.raises(KeyError, match="weight"):
        graph.bind(given, 0)


def test_an_address_that_is_refused_is_named(runtime, world):
    graph = runtime.graph("small", build_engine(make_graph(), GPU))
    world.refuses.add("set_tensor_address")
    with pytest.raises(DeviceError, match="0x7f0000000000 for 'image'"):
        graph.bind(addresses(graph), 0)


def test_a_run_that_fails_says_why(runtime, world):
    graph = runtime.graph("small", build_engine(make_graph(), GPU))
    graph.bind(addresses(graph), 0)
    world.refuses.add("execute_async_v3")
    world.execution_log = [("ERROR", "Error Code 1: Cuda Runtime (an illegal memory access was encountered)")]
    with pytest.raises(DeviceError, match=r"'small'.*illegal memory access"):
        graph.enqueue()


def test_an_engine_of_another_version_is_refused_with_both_versions(runtime, world):
    plan = json.loads(build_engine(make_graph(), GPU))
    plan["version"] = "10.5.0.1"
    with pytest.raises(EngineError, match=rf"TensorRT {world.version}.*'small'.*10\.5\.0\.1.*impasto cache clear"):
        runtime.graph("small", json.dumps(plan).encode())


def test_an_engine_of_another_gpu_is_refused(runtime, world):
    engine = build_engine(make_graph(), GPU)
    world.gpu = "another"
    with pytest.raises(EngineError, match="incompatible device"):
        runtime.graph("small", engine)


def test_an_old_refusal_is_not_the_reason_of_a_later_one(runtime, world):
    engine = build_engine(make_graph(), GPU)
    world.refuses.add("deserialize_cuda_engine")
    world.load_log = [("ERROR", "Cuda Runtime (out of memory)")]
    with pytest.raises(LimitError, match="out of memory"):
        runtime.graph("small", engine)
    world.load_log = [("ERROR", "Serialization failed")]
    with pytest.raises(EngineError, match=r"\(Serialization failed\)"):
        runtime.graph("small", engine)


def test_a_context_without_memory_is_a_limit(runtime, world):
    engine = build_engine(make_graph(), GPU)
    world.refuses.add("create_execution_context")
    world.execution_log = [("ERROR", "Error Code 2: OutOfMemory")]
    with pytest.raises(LimitError, match="OutOfMemory"):
        runtime.graph("small", engine)
    world.execution_log = [("ERROR", "Error Code 4: odd")]
    with pytest.raises(UnavailableError, match="Error Code 4: odd"):
        runtime.graph("small", engine)


@pytest.mark.parametrize(("number", "words"), [(35, "driver is too old"), (100, "no NVIDIA GPU")])
def test_a_host_without_a_gpu_is_told(world, number, words):
    world.cuda_error = number
    with pytest.raises(UnavailableError, match=words):
        TensorRTRuntime(STREAM)


def test_other_weights_are_put_into_an_engine_that_allows_it(runtime, world):
    engine = build_engine(make_graph(1), GPU, options=BuildOptions(refit=True))
    other = json.loads(build_engine(make_graph(2), GPU, options=BuildOptions(refit=True)))
    graph = runtime.graph("small", engine, weights=make_graph(2))
    assert graph._engine._plan["weights"] == other["weights"] != json.loads(engine)["weights"]
    assert world.named("refit_cuda_engine") == [[]]


def test_weights_that_do_not_fit_are_told(runtime, world):
    engine = build_engine(make_graph(), GPU, options=BuildOptions(refit=True))
    world.refuses.add("refit_cuda_engine")
    with pytest.raises(GraphError, match=r"'small'.*\(kernel\)"):
        runtime.graph("small", engine, weights=make_graph())
    world.parser_errors = [("features", "Conv", "other shape")]
    with pytest.raises(GraphError, match="Conv 'features': other shape"):
        runtime.graph("small", engine, weights=make_graph())


def test_closing_twice_is_harmless(runtime):
    graph = runtime.graph("small", build_engine(make_graph(), GPU))
    for _ in range(2):
        graph.close()
        runtime.close()
