import pytest

from impasto.errors import UnknownNameError
from impasto.models.backbones import BACKBONES, backbone
from impasto.models.taps import aliases, resolve_tap, resolve_taps

VGGS = [name for name in BACKBONES if name.startswith("vgg")]


@pytest.mark.parametrize(
    ("net", "alias", "canonical"),
    [
        ("vgg19", "features.0", "conv1_1"),
        ("vgg19", "features.1", "relu1_1"),
        ("vgg19", "features.4", "pool1"),
        ("vgg19", "features.21", "conv4_2"),
        ("vgg19", "features.36", "pool5"),
        ("vgg16", "features.21", "conv4_3"),
        ("vgg16", "features.30", "pool5"),
        # Keras' layer includes its activation.
        ("vgg19", "block4_conv2", "relu4_2"),
        ("vgg16", "block5_conv2", "relu5_2"),
        ("vgg19", "block4_pool", "pool4"),
        # The tutorial counts convolutions, and taps them before the ReLU.
        ("vgg19", "conv_4", "conv2_2"),
        ("vgg19", "conv_5", "conv3_1"),
        ("vgg19", "conv_16", "conv5_4"),
        ("vgg16", "conv_13", "conv5_3"),
        ("vgg19", "relu_4", "relu2_2"),
        ("vgg19", "pool_2", "pool2"),
        ("vgg16c", "conv_7", "conv3_3"),
    ],
)
def test_alias(net, alias, canonical):
    assert resolve_tap(backbone(net), alias) == canonical


@pytest.mark.parametrize("name", BACKBONES)
def test_canonical_names_stand_for_themselves(name):
    net = backbone(name)
    assert [resolve_tap(net, tap) for tap in net.taps] == list(net.taps)


@pytest.mark.parametrize("name", VGGS)
def test_every_tap_of_vgg_has_aliases_and_these_hide_no_canonical_name(name):
    net = backbone(name)
    known = aliases(net)
    assert not set(known) & set(net.taps)
    assert set(known.values()) == set(net.taps)
    # One features.N a layer; conv_N, relu_N, blockN_convM a convolution; pool_N, blockN_pool a pooling.
    assert len(known) == len(net.layers) + 3 * len(net.convs) + 2 * 5


def test_taps_of_the_filter_bank_have_no_other_names():
    assert aliases(backbone("filterbank")) == {}


def test_resolved_in_the_order_of_the_data_each_once():
    net = backbone("vgg19")
    assert resolve_taps(net, ["relu4_2", "conv_1", "block4_conv2", "conv1_1"]) == ("conv1_1", "relu4_2")
    assert resolve_taps(net, []) == ()


@pytest.mark.parametrize(
    ("net", "name", "near"),
    [
        ("vgg19", "relu4-2", "relu4_2"),
        ("vgg16", "conv3_4", "conv3_3"),
        ("vgg19", "block4conv2", "block4_conv2"),
        ("filterbank", "bank_2", "bank2"),
        ("filterbank", "level0", r"level\d"),
    ],
)
def test_unknown_tap_lists_near_names(net, name, near):
    with pytest.raises(UnknownNameError, match=f"unknown tap of {net} '{name}': did you mean .*{near}"):
        resolve_tap(backbone(net), name)
