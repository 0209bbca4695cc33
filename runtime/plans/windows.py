"""Sessions that are run window by window, and what adds up over windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.export.graph import Graph
from impasto.export.windows import Layout, Window
from impasto.models.layers import IMAGE
from impasto.runtime.plans.session import Compile, Session
from impasto.runtime.problem import FloatArray
from impasto.runtime.scratch import Allocate, release


class WindowSession:
    """A graph of `impasto.export.windowed`, ready to run on every window of a layout."""

    def __init__(self, layout: Layout, graph: Graph, compile: Compile) -> None:
        self.layout = layout
        self._names = frozenset(graph.inputs)
        self._session: Session = compile(graph)

    def run(self, window: Window, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run on a window; of what is given, the graph takes the inputs that it has."""
        inputs = {name: value for name, value in given.items() if name in self._names}
        for tap in self.layout.piece.taps:
            if f"{tap}.begin" in self._names:
                rows, columns = self.interior(window, tap)[1]
                inputs[f"{tap}.begin"] = np.asarray([rows.start, columns.start])
                inputs[f"{tap}.end"] = np.asarray([rows.stop, columns.stop])
        return self._session.run(inputs)

    def interior(self, window: Window, name: str) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return a window's interior in a tap or level of the whole picture, and in the window's own."""
        return window.interior(self.layout.piece.reach[name], self.layout.grids[name])

    def close(self) -> None:
        """Free the session."""
        self._session.close()


Visit = Callable[[WindowSession, Window, Mapping[str, NDArray[Any]]], None]
"""Takes what a session gave for a window."""


def cut(source: FloatArray, window: Window) -> FloatArray:
    """Return what a window sees of the source, (1, 3, h, w), as an array of its own."""
    return np.ascontiguousarray(source[(..., *window.box)])


def forward(
    sessions: Iterable[WindowSession],
    image: FloatArray,
    levels: Mapping[str, FloatArray],
    given: Mapping[str, NDArray[Any]],
    visit: Visit,
) -> None:
    """Run sessions, one a piece in the order of the data, on all of their windows, and visit what comes out.

    ``image`` is the picture; the arrays of ``levels``, (1, 3, h, w), are filled with what pieces make for each other.
    """
    for session in sessions:
        piece = session.layout.piece
        source = image if piece.source == IMAGE else levels[piece.source]
        for band in session.layout.bands():
            for window in band:
                outputs = session.run(window, {**given, piece.source: cut(source, window)})
                for level in piece.levels:
                    whole, own = session.interior(window, level)
                    levels[level][(..., *whole)] = outputs[level][(..., *own)]
                visit(session, window, outputs)
            release(source, *(levels[level] for level in piece.levels))


def allocate_levels(layouts: Iterable[Layout], allocate: Allocate) -> dict[str, FloatArray]:
    """Return an array for every level that the pieces of some layouts make."""
    return {level: allocate((1, 3, *each.grids[level])) for each in layouts for level in each.piece.levels}


@dataclass
class Totals:
    """What a picture measures, added up over windows in float64.

    ``products``: F·Fᵀ of each style tap, (C, C); ``sums``: of its channels, (C, 1), for covariances; ``energies``: ΣF².
    """

    products: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    energies: dict[str, float] = field(default_factory=dict)

    def add(self, _session: WindowSession, _window: Window, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Add what a graph of `statistics_window` gives for a window."""
        for name, value in outputs.items():
            kind, _, tap = name.partition(".")
            if kind == "energy":
                self.energies[tap] = self.energies.get(tap, 0.0) + float(value)
            elif kind == "style":
                tap, is_sum, _ = tap.partition(".")
                found: dict[str, Any] = self.sums if is_sum else self.products
                found[tap] = found.get(tap, 0.0) + value.astype(np.float64)


class Moments:
    """Mean and spread of filters' responses over a picture, from those over its windows.

    Windows are added by the formula of Chan, Golub & LeVeque 1979, which loses no digits to the mean.
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, NDArray[np.float64], NDArray[np.float64]]] = {}

    def add(self, session: WindowSession, window: Window, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Add what a graph of `calibration_window` gives for a window."""
        for name in session.layout.piece.taps:
            rows, columns = session.interior(window, name)[0]
            count = (rows.stop - rows.start) * (columns.stop - columns.start)
            mean, spread = outputs[f"mean.{name}"].astype(np.float64), outputs[f"spread.{name}"].astype(np.float64)
            if name in self._found:
                before, middle, known = self._found[name]
                step = (mean - middle) * (count / (before + count))
                spread = known + spread + (mean - middle) * step * before
                count, mean = before + count, middle + step
            self._found[name] = count, mean, spread

    def __getitem__(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard deviation of a layer's responses, each (C,)."""
        count, mean, spread = self._found[name]
        return mean, np.sqrt(spread / count)
