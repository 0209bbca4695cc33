from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Function = Callable[[Vector], tuple[float, Vector]]


class Recorder:
    """Wraps a function; keeps copies of the points where it was evaluated, and what the losses were."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self.points: list[Vector] = []
        self.losses: list[float] = []

    def __call__(self, x: Vector) -> tuple[float, Vector]:
        self.points.append(x.copy())
        loss, gradient = self._function(x)
        self.losses.append(loss)
        return loss, gradient


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def quadratic() -> Callable[..., Function]:
    """½Σcᵢ(xᵢ−1)², c from 1/condition to 1, evaluated in float64 and rounded; 0 at x = 1."""

    def make(size: int, condition: float = 100.0) -> Function:
        curvatures = np.geomspace(1 / condition, 1, size)

        def function(x: Vector) -> tuple[float, Vector]:
            away = x.astype(np.float64) - 1
            return 0.5 * float(curvatures @ away**2), (curvatures * away).astype(np.float32)

        return function

    return make


@pytest.fixture
def rosenbrock() -> Function:
    """Σ 100(xᵢ₊₁−xᵢ²)² + (1−xᵢ)²; 0 at x = 1."""

    def function(x: Vector) -> tuple[float, Vector]:
        x64 = x.astype(np.float64)
        bend = x64[1:] - x64[:-1] ** 2
        gradient = np.zeros_like(x64)
        gradient[:-1] = -400 * x64[:-1] * bend - 2 * (1 - x64[:-1])
        gradient[1:] += 200 * bend
        return float(100 * bend @ bend + ((1 - x64[:-1]) ** 2).sum()), gradient.astype(np.float32)

    return function


@pytest.fixture
def style() -> Iterator[Callable[[int], tuple[Function, Vector]]]:
    """A small style transfer in float32: Grams and activations of two random convolutions, and a random start."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    # Threads that wait for each other over such small convolutions take fifty times as long on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def make(seed: int) -> tuple[Function, Vector]:
        stream = torch.Generator().manual_seed(seed)
        first = torch.randn(16, 3, 3, 3, generator=stream) * (2 / 27) ** 0.5
        second = torch.randn(24, 16, 3, 3, generator=stream) * (2 / 144) ** 0.5
        picture, content = torch.rand(2, 1, 3, 24, 24, generator=stream)
        start = torch.rand(3 * 24 * 24, generator=stream).numpy()

        def taps(x):
            shallow = torch.relu(functional.conv2d(x, first, padding=1))
            return shallow, torch.relu(functional.conv2d(functional.avg_pool2d(shallow, 2), second, padding=1))

        def gram(tap):
            matrix = tap.flatten(1).reshape(tap.shape[1], -1)
            return matrix @ matrix.T / matrix.numel()

        grams = [gram(tap) for tap in taps(picture)]
        target = taps(content)[1]

        def function(x: Vector) -> tuple[float, Vector]:
            pixels = torch.from_numpy(x.copy()).reshape(1, 3, 24, 24).requires_grad_()
            found = taps(pixels)
            loss = ((found[1] - target) ** 2).mean()
            for tap, wanted in zip(found, grams, strict=True):
                loss = loss + 100 * ((gram(tap) - wanted) ** 2).sum()
            loss.backward()
            return loss.item(), pixels.grad.flatten().numpy()

        return function, start

    yield make
    torch.set_num_threads(threads)
