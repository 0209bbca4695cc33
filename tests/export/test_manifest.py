from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from impasto.errors import GraphError
from impasto.export.manifest import (
    MANIFEST,
    DataRecord,
    GraphRecord,
    Manifest,
    TapRecord,
    TensorRecord,
    WeightRecord,
    WeightsRecord,
    read_manifest,
)
from impasto.export.objective import Objective

SAMPLE = Manifest(
    backbone="vgg16",
    weights=WeightsRecord("päinted", "0" * 64, "caffe"),
    preset="",
    objective=Objective(
        content={"relu1_2": 2.5},
        style={"relu2_1": 1e-8, "relu1_1": 1.0},
        pooling="average",
        statistics={"relu2_1": "covariance"},
    ),
    taps=(TapRecord("relu1_1", 64, 1), TapRecord("relu2_1", 128, 2)),
    graphs=(
        GraphRecord(
            "forward.onnx",
            "forward",
            "",
            (TensorRecord("image", "float32", (1, 3, "height", None)),),
            (TensorRecord("relu1_1", "float32", (1, 64, None, None)),),
            "1" * 64,
        ),
        GraphRecord(
            "calibration.onnx",
            "calibration",
            "",
            (TensorRecord("image", "float32", (1, 3, "height", "width")),),
            (TensorRecord("response0.scale", "float32", (128,)),),
            "3" * 64,
        ),
    ),
    data=DataRecord("weights.bin", 7, "2" * 64, (WeightRecord("conv1_1.bias", (64,), 4096),)),
    opset=18,
    ir_version=8,
    versions={"impasto": "0.1.0"},
)


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def _parent(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def test_round_trip() -> None:
    data = SAMPLE.to_bytes()
    assert Manifest.from_bytes(data) == SAMPLE
    assert Manifest.from_bytes(data).to_bytes() == data
    assert data.isascii()


def test_any_value_replaced_is_refused_or_read_as_it_is() -> None:
    """Whatever stands anywhere, the answer is a `GraphError` or a manifest that says the same again."""
    data = SAMPLE.to_bytes()
    junk: list[Any] = [None, True, -1, 7, 1.5, 1e400, "", "junk", "../up", "a\0b", [], [[]], {}, {"a": {}}]
    refused: list[str] = []
    accepted = 0
    for path in _paths(json.loads(data)):
        for other in junk:
            value = json.loads(data)
            _parent(value, path)[path[-1]] = other
            try:
                read = Manifest.from_bytes(json.dumps(value).encode())
            except GraphError as error:
                refused.append(str(error))
            else:
                assert Manifest.from_bytes(read.to_bytes()) == read
                accepted += 1
    assert len(refused) > accepted > 0
    assert all("\n" not in message and "export the bundle again" in message for message in refused)


def test_a_key_that_is_missing_is_named() -> None:
    data = SAMPLE.to_bytes()
    derived = {("pixels",), ("pooling",)}  # for the reader's convenience; the objective has them
    for path in _paths(json.loads(data)):
        if not isinstance(path[-1], str) or (path[0] in ("objective", "versions") and len(path) > 1) or path in derived:
            continue
        value = json.loads(data)
        del _parent(value, path)[path[-1]]
        with pytest.raises(GraphError, match=f"has no '{path[-1]}'"):
            Manifest.from_bytes(json.dumps(value).encode())


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b"{", b"[" * 100_000, b"9" * 10_000, b"null", b'"text"', SAMPLE.to_bytes()[:-9]]
)
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(GraphError, match="export the bundle again"):
        Manifest.from_bytes(data)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [({"relu2_1": "variance"}, "statistic 'variance' of relu2_1 is unknown"), ({"relu3_1": "gram"}, "'relu3_1'")],
)
def test_statistics_that_the_objective_refuses(statistics: dict[str, str], message: str) -> None:
    value = json.loads(SAMPLE.to_bytes())
    assert value["objective"]["statistics"] == {"relu2_1": "covariance"}
    value["objective"]["statistics"] = statistics
    with pytest.raises(GraphError, match=f"objective cannot be used .*{message}"):
        Manifest.from_bytes(json.dumps(value).encode())


def test_another_format_is_named() -> None:
    value = {**json.loads(SAMPLE.to_bytes()), "format": 2}
    with pytest.raises(GraphError, match="format 2, this version reads 1"):
        Manifest.from_bytes(json.dumps(value).encode())


def test_names_that_lead_out_of_the_folder() -> None:
    for name in ("../forward.onnx", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "", "C:x"):
        for place in (("graphs", 0), ("data",)):
            value = json.loads(SAMPLE.to_bytes())
            _parent(value, (*place, "file"))["file"] = name
            with pytest.raises(GraphError, match="file name without folders"):
                Manifest.from_bytes(json.dumps(value).encode())


def test_graphs_are_found_by_kind_and_tap() -> None:
    assert SAMPLE.graph("forward").file == "forward.onnx"
    assert SAMPLE.graph("calibration").file == "calibration.onnx"
    with pytest.raises(GraphError, match="no graph of kind 'slice-forward' for relu1_1"):
        SAMPLE.graph("slice-forward", "relu1_1")


def test_folders_that_are_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(GraphError, match=r"manifest\.json cannot be read \(No such file or directory\)"):
            read_manifest(folder)
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(GraphError, match="is not a plain file"):
        read_manifest(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST)
    with pytest.raises(GraphError, match="is not a plain file"):
        read_manifest(tmp_path)


def test_random_bytes(tmp_path: Path) -> None:
    stream = np.random.default_rng(5)
    for _ in range(200):
        data = bytearray(SAMPLE.to_bytes())
        for position in stream.integers(len(data), size=3):
            data[position] = stream.integers(256)
        (tmp_path / MANIFEST).write_bytes(data)
        # What is still a manifest lists files that are not there.
        with pytest.raises(GraphError):
            read_manifest(tmp_path)
