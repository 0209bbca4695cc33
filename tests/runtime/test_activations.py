from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from impasto.export.objective import Objective
from impasto.models.conventions import TORCHVISION
from impasto.models.random_weights import random_weights
from impasto.models.weights import Weights
from impasto.runtime.targets import encoded

torch = pytest.importorskip("torch")

from impasto.models.reference import Reference  # noqa: E402
from impasto.runtime.activations import Activations  # noqa: E402

OBJECTIVE = Objective(content={"relu1_2": 1.0}, style={"relu2_1": 1.0})
Pictures = Callable[..., NDArray[np.float32]]


def _single(kernel: float) -> Weights:
    """VGG-19 up to conv2_1 whose every convolution copies its first channel's centre, times ``kernel``."""
    weights = random_weights("vgg19", 0, TORCHVISION, last_conv="conv2_1")
    tensors = {name: np.zeros_like(value) for name, value in weights.tensors.items()}
    for name, value in tensors.items():
        if name.endswith("weight"):
            value[0, 0, 1, 1] = kernel
    return Weights("single", weights.backbone, weights.convention, tensors)


def test_taps_and_gradients_are_the_references(shallow: Weights, picture: Pictures) -> None:
    image = encoded(OBJECTIVE, picture(1, 9, 14))
    activations = Activations(shallow, OBJECTIVE)
    activations.compute(image)
    x = torch.from_numpy(image).double().requires_grad_()
    tap = Reference(shallow, ["relu2_1"], dtype=torch.float64)(x)["relu2_1"]
    np.testing.assert_array_equal(activations.tap("relu2_1"), tap.detach().numpy())
    seed = np.random.default_rng(2).standard_normal(tap.shape).astype(np.float32)
    (tap * torch.from_numpy(seed)).sum().backward()
    exact, rounded = activations.gradients("relu2_1", seed)
    np.testing.assert_allclose(exact, x.grad.numpy(), rtol=1e-6)
    assert 0 < np.linalg.norm(rounded - exact) < 1e-3 * np.linalg.norm(exact)


BANK = Objective(content={"bank0": 1.0}, style={"response1": 1.0}, pixels="unit", convention="unit")


def _calibrated(bank: Weights, style: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    x = torch.from_numpy(encoded(BANK, style)).double()
    calibration = Reference(bank, BANK.taps, dtype=torch.float64).calibrate(x)
    return {name: value.float().numpy() for name, value in calibration.items()}


def test_taps_and_gradients_of_filters_are_the_references(bank: Weights, picture: Pictures) -> None:
    calibration = _calibrated(bank, picture(3, 12, 11))
    image = encoded(BANK, picture(1, 11, 14))
    activations = Activations(bank, BANK, calibration)
    activations.compute(image)
    x = torch.from_numpy(image).double().requires_grad_()
    inputs = {name: torch.from_numpy(value).double() for name, value in calibration.items()}
    taps = Reference(bank, BANK.taps, dtype=torch.float64)(x, inputs)
    stream = np.random.default_rng(2)
    for tap in BANK.taps:
        np.testing.assert_array_equal(activations.tap(tap), taps[tap].detach().numpy())
        seed = stream.standard_normal(taps[tap].shape).astype(np.float32)
        (wanted,) = torch.autograd.grad(taps[tap], x, torch.from_numpy(seed).double(), retain_graph=True)
        exact, rounded = activations.gradients(tap, seed)
        np.testing.assert_allclose(exact, wanted.numpy(), rtol=1e-6)
        assert 0 < np.linalg.norm(rounded - exact) < 1e-3 * np.linalg.norm(exact)


def test_a_response_that_just_reaches_its_threshold_is_a_flip_waiting(bank: Weights, picture: Pictures) -> None:
    """Where a ReLU follows: level 1 is compared before its own, and may lie anywhere."""
    calibration = _calibrated(bank, picture(3, 12, 11))
    plain, least = Activations(bank, BANK, calibration), bank.backbone.smallest("response1")
    # A few of the thousands of responses may lie near their thresholds by chance.
    for seed in range(8):
        image = encoded(BANK, picture(seed, least, least + 1))
        plain.compute(image)
        if plain.clear:
            break
    assert plain.clear
    for name, clear in (("response0", False), ("response1", True)):
        threshold = calibration[f"{name}.threshold"].copy()
        threshold[5] += plain.tap(name)[0, 5, 1, 2]
        nudged = Activations(bank, BANK, {**calibration, f"{name}.threshold": threshold})
        nudged.compute(image)
        assert nudged.clear is clear


@pytest.mark.parametrize(("pooling", "clear"), [("max", False), ("average", True)])
def test_two_equals_in_a_pooling_window_are_a_flip_waiting(pooling: str, clear: bool) -> None:
    objective = Objective(
        content={"relu2_1": 1.0},
        style={},
        pooling=pooling,
        pixels="torchvision",
        convention="torchvision",  # type: ignore[arg-type]
    )
    activations = Activations(_single(1.1), objective)
    image = np.arange(1, 1 + 3 * 4 * 4, dtype=np.float32).reshape(1, 3, 4, 4) / 7
    activations.compute(image)
    assert activations.clear
    image[0, 0, 1, 0] = np.nextafter(image[0, 0, 1, 1], np.float32(0))
    activations.compute(image)
    assert activations.clear is clear


def test_an_input_of_a_relu_near_zero_is_a_flip_waiting() -> None:
    objective = Objective(content={"relu1_2": 1.0}, style={}, pixels="torchvision", convention="torchvision")
    activations = Activations(_single(1.1), objective)
    image = np.arange(1, 1 + 3 * 4 * 4, dtype=np.float32).reshape(1, 3, 4, 4) / 7
    for value, clear in ((-1.0, True), (1e-9, False), (-1e-9, False), (0.0, True)):
        image[0, 0, 2, 2] = value
        activations.compute(image)
        assert activations.clear is clear


def test_clear_pictures_have_no_flips(shallow: Weights, picture: Pictures) -> None:
    """Of small random pictures some are clear, some are not; a clear one's gradient is the same in float32."""
    activations = Activations(shallow, OBJECTIVE)
    found = []
    for seed in range(12):
        image = encoded(OBJECTIVE, picture(seed, 6, 8))
        activations.compute(image)
        exact, rounded = activations.gradients("relu2_1", np.ones_like(activations.tap("relu2_1"), np.float32))
        error = float(np.linalg.norm(rounded - exact) / np.linalg.norm(exact))
        found.append(activations.clear)
        assert error < 1e-5 or not activations.clear
    assert any(found)
