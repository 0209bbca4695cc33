import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from impasto.errors import MissingTapError, OutputError, StorageError, UnknownNameError, WeightsError
from impasto.models.backbones import backbone
from impasto.models.conventions import CAFFE, RGB255, TORCHVISION, UNIT
from impasto.models.random_weights import filterbank_weights, random_weights
from impasto.models.weights import Weights, load_weights, save_weights

METADATA = {"backbone": "vgg19", "convention": "caffe"}
SHARED = Path(__file__).parents[2].parent / "shared" / "weights" / "vgg19_blocks1-3.safetensors"


@pytest.fixture
def weights():
    return random_weights("vgg19", 11, last_conv="conv2_1")


def changed(weights, **tensors):
    """The tensors, with some replaced (``conv1_1__bias=…``) or, by None, left out."""
    result = dict(weights.tensors)
    for key, value in tensors.items():
        result[key.replace("__", ".")] = value
    return {key: value for key, value in result.items() if value is not None}


def test_save_and_load(weights, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(weights, path)
    loaded = load_weights(path)
    assert loaded.sha256 == weights.sha256
    assert (loaded.name, loaded.backbone, loaded.convention) == ("w.safetensors", weights.backbone, CAFFE)
    assert loaded.tensors.keys() == weights.tensors.keys()
    for key, tensor in weights.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[key], tensor)
    assert load_weights(path, "mine").name == "mine"
    assert names(tmp_path) == ["w.safetensors"]


def test_the_file_is_what_safetensors_understands(weights, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(weights, path)
    tensors = load_tensors(path.read_bytes())
    assert tensors.keys() == weights.tensors.keys()
    assert all(np.array_equal(tensors[key], weights.tensors[key]) for key in tensors)


def test_bytes_are_the_same_in_every_process(tmp_path):
    # Python's and Rust's hashes are seeded anew in each process, which is what shuffled the metadata.
    script = (
        "import sys; from impasto.models.random_weights import random_weights as r;"
        "from impasto.models.weights import save_weights as s; s(r('vgg16', 2, last_conv='conv1_1'), sys.argv[1])"
    )
    files = [tmp_path / str(n) for n in range(3)]
    for file in files:
        subprocess.run([sys.executable, "-c", script, str(file)], check=True, cwd=Path(__file__).parents[2])
    assert len({file.read_bytes() for file in files}) == 1


def test_layout_in_memory_does_not_matter(weights, tmp_path):
    fortran = Weights(
        "f", weights.backbone, CAFFE, {key: np.asfortranarray(t) for key, t in reversed(weights.tensors.items())}
    )
    assert fortran.sha256 == weights.sha256
    for name, w in (("c", weights), ("f", fortran)):
        save_weights(w, tmp_path / name)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "f").read_bytes()


def test_digest_covers_everything_but_the_name(weights):
    same = Weights("another name", weights.backbone, CAFFE, weights.tensors)
    bias = weights.tensors["conv1_1.bias"].copy()
    bias[3] = np.nextafter(bias[3], np.float32(9))
    others = [
        Weights("w", weights.backbone, TORCHVISION, weights.tensors),
        Weights("w", backbone("vgg16"), CAFFE, weights.tensors),
        Weights("w", weights.backbone, CAFFE, changed(weights, conv1_1__bias=bias)),
        Weights("w", weights.backbone, CAFFE, changed(weights, conv2_1__bias=None, conv2_1__weight=None)),
    ]
    assert same.sha256 == weights.sha256
    assert len({weights.sha256, *(w.sha256 for w in others)}) == 5


def test_partial_weights_reach_some_taps(weights):
    assert weights.last == "conv2_1"
    assert weights.taps == ("conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1", "conv2_1", "relu2_1")
    assert weights.require("block2_conv1") == "relu2_1"
    with pytest.raises(MissingTapError, match=r"'relu4_2' needs weights beyond conv2_1.*impasto weights fetch vgg19"):
        weights.require("relu4_2")
    with pytest.raises(UnknownNameError, match="unknown tap"):
        weights.require("relu9_9")


def test_where_partial_weights_cannot_be_fetched_whole_no_download_is_promised():
    # Nobody publishes configuration C.
    weights = random_weights("vgg16c", 1, last_conv="conv1_1")
    with pytest.raises(MissingTapError, match=r"choose among conv1_1, relu1_1, or use full weights$"):
        weights.require("relu2_1")


def test_a_filter_bank_is_saved_and_loaded(tmp_path):
    bank = filterbank_weights(3)
    path = tmp_path / "bank.safetensors"
    save_weights(bank, path)
    loaded = load_weights(path)
    assert (loaded.sha256, loaded.backbone, loaded.convention) == (bank.sha256, bank.backbone, UNIT)
    assert loaded.tensors.keys() == bank.tensors.keys()
    for key, tensor in bank.tensors.items():
        np.testing.assert_array_equal(loaded.tensors[key], tensor)


def test_a_filter_bank_may_stop_after_any_level(tmp_path):
    bank = filterbank_weights(3)
    part = [f"response{level}.{kind}" for level in range(3) for kind in ("weight", "offset")]
    path = tmp_path / "part.safetensors"
    save_weights(Weights("part", bank.backbone, UNIT, {key: bank.tensors[key] for key in part}), path)
    loaded = load_weights(path)
    assert loaded.tensors.keys() == set(part)
    assert loaded.last == "response2"
    # The next level's picture has no weights.
    assert loaded.taps == bank.backbone.taps[: bank.backbone.taps.index("level3") + 1]
    assert loaded.taps[-3:] == ("response2", "bank2", "level3")
    with pytest.raises(
        MissingTapError, match=r"'bank3' needs weights beyond response2, where 'part\.safetensors' ends"
    ):
        loaded.require("bank3")


def test_a_filter_bank_may_not_skip_a_level():
    bank = filterbank_weights(3)
    without = {key: tensor for key, tensor in bank.tensors.items() if not key.startswith("response1.")}
    with pytest.raises(WeightsError, match=r"tensor 'response1\.weight' is missing"):
        Weights("w", bank.backbone, UNIT, without)
    with pytest.raises(WeightsError, match=r"tensor 'response9\.offset' is missing"):
        Weights("w", bank.backbone, UNIT, changed(bank, response9__offset=None))


def names(folder):
    return [path.name for path in folder.iterdir()]


LIES = {
    "NaN": ({"conv1_1__bias": np.full(64, np.nan, np.float32)}, r"conv1_1\.bias holds values that are not finite"),
    "infinity": ({"conv1_1__bias": np.full(64, -np.inf, np.float32)}, "not finite"),
    "float64": ({"conv1_1__bias": np.zeros(64)}, r"conv1_1\.bias is float64, must be float32"),
    "float16": ({"conv1_1__bias": np.zeros(64, np.float16)}, "is float16"),
    "shape": ({"conv1_1__bias": np.zeros(63, np.float32)}, r"has shape \(63,\), vgg19 needs \(64,\)"),
    "HWIO": ({"conv1_1__weight": np.zeros((3, 3, 3, 64), np.float32)}, r"has shape \(3, 3, 3, 64\)"),
    "skipped layer": ({"conv1_2__weight": None, "conv1_2__bias": None}, r"'conv1_2\.weight' is missing"),
    "no bias": ({"conv2_1__bias": None}, r"'conv2_1\.bias' is missing"),
    "no first": ({"conv1_1__weight": None}, r"'conv1_1\.weight' is missing"),
    "foreign": ({"fc6__weight": np.zeros(3, np.float32)}, r"vgg19 has no tensor 'fc6\.weight'"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_of_tensors(weights, tmp_path, lie):
    changes, message = LIES[lie]
    tensors = changed(weights, **changes)
    with pytest.raises(WeightsError, match=message):
        Weights("w", weights.backbone, CAFFE, tensors)
    path = tmp_path / "w.safetensors"
    path.write_bytes(save_tensors({key: np.ascontiguousarray(t) for key, t in tensors.items()}, METADATA))
    with pytest.raises(WeightsError, match=message):
        load_weights(path)


def test_no_tensors_at_all(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save_tensors({}, METADATA))
    with pytest.raises(WeightsError, match=r"'conv1_1\.weight' is missing"):
        load_weights(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "'backbone' is None"),
        ({"convention": "caffe"}, "'backbone' is None"),
        ({"backbone": "vgg19"}, "'convention' is None, must be one of caffe, torchvision"),
        ({"backbone": "alexnet", "convention": "caffe"}, "'backbone' is 'alexnet'"),
        (
            {"backbone": "vgg19", "convention": "rgb255"},
            "'convention' is 'rgb255', must be one of caffe, torchvision, unit",
        ),
    ],
)
def test_lies_of_metadata(weights, tmp_path, metadata, message):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save_tensors(dict(weights.tensors), metadata))
    with pytest.raises(WeightsError, match=message):
        load_weights(path)


def test_only_conventions_of_weights(weights):
    with pytest.raises(WeightsError, match="'rgb255' is not a convention of weights"):
        Weights("w", weights.backbone, RGB255, weights.tensors)


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(random_weights("vgg19", 0, last_conv="conv1_1"), path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for size in [0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="not a readable safetensors file"):
            load_weights(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_weights(path)


def test_types_that_numpy_lacks(tmp_path):
    header = {"__metadata__": METADATA, "conv1_1.bias": {"dtype": "BF16", "shape": [64], "data_offsets": [0, 128]}}
    text = json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(128))
    with pytest.raises(WeightsError):
        load_weights(path)


def test_no_such_file_and_folders(tmp_path):
    with pytest.raises(WeightsError, match="do not exist"):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError):
        load_weights(tmp_path)


def test_a_full_disk_leaves_the_old_file(weights, tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        save_weights(weights, path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["w.safetensors"]


def test_nowhere_to_write(weights, tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        save_weights(weights, tmp_path / "missing" / "w.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        save_weights(weights, tmp_path / "folder")
    assert names(tmp_path) == ["folder"]


@pytest.mark.skipif(not SHARED.is_file(), reason="the shared real weights are not beside this checkout")
def test_real_weights():
    weights = load_weights(SHARED)
    assert (weights.backbone.name, weights.convention) == ("vgg19", CAFFE)
    assert weights.taps[-2:] == ("relu3_4", "pool3")
