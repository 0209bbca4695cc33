"""Every name that we use from TensorRT is in its real bindings, of both majors, and so is every name of the stand-in.

The bindings are a wheel of their own that imports without TensorRT's libraries, given empty ones; nothing can be built.
"""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import impasto
from impasto.optimize import tensorrt, tensorrt_library, timing_cache
from impasto.runtime.gpu import tensorrt as tensorrt_graph
from tests.optimize import fake_tensorrt

VERSIONS = ["10.16.1.11", "11.4.0.106"]
TOOL = Path(__file__).resolve().parents[3] / "shared" / "tools" / "tensorrt_bindings.py"
SOURCES = [Path(module.__file__) for module in (tensorrt, tensorrt_library, timing_cache, tensorrt_graph)]

OBJECTS = {
    "builder": ["Builder"],
    "config": ["IBuilderConfig"],
    "profile": ["IOptimizationProfile"],
    "parser": ["OnnxParser", "OnnxParserRefitter"],
    "merged": ["ITimingCache"],
    "refitter": ["Refitter"],
    "_runtime": ["Runtime"],
    "_engine": ["ICudaEngine"],
    "engine": ["ICudaEngine"],
    "_context": ["IExecutionContext"],
}
"""What our variables and attributes of these names hold; other names are TensorRT's only after ``trt``."""
PARSER_ERROR = {"node_operator", "node_name", "desc"}

DUMP = """
import json, tensorrt
def members(value):
    return {name: sorted(dir(getattr(value, name, None))) for name in dir(value)}
print(json.dumps({name: members(getattr(tensorrt, name)) for name in dir(tensorrt) if not name.startswith("__")}))
"""


@pytest.fixture(scope="session", params=VERSIONS)
def environment(request):
    """The environment of a process that imports the real bindings; made once, for they take a download."""
    if not TOOL.is_file():
        pytest.skip(f"{TOOL} is not here")
    folder = request.config.cache.mkdir(f"tensorrt-{request.param}-cp{sys.version_info.minor}")
    kept = folder / "environment"
    if not kept.exists():
        try:
            made = subprocess.run(
                [sys.executable, TOOL, request.param, "--into", folder],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        except subprocess.TimeoutExpired:
            pytest.skip("the package registry does not answer")
        if made.returncode != 0:
            pytest.skip(f"TensorRT's bindings are not to be had here: {made.stderr.strip().splitlines()[-1:]}")
        kept.write_text(made.stdout)
    words = shlex.split(kept.read_text())
    found = dict(word.split("=", 1) for word in words if "=" in word)
    paths = {name: value.split("${")[0] for name, value in found.items()}
    root = str(Path(impasto.__file__).parents[1])
    paths["PYTHONPATH"] += os.pathsep + root
    return os.environ | paths


def run(environment, script):
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def bindings(environment):
    return json.loads(run(environment, DUMP))


def chains(tree):
    """Yield the names of every chain of attributes, the first one first."""
    for node in ast.walk(tree):
        names = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if names and isinstance(node, ast.Name):
            yield [node.id, *reversed(names)]


def used():
    """Return every (class or None, name) that our sources use, as far as names tell."""
    found = set()
    for source in SOURCES:
        for chain in chains(ast.parse(source.read_text(encoding="utf-8"))):
            names = chain[1:] if chain[0] == "self" and len(chain) > 1 else chain
            if names[0] in ("trt", "_trt") and len(names) > 1:
                found.add((None, tuple(names[1:])))
            elif names[0] in OBJECTS and len(names) > 1:
                found.add((names[0], (names[1],)))
            elif names[0] == "error" and names[1] in PARSER_ERROR:
                found.add(("error", (names[1],)))
    return found


def test_every_name_that_is_used_exists(bindings):
    missing = []
    for holder, names in used():
        if holder is None:
            # ``__version__`` is set by the package around the bindings, which is not here.
            there = names == ("__version__",) or (
                names[0] in bindings
                and (len(names) < 2 or names[1] in bindings[names[0]])
                and (len(names) < 3 or names[2] in bindings[names[0]][names[1]])
            )
        else:
            there = all(
                names[0] in bindings[name] for name in OBJECTS.get(holder, ["ParserError"]) if known(name, names)
            )
        if not there:
            missing.append((holder, names))
    assert missing == []


def known(name, names):
    # Two kinds of parsers share a variable's name; each has its own way to begin.
    return (name, names[0]) not in (("OnnxParserRefitter", "parse"), ("OnnxParser", "refit_from_bytes"))


def test_the_search_finds_what_is_used():
    found = used()
    assert (None, ("BuilderFlag", "TF32")) in found
    assert (None, ("Runtime",)) in found
    assert ("_context", ("execute_async_v3",)) in found
    assert ("config", ("progress_monitor",)) in found
    assert ("error", ("node_name",)) in found
    assert ("merged", ("combine",)) in found
    assert {holder for holder, _ in found} >= set(OBJECTS)


def test_removed_names_would_be_missed(bindings):
    assert "build_serialized_network" in bindings["Builder"]
    assert "max_batch_size" not in bindings["Builder"]
    assert "build_engine" not in bindings["Builder"]


def test_the_stand_in_has_no_name_of_its_own(bindings):
    trt, _ = fake_tensorrt.make(VERSIONS[0])
    inherited = set(dir(bytes)) | set(dir(int)) | set(dir(fake_tensorrt.Strict))
    names = {name for name in vars(trt) if not name.startswith("__")}
    assert "Builder" in names
    own = {
        (name, attribute)
        for name in names
        for attribute in set(dir(getattr(trt, name))) - inherited
        if not attribute.startswith("_") and attribute not in bindings.get(name, {})
    }
    assert names <= set(bindings)
    assert own == set()


def test_without_a_gpu_the_real_bindings_lead_to_our_error(environment):
    script = """
import tensorrt
tensorrt.__version__ = "11.4.0.106"
from impasto.errors import UnavailableError
from impasto.export.graph import Graph
from impasto.optimize.gpus import GpuFacts
from impasto.optimize.tensorrt import build_engine
from impasto.runtime.gpu.tensorrt import TensorRTRuntime
graph = Graph()
graph.outputs = [graph.add("Relu", graph.input("image", (1, 3, 8, 8)))]
for start in (lambda: build_engine(graph, GpuFacts("none", (9, 0), 0, 0)), lambda: TensorRTRuntime(1)):
    try:
        start()
    except UnavailableError as error:
        print(error)
"""
    # The empty libraries give null pointers, as the real ones do without a GPU, and say nothing.
    line = "TensorRT cannot start (it gives no reason): look at nvidia-smi for a GPU and its driver\n"
    assert run(environment, script) == 2 * line


def test_loggers_and_monitors_are_what_the_real_bindings_take(environment):
    script = """
import logging
import tensorrt
from impasto.optimize.tensorrt import _Monitored
from impasto.optimize.tensorrt_library import Messages, make_logger
messages = Messages()
logger = make_logger(tensorrt, messages)
assert isinstance(logger, tensorrt.ILogger)
logger.log(tensorrt.ILogger.Severity.ERROR, "wrong")
logger.log(tensorrt.ILogger.WARNING, "odd")
assert messages.reason == "wrong"
told = []
monitored = _Monitored(tensorrt, lambda *step: told.append(step))
monitor = monitored.monitor
assert isinstance(monitor, tensorrt.IProgressMonitor)
monitor.phase_start("phase", None, 2)
assert monitor.step_complete("phase", 0) is True
monitored.cancelled.set()
assert monitor.step_complete("phase", 1) is False
monitor.phase_finish("phase")
assert told == [("phase", 0, 2), ("phase", 1, 2)]
"""
    run(environment, script)
