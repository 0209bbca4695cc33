"""Parity of the filter bank's loss terms and pixel gradient with float64, by both plans.

The rule is that of test_parity.py. The network and the objective are written out here once more, from what
`impasto.models.layers` and `impasto.export.objective` say in words, and share no code with any backend: paddings are
indices, halvings are sums of slices. Every case starts from the two pictures, so that it includes the calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from impasto.export.forward import forward_graph
from impasto.export.objective import MEAN_SHARE, Objective
from impasto.models.conventions import UNIT, pixel_space, smallest_deviation
from impasto.models.random_weights import filterbank_weights
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.backends.torch import TorchBackend
from impasto.runtime.images import resize
from impasto.runtime.problem import Problem
from impasto.runtime.recipes import FILTERBANK
from impasto.runtime.targets import encoded, measure_targets

# The preset's own, with as many levels as a picture has; and what it does not have: Gram matrices beside covariances, a
# tap before its ReLU, a level that only the content has, a total variation, and pixels of another space.
OWN = replace(FILTERBANK, smallest_grid=5)
OTHER = replace(
    OWN,
    objective=Objective(
        content={"bank1": 0.5, "bank2": 2.0},
        style={"bank0": 1.0, "response0": 0.5, "bank1": 3.0, "bank3": 0.25},
        tv=1e-7,
        statistics={"bank0": "covariance", "bank3": "covariance"},
        content_norm="relative",
        gram_norm="positions",
        style_norm="relative",
        pixels="caffe",
        convention="caffe",
    ),
)
OBJECTIVES = {"own": OWN, "other": OTHER}


# --- The network -----------------------------------------------------------------------------------------------------


def reflected(x, amount):
    """Surround by the reflection that leaves out the border itself: 2 1 | 0 1 2 … n-1 | n-2 n-3."""
    for axis in (2, 3):
        side = x.shape[axis]
        before, after = range(amount, 0, -1), range(side - 2, side - 2 - amount, -1)
        x = x.index_select(axis, torch.tensor([*before, *range(side), *after]))
    return x


def halved(x):
    """Every second row and column of (1, 4, 6, 4, 1)/16 of the reflected picture, in both directions."""
    for axis in (2, 3):
        count = (x.shape[axis] + 1) // 2
        side = x.shape[axis]
        places = [torch.arange(count) * 2 + shift for shift in (-2, -1, 0, 1, 2)]
        mirrored = [torch.where(at < 0, -at, torch.where(at >= side, 2 * (side - 1) - at, at)) for at in places]
        x = sum(w / 16 * x.index_select(axis, at) for w, at in zip((1, 4, 6, 4, 1), mirrored, strict=True))
    return x


@dataclass
class Bank:
    """The filter bank in float64, calibrated by a style picture in unit pixels, (1, 3, H, W)."""

    tensors: Mapping[str, torch.Tensor]
    levels: int
    style: torch.Tensor

    def __post_init__(self):
        self.calibration = {}
        for level, x in enumerate(self.pyramid(self.style)):
            response = self.response(level, x)[0].flatten(1)
            scale = 1 / response.std(dim=1, correction=0).clamp(min=smallest_deviation(UNIT))
            self.calibration[level] = scale, response.mean(dim=1) * scale + self.tensors[f"response{level}.offset"]

    def pyramid(self, x):
        for _ in range(self.levels):
            yield x
            x = halved(x)

    def response(self, level, x):
        weight = self.tensors[f"response{level}.weight"]
        return nnf.conv2d(reflected(x, weight.shape[2] // 2), weight)

    def features(self, x, passed=None):
        """Every response and bank by name; ``passed`` says for each bank which inputs its ReLU lets through."""
        found = {}
        for level, small in enumerate(self.pyramid(x)):
            scale, threshold = (part[:, None, None] for part in self.calibration[level])
            value = self.response(level, small) * scale - threshold
            found[f"response{level}"] = value
            found[f"bank{level}"] = value.relu() if passed is None else value * passed[f"bank{level}"]
        return found


# --- The objective ---------------------------------------------------------------------------------------------------


def relative(own, target):
    return ((own - target) ** 2).sum() / (target**2).sum()


def moments(features):
    """F·Fᵀ/N, the covariance, and the mean."""
    flat = features[0].flatten(1)
    mean = flat.mean(dim=1, keepdim=True)
    return flat @ flat.T / flat.shape[1], (flat - mean) @ (flat - mean).T / flat.shape[1], mean


def terms_of(objective, f, p, s, image):
    """Weights, the form of the content and the mean's share are ours to tune, and taken; style is relative."""
    for tap, weight in objective.content.items():
        form = {"relative": relative(f[tap], p[tap]), "mean": ((f[tap] - p[tap]) ** 2).mean()}
        yield f"content.{tap}", weight * form[objective.content_norm]
    for tap, weight in objective.style.items():
        (gram, covariance, mean), (target, target_covariance, target_mean) = moments(f[tap]), moments(s[tap])
        if tap in objective.statistics:
            spread, level = relative(covariance, target_covariance), relative(mean, target_mean)
            yield f"style.{tap}", weight * ((1 - MEAN_SHARE) * spread + MEAN_SHARE * level)
        else:
            yield f"style.{tap}", weight * relative(gram, target)
    if objective.tv:
        dx, dy = image[:, :, :, 1:] - image[:, :, :, :-1], image[:, :, 1:, :] - image[:, :, :-1, :]
        yield "tv", objective.tv * 0.5 * ((dx**2).sum() + (dy**2).sum())


def unit(image, pixels):
    """An image of the objective in unit pixels."""
    if pixels == "unit":
        return image
    means = torch.tensor((103.939, 116.779, 123.68), dtype=torch.float64).reshape(1, 3, 1, 1)
    return ((image + means) / 255).flip(1)


def planes(rgb):
    return torch.from_numpy(rgb.transpose(2, 0, 1)[None].astype(np.float64))


# --- Measuring one case ----------------------------------------------------------------------------------------------


def distance(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def cosine(a, b):
    return float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def assert_terms(found, expected, tolerance):
    assert list(found) == list(expected)
    for term, value in expected.items():
        assert found[term] == pytest.approx(value, rel=tolerance, abs=0), term


class Parity:
    """Checks cases on one ONNX Runtime backend."""

    def __init__(self):
        self.backend = OnnxRuntimeBackend()
        self.exact = TorchBackend(torch.float64)

    def check(self, preset, weights, content, style, rgb):
        """Check a picture, (H, W, 3), by everything that test_parity.py says; return the taps that were compared."""
        objective = preset.objective_at(weights, rgb.shape[:2], style.shape[:2])
        levels = 1 + max(int(tap[-1]) for tap in objective.taps)
        tensors = {name: torch.from_numpy(value).double() for name, value in weights.tensors.items()}
        # The pictures as they were rounded to float32, for all.
        image, content_image, style_image = (
            torch.from_numpy(encoded(objective, x)).double() for x in (rgb, content, style)
        )
        np.testing.assert_allclose(unit(image, objective.pixels), planes(rgb), rtol=0, atol=1e-7)
        net = Bank(tensors, levels, unit(style_image, objective.pixels))
        with torch.no_grad():
            p, s = (net.features(unit(x, objective.pixels)) for x in (content_image, style_image))

        def losses_and_gradient(passed=None):
            x = image.clone().requires_grad_()
            values = dict(terms_of(objective, net.features(unit(x, objective.pixels), passed), p, s, x))
            sum(values.values()).backward()
            return {term: values[term].item() for term in objective.terms}, x.grad.numpy()

        terms, gradient = losses_and_gradient()
        as_given, shape = image.float().numpy(), rgb.shape[:2]
        exact_targets = measure_targets(self.exact, weights, objective, content, style)
        found = self.exact.prepare(Problem(objective, weights, exact_targets, shape), "fused").evaluate(as_given)
        # Targets, calibration and gradient pass through float32 on their way: 6e-8, times what cancels.
        assert_terms(found.terms, terms, 3e-6)
        assert distance(found.gradient, gradient) <= 3e-6

        targets = measure_targets(self.backend, weights, objective, content, style)
        problem = Problem(objective, weights, targets, shape)
        with torch.no_grad():
            features = net.features(unit(image, objective.pixels))
        on_ours = losses_and_gradient(self._passed(problem, as_given, features))[1]
        for plan in ("fused", "sliced"):
            found = self.backend.prepare(problem, plan).evaluate(as_given)
            assert_terms(found.terms, terms, 1e-5)
            assert cosine(found.gradient, gradient) >= 0.99999
            assert distance(found.gradient.astype(np.float64), on_ours) <= 1e-5
        return objective.taps

    def _passed(self, problem, image, features):
        """Which inputs of each ReLU passed in float32, where rounding must have decided what differs from float64."""
        banks = [tap for tap in features if tap.startswith("bank")]
        space = pixel_space(problem.objective.convention)
        graph = forward_graph(problem.weights, banks, space=space, shape=problem.shape)
        outputs = self.backend.compile(graph).run({"image": image, **problem.targets.calibration})
        passed = {tap: torch.from_numpy(outputs[tap] > 0) for tap in banks}
        for tap, ours in passed.items():
            before = features[tap.replace("bank", "response")]
            flipped = before[(before > 0) != ours]
            assert (flipped.abs() <= 1e-5 * before.abs().max()).all(), tap
        return passed


@pytest.fixture(scope="module")
def parity():
    return Parity()


# --- The cases -------------------------------------------------------------------------------------------------------


def smooth(rgb):
    """A picture without detail, whose finest responses are small against its values: enlarged eight times."""
    height, width = rgb.shape[:2]
    return resize(resize(rgb, (max(1, width // 8), max(1, height // 8))), (width, height))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    ("size", "style_size", "levels"),
    [((16, 35), (28, 55), 2), ((64, 64), (73, 84), 4), ((97, 66), (64, 97), 4), ((33, 46), (40, 16), 2)],
)
def test_on_pictures(parity, picture, bank, name, size, style_size, levels):
    taps = parity.check(OBJECTIVES[name], bank, picture(1, *size), picture(2, *style_size), picture(3, *size))
    assert max(int(tap[-1]) for tap in taps) == levels - 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_on_pictures_without_detail(parity, picture, bank, name):
    content, style, rgb = (smooth(picture(seed, *size)) for seed, size in ((4, (48, 67)), (5, (70, 56)), (6, (48, 67))))
    parity.check(OBJECTIVES[name], bank, content, style, rgb)


def test_on_another_bank(parity, picture):
    parity.check(OWN, filterbank_weights(7), picture(7, 41, 38), picture(8, 38, 41), picture(9, 41, 38))


@pytest.mark.parametrize("more", [(0, 0), (1, 0), (0, 1), (2, 11)])
def test_on_the_smallest_pictures(parity, picture, bank, more):
    side = bank.backbone.smallest("bank0")
    size = side + more[0], side + more[1]
    assert set(parity.check(OWN, bank, picture(10, *size), picture(11, *size), picture(12, *size))) == {"bank0"}


def test_on_the_smallest_pictures_of_a_coarse_level(parity, picture, bank):
    side = bank.backbone.smallest("bank2")
    every = replace(OWN, smallest_grid=0, objective=OWN.objective.without([f"bank{k}" for k in range(3, 10)]))
    for size in ((side, side), (side, side + 1), (side + 1, side)):
        parity.check(every, bank, picture(13, *size), picture(14, *size), picture(15, *size))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_on_constant_pictures(parity, picture, bank, name):
    """The iterate may be anything; it is the style picture that calibrates."""
    size = 27, 34
    grey = np.full((*size, 3), 0.4, np.float32)
    parity.check(OBJECTIVES[name], bank, picture(16, *size), picture(17, 30, 31), grey)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_on_a_picture_of_two_greys(parity, picture, bank, name):
    size = 28, 33
    halves = np.where(np.indices(size).sum(axis=0) < 28, np.float32(0.25), np.float32(0.75))
    rgb = np.repeat(halves[:, :, None], 3, axis=2)
    parity.check(OBJECTIVES[name], bank, picture(18, *size), picture(19, 30, 31), rgb)
