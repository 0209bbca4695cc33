"""Export bundles: a folder with the graphs of an objective, the weights that they share, and a manifest.

=================================  =====================================================================
``manifest.json``                  what the folder holds (`impasto.export.manifest`)
``forward.onnx``                   image → taps
``fused.onnx``                     image, targets, loss weights → loss terms, pixel gradient
``calibration.onnx``               for filters: style picture → their scales and thresholds
``slice-NN-<tap>.forward.onnx``    with slices: one tap from what comes before it …
``slice-NN-<tap>.gradient.onnx``   … and its vector–Jacobian product
``weights.bin``                    the graphs' large constants, each once, as ONNX external data
=================================  =====================================================================

Height and width are dynamic. All files lie flat in one folder, since runtimes refuse external data above a model's own
folder. The same weights and objective give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from impasto.errors import GraphError
from impasto.export.calibration import calibration_graph
from impasto.export.folders import replaced_folder
from impasto.export.forward import forward_graph
from impasto.export.fused import fused_graph
from impasto.export.graph import IR_VERSION, OPSET, Dim, Graph
from impasto.export.manifest import (
    MANIFEST,
    DataRecord,
    GraphKind,
    GraphRecord,
    Manifest,
    TapRecord,
    TensorRecord,
    WeightRecord,
    WeightsRecord,
    file_digest,
)
from impasto.export.objective import Objective
from impasto.export.slices import slice_graph
from impasto.models.conventions import pixel_space
from impasto.models.weights import Weights

DATA = "weights.bin"

_ALIGNMENT = 4096  # ONNX's own advice, so that runtimes can map each tensor into memory
_INLINE_BYTES = 1024  # smaller constants stay in the graphs, where shape inference sees them


def export_bundle(
    folder: str | os.PathLike[str],
    weights: Weights,
    objective: Objective,
    *,
    preset_name: str | None = None,
    slices: bool = False,
) -> Manifest:
    """Write the graphs of an objective on some weights into ``folder``, and return their manifest.

    ``folder`` is created; an empty one and an earlier bundle are replaced, and a kill at any moment leaves the earlier
    or the new one whole (`impasto.export.folders`). ``slices`` adds a pair of graphs for each tap.

    Raises `MissingTapError` for a tap that the weights do not reach, `OutputError` for a folder that cannot be written
    or holds anything else, and `StorageError` when no space is left; nothing is changed then.
    """
    objective = objective.canonical(weights)
    graphs = list(_graphs(weights, objective, slices))
    forward = graphs[0][3]
    with replaced_folder(folder, _foreign) as workspace:
        with (workspace / DATA).open("xb") as file:
            data = _Data(file)
            tensors = tuple(
                WeightRecord(name, tuple(weights.tensors[name].shape), data.place(weights.tensors[name])[0])
                for layer in weights.backbone.layers[: weights.backbone.taps.index(forward.outputs[-1]) + 1]
                for name in layer.tensors()
            )
            records = tuple(_write(workspace / name, kind, tap, graph, data) for name, kind, tap, graph in graphs)
        manifest = Manifest(
            backbone=weights.backbone.name,
            weights=WeightsRecord(weights.name, weights.sha256, weights.convention.name),
            preset=preset_name or "",
            objective=objective,
            taps=tuple(
                TapRecord(tap, weights.backbone.channels(tap), weights.backbone.stride(tap)) for tap in forward.outputs
            ),
            graphs=records,
            data=DataRecord(DATA, (workspace / DATA).stat().st_size, file_digest(workspace / DATA), tensors),
            opset=OPSET,
            ir_version=IR_VERSION,
            versions=_versions(),
        )
        (workspace / MANIFEST).write_bytes(manifest.to_bytes())
    return manifest


def _graphs(weights: Weights, objective: Objective, slices: bool) -> Iterator[tuple[str, GraphKind, str, Graph]]:
    """Yield each graph with its file's name, its kind and the tap that it ends at; the forward graph comes first."""
    space = pixel_space(objective.convention)
    forward = forward_graph(weights, objective.taps, pooling=objective.pooling, space=space)
    forward.prune()
    yield "forward.onnx", "forward", "", forward
    yield "fused.onnx", "fused", "", fused_graph(objective, weights)
    calibration = calibration_graph(weights, objective.taps, space)
    if calibration.outputs:
        yield "calibration.onnx", "calibration", "", calibration
    if slices:
        for number, piece in enumerate(slice_graph(forward, forward.outputs), 1):
            stem = f"slice-{number:02d}-{piece.tap}"
            yield f"{stem}.forward.onnx", "slice-forward", piece.tap, piece.forward
            yield f"{stem}.gradient.onnx", "slice-gradient", piece.tap, piece.gradient


class _Data:
    """The file of external data while it is written: every array once, by content."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offsets: dict[bytes, int] = {}

    def place(self, value: NDArray[Any]) -> tuple[int, int]:
        """Return offset and length, in bytes, of an array's little-endian content, written if it is not there yet."""
        content = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).data.cast("B")
        digest = hashlib.sha256(content).digest()
        if digest not in self._offsets:
            self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
            self._offsets[digest] = self._file.tell()
            self._file.write(content)
        return self._offsets[digest], len(content)


def _write(path: Path, kind: GraphKind, tap: str, graph: Graph, data: _Data) -> GraphRecord:
    model = _model(graph, data)
    content = model.SerializeToString(deterministic=True)
    path.write_bytes(content)
    return GraphRecord(
        file=path.name,
        kind=kind,
        tap=tap,
        inputs=tuple(_tensor(value) for value in model.graph.input),
        outputs=tuple(_tensor(value) for value in model.graph.output),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _model(graph: Graph, data: _Data) -> onnx.ModelProto:
    """Return the graph's model, large constants by reference to the data file."""
    large = {
        name: value
        for name, value in graph.constants.items()
        # Whole numbers steer shapes, and runtimes want those at hand.
        if value.nbytes >= _INLINE_BYTES and value.dtype != np.int64
    }
    # The model is made and checked with inputs in their place, so that they are never copied into it.
    open_graph = graph.copy(graph.name)
    for name, value in large.items():
        del open_graph.constants[name]
        open_graph.inputs[name] = (value.dtype, tuple(value.shape))
    model = open_graph.model()
    inputs = [value for value in model.graph.input if value.name not in large]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(_external(name, value, data) for name, value in large.items())
    return model


def _external(name: str, value: NDArray[Any], data: _Data) -> TensorProto:
    offset, length = data.place(value)
    tensor = TensorProto(
        name=name,
        data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
        dims=value.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, text in (("location", DATA), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def _tensor(value: onnx.ValueInfoProto) -> TensorRecord:
    kind = value.type.tensor_type
    shape: tuple[Dim, ...] = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.shape.dim
    )
    return TensorRecord(value.name, str(helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)


def _foreign(folder: Path) -> str | None:
    """Name a file of the folder that belongs to no bundle of ours, if there is one."""
    names = sorted(path.name for path in folder.iterdir())
    if MANIFEST not in names:
        return names[0] if names else None
    try:
        ours = {MANIFEST, *Manifest.from_bytes((folder / MANIFEST).read_bytes()).files}
    except GraphError:
        return MANIFEST
    return next((name for name in names if name not in ours), None)


def _versions() -> dict[str, str]:
    from impasto import __version__

    return {"impasto": __version__, "onnx": str(onnx.__version__)}
