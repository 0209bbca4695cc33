"""The manifest of an export bundle: what is in the folder, and what its graphs expect.

``manifest.json`` is canonical JSON (keys sorted, ASCII, no dates), so that equal exports are equal bytes. A reader
trusts no file that it does not list, and none whose SHA-256 differs.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from impasto.errors import GraphError, ImpastoError
from impasto.export.graph import Dim
from impasto.export.objective import Objective
from impasto.models.backbones import BACKBONES
from impasto.models.conventions import CONVENTIONS

MANIFEST = "manifest.json"
FORMAT = 1
GraphKind = Literal["forward", "fused", "calibration", "slice-forward", "slice-gradient"]


@dataclass(frozen=True)
class TensorRecord:
    """An input or output of a graph: ``dtype`` as NumPy names it; a dimension is a length, a name, or unknown."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class GraphRecord:
    """A graph's file: what it computes, and its SHA-256; ``tap`` is the one that a slice ends at, empty otherwise."""

    file: str
    kind: GraphKind
    tap: str
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    sha256: str


@dataclass(frozen=True)
class TapRecord:
    """A tap: its channels, and how many pixels of the picture one position spans along a side."""

    name: str
    channels: int
    stride: int


@dataclass(frozen=True)
class WeightRecord:
    """A float32 weight of the backbone, as its convention has it: where in the data file, and its shape."""

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class DataRecord:
    """The file that holds the graphs' external data, little-endian; ``tensors`` are the weights among them."""

    file: str
    size: int
    sha256: str
    tensors: tuple[WeightRecord, ...]


@dataclass(frozen=True)
class WeightsRecord:
    """The weights that were exported: the user's name for them, their digest and their convention."""

    name: str
    sha256: str
    convention: str


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about itself.

    ``image`` of every graph is (1, 3, H, W) float32 in the pixel space ``pixels``; ``objective`` has canonical tap
    names; ``preset`` is the name that it has, empty for one of the user's own. ``versions`` are those of the packages
    that wrote the bundle.
    """

    backbone: str
    weights: WeightsRecord
    preset: str
    objective: Objective
    taps: tuple[TapRecord, ...]
    graphs: tuple[GraphRecord, ...]
    data: DataRecord
    opset: int
    ir_version: int
    versions: Mapping[str, str]
    precision: str = "fp32"

    @property
    def pixels(self) -> str:
        """The pixel space of ``image``."""
        return self.objective.pixels

    @property
    def pooling(self) -> str:
        """What the backbone's 2×2 pools compute: max or average."""
        return self.objective.pooling

    @property
    def files(self) -> tuple[str, ...]:
        """Every file of the bundle but the manifest."""
        return (*(graph.file for graph in self.graphs), self.data.file)

    def graph(self, kind: GraphKind, tap: str = "") -> GraphRecord:
        """Return the graph of a kind, for slices the one that ends at a tap; raise `GraphError` if it is not there."""
        for graph in self.graphs:
            if (graph.kind, graph.tap) == (kind, tap):
                return graph
        raise GraphError(f"the bundle has no graph of kind {kind!r}{f' for {tap}' if tap else ''}: export it again")

    def to_bytes(self) -> bytes:
        """Return the manifest as canonical JSON."""
        value = {**asdict(self), "format": FORMAT, "pixels": self.pixels, "pooling": self.pooling}
        return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Return the manifest that `to_bytes` wrote; raise `GraphError` for anything else."""
        try:
            value = _Value(json.loads(data), MANIFEST)
        # RecursionError: brackets without end.
        except (ValueError, RecursionError) as error:
            raise GraphError(f"{MANIFEST} is damaged ({error}): export the bundle again") from None
        found = value["format"].number()
        if found != FORMAT:
            raise GraphError(f"{MANIFEST} has format {found}, this version reads {FORMAT}: export the bundle again")
        return _manifest(value)


def read_manifest(folder: str | Path) -> Manifest:
    """Read a bundle's manifest and check every file that it lists.

    Raises `GraphError`, which names the file, for a folder that is no bundle, a manifest that is damaged or of another
    format, and a file that is missing, a link, or has another size or SHA-256 than it should.
    """
    folder = Path(folder)
    manifest = Manifest.from_bytes(_read(folder, MANIFEST, Path.read_bytes))
    for graph in manifest.graphs:
        _check_digest(folder, graph.file, graph.sha256)
    _check_digest(folder, manifest.data.file, manifest.data.sha256, manifest.data.size)
    return manifest


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(folder: Path, name: str, sha256: str, size: int | None = None) -> None:
    found = _read(folder, name, lambda path: path.stat().st_size)
    if size is not None and found != size:
        raise GraphError(f"{str(folder / name)!r} has {found} bytes, must have {size}: export the bundle again")
    if _read(folder, name, file_digest) != sha256:
        raise GraphError(f"{str(folder / name)!r} is not the file that {MANIFEST} lists: export the bundle again")


_T = TypeVar("_T")


def _read(folder: Path, name: str, read: Callable[[Path], _T]) -> _T:
    try:
        # Neither links, which lead out of the folder, nor pipes, which never end.
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise GraphError(f"{str(folder / name)!r} is not a plain file: export the bundle again")
        return read(folder / name)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL character
        reason = getattr(error, "strerror", None) or error
        raise GraphError(
            f"{str(folder)!r} is not a whole bundle, {name} cannot be read ({reason}): give the folder of an export"
        ) from None


_SHA256 = re.compile(r"[0-9a-f]{64}")
# No separators, no parents, no drives: a manifest names files of its own folder only.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class _Value:
    """A JSON value and where in the manifest it stands, for what an error says."""

    def __init__(self, value: Any, where: str) -> None:
        self.value = value
        self.where = where

    def __getitem__(self, key: str) -> _Value:
        if not isinstance(self.value, dict) or key not in self.value:
            raise GraphError(f"{self.where} has no {key!r}: export the bundle again")
        return _Value(self.value[key], f"{self.where}: {key}")

    def __iter__(self) -> Iterator[_Value]:
        if not isinstance(self.value, list):
            raise self.error("a list")
        return (_Value(item, f"{self.where}[{index}]") for index, item in enumerate(self.value))

    def text(self, known: Mapping[str, object] | tuple[str, ...] | None = None) -> str:
        if not isinstance(self.value, str) or (known is not None and self.value not in known):
            raise self.error("text" if known is None else f"one of {', '.join(known)}")
        return self.value

    def matching(self, pattern: re.Pattern[str], what: str) -> str:
        if not isinstance(self.value, str) or not pattern.fullmatch(self.value):
            raise self.error(what)
        return self.value

    def file(self) -> str:
        return self.matching(_FILE, "a file name without folders")

    def sha256(self) -> str:
        return self.matching(_SHA256, "a SHA-256 in hexadecimal")

    def number(self) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < 0:
            raise self.error("a whole number, zero or more")
        return self.value

    def mapping(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.error("an object")
        return self.value

    def error(self, must: str) -> GraphError:
        return GraphError(f"{self.where} is {self.value!r:.80}, must be {must}: export the bundle again")


def _manifest(value: _Value) -> Manifest:
    weights, data = value["weights"], value["data"]
    try:
        objective = Objective(**value["objective"].mapping())
    # What a field that is unknown, missing or of another type comes to.
    except (ImpastoError, TypeError, ValueError, AttributeError) as error:
        raise GraphError(f"{MANIFEST}: objective cannot be used ({error}): export the bundle again") from None
    return Manifest(
        backbone=value["backbone"].text(BACKBONES),
        weights=WeightsRecord(
            weights["name"].text(), weights["sha256"].sha256(), weights["convention"].text(CONVENTIONS)
        ),
        preset=value["preset"].text(),
        objective=objective,
        taps=tuple(TapRecord(t["name"].text(), t["channels"].number(), t["stride"].number()) for t in value["taps"]),
        graphs=tuple(_graph(graph) for graph in value["graphs"]),
        data=DataRecord(
            file=data["file"].file(),
            size=data["size"].number(),
            sha256=data["sha256"].sha256(),
            tensors=tuple(
                WeightRecord(t["name"].text(), tuple(d.number() for d in t["shape"]), t["offset"].number())
                for t in data["tensors"]
            ),
        ),
        opset=value["opset"].number(),
        ir_version=value["ir_version"].number(),
        versions={name: _Value(text, f"versions: {name}").text() for name, text in value["versions"].mapping().items()},
        precision=value["precision"].text(("fp32",)),
    )


def _graph(value: _Value) -> GraphRecord:
    kind = value["kind"].text(get_args(GraphKind))
    return GraphRecord(
        file=value["file"].file(),
        kind=kind,  # type: ignore[arg-type]
        tap=value["tap"].text(),
        inputs=tuple(_tensor(item) for item in value["inputs"]),
        outputs=tuple(_tensor(item) for item in value["outputs"]),
        sha256=value["sha256"].sha256(),
    )


def _tensor(value: _Value) -> TensorRecord:
    shape: list[Dim] = []
    for dim in value["shape"]:
        shape.append(dim.value if dim.value is None or isinstance(dim.value, str) else dim.number())
    return TensorRecord(value["name"].text(), value["dtype"].text(), tuple(shape))
