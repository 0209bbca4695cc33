import numpy as np
import pytest
import torch

from impasto.errors import MissingTapError, UnknownNameError
from impasto.export.calibration import calibration_graph
from impasto.models.conventions import CAFFE, PIXEL_SPACES, UNIT, smallest_deviation
from impasto.models.layers import Filters
from impasto.models.random_weights import random_weights
from impasto.models.reference import Reference

ROUNDOFF = 2.0**-24  # of float32


def by_reference(weights, taps, image, space=None):
    reference = Reference(weights, taps, "max", space, torch.float64)
    return {name: value.numpy() for name, value in reference.calibrate(torch.from_numpy(image).double()).items()}


def assert_calibration(found, bank, image, space=UNIT, largest=1.0):
    """Compare with the reference; what a right float32 may be off by follows the computation step by step."""
    exact = by_reference(bank, [name.split(".")[0] for name in found], image, space)
    assert list(found) == list(exact)
    for layer in bank.backbone.layers:
        if not isinstance(layer, Filters) or f"{layer.name}.scale" not in found:
            continue
        kernels = np.abs(bank.tensors[f"{layer.name}.weight"].astype(np.float64))
        offset = bank.tensors[f"{layer.name}.offset"].astype(np.float64)
        scale, threshold = (exact[name] for name in layer.calibration())
        mean = (threshold - offset) / scale
        # A response sums the products of a kernel, after halvings of 25 products; its mean the rows and the columns.
        terms = kernels[0].size + 30 * int(layer.name[-1]) + 10 + sum(image.shape[2:])
        response = terms * ROUNDOFF * kernels.sum(axis=(1, 2, 3)) * largest
        # A deviation changes by no more than the values that it is of and their mean; 1/σ by σ's relative error.
        relative = 2 * response * scale / (1 - 2 * response * scale)
        assert relative.max() < 0.3
        of_threshold = response * scale + np.abs(mean) * scale * relative + 4 * ROUNDOFF * (np.abs(threshold) + 10)
        for name, tolerance in zip(layer.calibration(), (relative * scale, of_threshold), strict=True):
            assert found[name].dtype == np.float32
            assert found[name].shape == (layer.out_channels,)
            assert (np.abs(found[name] - exact[name]) <= tolerance + 4 * ROUNDOFF * np.abs(exact[name])).all(), name


@pytest.mark.parametrize("size", [(17, 17), (20, 33), (37, 29), (65, 70)])
def test_scales_and_thresholds_are_those_of_the_reference(bank, run, picture, size):
    taps = [layer.name for layer in bank.backbone.layers if bank.backbone.smallest(layer.name) <= min(size)]
    image = UNIT.encode(picture(1, *size))[None]
    found = run(calibration_graph(bank, taps), {"image": image})
    assert len(found) == 2 * sum(tap.startswith("bank") for tap in taps) >= 6
    assert_calibration(found, bank, image)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("more", [(0, 0), (0, 1), (4, 0)])
def test_tiny_pictures(bank, run, picture, level, more):
    least = bank.backbone.smallest(f"bank{level}")
    image = UNIT.encode(picture(2, least + more[0], least + more[1]))[None]
    assert_calibration(run(calibration_graph(bank, [f"bank{level}"]), {"image": image}), bank, image)


@pytest.mark.parametrize("space", PIXEL_SPACES.values(), ids=PIXEL_SPACES)
def test_other_pixel_spaces_calibrate_alike(bank, run, picture, space):
    rgb = picture(3, 21, 26)
    image = space.encode(rgb)[None]
    affine = space.affine_to(UNIT)
    # The pixel and its offset may be larger than their sum.
    largest = max(
        abs(s) * np.abs(image[0, c]).max() + abs(o)
        for c, s, o in zip(affine.permutation, affine.scale, affine.offset, strict=True)
    )
    found = run(calibration_graph(bank, ["bank2", "bank0"], space), {"image": image})
    assert_calibration(found, bank, image, space, largest)
    assert_calibration(found, bank, UNIT.encode(rgb)[None], UNIT, largest)


@pytest.mark.parametrize("colour", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.7, 0.01, 1 / 3)])
@pytest.mark.parametrize("space", [UNIT, CAFFE], ids=["unit", "caffe"])
def test_a_picture_of_one_colour_divides_by_the_smallest_deviation(bank, run, colour, space):
    """What rounding leaves of a deviation is below that by far, so the quotient is the same to the bit."""
    image = space.encode(np.full((13, 11, 3), colour, np.float32))[None]
    found = run(calibration_graph(bank, ["bank1"], space), {"image": image})
    scale = found["response1.scale"]
    assert np.unique(scale).size == 1
    assert scale[0] == pytest.approx(1 / smallest_deviation(UNIT), rel=1e-6)
    kernels = bank.tensors["response1.weight"].astype(np.float64)
    mean = np.einsum("oikl,i->o", kernels, np.asarray(colour, np.float32).astype(np.float64))
    expected = mean / smallest_deviation(UNIT) + bank.tensors["response1.offset"]
    # Of a sum of 75 products and one of 25 before it, times the scale; twice as much for the other space.
    roundings = 2 * (kernels[0].size + 40) * ROUNDOFF
    tolerance = roundings * (np.abs(kernels).sum(axis=(1, 2, 3)) / smallest_deviation(UNIT) + np.abs(expected))
    assert (np.abs(found["response1.threshold"] - expected) <= tolerance).all()


def test_only_what_the_taps_need_is_computed(bank):
    graph = calibration_graph(bank, ["level2", "bank1", "response3"])
    names = ["response1.scale", "response1.threshold", "response3.scale", "response3.threshold"]
    assert graph.outputs == names
    made = {node.output[0] for node in graph.nodes}
    assert {"level1", "level2", "level3"} <= made
    weights = {f"response{level}.{part}" for level in (1, 3) for part in ("weight", "offset")}
    assert {name for name in graph.constants if name.startswith("response")} == weights
    # One graph serves pictures of every size.
    assert {name: shape for name, (_, shape) in graph.inputs.items()} == {"image": (1, 3, "height", "width")}


@pytest.mark.parametrize("space", [None, CAFFE, UNIT], ids=["own", "caffe", "unit"])
def test_without_filters_there_is_nothing_to_calibrate(shallow, bank, space):
    for weights, taps in ((shallow, ["relu1_1", "pool2"]), (bank, ["level1", "level3"])):
        graph = calibration_graph(weights, taps, space)
        assert (graph.outputs, graph.nodes, graph.constants) == ([], [], {})


def test_taps_that_cannot_be_had_are_refused(bank):
    with pytest.raises(UnknownNameError, match="bank0"):
        calibration_graph(bank, ["banc0"])
    with pytest.raises(MissingTapError, match="conv1_1"):
        calibration_graph(random_weights("vgg19", 1, last_conv="conv1_1"), ["relu1_2"])
