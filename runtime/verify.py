"""Verification of an export bundle: its graphs, run as they are on disk, against the torch reference in float64.

The reference is built from the bundle's own weights and shares nothing with how the graphs compute. A ReLU or a
pooling whose inputs differ by rounding may flip, and one flip moves the gradient everywhere below it; so a random
picture is looked for where no activation is near a flip. There a right gradient agrees to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from impasto.errors import GraphError, UsageError, WeightsError
from impasto.export.forward import check_size
from impasto.export.manifest import GraphRecord, Manifest, read_manifest
from impasto.export.objective import Objective
from impasto.export.slices import cotangent
from impasto.models.backbones import backbone
from impasto.models.conventions import CONVENTIONS
from impasto.models.layers import IMAGE
from impasto.models.weights import Weights
from impasto.runtime.plans.fused import FusedPlan
from impasto.runtime.plans.session import Arrays
from impasto.runtime.problem import FloatArray, Problem
from impasto.runtime.targets import encoded, measure_targets

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SIZES = ((37, 29), (19, 50))
"""Height and width of the pictures; odd ones, so that floor-mode poolings leave something over."""

_TOLERANCE = 1e-5
_CANDIDATES = 8
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class Check:
    """One comparison: ``passed`` if ``error``, relative to the reference, is at most ``tolerance``."""

    name: str
    error: float
    tolerance: float
    passed: bool = field(init=False)

    def __post_init__(self) -> None:
        # Not the other way round: an error that is NaN has not passed.
        object.__setattr__(self, "passed", self.error <= self.tolerance)


def verify_bundle(folder: str | Path, sizes: Sequence[tuple[int, int]] | None = None) -> list[Check]:
    """Check a bundle's files, and compare each of its graphs with the torch reference on seeded random pictures.

    ``sizes`` are (H, W), by default `SIZES`, enlarged to what the taps need. At each of them: the calibration of
    filters, the taps of the forward graph and the loss terms, to 1e-5; the pixel gradient, to 1e-5 where no activation
    is within rounding of a flip, otherwise to twice the error that torch makes in float32; its direction, to a cosine
    of 0.99999; and, if there are slices, each tap and its vector–Jacobian
    product through the chain of them, as the taps and the gradient. Errors are relative: of a term its own, of an
    array in the L2 norm.

    Raises `UnavailableError` without torch, `GraphError` for a bundle that is damaged, contradicts its manifest, or
    that ONNX Runtime refuses, `ImageError` for a size that is too small for one of its taps.
    """
    import impasto.models.reference  # noqa: F401  (names the missing package itself)

    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        weights = _weights(folder, manifest)
        objective = manifest.objective.canonical(weights)
        least = max(weights.backbone.smallest(tap) for tap in objective.taps)
        more = max(0, least - min(map(min, SIZES)))
        sizes = sizes or [(height + more, width + more) for height, width in SIZES]
        for size in sizes:
            check_size(weights, objective.taps, size)
        sessions = {graph.file: _Session(folder, graph) for graph in manifest.graphs}
        checks = []
        for height, width in sizes:
            case = _Case(objective, weights, height, width)
            found = [*case.forward(manifest, sessions), *case.fused(manifest, sessions)]
            if any(graph.kind == "slice-forward" for graph in manifest.graphs):
                found += case.sliced(manifest, sessions)
            checks += [Check(f"{width}x{height} {name}", error, tolerance) for name, error, tolerance in found]
    # Weights of another shape, taps that they do not reach, graphs that lack a tensor.
    except (WeightsError, UsageError, KeyError) as error:
        raise GraphError(f"{str(folder)!r}: its graphs and its manifest disagree ({error}): export it again") from error
    return checks


class _Session:
    """A graph's file in ONNX Runtime."""

    def __init__(self, folder: Path, graph: GraphRecord) -> None:
        import onnxruntime

        self._path = folder / graph.file
        self._outputs = [tensor.name for tensor in graph.outputs]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        with _typed_errors(self._path):
            self._session: InferenceSession = onnxruntime.InferenceSession(
                str(self._path), options, providers=["CPUExecutionProvider"]
            )

    def run(self, inputs: Arrays, fixed: Arrays | None = None) -> dict[str, NDArray[Any]]:
        """Return every output by name."""
        with _typed_errors(self._path):
            values = self._session.run(self._outputs, {**inputs, **(fixed or {})})
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Free the session."""
        del self._session


_Sessions = Mapping[str, _Session]
_Found = tuple[str, float, float]


class _Case:
    """A picture of one size and its targets, and what the reference makes of them."""

    def __init__(self, objective: Objective, weights: Weights, height: int, width: int) -> None:
        import torch

        from impasto.runtime.activations import Activations
        from impasto.runtime.backends.torch import TorchBackend

        self._objective = objective
        random = np.random.default_rng([height, width])
        exact, rounded = TorchBackend(torch.float64), TorchBackend(torch.float32)
        content = random.random((height, width, 3), np.float32)
        # Another shape, and darker: Gram matrices that differ little would leave differences of rounding only.
        style = random.random((width, height, 3), np.float32) ** 3
        targets = measure_targets(exact, weights, objective, content, style)
        self._style = encoded(objective, style)
        self._problem = Problem(objective, weights, targets, (height, width))
        self._activations = Activations(weights, objective, targets.calibration)
        for _ in range(_CANDIDATES):
            self._image = encoded(objective, random.random((height, width, 3), np.float32))
            self._activations.compute(self._image)
            if self._activations.clear:
                break
        self._exact = exact.prepare(self._problem, "fused").evaluate(self._image)
        self._rounded = rounded.prepare(self._problem, "fused").evaluate(self._image)
        self._random = random

    def forward(self, manifest: Manifest, sessions: _Sessions) -> Iterator[_Found]:
        calibration = self._problem.targets.calibration
        if calibration:
            outputs = sessions[manifest.graph("calibration").file].run({IMAGE: self._style})
            for name, value in calibration.items():
                yield f"calibration {name}", _relative(outputs[name], value), _TOLERANCE
        outputs = sessions[manifest.graph("forward").file].run({IMAGE: self._image, **calibration})
        for tap in self._objective.taps:
            yield f"tap {tap}", _relative(outputs[tap], self._activations.tap(tap)), _TOLERANCE

    def fused(self, manifest: Manifest, sessions: _Sessions) -> Iterator[_Found]:
        found = FusedPlan(self._problem, sessions[manifest.graph("fused").file]).evaluate(self._image)
        for term, value in self._exact.terms.items():
            yield f"loss {term}", _relative(np.asarray(found.terms[term]), np.asarray(value)), _TOLERANCE
        yield from self._gradient("gradient", found.gradient, self._exact.gradient, self._rounded.gradient)

    def sliced(self, manifest: Manifest, sessions: _Sessions) -> Iterator[_Found]:
        tensors: dict[str, NDArray[Any]] = {IMAGE: self._image, **self._problem.targets.calibration}
        pieces = [graph for graph in manifest.graphs if graph.kind == "slice-forward"]
        for number, piece in enumerate(pieces):
            tensors |= sessions[piece.file].run({item.name: tensors[item.name] for item in piece.inputs})
            yield f"slice {piece.tap}", _relative(tensors[piece.tap], self._activations.tap(piece.tap)), _TOLERANCE
            seed = self._random.standard_normal(tensors[piece.tap].shape).astype(np.float32)
            cotangents = {cotangent(piece.tap): seed}
            for below in reversed(pieces[: number + 1]):
                gradient = manifest.graph("slice-gradient", below.tap)
                if not any(item.name in cotangents for item in gradient.inputs):
                    continue  # the tap does not depend on this slice
                # What this slice gives to others than the tap has no cotangent yet.
                inputs = {item.name: self._input(item.name, cotangents, tensors) for item in gradient.inputs}
                for name, value in sessions[gradient.file].run(inputs).items():
                    cotangents[name] = cotangents[name] + value if name in cotangents else value
            exact, rounded = self._activations.gradients(piece.tap, seed)
            yield from self._gradient(f"slice gradient {piece.tap}", cotangents[cotangent(IMAGE)], exact, rounded)

    @staticmethod
    def _input(name: str, cotangents: Mapping[str, NDArray[Any]], tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        if name in tensors:
            return tensors[name]
        return cotangents.get(name, np.zeros_like(tensors[name.removeprefix(cotangent(""))]))

    def _gradient(self, name: str, found: NDArray[Any], exact: FloatArray, rounded: FloatArray) -> Iterator[_Found]:
        allowed = 0.0 if self._activations.clear else 2 * _relative(rounded, exact)
        yield name, _relative(found, exact), max(_TOLERANCE, allowed)
        yield f"{name} direction", _angle(found, exact), _TOLERANCE


def _relative(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """Return the L2 norm of the difference over that of the exact value, or alone where that is zero."""
    if found.shape != exact.shape:
        return math.inf
    reference = exact.astype(np.float64)
    return float(np.linalg.norm(found - reference) / (np.linalg.norm(reference) or 1.0))


def _angle(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """Return 1 - cosine, to its absolute value; 0 where one of both is zero, which has no direction."""
    if found.shape != exact.shape:
        return math.inf
    a, b = found.astype(np.float64).ravel(), exact.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return abs(1.0 - float(a @ b) / norms) if norms else 0.0


def _weights(folder: Path, manifest: Manifest) -> Weights:
    """Read the weights that the graphs refer to, as their convention has them."""
    data, tensors = manifest.data, {}
    for record in data.tensors:
        count = math.prod(record.shape)
        if record.offset + 4 * count > data.size:
            raise GraphError(f"{str(folder / data.file)!r} ends before {record.name!r}: export the bundle again")
        values = np.fromfile(folder / data.file, "<f4", count, offset=record.offset)
        tensors[record.name] = values.astype(np.float32, copy=False).reshape(record.shape)
    convention = CONVENTIONS[manifest.weights.convention]
    return Weights(manifest.weights.name, backbone(manifest.backbone), convention, tensors)


@contextmanager
def _typed_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise GraphError(f"ONNX Runtime cannot run {str(path)!r}: {first}") from error
