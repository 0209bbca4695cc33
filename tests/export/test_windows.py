"""Windows against what a network really sees: an impulse in the picture shows where it is felt."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impasto.export.forward import forward_graph
from impasto.export.windows import Reach, Side, layout, pieces
from impasto.models.backbones import backbone
from impasto.models.layers import IMAGE, Filters


def positive(weights):
    """The weights without signs and offsets: whatever sees a positive impulse in a black picture responds to it."""
    tensors = {name: np.abs(value) if name.endswith("weight") else value * 0 for name, value in weights.tensors.items()}
    return replace(weights, tensors=tensors)


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize(
    ("network", "taps", "size"),
    [
        ("shallow", ("conv1_1", "relu1_2", "pool1", "relu2_1", "pool2", "conv3_1"), 40),
        ("bank", ("level1", "bank0", "response1", "bank2"), 48),
    ],
)
def test_a_position_sees_what_its_reach_says_and_no_more(request, run, network, taps, size, pooling):
    """In the middle of the picture, along both sides, to the last pixel."""
    weights = positive(request.getfixturevalue(network))
    net = weights.backbone
    calibration = {}
    for layer in net.needed(taps):
        if isinstance(layer, Filters):
            scale, threshold = layer.calibration()
            calibration |= {scale: np.ones(layer.out_channels, np.float32)}
            calibration |= {threshold: np.zeros(layer.out_channels, np.float32)}
    graph = forward_graph(weights, taps, pooling=pooling, space=weights.convention)
    # A piece whose source is the picture has every tap that no level is between; those of the others are put together.
    reaches = {IMAGE: Reach()}
    for piece in pieces(net, taps):
        base = reaches[piece.source]
        for name, reach in piece.reach.items():
            reaches[name] = Reach(
                base.stride * reach.stride,
                base.before + base.stride * reach.before,
                base.after + base.stride * reach.after,
            )
    seen = {tap: np.zeros((net.grid(tap, (size, size))[0], size), bool) for tap in taps}
    for pixel in range(16, size - 16):
        image = np.zeros((1, 3, size, size), np.float32)
        image[:, :, pixel, size // 2] = 1
        rows = run(graph, {IMAGE: image, **calibration})
        columns = run(graph, {IMAGE: image.transpose(0, 1, 3, 2).copy(), **calibration})
        for tap in taps:
            felt = rows[tap].any(axis=(0, 1, 3))
            np.testing.assert_array_equal(felt, columns[tap].any(axis=(0, 1, 2)))
            seen[tap][:, pixel] = felt
    for tap in taps:
        reach = reaches[tap]
        for position, felt in enumerate(seen[tap]):
            first, last = reach.stride * position - reach.before, reach.stride * position + reach.after
            expected = [first <= pixel <= last for pixel in range(16, size - 16)]
            np.testing.assert_array_equal(felt[16 : size - 16], expected, f"{tap} at {position}")


def test_vgg_is_one_piece_with_the_halo_of_its_deepest_tap():
    (piece,) = pieces(backbone("vgg19"), ["relu1_1", "relu5_1", "relu4_2"])
    assert (piece.source, piece.levels) == (IMAGE, ())
    assert piece.taps == ("relu1_1", "relu4_2", "relu5_1")
    # Nine 3x3 convolutions on grids of 1, 2, 4, 8 and 16 pixels: 2·1 + 2·2 + 4·4 + 4·8 + 1·16 to either side.
    assert (piece.stride, piece.before, piece.after) == (16, 70, 70)


def test_the_filter_bank_has_a_piece_for_each_level_with_the_halo_of_its_filters():
    every = pieces(backbone("filterbank"), ["bank0", "bank1", "bank4"])
    assert [piece.source for piece in every] == [IMAGE, "level1", "level2", "level3", "level4"]
    assert [piece.levels for piece in every] == [("level1",), ("level2",), ("level3",), ("level4",), ()]
    assert [piece.taps for piece in every] == [("bank0",), ("bank1",), (), (), ("bank4",)]
    assert [(piece.stride, piece.before, piece.after) for piece in every] == [
        (2, 3, 3),
        (2, 3, 3),
        (2, 2, 1),
        (2, 2, 1),
        (1, 2, 2),
    ]


def test_a_level_may_be_a_tap_and_a_source_at_once():
    every = pieces(backbone("filterbank"), ["level1", "bank1", "level2"])
    assert [(piece.source, piece.levels, piece.taps) for piece in every] == [
        (IMAGE, ("level1",), ("level1",)),
        ("level1", (), ("bank1", "level2")),
    ]


SIDES = st.builds(
    Side,
    st.integers(1, 200),
    st.sampled_from([1, 2, 4, 16]),
    st.integers(0, 40),
    st.integers(0, 40),
)


@given(SIDES, st.integers(0, 250))
@settings(deadline=None)
def test_windows_cover_a_side_in_tiles_that_they_see_whole(side, most):
    count = side.count(most)
    if count is None:
        assert most < side.smallest
        return
    assert side.window(count) <= most
    # One window less would have to be larger.
    assert count == 1 or side.window(count - 1) > most
    spans = side.spans(count)
    assert len(spans) <= count
    assert spans[0].first == 0
    assert spans[-1].last == side.size
    assert all(before.last == after.first for before, after in pairwise(spans))
    for span in spans:
        assert 0 <= span.start <= span.first < span.last <= span.stop <= side.size
        assert span.stop - span.start == side.window(count)
        # Aligned, with the rest that the whole side has: poolings meet what they meet on the whole picture.
        assert span.start % side.stride == 0
        assert (span.stop - span.start) % side.stride == side.size % side.stride
        assert span.first % side.stride == 0
        assert span.last % side.stride == 0 or span.last == side.size
        assert span.start == 0 or span.first - span.start >= side.before
        assert span.stop == side.size or span.stop - span.last >= side.after


@given(SIDES)
@settings(deadline=None)
def test_the_smallest_windows_are_those_that_leave_a_tile_of_one_stride(side):
    sizes = [side.window(count) for count in side.counts()]
    assert sizes[0] == side.size
    assert sizes[-1] == side.smallest
    assert sizes == sorted({side.window(count) for count in range(1, side.size + 1)}, reverse=True)
    halo = side.stride * -(-side.before // side.stride) + side.after
    assert side.smallest == side.size or side.smallest < halo + 2 * side.stride


@pytest.mark.parametrize("shape", [(50, 70), (33, 90), (16, 16), (64, 20)])
@pytest.mark.parametrize("most", [1, 500, 900, 1600, 10**6])
def test_a_layout_reads_no_more_than_any_other_of_windows_that_small(shape, most):
    net = backbone("vgg19")
    (piece,) = pieces(net, ["relu3_1"])
    found = layout(net, piece, shape, most)
    height, width = (Side(size, piece.stride, piece.before, piece.after) for size in shape)
    others = [
        down * height.window(down) * across * width.window(across)
        for down in range(1, shape[0] + 1)
        for across in range(1, shape[1] + 1)
        if height.window(down) * width.window(across) <= most
    ]
    if others:
        assert found.window[0] * found.window[1] <= most
        assert found.pixels <= min(others)
    else:
        assert found.window == (height.smallest, width.smallest)


def test_tiles_are_a_partition_of_every_tap():
    """At the end of a side that poolings leave a rest of, too."""
    net = backbone("vgg19")
    shape = (75, 101)
    (piece,) = pieces(net, ["relu1_1", "pool2", "relu3_1"])
    found = layout(net, piece, shape, 45 * 45)
    assert found.count > 4
    for tap, reach in piece.reach.items():
        grid = net.grid(tap, shape)
        seen = np.zeros(grid, int)
        own = net.grid(tap, found.window)
        for band in found.bands():
            for window in band:
                whole, inner = window.interior(reach, grid)
                seen[whole] += 1
                assert np.ones(own)[inner].shape == seen[whole].shape
                assert min(inner[0].start, inner[1].start) >= 0
                assert inner[0].stop <= own[0]
                assert inner[1].stop <= own[1]
        assert (seen == 1).all()


def test_without_a_limit_there_is_one_window():
    net = backbone("filterbank")
    for piece in pieces(net, ["bank0", "bank2"]):
        found = layout(net, piece, (37, 50))
        assert found.count == 1
        assert found.window == found.shape
        assert found.pixels == found.shape[0] * found.shape[1]
