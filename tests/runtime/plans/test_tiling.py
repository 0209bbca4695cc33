from __future__ import annotations

import math

import numpy as np
import pytest

from impasto.errors import LimitError
from impasto.export.graph import Graph
from impasto.export.objective import Objective
from impasto.runtime.plans.memory import live_bytes
from impasto.runtime.plans.tiling import array_bytes, kept_content, tile
from impasto.runtime.recipes import FILTERBANK, PRESETS

MIB = 1 << 20


def test_a_tensor_lives_from_where_it_is_made_to_where_it_is_read_last():
    graph = Graph()
    graph.input("x", (10,))
    graph.weight("w", np.zeros(10, np.float32))
    a = graph.add("Exp", "x")  # x, a
    b = graph.add("Exp", a)  # x, a, b
    c = graph.add("Exp", b)  # x, a, b, c: a is read again
    d = graph.add("Mul", a, c)  # x, a, c, and d in the place of one of them
    graph.outputs = [graph.add("Reshape", d, graph.ints(2, 5))]
    assert live_bytes(graph) == 4 * 10 * 4


def test_a_transposed_convolution_holds_every_product_of_its_kernel():
    graph = Graph()
    graph.input("x", (1, 8, 6, 5))
    kernel = graph.weight("w", np.zeros((8, 3, 7, 7), np.float32))
    graph.outputs = [graph.add("ConvTranspose", "x", kernel, kernel_shape=[7, 7])]
    assert live_bytes(graph) == 4 * (8 * 30 + 3 * 12 * 11 + 3 * 49 * 30)


def test_without_a_limit_there_is_one_window_a_piece(bank):
    objective = FILTERBANK.objective_at(bank, (200, 300))
    found = tile(bank, objective, (200, 300))
    assert [each.count for each in found.layouts] == [1] * len(objective.style)
    assert found.overhead == 1
    assert found.count == len(objective.style)


@pytest.mark.parametrize("memory", [60, 100, 200, 400])
@pytest.mark.parametrize("size", [256, 777, 2048])
def test_windows_keep_to_the_limit_and_use_most_of_it(bank, memory, size):
    objective = FILTERBANK.objective_at(bank, (size, size))
    whole = tile(bank, objective, (size, size)).window_bytes
    found = tile(bank, objective, (size, size), memory * MIB)
    assert found.window_bytes <= memory * MIB
    assert found.window_bytes >= 0.8 * min(memory * MIB, whole)


def test_more_memory_means_less_overhead(vgg19):
    objective = PRESETS["johnson"].objective
    overheads = [tile(vgg19, objective, (2000, 3000), memory * MIB).overhead for memory in (1200, 2000, 4000)]
    assert overheads == sorted(overheads, reverse=True)
    assert overheads[0] > overheads[-1] > 1
    found = tile(vgg19, objective, (2000, 3000), 2000 * MIB)
    (only,) = found.layouts
    assert found.overhead == only.count * math.prod(only.window) / 6e6


def test_a_limit_that_nothing_fits_in_is_an_error(bank):
    with pytest.raises(LimitError, match="smallest tiles of 90x80 px"):
        tile(bank, FILTERBANK.objective_at(bank, (80, 90)), (80, 90), 1000)


def test_arrays_are_the_gradient_and_twice_every_level(bank, vgg19):
    objective = Objective(content={}, style={"bank0": 1.0, "bank2": 1.0})
    assert array_bytes(bank, objective, (41, 50)) == 12 * (41 * 50 + 2 * 21 * 25 + 2 * 11 * 13)
    assert array_bytes(vgg19, PRESETS["johnson"].objective, (41, 50)) == 12 * 41 * 50


def test_content_is_kept_for_all_taps_or_none(vgg19, bank):
    assert kept_content(vgg19, Objective(content={"relu4_2": 1.0}, style={}), (64, 64)) == ("relu4_2",)
    both = Objective(content={"relu4_2": 1.0, "relu3_1": 1.0}, style={})
    assert kept_content(vgg19, both, (64, 64)) == ()
    assert kept_content(bank, FILTERBANK.objective, (1024, 1024)) == ()
