"""The reference's activations in float64 and in float32, and how near to a flip they are (needs torch)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from impasto.export.forward import Pooling
from impasto.export.objective import Objective
from impasto.models.conventions import pixel_space
from impasto.models.layers import IMAGE, Layer, Pool, Relu
from impasto.models.reference import Reference
from impasto.models.weights import Weights
from impasto.runtime.problem import FloatArray

_MARGIN = 6.0
"""How many times a layer's rounding error in float32 (root mean square) its values must stay away from a flip."""


class Activations:
    """What every layer of the reference that an objective needs makes of an image.

    ``clear`` tells that nothing is near a flip: nowhere does an input of a ReLU come so close to zero, or do the two
    largest of a max pooling's window come so close to each other, that rounding in float32 may exchange them. Then
    every right gradient in float32 agrees with the exact one to rounding. ``calibration`` is that of the targets.
    """

    def __init__(
        self, weights: Weights, objective: Objective, calibration: Mapping[str, FloatArray] | None = None
    ) -> None:
        self._net = weights.backbone.needed(objective.taps)
        self._pooling: Pooling = objective.pooling
        taps, space = [layer.name for layer in self._net], pixel_space(objective.convention)
        self._networks = [Reference(weights, taps, objective.pooling, space, dtype) for dtype in _DTYPES]
        self._calibrations = [
            {name: torch.from_numpy(value).to(dtype) for name, value in (calibration or {}).items()}
            for dtype in _DTYPES
        ]
        self._images: list[torch.Tensor] = []
        self._layers: list[dict[str, torch.Tensor]] = []
        self.clear = False

    def compute(self, image: FloatArray) -> None:
        """Compute the layers of an image, (1, 3, H, W), in place of those of the image before."""
        self._images = [torch.from_numpy(image).to(dtype).requires_grad_() for dtype in _DTYPES]
        runs = zip(self._networks, self._images, self._calibrations, strict=True)
        self._layers = [network(x, calibration) for network, x, calibration in runs]
        with torch.no_grad():
            self.clear = all(self._is_clear(layer) for layer in self._net if layer.source != IMAGE)

    def tap(self, name: str) -> NDArray[np.float64]:
        """Return a tap, (1, C, h, w), computed in float64."""
        values: NDArray[np.float64] = self._layers[0][name].detach().numpy()
        return values

    def gradients(self, tap: str, seed: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the vector–Jacobian product of a tap, (1, 3, H, W), computed in float64 and in float32."""
        found: list[FloatArray] = []
        for image, layers in zip(self._images, self._layers, strict=True):
            cotangent = torch.from_numpy(seed).to(image.dtype)
            (gradient,) = torch.autograd.grad(layers[tap], image, cotangent, retain_graph=True)
            found.append(gradient.float().numpy())
        return found[0], found[1]

    def _is_clear(self, layer: Layer) -> bool:
        """Tell whether what the layer reads is far from where it would decide otherwise."""
        exact, rounded = (layers[layer.source] for layers in self._layers)
        if isinstance(layer, Relu):
            # Exact zeros come from weights of zero, and are zeros in float32 too.
            distances = exact[exact != 0].abs()
        elif isinstance(layer, Pool) and self._pooling == "max":
            height, width = (side // 2 * 2 for side in exact.shape[2:])
            corners = [exact[:, :, y:height:2, x:width:2] for y in (0, 1) for x in (0, 1)]
            first, second = torch.stack(corners).topk(2, dim=0).values
            # A window of zeros, below a ReLU, is a tie in float32 too, and goes to the same element.
            distances = (first - second)[first != 0]
        else:
            return True
        # Not counting zeros, of which rectified layers and dead channels are full, and which are exact.
        room = _MARGIN * float((exact - rounded)[exact != 0].square().mean().sqrt())
        return not distances.numel() or float(distances.min()) > room


_DTYPES = (torch.float64, torch.float32)
