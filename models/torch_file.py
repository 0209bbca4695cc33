"""Reads state dicts that ``torch.save`` wrote, without torch and without running anything that is in the file.

Two formats are in use, and torchvision's weights come in both:

- since torch 1.6, a zip file: ``<root>/data.pkl`` holds the dictionary, ``<root>/data/<key>`` the raw storages, stored
  uncompressed, and ``<root>/byteorder`` how they are written;
- before, a stream of five pickles (magic number, protocol 1001, facts about the writing machine, the dictionary, the
  list of storage keys) and then, for each key in that order, a little-endian int64 count and the raw values.

In both, a tensor is a call of ``torch._utils._rebuild_tensor_v2`` on a storage, an offset, a size and strides, in
elements. Files of torch 0.1 hold ``Parameter`` objects around it.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impasto.errors import WeightsError
from impasto.models.pickle_reader import Call, Global, Persistent, key_of, read_pickle

LEGACY_HEAD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of the older format begins: the pickle of its magic number."""

# VGG's dictionary takes about 10 KB: this bounds what a hostile file makes us hold.
_HEADER_BYTES = 1 << 20

_TENSOR_CALLS = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"}
_PARAMETER_CALLS = {"torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"}


@dataclass(frozen=True)
class _Storage:
    """A block of float32 values: its key, and how many they are."""

    key: str
    numel: int


@dataclass(frozen=True)
class _View:
    """A tensor as a strided view of a storage; everything in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor's size and strides do not fit together")
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if 0 not in self.shape and (last >= self.storage.numel or math.prod(self.shape) > self.storage.numel):
            raise ValueError("a tensor reaches beyond its storage")


class TorchFile:
    """The float32 tensors of one file by ``torch.save``; making it reads the dictionary, `read` a tensor's values.

    Raises `WeightsError` for a file that is neither format, is cut short, contradicts itself, or holds anything but
    a dictionary of float32 tensors (``torch.save(model)`` writes code; ``torch.save(model.state_dict())`` does not).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors(), path.open("rb") as file:
            legacy = file.read(len(LEGACY_HEAD)) == LEGACY_HEAD
            self._views, self._storage_bytes = _open_legacy(path) if legacy else _open_zip(path)
        self.shapes: Mapping[str, tuple[int, ...]] = {key: view.shape for key, view in self._views.items()}

    def read(self, key: str) -> NDArray[np.float32]:
        """Return a tensor's values; raises `WeightsError` if they are damaged."""
        view = self._views[key]
        with self._errors():
            values = np.frombuffer(self._storage_bytes(view.storage.key), dtype="<f4").astype(np.float32, copy=False)
        strides = tuple(4 * stride for stride in view.strides)
        return np.lib.stride_tricks.as_strided(values[view.offset :], view.shape, strides).copy()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        # RuntimeError: zipfile's way to refuse encrypted entries and unknown compression.
        try:
            yield
        except (ValueError, TypeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
            raise WeightsError(f"weights {str(self._path)!r} are not a readable torch file: {error}") from None


def _open_zip(path: Path) -> tuple[dict[str, _View], Callable[[str], bytes]]:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
        if root is None:
            raise ValueError("the zip file has no data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("the zip file is compressed, which torch.save never does")
        for name in (f"{root}data.pkl", f"{root}byteorder"):
            if name in entries and entries[name].file_size > _HEADER_BYTES:
                raise ValueError(f"{name} is larger than {_HEADER_BYTES} bytes")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("it was written by a big-endian machine")
        views = _views(read_pickle(io.BytesIO(archive.read(f"{root}data.pkl"))))
    for storage in {view.storage for view in views.values()}:
        entry = entries.get(f"{root}data/{storage.key}")
        if entry is None or entry.file_size != 4 * storage.numel:
            raise ValueError(f"storage {storage.key!r} is missing or of the wrong size")

    def storage_bytes(key: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{root}data/{key}")

    return views, storage_bytes


def _open_legacy(path: Path) -> tuple[dict[str, _View], Callable[[str], bytes]]:
    with path.open("rb") as file:
        header = io.BytesIO(file.read(_HEADER_BYTES))
        _magic, protocol, system, dictionary, keys = (read_pickle(header) for _ in range(5))
        if protocol != 1001:
            raise ValueError(f"protocol {protocol!r} is not 1001")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("it was written by a big-endian machine")
        views = _views(dictionary)
        sizes = {view.storage.key: view.storage.numel for view in views.values()}
        if not isinstance(keys, list) or sorted(keys, key=key_of) != sorted(sizes):
            raise ValueError("its storages are not those that its tensors name")
        end = file.seek(0, io.SEEK_END)
        position = header.tell()
        offsets = {}
        for key in keys:
            file.seek(position)
            numel = int.from_bytes(file.read(8), "little")
            offsets[key] = position + 8
            position += 8 + 4 * sizes[key]
            if numel != sizes[key] or position > end:
                raise ValueError(f"storage {key!r} is cut short or of the wrong size")

    def storage_bytes(key: str) -> bytes:
        with path.open("rb") as file:
            file.seek(offsets[key])
            return file.read(4 * sizes[key])

    return views, storage_bytes


def _views(value: Any) -> dict[str, _View]:
    if isinstance(value, Call) and value.name == "collections.OrderedDict":
        # Python 2 gives the pairs to the constructor, Python 3 sets them afterwards.
        pairs = value.args[0] if value.args else []
        value = {key_of(key): item for key, item in pairs} | value.items
    if not isinstance(value, dict):
        raise ValueError(f"it holds {_kind(value)}, not a state dict: save model.state_dict()")
    views = {key: _view(key, item) for key, item in value.items()}
    sizes: dict[str, int] = {}
    for view in views.values():
        if sizes.setdefault(view.storage.key, view.storage.numel) != view.storage.numel:
            raise ValueError(f"storage {view.storage.key!r} has two sizes")
    return views


def _view(key: str, value: Any) -> _View:
    match value:
        case Call(name=name, args=(Persistent(id=storage), offset, tuple(size), tuple(stride), *_)) if (
            name in _TENSOR_CALLS
        ):
            return _View(_storage(key, storage), offset, size, stride)
        case Call(
            name="torch.FloatTensor", args=(), state=(Persistent(id=storage), offset, tuple(size), tuple(stride))
        ):
            return _View(_storage(key, storage), offset, size, stride)
        case Call(name=name, args=(Call() as data, *_)) if name in _PARAMETER_CALLS:
            return _view(key, data)
        case Call(name="torch.nn.parameter.Parameter", args=(), state=(Call() as data, _, _, _, _)):
            return _view(key, data)
    raise ValueError(f"{key!r} is {_kind(value)}, not a tensor: save model.state_dict()")


def _storage(key: str, value: Any) -> _Storage:
    match value:
        case ("storage", Global(name="torch.FloatStorage"), str(name), str(), int(numel), *view) if numel >= 0:
            # A sixth field names a part of a storage that several tensors share; weights of a VGG have none.
            if view in ([], [None]):
                return _Storage(name, numel)
        case ("storage", Global(name=kind), *_) if kind != "torch.FloatStorage":
            raise ValueError(f"{key!r} is of {kind}, must be float32 (save model.float().state_dict())")
    raise ValueError(f"{key!r} has no storage of the known form")


def _kind(value: Any) -> str:
    match value:
        case Call(name=name) | Global(name=name):
            return name
        case Persistent():
            return "a bare storage"
    return type(value).__name__
