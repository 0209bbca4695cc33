from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from impasto.errors import GraphError, ImageError, UnavailableError
from impasto.export.bundle import DATA, export_bundle
from impasto.export.manifest import MANIFEST
from impasto.export.objective import Objective
from impasto.models.weights import Weights
from impasto.runtime.recipes import FILTERBANK
from impasto.runtime.verify import Check, verify_bundle

torch = pytest.importorskip("torch")

OBJECTIVE = Objective(content={"relu2_2": 1.0}, style={"relu1_1": 2.0, "conv2_1": 1.0}, tv=0.5)
# Every choice the other way: pooling, norms, and pixels and weights of another convention.
OTHER = Objective(
    content={"pool1": 1.0},
    style={"relu2_1": 1.0},
    tv=1.0,
    content_norm="half-sum",
    gram_norm="none",
    style_norm="gatys",
    tv_form="power",
    pooling="average",
    pixels="torchvision",
    convention="torchvision",
)
SIZE = ((13, 22),)


@pytest.fixture(scope="module")
def bundle(shallow: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "bundle"
    export_bundle(folder, shallow, OBJECTIVE, slices=True)
    return folder


@pytest.fixture
def damaged(bundle: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def _rewrite(folder: Path, name: str, content: bytes) -> None:
    """Change a file and make the manifest vouch for it, as someone would who means it."""
    old = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / name).write_bytes(content)
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace(old, hashlib.sha256(content).hexdigest()))


def _edit(folder: Path, name: str, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(folder / name, load_external_data=False)
    change(model)
    _rewrite(folder, name, model.SerializeToString())


def test_bundles_pass(bundle: Path, shallow: Weights, tmp_path: Path) -> None:
    export_bundle(tmp_path / "other", shallow, OTHER, slices=True)
    for folder, terms, sizes in (
        (bundle, {"content.relu2_2", "style.relu1_1", "style.conv2_1", "tv"}, ((13, 22), (5, 16))),
        (tmp_path / "other", {"content.pool1", "style.relu2_1", "tv"}, SIZE),
    ):
        checks = verify_bundle(folder, sizes)
        assert all(check.passed for check in checks), [check for check in checks if not check.passed]
        for size in (f"{width}x{height}" for height, width in sizes):
            names = {check.name.removeprefix(f"{size} ") for check in checks if check.name.startswith(size)}
            taps = {tap for tap in (term.partition(".")[2] for term in terms) if tap}
            assert names == {
                *(f"loss {term}" for term in terms),
                *(f"{kind} {tap}" for kind in ("tap", "slice", "slice gradient") for tap in taps),
                *(f"slice gradient {tap} direction" for tap in taps),
                "gradient",
                "gradient direction",
            }
        # Far from the tolerances: these graphs are right, so that a wrong one cannot pass for them.
        assert max(check.error for check in checks) < 3e-6


def test_without_slices_there_are_no_checks_of_them(shallow: Weights, tmp_path: Path) -> None:
    export_bundle(tmp_path / "out", shallow, replace(OBJECTIVE, tv=0.0))
    names = {check.name for check in verify_bundle(tmp_path / "out")}
    assert names == {
        f"{size} {check}"
        for size in ("29x37", "50x19")
        for check in (
            *(f"tap {tap}" for tap in ("relu2_2", "relu1_1", "conv2_1")),
            *(f"loss {term}" for term in ("content.relu2_2", "style.relu1_1", "style.conv2_1")),
            "gradient",
            "gradient direction",
        )
    }


def test_the_bundle_is_all_that_is_needed(bundle: Path, tmp_path: Path) -> None:
    """A copy elsewhere gives the same numbers: pictures are seeded, weights are the bundle's own."""
    moved = Path(shutil.copytree(bundle, tmp_path / "moved"))
    errors = [{c.name: c.error for c in verify_bundle(folder, SIZE)} for folder in (bundle, moved)]
    assert errors[0].keys() == errors[1].keys()
    assert all(error < 3e-6 for error in [*errors[0].values(), *errors[1].values()])


def _failed(folder: Path) -> set[str]:
    return {check.name.removeprefix("22x13 ") for check in verify_bundle(folder, SIZE) if not check.passed}


def test_a_wrong_term_is_found(damaged: Path) -> None:
    """The fused graph doubles one term, before its gradient is taken or after."""

    def double(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if "loss.style.conv2_1" in node.output)
        node.op_type = "Sum"
        node.input.append(node.input[0])

    _edit(damaged, "fused.onnx", double)
    assert _failed(damaged) == {"loss style.conv2_1"}


def test_a_wrong_gradient_is_found(damaged: Path) -> None:
    """The pixel gradient of the fused graph loses its last step through a ReLU's mask."""

    def negate(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if "gradient" in node.output)
        node.op_type = "Neg"

    _edit(damaged, "fused.onnx", negate)
    assert _failed(damaged) == {"gradient", "gradient direction"}


def test_a_wrong_forward_graph_is_found(damaged: Path) -> None:
    def soften(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if "relu2_1" in node.output).op_type = "LeakyRelu"

    _edit(damaged, "forward.onnx", soften)
    assert _failed(damaged) == {"tap relu2_2"}


def test_a_wrong_slice_is_found(damaged: Path) -> None:
    def negate(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if "cotangent.relu1_1" in node.output).op_type = "Neg"

    _edit(damaged, "slice-02-conv2_1.gradient.onnx", negate)
    wrong = {f"slice gradient {tap}" for tap in ("conv2_1", "relu2_2")}
    assert _failed(damaged) == wrong | {f"{name} direction" for name in wrong}


def test_a_graph_that_gives_nan_fails(damaged: Path) -> None:
    def poison(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if "gradient" in node.output).op_type = "Sqrt"

    _edit(damaged, "fused.onnx", poison)
    assert _failed(damaged) == {"gradient", "gradient direction"}


def test_weights_that_differ_from_the_graphs_are_found(damaged: Path) -> None:
    """One weight that the reference reads from the file, while small biases are in the graphs too."""
    data = bytearray((damaged / DATA).read_bytes())
    manifest = json.loads((damaged / MANIFEST).read_text())
    bias = next(item for item in manifest["data"]["tensors"] if item["name"] == "conv1_1.bias")
    data[bias["offset"] : bias["offset"] + 4] = np.float32(3).tobytes()
    _rewrite(damaged, DATA, bytes(data))
    assert "tap relu1_1" in _failed(damaged)


# --- Filters ---------------------------------------------------------------------------------------------------------

# Both statistics, a level without a content term, and a tap before its ReLU.
FILTERS = Objective(
    content={"bank0": 1.0},
    style={"bank0": 2.0, "response1": 0.5, "bank2": 1.0},
    statistics={"bank0": "covariance", "bank2": "covariance"},
    content_norm="relative",
    gram_norm="positions",
    style_norm="relative",
    pixels="unit",
    convention="unit",
)
FILTER_SIZE = ((21, 26),)


@pytest.fixture(scope="module")
def filters(bank: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "filters"
    export_bundle(folder, bank, FILTERS, slices=True)
    return folder


@pytest.fixture
def damaged_filters(filters: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filters, tmp_path / "filters"))


def _failed_filters(folder: Path) -> set[str]:
    return {check.name.removeprefix("26x21 ") for check in verify_bundle(folder, FILTER_SIZE) if not check.passed}


def test_bundles_of_filters_pass(filters: Path, bank: Weights, tmp_path: Path) -> None:
    """The preset's own objective, too, and in a pixel space that is not the weights'."""
    own = FILTERBANK.objective_at(bank, *FILTER_SIZE)
    elsewhere = replace(FILTERS, pixels="caffe", convention="caffe")
    for name, objective in (("own", own), ("elsewhere", elsewhere)):
        export_bundle(tmp_path / name, bank, objective, slices=True)
    for folder, objective in ((filters, FILTERS), (tmp_path / "own", own), (tmp_path / "elsewhere", elsewhere)):
        checks = verify_bundle(folder, FILTER_SIZE)
        assert all(check.passed for check in checks), [check for check in checks if not check.passed]
        levels = {int(tap[-1]) for tap in objective.taps}
        assert {check.name.removeprefix("26x21 ") for check in checks} == {
            *(f"calibration response{level}.{part}" for level in levels for part in ("scale", "threshold")),
            *(f"loss {term}" for term in objective.terms),
            *(f"{kind} {tap}" for kind in ("tap", "slice", "slice gradient") for tap in objective.taps),
            *(f"slice gradient {tap} direction" for tap in objective.taps),
            "gradient",
            "gradient direction",
        }


def test_pictures_are_as_large_as_the_coarsest_level_needs(bank: Weights, tmp_path: Path) -> None:
    """By default; and still of two shapes."""
    coarse = Objective(content={"bank5": 1.0}, style={}, pixels="unit", convention="unit")
    export_bundle(tmp_path / "out", bank, coarse)
    least = bank.backbone.smallest("bank5")
    assert least > 50  # the longest side of the customary sizes
    names = {check.name.partition(" ")[0] for check in verify_bundle(tmp_path / "out")}
    # The customary sizes, (37, 29) and (19, 50), made so much larger that the shortest side is enough.
    assert names == {f"{least + 10}x{least + 18}", f"{least + 31}x{least}"}
    with pytest.raises(ImageError, match=f"too small for tap bank5, which needs at least {least}x{least}"):
        verify_bundle(tmp_path / "out", [(least - 1, 90)])


def test_a_wrong_calibration_is_found(damaged_filters: Path) -> None:
    """Where it alone is wrong: the other graphs are given the reference's numbers."""

    def negate(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if "response1.threshold" in node.output).op_type = "Sub"

    _edit(damaged_filters, "calibration.onnx", negate)
    assert _failed_filters(damaged_filters) == {"calibration response1.threshold"}


def test_a_calibration_that_forgets_its_floor_passes_on_pictures_that_do_not_need_it(damaged_filters: Path) -> None:
    """So that what is found above is a wrong number, and not any change."""

    def lift(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "Max":
                node.op_type = "Sum"
                del node.input[1:]

    _edit(damaged_filters, "calibration.onnx", lift)
    assert _failed_filters(damaged_filters) == set()


@pytest.mark.parametrize("change", ["garbage", "missing", "not vouched for", "other outputs", "no graph at all"])
def test_a_damaged_calibration_is_named(damaged_filters: Path, change: str) -> None:
    path = damaged_filters / "calibration.onnx"
    manifest = json.loads((damaged_filters / MANIFEST).read_text())
    record = next(graph for graph in manifest["graphs"] if graph["kind"] == "calibration")
    words = r"calibration\.onnx"
    match change:
        case "garbage":
            _rewrite(damaged_filters, "calibration.onnx", b"\0\1\2 no graph")
            words = r"ONNX Runtime cannot run .*calibration\.onnx"
        case "missing":
            path.unlink()
        case "not vouched for":
            path.write_bytes(path.read_bytes()[:-1])
            words = r"calibration\.onnx' is not the file that manifest\.json lists"
        case "other outputs":
            record["outputs"].pop(0)
            (damaged_filters / MANIFEST).write_text(json.dumps(manifest))
            words = "disagree.*response0"
        case "no graph at all":
            manifest["graphs"].remove(record)
            (damaged_filters / MANIFEST).write_text(json.dumps(manifest))
            words = "no graph of kind 'calibration'"
    with pytest.raises(GraphError, match=words):
        verify_bundle(damaged_filters, FILTER_SIZE)


def test_a_wrong_covariance_is_found(damaged_filters: Path) -> None:
    """The mean's part of one term is taken twice, after the gradient was."""

    def double(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if "loss.style.bank2" in node.output)
        assert node.op_type == "Add"
        node.op_type = "Sum"
        node.input.append(node.input[1])

    _edit(damaged_filters, "fused.onnx", double)
    assert _failed_filters(damaged_filters) == {"loss style.bank2"}


def test_offsets_that_differ_from_the_graphs_are_found(damaged_filters: Path) -> None:
    data = bytearray((damaged_filters / DATA).read_bytes())
    manifest = json.loads((damaged_filters / MANIFEST).read_text())
    offset = next(item for item in manifest["data"]["tensors"] if item["name"] == "response0.offset")
    data[offset["offset"] : offset["offset"] + 4] = np.float32(3).tobytes()
    _rewrite(damaged_filters, DATA, bytes(data))
    assert "calibration response0.threshold" in _failed_filters(damaged_filters)


# --- What cannot be verified -----------------------------------------------------------------------------------------


def test_a_damaged_file_is_named(damaged: Path) -> None:
    (damaged / "forward.onnx").write_bytes(b"nothing")
    with pytest.raises(GraphError, match=r"forward\.onnx' is not the file that manifest\.json lists"):
        verify_bundle(damaged, SIZE)


def test_manifests_that_vouch_for_the_wrong_things(damaged: Path) -> None:
    text = (damaged / MANIFEST).read_text()

    def refused(change: Callable[[dict[str, object]], object], match: str) -> None:
        value = json.loads(text)
        change(value)
        (damaged / MANIFEST).write_text(json.dumps(value))
        with pytest.raises(GraphError, match=match):
            verify_bundle(damaged, SIZE)

    def tensors(value: dict[str, object]) -> list[dict[str, object]]:
        return value["data"]["tensors"]  # type: ignore[index, no-any-return]

    refused(lambda value: value["objective"]["style"].update(relu5_1=1.0), "disagree.*relu5_1")  # type: ignore[index]
    refused(lambda value: value["objective"]["style"].update(relu9_9=1.0), "disagree.*relu9_9")  # type: ignore[index]
    refused(lambda value: value["objective"]["style"].update(relu1_2=1.0), "disagree|cannot run")  # type: ignore[index]
    refused(lambda value: tensors(value)[0].update(offset=10**12), "ends before 'conv1_1.weight'")
    refused(lambda value: tensors(value)[0].update(shape=[10**6, 10**6, 3, 3]), "ends before 'conv1_1.weight'")
    refused(lambda value: tensors(value)[0].update(shape=[1]), r"disagree.*conv1_1\.weight")
    refused(lambda value: tensors(value).pop(0), r"disagree.*conv1_1\.weight")
    refused(lambda value: value["graphs"].pop(0), "no graph of kind 'forward'")  # type: ignore[attr-defined]
    refused(lambda value: value["graphs"][1]["outputs"].pop(0), "disagree.*loss")  # type: ignore[index]
    refused(lambda value: value["graphs"][2]["inputs"][0].update(name="x"), "disagree.*'x'")  # type: ignore[index]


def test_a_graph_that_onnx_runtime_refuses_is_named(damaged: Path) -> None:
    _rewrite(damaged, "fused.onnx", b"\0\1\2 no graph")
    with pytest.raises(GraphError, match=r"ONNX Runtime cannot run .*fused\.onnx"):
        verify_bundle(damaged, SIZE)


def test_sizes_that_are_too_small(bundle: Path) -> None:
    with pytest.raises(ImageError, match="30x1 pixels is too small for tap"):
        verify_bundle(bundle, [(1, 30)])


def test_without_torch(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "impasto.models.reference", raising=False)
    with pytest.raises(UnavailableError, match=r"needs torch: pip install 'impasto\[reference\]'"):
        verify_bundle(bundle, SIZE)


def test_checks_compare_with_their_tolerance() -> None:
    for error, passed in ((0.5, True), (1.0, True), (1.5, False), (math.inf, False), (math.nan, False)):
        assert Check("sample", error, 1.0).passed is passed
