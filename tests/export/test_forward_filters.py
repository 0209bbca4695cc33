"""Forward graphs of the filter bank: a backbone that branches, pads by reflection, and has inputs of its own."""

from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch

from impasto.errors import ImageError
from impasto.export.forward import forward_graph
from impasto.models.conventions import CAFFE, PIXEL_SPACES, UNIT
from impasto.models.layers import IMAGE, Filters, Halve
from impasto.models.reference import Reference

SIZES = [(3, 4), (9, 5), (37, 29), (65, 70)]


def reached(weights, size):
    """Every tap that a picture of that size reaches."""
    return [tap for tap in weights.backbone.taps if weights.backbone.smallest(tap) <= min(size)]


def by_reference(weights, taps, image, calibration, space=None):
    exact = Reference(weights, taps, "max", space, torch.float64)
    calibrated = {name: torch.from_numpy(value).double() for name, value in calibration.items()}
    with torch.no_grad():
        return {tap: v[0].numpy() for tap, v in exact(torch.from_numpy(image).double(), calibrated).items()}


def assert_taps(found, exact, rounding):
    assert list(found) == list(exact)
    for tap, value in found.items():
        assert value.dtype == np.float32
        assert value[0].shape == exact[tap].shape
        assert (np.abs(value[0] - exact[tap]) <= rounding(tap)).all(), tap


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_taps_are_those_of_the_reference(bank, run, picture, calibration, bank_rounding, size, dynamic):
    taps = reached(bank, size)
    image = UNIT.encode(picture(1, *size))[None]
    found = run(forward_graph(bank, taps, shape=None if dynamic else size), {"image": image, **calibration})
    exact = by_reference(bank, taps, image, calibration)
    assert_taps(found, exact, lambda tap: bank_rounding(tap, calibration))
    for tap in taps:
        # Far above what rounding may do, so that a slip of one row or channel shows.
        assert np.abs(exact[tap]).max() > 100 * bank_rounding(tap, calibration).min()
        assert exact[tap].shape[1:] == bank.backbone.grid(tap, size)


def test_one_dynamic_graph_serves_every_size(bank, picture, calibration, bank_rounding):
    graph = forward_graph(bank, ["bank0", "level2", "bank1"])
    assert graph.inputs["image"][1] == (1, 3, "height", "width")
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    least = max(bank.backbone.smallest(tap) for tap in graph.outputs)
    for number, more in enumerate([(0, 0), (1, 0), (0, 6), (19, 8), (4, 31)]):
        image = UNIT.encode(picture(number, least + more[0], least + more[1]))[None]
        values = {"image": image, **calibration}
        found = session.run(graph.outputs, {name: values[name] for name in graph.inputs})
        exact = by_reference(bank, graph.outputs, image, calibration)
        found = dict(zip(graph.outputs, found, strict=True))
        assert_taps(found, exact, lambda tap: bank_rounding(tap, calibration))


@pytest.mark.parametrize("space", PIXEL_SPACES.values(), ids=PIXEL_SPACES)
def test_other_pixel_spaces_give_the_taps_of_the_same_picture(bank, run, picture, calibration, bank_rounding, space):
    taps = ["bank0", "level1", "response1"]
    least = max(bank.backbone.smallest(tap) for tap in taps)
    rgb = picture(2, least + 3, least)
    image = space.encode(rgb)[None]
    found = run(forward_graph(bank, taps, space=space, shape=(least + 3, least)), {"image": image, **calibration})
    affine = space.affine_to(UNIT)
    # The pixel and its offset may be larger than their sum.
    largest = max(
        abs(s) * np.abs(image[0, c]).max() + abs(o)
        for c, s, o in zip(affine.permutation, affine.scale, affine.offset, strict=True)
    )
    for exact in (
        by_reference(bank, taps, image, calibration, space),
        by_reference(bank, taps, UNIT.encode(rgb)[None], calibration),
    ):
        assert_taps(found, exact, lambda tap: bank_rounding(tap, calibration, largest))


def test_the_picture_is_converted_where_it_must_be_and_only_once(bank):
    for space, converted in ((None, 0), (UNIT, 0), (CAFFE, 1)):
        graph = forward_graph(bank, ["bank0", "bank1"], space=space)
        assert sum("converted" in node.output for node in graph.nodes) == converted
        readers = {node.op_type for node in graph.nodes if IMAGE in node.input}
        assert readers == ({"Conv"} if converted else {"Pad"})
        # The bank's own kernels stay what they are, in every space.
        for name in ("response0.weight", "response1.weight"):
            np.testing.assert_array_equal(graph.constants[name], bank.tensors[name])


@pytest.mark.parametrize("taps", [["bank0"], ["bank2"], ["response0", "level1"], None], ids=str)
def test_reflections_are_shared(bank, taps):
    """A level is surrounded once by a rim of each width, be it for its filters or for the next level."""
    taps = taps or bank.backbone.taps
    graph = forward_graph(bank, taps)
    pads = [node for node in graph.nodes if node.op_type == "Pad"]
    padded = Counter((node.input[0], tuple(graph.constants[node.input[1]])) for node in pads)
    reflecting = [layer for layer in bank.backbone.needed(taps) if isinstance(layer, Filters | Halve)]
    rims = {(layer.source, 2 if isinstance(layer, Halve) else layer.kernel // 2) for layer in reflecting}
    assert padded == {(x, (0, 0, amount, amount, 0, 0, amount, amount)): 1 for x, amount in rims}


def test_nothing_that_no_tap_needs_is_computed_or_asked_for(bank):
    graph = forward_graph(bank, ["bank2"])
    made = {node.output[0] for node in graph.nodes}
    assert made & set(bank.backbone.taps) == {"level1", "level2", "response2", "bank2"}
    assert list(graph.inputs) == ["image", "response2.scale", "response2.threshold"]
    assert {graph.inputs[name][1] for name in list(graph.inputs)[1:]} == {(bank.backbone.channels("bank2"),)}
    used = {initializer.name for initializer in graph.model().graph.initializer}
    assert {name for name in used if name.startswith("response")} == {"response2.weight"}
    levels = forward_graph(bank, ["level1", "level3"])
    assert list(levels.inputs) == ["image"]
    assert not any(name.startswith("response") for name in levels.constants)


def test_outputs_come_in_the_order_of_the_data(bank):
    graph = forward_graph(bank, ["bank1", "level2", "response0", "level1", "bank0", "bank1"])
    assert graph.outputs == ["response0", "bank0", "level1", "bank1", "level2"]


@pytest.mark.parametrize("tap", ["level1", "bank0", "level2", "response1", "level3", "bank2"])
def test_sizes_are_refused_exactly_where_a_reflection_would_not_fit(bank, run, picture, calibration, tap):
    least = bank.backbone.smallest(tap)
    for size in ((least - 1, least + 3), (least + 3, least - 1)):
        with pytest.raises(ImageError, match=f"of {size[1]}x{size[0]} .* tap {tap}, .* at least {least}x{least}"):
            forward_graph(bank, [tap], shape=size)
    image = UNIT.encode(picture(3, least, least + 1))[None]
    found = run(forward_graph(bank, [tap], shape=(least, least + 1)), {"image": image, **calibration})
    assert found[tap].shape[2:] == bank.backbone.grid(tap, (least, least + 1))


def test_other_types_on_request(bank):
    graph = forward_graph(bank, ["bank1"], space=CAFFE, shape=(20, 19), dtype=np.float64)
    assert {value.dtype for value in graph.constants.values()} == {np.dtype(np.float64), np.dtype(np.int64)}
    assert {dtype for dtype, _ in graph.inputs.values()} == {np.dtype(np.float64)}
    graph.model()
