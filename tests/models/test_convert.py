import builtins
import io
import sys
import zipfile

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from impasto.errors import UnavailableError, UnknownNameError, UsageError, WeightsError
from impasto.models.backbones import backbone
from impasto.models.conventions import CAFFE, TORCHVISION, UNIT
from impasto.models.convert import convert_weights
from impasto.models.layers import Conv
from impasto.models.random_weights import filterbank_weights, random_weights
from impasto.models.weights import load_weights, save_weights


def torchvision_names(weights):
    names = {layer.name: f"features.{i}" for i, layer in enumerate(weights.backbone.layers) if isinstance(layer, Conv)}
    return {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": tensor for key, tensor in weights.tensors.items()}


def write_pth(weights, path, zip_format=True):
    state = {key: torch.from_numpy(tensor) for key, tensor in torchvision_names(weights).items()}
    state |= {"classifier.0.weight": torch.zeros(4, 25088), "classifier.0.bias": torch.zeros(4)}
    torch.save(state, path, _use_new_zipfile_serialization=zip_format)
    return path


def write_keras(weights, path, naming="old", root=""):
    with h5py.File(path, "w") as file:
        top = file.create_group(root) if root else file
        top.create_group("block1_pool")
        top.create_group("fc1").create_dataset("fc1_W_1:0", data=np.zeros((8, 4), np.float32))
        held = [conv for conv in weights.backbone.convs if conv.name in weights.taps]
        for conv in held:
            layer = conv.name.replace("conv", "block").replace("_", "_conv")
            kernel = weights.tensors[f"{conv.name}.weight"].transpose(2, 3, 1, 0)
            bias = weights.tensors[f"{conv.name}.bias"]
            group = top.create_group(layer)
            if naming == "old":
                group.create_dataset(f"{layer}_W_1:0", data=kernel)
                group.create_dataset(f"{layer}_b_1:0", data=bias)
            else:
                inner = group.create_group(layer)
                inner.create_dataset("bias:0", data=bias)
                inner.create_dataset("kernel:0", data=kernel)
    return path


def write_npz(weights, path, style):
    suffix = {"weight": "_W", "bias": "_b"} if style == "caffe" else {"weight": ".weight", "bias": ".bias"}
    arrays = {key.split(".")[0] + suffix[key.split(".")[1]]: tensor for key, tensor in weights.tensors.items()}
    np.savez(path, fc6_W=np.zeros((2, 2), np.float32), **arrays)
    return path


def same(found, weights, convention):
    assert found.backbone == weights.backbone
    assert found.convention == convention
    assert found.tensors.keys() == weights.tensors.keys()
    for key, tensor in weights.tensors.items():
        assert found.tensors[key].flags.c_contiguous
        np.testing.assert_array_equal(found.tensors[key], tensor)


@pytest.fixture
def weights():
    return random_weights("vgg19", 21, last_conv="conv2_1")


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("name", ["vgg11", "vgg19"])
def test_whole_torchvision_files_say_their_backbone(name, zip_format, tmp_path):
    whole = random_weights(name, 20)
    # The suffix says nothing: formats are told by content.
    found = convert_weights(write_pth(whole, tmp_path / "weights.bin", zip_format))
    same(found, whole, TORCHVISION)
    assert found.name == "weights.bin"


def test_converted_weights_load_as_saved(weights, tmp_path):
    found = convert_weights(write_pth(weights, tmp_path / "w.pth"), backbone="vgg19")
    save_weights(found, tmp_path / "w.safetensors")
    assert load_weights(tmp_path / "w.safetensors").sha256 == found.sha256


@pytest.mark.parametrize("naming", ["old", "new"])
@pytest.mark.parametrize("root", ["", "model_weights"])
def test_keras(weights, naming, root, tmp_path):
    path = write_keras(weights, tmp_path / "w.h5", naming, root)
    same(convert_weights(path, backbone="vgg19"), weights, CAFFE)


@pytest.mark.parametrize("style", ["caffe", "ours"])
@pytest.mark.parametrize("convention", [CAFFE, TORCHVISION, UNIT], ids=lambda s: s.name)
def test_npz(weights, style, convention, tmp_path):
    path = write_npz(weights, tmp_path / "w.npz", style)
    same(convert_weights(path, convention.name, "vgg19"), weights, convention)


def test_safetensors_of_others(weights, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"head.fc.weight": np.zeros((2, 2), np.float32), **torchvision_names(weights)}, path)
    same(convert_weights(path, "torchvision", "vgg19"), weights, TORCHVISION)


def test_a_given_convention_wins(weights, tmp_path):
    # Caffe's own VGG is passed around as a torch file, too.
    same(convert_weights(write_pth(weights, tmp_path / "w.pth"), "caffe", "vgg19"), weights, CAFFE)


def test_formats_without_a_convention_need_one(weights, tmp_path):
    save_file(dict(weights.tensors), tmp_path / "w.safetensors")
    for path in (write_npz(weights, tmp_path / "w.npz", "caffe"), tmp_path / "w.safetensors"):
        with pytest.raises(UsageError, match=r"give their convention \(caffe or torchvision or unit\)"):
            convert_weights(path, backbone="vgg19")


def test_unknown_names(weights, tmp_path):
    path = write_npz(weights, tmp_path / "w.npz", "caffe")
    with pytest.raises(UnknownNameError, match="unknown convention 'rgb255'"):
        convert_weights(path, "rgb255")
    with pytest.raises(UnknownNameError, match="unknown backbone 'vgg20'"):
        convert_weights(path, "caffe", "vgg20")


def test_weights_that_stop_early_may_need_their_backbone(tmp_path):
    # Two convolutions of 64 channels begin all configurations but A.
    path = write_npz(random_weights("vgg16", 1, last_conv="conv1_2"), tmp_path / "a.npz", "ours")
    with pytest.raises(UsageError, match="could be those of vgg13 or vgg16c or vgg16 or vgg19: give the backbone"):
        convert_weights(path, "caffe")
    # conv3_4 exists in E only, conv3_3 of one pixel in C only.
    for name, last in (("vgg19", "conv3_4"), ("vgg16c", "conv3_3")):
        part = random_weights(name, 1, last_conv=last)
        same(convert_weights(write_npz(part, tmp_path / "b.npz", "ours"), "caffe"), part, CAFFE)


def test_a_given_backbone_must_fit(weights, tmp_path):
    path = write_pth(weights, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"do not fit vgg11: it has no convolution 'features\.2'"):
        convert_weights(path, backbone="vgg11")


def test_a_bank_is_not_among_the_backbones_that_convolutions_can_be_of(weights, tmp_path):
    with pytest.raises(WeightsError, match=r"do not fit filterbank: it has no convolution 'features\.0'"):
        convert_weights(write_pth(weights, tmp_path / "w.pth"), backbone="filterbank")
    save_weights(filterbank_weights(), tmp_path / "bank.safetensors")
    with pytest.raises(WeightsError, match="hold no convolution under a known name"):
        convert_weights(tmp_path / "bank.safetensors", "unit")


def test_wrong_shapes(weights, tmp_path):
    arrays = dict(weights.tensors)
    lies = {
        r"'conv1_2\.weight' has shape \(3, 3, 64, 64\), must be \(64, 64, 3, 3\) \(OIHW\)": {
            "conv1_2.weight": arrays["conv1_2.weight"].transpose(2, 3, 1, 0)
        },
        r"'conv1_2\.bias' has shape \(65,\), must be \(64,\)": {"conv1_2.bias": np.zeros(65, np.float32)},
        r"conv1_2\.bias is float64": {"conv1_2.bias": np.zeros(64)},
        r"conv1_2\.bias holds values that are not finite": {"conv1_2.bias": np.full(64, np.inf, np.float32)},
        "it has no convolution 'conv3_9'": {"conv3_9.bias": np.zeros(256, np.float32)},
        r"'conv2_1\.weight' has shape \(1,\)": {"conv2_1.weight": np.zeros(1, np.float32)},
    }
    for message, changes in lies.items():
        np.savez(tmp_path / "w.npz", **arrays | changes)
        with pytest.raises(WeightsError, match=message):
            convert_weights(tmp_path / "w.npz", "caffe", "vgg19")


@pytest.mark.parametrize(
    ("without", "missing"),
    [("conv1_2.bias", "conv1_2.bias"), ("conv2_1.bias", "conv2_1.bias"), ("conv1_1.weight", "conv1_1.weight")],
)
def test_skipped_tensors(weights, without, missing, tmp_path):
    np.savez(tmp_path / "w.npz", **{key: tensor for key, tensor in weights.tensors.items() if key != without})
    with pytest.raises(WeightsError, match=f"do not fit vgg19: tensor '{missing}' is missing"):
        convert_weights(tmp_path / "w.npz", "caffe", "vgg19")


def test_a_tensor_under_two_names(weights, tmp_path):
    np.savez(tmp_path / "w.npz", **weights.tensors, **{"features.0.bias": weights.tensors["conv1_1.bias"]})
    with pytest.raises(WeightsError, match=r"'features\.0\.bias' and 'conv1_1\.bias' are the same tensor"):
        convert_weights(tmp_path / "w.npz", "caffe", "vgg19")


def test_no_convolutions(tmp_path):
    torch.save({"classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="hold no convolution under a known name"):
        convert_weights(tmp_path / "w.pth")


def test_batch_normalised_networks_do_not_fit(tmp_path):
    state = {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}
    state |= {"features.1.weight": torch.zeros(64), "features.1.bias": torch.zeros(64)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"it has no convolution 'features\.1'"):
        convert_weights(tmp_path / "w.pth", backbone="vgg19")


def test_theano_ordered_keras_kernels_are_refused(tmp_path):
    # Files for Theano have the same names but hold OIHW kernels.
    with h5py.File(tmp_path / "w.h5", "w") as file:
        group = file.create_group("block1_conv1")
        group.create_dataset("block1_conv1_W_1:0", data=np.zeros((64, 3, 3, 3), np.float32))
        group.create_dataset("block1_conv1_b_1:0", data=np.zeros(64, np.float32))
    with pytest.raises(
        WeightsError, match=r"'block1_conv1\.weight' has shape \(3, 3, 64, 3\), must be \(64, 3, 3, 3\)"
    ):
        convert_weights(tmp_path / "w.h5", backbone="vgg19")


def test_keras_files_that_lie(tmp_path):
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("block1_conv1")
        group.create_dataset("a", data=np.zeros(64, np.float32))
        group.create_dataset("b", data=np.zeros(64, np.float32))
    with pytest.raises(WeightsError, match="must hold one kernel and one bias"):
        convert_weights(path)
    with h5py.File(path, "w") as file:
        file["block1_conv1"] = np.zeros(3)
    with pytest.raises(WeightsError, match="not a readable Keras file"):
        convert_weights(path)
    with h5py.File(path, "w") as file:
        group = file.create_group("block1_conv1")
        # A shape of 2⁵² values that takes no space in the file.
        group.create_dataset("k", shape=(1 << 13,) * 4, chunks=(64,) * 4, dtype="f4")
        group.create_dataset("b", data=np.zeros(64, np.float32))
    with pytest.raises(WeightsError, match=r"'block1_conv1\.weight' has shape \(8192, 8192, 8192, 8192\)"):
        convert_weights(path, backbone="vgg19")


def test_every_truncation_is_noticed(weights, tmp_path):
    save_file(dict(weights.tensors), tmp_path / "safetensors")
    files = {
        "pth": write_pth(weights, tmp_path / "pth"),
        "legacy": write_pth(weights, tmp_path / "legacy", zip_format=False),
        "h5": write_keras(weights, tmp_path / "h5"),
        "npz": write_npz(weights, tmp_path / "w.npz", "caffe"),
        "safetensors": tmp_path / "safetensors",
    }
    for path in files.values():
        whole = path.read_bytes()
        convert_weights(path, "caffe", "vgg19")
        for size in [0, 5, 20, 1000, len(whole) // 2, len(whole) - 1]:
            path.write_bytes(whole[:size])
            with pytest.raises(WeightsError, match=r"weights '.*' are n"):
                convert_weights(path, "caffe", "vgg19")


def test_not_weights_at_all(tmp_path):
    path = tmp_path / "w.pth"
    for content in (
        b"",
        b"PK\x03\x04",
        b"PK\x03\x04" + bytes(100),
        b"\x89HDF\r\n\x1a\n",
        b"<html>404</html>",
        bytes(64),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError):
            convert_weights(path, "caffe")
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(WeightsError, match="cannot be read"):
            convert_weights(missing)


def test_a_huge_shape_is_refused_before_it_is_allocated(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50, 3, 3, 3)})
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("conv1_1_W.npy", header.getvalue())
    with pytest.raises(WeightsError, match=r"'conv1_1\.weight' has shape \(1125899906842624, 3, 3, 3\)"):
        convert_weights(tmp_path / "w.npz", "caffe")


def test_npz_with_python_objects_runs_nothing(weights, tmp_path):
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit('the pickle was run')",)

    bias = np.full(64, None)
    bias[0] = Bomb()
    np.savez(tmp_path / "w.npz", **dict(weights.tensors) | {"conv1_1.bias": bias})
    with pytest.raises(WeightsError, match="not a readable NumPy archive"):
        convert_weights(tmp_path / "w.npz", "caffe", "vgg19")


def test_without_h5py(weights, tmp_path, monkeypatch):
    path = write_keras(weights, tmp_path / "w.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UnavailableError, match=r"pip install 'impasto\[keras\]'"):
        convert_weights(path)


def test_torch_files_need_no_torch(weights, tmp_path, monkeypatch):
    path = write_pth(weights, tmp_path / "w.pth")
    honest = builtins.__import__

    def refusing(name, *args, **kwargs):
        assert name.partition(".")[0] != "torch"
        return honest(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refusing)
    same(convert_weights(path, backbone="vgg19"), weights, TORCHVISION)


def test_names_of_every_layer_of_the_format():
    # features.N of vgg19's convolutions, as torchvision numbers them.
    net = backbone("vgg19")
    numbers = [i for i, layer in enumerate(net.layers) if isinstance(layer, Conv)]
    assert numbers == [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
