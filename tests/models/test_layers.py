import pytest
import torch
from torch.nn import functional

from impasto.models.layers import BINOMIAL, Conv, Filters, Halve, Layer, Pool, Relu


def zero_padded(kernel):
    return lambda x: functional.conv2d(x, torch.ones(1, 1, kernel, kernel), padding=(kernel - 1) // 2)


def reflect_padded(kernel, stride=1):
    pad = [(kernel - 1) // 2] * 4
    ones = torch.ones(1, 1, kernel, kernel)
    return lambda x: functional.conv2d(functional.pad(x, pad, mode="reflect"), ones, stride=stride)


LAYERS = {
    "conv1": (Conv("y", "x", 1, 1, 1), zero_padded(1)),
    "conv3": (Conv("y", "x", 1, 1), zero_padded(3)),
    "relu": (Relu("y", "x"), functional.relu),
    "max pool": (Pool("y", "x"), lambda x: functional.max_pool2d(x, 2)),
    "average pool": (Pool("y", "x"), lambda x: functional.avg_pool2d(x, 2)),
    "halve": (Halve("y", "x"), reflect_padded(5, stride=2)),
    "filters1": (Filters("y", "x", 1, 1, 1), reflect_padded(1)),
    "filters3": (Filters("y", "x", 1, 1, 3), reflect_padded(3)),
    "filters5": (Filters("y", "x", 1, 1, 5), reflect_padded(5)),
    "filters7": (Filters("y", "x", 1, 1, 7), reflect_padded(7)),
}


@pytest.fixture(scope="module", params=LAYERS)
def layer_and_sides(request):
    """A layer, and the sides that torch makes of those of 1 to 90 positions that it can be applied to."""
    layer, operation = LAYERS[request.param]
    sides = {}
    for side in range(1, 91):
        shapes = []
        for size in ((side, 20), (20, side)):
            try:
                shapes.append(tuple(operation(torch.zeros(1, 1, *size)).shape[2:]))
            except RuntimeError:
                shapes.append(None)
        high, wide = shapes
        assert (high and high[::-1]) == wide
        if high:
            sides[side] = high[0]
    return layer, sides


def test_side_is_that_of_torch(layer_and_sides):
    layer, sides = layer_and_sides
    assert {side: layer.side(side) for side in sides} == sides


def test_smallest_is_the_least_source_that_torch_takes_and_makes_enough_of(layer_and_sides):
    layer, sides = layer_and_sides
    for wanted in range(1, 41):
        assert layer.smallest(wanted) == min(side for side, made in sides.items() if made >= wanted)


def test_every_larger_source_does_as_well(layer_and_sides):
    layer, sides = layer_and_sides
    # … so that the sizes of a chain of layers are bounded from below only.
    assert list(sides) == list(range(layer.smallest(1), 91))
    assert list(sides.values()) == sorted(sides.values())


def test_stride_is_how_many_positions_of_the_source_one_position_spans(layer_and_sides):
    layer, sides = layer_and_sides
    for side in range(1, 45):
        if layer.stride * side in sides:
            assert sides[layer.stride * side] == side


def test_tensors_are_named_after_their_layer():
    assert Conv("c", "x", 4, 6).tensors() == {"c.weight": (6, 4, 3, 3), "c.bias": (6,)}
    filters = Filters("f", "x", 3, 8, 5)
    assert filters.tensors() == {"f.weight": (8, 3, 5, 5), "f.offset": (8,)}
    assert filters.calibration() == ("f.scale", "f.threshold")
    for layer in (Layer("y", "x"), Relu("y", "x"), Pool("y", "x"), Halve("y", "x")):
        assert layer.tensors() == {}


def test_the_binomial_filter_keeps_the_mean_and_blocks_the_finest_checks():
    assert sum(BINOMIAL) == 1
    assert sum(value * (-1) ** position for position, value in enumerate(BINOMIAL)) == 0
    assert tuple(reversed(BINOMIAL)) == BINOMIAL
