import numpy as np
import pytest

from impasto.models import filterbank
from impasto.models.filterbank import FILTERS, KERNEL, LEVELS
from impasto.models.philox import normal
from impasto.models.random_weights import filterbank_weights

QUANTUM = 2.0**-20
SIZE = 3 * KERNEL**2


@pytest.fixture(scope="module", params=[0, 5])
def seed(request):
    return request.param


@pytest.fixture(scope="module")
def tensors(seed):
    """In float64, so that what is computed from them is exact to far below the quantum."""
    return {name: tensor.astype(np.float64) for name, tensor in filterbank.tensors(seed).items()}


def test_numbers_are_frozen():
    # Pictures painted with the filter bank hang on these numbers. They change when the recipe does (the number or the
    # size of the filters, their distribution, the levels), and only then may this digest.
    assert filterbank_weights().sha256 == "3905978873382d9bbadc14175594b692ec38cd8f0bfb31f7c812e2ed4da70f60"


def test_everything_is_a_multiple_of_the_quantum(tensors):
    for tensor in tensors.values():
        assert np.array_equal(tensor / QUANTUM, np.round(tensor / QUANTUM))


def test_the_last_digits_of_a_machines_functions_do_not_show(monkeypatch):
    stream = np.random.default_rng(1)

    def elsewhere(*args):
        drawn = normal(*args)
        return drawn * (1 + stream.uniform(-4, 4, drawn.shape) * np.finfo(np.float64).eps)

    here = filterbank_weights().sha256
    monkeypatch.setattr(filterbank, "normal", elsewhere)
    assert filterbank_weights().sha256 == here


def test_every_filter_has_unit_norm(tensors):
    for level in range(LEVELS):
        norms = np.sqrt(np.square(tensors[f"response{level}.weight"]).sum(axis=(1, 2, 3)))
        # Rounding moves each number by at most half a quantum, and so the norm by that times √size.
        np.testing.assert_allclose(norms, 1, rtol=0, atol=QUANTUM / 2 * np.sqrt(SIZE) * 1.001)


def test_three_quarters_see_no_flat_colour(tensors):
    for level in range(LEVELS):
        means = np.abs(tensors[f"response{level}.weight"].mean(axis=(2, 3)))
        # The mean of what rounding changes is at most half a quantum.
        assert means[FILTERS // 4 :].max() <= QUANTUM / 2 * 1.001
        # The others see some colour at least, by chance more or less: a mean has a deviation of 10⁴ quanta.
        assert means[: FILTERS // 4].max(axis=1).min() > QUANTUM


def test_each_filter_is_noise_under_a_gaussian_from_the_levels_own_streams(seed, tensors):
    for level in (0, 1, LEVELS - 1):
        noise = normal(seed, 2 * level, FILTERS * SIZE).reshape(FILTERS, 3, KERNEL, KERNEL)
        axis = 2 * np.arange(KERNEL) / (KERNEL - 1) - 1
        for index in (0, FILTERS // 4 - 1, FILTERS // 4, FILTERS - 1):
            expected = np.empty((3, KERNEL, KERNEL))
            for row, y in enumerate(axis):
                for column, x in enumerate(axis):
                    expected[:, row, column] = noise[index, :, row, column] * np.exp(-2 * (x**2 + y**2))
            if index >= FILTERS // 4:
                expected -= expected.mean(axis=(1, 2))[:, None, None]
            expected /= np.linalg.norm(expected)
            found = tensors[f"response{level}.weight"][index]
            np.testing.assert_allclose(found, expected, rtol=0, atol=QUANTUM / 2 * 1.001)
        offsets = 0.8 * normal(seed, 2 * level + 1, FILTERS)
        np.testing.assert_allclose(tensors[f"response{level}.offset"], offsets, rtol=0, atol=QUANTUM / 2 * 1.001)


def test_a_level_does_not_depend_on_how_many_there_are(monkeypatch):
    whole = filterbank.tensors(3)
    monkeypatch.setattr(filterbank, "LEVELS", 3)
    some = filterbank.tensors(3)
    assert list(some) == list(whole)[:6]
    assert all(np.array_equal(tensor, whole[name]) for name, tensor in some.items())
    assert {name for layer in filterbank.layers() for name in layer.tensors()} == some.keys()


def test_seeds_and_levels_differ():
    # 2³² differs from 0 in the high word of the key.
    drawn = [filterbank.tensors(seed) for seed in (0, 1, 1 << 32)]
    for kind in ("weight", "offset"):
        everything = [tensors[f"response{level}.{kind}"].tobytes() for tensors in drawn for level in range(LEVELS)]
        assert len(set(everything)) == len(drawn) * LEVELS
