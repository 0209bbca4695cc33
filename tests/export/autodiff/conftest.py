"""How a gradient rule is proven: one operator, its cotangents, and four independent computations of the same thing.

The graph and its gradient run in float64 on onnx's reference evaluator and are compared with torch autograd and with
central differences of the evaluator's own forward pass; then in float32 on ONNX Runtime, compared with the float64
result. Where the shapes have dynamic sides, one artifact runs at every size, beside one with that size fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from impasto.export.autodiff import differentiate
from impasto.export.graph import Graph

# What ONNX Runtime, TensorRT and OpenVINO all run; MaxUnpool, a pool's indices and scatters are not among it.
PORTABLE = {
    *("Add", "Cast", "Concat", "Conv", "ConvTranspose", "DepthToSpace", "Div", "Equal", "Exp", "Expand", "Gemm"),
    *("Greater", "GreaterOrEqual", "Identity", "LessOrEqual", "MatMul", "Max", "Min", "Mul", "Neg", "Pad", "Pow"),
    *("ReduceProd", "ReduceSum", "Reshape", "Resize", "Shape", "Sign", "Slice", "Sqrt", "Sub", "Transpose"),
    "Unsqueeze",
}

# Float64 against float64: sums of at most a few hundred terms of magnitude 1 round at 1e-16 each, so they agree to
# some 1e-14 of the largest element. A wrong rule is wrong in the first digits.
EXACT = 1e-12

# Central differences with step h err by h²/6·f''' ≈ 1e-10 and by the rounding 1e-16·|f|/h ≈ 1e-11·|f|.
STEP = 1e-5
DIFFERENCES = 1e-7

ROUNDOFF = 2.0**-24  # of float32


class ConvTranspose(OpRun):
    """The reference evaluator's own one fails with groups (seen in onnx 1.23): this one scatters, as the spec says."""

    op_domain = ""

    def _run(self, x, w, b=None, strides=None, dilations=None, group=None, pads=None, auto_pad=None, **_):
        assert b is None
        assert not any(pads or [])
        assert auto_pad == "NOTSET"
        kernel, rank = w.shape[2:], x.ndim - 2
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        sides = [
            (n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(x.shape[2:], strides, dilations, kernel, strict=True)
        ]
        y = np.zeros((x.shape[0], w.shape[1] * group, *sides), x.dtype)
        inputs = np.split(x, group, axis=1)
        for offset in product(*map(range, kernel)):
            at = tuple(
                slice(d * o, d * o + s * (n - 1) + 1, s)
                for o, s, d, n in zip(offset, strides, dilations, x.shape[2:], strict=True)
            )
            taps = np.split(w[(..., *offset)], group)
            y[(..., *at)] += np.concatenate(
                [np.einsum("ni...,io->no...", i, t) for i, t in zip(inputs, taps, strict=True)], axis=1
            )
        return (y,)


class MaxPool(OpRun):
    """The reference evaluator's own one counts too many windows in padded ceil mode (seen in onnx 1.23)."""

    op_domain = ""

    def _run(self, x, kernel_shape=None, strides=None, pads=None, ceil_mode=None, auto_pad=None, **_):
        assert auto_pad == "NOTSET"
        strides, pads = strides or [1, 1], pads or [0] * 4
        counts = []
        for size, k, s, before, after in zip(x.shape[2:], kernel_shape, strides, pads[:2], pads[2:], strict=True):
            spare = size + before + after - k
            n = (-(-spare // s) if ceil_mode else spare // s) + 1
            counts.append(n - 1 if ceil_mode and (n - 1) * s >= size + before else n)
        room = [(n - 1) * s + k for n, s, k in zip(counts, strides, kernel_shape, strict=True)]
        padded = np.full(
            (*x.shape[:2], *(max(r, b + n) for r, b, n in zip(room, pads[:2], x.shape[2:], strict=True))), -np.inf
        )
        padded[:, :, pads[0] : pads[0] + x.shape[2], pads[1] : pads[1] + x.shape[3]] = x
        every = [slice(None, (n - 1) * s + 1, s) for n, s in zip(counts, strides, strict=True)]
        windows = [padded[:, :, i:, j:][:, :, *every] for i, j in product(*map(range, kernel_shape))]
        return (np.max(windows, axis=0).astype(x.dtype),)


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    return ReferenceEvaluator(model, new_ops=[ConvTranspose, MaxPool])


@pytest.fixture(scope="session")
def evaluate():
    """Run a `Graph` in its own precision on the (mended) reference evaluator: (graph, feeds) → outputs."""
    return lambda graph, feeds: evaluator(graph.model()).run(None, feeds)


@pytest.fixture(scope="session")
def on_onnxruntime():
    """Run a `Graph` on ONNX Runtime's CPU: (graph, feeds) → outputs."""
    return lambda graph, feeds: _session(graph.model()).run(None, feeds)


@pytest.fixture(scope="session")
def prove():
    return _prove


def _normal(rng, shape):
    return rng.standard_normal(shape)


def _prove(
    build: Callable[[Graph], str],
    reference: Callable[..., torch.Tensor] | None,
    inputs: Mapping[str, tuple[int | str, ...] | np.ndarray],
    *,
    sizes: Sequence[tuple[int, int]] = ((0, 0),),
    wrt: Sequence[str] | None = None,
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] = _normal,
    terms: int = 8,
    smooth: bool = True,
    float32: bool = True,
) -> None:
    """Prove the gradient of what ``build`` appends, against ``reference`` of the same tensors.

    ``inputs`` gives each input a shape, in which ``height`` and ``width`` stand for every pair of ``sizes`` in turn,
    or, as an array, makes it a constant. Without a ``reference``, differences alone are the truth. ``draw`` makes the
    values. ``terms`` is the length of the gradient's longest sum, ``smooth`` tells whether the values are away from
    kinks, so that differences are a derivative, and ``float32=False`` leaves out what ONNX Runtime cannot run.
    """
    shapes = {name: s for name, s in inputs.items() if isinstance(s, tuple)}
    wrt = list(shapes) if wrt is None else list(wrt)
    dynamic = any(isinstance(d, str) for s in shapes.values() for d in s)
    shared = _Artifact(build, inputs, None, wrt) if dynamic else None
    # A sum of n terms rounds by at most n·u·Σ|terms|, and Σ|terms| of mixed signs exceeds the sum itself some √n-fold;
    # the few other operations add a handful of roundings.
    rounding = (terms + 8) * np.sqrt(terms) * ROUNDOFF
    for number, size in enumerate(sizes):
        sides = dict(zip(("height", "width"), size, strict=True))
        rng = np.random.default_rng([number, *size])
        # Exact in float32 too, so that both precisions see the same ties and masks.
        values = {
            name: draw(rng, tuple(sides.get(d, d) for d in shape)).astype(np.float32).astype(np.float64)
            for name, shape in shapes.items()
        }
        fixed = _Artifact(build, inputs, sides, wrt)
        y = fixed.forward.run(None, values)[0]
        dy = rng.standard_normal(y.shape).astype(np.float32).astype(np.float64)
        feeds = {**values, "cotangent": dy}
        truth = _autograd(reference, inputs, values, wrt, dy) if reference else None
        for artifact in (fixed, shared) if shared else (fixed,):
            computed = artifact.wide.run(None, feeds)
            for name, have, want in zip(["y", *wrt], computed, truth or computed, strict=True):
                assert have.dtype == np.float64, name
                _close(have, want, EXACT, name)
            if smooth:
                for name, gradient in zip(wrt, computed[1:], strict=True):
                    _check_differences(artifact.forward, values, name, dy, gradient)
            if float32 and (artifact is shared or number == 0):
                narrow = artifact.narrow.run(None, {name: value.astype(np.float32) for name, value in feeds.items()})
                for name, have, want in zip(["y", *wrt], narrow, computed, strict=True):
                    assert have.dtype == np.float32, name
                    _close(have, want, rounding, name)


class _Artifact:
    """A graph with its gradient: the forward part and the whole in float64, and the whole in float32."""

    def __init__(self, build, inputs, sides, wrt) -> None:
        """Build it; ``sides`` fixes height and width, None leaves them open."""
        self._float32 = lambda: _with_gradient(build, inputs, sides, wrt, np.float32)[1]
        forward, both = _with_gradient(build, inputs, sides, wrt, np.float64)
        self.forward, self.wide = evaluator(forward), evaluator(both)

    @cached_property
    def narrow(self) -> onnxruntime.InferenceSession:
        return _session(self._float32())


def _with_gradient(build, inputs, sides, wrt, dtype) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    graph = Graph("proof")
    for name, shape in inputs.items():
        if isinstance(shape, tuple):
            graph.input(name, [sides.get(d, d) if sides else d for d in shape], dtype)
        else:
            graph.weight(name, shape.astype(dtype) if shape.dtype.kind == "f" else shape)
    y = build(graph)
    graph.outputs = [y]
    forward = graph.model()
    count = len(graph.nodes)
    graph.input("cotangent", graph.infer_shapes()[y][1], dtype)
    gradients = differentiate(graph, {y: "cotangent"}, wrt)
    assert {node.op_type for node in graph.nodes[count:]} <= PORTABLE
    assert all(len(node.output) == 1 for node in graph.nodes[count:])
    graph.outputs = [y, *(graph.add("Identity", gradients[name]) for name in wrt)]
    graph.prune()
    both = graph.model()
    onnx.checker.check_model(both, full_check=True)
    return forward, both


def _autograd(reference, inputs, values, wrt, dy) -> list[np.ndarray]:
    """Return what torch says: the output and the gradient of each of ``wrt``, in float64."""
    tensors = {name: torch.tensor(values.get(name, array), requires_grad=name in wrt) for name, array in inputs.items()}
    y = reference(*tensors.values())
    gradients = torch.autograd.grad(y, [tensors[name] for name in wrt], torch.from_numpy(dy))
    return [y.detach().numpy(), *(gradient.numpy() for gradient in gradients)]


def _close(have, want, tolerance, name) -> None:
    assert have.shape == want.shape, name
    assert np.isfinite(have).all(), name
    error = np.abs(have - want).max(initial=0.0)
    assert error <= tolerance * max(1.0, np.abs(want).max(initial=0.0)), (name, error)


def _check_differences(forward, values, name, dy, gradient) -> None:
    """Compare ⟨gradient, v⟩ with the central difference of ⟨dy, y⟩ along a random direction v of unit length."""
    direction = np.random.default_rng(1).standard_normal(gradient.shape)
    direction /= np.linalg.norm(direction) or 1.0
    ahead, behind = (forward.run(None, {**values, name: values[name] + step * direction})[0] for step in (STEP, -STEP))
    difference = np.sum(dy * (ahead - behind)) / (2 * STEP)
    scale = max(1.0, np.abs(gradient).max(), np.abs(dy * ahead).sum())
    assert abs(np.sum(gradient * direction) - difference) <= DIFFERENCES * scale, name


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
