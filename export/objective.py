"""The objective: content, style and total-variation terms on a backbone's taps, and the fused graph of it all.

`Objective` says which terms there are and how they are normalised. What depends on the job (targets, weights, the
number of pixels) enters the graph as inputs, so one export serves every weight and every picture:

=========================  ===========  =====================================================================
input                      shape        meaning
=========================  ===========  =====================================================================
``image``                  (1, 3, H, W) the iterate, in the objective's pixel space
``content.<tap>``          (1, C, h, w) content target P
``content.<tap>.weight``   ()           coefficient c of the term  c·Σ(F - P)²
``style.<tap>``            (C, C)       style target A, a Gram matrix over its number of positions
``style.<tap>.scale``      ()           1 / N, for  G = F·Fᵀ / N  with F of shape (C, N), N = h·w
``style.<tap>.weight``     ()           coefficient c of the term  c·Σ(G - A)²
``tv.weight``              ()           coefficient of the total variation
=========================  ===========  =====================================================================

Outputs: each term, weighted, a scalar (``loss.content.<tap>``, ``loss.style.<tap>``, ``loss.tv``), and ``gradient``,
(1, 3, H, W), of their sum with respect to the image. `coefficients` computes the scalars from an `Objective`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from impasto.errors import UsageError
from impasto.export.autodiff import differentiate
from impasto.export.forward import IMAGE, POOLINGS, Pooling, forward_graph
from impasto.export.graph import Graph
from impasto.models.conventions import PIXEL_SPACES, pixel_space
from impasto.models.weights import Weights

GRADIENT = "gradient"

ContentNorm = Literal["mean", "sum", "half-sum"]
GramNorm = Literal["positions", "elements", "none"]
StyleNorm = Literal["sum", "mean", "gatys", "image"]
TvForm = Literal["squared", "power", "absolute"]

CONTENT_NORMS: tuple[ContentNorm, ...] = ("mean", "sum", "half-sum")
GRAM_NORMS: tuple[GramNorm, ...] = ("positions", "elements", "none")
STYLE_NORMS: tuple[StyleNorm, ...] = ("sum", "mean", "gatys", "image")
TV_FORMS: tuple[TvForm, ...] = ("squared", "power", "absolute")


@dataclass(frozen=True)
class Objective:
    """What is descended, up to pictures: taps, weights and normalisations.

    With F a tap of C channels and N positions, P and A the targets, and G the Gram matrix:

    - ``content``: tap → weight w; the term is ``w·mean((F-P)²)``, ``w·Σ(F-P)²`` or ``w·½Σ(F-P)²``
      (``content_norm`` mean, sum, half-sum).
    - ``style``: tap → weight w; G is ``F·Fᵀ`` over N, over C·N, or over nothing (``gram_norm`` positions, elements,
      none); the term is ``w·Σ(G-A)²``, ``w·mean((G-A)²)``, ``w·Σ(G-A)²/(4C²N²)`` or ``w·Σ(G-A)²/(4·3²·(H·W)²)`` with
      the picture's H·W (``style_norm`` sum, mean, gatys, image).
    - ``tv``: weight w of the total variation of the image, dx and dy its forward differences: ``w·½(Σdx²+Σdy²)``,
      ``w·Σ(dx²+dy²)^1.25`` over the (H-1)×(W-1) window, or ``w·(Σ|dx|+Σ|dy|)`` (``tv_form`` squared, power, absolute).
    - ``pixels``: the pixel space of the image; ``convention``: the one that the network is given it in, as is.
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

    def __post_init__(self) -> None:
        for field, known in (
            ("content_norm", CONTENT_NORMS),
            ("gram_norm", GRAM_NORMS),
            ("style_norm", STYLE_NORMS),
            ("tv_form", TV_FORMS),
            ("pooling", POOLINGS),
            ("pixels", tuple(PIXEL_SPACES)),
            ("convention", tuple(PIXEL_SPACES)),
        ):
            if getattr(self, field) not in known:
                raise UsageError(f"{field} {getattr(self, field)!r} is unknown: choose among {', '.join(known)}")
        for term, weight in [*self.content.items(), *self.style.items(), ("tv", self.tv)]:
            if not np.isfinite(weight) or weight < 0:
                raise UsageError(f"weight {weight} of {term} must be a finite number, zero or more")
        if not self.taps and not self.tv:
            raise UsageError("the objective has no term: give it content, style or total variation")

    @property
    def taps(self) -> tuple[str, ...]:
        """Every tap with a term, as named by the objective."""
        return tuple(dict.fromkeys([*self.content, *self.style]))

    def terms(self) -> tuple[str, ...]:
        """The names of the terms, without the prefix ``loss.``, in the order in which they are added up."""
        content = [f"content.{tap}" for tap in self.content]
        style = [f"style.{tap}" for tap in self.style]
        return (*content, *style, *(["tv"] if self.tv else []))


def objective_graph(objective: Objective, weights: Weights, shape: tuple[int, int] | None = None) -> Graph:
    """Build the fused graph of an objective: every loss term and the pixel gradient in one.

    ``shape`` fixes (H, W). Terms of weight zero are part of the graph all the same, except a total variation of
    weight zero. Tap names must be canonical (see `canonical`). Raises as `forward_graph` does.
    """
    graph = forward_graph(
        weights,
        objective.taps,
        pooling=objective.pooling,
        space=pixel_space(objective.convention),
        shape=shape,
    )
    types = graph.infer_shapes()
    losses = []
    for tap in objective.content:
        losses.append(_content(graph, tap, types[tap][1]))
    for tap in objective.style:
        losses.append(_style(graph, tap, weights.backbone.channels(tap)))
    if objective.tv:
        losses.append(total_variation(graph, objective.tv_form))
    one = graph.literal(1.0, np.float32)
    gradient = differentiate(graph, dict.fromkeys(losses, one), [IMAGE])[IMAGE]
    graph.add("Identity", gradient, name=GRADIENT)
    graph.outputs = [*losses, GRADIENT]
    graph.prune()
    return graph


def canonical(objective: Objective, weights: Weights) -> Objective:
    """Return the objective with canonical tap names; raise for taps that the weights do not reach."""
    from dataclasses import replace

    return replace(
        objective,
        content={weights.require(tap): w for tap, w in objective.content.items()},
        style={weights.require(tap): w for tap, w in objective.style.items()},
    )


def coefficients(objective: Objective, sizes: Mapping[str, tuple[int, int, int]], shape: tuple[int, int]) -> dict[str, float]:
    """Return the graph's scalar inputs for a picture of (H, W) whose taps have the sizes (C, h, w)."""
    height, width = shape
    values: dict[str, float] = {}
    for tap, weight in objective.content.items():
        count = float(np.prod(sizes[tap]))
        factor = {"mean": 1 / count, "sum": 1.0, "half-sum": 0.5}[objective.content_norm]
        values[f"content.{tap}.weight"] = weight * factor
    for tap, weight in objective.style.items():
        channels, positions = sizes[tap][0], float(sizes[tap][1] * sizes[tap][2])
        # The graph's Gram is over positions; the recipe's is this many times larger.
        ratio = {"positions": 1.0, "elements": 1 / channels, "none": positions}[objective.gram_norm]
        factor = {
            "sum": 1.0,
            "mean": 1 / channels**2,
            "gatys": 1 / (4 * channels**2 * positions**2),
            "image": 1 / (36 * float(height * width) ** 2),
        }[objective.style_norm]
        values[f"style.{tap}.weight"] = weight * factor * ratio**2
        values[f"style.{tap}.scale"] = 1 / positions
    if objective.tv:
        values["tv.weight"] = objective.tv
    return values


def gram_rescale(objective: Objective, style_positions: int, positions: int) -> float:
    """Return by what to multiply a style target (a Gram over its own positions) for a picture of other size.

    1 unless the recipe's Gram is a plain sum, which grows with the number of positions.
    """
    return style_positions / positions if objective.gram_norm == "none" else 1.0


def total_variation(graph: Graph, form: TvForm, image: str = IMAGE) -> str:
    """Append the weighted total variation of the image and return ``loss.tv``."""
    weight = graph.input("tv.weight", ())
    if form == "power":
        squares = [
            graph.add("Mul", d, d)
            for d in (_difference(graph, image, 2, cut=3), _difference(graph, image, 3, cut=2))
        ]
        power = graph.add("Pow", graph.add("Add", *squares), graph.literal(1.25, np.float32))
        return graph.add("Mul", total_of(graph, power, 4), weight, name="loss.tv")
    sums = []
    for axis in (2, 3):
        difference = _difference(graph, image, axis)
        if form == "squared":
            sums.append(total_of(graph, difference, 4, squared=True))
        else:
            sums.append(total_of(graph, graph.add("Abs", difference), 4))
    total = graph.add("Add", *sums)
    if form == "squared":
        total = graph.add("Mul", total, graph.literal(0.5, np.float32))
    return graph.add("Mul", total, weight, name="loss.tv")


def total_of(graph: Graph, x: str, rank: int, *, squared: bool = False) -> str:
    """Append the sum of all elements (or of their squares), one axis at a time.

    Runtimes may add up a whole tensor naively in float32, with errors of 1e-4 at a million elements; sums of sums
    stay at 1e-7.
    """
    for axis in reversed(range(rank)):
        op = "ReduceSumSquare" if squared and axis == rank - 1 else "ReduceSum"
        x = graph.add(op, x, graph.ints(axis), keepdims=0)
    return x


def _difference(graph: Graph, image: str, axis: int, cut: int | None = None) -> str:
    """Forward differences along ``axis``, without the last row or column of ``cut``."""
    axes, starts, ends = [axis], [1], [_END]
    far = graph.add("Slice", image, *_bounds(graph, starts, ends, axes))
    near = graph.add("Slice", image, *_bounds(graph, [0], [-1], axes))
    difference = graph.add("Sub", far, near)
    if cut is None:
        return difference
    return graph.add("Slice", difference, *_bounds(graph, [0], [-1], [cut]))


_END = np.iinfo(np.int64).max


def _bounds(graph: Graph, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int]) -> list[str]:
    return [graph.ints(*starts), graph.ints(*ends), graph.ints(*axes)]


def _content(graph: Graph, tap: str, shape: tuple[Any, ...]) -> str:
    dims = [d if d is not None else f"{tap}.{side}" for d, side in zip(shape, "nchw", strict=True)]
    target = graph.input(f"content.{tap}", dims)
    weight = graph.input(f"content.{tap}.weight", ())
    squares = total_of(graph, graph.add("Sub", tap, target), 4, squared=True)
    return graph.add("Mul", squares, weight, name=f"loss.content.{tap}")


def _style(graph: Graph, tap: str, channels: int) -> str:
    target = graph.input(f"style.{tap}", (channels, channels))
    scale = graph.input(f"style.{tap}.scale", ())
    weight = graph.input(f"style.{tap}.weight", ())
    gram = graph.add("Mul", gram_product(graph, tap, channels), scale)
    squares = total_of(graph, graph.add("Sub", gram, target), 2, squared=True)
    return graph.add("Mul", squares, weight, name=f"loss.style.{tap}")


def gram_product(graph: Graph, tap: str, channels: int) -> str:
    """Append F·Fᵀ, (C, C), of a tap (1, C, h, w)."""
    features = graph.add("Reshape", tap, graph.ints(channels, -1))
    return graph.add("Gemm", features, features, transB=1)
