"""``impasto evaluate``."""

from __future__ import annotations

import json

import numpy as np
import pytest

from impasto.runtime.default import choose


@pytest.fixture
def job(pictures):
    options = ["--preset", "pytorch", "--weights", pictures.weights]
    return ["evaluate", pictures.content, "--content", pictures.content, "--style", pictures.style, *options]


def test_terms_add_up_and_are_those_of_the_first_step_of_stylize(run, job, pictures, tmp_path):
    told = run(*job, "--json")
    assert (told.code, told.err) == (0, "")
    value = json.loads(told.out)
    loss = value["loss"]
    assert loss["total"] == pytest.approx(loss["content"] + loss["style"] + loss["tv"], rel=1e-12)
    assert sum(value["terms"].values()) == pytest.approx(loss["total"], rel=1e-12)
    assert loss["content"] == 0  # the picture is its own content
    # A stylize that starts from a picture of its own size evaluates the same at first.
    square = tmp_path / "square.png"
    stylize = ["stylize", pictures.content, pictures.style, "-o", square, "--weights", pictures.weights]
    painted = run(*stylize, "--preset", "pytorch", "--size", 32, "--iterations", 1, "--json")
    assert painted.code == 0
    again = ["evaluate", square, "--content", pictures.content, "--style", pictures.style, *job[-4:], "--json"]
    # Quantising to 8 bits moves every pixel by up to 1/510, and the loss, far from its minimum, by less than 5%.
    found = json.loads(run(*again).out)["loss"]["total"]
    assert found == pytest.approx(json.loads(painted.out)["loss"]["total"], rel=0.05)


def test_the_table_names_every_term(run, job):
    told = run(*job)
    assert (told.code, told.err) == (0, "")
    names = [line.split()[0] for line in told.out.splitlines()]
    assert {"content.conv2_2", "style.conv3_1", "total"} <= set(names)


def test_without_weights_it_is_the_filter_banks_objective(run, pictures, own_cache):
    job = ["evaluate", pictures.content, "--content", pictures.content, "--style", pictures.style]
    told = run(*job, "--json")
    assert told.code == 0
    assert told.err == f"impasto: {choose('impasto')[1]}\n"
    value = json.loads(told.out)
    assert (value["preset"], value["pixels"]) == ("filterbank", "unit")
    assert value["loss"]["content"] == 0 < value["loss"]["style"]
    # By name, the same without a word.
    told = run(*job, "--preset", "filterbank", "--json")
    assert (told.code, told.err) == (0, "")
    assert json.loads(told.out) == value
    table = run(*job, "--weights", "filterbank").out
    assert {line.split()[0] for line in table.splitlines()} >= {*value["terms"], "total"}


def test_the_gradient_is_that_of_the_loss(run, job, tmp_path, pictures):
    path = tmp_path / "gradient.npy"
    assert run(*job, "--gradient", path).code == 0
    gradient = np.load(path)
    assert gradient.shape == (3, 40, 56)  # the picture is 56×40
    assert gradient.dtype == np.float32
    assert np.isfinite(gradient).all()
    assert gradient.any()
    first = path.read_bytes()
    told = run(*job, "--gradient", path)
    assert (told.code, path.read_bytes()) == (2, first)
    assert "--force" in told.error
    # The loss is linear in its weights, and at the content picture only style pulls.
    assert run(*job, "--gradient", path, "--force", "--style-weight", 3e6).code == 0
    assert np.linalg.norm(np.load(path) - 3 * gradient) < 1e-4 * np.linalg.norm(gradient)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--preset", "pytroch"], 2, "pytorch"),
        (["--preset", "johnson"], 2, "relu4_2"),
        (["--backend", "onnx"], 2, "onnxruntime"),
        (["--weights", "missing.safetensors"], 5, "missing.safetensors"),
        (["--content", "missing.png"], 5, "missing.png"),
        (["--max-pixels", "100"], 4, "--max-pixels"),
        (["--gradient", "missing/gradient.npy"], 2, "missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_is_refused(run, job, args, code, words):
    told = run(*job, *args)
    assert (told.code, told.out) == (code, "")
    assert words in told.error
    assert len(told.err.splitlines()) == 1
