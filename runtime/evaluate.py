"""Evaluation of a picture as it is: the loss terms and the pixel gradient that a painting would see there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from impasto.runtime.images import Sizing, resize
from impasto.runtime.painting import style_size
from impasto.runtime.problem import FloatArray, Problem
from impasto.runtime.read_image import Source, read_image
from impasto.runtime.result import sums
from impasto.runtime.stylizer import Stylizer
from impasto.runtime.targets import encoded, measure_targets


@dataclass(frozen=True, eq=False)
class Evaluated:
    """An objective at one picture.

    ``terms`` are the weighted terms (`Objective.terms`), ``loss`` their sums: ``total``, ``content``, ``style`` and
    ``tv``. ``gradient`` is (3, H, W) float32, of the total with respect to the picture in the pixel space ``pixels``.
    ``size`` is its width and height. The other fields are those of `impasto.runtime.result.Result`.
    """

    terms: Mapping[str, float]
    loss: Mapping[str, float]
    gradient: FloatArray
    pixels: str
    size: tuple[int, int]
    preset: str
    backend: str
    plan: str
    precision: str
    weights: Mapping[str, str]
    taps: Mapping[str, list[str]]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the gradient as JSON types."""
        return {
            "size": list(self.size),
            "preset": self.preset,
            "backend": self.backend,
            "precision": self.precision,
            "plan": self.plan,
            "weights": dict(self.weights),
            "taps": {kind: list(taps) for kind, taps in self.taps.items()},
            "pixels": self.pixels,
            "loss": dict(self.loss),
            "terms": dict(self.terms),
            "notes": list(self.notes),
        }


def evaluate(
    stylizer: Stylizer, image: Source, content: Source, style: Source, *, sizing: Sizing | None = None
) -> Evaluated:
    """Evaluate the stylizer's objective at ``image``, as it stands: it is not resampled, and gives the size.

    Pictures are read as by `Stylizer.steps`. The content picture is resized to the image's width and height; the style
    picture too, or by ``sizing``, as the preset says. ``sizing`` is by default the image's long side; to see what a
    painting saw that was sized by another rule, give that. A preset's margin is no part of a picture and is left out.

    Raises as `Stylizer.steps` does: `ImageError`, `LimitError`, and `UsageError` while the stylizer paints.
    """
    preset, limits, weights = stylizer.preset, stylizer.limits, stylizer.weights
    pictures = [read_image(source, limits) for source in (image, content, style)]
    limits.check_long_side(*pictures[0].size)
    size = pictures[0].size
    beside = style_size(preset, pictures[2], size, sizing or Sizing("long", max(size)))
    objective = preset.objective_at(weights, size[::-1], beside[::-1])
    with stylizer.exclusive():
        targets = measure_targets(
            stylizer.backend,
            weights,
            objective,
            resize(pictures[1].rgb, size),
            resize(pictures[2].rgb, beside),
            stylizer.plan or "fused",
        )
        problem = Problem(objective, weights, targets, (size[1], size[0]))
        plan = stylizer.plan or stylizer.backend.plan_for(problem)
        losses = stylizer.backend.prepare(problem, plan).evaluate(encoded(objective, pictures[0].rgb))
        gradient = losses.gradient[0].copy()
    return Evaluated(
        terms=dict(losses.terms),
        loss=sums(losses.terms),
        gradient=gradient,
        pixels=objective.pixels,
        size=size,
        preset=preset.name,
        backend=stylizer.backend.name,
        plan=plan,
        precision=stylizer.backend.precision,
        weights={"name": weights.name, "sha256": weights.sha256},
        taps={"content": list(objective.content), "style": list(objective.style)},
        notes=(*stylizer.notes, *(note for picture in pictures for note in picture.notes)),
    )
