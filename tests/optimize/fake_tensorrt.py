# ruff: noqa: ARG002, ARG005 (signatures are those of the real bindings)
"""A stand-in for the module ``tensorrt``: the part of it that is used, without a GPU.

Its classes have no public name that the real bindings lack (a test compares them), and refuse to be given one. Builds
and runs are recorded in a `World`, which also says what shall go wrong. An engine is JSON here.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import json
import sys
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper


class World:
    """What happened, in ``calls``, and what shall: set an attribute to make TensorRT fail there.

    With ``computes`` engines really run, by ONNX Runtime on addresses of the host.
    """

    def __init__(self, version):
        self.version = version
        self.gpu = "H"
        self.calls = []
        self.built = []
        self.log = []
        self.cuda_error = None
        self.parser_errors = []
        self.build_log = []
        self.build_fails = False
        self.load_log = []
        self.refuses = set()
        self.execution_log = []
        self.during_build = lambda: None
        self.computes = False

    def call(self, name, *arguments):
        self.calls.append((name, *arguments))
        return name not in self.refuses

    def named(self, name):
        return [arguments for called, *arguments in self.calls if called == name]


class Strict:
    """Takes no attribute that the class does not declare."""

    def __setattr__(self, name, value):
        if not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        object.__setattr__(self, name, value)


def make(version="10.16.1.11"):
    """Return the module and its world."""
    world = World(version)
    strict_typing = {"STRONGLY_TYPED": 0 if version.startswith("11") else 1}
    trt = ModuleType("tensorrt")
    trt.__version__ = version

    def enumeration(name, members):
        return enum.IntEnum(name, members)

    trt.NetworkDefinitionCreationFlag = enumeration("NetworkDefinitionCreationFlag", strict_typing)
    trt.BuilderFlag = enumeration("BuilderFlag", {"REFIT": 2, "TF32": 6})
    trt.MemoryPoolType = enumeration("MemoryPoolType", {"WORKSPACE": 0})
    trt.TensorIOMode = enumeration("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
    trt.ExecutionContextAllocationStrategy = enumeration(
        "ExecutionContextAllocationStrategy", {"STATIC": 0, "USER_MANAGED": 2}
    )
    types = ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64")
    trt.DataType = enumeration("DataType", {name: number for number, name in enumerate(types)})
    element_types = {
        onnx.TensorProto.FLOAT: trt.DataType.FLOAT,
        onnx.TensorProto.FLOAT16: trt.DataType.HALF,
        onnx.TensorProto.BFLOAT16: trt.DataType.BF16,
        onnx.TensorProto.INT64: trt.DataType.INT64,
        onnx.TensorProto.INT32: trt.DataType.INT32,
        onnx.TensorProto.INT8: trt.DataType.INT8,
    }

    class ILogger(Strict):
        Severity = enumeration("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})

        def log(self, severity, msg):
            raise NotImplementedError

    class IProgressMonitor(Strict):
        def phase_start(self, phase_name, parent_phase, num_steps):
            raise NotImplementedError

        def step_complete(self, phase_name, step):
            raise NotImplementedError

        def phase_finish(self, phase_name):
            raise NotImplementedError

    def safely(callback, *arguments):
        """Call back as the bindings do: what that raises is swallowed."""
        try:
            return callback(*arguments)
        except BaseException as error:
            print(f"[ERROR] Exception caught: {error!r}", file=sys.stderr)
            return None

    def say(logger, lines):
        for severity, text in lines:
            safely(logger.log, ILogger.Severity[severity], text)

    def begin(logger):
        assert isinstance(logger, ILogger)
        if world.cuda_error is not None:
            text = f"CUDA initialization failure with error: {world.cuda_error}. Please check your CUDA installation"
            say(logger, [("WARNING", text)])
            raise TypeError("pybind11::init(): factory function returned nullptr")

    class IHostMemory(bytes):
        """As the real one it is read through the buffer protocol."""

    class ITimingCache(Strict):
        def __init__(self, entries):
            self._entries = set(entries)

        def combine(self, input_cache, ignore_mismatch):
            self._entries |= input_cache._entries
            return world.call("combine")

        def serialize(self):
            return IHostMemory(json.dumps({"version": version, "entries": sorted(self._entries)}).encode())

    class IOptimizationProfile(Strict):
        def __init__(self):
            self._shapes = {}

        def set_shape(self, input, min, opt, max):
            self._shapes[input] = [list(min), list(opt), list(max)]

    class IBuilderConfig(Strict):
        builder_optimization_level = 3
        progress_monitor = None

        def __init__(self):
            self._flags = {trt.BuilderFlag.TF32}
            self._pools, self._profiles, self._timings = {}, [], None

        def set_flag(self, flag):
            self._flags.add(trt.BuilderFlag(flag))

        def clear_flag(self, flag):
            self._flags.discard(trt.BuilderFlag(flag))

        def set_memory_pool_limit(self, pool, pool_size):
            self._pools[trt.MemoryPoolType(pool).name] = pool_size

        def add_optimization_profile(self, profile):
            self._profiles.append(profile)
            return len(self._profiles) - 1 if world.call("add_optimization_profile") else -1

        def create_timing_cache(self, serialized_timing_cache):
            if not serialized_timing_cache:
                return ITimingCache([])
            try:
                return ITimingCache(json.loads(serialized_timing_cache)["entries"])
            except ValueError:
                return None

        def set_timing_cache(self, cache, ignore_mismatch):
            assert cache is not None
            assert ignore_mismatch is False
            world.call("timings known", len(cache._entries))
            self._timings = cache
            return True

        def get_timing_cache(self):
            return self._timings

    class INetworkDefinition(Strict):
        def __init__(self, flags):
            self._flags, self._model = flags, None

    class ParserError(Strict):
        def __init__(self, node, operator, text):
            self._values = node, operator, text

        def node_name(self):
            return self._values[0]

        def node_operator(self):
            return self._values[1]

        def desc(self):
            return self._values[2]

    class OnnxParser(Strict):
        num_errors = property(lambda self: len(world.parser_errors))

        def __init__(self, network, logger):
            self._network = network

        def parse(self, model, path=None):
            self._network._model = onnx.load_model_from_string(bytes(model))
            return not world.parser_errors

        def get_error(self, index):
            return ParserError(*world.parser_errors[index])

    def weights_of(model):
        digest = hashlib.sha256()
        for tensor in model.graph.initializer:
            digest.update(tensor.name.encode() + numpy_helper.to_array(tensor).tobytes())
        return digest.hexdigest()

    class Builder(Strict):
        def __init__(self, logger):
            self._logger = logger
            begin(logger)

        def create_network(self, flags=0):
            return INetworkDefinition(flags)

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            model, monitor = network._model, config.progress_monitor
            profile = config._profiles[0]._shapes if config._profiles else {}
            say(self._logger, world.build_log)
            if monitor is not None:
                safely(monitor.phase_start, "Building", None, 4)
                for step in range(4):
                    world.during_build()
                    if not safely(monitor.step_complete, "Building", step):
                        safely(monitor.phase_finish, "Building")
                        return None
                safely(monitor.phase_finish, "Building")
            if world.build_fails:
                return None
            if config._timings is not None:
                config._timings._entries |= {f"{node.op_type} of {model.graph.name}" for node in model.graph.node}
            tensors = {
                value.name: [
                    way,
                    value.type.tensor_type.elem_type,
                    [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim],
                ]
                for way, values in (("INPUT", model.graph.input), ("OUTPUT", model.graph.output))
                for value in values
            }
            world.built.append(
                {
                    "flags": {flag.name for flag in config._flags},
                    "network": network._flags,
                    "pools": config._pools,
                    "level": config.builder_optimization_level,
                    "profile": profile,
                    "model": model,
                }
            )
            plan = {
                "version": version,
                "gpu": world.gpu,
                "tensors": tensors,
                "profile": profile,
                "refit": trt.BuilderFlag.REFIT in config._flags,
                "weights": weights_of(model),
                "names": sorted(tensor.name for tensor in model.graph.initializer),
                "model": base64.b64encode(model.SerializeToString()).decode() if world.computes else "",
            }
            return IHostMemory(json.dumps(plan).encode())

    class Runtime(Strict):
        engine_host_code_allowed = False

        def __init__(self, logger):
            self._logger = logger
            begin(logger)

        def deserialize_cuda_engine(self, serialized_engine):
            plan = json.loads(bytes(serialized_engine))
            assert self.engine_host_code_allowed is False
            if plan["version"] != version:
                text = f"The engine plan file is not compatible with this version: {plan['version']}"
                say(self._logger, [("ERROR", text)])
                return None
            if plan["gpu"] != world.gpu:
                say(self._logger, [("ERROR", "The engine plan file is generated on an incompatible device")])
                return None
            say(self._logger, world.load_log)
            return ICudaEngine(plan, self._logger) if world.call("deserialize_cuda_engine") else None

    class ICudaEngine(Strict):
        num_io_tensors = property(lambda self: len(self._plan["tensors"]))
        device_memory_size_v2 = property(lambda self: 1 << 20)

        def __init__(self, plan, logger):
            self._plan, self._logger = plan, logger

        def get_tensor_name(self, index):
            return list(self._plan["tensors"])[index]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode[self._plan["tensors"][name][0]]

        def get_tensor_dtype(self, name):
            return element_types[self._plan["tensors"][name][1]]

        def create_execution_context(self, strategy):
            assert strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
            say(self._logger, world.execution_log)
            return IExecutionContext(self) if world.call("create_execution_context") else None

    class IExecutionContext(Strict):
        def __init__(self, engine):
            self._engine, self._shapes, self._logger = engine, {}, engine._logger
            self._addresses, self._memory = {}, None
            self._session = None

        def _compute(self):
            """Return the session that stands for the engine's code, at the shapes that were set."""
            if self._session is None:
                model = onnx.load_from_string(base64.b64decode(self._engine._plan["model"]))
                for value in model.graph.input:
                    if value.name in self._shapes:
                        for dim, length in zip(value.type.tensor_type.shape.dim, self._shapes[value.name], strict=True):
                            dim.dim_value = length
                self._session = onnxruntime.InferenceSession(
                    model.SerializeToString(), providers=["CPUExecutionProvider"]
                )
            return self._session

        def set_input_shape(self, name, shape):
            smallest, _, largest = self._engine._plan["profile"][name]
            if not all(low <= d <= high for low, d, high in zip(smallest, shape, largest, strict=True)):
                say(self._logger, [("ERROR", "Static dimension mismatch or out of the profile's range")])
                return False
            self._shapes[name] = shape
            return True

        def get_tensor_shape(self, name):
            if name in self._shapes:
                return self._shapes[name]
            if world.computes:
                session = self._compute()
                return next(t.shape for t in [*session.get_inputs(), *session.get_outputs()] if t.name == name)
            # The pictures of these tests keep their size; what depends on a free one follows it.
            shape = self._engine._plan["tensors"][name][2]
            known = next(iter(self._shapes.values()), shape)
            return tuple(known[axis] if d == -1 else d for axis, d in enumerate(shape))

        def update_device_memory_size_for_shapes(self):
            return int(np.prod(next(iter(self._shapes.values()))))

        def set_device_memory(self, memory, size):
            assert memory % 256 == 0
            self._memory = memory, size
            world.call("set_device_memory", memory, size)

        def set_tensor_address(self, name, memory):
            self._addresses[name] = memory
            return world.call("set_tensor_address", name, memory)

        def execute_async_v3(self, stream_handle):
            assert self._memory is not None
            assert set(self._addresses) == set(self._engine._plan["tensors"])
            say(self._logger, world.execution_log)
            if world.computes:
                session = self._compute()
                binding = session.io_binding()
                for bind, tensors in (
                    (binding.bind_input, session.get_inputs()),
                    (binding.bind_output, session.get_outputs()),
                ):
                    for tensor in tensors:
                        kind = self._engine._plan["tensors"][tensor.name][1]
                        bind(tensor.name, "cpu", 0, kind, tensor.shape, self._addresses[tensor.name])
                session.run_with_iobinding(binding)
            return world.call("execute_async_v3", stream_handle)

    class Refitter(Strict):
        def __init__(self, engine, logger):
            assert engine._plan["refit"]
            self._engine, self._fresh = engine, None

        def refit_cuda_engine(self):
            if not world.call("refit_cuda_engine") or self._fresh is None:
                return False
            self._engine._plan["weights"] = self._fresh
            return True

        def get_missing_weights(self):
            return self._engine._plan["names"]

    class OnnxParserRefitter(Strict):
        num_errors = property(lambda self: len(world.parser_errors))

        def __init__(self, refitter, logger):
            self._refitter = refitter

        def refit_from_bytes(self, model, path=None):
            parsed = onnx.load_model_from_string(bytes(model))
            names = sorted(tensor.name for tensor in parsed.graph.initializer)
            assert names == self._refitter._engine._plan["names"]
            self._refitter._fresh = weights_of(parsed)
            return not world.parser_errors

        def get_error(self, index):
            return ParserError(*world.parser_errors[index])

    for item in list(locals().values()):
        if isinstance(item, type):
            setattr(trt, item.__name__, item)
    return trt, world
