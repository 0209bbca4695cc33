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
``tv.weight``              ()           coefficient of the total variation
=========================  ===========  ==============================================================

Outputs: every term, weighted, a scalar (``loss.content.<tap>``, ``loss.style.<tap>``, ``loss.tv``), and ``gradient``,
(1, 3, H, W), of their sum with respect to the image. All float32.
"""

from __future__ import annotations

import numpy as np

from impasto.export.autodiff import differentiate
from impasto.export.forward import IMAGE, forward_graph
from impasto.export.graph import Graph
from impasto.export.objective import Objective
from impasto.export.terms import content_term, style_term, total_variation
from impasto.models.conventions import pixel_space
from impasto.models.weights import Weights

GRADIENT = "gradient"


def fused_graph(objective: Objective, weights: Weights, shape: tuple[int, int] | None = None) -> Graph:
    """Build the fused graph of an objective whose taps have canonical names.

    ``shape`` fixes (H, W), otherwise both are dynamic. A term of weight zero is computed all the same, except a total
    variation. Raises as `forward_graph` does.
    """
    graph = forward_graph(
        weights,
        objective.taps,
        pooling=objective.pooling,
        space=pixel_space(objective.convention),
        shape=shape,
    )
    types = graph.infer_shapes()
    losses = [content_term(graph, tap, types[tap][1]) for tap in objective.content]
    losses += [style_term(graph, tap, weights.backbone.channels(tap)) for tap in objective.style]
    if objective.tv:
        losses.append(total_variation(graph, objective.tv_form))
    one = graph.literal(1.0, np.float32)
    gradient = differentiate(graph, dict.fromkeys(losses, one), [IMAGE])[IMAGE]
    graph.add("Identity", gradient, name=GRADIENT)
    graph.outputs = [*losses, GRADIENT]
    graph.prune()
    return graph
