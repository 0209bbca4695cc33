"""Opens the files that weights are passed around in, whichever it is, as named float arrays in OIHW order.

Shapes are known before values are read, so that a reader can refuse a file without holding it.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from impasto.errors import UnavailableError, WeightsError
from impasto.models.conventions import CAFFE, TORCHVISION, PixelSpace
from impasto.models.torch_file import LEGACY_HEAD, TorchFile


class TensorFile(Protocol):
    """Named arrays in a file: their shapes at once, their values on demand."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor by its name, such as ``features.0.weight`` or ``conv1_1.bias``."""

    def read(self, key: str) -> NDArray[Any]:
        """Return one tensor; raises `WeightsError` when it is damaged."""


def open_tensor_file(path: Path) -> tuple[TensorFile, PixelSpace | None]:
    """Open a weights file by what it holds, not by its suffix; also return the convention its format defines, if any.

    - a state dict by ``torch.save``: the convention is torchvision's;
    - HDF5 in the layout of Keras applications: Caffe's (Keras' preprocessing flips to BGR, its kernels are BGR
      already); HWIO kernels come out as OIHW;
    - a NumPy archive (``.npz``) and safetensors: none.

    Raises `WeightsError` for a file that is none of these or cannot be read, `UnavailableError` for HDF5 without h5py.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f"weights {str(path)!r} cannot be read: {error.strerror}") from None
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return KerasFile(path), CAFFE
    if head.startswith(b"PK\x03\x04"):
        if _is_npz(path):
            return NpzFile(path), None
        return TorchFile(path), TORCHVISION
    if head.startswith(LEGACY_HEAD):
        return TorchFile(path), TORCHVISION
    if head[8:9] == b"{":
        return SafetensorsFile(path), None
    raise WeightsError(f"weights {str(path)!r} are neither a torch, Keras, NumPy (.npz) nor safetensors file")


class NpzFile:
    """A NumPy archive; Caffe's ``conv1_1_W`` and ``conv1_1_b`` are taken as ``conv1_1.weight`` and ``conv1_1.bias``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, str] = {}
        shapes = {}
        with _damage(path, "NumPy archive"), zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                key = re.sub("_(W|b)$", _torch_suffix, entry.removesuffix(".npy"))
                with archive.open(entry) as file:
                    version = np.lib.format.read_magic(file)
                    header = {
                        (1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0,
                    }[version]
                    shapes[key] = header(file)[0]
                self._entries[key] = entry
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def read(self, key: str) -> NDArray[Any]:
        """Return one array; raises `WeightsError` when it is cut short or holds Python objects."""
        with _damage(self._path, "NumPy archive"), zipfile.ZipFile(self._path) as archive:
            with archive.open(self._entries[key]) as file:
                array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
            return array


class SafetensorsFile:
    """A safetensors file of any origin, with or without our metadata."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._path = path
        with _damage(path, "safetensors file"), safe_open(path, framework="numpy") as file:
            self.shapes: Mapping[str, tuple[int, ...]] = {
                key: tuple(file.get_slice(key).get_shape())
                for key in file.keys()  # noqa: SIM118 (not a dict)
            }

    def read(self, key: str) -> NDArray[Any]:
        """Return one array; raises `WeightsError` for types that NumPy does not have (bfloat16, float8)."""
        from safetensors import safe_open

        with _damage(self._path, "safetensors file"), safe_open(self._path, framework="numpy") as file:
            array: NDArray[Any] = file.get_tensor(key)
            return array


class KerasFile:
    """HDF5 in the layout of Keras 2 applications: a group a layer, at the root or under ``model_weights``.

    A convolution's group holds, at any depth, one kernel (HWIO) and one bias, which are told apart by their rank; their
    names changed over the years (``block1_conv1_W_1:0``, ``kernel:0``). Here they are ``block1_conv1.weight`` (OIHW)
    and ``block1_conv1.bias``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._datasets: dict[str, str] = {}
        shapes = {}
        with self._open() as file:
            root = file.get("model_weights", file)
            for layer in root:
                if not re.fullmatch(r"block\d_conv\d", layer):
                    continue
                for dataset in _datasets(root[layer]):
                    shape = dataset.shape
                    part = {4: "weight", 1: "bias"}.get(len(shape))
                    key = f"{layer}.{part}"
                    if part is None or key in shapes:
                        raise WeightsError(
                            f"weights {str(path)!r}: layer {layer!r} must hold one kernel and one bias, "
                            f"but {dataset.name!r} of shape {shape} is another"
                        )
                    shapes[key] = (shape[3], shape[2], shape[0], shape[1]) if part == "weight" else shape
                    self._datasets[key] = dataset.name
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def read(self, key: str) -> NDArray[Any]:
        """Return one array, kernels in OIHW order; raises `WeightsError` when it is damaged."""
        with self._open() as file:
            array: NDArray[Any] = file[self._datasets[key]][()]
            return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            import h5py
        except ImportError:
            raise UnavailableError(
                f"reading Keras weights {str(self._path)!r} needs h5py: pip install 'impasto[keras]'"
            ) from None
        with _damage(self._path, "Keras file"), h5py.File(self._path, "r") as file:
            yield file


def _datasets(group: Any) -> list[Any]:
    import h5py

    found: list[Any] = []
    group.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


def _torch_suffix(match: re.Match[str]) -> str:
    return {"W": ".weight", "b": ".bias"}[match[1]]


def _is_npz(path: Path) -> bool:
    with _damage(path, "zip file (.npz, .pth)"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        return bool(names) and all(name.endswith(".npy") for name in names)


@contextmanager
def _damage(path: Path, kind: str) -> Iterator[None]:
    # Each library has errors of its own for a damaged file (and h5py uses RuntimeError and KeyError), hence the width.
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"weights {str(path)!r} are not a readable {kind}: {error}") from None
