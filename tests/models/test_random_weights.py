import numpy as np
import pytest

from impasto.models import filterbank
from impasto.models.backbones import BACKBONES
from impasto.models.conventions import TORCHVISION, UNIT
from impasto.models.random_weights import filterbank_weights, random_weights


def test_numbers_are_frozen():
    # Seeds are promised to give the same weights in every version; a new digest here breaks that promise.
    assert (
        random_weights("vgg19", 0, last_conv="conv2_1").sha256
        == "2a3c5ab6e9059584c45655d7ae72717d4deecc72182d59b9c0f5e5a07f8791aa"
    )
    assert (
        random_weights("vgg16", 7, TORCHVISION, last_conv="conv1_2").sha256
        == "3d63b95943bacce3f9f853bd904446f2ba9f772ca0ef61051738edcb1a514b72"
    )


def test_seeds_backbones_and_conventions_differ():
    a = random_weights("vgg16", 0, last_conv="conv1_1")
    others = [
        random_weights("vgg16", 1, last_conv="conv1_1"),
        random_weights("vgg19", 0, last_conv="conv1_1"),
        random_weights("vgg16", 0, TORCHVISION, last_conv="conv1_1"),
    ]
    assert len({a.sha256, *(w.sha256 for w in others)}) == 4
    # … of which only the seed changes the numbers.
    assert [np.array_equal(w.tensors["conv1_1.weight"], a.tensors["conv1_1.weight"]) for w in others] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith("vgg")])
def test_every_vgg_has_all_its_taps(name):
    weights = random_weights(name, 3, last_conv="conv2_1")
    full = BACKBONES[name]
    assert weights.taps == full.taps[: full.taps.index("relu2_1") + 1 + (name == "vgg11")]


def test_deviation_keeps_the_scale_of_activations():
    weights = random_weights("vgg19", 5, last_conv="conv2_2")
    tensor = weights.tensors["conv2_2.weight"]
    # n = 147456 draws: the sample deviation is within 4 / sqrt(2n) of the true one except once in 16000 seeds.
    assert abs(tensor.std() / np.sqrt(2 / (128 * 9)) - 1) < 4 / np.sqrt(2 * tensor.size)


@pytest.mark.parametrize(("seed", "name"), [(0, "filterbank"), (3, "filterbank-3")])
def test_the_filter_bank_is_what_its_module_draws_on_pixels_of_0_to_1(seed, name):
    weights = filterbank_weights(seed)
    assert (weights.name, weights.backbone.name, weights.convention) == (name, "filterbank", UNIT)
    assert weights.taps == weights.backbone.taps
    drawn = filterbank.tensors(seed)
    assert weights.tensors.keys() == drawn.keys()
    assert all(np.array_equal(weights.tensors[key], drawn[key]) for key in drawn)
