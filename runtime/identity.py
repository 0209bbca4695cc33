"""What a job is, as far as its pixels depend on it: a checkpoint is taken up by the same job only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from impasto.errors import UsageError
from impasto.optimize.cpus import available_cpus
from impasto.optimize.keys import cpu
from impasto.runtime.backends.protocol import Backend
from impasto.runtime.images import Picture

if TYPE_CHECKING:
    from impasto.runtime.painting import Job

REPEATABLE = ("onnxruntime", "openvino", "torch")
"""Backends whose evaluations give the same bits for the same image, in another process too."""

_SHOWN = 3
"""How many differences a message names."""
_SHORT = 40
"""Longest value that a message shows."""


def check_repeatable(backend: Backend) -> None:
    """Raise `UsageError` for a backend whose paintings cannot be resumed to the same bits.

    On a GPU sums may be taken in another order each time, and the solver's vectors are the device's. The scale of
    fp16's gradient depends on the evaluations before.
    """
    if backend.name not in REPEATABLE:
        raise UsageError(
            f"backend {backend.name} has no checkpoints: leave out the checkpoint, or take one of "
            f"{', '.join(REPEATABLE)}"
        )
    if backend.precision == "fp16":
        raise UsageError("precision fp16 has no checkpoints: leave out the checkpoint, or take fp32 or bf16")


def identity(job: Job, backend: Backend, versions: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that the job's pixels depend on, as JSON types; pictures are there by their pixels' SHA-256."""
    found = {
        "content": picture_digest(job.content),
        "style": picture_digest(job.style),
        "start": None if job.start is None else picture_digest(job.start),
        "preset": job.preset.to_json(),
        "weights": job.weights.sha256,
        "sizing": asdict(job.sizing),
        "seed": job.seed,
        "backend": backend.name,
        "precision": backend.precision,
        "plan": job.plan,
        # By it the plan tiled chooses its windows, and with them the order of sums.
        "tile_memory": job.tile_memory if job.plan == "tiled" else None,
        "threads": job.threads or available_cpus(),
        "versions": dict(versions),
        "cpu": dict(cpu()),
    }
    # JSON has no tuples: as it will be read again.
    value: dict[str, Any] = json.loads(json.dumps(found))
    return value


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Return in words how two identities differ, None if they do not: ``seed is 1 there and 2 here``."""
    old, new = _flat(there), _flat(here)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not names:
        return None
    told = []
    for name in names[:_SHOWN]:
        values = [json.dumps(values.get(name)) for values in (old, new)]
        short = max(map(len, values)) <= _SHORT
        told.append(f"{name} is {values[0]} there and {values[1]} here" if short else f"{name} differs")
    more = len(names) - len(told)
    return ", ".join(told) + (f", and {more} more" if more else "")


def picture_digest(picture: Picture) -> str:
    """Return the SHA-256 of a picture's pixels, opacity and shape, as hexadecimal digits."""
    digest = hashlib.sha256()
    for plane in (picture.pixels, picture.alpha):
        if plane is not None:
            digest.update(repr(plane.shape).encode())
            digest.update(np.ascontiguousarray(plane).data)
    return digest.hexdigest()


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {prefix + name: item}
    return flat
