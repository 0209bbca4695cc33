import numpy as np
import pytest
import torch

from impasto.errors import ImageError, UnknownNameError
from impasto.models.backbones import BACKBONES, backbone
from impasto.models.filterbank import GRAINS, LEVELS, STROKES
from impasto.models.layers import IMAGE
from impasto.models.random_weights import filterbank_weights, random_weights
from impasto.models.reference import Reference

VGGS = [name for name in BACKBONES if name.startswith("vgg")]
DRAWN = {
    "vgg19": lambda: random_weights("vgg19", 1, last_conv="conv3_1"),
    "vgg16c": lambda: random_weights("vgg16c", 2, last_conv="conv3_3"),
    "filterbank": lambda: filterbank_weights(3),
}


@pytest.fixture(scope="module", params=DRAWN)
def drawn(request):
    return DRAWN[request.param]()


def picture(height, width):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height + 1000 * width))


@torch.no_grad()
def values(weights, taps, x):
    reference = Reference(weights, taps)
    return reference(x, reference.calibrate(x))


@pytest.mark.parametrize(
    ("name", "weight_layers"), [("vgg11", 8), ("vgg13", 10), ("vgg16c", 13), ("vgg16", 13), ("vgg19", 16)]
)
def test_as_many_convolutions_as_the_paper_says(name, weight_layers):
    # Table 1 counts weight layers; three of them are the classifier's.
    assert len(backbone(name).convs) == weight_layers


@pytest.mark.parametrize("name", VGGS)
def test_channels_chain(name):
    channels = 3
    for conv in backbone(name).convs:
        assert conv.in_channels == channels
        channels = conv.out_channels
    assert channels == 512


@pytest.mark.parametrize("name", VGGS)
def test_channels_and_stride_of_every_tap(name):
    net = backbone(name)
    widths = {"1": 64, "2": 128, "3": 256, "4": 512, "5": 512}
    for tap in net.taps:
        kind, block = tap[:4], tap[4]
        assert net.channels(tap) == widths[block]
        assert net.stride(tap) == 2 ** (int(block) - (kind != "pool"))


def test_channels_and_stride_of_the_filter_banks_taps():
    net = backbone("filterbank")
    widths = [strokes + grains for strokes, grains in zip(STROKES, GRAINS, strict=True)]
    widths += [GRAINS[-1]] * (LEVELS - len(widths))
    expected = {
        f"{kind}{level}": (3 if kind == "level" else width, 2**level)
        for level, width in enumerate(widths)
        for kind in ("level", "response", "bank")
        if (kind, level) != ("level", 0)  # the picture itself
    }
    assert {tap: (net.channels(tap), net.stride(tap)) for tap in net.taps} == expected


@pytest.mark.parametrize("name", BACKBONES)
def test_every_layer_reads_the_picture_or_a_layer_before_it(name):
    before = {IMAGE}
    for layer in backbone(name).layers:
        assert layer.source in before
        assert layer.name not in before
        assert backbone(name).layer(layer.name) is layer
        before.add(layer.name)


def test_parameters_of_vgg19():
    # The published 143,667,240 parameters less the classifier's (25088·4096, 4096·4096, 4096·1000 and biases).
    features = 143_667_240 - (25088 * 4096 + 4096) - (4096 * 4096 + 4096) - (4096 * 1000 + 1000)
    shapes = [shape for conv in backbone("vgg19").convs for shape in conv.tensors().values()]
    assert sum(int(np.prod(shape)) for shape in shapes) == features


def test_a_bank_needs_no_finer_one():
    net = backbone("filterbank")

    def needed(*taps):
        return [layer.name for layer in net.needed(taps)]

    assert needed("bank0") == ["response0", "bank0"]
    assert needed("bank2") == ["level1", "level2", "response2", "bank2"]
    assert needed("bank2", "response0", "level1") == ["response0", "level1", "level2", "response2", "bank2"]
    assert needed() == []


def test_a_tap_of_vgg_needs_all_before_it():
    net = backbone("vgg16")
    for number, tap in enumerate(net.taps, 1):
        assert net.needed([tap]) == net.layers[:number]
        assert net.needed([tap, "conv1_1"]) == net.layers[:number]


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_is_needed_is_enough_and_not_more(name, count):
    net = backbone(name)
    taps = set(np.random.default_rng(count).choice(net.taps, count, replace=False))
    needed = net.needed(taps)
    assert [layer for layer in net.layers if layer in needed] == list(needed)
    names, sources = {layer.name for layer in needed}, {layer.source for layer in needed}
    assert taps <= names
    assert sources - {IMAGE} <= names
    assert names <= taps | sources


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (3, 3), (4, 7), (5, 11), (17, 16), (33, 34)])
def test_grid_and_channels_are_the_shapes_that_torch_gives(drawn, size):
    net = drawn.backbone
    reached = [tap for tap in drawn.taps if net.smallest(tap) <= min(size)]
    expected = {tap: (1, net.channels(tap), *net.grid(tap, size)) for tap in reached}
    found = values(drawn, reached, picture(*size)) if reached else {}
    assert {tap: tuple(value.shape) for tap, value in found.items()} == expected
    # What is out of reach is so in torch, too.
    for tap in set(drawn.taps) - set(reached):
        with pytest.raises(ImageError):
            values(drawn, [tap], picture(*size))


def test_the_smallest_picture_of_every_tap_is_just_large_enough(drawn, monkeypatch):
    net = drawn.backbone
    # 129 is that of the filter bank's seventh level; the rest would take long.
    taps = [tap for tap in drawn.taps if net.smallest(tap) <= 129]
    for tap in taps:
        n = net.smallest(tap)
        assert values(drawn, [tap], picture(n, n))[tap].shape[2:] == net.grid(tap, (n, n))
        for size in ((n - 1, n + 3), (n + 3, n - 1)) if n > 1 else ():
            with pytest.raises(ImageError, match=f"at least {n}×{n}"):
                values(drawn, [tap], picture(*size))
    # Nor is the reference stricter than torch itself.
    monkeypatch.setattr(Reference, "_check", lambda *_: None)
    for tap in taps:
        n = net.smallest(tap)
        if n > 1:
            with pytest.raises(RuntimeError):
                values(drawn, [tap], picture(n - 1, n + 3))


def test_smallest_in_numbers():
    for tap, n in (("relu1_2", 1), ("pool1", 2), ("relu4_2", 8), ("pool5", 32)):
        assert backbone("vgg19").smallest(tap) == n
    # A reflection by two (levels, and filters of 5×5) needs three positions, one by three (filters of 7×7) four; each
    # level before takes twice as many less one.
    sides = {"bank0": 4, "level1": 3, "bank1": 7, "level2": 5, "bank2": 13, "level3": 9, "bank3": 17, "bank9": 1025}
    assert {tap: backbone("filterbank").smallest(tap) for tap in sides} == sides


def test_unknown_backbone_lists_near_names():
    with pytest.raises(UnknownNameError, match=r"unknown backbone 'vgg-19': did you mean .*vgg19"):
        backbone("vgg-19")
    with pytest.raises(UnknownNameError, match=r"did you mean filterbank\?"):
        backbone("filter-bank")
