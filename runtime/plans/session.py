"""A graph ready to run, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from impasto.export.graph import Graph


class Session(Protocol):
    """One graph, ready to run."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name; ``inputs`` are contiguous arrays of the graph's types and shapes."""
        ...


Compile = Callable[[Graph], Session]
