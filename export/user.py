"""Backbones of the user's own: an ONNX file or a torch module instead of a layer table.

Any graph will do whose operators have gradient rules (`impasto.export.autodiff.RULES`) between the image and the
taps; a classifier above the deepest tap is left out before it is looked at.
"""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from impasto.errors import GraphError, UnavailableError, UnknownNameError, UsageError
from impasto.export.fused import fuse
from impasto.export.graph import OPSET, Dim, Graph, Shape, graph_from_model
from impasto.export.objective import Statistic, TvForm, check_statistics
from impasto.models.layers import IMAGE

if TYPE_CHECKING:
    import torch

_MAX_BYTES = 2 << 30
"""Protocol buffers end there; larger weights are in files of their own."""


def graph_from_file(path: str | os.PathLike[str]) -> Graph:
    """Read an ONNX file, with the external data that lie beside it.

    Raises `GraphError` when there is no such file, it is damaged or not ONNX, its opset is newer than the onnx package
    knows, or its external data are missing, cut short, or outside the model's folder (by ``..``, an absolute path or a
    link), and `UnsupportedOpError` for an operator outside the standard domain, which it names.
    """
    path = Path(path)
    shown = repr(str(path))
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise GraphError(f"graph {shown} is not a file: give the path of an ONNX model")
        if status.st_size > _MAX_BYTES:
            raise GraphError(f"graph {shown} has {status.st_size} bytes, ONNX files end at 2 GiB: use external data")
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = getattr(error, "strerror", None) or error
        raise GraphError(f"graph {shown} cannot be read ({reason}): give the path of an ONNX model") from None
    try:
        model = onnx.load_model_from_string(content)
    except Exception:  # an error of protobuf's own, which onnx does not name
        raise GraphError(f"graph {shown} is damaged or no ONNX model: export it again") from None
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # of many types, by what is wrong
        raise GraphError(f"graph {shown}: its external data cannot be used: {_one_line(error)}") from None
    if not model.graph.node:
        raise GraphError(f"graph {shown} is empty or no ONNX model: export it again")
    opset = max((entry.version for entry in model.opset_import if not entry.domain), default=0)
    if opset > onnx.defs.onnx_opset_version():
        raise GraphError(
            f"graph {shown} has opset {opset}, the onnx package reads up to {onnx.defs.onnx_opset_version()}: "
            f"export it with opset {OPSET}, or pip install --upgrade onnx"
        )
    try:
        return graph_from_model(model)
    except GraphError as error:
        raise type(error)(f"graph {shown}: {error}") from error


def graph_from_torch(module: torch.nn.Module, taps: Sequence[str], example: tuple[int, int] = (64, 64)) -> Graph:
    """Trace a torch module into a graph from ``image``, (1, 3, H, W) of any H and W, to taps.

    ``taps`` are names of submodules (``features.3``, as `torch.nn.Module.named_modules` lists them); each tap is what
    that submodule returns, before anything later works on it in place, and has its name in the graph. The module must
    be in evaluation mode and float32, take one picture, and is not changed. ``example`` is (H, W) of the picture that
    is traced; control flow must not depend on it.

    Raises `UnavailableError` without torch, `UnknownNameError` for a tap that is no submodule, `UsageError` for a
    module in training mode or a submodule that does not run exactly once, and `GraphError` for one that cannot be
    traced or has operators that ONNX lacks.
    """
    try:
        import torch
    except ImportError:
        raise UnavailableError("reading a torch module needs torch: pip install 'impasto[reference]'") from None
    known = [name for name, _ in module.named_modules() if name]
    for tap in taps:
        if tap not in known:
            raise UnknownNameError("submodule", tap, known)
    if not taps:
        raise UsageError("no taps were asked for: name at least one submodule")
    if any(part.training for part in module.modules()):
        raise UsageError("the torch module is in training mode, which ONNX graphs do not have: call its eval() first")

    # A class of this function's, because torch is imported here.
    class Tapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            self.eval()

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found: dict[str, list[torch.Tensor]] = {tap: [] for tap in taps}
            hooks = [
                # Cloned, for an in-place ReLU may follow.
                module.get_submodule(tap).register_forward_hook(
                    lambda _m, _i, out, tap=tap: found[tap].append(out.clone())
                )
                for tap in found
            ]
            try:
                self.module(image)
            finally:
                for hook in hooks:
                    hook.remove()
            for tap, tensors in found.items():
                if len(tensors) != 1:
                    raise UsageError(
                        f"submodule {tap!r} runs {len(tensors)} times, a tap must run once: choose another"
                    )
            return tuple(tensors[0] for tensors in found.values())

    # torch takes no names such as "3", which are common among submodules: they are given afterwards.
    names = {f"tap_{index}": tap for index, tap in enumerate(dict.fromkeys(taps))}
    # torch's other exporter needs onnxscript; this one is deprecated, and all that is needed here.
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as seen:
            path = Path(folder, "model.onnx")
            warnings.simplefilter("always")
            torch.onnx.export(
                Tapped(),
                (torch.linspace(-1, 1, 3 * example[0] * example[1]).reshape(1, 3, *example),),
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=[IMAGE],
                output_names=list(names),
                dynamic_axes={IMAGE: {2: "height", 3: "width"}},
            )
            model = onnx.load_model(path)
    except UsageError:
        raise
    except Exception as error:  # the module's own code runs here, and may raise anything
        raise GraphError(
            f"torch cannot export {type(module).__name__}: {_one_line(error)} "
            "(a model that you export to ONNX yourself can be read from its file)"
        ) from error
    for warning in seen:
        if issubclass(warning.category, torch.jit.TracerWarning):  # type: ignore[attr-defined]
            raise GraphError(
                f"{type(module).__name__} depends on the picture's values, so its trace would be wrong for others: "
                f"{_one_line(warning.message)}"
            )
    return graph_from_model(_renamed(model, names))


def user_objective_graph(
    graph: Graph,
    content: Sequence[str],
    style: Sequence[str],
    tv_form: TvForm | None = None,
    shape: tuple[int, int] | None = None,
    statistics: Mapping[str, Statistic] | None = None,
) -> Graph:
    """Build the fused graph, as `impasto.export.fused` describes it, on a graph of the user's; that is left as it is.

    The graph has one input, the picture, float32, (1, 3, H, W), of whatever name and pixel space; it becomes ``image``.
    ``content`` and ``style`` name tensors of the graph of shape (1, C, h, w), C static. ``tv_form`` None leaves the
    total variation out. ``shape`` fixes (H, W); otherwise they stay what they are in the graph, dynamic or not.
    ``statistics`` names those of the style taps whose statistic is not the Gram matrix.

    Raises `UnknownNameError` for a tap that the graph does not compute, `UsageError` if there are none and for a
    statistic that there is not or of another tap, `GraphError` for an input or a tap of another kind, and
    `UnsupportedOpError` for a node between them without a gradient rule.
    """
    taps = tuple(dict.fromkeys([*content, *style]))
    made = {output for node in graph.nodes for output in node.output}
    for tap in taps:
        if tap not in made:
            raise UnknownNameError(f"tensor of graph {graph.name!r}", tap, sorted(made - {""}))
    if not taps:
        raise UsageError("no taps were asked for: name at least one tensor")
    check_statistics(statistics or {}, style)
    try:
        fused = _on_image(graph, taps, shape)
        _check_taps(fused, taps)
        fuse(fused, content, {tap: (statistics or {}).get(tap, "gram") for tap in style}, tv_form)
    # A name of ours that the graph has already, or a node that contradicts its operator's definition.
    except (ValueError, KeyError, TypeError) as error:
        raise GraphError(f"graph {graph.name!r} cannot be differentiated: {_one_line(error)}") from error
    return fused


def _on_image(graph: Graph, taps: Iterable[str], shape: tuple[int, int] | None) -> Graph:
    """Copy what the taps need of a graph, its input under our name and of our shape."""
    needed = graph.copy(graph.name)
    needed.outputs = list(taps)
    needed.prune()
    read = {name for node in needed.nodes for name in node.input}
    inputs = [name for name in needed.inputs if name in read]
    if len(inputs) != 1:
        raise GraphError(
            f"graph {graph.name!r} has {len(inputs)} inputs ({', '.join(inputs)}): it must have one picture"
        )
    picture = inputs[0]
    dtype, given = needed.inputs[picture]
    if dtype != np.float32:
        raise GraphError(f"graph {graph.name!r}: input {picture!r} is {dtype}, must be float32: export it so")
    result = Graph(graph.name)
    result.input(IMAGE, _image_shape(graph.name, picture, given, shape))
    for name, value in needed.constants.items():
        result.weight(name, value)
    for node in needed.nodes:
        result.append(_renamed_node(node, {picture: IMAGE}))
    result.outputs = list(needed.outputs)
    return result


def _image_shape(graph: str, name: str, given: Shape, shape: tuple[int, int] | None) -> Shape:
    def fits(dim: Dim, size: int) -> bool:
        return dim == size or not isinstance(dim, int)

    if len(given) != 4 or not fits(given[0], 1) or not fits(given[1], 3):
        raise GraphError(f"graph {graph!r}: input {name!r} has shape {given}, must be (1, 3, height, width)")
    if shape is None:
        height, width = (d or side for d, side in zip(given[2:], ("height", "width"), strict=True))
        return (1, 3, height, width)
    if not fits(given[2], shape[0]) or not fits(given[3], shape[1]):
        raise GraphError(
            f"graph {graph!r} takes pictures of {given[3]}x{given[2]} pixels only, not of {shape[1]}x{shape[0]}: "
            "export it with dynamic height and width"
        )
    return (1, 3, *shape)


def _renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> onnx.ModelProto:
    """Give tensors of a model other names."""
    nodes = [_renamed_node(node, names) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = names.get(value.name, value.name)
    return model


def _renamed_node(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """Copy a node under other names of its tensors."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for tensors in (copy.input, copy.output):
        for position, name in enumerate(tensors):
            tensors[position] = names.get(name, name)
    return copy


def _check_taps(graph: Graph, taps: Iterable[str]) -> None:
    types = graph.infer_shapes()
    for tap in taps:
        if tap not in types:
            raise GraphError(f"graph {graph.name!r}: the shape of tap {tap!r} cannot be inferred: choose another")
        dtype, shape = types[tap]
        if dtype != np.float32 or len(shape) != 4 or shape[0] != 1 or not isinstance(shape[1], int):
            raise GraphError(
                f"graph {graph.name!r}: tap {tap!r} is {dtype} of shape {shape}, "
                "must be float32 of (1, channels, height, width)"
            )


def _one_line(error: BaseException | str) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
