"""The fused graph of an objective: every loss term and the pixel gradient from one run.

=========================  ===========  ==============================================================
input                      shape        meaning
=========================  ===========  ==============================================================
``image``                  (1, 3, H, W) the iterate, in the objective's pixel space
``content.<tap>``          (1, C, h, w) content target P
``content.<tap>.weight``   ()           coefficient c of  c·Σ(F - P)²
``style.<tap>``            (C, C)       style target A
``style.<tap>.scale``      ()           1 / N, for  G = F·Fᵀ / N  with F of shape (C, N), N = h·w
``style.<tap>.weight``     ()           coefficient c of  c·Σ(G - A)²
``style.<tap>.mean``       (C, 1)       target m of the mean μ of F
``style.<tap>.mean.weight`` ()          coefficient d of  d·Σ(μ - m)²
``tv.weight``              ()           coefficient of the total variation
``<layer>.scale``          (C,)         of filters: see `impasto.export.calibration`
``<layer>.threshold``      (C,)         of filters
=========================  ===========  ==============================================================

The means are there for taps whose statistic is the covariance; their G is F·Fᵀ / N - μμᵀ.

Outputs: every term, weighted, a scalar (``loss.content.<tap>``, ``loss.style.<tap>``, ``loss.tv``), and ``gradient``,
(1, 3, H, W), of their sum with respect to the image. All float32, whatever the precision of the network between.

In fp16 small cotangents vanish and large ones overflow, so an fp16 graph has one input more: ``gradient.scale``, (), a
power of two λ. Within, cotangents are λ times what they are, and the gradient is divided by λ before it leaves; losses
do not depend on λ. A gradient that is not finite asks for a smaller one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from impasto.export.autodiff import differentiate
from impasto.export.graph import Graph, Shape
from impasto.export.objective import Objective, Statistic, TvForm
from impasto.export.precision import Precision, features, network_graph
from impasto.export.terms import STYLE_TERMS, content_term, total_variation
from impasto.models.conventions import pixel_space
from impasto.models.layers import IMAGE
from impasto.models.weights import Weights

GRADIENT = "gradient"
GRADIENT_SCALE = "gradient.scale"


def fused_graph(
    objective: Objective,
    weights: Weights,
    shape: tuple[int, int] | None = None,
    precision: Precision = "fp32",
) -> Graph:
    """Build the fused graph of an objective whose taps have canonical names.

    ``shape`` fixes (H, W), otherwise both are dynamic. A term of weight zero is computed all the same, except a total
    variation. ``precision`` is the network's; terms are float32. Raises as `network_graph` does.
    """
    network, factors = network_graph(
        weights,
        objective.taps,
        precision,
        pooling=objective.pooling,
        space=pixel_space(objective.convention),
        shape=shape,
    )
    graph = features(network, factors)
    style = {tap: objective.statistic(tap) for tap in objective.style}
    fuse(
        graph,
        objective.content,
        style,
        objective.tv_form if objective.tv else None,
        gradient_scale=precision == "fp16",
    )
    return graph


def fuse(
    graph: Graph,
    content: Iterable[str],
    style: Mapping[str, Statistic],
    tv_form: TvForm | None,
    *,
    gradient_scale: bool = False,
) -> None:
    """Turn a graph that computes taps from ``image`` into the fused graph of terms on them.

    The taps are float32 tensors of shape (1, C, h, w), C static; ``style`` maps each to its statistic. ``tv_form`` None
    leaves the total variation out. ``gradient_scale`` adds the input `GRADIENT_SCALE`. Raises as `differentiate` does.
    """
    types = graph.infer_shapes()
    losses = [content_term(graph, tap, types[tap][1]) for tap in content]
    losses += [STYLE_TERMS[statistic](graph, tap, _channels(types[tap][1])) for tap, statistic in style.items()]
    if tv_form is not None:
        losses.append(total_variation(graph, tv_form))
    seed = graph.input(GRADIENT_SCALE, ()) if gradient_scale else graph.literal(1.0, np.float32)
    gradient = differentiate(graph, dict.fromkeys(losses, seed), [IMAGE])[IMAGE]
    if gradient_scale:
        graph.add("Div", gradient, seed, name=GRADIENT)
    else:
        graph.add("Identity", gradient, name=GRADIENT)
    graph.outputs = [*losses, GRADIENT]
    graph.prune()


def _channels(shape: Shape) -> int:
    channels = shape[1]
    assert isinstance(channels, int)
    return channels
