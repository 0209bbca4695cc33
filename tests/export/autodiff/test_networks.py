"""Whole small networks: the gradient with respect to the picture, through every rule on the way at once."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from impasto.export.autodiff import differentiate
from impasto.export.graph import Graph

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


# --- A pyramid of filter banks: reflections that a filter and the halving of the picture share -----------------------

ROW = np.array([1, 4, 6, 4, 1]) / 16
BINOMIAL = np.broadcast_to(np.outer(ROW, ROW), (3, 1, 5, 5)).copy()
BANKS = weights(5, fine=(7, 3, 5, 5), coarse=(6, 3, 5, 5)) | {"half": BINOMIAL}
AROUND = (0, 0, 2, 2, 0, 0, 2, 2)


def halved(x, half):
    return F.conv2d(F.pad(x, (2,) * 4, mode="reflect"), half, stride=2, groups=3)


def test_a_pyramid_of_filter_banks(prove):
    def build(graph):
        around = graph.add("Pad", "x", graph.ints(*AROUND), mode="reflect")
        banks = []
        for name, scale in (("fine", "s"), ("coarse", "t")):
            kernels = graph.add("Mul", name, graph.add("Reshape", scale, graph.ints(-1, 1, 1, 1)))
            banks.append(graph.add("Tanh", graph.add("Conv", around, kernels)))
            half = graph.add("Conv", around, "half", strides=[2, 2], group=3)
            around = graph.add("Pad", half, graph.ints(*AROUND), mode="reflect")
        return graph.add("Add", *(graph.add("ReduceSum", graph.add("ReduceSumSquare", b), keepdims=0) for b in banks))

    def reference(x, s, t, fine, coarse, half):
        total = 0
        for kernels, scale in ((fine, s), (coarse, t)):
            around = F.pad(x, (2,) * 4, mode="reflect")
            total = total + F.conv2d(around, kernels * scale.reshape(-1, 1, 1, 1)).tanh().square().sum()
            x = halved(x, half)
        return total

    inputs = {"x": PICTURE, "s": (7,), "t": (6,), **BANKS}
    # The least sides leave three positions to the coarse level, which reflecting by two needs.
    prove(build, reference, inputs, wrt=["x"], sizes=[(5, 5), (6, 5), (5, 8), (7, 7), (11, 9)], terms=600)


@pytest.mark.parametrize("sides", [("height", "width"), None], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("levels", [1, 2])
def test_the_gradient_of_a_halving_is_its_adjoint(evaluate, on_onnxruntime, sides, levels):
    """⟨A·x, y⟩ = ⟨x, Aᵀ·y⟩ for all x and y, which says nothing of A but everything of Aᵀ."""
    least = {1: 3, 2: 5}[levels]
    rng = np.random.default_rng(6)
    for size in [(n, m) for n in range(least, 9) for m in range(least, 9)]:
        found = {}
        for dtype, run in ((np.float64, evaluate), (np.float32, on_onnxruntime)):
            graph = Graph()
            top = graph.input("x", (1, 3, *(sides or size)), dtype)
            graph.weight("half", BINOMIAL.astype(dtype))
            for _ in range(levels):
                top = graph.add("Pad", top, graph.ints(*AROUND), mode="reflect")
                top = graph.add("Conv", top, "half", strides=[2, 2], group=3)
            grid = tuple(-(-side // 2**levels) for side in size)
            graph.input("y", (1, 3, *(grid if sides is None else ("h", "w"))), dtype)
            graph.outputs = [top, differentiate(graph, {top: "y"}, ["x"])["x"]]
            x, y = (rng.standard_normal((1, 3, *shape)).astype(dtype) for shape in (size, grid))
            forward, back = run(graph, {"x": x, "y": y})
            assert (forward.shape, back.shape) == (y.shape, x.shape)
            left, right = ((a * b.astype(np.float64)).sum() for a, b in ((forward, y), (x, back)))
            # Sums of 25 products a level and way, each off by 25 roundings of its size at most; the matrix of such a
            # filter has rows that sum to 1 and columns to 4 at most, where reflections pile up, and so a norm of 2.
            scale = np.linalg.norm(x) * np.linalg.norm(y) * 2**levels
            found[dtype] = abs(left - right) / scale
        assert found[np.float64] <= 25 * levels * np.finfo(np.float64).eps
        assert found[np.float32] <= 25 * levels * np.finfo(np.float32).eps


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
