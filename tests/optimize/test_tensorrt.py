"""TensorRT engines: built as asked, once, and what goes wrong is told; TensorRT itself is a stand-in."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import threading
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from impasto.errors import GraphError, LimitError, UnavailableError, UsageError
from impasto.optimize.cache import EngineCache
from impasto.optimize.tensorrt import BuildOptions, build_engine, engine_key

RANGES = {"image": ((1, 3, 8, 8), (1, 3, 64, 64), (1, 3, 512, 512))}
FREE = (1, 3, "height", "width")


@pytest.fixture
def cache(tmp_path):
    with EngineCache(tmp_path / "engines") as cache:
        yield cache


def folders(cache):
    return [path.name for path in cache.root.iterdir() if path.suffix not in (".lock", ".bin")]


def test_networks_are_strongly_typed_and_float32_is_float32(world, gpu, make_graph):
    build_engine(make_graph(), gpu)
    (built,) = world.built
    # The flag's number differs between the majors; 11 ignores it.
    assert built["network"] == (1 if world.version.startswith("11") else 2)
    assert built["flags"] == set()
    assert (built["level"], built["pools"], built["profile"]) == (3, {}, {})


def test_options_reach_the_builder(world, gpu, make_graph):
    build_engine(make_graph(), gpu, options=BuildOptions(tf32=True, workspace=1 << 28, level=5, refit=True))
    (built,) = world.built
    assert built["flags"] == {"TF32", "REFIT"}
    assert built["pools"] == {"WORKSPACE": 1 << 28}
    assert built["level"] == 5


@pytest.mark.parametrize(
    "values",
    [
        {"level": 6}, {"level": -1}, {"level": True}, {"level": 2.0}, {"workspace": 0}, {"workspace": True},
        {"workspace": 1 << 63}, {"refit": 7}, {"tf32": 1},
    ],
)  # fmt: skip
def test_options_that_do_not_exist_are_refused(values):
    with pytest.raises(UsageError, match=str(next(iter(values.values())))):
        BuildOptions(**values)


def test_what_is_compiled_has_no_kernel_to_compute(world, gpu, make_graph):
    build_engine(make_graph(), gpu)
    model = world.built[0]["model"]
    constants = {tensor.name for tensor in model.graph.initializer}
    assert all(node.input[1] in constants for node in model.graph.node if node.op_type == "Conv")


def test_an_engine_is_built_once(world, gpu, cache, make_graph):
    first = build_engine(make_graph(), gpu, cache)
    assert build_engine(make_graph(), gpu, cache) == first
    assert len(world.built) == 1
    assert json.loads(first)["version"] == world.version


def test_another_process_may_prune_the_engine_in_between(world, gpu, cache, make_graph, monkeypatch):
    given = cache.get_or_build

    def pruned(key, build):
        folder = given(key, build)
        if len(world.built) == 1:
            cache.clear()
        return folder

    monkeypatch.setattr(cache, "get_or_build", pruned)
    assert build_engine(make_graph(), gpu, cache)
    assert len(world.built) == 2


def test_whatever_an_engine_depends_on_makes_another_one(gpu, make_graph):
    def key(graph=None, gpu=gpu, version="10.4.0.1", ranges=None, **options):
        return engine_key(graph or make_graph(), gpu, version, BuildOptions(**options), ranges or {}).digest

    wider = {"image": (*RANGES["image"][:2], (1, 3, 513, 512))}
    free = make_graph(shape=FREE)
    keys = [
        key(),
        key(make_graph(1)),
        key(make_graph(shape=(1, 3, 9, 8))),
        key(make_graph(dtype=np.float16)),
        key(version="10.4.0.2"),
        key(gpu=replace(gpu, name="NVIDIA H100")),
        key(gpu=replace(gpu, compute_capability=(8, 0))),
        key(gpu=replace(gpu, driver_version=13000)),
        key(tf32=True),
        key(level=4),
        key(workspace=1 << 20),
        key(refit=True),
        key(free, ranges=RANGES),
        key(free, ranges=wider),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key()
    # What the driver leaves free varies; it is not part of the machine.
    assert key(gpu=replace(gpu, total_memory=1)) == key()


@pytest.mark.parametrize(
    ("dtype", "precision"), [(np.float32, "fp32"), (np.float16, "fp16"), (ml_dtypes.bfloat16, "bf16")]
)
def test_the_key_names_the_graphs_precision(gpu, make_graph, dtype, precision):
    key = engine_key(make_graph(dtype=dtype), gpu, "11.4.0.106", BuildOptions(), {})
    assert (key.kind, key.precision, key.shape) == ("tensorrt", precision, (1, 3, 8, 9))


def key_with(graph, gpu, options):
    return engine_key(graph, gpu, "11.4.0.106", options, {})


def test_engines_to_be_refitted_are_shared_by_weights_but_not_by_graphs(world, gpu, cache, make_graph):
    options = BuildOptions(refit=True)
    first = build_engine(make_graph(1), gpu, cache, options=options)
    assert build_engine(make_graph(2), gpu, cache, options=options) == first
    assert len(world.built) == 1
    # A scalar is an option of the graph, and int64 constants are its shapes and axes.
    for name, value in make_graph(1).constants.items():
        if value.ndim == 0 or value.dtype == np.int64:
            other = make_graph(1)
            other.constants[name] = np.asarray(value / 2 if value.ndim == 0 else value[::-1] - 1, value.dtype)
            assert key_with(other, gpu, options) != key_with(make_graph(1), gpu, options)
    assert key_with(make_graph(1), gpu, options) == key_with(make_graph(2), gpu, options)


def test_free_dimensions_get_a_profile(world, gpu, make_graph):
    build_engine(make_graph(shape=FREE), gpu, ranges=RANGES)
    assert world.built[0]["profile"] == {"image": [list(shape) for shape in RANGES["image"]]}


@pytest.mark.parametrize(("shape", "ranges"), [(FREE, {}), ((1, 3, 8, 9), RANGES), (FREE, {"picture": ((1,),) * 3})])
def test_ranges_are_for_free_dimensions_only(world, gpu, make_graph, shape, ranges):
    with pytest.raises(GraphError, match="free dimensions"):
        build_engine(make_graph(shape=shape), gpu, ranges=ranges)
    assert world.built == []


def test_ranges_that_tensorrt_does_not_take_are_named(world, gpu, make_graph):
    world.refuses.add("add_optimization_profile")
    with pytest.raises(GraphError, match="512"):
        build_engine(make_graph(shape=FREE), gpu, ranges=RANGES)


def test_later_builds_know_what_earlier_ones_measured(world, gpu, cache, make_graph, pretend):
    build_engine(make_graph(name="first"), gpu, cache)
    build_engine(make_graph(name="second"), gpu, cache)
    assert world.named("timings known") == [[0], [2]]
    (path,) = cache.root.glob("timings-*.bin")
    entries = json.loads(path.read_bytes())["entries"]
    assert entries == sorted(f"{op} of {name}" for op in ("Conv", "Mul") for name in ("first", "second"))
    # Those of another version or GPU are apart.
    newer = pretend("10.99.0.1")
    build_engine(make_graph(), gpu, cache)
    build_engine(make_graph(), replace(gpu, name="NVIDIA L4"), cache)
    assert newer.named("timings known") == [[0], [0]]
    assert len(list(cache.root.glob("timings-*.bin"))) == 3


def test_parser_errors_make_one_line(world, gpu, cache, make_graph):
    world.parser_errors = [("features", "Conv", "kernel is\nodd"), ("", "", "opset 99")]
    with pytest.raises(GraphError) as caught:
        build_engine(make_graph(), gpu, cache)
    assert (
        str(caught.value) == "TensorRT does not read graph 'small': Conv 'features': kernel is odd; model '': opset 99"
    )
    assert folders(cache) == []


def test_a_build_that_fails_says_why(world, gpu, cache, make_graph):
    world.build_fails = True
    world.build_log = [("ERROR", "Error Code 10: no implementation\n for node features"), ("WARNING", "and so on")]
    with pytest.raises(GraphError, match=r"'small' \(Error Code 10: no implementation for node features\): give"):
        build_engine(make_graph(), gpu, cache)
    assert folders(cache) == []
    world.build_fails = False
    assert build_engine(make_graph(), gpu, cache)


def test_a_build_without_enough_memory_is_a_limit(world, gpu, make_graph):
    world.build_fails = True
    world.build_log = [("ERROR", "Error Code 2: OutOfMemory (Requested size was 1234 bytes.)")]
    with pytest.raises(LimitError, match="1234"):
        build_engine(make_graph(), gpu)


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (35, UnavailableError, "driver is too old"),
        (100, UnavailableError, "no NVIDIA GPU"),
        (2, LimitError, "out of memory"),
        (999, UnavailableError, "error: 999"),
    ],
)
def test_cuda_that_does_not_start_is_told_with_its_remedy(world, gpu, make_graph, number, error, words):
    world.cuda_error = number
    with pytest.raises(error, match=words):
        build_engine(make_graph(), gpu)


def test_progress_is_told_step_by_step(world, gpu, make_graph):
    told = []
    build_engine(make_graph(), gpu, progress=lambda *step: told.append(step))
    assert told == [("Building", done, 4) for done in range(5)]


def test_what_progress_raises_cancels_the_build_and_leaves_the_cache_whole(world, gpu, cache, make_graph):
    class Enough(Exception):
        pass

    def stop(phase, done, steps):
        if done == 2:
            raise Enough

    kept = build_engine(make_graph(name="kept"), gpu, cache)
    with pytest.raises(Enough):
        build_engine(make_graph(), gpu, cache, progress=stop)
    assert len(world.built) == 1
    assert len(folders(cache)) == 1
    assert build_engine(make_graph(name="kept"), gpu, cache) == kept
    assert len(world.built) == 1


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals to a thread are POSIX")
def test_an_interrupt_ends_the_build_at_its_next_step(world, gpu, cache, make_graph, capfd):
    main = threading.main_thread().ident
    # A shell may have started the whole run with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    arrived = threading.Event()

    def interrupt(phase, done, steps):
        if done == 1:
            signal.pthread_kill(main, signal.SIGINT)
        elif done > 1:
            arrived.wait(0.05)  # let the main thread take its turn; steps in real builds take longer

    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(make_graph(), gpu, cache, progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert world.built == []
    assert folders(cache) == []
    assert "Exception caught" not in capfd.readouterr().err
    for thread in threading.enumerate():
        if thread.name.startswith("impasto-build"):
            thread.join(30)
            assert not thread.is_alive()


def test_the_context_is_current_where_the_engine_is_built(world, gpu, make_graph):
    seen = []

    @contextlib.contextmanager
    def current():
        seen.append(threading.get_ident())
        yield
        seen.append(threading.get_ident())

    world.during_build = lambda: seen.append(threading.get_ident())
    build_engine(make_graph(), gpu, current=current)
    assert len(seen) == 6
    assert len(set(seen)) == 1
    assert seen[0] != threading.get_ident()


def test_errors_that_tensorrt_survives_are_warnings_in_the_log(world, gpu, make_graph, caplog):
    world.build_log = [("ERROR", "a tactic failed"), ("WARNING", "a hint"), ("VERBOSE", "a detail")]
    with caplog.at_level(logging.DEBUG, "impasto"):
        build_engine(make_graph(), gpu)
    told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [
        ("impasto.tensorrt", "WARNING", "TensorRT: a tactic failed"),
        ("impasto.tensorrt", "INFO", "TensorRT: a hint"),
        ("impasto.tensorrt", "DEBUG", "TensorRT: a detail"),
    ]
