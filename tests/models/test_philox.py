import math

import numpy as np
import pytest

from impasto.models import philox

COUNT = 100_001
EPS = np.finfo(np.float64).eps
# Dvoretzky, Kiefer & Wolfowitz: the empirical distribution of n draws is further than this from the true one once in
# a million seeds (2 exp(-2nε²) = 1e-6).
DISTANCE = math.sqrt(math.log(2e6) / (2 * COUNT))


def distance(draws, distribution):
    """The Kolmogorov-Smirnov distance of draws and a distribution function."""
    expected = np.asarray([distribution(value) for value in np.sort(draws)])
    below = np.arange(len(draws)) / len(draws)
    return max(np.abs(expected - below).max(), np.abs(expected - below - 1 / len(draws)).max())


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers_of_random123(counter, key, words):
    # philox4x32-10 in the authors' kat_vectors.
    counter, key, words = ([int(word, 16) for word in text.split()] for text in (counter, key, words))
    found = philox.philox(np.asarray([counter], np.uint32), (key[0], key[1]))
    assert found.dtype == np.uint32
    assert found.tolist() == [words]


def test_each_counter_has_its_own_words_whatever_else_is_asked_for():
    counters = np.random.default_rng(1).integers(0, 1 << 32, (7, 4), dtype=np.uint32)
    together = philox.philox(counters, (5, 6))
    assert together.shape == (7, 4)
    for counter, words in zip(counters, together, strict=True):
        assert philox.philox(counter[None], (5, 6)).tolist() == [words.tolist()]


@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (7, 3), ((3 << 32) + 9, 1)])
def test_uniform_numbers_are_the_words_of_a_counter_of_index_and_stream(seed, stream):
    numbers = philox.uniform(seed, stream, 11)
    assert numbers.shape == (11,)
    for index, number in enumerate(numbers):
        counter = np.asarray([[index // 4, stream, 0, 0]], np.uint32)
        word = int(philox.philox(counter, (seed % 2**32, seed // 2**32))[0, index % 4])
        assert number == (word + 0.5) / 2**32


def test_the_numbers_do_not_depend_on_how_many_are_drawn():
    whole = philox.uniform(1, 2, 100)
    for count in (1, 2, 3, 4, 5, 99):
        assert np.array_equal(philox.uniform(1, 2, count), whole[:count])


def test_an_odd_number_of_normal_ones_is_a_prefix():
    whole = philox.normal(1, 2, 100)
    for count in (1, 2, 3, 7, 99):
        # NumPy may compute the last numbers of an array by another routine than the rest: an ulp of at most 7.
        np.testing.assert_allclose(philox.normal(1, 2, count), whole[:count], rtol=0, atol=4 * np.spacing(7.0))


@pytest.mark.parametrize("draw", [philox.uniform, philox.normal])
def test_streams_and_seeds_differ(draw):
    # The last seed differs from the first in the key's high word only, the last stream in the counter's top bit.
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (1 << 32, 0), (0, 1 << 31)]
    draws = np.stack([draw(seed, stream, COUNT) for seed, stream in pairs])
    # The correlation of independent draws has the standard error 1/√n, and none exceeds five of them but once in 10⁶.
    correlation = np.corrcoef(draws) - np.eye(len(pairs))
    assert np.abs(correlation).max() < 5 / math.sqrt(COUNT)


def test_uniform_numbers_are_uniform():
    assert distance(philox.uniform(3, 4, COUNT), lambda value: value) < DISTANCE


def test_normal_numbers_are_normal():
    numbers = philox.normal(3, 4, COUNT)
    assert numbers.dtype == np.float64
    assert distance(numbers, lambda value: (1 + math.erf(value / math.sqrt(2))) / 2) < DISTANCE
    # The moments 0, 1, 0, 3, each within five standard errors: z^k has the variance E z^2k - (E z^k)².
    for power, mean, variance in ((1, 0, 1), (2, 1, 3 - 1), (3, 0, 15), (4, 3, 105 - 9)):
        assert abs(np.mean(numbers**power) - mean) < 5 * math.sqrt(variance / COUNT)
    # The two of a pair and neighbours of two pairs do not go together, nor do their squares.
    for transformed in (numbers, numbers**2):
        for start in (0, 1):
            pairs = transformed[start : COUNT - 1 + start].reshape(-1, 2)
            assert abs(np.corrcoef(pairs.T)[0, 1]) < 5 / math.sqrt(len(pairs))


def test_a_pair_of_normal_numbers_says_from_which_uniform_ones_it_is():
    # Box and Muller: the squared radius is exponentially distributed, the angle uniformly.
    uniform = philox.uniform(5, 6, 1000).reshape(-1, 2)
    x, y = philox.normal(5, 6, 1000).reshape(-1, 2).T
    # An exponent of at most ln 2³³ = 23 is off by a few of its epsilons.
    np.testing.assert_allclose(np.exp(-(x**2 + y**2) / 2), uniform[:, 0], rtol=8 * 23 * EPS, atol=0)
    turns = np.arctan2(y, x) / (2 * np.pi)
    np.testing.assert_allclose((turns - uniform[:, 1] + 0.5) % 1, 0.5, rtol=0, atol=8 * EPS)


def test_the_first_and_the_last_word_are_inside_the_open_interval_and_finite(monkeypatch):
    extremes = np.asarray([[0, 0, 0, 0xFFFFFFFF], [0xFFFFFFFF, 0, 0xFFFFFFFF, 0xFFFFFFFF]], np.uint32)
    monkeypatch.setattr(philox, "philox", lambda *_: extremes)
    numbers = philox.uniform(0, 0, 8)
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert np.isfinite(philox.normal(0, 0, 8)).all()
