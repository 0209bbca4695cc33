"""Parity of every VGG preset's loss terms and pixel gradient with float64, by both plans.

Three references, each less related to the code than the one before:

- the torch backend in float64, which shares the layer table and `Objective`;
- the same network and every recipe written out here from their publications, in float64 (`plain_features`, `RECIPES`);
- that network made to take the branches that ours took: which inputs of each ReLU passed, which element of each
  pooling window was the maximum.

The last settles what the others cannot. Where the inputs of a branch differ by rounding, float32 may take the other
one, and a single such flip moves the gradient by 1e-5 to 3e-3 of its norm, in torch's float32 as in ours. Which of the
two flips at a given picture is chance, so picture by picture "at most twice torch's error" cannot hold: the one has
1e-7 and the other 1e-3 as soon as only one of them flips, and so would two builds of torch. So on every case

- losses are within 1e-5 of float64's, and the gradient's cosine with float64's is at least 0.99999;
- the gradient is within 1e-5 (relative L2) of float64's on our branches, which is float64's own where nothing flips;
- each branch that differs is one that rounding can decide: by 1e-5 of the layer's largest value.

A recipe of these tests, ``mixed``, has Gram matrices at some taps and covariances at others, which no preset has. The
filter bank is in test_parity_filterbank.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from impasto.export.forward import forward_graph
from impasto.export.objective import MEAN_SHARE
from impasto.models.conventions import pixel_space
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.backends.torch import TorchBackend
from impasto.runtime.problem import Problem
from impasto.runtime.recipes import PRESETS
from impasto.runtime.targets import encoded, measure_targets

STYLE_TAPS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


# --- The recipes, as published --------------------------------------------------------------------------------------


def gram(features):
    flat = features[0].flatten(1)
    return flat @ flat.T


def covariance(features):
    """The covariance of the channels over the positions, and their mean."""
    flat = features[0].flatten(1)
    mean = flat.mean(dim=1, keepdim=True)
    return (flat - mean) @ (flat - mean).T / flat.shape[1], mean


def numbers(features):
    """C and N of a tap."""
    return features.shape[1], features.shape[2] * features.shape[3]


def differences(image):
    return image[:, :, :, 1:] - image[:, :, :, :-1], image[:, :, 1:, :] - image[:, :, :-1, :]


def gatys(f, p, s, image):
    yield "content.relu4_2", 0.5 * ((f["relu4_2"] - p["relu4_2"]) ** 2).sum()
    for tap in STYLE_TAPS:
        c, n = numbers(f[tap])
        energy = ((gram(f[tap]) - gram(s[tap])) ** 2).sum() / (4 * c**2 * n**2)
        yield f"style.{tap}", 1e3 * (1 / 5) * energy  # α/β = 1e-3 with α = 1


def keras_style(f, s, image, weight):
    height, width = image.shape[2:]
    for tap in STYLE_TAPS:
        squares = ((gram(f[tap]) - gram(s[tap])) ** 2).sum()
        yield f"style.{tap}", weight / 5 * squares / (4 * 3**2 * (height * width) ** 2)


def keras_variation(image, weight):
    dx = image[:, :, :-1, :-1] - image[:, :, :-1, 1:]
    dy = image[:, :, :-1, :-1] - image[:, :, 1:, :-1]
    yield "tv", weight * ((dx**2 + dy**2) ** 1.25).sum()


def keras(f, p, s, image):
    yield "content.relu5_2", 0.025 * ((f["relu5_2"] - p["relu5_2"]) ** 2).sum()
    yield from keras_style(f, s, image, 1.0)
    yield from keras_variation(image, 1e-4)


def keras_io(f, p, s, image):
    yield "content.relu5_2", 2.5e-8 * ((f["relu5_2"] - p["relu5_2"]) ** 2).sum()
    yield from keras_style(f, s, image, 1e-6)
    yield from keras_variation(image, 1e-6)


def pytorch(f, p, s, image):
    yield "content.conv2_2", ((1.0 * f["conv2_2"] - 1.0 * p["conv2_2"]) ** 2).mean()
    for tap in ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"):
        own, target = (gram(x[tap]) / np.prod(numbers(x[tap])) for x in (f, s))
        yield f"style.{tap}", ((1000 * own - 1000 * target) ** 2).mean()


def johnson(f, p, s, image):
    yield "content.relu4_2", 5 * ((f["relu4_2"] - p["relu4_2"]) ** 2).mean()
    for tap in STYLE_TAPS:
        own, target = (gram(x[tap]) / np.prod(numbers(x[tap])) for x in (f, s))
        yield f"style.{tap}", 100 * ((own - target) ** 2).mean()
    dx, dy = differences(image)
    yield "tv", 1e-3 * 0.5 * ((dx**2).sum() + (dy**2).sum())


def gordic(f, p, s, image):
    yield "content.relu4_2", 1e5 * ((f["relu4_2"] - p["relu4_2"]) ** 2).mean()
    for tap in STYLE_TAPS:
        own, target = (gram(x[tap]) / np.prod(numbers(x[tap])) for x in (f, s))
        yield f"style.{tap}", 3e4 * ((own - target) ** 2).sum() / 5
    dx, dy = differences(image)
    yield "tv", 1.0 * (dx.abs().sum() + dy.abs().sum())


def gatys_notebook(f, p, s, image):
    yield "content.relu4_2", ((f["relu4_2"] - p["relu4_2"]) ** 2).mean()
    for tap in STYLE_TAPS:
        own, target = (gram(x[tap]) / numbers(x[tap])[1] for x in (f, s))
        yield f"style.{tap}", 1e3 / numbers(f[tap])[0] ** 2 * ((own - target) ** 2).mean()


def impasto(f, p, s, image):
    """Ours to tune: its weights are taken from the preset, its form (relative errors) is written out."""
    objective = PRESETS["impasto"].objective
    for tap, weight in objective.content.items():
        yield f"content.{tap}", weight * ((f[tap] - p[tap]) ** 2).sum() / (p[tap] ** 2).sum()
    for tap, weight in objective.style.items():
        own, target = (gram(x[tap]) / numbers(x[tap])[1] for x in (f, s))
        yield f"style.{tap}", weight * ((own - target) ** 2).sum() / (target**2).sum()
    if objective.tv:
        dx, dy = differences(image)
        yield "tv", objective.tv * 0.5 * ((dx**2).sum() + (dy**2).sum())


MIXED = replace(
    PRESETS["johnson"],
    name="mixed",
    objective=replace(
        PRESETS["johnson"].objective, statistics=dict.fromkeys(("relu1_1", "relu3_1", "relu5_1"), "covariance")
    ),
)


def mixed(f, p, s, image):
    """johnson with covariances, whose term has norms of its own, at every other tap; the mean's share is taken."""
    for term, value in johnson(f, p, s, image):
        tap = term.removeprefix("style.")
        if tap in MIXED.objective.statistics:
            (own, mean), (target, target_mean) = (covariance(x[tap]) for x in (f, s))
            spread = ((own - target) ** 2).sum() / (target**2).sum()
            level = ((mean - target_mean) ** 2).sum() / (target_mean**2).sum()
            value = 100 * ((1 - MEAN_SHARE) * spread + MEAN_SHARE * level)
        yield term, value


VGG = {name: preset for name, preset in PRESETS.items() if preset.weights == "vgg19"} | {"mixed": MIXED}

RECIPES = {
    "mixed": mixed,
    "impasto": impasto,
    "gatys": gatys,
    "keras": keras,
    "pytorch": pytorch,
    "johnson": johnson,
    "gordic": gordic,
    "keras-io": keras_io,
    "gatys-notebook": gatys_notebook,
}
AVERAGE = {"gatys", "gatys-notebook"}
# What the network is given and what the weights were trained on are told apart by the recipe's convention.
RECIPE_CONVENTION = dict.fromkeys(RECIPES, "caffe") | {"pytorch": "torchvision", "gordic": "torchvision"}
# Pixels of a picture in 0–1, channels first.
PIXELS = {
    "caffe": lambda rgb: rgb.flip(1) * 255 - column(103.939, 116.779, 123.68),
    "pytorch": lambda rgb: rgb,
    "gordic": lambda rgb: rgb * 255 - column(123.675, 116.28, 103.53),
}


def column(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1)


def plain_image(name, rgb):
    """A picture (H, W, 3) as the recipe writes it, in float64."""
    planes = torch.from_numpy(rgb.transpose(2, 0, 1)[None].astype(np.float64))
    return PIXELS.get(name, PIXELS["caffe"])(planes)


def to_convention(x, given, wanted):
    """Numbers of one convention of weights as those of the other."""
    mean, std = column(0.485, 0.456, 0.406), column(0.229, 0.224, 0.225)
    means = column(103.939, 116.779, 123.68)
    if given == wanted:
        return x
    if wanted == "caffe":
        return (x * std + mean).flip(1) * 255 - means
    return (((x + means) / 255).flip(1) - mean) / std


@dataclass
class Branches:
    """Which inputs of each ReLU passed, and which element of each pooling window was the maximum."""

    passed: Mapping[str, torch.Tensor]
    maxima: Mapping[str, torch.Tensor]

    def differing(self, other):
        """Tell whether any branch differs."""
        pairs = [(self.passed[k], other.passed[k]) for k in self.passed]
        pairs += [(self.maxima[k], other.maxima[k]) for k in self.maxima]
        return any(not torch.equal(a, b) for a, b in pairs)


def plain_features(tensors, layers, x, average, branches=None):
    """The output of each of VGG's layers, by plain torch functions; ``tensors`` are the weights, in float64."""
    found = {}
    for layer in layers:
        if layer.startswith("conv"):
            x = nnf.conv2d(x, tensors[f"{layer}.weight"], tensors[f"{layer}.bias"], padding=1)
        elif layer.startswith("relu"):
            x = x.relu() if branches is None else x * branches.passed[layer]
        elif average:
            x = nnf.avg_pool2d(x, 2)
        elif branches is None:
            x = nnf.max_pool2d(x, 2)
        else:
            chosen = branches.maxima[layer]
            x = x.flatten(2).gather(2, chosen.flatten(2)).reshape(chosen.shape)
        found[layer] = x
    return found


def branches_of(features, average):
    """The branches that these outputs of all layers, ReLUs and pools at least, came by."""
    passed, maxima, before = {}, {}, None
    for layer, value in features.items():
        value = torch.as_tensor(value)
        if layer.startswith("relu"):
            passed[layer] = value > 0
        elif layer.startswith("pool") and not average:
            maxima[layer] = nnf.max_pool2d(before, 2, return_indices=True)[1]
        before = value
    return Branches(passed, maxima)


# --- Measuring one case ----------------------------------------------------------------------------------------------


@dataclass
class Found:
    """Losses and gradient of one way to compute them."""

    terms: Mapping[str, float]
    gradient: np.ndarray


def distance(a, b):
    """Relative L2 distance of a from b."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def cosine(a, b):
    return float(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def assert_terms(found, expected, tolerance=1e-5):
    assert list(found) == list(expected)
    for term, value in expected.items():
        assert found[term] == pytest.approx(value, rel=tolerance, abs=0), term


def losses_and_gradient(recipe, features_of, image, content, style, terms):
    """The recipe's terms, of those wanted, and the gradient of their sum by autograd."""
    image = image.clone().requires_grad_()
    features = features_of(image)
    values = dict(recipe(_Partial(features), _Partial(content), _Partial(style), image))
    values = {term: values[term] for term in terms}
    sum(values.values()).backward()
    return Found({term: value.item() for term, value in values.items()}, image.grad.numpy())


class _Partial(dict):
    """Features of which the deep ones may be missing; terms on those are of no interest."""

    def __missing__(self, tap):
        return torch.ones(1, 1, 1, 1, dtype=torch.float64)


def check_flips(features, exact, ours):
    """Assert that rounding can have decided every branch that differs: 1e-5 of the layer's largest value."""
    layers = list(features)
    for layer, passed in exact.passed.items():
        before = features[layers[layers.index(layer) - 1]]
        flipped = before[passed != ours.passed[layer]]
        assert (flipped.abs() <= 1e-5 * before.abs().max()).all(), layer
    for layer, chosen in exact.maxima.items():
        before = features[layers[layers.index(layer) - 1]].flatten(2)
        loss = before.gather(2, chosen.flatten(2)) - before.gather(2, ours.maxima[layer].flatten(2))
        assert (loss.abs() <= 1e-5 * before.abs().max()).all(), layer


class Parity:
    """Checks cases on one ONNX Runtime backend."""

    def __init__(self):
        self.backend = OnnxRuntimeBackend()
        self.exact = TorchBackend(torch.float64)
        self._doubled = {}

    def check(self, preset, weights, content, style, rgb, *, torch_backend=False):
        """Check a picture (H, W, 3) by everything that this file's first lines say.

        ``torch_backend``: check that the torch backend in float64 agrees with the plain formulas, too.
        """
        name, objective = preset.name, preset.objective
        average, net = name in AVERAGE, weights.backbone
        layers = net.taps[: max(net.taps.index(tap) for tap in objective.taps) + 1]
        tensors = self._in_double(weights)

        def features_of(image, branches=None):
            x = to_convention(image, RECIPE_CONVENTION[name], weights.convention.name)
            return plain_features(tensors, layers, x, average, branches)

        with torch.no_grad():
            p, s = (features_of(plain_image(name, picture)) for picture in (content, style))
        image = encoded(objective, rgb)
        np.testing.assert_allclose(image, plain_image(name, rgb), rtol=1e-6, atol=1e-5)
        # From here on the image is what was rounded to float32, for all.
        exact_image = torch.from_numpy(image).double()
        truth = losses_and_gradient(RECIPES[name], features_of, exact_image, p, s, objective.terms)

        targets = measure_targets(self.backend, weights, objective, content, style)
        problem = Problem(objective, weights, targets, rgb.shape[:2])
        if torch_backend:
            exact_targets = measure_targets(self.exact, weights, objective, content, style)
            found = self.run(self.exact, "fused", Problem(objective, weights, exact_targets, rgb.shape[:2]), image)
            # Targets and gradient pass through float32 on their way: 6e-8, times what cancels in F - P and G - A.
            assert_terms(found.terms, truth.terms, 2e-6)
            assert distance(found.gradient, truth.gradient) <= 2e-6

        features = features_of(exact_image)
        exact = branches_of(features, average)
        ours = branches_of(self._features(objective, weights, image, layers), average)
        on_ours = truth
        if exact.differing(ours):
            check_flips(features, exact, ours)
            on_ours = losses_and_gradient(
                RECIPES[name], lambda x: features_of(x, ours), exact_image, p, s, objective.terms
            )
        for plan in ("fused", "sliced"):
            found = self.run(self.backend, plan, problem, image)
            assert_terms(found.terms, truth.terms)
            assert cosine(found.gradient, truth.gradient) >= 0.99999
            assert distance(found.gradient, on_ours.gradient) <= 1e-5

    def _in_double(self, weights):
        if weights.sha256 not in self._doubled:
            tensors = {name: torch.from_numpy(value).double() for name, value in weights.tensors.items()}
            self._doubled = {weights.sha256: tensors}
        return self._doubled[weights.sha256]

    def _features(self, objective, weights, image, layers):
        space, shape = pixel_space(objective.convention), image.shape[2:]
        graph = forward_graph(weights, layers, pooling=objective.pooling, space=space, shape=shape)
        outputs = self.backend.compile(graph).run({"image": image})
        return {layer: torch.from_numpy(outputs[layer]) for layer in layers}

    @staticmethod
    def run(backend, plan, problem, image):
        losses = backend.prepare(problem, plan).evaluate(image)
        return Found(losses.terms, losses.gradient.astype(np.float64))


@pytest.fixture(scope="module")
def parity():
    return Parity()


# --- The cases -------------------------------------------------------------------------------------------------------


def restricted(preset, weights):
    """The preset's terms on the taps that the weights reach."""
    objective, reached = preset.objective, weights.taps
    content = {tap: weight for tap, weight in objective.content.items() if tap in reached}
    style = {tap: weight for tap, weight in objective.style.items() if tap in reached}
    statistics = {tap: statistic for tap, statistic in objective.statistics.items() if tap in style}
    return replace(preset, objective=replace(objective, content=content, style=style, statistics=statistics))


def style_size(preset, height, width):
    """The result's, where the recipe says so; otherwise another, and an odd one."""
    return (height, width) if preset.style_fit == "result" else (height + 9, width + 20)


@pytest.mark.parametrize("name", VGG)
def test_on_weights_of_caffes_convention(parity, picture, vgg19, name):
    preset, size = VGG[name], (19, 35)
    style = picture(2, *style_size(preset, *size))
    parity.check(preset, vgg19, picture(1, *size), style, picture(3, *size), torch_backend=True)


@pytest.mark.parametrize("name", VGG)
def test_on_weights_of_torchvisions_convention(parity, picture, vgg19_torchvision, name):
    preset, size = VGG[name], (64, 64)
    style = picture(5, *style_size(preset, *size))
    parity.check(preset, vgg19_torchvision, picture(4, *size), style, picture(6, *size))


@pytest.mark.parametrize("name", ["johnson", "gatys"])
def test_on_a_size_that_no_pool_divides(parity, picture, vgg19, name):
    preset, size = VGG[name], (203, 151)
    style = picture(8, *style_size(preset, *size))
    parity.check(preset, vgg19, picture(7, *size), style, picture(9, *size))


@pytest.mark.parametrize("name", VGG)
def test_on_the_real_blocks(parity, picture, real_blocks, name):
    preset, size = restricted(VGG[name], real_blocks), (48, 39)
    style = picture(11, *style_size(preset, *size))
    parity.check(preset, real_blocks, picture(10, *size), style, picture(12, *size))


@pytest.mark.parametrize("name", ["johnson", "gordic", "keras", "gatys-notebook", "mixed"])
@pytest.mark.parametrize("size", [(4, 4), (5, 16), (13, 4), (16, 15)])
def test_on_tiny_pictures(parity, picture, shallow, name, size):
    preset = restricted(VGG[name], shallow)
    style = picture(14, *style_size(preset, *size))
    parity.check(preset, shallow, picture(13, *size), style, picture(15, *size))


@pytest.mark.parametrize("name", ["johnson", "keras", "gatys", "mixed"])
def test_on_constant_pictures_where_every_maximum_is_a_tie(parity, picture, shallow, name):
    preset, size = restricted(VGG[name], shallow), (21, 26)
    style = picture(17, *style_size(preset, *size))
    grey = np.full((*size, 3), 0.4, np.float32)
    parity.check(preset, shallow, picture(16, *size), style, grey)


@pytest.mark.parametrize("name", ["johnson", "gatys", "mixed"])
def test_on_a_picture_of_two_greys(parity, picture, shallow, name):
    """Flat areas that meet: ties inside, edges across windows."""
    preset, size = restricted(VGG[name], shallow), (22, 27)
    halves = np.where(np.indices(size).sum(axis=0) < 22, np.float32(0.25), np.float32(0.75))
    style = picture(18, *style_size(preset, *size))
    parity.check(preset, shallow, picture(19, *size), style, np.repeat(halves[:, :, None], 3, axis=2))


FLIP = 1e-3
"""The relative error of torch's float32 gradient where something flips, at 128 to 512 px: measured, up to this."""


def test_johnson_at_512(picture, vgg19):
    """A full-size picture, where a wrong scale would show; too large for the branches to be followed."""
    backend, single, exact = OnnxRuntimeBackend(), TorchBackend(), TorchBackend(torch.float64)
    preset, size = PRESETS["johnson"], (512, 512)
    targets = measure_targets(backend, vgg19, preset.objective, picture(20, *size), picture(21, 160, 200))
    problem = Problem(preset.objective, vgg19, targets, size)
    image = encoded(preset.objective, picture(22, *size))
    truth = Parity.run(exact, "fused", problem, image)
    by_torch = distance(Parity.run(single, "fused", problem, image).gradient, truth.gradient)
    for plan in ("fused", "sliced"):
        found = Parity.run(backend, plan, problem, image)
        backend.close()
        assert_terms(found.terms, truth.terms)
        assert cosine(found.gradient, truth.gradient) >= 0.99999
        assert distance(found.gradient, truth.gradient) <= 2 * max(by_torch, FLIP)
