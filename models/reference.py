"""The backbone as a torch module: the reference that every other way of computing it is measured against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from impasto.errors import ImageError, UnavailableError, UnknownNameError, UsageError
from impasto.models.conventions import PixelSpace, smallest_deviation
from impasto.models.layers import BINOMIAL, IMAGE, Conv, Filters, Halve, Layer, Relu
from impasto.models.taps import resolve_taps
from impasto.models.weights import Weights

try:
    import torch
except ImportError:
    raise UnavailableError("the torch reference needs torch: pip install 'impasto[reference]'") from None

POOLINGS = ("max", "average")


class Reference(torch.nn.Module):
    """Computes taps of a backbone; differentiable in its input, its weights are constants.

    ``taps`` are names or aliases; ``pooling`` is what VGG's 2×2, stride-2, floor-mode pools compute; ``input_space`` is
    the pixel space of the input, the weights' own by default. Another space is mapped onto the weights' convention
    before the first convolution, so that its zero padding stays what the weights were trained with.

    Raises `UsageError` (`UnknownNameError`, `MissingTapError`) for taps or a pooling that cannot be had.
    """

    def __init__(
        self,
        weights: Weights,
        taps: Iterable[str],
        pooling: Literal["max", "average"] = "max",
        input_space: PixelSpace | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise UnknownNameError("pooling", pooling, POOLINGS)
        self.backbone = weights.backbone
        self.taps = resolve_taps(weights.backbone, [weights.require(tap) for tap in taps])
        if not self.taps:
            raise UsageError(
                f"no taps were asked of {weights.backbone.name}: give at least one, such as {weights.taps[1]}"
            )
        self.pooling = pooling
        self.dtype = dtype
        self.smallest_deviation = smallest_deviation(weights.convention)
        self.layers = weights.backbone.needed(self.taps)
        self.last_readers = {layer.source: layer.name for layer in self.layers}
        for layer in self.layers:
            for name in layer.tensors():
                self.register_buffer(name.replace(".", "_"), torch.tensor(weights.tensors[name], dtype=dtype))
        # In the weights' own space nothing is multiplied at all: the input stays bit for bit what it is.
        self.converts = input_space is not None and input_space != weights.convention
        if input_space is not None and self.converts:
            affine = input_space.affine_to(weights.convention)
            self.register_buffer("permutation", torch.tensor(affine.permutation))
            self.register_buffer("scale", torch.tensor(affine.scale, dtype=dtype).reshape(1, 3, 1, 1))
            self.register_buffer("offset", torch.tensor(affine.offset, dtype=dtype).reshape(1, 3, 1, 1))

    def forward(
        self, x: torch.Tensor, calibration: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the taps of ``x``, (1, 3, H, W) in ``input_space``, each (1, C, h, w).

        Keys are canonical names in the order of the data; what no tap needs is not computed. ``calibration`` has scale
        and threshold, each (C,), of every `Filters` layer, as `calibrate` gives them. Raises `UsageError` for another
        shape or type and for a calibration that lacks a layer, `ImageError` for a picture too small to reach a tap.
        """
        self._check(x)
        values = {IMAGE: self._entered(x)}
        found = {}
        for layer in self.layers:
            value = self._output(layer, self._source(layer, values))
            if isinstance(layer, Filters):
                scale, threshold = self._calibrated(layer, calibration or {})
                value = value * scale - threshold
            values[layer.name] = value
            if layer.name in self.taps:
                found[layer.name] = value
        return found

    def calibrate(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return scale and threshold of every `Filters` layer for the style picture ``x``, given as to `forward`."""
        self._check(x)
        values = {IMAGE: self._entered(x)}
        found = {}
        for layer in self.layers:
            values[layer.name] = self._output(layer, self._source(layer, values))
            if isinstance(layer, Filters):
                deviation, mean = torch.std_mean(values[layer.name][0], dim=(1, 2), correction=0)
                scale, threshold = layer.calibration()
                found[scale] = 1 / deviation.clamp(min=self.smallest_deviation)
                found[threshold] = mean * found[scale] + self.get_buffer(f"{layer.name}_offset")
        return found

    def _entered(self, x: torch.Tensor) -> torch.Tensor:
        if self.converts:
            x = x[:, self.get_buffer("permutation")] * self.get_buffer("scale") + self.get_buffer("offset")
        return x

    def _source(self, layer: Layer, values: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what the layer reads, and let go of it after its last reader: together they would fill memory."""
        last = self.last_readers[layer.source] == layer.name
        return values.pop(layer.source) if last else values[layer.source]

    @staticmethod
    def _calibrated(layer: Filters, calibration: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        names = layer.calibration()
        if not calibration.keys() >= set(names):
            raise UsageError(
                f"no calibration was given for {layer.name}: pass what calibrate gives for the style picture"
            )
        scale, threshold = (calibration[name].reshape(1, -1, 1, 1) for name in names)
        return scale, threshold

    def _output(self, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        """Return what a layer makes of its source; of `Filters`, the response neither scaled nor thresholded."""
        functional = torch.nn.functional
        if isinstance(layer, Conv):
            weight, bias = (self.get_buffer(f"{layer.name}_{part}") for part in ("weight", "bias"))
            return functional.conv2d(x, weight, bias, padding=layer.kernel // 2)
        if isinstance(layer, Relu):
            # Not in place: the layer's own source is a tap too.
            return functional.relu(x)
        if isinstance(layer, Filters):
            padded = functional.pad(x, [layer.kernel // 2] * 4, mode="reflect")
            return functional.conv2d(padded, self.get_buffer(f"{layer.name}_weight"))
        if isinstance(layer, Halve):
            row = x.new_tensor(BINOMIAL)
            kernel = (row[:, None] * row).expand(x.shape[1], 1, len(row), len(row))
            return functional.conv2d(functional.pad(x, [2] * 4, mode="reflect"), kernel, stride=2, groups=x.shape[1])
        return functional.max_pool2d(x, 2) if self.pooling == "max" else functional.avg_pool2d(x, 2)

    def _check(self, x: torch.Tensor) -> None:
        if x.ndim != 4 or x.shape[:2] != (1, 3) or x.dtype != self.dtype:
            raise UsageError(
                f"the reference takes a (1, 3, H, W) tensor of {self.dtype}, not {tuple(x.shape)} of {x.dtype}"
            )
        tap = max(self.taps, key=self.backbone.smallest)
        smallest = self.backbone.smallest(tap)
        height, width = x.shape[2:]
        if min(height, width) < smallest:
            raise ImageError(
                f"a picture of {width}×{height} pixels is too small for tap {tap!r}: "
                f"it needs at least {smallest}×{smallest}"
            )
