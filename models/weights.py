"""Weights: a value that knows its backbone, its convention and its digest, checked when made.

On disk they are safetensors with the metadata ``backbone`` and ``convention`` and the tensors of the backbone's layers
under their names, ``conv1_1.weight`` (OIHW, float32) and ``conv1_1.bias`` (O, float32). A file may stop after any
layer; the taps above are missing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from impasto.errors import MissingTapError, OutputError, StorageError, WeightsError
from impasto.models.backbones import BACKBONES, Backbone, backbone
from impasto.models.conventions import CONVENTIONS, PixelSpace
from impasto.models.layers import Layer
from impasto.models.sources import SOURCES
from impasto.models.taps import resolve_tap

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one backbone, all of them or those up to some layer.

    ``tensors`` maps the names that the layers give (``<conv>.weight``, OIHW, …) to finite float32 arrays; ``sha256`` is
    the digest of the tensors' names, shapes and bytes together with backbone and convention; ``name`` is how the user
    knows them. Raises `WeightsError` when keys, shapes, types or values are not what the backbone needs.
    """

    name: str
    backbone: Backbone
    convention: PixelSpace
    tensors: Mapping[str, FloatArray]
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS.values():
            raise WeightsError(
                f"weights {self.name!r}: {self.convention.name!r} is not a convention of weights, "
                f"must be one of {', '.join(CONVENTIONS)}"
            )
        _check(self.name, self.backbone, self.tensors)
        object.__setattr__(self, "sha256", _digest(self))

    @property
    def last(self) -> str:
        """The last layer that these weights cover."""
        return next(layer.name for layer in reversed(self.backbone.layers) if self._covers(layer) and layer.tensors())

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps that these weights reach, in the order of the data."""
        return tuple(layer.name for layer in takewhile(self._covers, self.backbone.layers))

    def _covers(self, layer: Layer) -> bool:
        return all(name in self.tensors for name in layer.tensors())

    def require(self, tap: str) -> str:
        """Return the canonical name of a tap that these weights reach.

        Raises `UnknownNameError` for a tap that the backbone does not have, `MissingTapError` for one above the
        last layer of these weights.
        """
        canonical = resolve_tap(self.backbone, tap)
        if canonical not in self.taps:
            net = self.backbone.name
            whole = f"fetch full weights (impasto weights fetch {net})" if net in SOURCES else "use full weights"
            raise MissingTapError(
                f"tap {tap!r} needs weights beyond {self.last}, where {self.name!r} ends: "
                f"choose among {', '.join(self.taps)}, or {whole}"
            )
        return canonical


def load_weights(path: str | Path, name: str | None = None) -> Weights:
    """Read a safetensors weights file.

    Raises `WeightsError` when the file cannot be read, its metadata lacks ``backbone`` or ``convention``, or its
    tensors are not finite float32 arrays of the shapes that the backbone has.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    name = name or path.name
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys())}
    except FileNotFoundError:
        raise WeightsError(f"weights {str(path)!r} do not exist: give a file, or a name") from None
    # TypeError: a type that NumPy lacks, such as bfloat16.
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"weights {str(path)!r} are not a readable safetensors file: {error} (impasto weights convert reads others)"
        ) from None
    for field, known in (("backbone", BACKBONES), ("convention", CONVENTIONS)):
        if metadata.get(field) not in known:
            raise WeightsError(
                f"weights {str(path)!r}: metadata {field!r} is {metadata.get(field)!r}, must be one of "
                f"{', '.join(known)} (impasto weights convert writes it)"
            )
    return Weights(name, backbone(metadata["backbone"]), CONVENTIONS[metadata["convention"]], tensors)


def save_weights(weights: Weights, path: str | Path) -> None:
    """Write weights as safetensors, byte for byte the same for the same weights; an existing file is replaced whole.

    Raises `StorageError` when no space is left, `OutputError` when the file cannot be written there.
    """
    path = Path(path)
    # A hidden name of its own: a killed process leaves at most that, and never a half-written file under the real one.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(_header(weights))
                for key in sorted(weights.tensors):
                    file.write(np.ascontiguousarray(weights.tensors[key], dtype="<f4").data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"no space left for weights {str(path)!r}: free some, or choose another folder"
            ) from None
        raise OutputError(f"cannot write weights {str(path)!r}: {error.strerror or error}") from None


def _header(weights: Weights) -> bytes:
    # safetensors' own writer orders the metadata at random, so the header is written here: its length (uint64, little
    # endian), then JSON padded with spaces to a multiple of 8.
    header: dict[str, object] = {
        "__metadata__": {"backbone": weights.backbone.name, "convention": weights.convention.name}
    }
    position = 0
    for key in sorted(weights.tensors):
        tensor = weights.tensors[key]
        end = position + 4 * tensor.size
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _check(name: str, backbone: Backbone, tensors: Mapping[str, FloatArray]) -> None:
    expected = {name: shape for layer in backbone.layers for name, shape in layer.tensors().items()}
    foreign = sorted(set(tensors) - set(expected))
    if foreign:
        raise WeightsError(f"weights {name!r}: {backbone.name} has no tensor {foreign[0]!r}")
    keys = list(expected)
    present = [key for key in keys if key in tensors]
    if not present or len(present) % 2 or present != keys[: len(present)]:
        missing = next(key for key in keys if key not in tensors)
        raise WeightsError(
            f"weights {name!r}: tensor {missing!r} is missing (weights may stop early, but not skip a layer)"
        )
    for key in present:
        tensor = tensors[key]
        if tensor.dtype != np.float32:
            raise WeightsError(f"weights {name!r}: {key} is {tensor.dtype}, must be float32")
        if tensor.shape != expected[key]:
            raise WeightsError(
                f"weights {name!r}: {key} has shape {tensor.shape}, {backbone.name} needs {expected[key]}"
            )
        if not np.isfinite(tensor).all():
            raise WeightsError(f"weights {name!r}: {key} holds values that are not finite (NaN or infinity)")


def _digest(weights: Weights) -> str:
    digest = hashlib.sha256(f"{weights.backbone.name} {weights.convention.name}".encode())
    for key in sorted(weights.tensors):
        tensor = np.ascontiguousarray(weights.tensors[key])
        digest.update(f"{key} {tensor.shape}".encode())
        digest.update(tensor.data)
    return digest.hexdigest()
