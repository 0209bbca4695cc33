import contextlib
import io
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impasto.errors import WeightsError
from impasto.models.torch_file import TorchFile

FORMATS = {"zip": True, "legacy": False}


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 1))


def save(value, path, form):
    torch.save(value, path, _use_new_zipfile_serialization=FORMATS[form])
    return path


def agree(path, tensors):
    file = TorchFile(path)
    assert dict(file.shapes) == {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for key, tensor in tensors.items():
        read = file.read(key)
        assert read.dtype == np.float32
        assert read.flags.c_contiguous
        assert read.flags.writeable
        np.testing.assert_array_equal(read, tensor.detach().numpy())


both_formats = pytest.mark.parametrize("form", FORMATS)


@both_formats
def test_state_dict(form, tmp_path):
    state = network().state_dict()
    agree(save(state, tmp_path / "w.pth", form), state)


@both_formats
def test_plain_dictionary_of_parameters(form, tmp_path):
    parameters = dict(network().named_parameters())
    agree(save(parameters, tmp_path / "w.pth", form), parameters)


@both_formats
def test_views_of_a_shared_storage(form, tmp_path):
    block = torch.randn(6, 7, 8)
    tensors = {
        "whole": block,
        "row": block[2],
        "column": block[:, 3],
        "steps": block[1::2, ::3, 2:5],
        "transposed": block.permute(2, 0, 1),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "one": block[5, 6, 7],
        "expanded": torch.randn(3, 1)[:, :1].expand(3, 1),
        "empty": block[:0],
    }
    agree(save(tensors, tmp_path / "w.pth", form), tensors)


def test_both_formats_agree_with_torch(tmp_path):
    state = network(3).state_dict()
    for form in FORMATS:
        path = save(state, tmp_path / form, form)
        loaded = torch.load(path, weights_only=True)
        agree(path, loaded)


class Storage:
    """Stands for the six values of a tensor's storage."""

    def __init__(self, key):
        self.key = key


class Reduced:
    """Pickles as a call: function, arguments, state."""

    def __init__(self, *value):
        self.value = value

    def __reduce__(self):
        return self.value


class OldPickler(pickle.Pickler):
    def persistent_id(self, obj):
        return ("storage", torch.FloatStorage, obj.key, "cpu", 6, None) if isinstance(obj, Storage) else None


def v1(key):
    return Reduced(torch._utils._rebuild_tensor, (Storage(key), 0, (2, 3), (3, 1)))


PARAMETER = torch.nn.parameter.Parameter
OLD_TENSORS = {
    "v1": v1("v1"),
    "parameter": Reduced(PARAMETER, (v1("parameter"),), (True, False, OrderedDict())),
    "empty parameter": Reduced(PARAMETER, (), (v1("empty parameter"), None, OrderedDict(), True, False)),
    "typed": Reduced(torch.FloatTensor, (), (Storage("typed"), 0, (2, 3), (3, 1))),
}


@pytest.mark.parametrize("key", OLD_TENSORS)
def test_the_first_torch_versions(key, tmp_path):
    # torchvision's VGG-16 and -19 files are of early 2017. The torch of those days pickled parameters as objects with a
    # state, and tensors by a first version of today's function or as an empty FloatTensor with a state.
    values = torch.randn(2, 3)
    path = tmp_path / "w.pth"
    with path.open("wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, 2)
        pickle.dump(1001, file, 2)
        pickle.dump({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, file, 2)
        OldPickler(file, 2).dump(OrderedDict(a=OLD_TENSORS[key]))
        pickle.dump([key], file, 2)
        file.write((6).to_bytes(8, "little") + values.numpy().tobytes())
    # torch's own reader understands them to this day, which shows that they are written here as they were then.
    assert torch.equal(torch.load(path, weights_only=False)["a"].detach(), values)
    agree(path, {"a": values})


@both_formats
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "it holds int, not a state dict"),
        ([torch.zeros(2)], "it holds list, not a state dict"),
        ({"a": 3}, "'a' is int, not a tensor"),
        ({"state_dict": {"a": torch.zeros(2)}}, "'state_dict' is dict, not a tensor"),
        ({1: torch.zeros(2)}, "key of type int"),
        ({"a": torch.zeros(2, dtype=torch.float64)}, r"'a' is of torch\.DoubleStorage, must be float32"),
        ({"a": torch.zeros(2, dtype=torch.float16)}, r"'a' is of torch\.HalfStorage"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, r"'a' is of torch\.LongStorage"),
        ({"a": torch.eye(2).to_sparse()}, "_rebuild_sparse_tensor, not a tensor"),
        (torch.nn.Sequential(torch.nn.ReLU()), r"save model\.state_dict\(\)"),
        ({"a": exec}, "exec, not a tensor"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")
def test_what_is_no_state_dict_of_float32(form, value, message, tmp_path):
    path = save(value, tmp_path / "w.pth", form)
    with pytest.raises(WeightsError, match=f"not a readable torch file: .*{message}"):
        TorchFile(path)


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle was run')",)


@both_formats
def test_code_in_the_file_is_not_run(form, tmp_path):
    path = save({"a": torch.zeros(2), "b": Bomb()}, tmp_path / "w.pth", form)
    with pytest.raises(WeightsError, match=r"'b' is __builtin__\.exec"):
        TorchFile(path)


@both_formats
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (2, 3), (3, 1)),
        (-1, (2, 3), (3, 1)),
        (0, (2, 4), (3, 1)),
        (0, (2, 3), (4, 1)),
        (0, (2, 3), (-3, 1)),
        (0, (2, 3), (3,)),
        (0, (1 << 40,), (0,)),
        (0, (1 << 62, 1 << 62), (0, 0)),
        (0.0, (2, 3), (3, 1)),
        ("0", (2, 3), (3, 1)),
        (0, (2, None), (3, 1)),
    ],
)
def test_tensors_beyond_their_storage(form, offset, size, stride, tmp_path):
    class Liar:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (torch.zeros(6)._typed_storage(), offset, size, stride, False, {})

    path = save({"a": Liar()}, tmp_path / "w.pth", form)
    with pytest.raises(WeightsError, match=r"beyond its storage|do not fit together"):
        TorchFile(path)


@both_formats
def test_every_truncation_is_noticed(form, tmp_path):
    path = save(network().state_dict(), tmp_path / "w.pth", form)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="not a readable torch file"):
            TorchFile(path)


def rewritten(path, **changes):
    """The zip file with entries replaced or, by None, left out; by their last name."""
    entries = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            entries[name] = changes.get(name.rsplit("/", 1)[1].replace(".", "_"), archive.read(name))
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            if data is not None:
                archive.writestr(name, data)


def test_zip_files_that_lie(tmp_path):
    path = tmp_path / "w.pth"
    lies = {
        "no data.pkl": {"data_pkl": None},
        "larger than": {"data_pkl": bytes((1 << 20) + 1)},
        "big-endian": {"byteorder": b"big"},
        "storage '0' is missing or of the wrong size": {"0": None},
        "storage '1' is missing or of the wrong size": {"1": bytes(4 * 4 - 1)},
    }
    for message, changes in lies.items():
        rewritten(save({"a": torch.zeros(6), "b": torch.zeros(4)}, path, "zip"), **changes)
        with pytest.raises(WeightsError, match=message):
            TorchFile(path)


def test_compressed_zip_files_are_refused(tmp_path):
    source = save({"a": torch.zeros(1 << 20)}, tmp_path / "w.pth", "zip")
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
    with pytest.raises(WeightsError, match="compressed"):
        TorchFile(tmp_path / "c.pth")


def test_a_flipped_bit_in_a_zip_files_values_is_noticed(tmp_path):
    tensor = torch.arange(1000.0)
    path = save({"a": tensor}, tmp_path / "w.pth", "zip")
    data = bytearray(path.read_bytes())
    data[data.index(tensor.numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="Bad CRC-32"):
        TorchFile(path).read("a")


def legacy(protocol=1001, little_endian=True, keys=None, numel=None):
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(6), "b": torch.zeros(4)}, buffer, _use_new_zipfile_serialization=False)
    buffer.seek(0)
    parts = [pickle.load(buffer) for _ in range(3)]
    state = buffer.getvalue()[buffer.tell() :]
    dictionary = state[: state.index(b"\x80\x02]")]
    rest = io.BytesIO(state[len(dictionary) :])
    true_keys = pickle.load(rest)
    values = rest.read()
    head = [parts[0], protocol, {**parts[2], "little_endian": little_endian}]
    return (
        b"".join(pickle.dumps(part, 2) for part in head)
        + dictionary
        + pickle.dumps(true_keys if keys is None else keys, 2)
        + (values if numel is None else numel.to_bytes(8, "little") + values[8:])
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": 1002}, "protocol 1002 is not 1001"),
        ({"little_endian": False}, "big-endian"),
        ({"keys": []}, "storages are not those that its tensors name"),
        ({"keys": ["x", "y"]}, "storages are not those"),
        ({"keys": [1, 2]}, "key of type int"),
        ({"keys": 7}, "storages are not those"),
        ({"numel": 7}, "cut short or of the wrong size"),
        ({"numel": (1 << 64) - 1}, "cut short or of the wrong size"),
    ],
)
def test_legacy_files_that_lie(changes, message, tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(legacy())
    assert np.array_equal(TorchFile(path).read("a"), np.zeros(6))
    path.write_bytes(legacy(**changes))
    with pytest.raises(WeightsError, match=message):
        TorchFile(path)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch")
    state = network(1).state_dict()
    return folder / "fuzzed.pth", {form: save(state, folder / form, form).read_bytes() for form in FORMATS}


# Python's own pickle reader warns of a backslash that damage put into a string.
@pytest.mark.filterwarnings("ignore:.*invalid escape sequence:DeprecationWarning")
@settings(max_examples=200, deadline=None)
@given(
    form=st.sampled_from(sorted(FORMATS)),
    place=st.floats(0, 1, exclude_max=True),
    patch=st.binary(min_size=1, max_size=9),
)
def test_damage_anywhere_gives_tensors_or_a_weights_error(whole_files, form, place, patch):
    path, contents = whole_files
    data = bytearray(contents[form])
    start = int(place * len(data))
    data[start : start + len(patch)] = patch
    path.write_bytes(data)
    # Anything but a WeightsError fails the test by itself.
    with contextlib.suppress(WeightsError):
        file = TorchFile(path)
        for key, shape in file.shapes.items():
            assert file.read(key).shape == shape
