from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from impasto.errors import GraphError, UnknownNameError, UnsupportedOpError, UsageError
from impasto.export.graph import Graph
from impasto.export.objective import Statistic
from impasto.export.user import graph_from_file, graph_from_torch, user_objective_graph

torch = pytest.importorskip("torch")
nn = torch.nn


class Fire(nn.Module):
    """SqueezeNet's module (Iandola et al., arXiv:1602.07360, figure 2)."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.one = nn.Conv2d(squeeze, expand, 1)
        self.three = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.one(x)), torch.relu(self.three(x))], 1)


class Residual(nn.Module):
    """ResNet's basic block (He et al., arXiv:1512.03385, figure 2), its shortcut projected where the size changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.short = nn.Conv2d(channels, width, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Any) -> Any:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.short(x))


def _seeded(module: Any, seed: int) -> Any:
    """He initialisation from a seed, and normalisations that do something."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            fan_in = part.weight[0].numel()
            part.weight.data = torch.randn(part.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
            if part.bias is not None:
                part.bias.data = torch.randn(part.bias.shape, generator=generator) * 0.1
        if isinstance(part, nn.BatchNorm2d):
            for values, low, high in (
                (part.weight.data, 0.5, 1.5),
                (part.bias.data, -0.5, 0.5),
                (part.running_mean, -0.5, 0.5),
                (part.running_var, 0.5, 2.0),
            ):
                values.uniform_(low, high, generator=generator)
    return module.eval()


def squeeze_net() -> Any:
    """SqueezeNet 1.1's beginning, narrower: unpadded strides, pools in ceil mode, concatenations."""
    return _seeded(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, 2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(16, 4, 8),
            Fire(16, 4, 8),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            Fire(16, 6, 12),
        ),
        1,
    )


def residual_net() -> Any:
    """A small ResNet with its classifier."""
    return _seeded(
        nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            Residual(8, 8, 1),
            Residual(8, 12, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 5),
        ),
        2,
    )


Network = tuple[Any, list[str], list[str], str]
NETWORKS: dict[str, Callable[[], Network]] = {
    "squeezenet": lambda: (squeeze_net(), ["3"], ["0", "1", "4", "6"], "Concat"),
    "resnet": lambda: (residual_net(), ["4"], ["0", "2", "4.norm1", "4.conv2", "5"], "BatchNormalization"),
}
# Style taps of both; the rest of the style taps have the Gram matrix.
COVARIANCE: dict[str, Statistic] = {"0": "covariance", "4": "covariance", "5": "covariance"}


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request: pytest.FixtureRequest) -> tuple[Any, list[str], list[str], Graph]:
    """A module, its content and style taps, and its graph."""
    module, content, style, op = NETWORKS[request.param]()
    graph = graph_from_torch(module, [*content, *style])
    assert op in {node.op_type for node in graph.nodes}
    return module, content, style, graph


def _taps(module: Any, names: Sequence[str], x: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    hooks = [
        module.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: found.__setitem__(name, out.clone())
        )
        for name in names
    ]
    module(x)
    for hook in hooks:
        hook.remove()
    return found


def _problem(
    module: Any,
    content: list[str],
    style: list[str],
    statistics: Mapping[str, Statistic],
    size: tuple[int, int],
    dtype: Any,
) -> tuple[dict[str, NDArray[np.float32]], dict[str, float], NDArray[Any]]:
    """The inputs of a fused graph, seeded, and what torch makes of them: every loss, and the gradient of their sum.

    Weights are such that the terms are alike: a wrong gradient of one cannot hide behind the others.
    """
    stream = np.random.default_rng(size)
    module = copy.deepcopy(module).to(dtype)
    inputs = {"image": stream.standard_normal((1, 3, *size)).astype(np.float32)}

    def given(name: str, value: Any) -> Any:
        inputs[name] = np.asarray(value, np.float32)
        return torch.from_numpy(inputs[name]).to(dtype)

    x = torch.from_numpy(inputs["image"]).to(dtype).requires_grad_()
    taps = _taps(module, [*content, *style], x)
    terms = {}
    for tap in content:
        target = given(f"content.{tap}", stream.standard_normal(taps[tap].shape))
        squares = (taps[tap] - target).square().sum()
        terms[f"loss.content.{tap}"] = squares * given(f"content.{tap}.weight", 1 / squares.item())
    for tap in style:
        features = taps[tap][0].flatten(1)
        measured = {f"style.{tap}": features @ features.T * given(f"style.{tap}.scale", 1 / features.shape[1])}
        if tap in statistics:
            mean = features.mean(1, keepdim=True)
            measured = {f"style.{tap}": (features - mean) @ (features - mean).T / features.shape[1]}
            measured[f"style.{tap}.mean"] = mean
        term = 0
        for name, value in measured.items():
            squares = (value - given(name, stream.standard_normal(value.shape))).square().sum()
            term = term + squares * given(f"{name}.weight", 1 / squares.item())
        terms[f"loss.style.{tap}"] = term
    differences = x.diff(dim=2).square().sum() + x.diff(dim=3).square().sum()
    terms["loss.tv"] = differences / 2 * given("tv.weight", 0.1 / differences.item())
    sum(terms.values()).backward()
    return inputs, {name: term.item() for name, term in terms.items()}, x.grad.double().numpy()


def _distance(found: NDArray[Any], exact: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("mixed", [False, True], ids=["gram", "covariance"])
def test_losses_and_gradient_are_those_of_torch(
    network: tuple[Any, list[str], list[str], Graph], mixed: bool, fixed: bool
) -> None:
    """Losses to 1e-5; gradients to 1e-5 too, for at these sizes no activation is so near to a flip that it matters.

    That is seen from torch's own float32, which agrees with its float64 to a few 1e-7; one flip costs a thousand times
    that.
    """
    module, content, style, graph = network
    statistics = {tap: statistic for tap, statistic in COVARIANCE.items() if mixed and tap in style}
    session = None
    for size in [(41, 35), (32, 47), (33, 64), (23, 24)]:
        if session is None or fixed:
            fused = user_objective_graph(graph, content, style, "squared", size if fixed else None, statistics)
            model = fused.model().SerializeToString()
            session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        inputs, losses, gradient = _problem(module, content, style, statistics, size, torch.float64)
        _, _, rounded = _problem(module, content, style, statistics, size, torch.float32)
        assert _distance(rounded, gradient) < 2e-6
        found = dict(zip(fused.outputs, session.run(None, inputs), strict=True))
        assert list(found) == [*losses, "gradient"]
        for name, loss in losses.items():
            assert found[name] == pytest.approx(loss, rel=1e-5)
        assert found["gradient"].shape == (1, 3, *size)
        assert _distance(found["gradient"], gradient) < 1e-5


def test_statistics_that_cannot_be_had_are_refused(network: tuple[Any, list[str], list[str], Graph]) -> None:
    _, content, style, graph = network
    with pytest.raises(UsageError, match=r"statistics name '3\.one', which has no style term"):
        user_objective_graph(graph, content, style, statistics={"3.one": "covariance"})
    with pytest.raises(UsageError, match="statistic 'variance' of 0 is unknown: choose among gram, covariance"):
        user_objective_graph(graph, content, style, statistics={"0": "variance"})  # type: ignore[dict-item]
    # The Gram matrix may be named, too.
    plain = user_objective_graph(graph, content, style, shape=(48, 48))
    named = user_objective_graph(graph, content, style, shape=(48, 48), statistics=dict.fromkeys(style, "gram"))
    assert named.digest() == plain.digest()


def test_the_module_is_not_changed(network: tuple[Any, list[str], list[str], Graph]) -> None:
    module, content, style, _ = network
    before = {name: value.clone() for name, value in module.state_dict().items()}
    graph_from_torch(module, [*content, *style], example=(40, 48))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(part.training or part._forward_hooks for part in module.modules())


def test_the_users_graph_is_left_as_it_is(network: tuple[Any, list[str], list[str], Graph]) -> None:
    _, content, style, graph = network
    before = graph.digest()
    user_objective_graph(graph, content, style, "absolute", (48, 48))
    assert graph.digest() == before


def test_a_tap_before_an_in_place_relu_is_not_rectified() -> None:
    module = _seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)), 3)
    graph = graph_from_torch(module, ["0", "1"])
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    before, after = session.run(None, {"image": np.random.default_rng(4).standard_normal((1, 3, 9, 9), np.float32)})
    assert before.min() < 0
    np.testing.assert_array_equal(after, np.maximum(before, 0))


def test_modules_that_cannot_be_taken() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(UnknownNameError, match=r"submodule '2'.*known: 0, 1"):
        graph_from_torch(plain, ["2"])
    with pytest.raises(UsageError, match="no taps"):
        graph_from_torch(plain, [])
    with pytest.raises(UsageError, match=r"training mode.*eval\(\)"):
        graph_from_torch(nn.Sequential(nn.Conv2d(3, 4, 3)), ["0"])
    shared = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.Conv2d(4, 4, 3), shared).eval()
    with pytest.raises(UsageError, match="'1' runs 2 times"):
        graph_from_torch(twice, ["1"])
    with pytest.raises(GraphError, match="cannot export Sequential"):
        graph_from_torch(plain.double(), ["0"])


def test_control_flow_that_depends_on_the_picture_is_refused() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Any) -> Any:
            return self.conv(x if x.mean() > 0 else -x)

    with pytest.raises(GraphError, match=r"depends on the picture's values.*Converting a tensor to a Python boolean"):
        graph_from_torch(Fickle().eval(), ["conv"])


def test_an_operator_that_onnx_lacks_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Any) -> Any:
            return self.conv(torch.special.bessel_j0(x))

    with pytest.raises(GraphError, match=r"cannot export Odd: .*bessel_j0"):
        graph_from_torch(Odd().eval(), ["conv"])


# ONNX files


def _model(
    nodes: Sequence[onnx.NodeProto] | None = None,
    *,
    opset: int = 18,
    image: tuple[Any, ...] = ("batch", 3, "rows", "columns"),
    dtype: int = TensorProto.FLOAT,
    weight: TensorProto | None = None,
) -> onnx.ModelProto:
    """A convolution of an input ``picture`` to ``features``, or other nodes."""
    if weight is None:
        values = np.random.default_rng(6).standard_normal((4, 3, 3, 3))
        weight = onnx.numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(dtype)), "w")
    graph = helper.make_graph(
        nodes or [helper.make_node("Conv", ["picture", "w"], ["features"], name="first")],
        "mine",
        [helper.make_tensor_value_info("picture", dtype, image)],
        [helper.make_tensor_value_info("features", dtype, (None, None, None, None))],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_an_input_of_another_name_becomes_the_image(tmp_path: Path) -> None:
    graph = graph_from_file(_saved(_model(), tmp_path / "m.onnx"))
    fused = user_objective_graph(graph, [], ["features"])
    assert fused.inputs["image"] == (np.dtype(np.float32), (1, 3, "rows", "columns"))
    assert fused.outputs == ["loss.style.features", "gradient"]
    assert user_objective_graph(graph, [], ["features"], shape=(9, 7)).inputs["image"][1] == (1, 3, 9, 7)


def test_external_data_are_read_from_beside_the_file(tmp_path: Path) -> None:
    inside = graph_from_file(_saved(_model(), tmp_path / "inside.onnx"))
    onnx.save_model(_model(), tmp_path / "outside.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").is_file()
    assert graph_from_file(tmp_path / "outside.onnx").digest() == inside.digest()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../secret"}, "outside"),
        ({"location": "sub/../../secret"}, "outside"),
        ({"location": "{root}/secret"}, "absolute"),
        ({"location": "link"}, "link"),
        ({"location": "none"}, "not regular file"),
        ({"location": ""}, "empty"),
        ({"location": "short"}, "exceeds available data"),
        ({"location": "long", "offset": "-4"}, "non-negative"),
        ({"location": "long", "offset": "900"}, "exceeds available data"),
        ({"location": "long", "length": "400"}, "bytes required"),
        ({"location": "long", "length": "x"}, "invalid literal"),
    ],
)
def test_external_data_that_lie(tmp_path: Path, entries: dict[str, str], message: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for path, size in ((tmp_path / "secret", 1000), (folder / "short", 431), (folder / "long", 1000)):
        path.write_bytes(bytes(size))
    (folder / "link").symlink_to(tmp_path / "secret")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(4, 3, 3, 3), data_location=TensorProto.EXTERNAL)
    for key, text in {"offset": "0", "length": "432", **entries}.items():
        weight.external_data.add(key=key, value=text.format(root=tmp_path))
    with pytest.raises(GraphError, match=message) as caught:
        graph_from_file(_saved(_model(weight=weight), folder / "m.onnx"))
    assert "\n" not in str(caught.value)
    assert "m.onnx" in str(caught.value)


def test_files_that_are_no_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for content in (b"", b"\0", b"not a model at all", os.urandom(500), b"\x89PNG\r\n\x1a\n"):
        path.write_bytes(content)
        with pytest.raises(GraphError, match=r"m\.onnx.*export it again"):
            graph_from_file(path)
    for other in (tmp_path, tmp_path / "none.onnx", "a\0b"):
        with pytest.raises(GraphError, match="give the path of an ONNX model"):
            graph_from_file(other)
    # A suffix for which the onnx package would choose a text parser.
    graph_from_file(_saved(_model(), tmp_path / "m.onnxtxt"))


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = _saved(_model(), tmp_path / "m.onnx")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(GraphError, match=r"m\.onnx"):
            graph_from_file(path)


def test_opsets(tmp_path: Path) -> None:
    for opset in (11, 13, 17, 22):
        graph = graph_from_file(_saved(_model(opset=opset), tmp_path / "m.onnx"))
        user_objective_graph(graph, ["features"], [])
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(GraphError, match=f"opset {newest + 1}, the onnx package reads up to {newest}"):
        graph_from_file(_saved(_model(opset=newest + 1), tmp_path / "m.onnx"))


def test_operators_without_a_rule_are_named(tmp_path: Path) -> None:
    foreign = _model([helper.make_node("Blur", ["picture"], ["features"], name="mist", domain="com.example")])
    foreign.opset_import.add(domain="com.example", version=1)
    with pytest.raises(UnsupportedOpError, match=r"m\.onnx.*'mist': com\.example::Blur"):
        graph_from_file(_saved(foreign, tmp_path / "m.onnx"))
    unknown = _model([helper.make_node("Conjure", ["picture"], ["features"], name="rabbit")])
    with pytest.raises(GraphError, match=r"m\.onnx.*Conjure"):
        graph_from_file(_saved(unknown, tmp_path / "m.onnx"))
    hard = _model([helper.make_node("Erf", ["picture"], ["features"], name="bell")])
    graph = graph_from_file(_saved(hard, tmp_path / "m.onnx"))
    with pytest.raises(UnsupportedOpError, match=r"'bell': no gradient rule for operator Erf"):
        user_objective_graph(graph, ["features"], [])


def test_graphs_that_are_no_backbone(tmp_path: Path) -> None:
    def fused(model: onnx.ModelProto, tap: str = "features", shape: tuple[int, int] | None = None) -> Graph:
        return user_objective_graph(graph_from_file(_saved(model, tmp_path / "m.onnx")), [tap], [], shape=shape)

    conv = helper.make_node("Conv", ["picture", "w"], ["features"])
    with pytest.raises(UnknownNameError, match=r"'feature'.*did you mean features"):
        fused(_model(), "feature")
    with pytest.raises(UsageError, match="no taps"):
        user_objective_graph(graph_from_file(tmp_path / "m.onnx"), [], [])
    with pytest.raises(GraphError, match=r"'picture' is float64, must be float32"):
        fused(_model(dtype=TensorProto.DOUBLE))
    with pytest.raises(GraphError, match=r"'picture' has shape \(2, 3, 8, 8\), must be \(1, 3, height, width\)"):
        fused(_model(image=(2, 3, 8, 8)))
    with pytest.raises(GraphError, match=r"takes pictures of 8x9 pixels only, not of 8x8.*dynamic"):
        fused(_model(image=(1, 3, 9, 8)), shape=(8, 8))
    with pytest.raises(GraphError, match=r"'flat' is float32 of shape .*must be float32 of \(1, channels"):
        fused(_model([conv, helper.make_node("Flatten", ["features"], ["flat"])]), "flat")
    # A name that the fused graph needs for itself.
    taken = [conv, helper.make_node("Relu", ["features"], ["gradient"]), helper.make_node("Abs", ["gradient"], ["top"])]
    with pytest.raises(GraphError, match="'gradient' exists already"):
        fused(_model(taken), "top")
    two = _model([helper.make_node("Add", ["picture", "other"], ["features"])])
    two.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, (1, 3, 8, 8)))
    with pytest.raises(GraphError, match=r"has 2 inputs \(picture, other\)"):
        fused(two)


def test_what_lies_above_the_taps_does_not_matter(tmp_path: Path) -> None:
    """A head for one size only, of an operator without a rule."""
    head = [
        helper.make_node("Conv", ["picture", "w"], ["features"]),
        helper.make_node("Erf", ["features"], ["bell"]),
        helper.make_node("Reshape", ["bell", "size"], ["flat"]),
    ]
    model = _model(head)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 99], np.int64), "size"))
    graph = graph_from_file(_saved(model, tmp_path / "m.onnx"))
    fused = user_objective_graph(graph, ["features"], [], shape=(12, 10))
    assert "Erf" not in {node.op_type for node in fused.nodes}
    fused.model()
