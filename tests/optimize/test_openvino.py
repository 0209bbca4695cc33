"""OpenVINO's engines: what is compiled, kept, and refused."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from impasto.errors import EngineError, GraphError, LimitError, UnavailableError, UnknownNameError
from impasto.export.graph import Graph
from impasto.optimize import openvino as engines
from impasto.optimize.cache import EngineCache
from impasto.optimize.foreign import foreign
from impasto.optimize.onnxruntime import build_session
from impasto.optimize.openvino import compile_graph, failure, native_precisions, require_device, version


@pytest.fixture
def ov():
    return pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.fixture
def image():
    return np.random.default_rng(1).standard_normal((1, 3, 8, 9)).astype(np.float32)


def run(engine, image):
    found = engine.model.create_infer_request().infer({"image": image})
    return [found[name].copy() for name in ("features", "gradient")]


def test_computes_what_the_graph_says(ov, make_graph, image):
    graph = make_graph()
    expected = build_session(graph).run(["features", "gradient"], {"image": image})
    for found, wanted in zip(run(compile_graph(graph), image), expected, strict=True):
        # 27 and 36 products of float32 each, added up in another order.
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_an_engine_from_the_cache_gives_the_same_bits(ov, make_graph, image, tmp_path):
    graph = make_graph()
    plain = run(compile_graph(graph), image)
    with EngineCache(tmp_path / "engines") as cache:
        for _ in range(2):
            for found, wanted in zip(run(compile_graph(graph, cache), image), plain, strict=True):
                np.testing.assert_array_equal(found, wanted)
        (entry,) = cache.entries()
    assert entry.key.kind == "openvino"
    assert (entry.key.precision, entry.key.shape) == ("fp32", (1, 3, 8, 9))
    assert foreign(entry.key) is None


def test_an_engine_in_the_cache_is_not_compiled_again(ov, make_graph, tmp_path, monkeypatch):
    with EngineCache(tmp_path / "engines") as cache:
        compile_graph(make_graph(), cache)
        monkeypatch.setattr(ov.Core, "compile_model", None)
        compile_graph(make_graph(), cache)
        with pytest.raises(GraphError):
            compile_graph(make_graph(seed=1), cache)


def test_other_weights_and_precisions_are_other_engines(ov, make_graph, tmp_path):
    with EngineCache(tmp_path / "engines") as cache:
        for seed, precision in ((0, "fp32"), (1, "fp32"), (0, "bf16")):
            compile_graph(make_graph(seed), cache, precision=precision)
        assert len(cache.entries()) == 3


def test_an_engine_that_cannot_be_loaded_is_an_error_that_says_so(ov, make_graph, tmp_path, monkeypatch):
    monkeypatch.setattr(ov.CompiledModel, "export_model", lambda _: io.BytesIO(b"no engine at all" * 8))
    with (
        EngineCache(tmp_path / "engines") as cache,
        pytest.raises(EngineError, match=r"OpenVINO cannot load the engine of 'small': .*blob"),
    ):
        compile_graph(make_graph(), cache)


def test_an_engine_outlives_its_cache(ov, make_graph, image, tmp_path):
    """Its weights may be read from the file, which is kept in memory with it."""
    with EngineCache(tmp_path / "engines") as cache:
        compile_graph(make_graph(), cache)
        engine = compile_graph(make_graph(), cache)
        before = run(engine, image)
        cache.max_bytes = 0
        assert cache.prune()
    for found, wanted in zip(run(engine, image), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_graph_that_openvino_refuses_is_an_error_that_names_it(ov):
    graph = Graph("odd")
    graph.outputs = [graph.add("Det", graph.input("image", (1, 3, 4, 4)), name="result")]
    with pytest.raises(GraphError, match=r"OpenVINO refuses 'odd': .*wasn't fully converted"):
        compile_graph(graph)


@pytest.mark.parametrize(("precision", "hint"), [("fp32", "f32"), ("bf16", "dynamic"), ("fp16", "dynamic")])
def test_threads_and_precision_are_set_and_not_left_to_the_machine(ov, make_graph, precision, hint):
    model = compile_graph(make_graph(), precision=precision, threads=1).model
    assert model.get_property("INFERENCE_NUM_THREADS") == 1
    assert model.get_property("NUM_STREAMS") == 1
    assert model.get_property("ENABLE_CPU_PINNING") is False
    assert model.get_property("INFERENCE_PRECISION_HINT") == getattr(ov.Type, hint)


def test_by_default_as_many_threads_as_the_process_may_use(ov, make_graph, monkeypatch):
    monkeypatch.setattr(engines, "available_cpus", lambda: 1)
    assert compile_graph(make_graph()).model.get_property("INFERENCE_NUM_THREADS") == 1


def test_devices_are_known_by_name_and_looked_for(ov, monkeypatch):
    monkeypatch.setattr(ov.Core, "available_devices", property(lambda _: ["CPU", "GPU.0", "GPU.1"]))
    for name in ("CPU", "GPU", "GPU.1"):
        require_device(name)
    for name in ("NPU", "GPU.2"):
        with pytest.raises(UnavailableError, match=rf"no {name} here, only CPU, GPU.0, GPU.1"):
            require_device(name)
    with pytest.raises(UnknownNameError, match=r"OpenVINO device 'TPU'.*CPU"):
        require_device("TPU")


@pytest.mark.parametrize(
    ("features", "native"),
    [
        ("avx2 avx512f fma", ("fp32",)),
        ("avx512_bf16 avx512f", ("fp32", "bf16")),
        ("amx_bf16 amx_tile", ("fp32", "bf16")),
        ("avx512_bf16 avx512_fp16", ("fp32", "bf16")),
        ("asimd asimdhp", ("fp32", "fp16")),
        ("", ("fp32",)),
    ],
)
def test_half_precision_is_native_where_the_cpu_has_its_instructions(features, native, monkeypatch):
    monkeypatch.setattr(engines, "cpu", lambda: {"features": features})
    assert native_precisions() == native


@pytest.mark.parametrize(
    "cause",
    [MemoryError(), RuntimeError("Exception from here:\nstd::bad_alloc\n"), RuntimeError("Failed to allocate 9")],
)
def test_memory_that_does_not_suffice_is_a_limit(cause):
    error = failure(cause, GraphError, "OpenVINO cannot run 'g'", "g")
    assert isinstance(error, LimitError)
    assert "lower --size" in str(error)


def test_other_failures_give_openvinos_reason_in_one_line():
    cause = RuntimeError("Exception from a.cpp:1:\nException from b.cpp:2:\nno such\n\nline\n")
    assert str(failure(cause, GraphError, "what", "g")) == "what: no such line"
    assert str(failure(ValueError(), EngineError, "what", "g")) == "what: ValueError"


def test_without_openvino_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UnavailableError, match=r"pip install 'impasto\[openvino\]'"):
        version()
