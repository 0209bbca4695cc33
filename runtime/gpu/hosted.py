"""A device's evaluator for solvers whose vectors live on the host."""

from __future__ import annotations

import numpy as np

from impasto.runtime.gpu.evaluator import DeviceEvaluator
from impasto.runtime.gpu.protocol import TensorSpec
from impasto.runtime.problem import FloatArray, Losses


class HostedEvaluator:
    """An `Evaluator` that sends each image to the device and fetches losses and gradient.

    ``on_device`` is the evaluator itself, for solvers that have a device's version.
    """

    def __init__(self, on_device: DeviceEvaluator) -> None:
        self.on_device = on_device

    def evaluate(self, image: FloatArray) -> Losses:
        """Return losses and gradient, as `Evaluator.evaluate` says."""
        evaluator, device = self.on_device, self.on_device.device
        device.upload(evaluator.image, np.ascontiguousarray(image))
        evaluator.enqueue()
        terms = device.download(evaluator.losses, TensorSpec(np.dtype(np.float64), (len(evaluator.terms),)))
        gradient = device.download(evaluator.gradient, TensorSpec(np.dtype(np.float32), image.shape))
        evaluator.observed(float(np.abs(gradient).max()))
        return Losses(dict(zip(evaluator.terms, terms.tolist(), strict=True)), gradient)
