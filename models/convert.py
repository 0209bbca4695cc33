"""Turns the weights that others publish into ours: names, order and convention, checked against the backbones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from impasto.errors import UnknownNameError, UsageError, WeightsError
from impasto.models.backbones import BACKBONES, Backbone
from impasto.models.backbones import backbone as backbone_named
from impasto.models.conventions import CONVENTIONS
from impasto.models.layers import Conv
from impasto.models.tensor_files import open_tensor_file
from impasto.models.weights import Weights

# torchvision's, Keras' and the paper's names; whatever has another name (the classifier) is left out.
_TENSOR = re.compile(r"(features\.\d+|block\d_conv\d|conv\d_\d)\.(weight|bias)")


def convert_weights(path: str | Path, convention: str | None = None, backbone: str | None = None) -> Weights:
    """Read weights in a foreign format, told by content: torch ``.pth``, Keras ``.h5``, ``.npz`` or safetensors.

    Tensors may be named as torchvision does (``features.0.weight``), as Keras applications do (``block1_conv1``) or as
    here (``conv1_1.weight``, also ``conv1_1_W``); all but Keras' must be OIHW. The classifier is ignored, and so no
    more than the convolutions is held in memory.

    ``convention`` names the pixel space that the weights were trained in. A torch file is taken for torchvision's and
    a Keras file for Caffe's unless it is given (some Caffe weights are passed around as ``.pth``); for the other
    formats it must be given. ``backbone`` is found from names and shapes unless it is given, which weights that stop
    early may need.

    Raises `UsageError` when the convention or the backbone cannot be told, `UnknownNameError` for a name of either
    that does not exist, `WeightsError` for a file that is damaged or fits no backbone, and `UnavailableError` for a
    Keras file where h5py is not installed. Neither torch nor anything in the file is run.
    """
    path = Path(path)
    if convention is not None and convention not in CONVENTIONS:
        raise UnknownNameError("convention", convention, CONVENTIONS)
    given = None if backbone is None else backbone_named(backbone)
    file, implied = open_tensor_file(path)
    space = CONVENTIONS[convention] if convention else implied
    if space is None:
        raise UsageError(
            f"weights {str(path)!r} do not say what pixels they were trained on: "
            f"give their convention ({' or '.join(CONVENTIONS)})"
        )
    shapes = {key: shape for key, shape in file.shapes.items() if _TENSOR.fullmatch(key)}
    net = _find_backbone(path, shapes, given)
    layers = _layers(net)
    tensors = {}
    for key in shapes:
        layer, part = key.rsplit(".", 1)
        tensors[f"{layers[layer].name}.{part}"] = file.read(key)
    return Weights(path.name, net, space, tensors)


def _find_backbone(path: Path, shapes: Mapping[str, tuple[int, ...]], given: Backbone | None) -> Backbone:
    if not shapes:
        raise WeightsError(
            f"weights {str(path)!r} hold no convolution under a known name "
            "(features.0.weight, block1_conv1, conv1_1.weight or conv1_1_W)"
        )
    candidates = [given] if given else [net for net in BACKBONES.values() if net.convs]
    misfits = {net.name: misfit for net in candidates if (misfit := _misfit(net, shapes))}
    fitting = [net.name for net in candidates if net.name not in misfits]
    if not fitting:
        # The backbone that gets furthest into the file is the one that was meant.
        name = max(misfits, key=lambda name: misfits[name][0])
        raise WeightsError(f"weights {str(path)!r} do not fit {name}: {misfits[name][1]}")
    complete = [name for name in fitting if len(shapes) == 2 * len(BACKBONES[name].convs)]
    if len(complete or fitting) > 1:
        raise UsageError(
            f"weights {str(path)!r} stop early and could be those of {' or '.join(fitting)}: give the backbone"
        )
    return BACKBONES[(complete or fitting)[0]]


def _misfit(net: Backbone, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, str] | None:
    """Return how many tensors fit, and why the next does not; None if all do."""
    layers = _layers(net)
    wanted = {name: shape for conv in net.convs for name, shape in conv.tensors().items()}
    found: dict[str, str] = {}
    for fits, (key, shape) in enumerate(sorted(shapes.items(), key=lambda item: _natural(item[0]))):
        layer, part = key.rsplit(".", 1)
        if layer not in layers:
            return fits, f"it has no convolution {layer!r}"
        name = f"{layers[layer].name}.{part}"
        if name in found:
            return fits, f"{key!r} and {found[name]!r} are the same tensor"
        if shape != wanted[name]:
            return fits, f"{key!r} has shape {shape}, must be {wanted[name]}" + (" (OIHW)" if len(shape) == 4 else "")
        found[name] = key
    # Weights may stop after any convolution, but neither skip one nor lack a bias.
    expected = list(wanted)[: len(found) + len(found) % 2]
    missing = next((name for name in expected if name not in found), None)
    return (len(found), f"tensor {missing!r} is missing") if missing else None


def _layers(net: Backbone) -> dict[str, Conv]:
    """Return the convolutions under each name that they go by in files."""
    layers = {}
    for index, layer in enumerate(net.layers):
        if isinstance(layer, Conv):
            layers[layer.name] = layer
            layers[f"features.{index}"] = layer
            layers[layer.name.replace("conv", "block").replace("_", "_conv")] = layer
    return layers


def _natural(key: str) -> list[tuple[int, str]]:
    # features.2 comes before features.10.
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", key)]
