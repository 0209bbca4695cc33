import pytest

from impasto.errors import UnknownNameError
from impasto.models.backbones import BACKBONES, backbone


@pytest.mark.parametrize(
    ("name", "weight_layers"), [("vgg11", 8), ("vgg13", 10), ("vgg16c", 13), ("vgg16", 13), ("vgg19", 16)]
)
def test_as_many_convolutions_as_the_paper_says(name, weight_layers):
    # Table 1 counts weight layers; three of them are the classifier's.
    assert len(backbone(name).convs) == weight_layers


@pytest.mark.parametrize("name", BACKBONES)
def test_channels_chain(name):
    channels = 3
    for conv in backbone(name).convs:
        assert conv.in_channels == channels
        channels = conv.out_channels
    assert channels == 512


@pytest.mark.parametrize("name", BACKBONES)
def test_channels_and_stride_of_every_tap(name):
    net = backbone(name)
    widths = {"1": 64, "2": 128, "3": 256, "4": 512, "5": 512}
    for tap in net.taps:
        kind, block = tap[:4], tap[4]
        assert net.channels(tap) == widths[block]
        assert net.stride(tap) == 2 ** (int(block) - (kind != "pool"))


def test_parameters_of_vgg19():
    # The published 143,667,240 parameters less the classifier's (25088·4096, 4096·4096, 4096·1000 and biases).
    features = 143_667_240 - (25088 * 4096 + 4096) - (4096 * 4096 + 4096) - (4096 * 1000 + 1000)
    convs = backbone("vgg19").convs
    assert sum(c.out_channels * (c.in_channels * c.kernel**2 + 1) for c in convs) == features


def test_unknown_backbone_lists_near_names():
    with pytest.raises(UnknownNameError, match=r"unknown backbone 'vgg-19': did you mean .*vgg19"):
        backbone("vgg-19")
