"""What is evaluated, and what an evaluation gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from impasto.export.objective import Objective, Targets, coefficients, style_target
from impasto.models.weights import Weights

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Problem:
    """An objective with everything that its value depends on but the image.

    ``objective`` has canonical tap names; ``shape`` is (H, W) of the image.
    """

    objective: Objective
    weights: Weights
    targets: Targets
    shape: tuple[int, int]

    def positions(self, tap: str) -> int:
        """Return the number of positions N of a tap for this shape."""
        return math.prod(self.weights.backbone.grid(tap, self.shape))

    def scale(self) -> float:
        """Return the loss where every feature is zero, without the total variation: a measure for losses."""
        objective, targets = self.objective, self.targets
        positions = {tap: self.positions(tap) for tap in objective.style}
        factors = coefficients(objective, targets, positions, self.shape)
        loss = sum(factors[f"content.{tap}.weight"] * targets.content_energy(tap) for tap in objective.content)
        for tap, count in positions.items():
            loss += factors[f"style.{tap}.weight"] * _energy(style_target(objective, targets, tap, count))
            if tap in targets.means:
                loss += factors[f"style.{tap}.mean.weight"] * _energy(targets.means[tap])
        return loss


@dataclass(frozen=True, slots=True)
class Losses:
    """The objective at one image: each weighted term, and the gradient of their sum.

    ``terms`` has the keys of `Objective.terms`. ``gradient`` is (1, 3, H, W) float32, valid until the next
    evaluation.
    """

    terms: Mapping[str, float]
    gradient: FloatArray

    @property
    def total(self) -> float:
        """The loss: the sum of the terms, in float64."""
        return float(sum(self.terms.values()))


class Evaluator(Protocol):
    """A problem made ready to be evaluated again and again."""

    def evaluate(self, image: FloatArray) -> Losses:
        """Return losses and gradient at ``image``, (1, 3, H, W) float32 in the objective's pixel space."""
        ...


def _energy(target: FloatArray) -> float:
    return float(np.sum(np.square(target, dtype=np.float64)))
