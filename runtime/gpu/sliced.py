"""The sliced plan on the device: compiled slices with Gram, VJP and total-variation kernels between them.

Forward, slice by slice; at each style tap the Gram matrix is taken while its features are still in the cache. Then back
from the last tap: at each one, `GramVjp` adds the terms' cotangent to what later slices sent, in place, and the
gradient slice takes it on. The total variation joins at the image, in float32.

Features may be stored times a power of two s (`impasto.export.rescale`), and cotangents times a power of two λ, which
keep half precision in its range; kernels fold both out, so losses and the gradient are those of the objective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from impasto.export.fused import GRADIENT
from impasto.export.objective import Objective, coefficients, style_target
from impasto.export.slices import Slice, cotangent
from impasto.models.layers import IMAGE
from impasto.runtime.gpu.memory import Memory
from impasto.runtime.gpu.planned import PlannedEvaluator
from impasto.runtime.gpu.protocol import Address, Device, DeviceGraph, TensorSpec
from impasto.runtime.kernels.gram import Gram
from impasto.runtime.kernels.gram_vjp import GramVjp
from impasto.runtime.kernels.solver import SegmentSums, VectorKernels
from impasto.runtime.kernels.tv import TotalVariation
from impasto.runtime.problem import Problem


@dataclass(frozen=True, eq=False)
class DeviceSlice:
    """A slice and its two compiled graphs."""

    slice: Slice
    forward: DeviceGraph
    gradient: DeviceGraph


_F32 = np.dtype(np.float32)


class SlicedEvaluator(PlannedEvaluator):
    """The evaluator of compiled slices; ``scales`` maps taps to s where that is not 1."""

    def __init__(
        self, device: Device, problem: Problem, slices: Sequence[DeviceSlice], scales: Mapping[str, float]
    ) -> None:
        self._slices = slices
        self._tensors = _all_tensors(slices)
        half = any(spec.dtype == np.float16 for spec in self._tensors.values())
        graphs = [graph for piece in slices for graph in (piece.forward, piece.gradient)]
        super().__init__(device, problem, graphs, half=half)
        try:
            self._plan(problem, scales)
        except BaseException:
            self.close()
            raise

    def load(self, problem: Problem) -> None:
        """Take the targets and weights of a job."""
        super().load(problem)
        objective, targets = problem.objective, problem.targets
        positions = {tap: problem.positions(tap) for tap in objective.style}
        self._weights = coefficients(objective, targets, positions, problem.shape)
        for name, values in targets.calibration.items():
            if name in self._memory:
                self._memory.upload(name, values)
        for tap in objective.content:
            scale = np.float32(self._kernels[tap].scale)
            values = (targets.content[tap] * scale).astype(self._tensors[tap].dtype)
            self._memory.upload(f"content.{tap}", values)
        for tap, count in positions.items():
            self._memory.upload(f"style.{tap}", style_target(objective, targets, tap, count))
            if objective.statistic(tap) == "covariance":
                self._memory.upload(f"style.{tap}.mean", targets.means[tap])
        self._replay = None  # weights are arguments of captured launches

    def _plan(self, problem: Problem, scales: Mapping[str, float]) -> None:
        memory, objective = self._memory, problem.objective
        for piece in self._slices:
            for name, spec in {**piece.forward.inputs, **piece.forward.outputs}.items():
                if name not in memory:
                    memory.tensor(name, spec)
        memory.reserve(GRADIENT, 4 * self.size)
        memory.reserve("losses", 8 * len(self.terms))
        self._vectors = VectorKernels(self.device)
        self._extra = self._bind()
        self._kernels = {
            tap: _TapKernels(self.device, memory, objective, tap, self._tensors[tap], scales.get(tap, 1.0))
            for tap in objective.taps
        }
        memory.reserve("partials", max((k.partials_bytes for k in self._kernels.values()), default=1))
        self._tv = TotalVariation(self.device, *self.shape, objective.tv_form)
        memory.reserve("tv.losses", 8 * self._tv.loss_count)
        segments = [
            (self.terms.index(term), memory[f"{term}.losses"], count)
            for kernels in self._kernels.values()
            for term, count in kernels.loss_counts.items()
        ]
        if objective.tv:
            segments.append((self.terms.index("tv"), memory["tv.losses"], self._tv.loss_count))
        self._sums = SegmentSums(self.device, segments, self.losses)
        self._owned.callback(self._sums.close)
        self._masked = {piece.slice.tap for piece in self._slices if piece.slice.masked}

    def _bind(self) -> dict[str, list[str]]:
        """Give every graph its addresses; return, by tensor, the buffers of cotangents beyond the first."""
        memory = self._memory
        scratch = max(graph.scratch_bytes for graph in self._graphs)
        memory.reserve("scratch", scratch)
        extra: dict[str, list[str]] = {}
        for piece in reversed(self._slices):
            forward = {name: memory[name] for name in (*piece.forward.inputs, *piece.forward.outputs)}
            piece.forward.bind(forward, memory["scratch"])
            for name, spec in piece.gradient.inputs.items():
                if name not in memory:  # the cotangent of a tap that no later slice reads
                    memory.tensor(name, spec)
            gradient = {name: memory[name] for name in piece.gradient.inputs}
            for name, spec in piece.gradient.outputs.items():
                place = name
                if place in memory:
                    place = f"{name}.from.{piece.slice.tap}"
                    extra.setdefault(name, []).append(place)
                gradient[name] = memory.tensor(place, spec)
            piece.gradient.bind(gradient, memory["scratch"])
        return extra

    def _evaluate(self) -> None:
        for piece in self._slices:
            piece.forward.enqueue()
            if piece.slice.tap in self._kernels:
                self._kernels[piece.slice.tap].forward(self._weights, self._cotangent_scale)
        arrived: set[str] = set()
        for piece in reversed(self._slices):
            for name in piece.slice.outputs:
                self._add_cotangents(name, arrived)
            piece.gradient.enqueue()
            arrived.update(piece.gradient.outputs)
        self._sum_extra(cotangent(IMAGE))
        self._tv.enqueue(
            self.image,
            self.gradient,
            self._memory["tv.losses"],
            weight=self._weights.get("tv.weight", 0.0),
            upstream=self._memory[cotangent(IMAGE)],
            factor=1 / self._cotangent_scale,
        )
        self._sums.enqueue()

    def _add_cotangents(self, tensor: str, arrived: set[str]) -> None:
        """Complete the cotangent of a slice's output: what later slices sent, and the terms' part."""
        name = cotangent(tensor)
        self._sum_extra(name)
        if tensor in self._kernels:
            upstream = self._memory[name] if name in arrived else 0
            masked = tensor in self._masked
            self._kernels[tensor].backward(self._weights, self._cotangent_scale, upstream=upstream, masked=masked)

    def _sum_extra(self, name: str) -> None:
        spec = self._tensors[name]
        for place in self._extra.get(name, ()):
            self._vectors.accumulate(self._memory[name], self._memory[place], math.prod(spec.shape), spec.dtype)

    @property
    def _cotangent_scale(self) -> float:
        return 1.0 if self._gradient_scale is None else self._gradient_scale.value

    def _rescaled(self, scale: float) -> None:  # noqa: ARG002 - launches are given it anew
        self._replay = None


class _TapKernels:
    """The terms of one tap: kernels, and their places in memory."""

    def __init__(
        self, device: Device, memory: Memory, objective: Objective, tap: str, spec: TensorSpec, scale: float
    ) -> None:
        _, channels, *grid = spec.shape
        positions = math.prod(grid)
        self.scale = scale
        self._tap, self._memory = tap, memory
        self._covariance = tap in objective.style and objective.statistic(tap) == "covariance"
        self._vjp = GramVjp(device, channels, positions, spec.dtype, scale=scale)
        self._gram: Gram | None = None
        self.loss_counts: dict[str, int] = {}
        self._content = tap in objective.content
        if self._content:
            memory.tensor(f"content.{tap}", spec)
            self._losses(f"content.{tap}", self._vjp.loss_count)
        if tap in objective.style:
            self._gram = Gram(device, channels, positions, spec.dtype, centred=self._covariance, scale=scale)
            square = TensorSpec(_F32, (channels, channels))
            memory.tensor(f"style.{tap}", square)
            memory.tensor(f"style.{tap}.seed", square)
            memory.reserve(f"style.{tap}.peaks", 4 * self._gram.peak_count)
            self._losses(f"style.{tap}", self._gram.loss_count)
            if self._covariance:
                memory.reserve(f"style.{tap}.mean", 4 * channels)
                memory.reserve(f"style.{tap}.bias", 4 * channels)

    @property
    def partials_bytes(self) -> int:
        return 1 if self._gram is None else self._gram.partials_bytes

    def forward(self, weights: Mapping[str, float], cotangent_scale: float) -> None:
        """Enqueue the style term."""
        if self._gram is None:
            return
        memory, tap = self._memory, self._tap
        self._gram.enqueue(memory[tap], memory["partials"])
        centred: dict[str, Any] = {}
        if self._covariance:
            centred = {
                "mean_target": memory[f"style.{tap}.mean"],
                "mean_weight": weights[f"style.{tap}.mean.weight"],
                "bias": memory[f"style.{tap}.bias"],
            }
        self._gram.compare(
            memory["partials"],
            memory[f"style.{tap}"],
            memory[f"style.{tap}.seed"],
            memory[f"style.{tap}.losses"],
            weight=weights[f"style.{tap}.weight"],
            cotangent_scale=cotangent_scale,
            peaks=memory[f"style.{tap}.peaks"],
            **centred,
        )

    def backward(
        self, weights: Mapping[str, float], cotangent_scale: float, *, upstream: Address, masked: bool
    ) -> None:
        """Enqueue the cotangent of the tap: its terms' plus what is at ``upstream``, in place."""
        memory, tap = self._memory, self._tap
        optional: dict[str, Any] = {}
        if self._gram is not None:
            optional |= {"seed": memory[f"style.{tap}.seed"], "peaks": memory[f"style.{tap}.peaks"]}
        if self._covariance:
            optional["bias"] = memory[f"style.{tap}.bias"]
        if self._content:
            optional |= {
                "target": memory[f"content.{tap}"],
                "content_weight": weights[f"content.{tap}.weight"],
                "losses": memory[f"content.{tap}.losses"],
            }
        self._vjp.enqueue(
            memory[tap],
            memory[cotangent(tap)],
            cotangent_scale=cotangent_scale,
            upstream=upstream,
            masked=masked,
            **optional,
        )

    def _losses(self, term: str, count: int) -> None:
        self.loss_counts[term] = count
        self._memory.reserve(f"{term}.losses", 8 * count)


def _all_tensors(slices: Sequence[DeviceSlice]) -> dict[str, TensorSpec]:
    found: dict[str, TensorSpec] = {}
    for piece in slices:
        for graph in (piece.forward, piece.gradient):
            found |= {**graph.inputs, **graph.outputs}
    return found
