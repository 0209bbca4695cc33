"""The objective: which content, style and total-variation terms are descended, and how each is normalised.

Graphs do not depend on most of this. They compute ``c·Σ(F - P)²``, ``c·Σ(G - A)²`` with ``G = F·Fᵀ/N`` (or with the
covariance, and the same of the mean), and a total variation, whose scalars c are inputs; `coefficients` computes them
for a recipe, so that changing a weight or a normalisation needs no new export.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from impasto.errors import UsageError
from impasto.export.forward import POOLINGS, Pooling
from impasto.models.conventions import PIXEL_SPACES
from impasto.models.weights import Weights

FloatArray = NDArray[np.float32]

ContentNorm = Literal["mean", "sum", "half-sum", "relative"]
GramNorm = Literal["positions", "elements", "none"]
StyleNorm = Literal["sum", "mean", "gatys", "image", "relative"]
TvForm = Literal["squared", "power", "absolute"]
Statistic = Literal["gram", "covariance"]

CONTENT_NORMS: tuple[ContentNorm, ...] = ("mean", "sum", "half-sum", "relative")
GRAM_NORMS: tuple[GramNorm, ...] = ("positions", "elements", "none")
STYLE_NORMS: tuple[StyleNorm, ...] = ("sum", "mean", "gatys", "image", "relative")
TV_FORMS: tuple[TvForm, ...] = ("squared", "power", "absolute")
STATISTICS: tuple[Statistic, ...] = ("gram", "covariance")

MEAN_SHARE = 0.75
"""Of the mean in the covariance's term; measured (`docs/decisions/0008-filter-bank-recipe.md`)."""


@dataclass(frozen=True)
class Objective:
    """What is descended, up to pictures: taps, weights and normalisations.

    With F a tap of C channels and N positions, P and A the targets, and G the Gram matrix of the recipe:

    - ``content``: tap → weight w. The term is ``w·mean((F-P)²)``, ``w·Σ(F-P)²``, ``w·½Σ(F-P)²`` or
      ``w·Σ(F-P)²/ΣP²`` (``content_norm`` mean, sum, half-sum, relative).
    - ``style``: tap → weight w. G is F·Fᵀ over N, over C·N, or over nothing (``gram_norm`` positions, elements,
      none). The term is ``w·Σ(G-A)²``, ``w·mean((G-A)²)``, ``w·Σ(G-A)²/(4C²N²)``, ``w·Σ(G-A)²/(4·3²·(H·W)²)`` with
      the picture's H·W, or ``w·Σ(G-A)²/ΣA²`` (``style_norm`` sum, mean, gatys, image, relative).
    - ``statistics``: style tap → ``gram`` or ``covariance``; taps that are not named here have the Gram matrix. The
      covariance's term is ``w·(¼Σ(G-A)²/ΣA² + ¾Σ(μ-m)²/Σm²)`` with the mean μ of F over its positions and
      G = F·Fᵀ/N - μμᵀ, whatever the two normalisations above are; A and m are the style picture's.
    - ``tv``: weight w of the total variation of the image; dx and dy are its forward differences:
      ``w·½(Σdx²+Σdy²)``, ``w·Σ(dx²+dy²)^1.25`` over the (H-1)×(W-1) window, or ``w·(Σ|dx|+Σ|dy|)`` (``tv_form``
      squared, power, absolute).
    - ``pixels``: the pixel space of the iterate, in which the total variation is taken and which the network is
      given as it is. ``convention``: the one of the weights that the recipe was written for.

    Raises `UsageError` for an unknown form, a weight that is negative or not finite, and where there is neither a
    content nor a style term.
    """

    content: Mapping[str, float]
    style: Mapping[str, float]
    tv: float = 0.0
    content_norm: ContentNorm = "mean"
    gram_norm: GramNorm = "elements"
    style_norm: StyleNorm = "mean"
    tv_form: TvForm = "squared"
    pooling: Pooling = "max"
    pixels: str = "caffe"
    convention: str = "caffe"
    statistics: Mapping[str, Statistic] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (
            ("content_norm", CONTENT_NORMS),
            ("gram_norm", GRAM_NORMS),
            ("style_norm", STYLE_NORMS),
            ("tv_form", TV_FORMS),
            ("pooling", POOLINGS),
            ("pixels", tuple(PIXEL_SPACES)),
            ("convention", tuple(PIXEL_SPACES)),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} {getattr(self, name)!r} is unknown: choose among {', '.join(known)}")
        check_statistics(self.statistics, self.style)
        for term, weight in [*self.content.items(), *self.style.items(), ("tv", self.tv)]:
            if not np.isfinite(weight) or weight < 0:
                raise UsageError(f"weight {weight} of {term} must be a finite number, zero or more")
        if not self.taps:
            raise UsageError("the objective has no content and no style term: name at least one tap")

    @property
    def taps(self) -> tuple[str, ...]:
        """Every tap that has a term, once."""
        return tuple(dict.fromkeys([*self.content, *self.style]))

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the terms: ``content.<tap>``, ``style.<tap>``, ``tv``."""
        content = [f"content.{tap}" for tap in self.content]
        style = [f"style.{tap}" for tap in self.style]
        return (*content, *style, *(["tv"] if self.tv else []))

    def statistic(self, tap: str) -> Statistic:
        """Return the statistic of a style tap."""
        return self.statistics.get(tap, "gram")

    def without(self, taps: Collection[str]) -> Objective:
        """Return the objective without the terms on those taps; raise `UsageError` if no term is left."""
        return replace(
            self,
            content={tap: w for tap, w in self.content.items() if tap not in taps},
            style={tap: w for tap, w in self.style.items() if tap not in taps},
            statistics={tap: s for tap, s in self.statistics.items() if tap not in taps},
        )

    def scaled(self, factor: float) -> Objective:
        """Return the objective times ``factor``: every weight multiplied."""
        return replace(
            self,
            content={tap: w * factor for tap, w in self.content.items()},
            style={tap: w * factor for tap, w in self.style.items()},
            tv=self.tv * factor,
        )

    def canonical(self, weights: Weights) -> Objective:
        """Return the objective with canonical tap names.

        Raises `MissingTapError` for taps that the weights do not reach, `UsageError` for one tap under two names.
        """
        return replace(
            self,
            content=_canonical(self.content, weights),
            style=_canonical(self.style, weights),
            statistics={weights.require(tap): statistic for tap, statistic in self.statistics.items()},
        )


def check_statistics(statistics: Mapping[str, Statistic], style: Collection[str]) -> None:
    """Raise `UsageError` for a statistic that there is not, and for one of a tap that is not among the style taps."""
    for tap, statistic in statistics.items():
        if statistic not in STATISTICS:
            raise UsageError(f"statistic {statistic!r} of {tap} is unknown: choose among {', '.join(STATISTICS)}")
        if tap not in style:
            raise UsageError(f"statistics name {tap!r}, which has no style term: name taps that have one")


@dataclass(frozen=True, eq=False)
class Targets:
    """What the terms compare with.

    ``content``: tap → (1, C, h, w), the content picture's activations at the result's size. ``style``: tap → (C, C),
    the style picture's F·Fᵀ/N over its own N = ``style_positions[tap]``, or its covariance; ``means``: tap → (C, 1),
    its mean, for taps whose statistic is the covariance. ``calibration``: the inputs ``<layer>.scale`` and
    ``<layer>.threshold``, (C,), of the filters that the taps need. All float32.

    Content targets of a large picture may be larger than all else. Those that ``content`` leaves out are computed again
    wherever they are needed, window by window, from ``content_image``, the content picture in the objective's pixel
    space, (1, 3, H, W); ``content_totals`` has the number of their elements, and the sum of the squares.
    """

    content: Mapping[str, FloatArray]
    style: Mapping[str, FloatArray]
    style_positions: Mapping[str, int]
    means: Mapping[str, FloatArray] = field(default_factory=dict)
    calibration: Mapping[str, FloatArray] = field(default_factory=dict)
    content_image: FloatArray | None = None
    content_totals: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def content_size(self, tap: str) -> int:
        """Return the number of elements of a content target."""
        return self.content[tap].size if tap in self.content else self.content_totals[tap][0]

    def content_energy(self, tap: str) -> float:
        """Return the sum of the squares of a content target, in float64."""
        if tap not in self.content:
            return self.content_totals[tap][1]
        values = self.content[tap].reshape(-1)
        # Unlike a sum of squares in float64, this makes no array of them.
        return float(np.einsum("i,i->", values, values, dtype=np.float64))


def coefficients(
    objective: Objective, targets: Targets, positions: Mapping[str, int], shape: tuple[int, int]
) -> dict[str, float]:
    """Return the scalar inputs of the graphs: ``content.<tap>.weight``, ``style.<tap>.weight``, ``tv.weight``, ….

    ``positions`` is N of each style tap for the picture of ``shape`` (H, W) that is painted. Computed in float64.
    """
    values: dict[str, float] = {}
    for tap, weight in objective.content.items():
        values[f"content.{tap}.weight"] = weight * _content_factor(objective.content_norm, targets, tap)
    for tap, weight in objective.style.items():
        channels, count = targets.style[tap].shape[0], positions[tap]
        if objective.statistic(tap) == "covariance":
            values[f"style.{tap}.mean.weight"] = weight * MEAN_SHARE / _energy(targets.means[tap])
            factor = (1 - MEAN_SHARE) / _spread_energy(targets.style[tap], targets.means[tap])
        elif objective.style_norm == "relative":
            factor = 1 / _energy(style_target(objective, targets, tap, count))
        else:
            # The graphs' Gram is over positions; the recipe's is this many times larger.
            ratio = {"positions": 1.0, "elements": 1 / channels, "none": count}[objective.gram_norm]
            over = {
                "sum": 1.0,
                "mean": channels**2,
                "gatys": 4 * channels**2 * count**2,
                "image": 36 * (shape[0] * shape[1]) ** 2,
            }[objective.style_norm]
            factor = ratio**2 / over
        values[f"style.{tap}.weight"] = weight * factor
    if objective.tv:
        values["tv.weight"] = objective.tv
    return values


def _spread_energy(covariance: FloatArray, mean: FloatArray) -> float:
    """Return by what the squared error of a covariance is divided: its sum of squares, as long as it is one.

    Where nothing varies, as in a style picture of one colour, F·Fᵀ/N - μμᵀ leaves the rounding of two equal numbers,
    to which nothing must be relative. Beside the mean it counts as at least a hundredth.
    """
    return max(_energy(covariance), (0.01 * _energy(mean)) ** 2) if mean.any() else _energy(covariance)


def style_target(objective: Objective, targets: Targets, tap: str, positions: int) -> FloatArray:
    """Return the style target as the graphs compare with it: the recipe's, over ``positions`` of the result.

    It differs from the style picture's own average only where the recipe's Gram is a plain sum, which grows with
    the number of positions.
    """
    target = targets.style[tap]
    if objective.gram_norm != "none" or objective.statistic(tap) != "gram":
        return target
    return target * np.float32(targets.style_positions[tap] / positions)


def _canonical(terms: Mapping[str, float], weights: Weights) -> dict[str, float]:
    found: dict[str, str] = {}
    for tap in terms:
        known = found.setdefault(weights.require(tap), tap)
        if known != tap:
            raise UsageError(f"{known!r} and {tap!r} are one tap, {weights.require(tap)}: give it one weight")
    return {canonical: terms[tap] for canonical, tap in found.items()}


def _content_factor(norm: ContentNorm, targets: Targets, tap: str) -> float:
    match norm:
        case "mean":
            return 1 / targets.content_size(tap)
        case "sum":
            return 1.0
        case "half-sum":
            return 0.5
        case "relative":
            return 1 / (targets.content_energy(tap) or 1.0)


def _energy(target: FloatArray) -> float:
    """Return the sum of squares in float64; 1 for a target of zeros, to which nothing can be relative."""
    return float(np.sum(np.square(target, dtype=np.float64))) or 1.0
