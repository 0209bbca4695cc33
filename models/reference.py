"""The backbone as a torch module: the reference that every other way of computing it is measured against."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from impasto.errors import ImageError, UnavailableError, UnknownNameError, UsageError
from impasto.models.backbones import Conv, Relu
from impasto.models.conventions import PixelSpace
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
            raise UsageError(f"no taps were asked of {weights.backbone.name}: give at least one, such as relu1_1")
        self.pooling = pooling
        self.dtype = dtype
        self.layers = weights.backbone.layers[: weights.backbone.index(self.taps[-1]) + 1]
        for layer in self.layers:
            if isinstance(layer, Conv):
                for part in ("weight", "bias"):
                    tensor = torch.tensor(weights.tensors[f"{layer.name}.{part}"], dtype=dtype)
                    self.register_buffer(f"{layer.name}_{part}", tensor)
        # In the weights' own space nothing is multiplied at all: the input stays bit for bit what it is.
        self.converts = input_space is not None and input_space != weights.convention
        if input_space is not None and self.converts:
            affine = input_space.affine_to(weights.convention)
            self.register_buffer("permutation", torch.tensor(affine.permutation))
            self.register_buffer("scale", torch.tensor(affine.scale, dtype=dtype).reshape(1, 3, 1, 1))
            self.register_buffer("offset", torch.tensor(affine.offset, dtype=dtype).reshape(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the taps of ``x``, (1, 3, H, W) in ``input_space``, each (1, C, H // stride, W // stride).

        Keys are canonical names in the order of the data; nothing beyond the deepest tap is computed. Raises
        `UsageError` for another shape or type, `ImageError` for a picture too small to reach the deepest tap.
        """
        self._check(x)
        if self.converts:
            x = x[:, self.get_buffer("permutation")] * self.get_buffer("scale") + self.get_buffer("offset")
        found = {}
        for layer in self.layers:
            if isinstance(layer, Conv):
                weight, bias = (self.get_buffer(f"{layer.name}_{part}") for part in ("weight", "bias"))
                x = torch.nn.functional.conv2d(x, weight, bias, padding=layer.kernel // 2)
            elif isinstance(layer, Relu):
                # Not in place: the convolution's own output is a tap too.
                x = torch.nn.functional.relu(x)
            elif self.pooling == "max":
                x = torch.nn.functional.max_pool2d(x, 2)
            else:
                x = torch.nn.functional.avg_pool2d(x, 2)
            if layer.name in self.taps:
                found[layer.name] = x
        return found

    def _check(self, x: torch.Tensor) -> None:
        if x.ndim != 4 or x.shape[:2] != (1, 3) or x.dtype != self.dtype:
            raise UsageError(
                f"the reference takes a (1, 3, H, W) tensor of {self.dtype}, not {tuple(x.shape)} of {x.dtype}"
            )
        deepest = self.taps[-1]
        smallest = self.backbone.stride(deepest)
        height, width = x.shape[2:]
        if min(height, width) < smallest:
            raise ImageError(
                f"a picture of {width}×{height} pixels is too small for tap {deepest!r}: "
                f"it needs at least {smallest}×{smallest}"
            )
