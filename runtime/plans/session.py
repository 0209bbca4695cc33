"""A graph ready to run, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from impasto.export.graph import Graph

Arrays = Mapping[str, NDArray[Any]]


class Session(Protocol):
    """One graph, ready to run."""

    def run(self, inputs: Arrays, fixed: Arrays | None = None) -> dict[str, NDArray[Any]]:
        """Return every output by name; inputs are contiguous arrays of the graph's types and shapes.

        ``fixed`` are further inputs, by a mapping that is the same object at every run of a job and whose arrays do not
        change: a session on a device uploads them once.
        """
        ...

    def close(self) -> None:
        """Free what the session holds."""
        ...


Compile = Callable[[Graph], Session]
