"""What a job gives back."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from impasto.runtime.job_spec import JobSpec
from impasto.runtime.schema import About
from impasto.runtime.write_image import encode_image, write_image

Stop = Literal["done", "interrupted", "stopped"]


@dataclass(frozen=True, slots=True)
class TracePoint:
    """One evaluation in a result's trace; see `impasto.runtime.loop.Step`."""

    iteration: int
    evaluation: int
    seconds: float
    loss: float


class TraceJson(TypedDict):
    """A `TracePoint` as JSON types."""

    iteration: int
    evaluation: int
    seconds: float
    loss: Annotated[float | None, About("Null where the evaluation failed.")]


class ResultJson(TypedDict):
    """A `Result` as JSON types."""

    output: Annotated[str | None, About("Where the picture was written.")]
    size: Annotated[list[int], About("Width and height in pixels.")]
    preset: str
    backend: str
    precision: str
    plan: str
    weights: Annotated[dict[str, str], About("Their name and their sha256.")]
    taps: Annotated[dict[str, list[str]], About("Those with a content and with a style term.")]
    loss: Annotated[dict[str, float], About("total, and the sums content, style and tv that add up to it.")]
    terms: Annotated[dict[str, float], About("Each term, weighted, at the best iterate.")]
    trace: list[TraceJson]
    seconds: float
    peak_memory_bytes: int | None
    seed: int
    versions: dict[str, str]
    stop: Stop
    notes: list[str]
    job: Annotated[dict[str, Any], JobSpec, About("Paints the same picture again: impasto stylize --config.")]


@dataclass(frozen=True, eq=False)
class Result:
    """A painting and how it came about.

    ``image`` is (H, W, 3) float32 RGB in 0–1; ``alpha`` the content picture's opacity, (H, W), or None. ``loss`` holds
    ``total`` and the weighted sums ``content``, ``style`` and ``tv`` that add up to it, and ``terms`` each term, at the
    best iterate. ``taps`` are those with a content and with a style term. ``seconds`` is the whole job's,
    ``peak_memory_bytes`` the process's, None where the system does not tell. ``job`` paints it again: JSON types of a
    `JobSpec`.
    """

    image: NDArray[np.float32]
    alpha: NDArray[np.float32] | None
    preset: str
    backend: str
    precision: str
    plan: str
    weights: Mapping[str, str]
    taps: Mapping[str, list[str]]
    loss: Mapping[str, float]
    terms: Mapping[str, float]
    trace: tuple[TracePoint, ...]
    seconds: float
    peak_memory_bytes: int | None
    seed: int
    versions: Mapping[str, str]
    stop: Stop
    notes: tuple[str, ...]
    job: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.shape[1], self.image.shape[0]

    def save(self, path: str | os.PathLike[str], *, quality: int = 95, overwrite: bool = False) -> None:
        """Write the picture, in the format of the path's suffix; raises as `write_image` does."""
        write_image(path, self.image, self.alpha, quality=quality, overwrite=overwrite)

    def to_json(self, output: str | None = None) -> ResultJson:
        """Return everything but the pixels as JSON types; ``output`` is where the picture was written.

        JSON has no NaN or infinity: the loss of an evaluation that failed is None.
        """
        return {
            "output": output,
            "size": list(self.size),
            "preset": self.preset,
            "backend": self.backend,
            "precision": self.precision,
            "plan": self.plan,
            "weights": dict(self.weights),
            "taps": {kind: list(taps) for kind, taps in self.taps.items()},
            "loss": dict(self.loss),
            "terms": dict(self.terms),
            "trace": [
                {
                    "iteration": p.iteration,
                    "evaluation": p.evaluation,
                    "seconds": p.seconds,
                    "loss": p.loss if math.isfinite(p.loss) else None,
                }
                for p in self.trace
            ],
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "seed": self.seed,
            "versions": dict(self.versions),
            "stop": self.stop,
            "notes": list(self.notes),
            "job": dict(self.job),
        }

    def _repr_png_(self) -> bytes:
        return encode_image(self.image, "png", self.alpha)


def sums(terms: Mapping[str, float]) -> dict[str, float]:
    """Return ``total``, ``content``, ``style`` and ``tv`` of weighted terms, in float64."""
    parts = {
        kind: float(sum(value for name, value in terms.items() if name.split(".")[0] == kind))
        for kind in ("content", "style", "tv")
    }
    return {"total": sum(parts.values()), **parts}


def peak_memory() -> int | None:
    """Return the largest resident size of this process so far, in bytes, or None where the system does not tell."""
    try:
        # On Linux getrusage's figure starts at the size of the process that started this one.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
