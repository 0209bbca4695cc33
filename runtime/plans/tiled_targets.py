"""Targets of the tiled plan: what two pictures of any size measure, window by window."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.export.graph import Graph
from impasto.export.objective import Objective, Targets
from impasto.export.precision import Precision
from impasto.export.windowed import (
    calibration_window,
    response_network,
    statistics_window,
    values_window,
    window_network,
)
from impasto.export.windows import Window, pieces
from impasto.export.windows import layout as lay
from impasto.models.conventions import pixel_space, smallest_deviation
from impasto.models.layers import Filters
from impasto.models.weights import Weights
from impasto.runtime.plans.memory import MakeGraph, most_positions
from impasto.runtime.plans.session import Compile
from impasto.runtime.plans.tiling import kept_content
from impasto.runtime.plans.windows import Moments, Totals, Visit, WindowSession, allocate_levels, forward
from impasto.runtime.problem import FloatArray
from impasto.runtime.scratch import Allocate, release


@dataclass(frozen=True, eq=False)
class TiledTargets:
    """Measures targets; each graph is freed when a picture is through it.

    ``memory`` is what a session may hold, in bytes, None for any; ``allocate`` makes the arrays that are as large as a
    picture: levels, and the content targets that are kept.
    """

    weights: Weights
    objective: Objective
    compile: Compile
    memory: int | None
    allocate: Allocate
    precision: Precision = "fp32"

    def measure(self, content: FloatArray, style: FloatArray) -> Targets:
        """Measure two images of the objective's pixel space, (1, 3, H, W), in memory or mapped from files.

        Content targets of more than `KEPT` bytes a pixel are left out; their totals are there instead.
        """
        objective = self.objective
        calibration = self._calibrate(style)
        positions = {tap: math.prod(self._grid(tap, style)) for tap in objective.style}
        products, means = self._style(style, positions, calibration) if positions else ({}, {})
        targets: dict[str, FloatArray] = {}
        totals: dict[str, tuple[int, float]] = {}
        if kept_content(self.weights, objective, _size(content)):
            targets = self._activations(content, calibration)
        elif objective.content:
            totals = self._energies(content, calibration)
        return Targets(targets, products, positions, means, calibration, content if totals else None, totals)

    def _calibrate(self, style: FloatArray) -> dict[str, FloatArray]:
        """Return scale and threshold of every filter, as `impasto.export.calibration` says."""
        needed = self.weights.backbone.needed(self.objective.taps)
        filters = [layer for layer in needed if isinstance(layer, Filters)]
        if not filters:
            return {}
        network = response_network(self.weights, self.objective.taps, pixel_space(self.objective.convention))
        moments = Moments()
        names = [layer.name for layer in filters]
        self._run(names, style, {}, moments.add, lambda piece, window: calibration_window(network, piece, window))
        least = smallest_deviation(self.weights.convention)
        found = {}
        for layer in filters:
            mean, deviation = moments[layer.name]
            scale = 1 / np.maximum(deviation, least)
            threshold = mean * scale + self.weights.tensors[f"{layer.name}.offset"]
            for name, value in zip(layer.calibration(), (scale, threshold), strict=True):
                found[name] = value.astype(np.float32)
        return found

    def _style(
        self, style: FloatArray, positions: Mapping[str, int], calibration: Mapping[str, FloatArray]
    ) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
        """Return F·Fᵀ/N or the covariance of each style tap, and the means of those that have the latter."""
        statistics = {tap: self.objective.statistic(tap) for tap in positions}
        totals, network = Totals(), self._network(statistics)
        self._run(
            statistics,
            style,
            calibration,
            totals.add,
            lambda piece, window: statistics_window(network, piece, window, statistics),
        )
        products, means = {}, {}
        for tap, count in positions.items():
            product = totals.products[tap] / count
            if tap in totals.sums:
                mean = totals.sums[tap] / count
                product -= mean @ mean.T
                means[tap] = mean.astype(np.float32)
            products[tap] = product.astype(np.float32)
        return products, means

    def _activations(self, content: FloatArray, calibration: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Return the content targets whole."""
        net, taps, network = self.weights.backbone, self.objective.content, self._network(self.objective.content)
        found = {tap: self.allocate((1, net.channels(tap), *self._grid(tap, content))) for tap in taps}

        def visit(session: WindowSession, window: Window, outputs: Mapping[str, NDArray[Any]]) -> None:
            for tap in session.layout.piece.taps:
                found[tap][(..., *session.interior(window, tap)[0])] = outputs[f"content.{tap}"]
            release(*found.values())

        self._run(
            taps,
            content,
            calibration,
            visit,
            lambda piece, window: values_window(network, piece, window, taps, levels=True),
        )
        return found

    def _energies(self, content: FloatArray, calibration: Mapping[str, FloatArray]) -> dict[str, tuple[int, float]]:
        """Return the number of elements, and the sum of the squares, of each content target."""
        net, taps, network = self.weights.backbone, self.objective.content, self._network(self.objective.content)
        totals = Totals()
        self._run(
            taps,
            content,
            calibration,
            totals.add,
            lambda piece, window: statistics_window(network, piece, window, {}, taps),
        )
        return {tap: (net.channels(tap) * math.prod(self._grid(tap, content)), totals.energies[tap]) for tap in taps}

    def _run(
        self,
        taps: Iterable[str],
        image: FloatArray,
        calibration: Mapping[str, FloatArray],
        visit: Visit,
        make: MakeGraph,
    ) -> None:
        """Run the graphs that ``make`` builds for the pieces of some taps, one piece after the other."""
        net, levels = self.weights.backbone, dict[str, FloatArray]()
        for piece in pieces(net, taps):
            layout = lay(net, piece, _size(image), most_positions(piece, make, self.memory))
            session = WindowSession(layout, make(piece, layout.window), self.compile)
            levels |= allocate_levels([layout], self.allocate)
            forward([session], image, levels, calibration, visit)
            session.close()
            levels.pop(piece.source, None)

    def _network(self, taps: Iterable[str]) -> Graph:
        return window_network(self.weights, self.objective, pieces(self.weights.backbone, taps), self.precision)

    def _grid(self, tap: str, image: FloatArray) -> tuple[int, int]:
        return self.weights.backbone.grid(tap, _size(image))


def _size(image: FloatArray) -> tuple[int, int]:
    return image.shape[2], image.shape[3]
