"""The format of checkpoints: safetensors with a digest, written and read array by array.

The file is an ordinary safetensors file. Its metadata has ``format``, ``sha256`` and ``state``, which is JSON. The
digest is that of the whole file with zeros for its own digits. Own code, since safetensors' writer makes a second copy
of everything in memory and its reader maps the file, and what is saved here may be half of what the machine has.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from impasto.errors import CheckpointError
from impasto.runtime.solvers.vectors import chunks

FORMAT = "impasto checkpoint 1"

_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
_NO_DIGEST = b"0" * 64
_LONGEST_HEADER = 100 * 2**20  # safetensors' own limit
_BLOCK = 2**20


def write_checkpoint(file: BinaryIO, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a state of JSON types, its floats finite or not, and contiguous float32 and float64 arrays."""
    header = _header(state, arrays)
    digest = hashlib.sha256(header)
    file.write(header)
    for array in arrays.values():
        for (part,) in chunks(array.reshape(-1)):
            data = part.astype(_TYPES[_type(array)], copy=False).data
            digest.update(data)
            file.write(data)
    file.seek(header.index(_NO_DIGEST))
    file.write(digest.hexdigest().encode())


class CheckpointArrays(Mapping[str, NDArray[Any]]):
    """The arrays of a checkpoint, each read from the file when it is asked for."""

    def __init__(self, path: Path, data: int, entries: Mapping[str, Any]) -> None:
        self._path, self._data, self._entries = path, data, entries

    def __getitem__(self, name: str) -> NDArray[Any]:
        entry = self._entries[name]
        kind, (begin, end) = _TYPES[entry["dtype"]], entry["data_offsets"]
        values: NDArray[Any] = np.fromfile(self._path, kind, (end - begin) // kind.itemsize, offset=self._data + begin)
        return values.reshape(entry["shape"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], CheckpointArrays]:
    """Return the state and the arrays of a checkpoint whose digest is right; None of the latter is read yet.

    Raises `CheckpointError` for a file that cannot be read, is none, or is damaged; it is left as it is.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(file, path)
            fields = json.loads(header[8:])
            metadata = fields.pop("__metadata__")
            length = max(entry["data_offsets"][1] for entry in fields.values())
            size = os.fstat(file.fileno()).st_size
            if size != len(header) + length:
                raise CheckpointError(
                    f"checkpoint {str(path)!r} is damaged: it has {size} bytes and must have {len(header) + length}; "
                    "remove it to start anew"
                )
            digest = hashlib.sha256(header.replace(metadata["sha256"].encode(), _NO_DIGEST, 1))
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} cannot be read ({error.strerror}): see to that") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _foreign(path) from None
    if digest.hexdigest() != metadata["sha256"]:
        raise CheckpointError(
            f"checkpoint {str(path)!r} is damaged: its SHA-256 is not the one it says; remove it to start anew"
        )
    return json.loads(metadata["state"]), CheckpointArrays(path, len(header), fields)


def _header(state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    # The digest comes before all that could hold as many zeros.
    metadata = {"format": FORMAT, "sha256": _NO_DIGEST.decode(), "state": json.dumps(state)}
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for name, array in arrays.items():
        end = position + array.nbytes
        header[name] = {"dtype": _type(array), "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _type(array: NDArray[Any]) -> str:
    return {4: "F32", 8: "F64"}[array.itemsize]


def _read_header(file: BinaryIO, path: Path) -> bytes:
    """Return the header, its length included, of a file that begins as a checkpoint does."""
    length = file.read(8)
    count = int.from_bytes(length, "little")
    opening = f'{{"__metadata__":{{"format":"{FORMAT}"'.encode()
    if count > _LONGEST_HEADER or file.read(len(opening)) != opening:
        raise _foreign(path)
    rest = file.read(count - len(opening))
    if len(rest) < count - len(opening):
        raise CheckpointError(f"checkpoint {str(path)!r} is damaged: it ends too early; remove it to start anew")
    return length + opening + rest


def _foreign(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{str(path)!r} is no checkpoint that this version of Impasto can read: give another file, or remove it"
    )
