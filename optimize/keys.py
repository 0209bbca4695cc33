"""Engine keys: everything that a compiled graph depends on, so that a cached one is used only where it is right."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from impasto.errors import EngineError

FORMAT = 1
"""Version of the key's JSON and of the cache's layout; being part of the digest, a new one misses the old engines."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

# Linux lists over a hundred flags, many of them about mitigations and power, which come and go with kernels and
# microcode; only those that name computing instructions decide what a compiler or a layout optimiser emits.
_COMPUTING_FLAG = re.compile(
    r"sse|ssse|avx|fma|f16c|bmi|amx|gfni|vaes"  # x86
    r"|asimd|neon|fp$|fphp|sve|sme(?!p)|i8mm|bf16|dotprod"  # Arm (smep is an x86 protection)
    r"|rv\d"  # RISC-V: one word holds all extensions
)


def canonical_json(value: object) -> bytes:
    """Return the one JSON text of a value, in ASCII: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


@functools.cache
def cpu() -> Mapping[str, str]:
    """Return what a CPU engine depends on: ``system``, ``architecture``, ``model`` and ``features``.

    ``features`` are the instruction sets, sorted, from ``/proc/cpuinfo`` where there is one (its first processor
    stands for all); elsewhere they are empty and the model alone tells machines apart. Read once a process.
    """
    try:
        facts = _cpuinfo(Path("/proc/cpuinfo").read_text("utf-8", errors="replace"))
    except OSError:
        facts = {"model": platform.processor(), "features": ""}
    return {"system": platform.system(), "architecture": platform.machine(), **facts}


@dataclass(frozen=True)
class EngineKey:
    """What one engine was made from and for; two equal keys stand for interchangeable engines.

    ``kind`` names the compiler (``onnxruntime``); ``graph`` is the SHA-256, 64 hexadecimal digits, of the ONNX
    bytes, and ``weights`` that of the weights (`impasto.models.weights.Weights.sha256`), empty where the graph's
    bytes hold them; ``shape`` is the input's, (1, 3, H, W), or empty for an engine whose height and width stay
    free; ``precision`` is the exported graph's (``fp32``, ``fp16``, ``bf16``). ``options`` are the compiler's
    settings, ``versions`` the full versions of compiler and exporter, ``machine`` the hardware (the CPU by
    default; a GPU's backend gives its own), each mapping names to text in any order.

    Raises `EngineError` for digests, shapes or mappings of another form.
    """

    kind: str
    graph: str
    weights: str
    shape: tuple[int, ...]
    precision: str
    options: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=cpu)

    def __post_init__(self) -> None:
        for name in ("kind", "precision"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise EngineError(f"engine key: {name} is {value!r}, must be a name")
        for name in ("graph", "weights"):
            value = getattr(self, name)
            if not isinstance(value, str) or not (_SHA256.fullmatch(value) or (name == "weights" and not value)):
                raise EngineError(f"engine key: {name} is {value!r}, must be a SHA-256 in hexadecimal")
        # Own copies: NumPy's integers do not go to JSON, and the caller may change a dict later.
        object.__setattr__(self, "shape", _lengths(self.shape))
        for name in ("options", "versions", "machine"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """SHA-256 of the key's canonical JSON, 64 hexadecimal digits: the engine's name in the cache."""
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the key as JSON types."""
        return {"format": FORMAT, **asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Any) -> EngineKey:
        """Return the key that `to_json` wrote; raise `EngineError` for anything else."""
        names = {item.name for item in fields(cls)}
        if not isinstance(value, dict) or set(value) != names | {"format"} or value["format"] != FORMAT:
            raise EngineError(f"engine key: {value!r:.80} was not written by this version: clear the engine cache")
        return cls(**{name: value[name] for name in names})


def _cpuinfo(text: str) -> dict[str, str]:
    first = text.strip().split("\n\n")[0]
    facts = {}
    for line in first.splitlines():
        name, _, value = line.partition(":")
        facts[name.strip()] = value.strip()
    # x86 has the model's name; Arm gives numbers for it, RISC-V the microarchitecture.
    model = facts.get("model name") or " ".join(
        facts[name] for name in ("CPU implementer", "CPU part", "uarch") if name in facts
    )
    flags = facts.get("flags") or facts.get("Features") or facts.get("isa") or ""
    return {"model": model, "features": " ".join(sorted(set(filter(_COMPUTING_FLAG.match, flags.split()))))}


def _lengths(shape: Iterable[int]) -> tuple[int, ...]:
    try:
        lengths = tuple(operator.index(length) for length in shape)
    except TypeError:
        lengths = (0,)
    if any(length < 1 for length in lengths):
        raise EngineError(f"engine key: shape is {shape!r}, must be positive integers")
    return lengths


def _texts(name: str, mapping: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(mapping, Mapping) or not all(isinstance(text, str) for pair in mapping.items() for text in pair):
        raise EngineError(f"engine key: {name} is {mapping!r:.80}, must map names to text")
    return dict(sorted(mapping.items()))
