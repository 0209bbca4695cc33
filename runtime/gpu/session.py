"""A graph on the device as a session of the host: what measures targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.export.graph import Graph
from impasto.runtime.gpu.memory import Memory, settle
from impasto.runtime.gpu.protocol import Device, DeviceGraph
from impasto.runtime.plans.session import Arrays

Shapes = dict[str, tuple[int, ...]]
CompileForDevice = Callable[[Graph, Shapes], DeviceGraph]
"""Compiles a graph whose inputs have these shapes."""


class DeviceSession:
    """A `Session`: uploads, runs once, downloads, and frees everything, for graphs that run a few times a job."""

    def __init__(self, device: Device, graph: Graph, compile: CompileForDevice) -> None:
        self._device, self._graph, self._compile = device, graph, compile

    def run(self, inputs: Arrays, fixed: Arrays | None = None) -> dict[str, NDArray[Any]]:
        """Run the graph once."""
        arrays = {**inputs, **(fixed or {})}
        memory = Memory(self._device)
        compiled = self._compile(self._graph, {name: value.shape for name, value in arrays.items()})
        try:
            for name, spec in {**compiled.inputs, **compiled.outputs}.items():
                memory.tensor(name, spec)
            for name, spec in compiled.inputs.items():
                memory.upload(name, np.asarray(arrays[name], spec.dtype))
            memory.reserve("scratch", compiled.scratch_bytes)
            compiled.bind({name: memory[name] for name in (*compiled.inputs, *compiled.outputs)}, memory["scratch"])
            compiled.enqueue()
            return {name: self._device.download(memory[name], spec) for name, spec in compiled.outputs.items()}
        finally:
            settle(self._device)
            compiled.close()
            memory.close()

    def close(self) -> None:
        """Nothing stays."""
