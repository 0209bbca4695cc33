from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from impasto.errors import GraphError, MissingTapError, OutputError
from impasto.export.bundle import DATA, export_bundle
from impasto.export.calibration import calibration_graph
from impasto.export.forward import forward_graph
from impasto.export.fused import fused_graph
from impasto.export.graph import Graph
from impasto.export.manifest import MANIFEST, Manifest, read_manifest
from impasto.export.objective import Objective
from impasto.export.slices import slice_graph
from impasto.models.conventions import pixel_space
from impasto.models.random_weights import filterbank_weights, random_weights
from impasto.models.weights import Weights

OBJECTIVE = Objective(content={"relu2_2": 1.0}, style={"relu1_1": 2.0, "conv_2": 1.0, "relu2_1": 3.0}, tv=0.5)
# Torchvision pixels on Caffe weights: the first kernel of the graphs is not the weights' own.
CONVERTED = replace(OBJECTIVE, pixels="torchvision", convention="torchvision")


# Banks in Caffe's pixels; the coarsest tap's own level is not among them.
FILTERED = Objective(
    content={"bank0": 1.0},
    style={"bank0": 1.0, "bank2": 2.0, "level3": 0.5},
    tv=0.5,
    statistics={"bank0": "covariance", "bank2": "covariance"},
)


@pytest.fixture(scope="module")
def bank_bundle(bank: Weights, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("export") / "bank"
    return folder, export_bundle(folder, bank, FILTERED, slices=True)


@pytest.fixture(scope="module")
def bundle(shallow: Weights, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("export") / "bundle"
    return folder, export_bundle(folder, shallow, CONVERTED, preset_name="mine", slices=True)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _run(model: Path | bytes, inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, inputs))


def _inputs(graph: Graph, sizes: dict[str, tuple[int, int]], seed: int) -> dict[str, NDArray[Any]]:
    """Random values for every input of a graph; the last two dimensions of four are those of ``sizes``."""
    stream = np.random.default_rng(seed)
    inputs = {}
    for name, (dtype, shape) in graph.inputs.items():
        full = (*shape[:2], *sizes[name]) if len(shape) == 4 else shape
        inputs[name] = np.asarray(stream.standard_normal(full)).astype(dtype)
    return inputs


def test_files_are_those_of_the_manifest(bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *manifest.files}
    assert read_manifest(folder) == manifest
    assert [tap.name for tap in manifest.taps] == ["relu1_1", "conv1_2", "relu2_1", "relu2_2"]
    assert [(tap.channels, tap.stride) for tap in manifest.taps] == [(64, 1), (64, 1), (128, 2), (128, 2)]
    assert list(manifest.objective.style) == ["relu1_1", "conv1_2", "relu2_1"]
    kinds = [graph.kind for graph in manifest.graphs]
    assert kinds == ["forward", "fused", *["slice-forward", "slice-gradient"] * 4]


def test_graphs_give_what_they_would_with_weights_inside(bundle: tuple[Path, Manifest], shallow: Weights) -> None:
    """To the bit: external data change where weights are, not what is computed."""
    folder, manifest = bundle
    objective = manifest.objective
    space = pixel_space(objective.convention)
    forward = forward_graph(shallow, objective.taps, space=space)
    height, width = 23, 18
    sizes = {"image": (height, width), "content.relu2_2": (height // 2, width // 2)}
    for record, graph in (
        (manifest.graph("forward"), forward),
        (manifest.graph("fused"), fused_graph(objective, shallow)),
    ):
        inputs = _inputs(graph, sizes, 1)
        found = _run(folder / record.file, inputs)
        for value, expected in zip(found, _run(graph.model().SerializeToString(), inputs), strict=True):
            np.testing.assert_array_equal(value, expected)
    for piece in slice_graph(forward, forward.outputs):
        for kind, graph in (("slice-forward", piece.forward), ("slice-gradient", piece.gradient)):
            record = manifest.graph(kind, piece.tap)  # type: ignore[arg-type]
            at = {
                name: (height, width) if "1_" in name or name == "image" else (height // 2, width // 2)
                for name in graph.inputs
            }
            inputs = _inputs(graph, at, 2)
            found = _run(folder / record.file, inputs)
            for value, expected in zip(found, _run(graph.model().SerializeToString(), inputs), strict=True):
                np.testing.assert_array_equal(value, expected)


def test_banks_come_with_the_graph_that_calibrates_them(bank_bundle: tuple[Path, Manifest], bank: Weights) -> None:
    folder, manifest = bank_bundle
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *manifest.files}
    found = read_manifest(folder)
    assert found == manifest
    assert found.objective.statistics == FILTERED.statistics
    assert [(tap.name, tap.channels, tap.stride) for tap in found.taps] == [
        (name, bank.backbone.channels(name), stride) for name, stride in (("bank0", 1), ("bank2", 4), ("level3", 8))
    ]
    kinds = [graph.kind for graph in found.graphs]
    assert kinds == ["forward", "fused", "calibration", *["slice-forward", "slice-gradient"] * 3]
    record = found.graph("calibration")
    assert (record.file, record.tap) == ("calibration.onnx", "")
    calibrated = [f"response{level}.{part}" for level in (0, 2) for part in ("scale", "threshold")]
    assert [item.name for item in record.outputs] == calibrated
    # They are what the graphs that have filters take, under the same names and shapes.
    for kind in ("forward", "fused"):
        taken = [item for item in found.graph(kind).inputs if item.name.startswith("response")]  # type: ignore[arg-type]
        assert sorted(taken, key=lambda item: item.name) == sorted(record.outputs, key=lambda item: item.name)


def test_graphs_of_banks_give_what_they_would_with_weights_inside(
    bank_bundle: tuple[Path, Manifest], bank: Weights, picture: Callable[..., NDArray[np.float32]]
) -> None:
    """To the bit, from the style picture's calibration to the taps, slice by slice, too."""
    folder, manifest = bank_bundle
    space = pixel_space(manifest.objective.convention)
    style, image = (space.encode(picture(seed, 50, 41))[None] for seed in (1, 2))
    forward = forward_graph(bank, manifest.objective.taps, space=space)
    graphs = [
        (manifest.graph("calibration"), calibration_graph(bank, manifest.objective.taps, space), {"image": style}),
        (manifest.graph("forward"), forward, {"image": image}),
    ]
    for piece in slice_graph(forward, forward.outputs):
        graphs.append((manifest.graph("slice-forward", piece.tap), piece.forward, {"image": image}))
    values: dict[str, NDArray[Any]] = {}
    for record, graph, given in graphs:
        inputs = {name: (values | given)[name] for name in graph.inputs}
        found = _run(folder / record.file, inputs)
        for value, expected in zip(found, _run(graph.model().SerializeToString(), inputs), strict=True):
            np.testing.assert_array_equal(value, expected)
        values |= dict(zip((item.name for item in record.outputs), found, strict=True))
    assert values["bank2"].shape == (1, bank.backbone.channels("bank2"), 13, 11)


def test_weights_of_every_layer_up_to_the_deepest_tap_are_stored(
    bank_bundle: tuple[Path, Manifest], bank: Weights
) -> None:
    """Of the second level, too, which no tap needs: weights may end early, but not leave a layer out."""
    folder, manifest = bank_bundle
    tensors = {}
    for item in manifest.data.tensors:
        stored = np.fromfile(folder / DATA, "<f4", int(np.prod(item.shape)), offset=item.offset)
        tensors[item.name] = stored.astype(np.float32).reshape(item.shape)
    assert list(tensors) == [f"response{level}.{part}" for level in range(3) for part in ("weight", "offset")]
    again = Weights("again", bank.backbone, bank.convention, tensors)
    assert set(manifest.objective.taps) <= set(again.taps)
    for name, value in tensors.items():
        np.testing.assert_array_equal(value, bank.tensors[name])
    assert sum(value.nbytes for value in tensors.values()) <= manifest.data.size
    # No graph holds a bank's weights of its own.
    least = min(value.nbytes for name, value in tensors.items() if name.endswith("weight"))
    for graph in manifest.graphs:
        for tensor in onnx.load(folder / graph.file, load_external_data=False).graph.initializer:
            assert len(tensor.raw_data) < least


@pytest.mark.parametrize("name", ["bundle", "bank_bundle"])
def test_onnx_accepts_every_file_and_the_manifest_tells_its_inputs_and_outputs(
    request: pytest.FixtureRequest, name: str
) -> None:
    folder, manifest = request.getfixturevalue(name)
    for record in manifest.graphs:
        onnx.checker.check_model(str(folder / record.file), full_check=True)
        session = onnxruntime.InferenceSession(str(folder / record.file), providers=["CPUExecutionProvider"])
        for described, actual in (
            (record.inputs, session.get_inputs()),
            (record.outputs, session.get_outputs()),
        ):
            assert [item.name for item in described] == [item.name for item in actual]
            assert {item.dtype for item in described} == {"float32"}
            for item, value in zip(described, actual, strict=True):
                assert len(item.shape) == len(value.shape)
                fixed = [
                    (mine, theirs)
                    for mine, theirs in zip(item.shape, value.shape, strict=True)
                    if isinstance(mine, int)
                ]
                assert all(mine == theirs for mine, theirs in fixed)
        image = [item.shape for item in record.inputs if item.name == "image"]
        assert image in ([], [(1, 3, "height", "width")])


def test_weights_are_stored_once_and_aligned(bundle: tuple[Path, Manifest], shallow: Weights) -> None:
    folder, manifest = bundle
    used = [name for name in shallow.tensors if not name.startswith("conv3")]
    assert sorted(item.name for item in manifest.data.tensors) == sorted(used)
    for item in manifest.data.tensors:
        stored = np.fromfile(folder / DATA, "<f4", int(np.prod(item.shape)), offset=item.offset).reshape(item.shape)
        np.testing.assert_array_equal(stored, shallow.tensors[item.name])
        assert item.offset % 4096 == 0
    # Every weight once, the converted first kernel once, and what alignment adds at most.
    bytes_once = sum(shallow.tensors[name].nbytes for name in used) + shallow.tensors["conv1_1.weight"].nbytes
    assert bytes_once <= manifest.data.size <= bytes_once + 4096 * (len(used) + 1)
    # No graph holds weights of its own.
    assert all((folder / graph.file).stat().st_size < 40_000 for graph in manifest.graphs)
    for graph in manifest.graphs:
        for tensor in onnx.load(folder / graph.file, load_external_data=False).graph.initializer:
            for entry in tensor.external_data:
                assert entry.key != "location" or entry.value == DATA
                assert entry.key != "offset" or int(entry.value) % 4096 == 0


def test_same_input_same_bytes_in_another_process(tmp_path: Path) -> None:
    weights = random_weights("vgg19", 21, last_conv="conv2_2")
    export_bundle(tmp_path / "once", weights, CONVERTED, preset_name="mine", slices=True)
    export_bundle(tmp_path / "bank-once", filterbank_weights(21), FILTERED, slices=True)
    script = """
import sys
from impasto.export.bundle import export_bundle
from impasto.export.objective import Objective
from impasto.models.random_weights import filterbank_weights, random_weights
objective = Objective(content={"relu2_2": 1.0}, style={"relu1_1": 2.0, "conv_2": 1.0, "relu2_1": 3.0}, tv=0.5,
                      pixels="torchvision", convention="torchvision")
export_bundle(sys.argv[1], random_weights("vgg19", 21, last_conv="conv2_2"), objective, preset_name="mine", slices=True)
objective = Objective(content={"bank0": 1.0}, style={"bank0": 1.0, "bank2": 2.0, "level3": 0.5}, tv=0.5,
                      statistics={"bank0": "covariance", "bank2": "covariance"})
export_bundle(sys.argv[2], filterbank_weights(21), objective, slices=True)
"""
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    again = [str(tmp_path / "again"), str(tmp_path / "bank-again")]
    subprocess.run([sys.executable, "-c", script, *again], check=True, env=environment)
    assert _bytes(tmp_path / "again") == _bytes(tmp_path / "once")
    assert _bytes(tmp_path / "bank-again") == _bytes(tmp_path / "bank-once")


def test_an_earlier_bundle_is_replaced_whole(shallow: Weights, tmp_path: Path) -> None:
    folder, fresh = tmp_path / "bundle", tmp_path / "fresh"
    export_bundle(folder, shallow, OBJECTIVE, slices=True)
    export_bundle(folder, shallow, CONVERTED)
    export_bundle(fresh, shallow, CONVERTED)
    assert _bytes(folder) == _bytes(fresh)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "fresh"]


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("notes.txt", lambda folder: (folder / "notes.txt").write_text("mine")),
        ("forward.onnx", lambda folder: (folder / MANIFEST).unlink()),
        (MANIFEST, lambda folder: (folder / MANIFEST).write_text('{"format": 99}')),
    ],
)
def test_a_folder_with_anything_else_is_left_alone(
    shallow: Weights, tmp_path: Path, name: str, spoil: Callable[[Path], object]
) -> None:
    folder = tmp_path / "bundle"
    export_bundle(folder, shallow, OBJECTIVE)
    spoil(folder)
    before = _bytes(folder)
    with pytest.raises(OutputError, match=f"holds '{name}'.*new or an empty folder"):
        export_bundle(folder, shallow, OBJECTIVE)
    assert _bytes(folder) == before


def test_a_tap_that_is_missing_leaves_the_earlier_bundle(shallow: Weights, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    export_bundle(folder, shallow, OBJECTIVE)
    before = _bytes(folder)
    with pytest.raises(MissingTapError, match="relu4_2"):
        export_bundle(folder, shallow, replace(OBJECTIVE, content={"relu4_2": 1.0}))
    assert _bytes(folder) == before


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits")
def test_no_space(tmp_path: Path) -> None:
    """A limit on the size of files is what a full disk looks like, without filling one."""
    script = """
import resource, sys
from impasto.errors import StorageError
from impasto.export.bundle import export_bundle
from impasto.export.objective import Objective
from impasto.models.random_weights import random_weights
weights = random_weights("vgg19", 1, last_conv="conv2_1")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    export_bundle(sys.argv[1], weights, Objective(content={"relu2_1": 1.0}, style={}))
except StorageError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=True, capture_output=True)
    assert b"no space left" in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_moved_bundles_work_and_changed_ones_do_not(bundle: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder = bundle[0]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name, content in _bytes(folder).items():
        (moved / name).write_bytes(content)
    read_manifest(moved)
    for name in ("fused.onnx", DATA):
        whole = (moved / name).read_bytes()
        for damaged in (whole[:-1], whole + b"\0", whole[:99] + bytes([whole[99] ^ 1]) + whole[100:]):
            (moved / name).write_bytes(damaged)
            with pytest.raises(GraphError, match=name):
                read_manifest(moved)
        (moved / name).write_bytes(whole)
    (moved / "fused.onnx").unlink()
    with pytest.raises(GraphError, match=r"fused\.onnx cannot be read \(No such file"):
        read_manifest(moved)
    (moved / "fused.onnx").symlink_to(folder / "fused.onnx")
    with pytest.raises(GraphError, match=r"fused\.onnx' is not a plain file"):
        read_manifest(moved)


def test_the_manifest_is_canonical_json(bundle: tuple[Path, Manifest]) -> None:
    text = (bundle[0] / MANIFEST).read_text("ascii")
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=1) + "\n"
    assert json.loads(text)["pixels"] == "torchvision"
