"""What a graph holds at once, against a count by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from impasto.export.fused import fused_graph
from impasto.export.graph import Graph
from impasto.models.weights import Weights
from impasto.runtime.execution import held_bytes
from impasto.runtime.recipes import find_preset


def brute_force(sizes: list[int], reads: list[set[int]]) -> int:
    """The largest sum of what is alive, of tensors made one after the other; the last one stays."""
    last = {index: max([index, *(i for i, read in enumerate(reads) if index in read)]) for index in range(len(sizes))}
    last[len(sizes) - 1] = len(sizes)
    return max(sum(sizes[t] for t in range(now + 1) if last[t] >= now) for now in range(len(sizes)))


@given(st.lists(st.integers(0, 7), min_size=1, max_size=8), st.booleans())
def test_the_peak_is_that_of_brute_force_where_there_is_one_order(skips: list[int], plain: bool) -> None:
    """A chain in which each node also reads an earlier one: its order is forced, and no two sizes are equal."""
    graph = Graph()
    graph.input("x", (1, 1, 3, 5))
    names = [graph.add("Concat", "x", "x", axis=1)]
    channels, reads = [2], [set[int]()]
    for skip in skips:
        other = min(skip, len(names) - 1)
        names.append(graph.add("Concat", names[-1], names[other], "x", axis=1))
        reads.append({len(names) - 2, other})
        channels.append(channels[-1] + channels[other] + 1)
    graph.outputs = [names[-1]]
    expected = brute_force([4 * 15 * count for count in channels], reads)
    # Channels grow strictly, so no place is ever given to a later tensor of the same shape.
    assert held_bytes(graph, plain=plain) == expected


def test_elementwise_nodes_write_over_what_nobody_else_reads() -> None:
    graph = Graph()
    graph.input("x", (1, 2, 4, 4))
    first = graph.add("Sigmoid", "x")
    second = graph.add("Neg", first)
    graph.outputs = [graph.add("Relu", second)]
    assert held_bytes(graph) == 4 * 32  # the input is the caller's
    graph.outputs = [graph.outputs[0], first]
    assert held_bytes(graph) == 2 * 4 * 32


def test_another_name_for_a_tensor_takes_nothing() -> None:
    graph = Graph()
    graph.input("x", (1, 2, 4, 4))
    made = graph.add("Sigmoid", "x")
    flat = graph.add("Reshape", made, graph.ints(2, 16))
    graph.outputs = [graph.add("Identity", flat)]
    assert held_bytes(graph) == 4 * 32


def test_what_follows_from_constants_alone_is_folded() -> None:
    graph = Graph()
    graph.input("x", (1, 3, 4, 4))
    kernels = graph.weight("kernels", np.ones((5, 3, 3, 3), np.float32))
    turned = graph.add("Transpose", kernels, perm=[0, 1, 3, 2])
    graph.outputs = [graph.add("Conv", "x", turned, kernel_shape=[3, 3], pads=[1] * 4)]
    assert held_bytes(graph) == 4 * 5 * 16


def test_a_blocked_layer_is_copied_for_those_that_read_it_plain() -> None:
    graph = Graph()
    graph.input("x", (1, 3, 4, 4))
    kernels = graph.weight("kernels", np.ones((16, 3, 3, 3), np.float32))
    made = graph.add("Conv", "x", kernels, kernel_shape=[3, 3], pads=[1] * 4)
    graph.outputs = [graph.add("Relu", made)]
    size = 4 * 16 * 16
    # The ReLU is fused; the graph's output is plain.
    assert held_bytes(graph) == 2 * size
    assert held_bytes(graph, plain=True) == size


def test_a_place_is_kept_for_a_later_tensor_of_the_same_shape() -> None:
    graph = Graph()
    graph.input("x", (1, 2, 4, 4))
    size = 4 * 32
    first = graph.add("Sigmoid", "x")  # dies as the second is made
    second = graph.add("Concat", first, first, axis=1)
    third = graph.add("Concat", second, second, axis=1)
    fourth = graph.add("MaxPool", third, kernel_shape=[1, 1])
    last = graph.add("Slice", fourth, graph.ints(0), graph.ints(2), graph.ints(1))  # shaped as the first
    graph.outputs = [graph.add("ReduceSum", last, graph.ints(3))]
    # Freed at once, the fourth is held beside the third; with the first's place kept, that besides.
    assert held_bytes(graph, plain=True) == (4 + 4) * size
    assert held_bytes(graph) == (1 + 4 + 4) * size


@pytest.mark.parametrize("preset", ["johnson", "gatys", "keras", "gordic"])
@pytest.mark.parametrize("plain", [False, True])
def test_a_pixel_costs_the_same_at_every_size(vgg19: Weights, preset: str, plain: bool) -> None:
    objective = find_preset(preset).for_weights(vgg19).objective
    each = []
    for side in (128, 256, 512):
        held = held_bytes(fused_graph(objective, vgg19, (side, side)), plain=plain)
        each.append(held / side**2)
    # Gram matrices do not grow with the picture: 512² and 256² floats, ten or so of them, at most 11 MB, which is all
    # that larger pictures have less of.
    assert each[2] <= each[1] <= each[0] <= each[2] + 11e6 / 128**2
    # At least what the masks and the gradient need: two tensors of the 64 channels of the first block, in float32.
    assert each[2] > 2 * 4 * 64


def test_masks_are_held_from_the_way_there_to_the_way_back(vgg19: Weights) -> None:
    """The order in which the graph is written holds less, but it is not the one in which nodes are run."""
    objective = find_preset("johnson").for_weights(vgg19).objective
    graph = fused_graph(objective, vgg19, (128, 128))
    masks = sum(
        4 * vgg19.backbone.channels(layer.name) * np.prod(vgg19.backbone.grid(layer.name, (128, 128)))
        for layer in vgg19.backbone.needed(objective.taps)
        if layer.name.startswith("relu")
    )
    assert held_bytes(graph, plain=True) > masks
