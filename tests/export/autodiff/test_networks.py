"""Whole small networks: the gradient with respect to the picture, through every rule on the way at once."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

PICTURE = (1, 3, "height", "width")


def weights(seed, **shapes):
    """Kernels (O, I, k, k) and vectors, scaled so that activations stay near 1; exact in float32."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32).astype(np.float64)
        for name, shape in shapes.items()
    }


FIRE = weights(
    1, stem=(6, 3, 3, 3), squeeze=(4, 6, 1, 1), left=(5, 4, 1, 1), right=(5, 4, 3, 3), bias=(5,), head=(7, 10, 1, 1)
)


def test_a_fire_module_and_a_classifier_head(prove):
    def build(graph):
        x = graph.add("Relu", graph.add("Conv", "x", "stem", strides=[2, 2]))
        x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
        x = graph.add("Relu", graph.add("Conv", x, "squeeze"))
        left = graph.add("Relu", graph.add("Conv", x, "left", "bias"))
        right = graph.add("Relu", graph.add("Conv", x, "right", "bias", pads=[1] * 4))
        x = graph.add("Dropout", graph.add("Concat", left, right, axis=1))
        x = graph.add("GlobalAveragePool", graph.add("Relu", graph.add("Conv", x, "head")))
        return graph.add("LogSoftmax", graph.add("Flatten", x), axis=1)

    def reference(x, stem, squeeze, left, right, bias, head):
        x = F.max_pool2d(F.relu(F.conv2d(x, stem, stride=2)), 3, 2, ceil_mode=True)
        x = F.relu(F.conv2d(x, squeeze))
        x = torch.cat([F.relu(F.conv2d(x, left, bias)), F.relu(F.conv2d(x, right, bias, padding=1))], 1)
        return F.log_softmax(F.relu(F.conv2d(x, head)).mean((2, 3)), 1)

    prove(build, reference, {"x": PICTURE, **FIRE}, sizes=[(17, 20), (12, 15)], terms=54)


RESIDUAL = weights(2, up=(4, 3, 1, 1), first=(4, 4, 3, 3), second=(4, 4, 3, 3), down=(4, 3, 1, 1)) | {
    name: np.abs(value) + 0.5 for name, value in weights(3, scale=(4,), shift=(4,), mean=(4,), variance=(4,)).items()
}
NORM = ("scale", "shift", "mean", "variance")


@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_block(prove, stride):
    def build(graph):
        x = graph.add("Conv", "x", "up")
        x = graph.add("Relu", graph.add("BatchNormalization", x, *NORM, epsilon=0.125))
        x = graph.add("Conv", x, "first", pads=[1] * 4, strides=[stride] * 2)
        x = graph.add("Relu", graph.add("BatchNormalization", x, *NORM, epsilon=0.125))
        x = graph.add("BatchNormalization", graph.add("Conv", x, "second", pads=[1] * 4), *NORM, epsilon=0.125)
        beside = graph.add("Conv", "x", "down", strides=[stride] * 2)
        return graph.add("Relu", graph.add("Add", x, beside))

    def reference(x, up, first, second, down, scale, shift, mean, variance):
        def norm(y):
            return F.batch_norm(y, mean, variance, scale, shift, eps=0.125)

        y = F.relu(norm(F.conv2d(x, up)))
        y = F.relu(norm(F.conv2d(y, first, padding=1, stride=stride)))
        return F.relu(norm(F.conv2d(y, second, padding=1)) + F.conv2d(x, down, stride=stride))

    prove(build, reference, {"x": PICTURE, **RESIDUAL}, sizes=[(6, 7), (1, 1), (5, 2)], terms=108)


VGG = weights(4, one=(6, 3, 3, 3), two=(6, 6, 3, 3), three=(8, 6, 3, 3), content=(6, 1), style=(8, 8)) | {
    "weight": np.array(0.25)
}


@pytest.mark.parametrize("pooling", ["MaxPool", "AveragePool"])
def test_a_perceptual_objective(prove, pooling):
    """Content, Gram matrix and the total variation of exponent 1.25, summed, on three layers of VGG's kind."""

    def square_sum(graph, x):
        return graph.add("ReduceSumSquare", x, keepdims=0)

    def difference(graph, axis):
        other = 5 - axis
        first, last = graph.ints(0, 0), graph.ints(-1, -1)
        end = np.iinfo(np.int64).max
        far = graph.add("Slice", "x", graph.ints(1, 0), graph.ints(end, -1), graph.ints(axis, other))
        return graph.add("Sub", far, graph.add("Slice", "x", first, last, graph.ints(axis, other)))

    def build(graph):
        dtype = graph.inputs["x"][0]
        x = graph.add("Relu", graph.add("Conv", "x", "one", pads=[1] * 4))
        tap = graph.add("Conv", x, "two", pads=[1] * 4)
        x = graph.add(pooling, graph.add("Relu", tap), kernel_shape=[2, 2], strides=[2, 2])
        x = graph.add("Relu", graph.add("Conv", x, "three", pads=[1] * 4))
        features = graph.add("Reshape", x, graph.ints(8, -1))
        gram = graph.add("Mul", graph.add("Gemm", features, features, transB=1), "weight")
        style = square_sum(graph, graph.add("Sub", gram, "style"))
        pixels = graph.add("Reshape", tap, graph.ints(6, -1))
        content = graph.add("Mul", square_sum(graph, graph.add("Sub", pixels, "content")), "weight")
        squares = [graph.add("Mul", d, d) for d in (difference(graph, 2), difference(graph, 3))]
        power = graph.add("Pow", graph.add("Add", *squares), graph.literal(1.25, dtype))
        variation = graph.add("ReduceSum", power, keepdims=0)
        return graph.add("Sum", content, style, variation)

    def reference(x, one, two, three, content, style, weight):
        pool = F.max_pool2d if pooling == "MaxPool" else F.avg_pool2d
        tap = F.conv2d(F.relu(F.conv2d(x, one, padding=1)), two, padding=1)
        features = F.relu(F.conv2d(pool(F.relu(tap), 2), three, padding=1)).reshape(8, -1)
        down = x[:, :, 1:, :-1] - x[:, :, :-1, :-1]
        right = x[:, :, :-1, 1:] - x[:, :, :-1, :-1]
        return (
            (features @ features.T * weight - style).pow(2).sum()
            + weight * (tap.reshape(6, -1) - content).pow(2).sum()
            + (down**2 + right**2).pow(1.25).sum()
        )

    prove(build, reference, {"x": PICTURE, **VGG}, sizes=[(8, 10), (7, 5), (2, 3)], terms=300)


def test_a_constant_picture(prove):
    # All windows tie and all differences vanish: what a white canvas shows, and where (·)^1.25 has its kink's end.
    def build(graph):
        x = graph.add("MaxPool", graph.add("Conv", "x", "one"), kernel_shape=[3, 3], strides=[2, 2])
        flat = graph.add("Slice", "x", graph.ints(1), graph.ints(np.iinfo(np.int64).max), graph.ints(3))
        flat = graph.add("Sub", flat, graph.add("Slice", "x", graph.ints(0), graph.ints(-1), graph.ints(3)))
        power = graph.add("Pow", graph.add("Mul", flat, flat), graph.literal(1.25, graph.inputs["x"][0]))
        return graph.add("Add", graph.add("ReduceSum", x, keepdims=0), graph.add("ReduceSum", power, keepdims=0))

    def reference(x, one):
        flat = x[..., 1:] - x[..., :-1]
        return F.max_pool2d(F.conv2d(x, one), 3, 2).sum() + (flat * flat).pow(1.25).sum()

    # A kernel of one pixel, of sixteenths: equal sums come out equal, whatever the order of their terms.
    one = np.arange(1, 7, dtype=np.float64).reshape(2, 3, 1, 1) / 16
    prove(
        build,
        reference,
        {"x": PICTURE, "one": one},
        sizes=[(7, 8), (5, 5)],
        draw=lambda _, shape: np.full(shape, 0.5),
        smooth=False,
        terms=54,
    )
