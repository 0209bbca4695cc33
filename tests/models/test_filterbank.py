import numpy as np
import pytest

from impasto.models import filterbank
from impasto.models.filterbank import FREQUENCIES, GRAIN_KERNEL, GRAINS, LEVELS, STROKE_KERNEL, STROKES
from impasto.models.philox import normal, uniform
from impasto.models.random_weights import filterbank_weights

QUANTUM = 2.0**-20
HALF_QUANTUM = QUANTUM / 2 * 1.001


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
    assert filterbank_weights().sha256 == "756a803ef5185f43c3373af49e0a91efe5c5580924951fd2aa09dc6f0c7b65cd"


def test_everything_is_a_multiple_of_the_quantum(tensors):
    for tensor in tensors.values():
        assert np.array_equal(tensor / QUANTUM, np.round(tensor / QUANTUM))


def test_the_last_digits_of_a_machines_functions_do_not_show(monkeypatch):
    stream = np.random.default_rng(1)

    def elsewhere(draw):
        def disturbed(*args):
            drawn = draw(*args)
            return drawn * (1 + stream.uniform(-4, 4, drawn.shape) * np.finfo(np.float64).eps)

        return disturbed

    here = filterbank_weights().sha256
    monkeypatch.setattr(filterbank, "normal", elsewhere(normal))
    monkeypatch.setattr(filterbank, "uniform", elsewhere(uniform))
    assert filterbank_weights().sha256 == here


def counts(level):
    return (STROKES[level], GRAINS[level]) if level < len(STROKES) else (0, GRAINS[-1])


def test_every_filter_has_unit_norm(tensors):
    for level in range(LEVELS):
        filters = tensors[f"response{level}.weight"]
        norms = np.sqrt(np.square(filters).sum(axis=(1, 2, 3)))
        # Rounding moves each number by at most half a quantum, and so the norm by that times √size.
        np.testing.assert_allclose(norms, 1, rtol=0, atol=HALF_QUANTUM * np.sqrt(filters[0].size))


def test_all_but_a_quarter_of_the_grains_see_no_flat_colour(tensors):
    for level in range(LEVELS):
        strokes, grains = counts(level)
        filters = tensors[f"response{level}.weight"]
        assert len(filters) == strokes + grains
        means = np.abs(filters.mean(axis=(2, 3)))
        coloured = np.arange(strokes, strokes + grains // 4)
        # The mean of what rounding changes is at most half a quantum.
        assert np.delete(means, coloured, axis=0).max() <= HALF_QUANTUM
        # The others see some colour at least, by chance more or less: a mean has a deviation of 10⁴ quanta.
        assert means[coloured].max(axis=1).min() > QUANTUM


def test_grains_are_noise_under_a_gaussian_from_the_levels_own_streams(seed, tensors):
    for level in (0, 1, LEVELS - 1):
        strokes, grains = counts(level)
        noise = normal(seed, 4 * level, grains * 3 * GRAIN_KERNEL**2).reshape(grains, 3, GRAIN_KERNEL, GRAIN_KERNEL)
        axis = 2 * np.arange(GRAIN_KERNEL) / (GRAIN_KERNEL - 1) - 1
        for index in (0, grains // 4 - 1, grains // 4, grains - 1):
            found = tensors[f"response{level}.weight"][strokes + index]
            expected = np.zeros_like(found)
            rim = (found.shape[-1] - GRAIN_KERNEL) // 2
            for row, y in enumerate(axis):
                for column, x in enumerate(axis):
                    value = noise[index, :, row, column] * np.exp(-2 * (x**2 + y**2))
                    expected[:, rim + row, rim + column] = value
            if index >= grains // 4:
                inner = expected[:, rim : rim + GRAIN_KERNEL, rim : rim + GRAIN_KERNEL]
                inner -= inner.mean(axis=(1, 2))[:, None, None]
            np.testing.assert_allclose(found, expected / np.linalg.norm(expected), rtol=0, atol=HALF_QUANTUM)


def test_strokes_are_gratings_in_a_window_from_the_levels_own_streams(seed, tensors):
    for level, count in enumerate(STROKES):
        shapes = uniform(seed, 4 * level + 2, 3 * count).reshape(3, count)
        colours = normal(seed, 4 * level + 3, 3 * count).reshape(count, 3)
        for index in range(count):
            share, pitch, phase = shapes[:, index]
            angle = np.pi * ((2 * (index + share) / count) % 1)
            frequency = FREQUENCIES[index % 2] * 2 ** (0.4 * (pitch - 0.5))
            window = np.empty((STROKE_KERNEL, STROKE_KERNEL))
            grating = np.empty_like(window)
            for row in range(STROKE_KERNEL):
                for column in range(STROKE_KERNEL):
                    y, x = row - STROKE_KERNEL // 2, column - STROKE_KERNEL // 2
                    u = x * np.cos(angle) + y * np.sin(angle)
                    v = -x * np.sin(angle) + y * np.cos(angle)
                    window[row, column] = np.exp(-(u**2) / (2 * (0.5 / frequency) ** 2) - v**2 / (2 * 2.0**2))
                    grating[row, column] = np.cos(2 * np.pi * (frequency * u + phase))
            grey = window * (grating - (window * grating).sum() / window.sum())
            expected = (1 / np.sqrt(3) + 0.4 * colours[index])[:, None, None] * grey
            found = tensors[f"response{level}.weight"][index]
            np.testing.assert_allclose(found, expected / np.linalg.norm(expected), rtol=0, atol=HALF_QUANTUM)


def test_each_frequency_has_strokes_of_every_orientation(seed):
    """A frequency has every other of N strokes: twice round the half circle in steps of 4/N, each off by up to 2/N."""
    for level, count in enumerate(STROKES):
        shares = uniform(seed, 4 * level + 2, 3 * count)[:count]
        turns = 2 * (np.arange(count) + shares) / count % 1
        for kind in range(2):
            gaps = np.diff(np.sort(turns[kind::2]), append=np.sort(turns[kind::2])[0] + 1)
            assert gaps.max() <= 6 / count


def test_offsets_are_normal_numbers_of_the_levels_own_stream(seed, tensors):
    for level in range(LEVELS):
        offsets = 0.8 * normal(seed, 4 * level + 1, sum(counts(level)))
        np.testing.assert_allclose(tensors[f"response{level}.offset"], offsets, rtol=0, atol=HALF_QUANTUM)


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
