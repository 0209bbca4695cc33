"""The objective of `johnson` in plain PyTorch, the network in any type: what ours is compared with.

As PyTorch's users write it, but that float16 is given weights rescaled by powers of two (`impasto.export.rescale`) and
a loss scale, without which it overflows. Taps are rectified ones of VGG, whose ReLUs work in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from impasto.export.rescale import rescaled
from impasto.models.layers import Conv, Layer, Pool, Relu
from impasto.models.weights import Weights
from impasto.runtime.gpu.gradient_scale import GradientScale
from impasto.runtime.problem import FloatArray, Losses, Problem

TYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Johnson(torch.nn.Module):
    """The weighted terms of a problem of `johnson`'s form at an image, (1, 3, H, W) float32.

    Terms are float32. With ``half_grams`` features of half types are multiplied as they are, which is fast; otherwise
    in float32, which is exact to the features' rounding.
    """

    def __init__(self, problem: Problem, precision: str, device: str, *, half_grams: bool = False) -> None:
        super().__init__()
        self.objective, self.dtype, self.half_grams = problem.objective, TYPES[precision], half_grams
        weights, factors = rescaled(problem.weights) if precision == "fp16" else (problem.weights, {})
        self.factors = {tap: factors.get(tap, 1.0) for tap in self.objective.taps}
        self.layers = torch.nn.ModuleDict(
            {layer.name: _module(layer, weights) for layer in weights.backbone.needed(self.objective.taps)}
        ).to(device, self.dtype)
        targets = problem.targets
        self.content = {tap: torch.from_numpy(targets.content[tap]).to(device) for tap in self.objective.content}
        self.style = {tap: torch.from_numpy(targets.style[tap]).to(device) for tap in self.objective.style}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the terms, in the order of `Objective.terms`."""
        taps, value = {}, x.to(self.dtype)
        for name, layer in self.layers.items():
            value = taps[name] = layer(value)
        terms = [
            weight * (taps[tap].float() / self.factors[tap] - self.content[tap]).square().mean()
            for tap, weight in self.objective.content.items()
        ]
        for tap, weight in self.objective.style.items():
            channels = taps[tap].shape[1]
            terms.append(weight * (self._gram(tap, taps[tap]) - self.style[tap] / channels).square().mean())
        if self.objective.tv:
            squares = x.diff(dim=2).square().sum() + x.diff(dim=3).square().sum()
            terms.append(self.objective.tv / 2 * squares)
        return torch.stack(terms)

    def _gram(self, tap: str, features: torch.Tensor) -> torch.Tensor:
        flat = features.flatten(2)[0]
        if self.half_grams:
            # Divided before, because sums of products leave float16's range.
            flat = flat * (flat.numel() ** -0.5)
            return (flat @ flat.T).float() / self.factors[tap] ** 2
        flat = flat.float() / self.factors[tap]
        return flat @ flat.T / flat.numel()


def _module(layer: Layer, weights: Weights) -> torch.nn.Module:
    if isinstance(layer, Relu):
        return torch.nn.ReLU(inplace=True)
    if isinstance(layer, Pool):
        return torch.nn.MaxPool2d(2)
    assert isinstance(layer, Conv), layer
    module = torch.nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel, padding=layer.kernel // 2)
    for parameter, name in zip((module.weight, module.bias), layer.tensors(), strict=True):
        parameter.data = torch.tensor(weights.tensors[name])
    return module.requires_grad_(False)


def own_losses(problem: Problem, image: FloatArray, precision: str, device: str) -> Losses:
    """Return PyTorch's own losses and gradient in a precision; float16 with a loss scale that fits."""
    model = Johnson(problem, precision, device)
    x = torch.from_numpy(image).to(device).requires_grad_()
    scale = GradientScale()

    def evaluate() -> float:
        x.grad = None
        terms = model(x)
        (terms.sum() * scale.value).backward()
        found.append(terms.detach())
        assert x.grad is not None
        return float(x.grad.abs().max())

    found: list[torch.Tensor] = []
    with rounding(tf32=precision == "tf32"):
        if precision == "fp16":
            scale.find(evaluate)
        evaluate()
    assert x.grad is not None
    gradient: FloatArray = (x.grad / scale.value).cpu().numpy().astype(np.float32)
    return Losses(dict(zip(problem.objective.terms, found[-1].tolist(), strict=True)), gradient)


@contextmanager
def rounding(*, tf32: bool) -> Iterator[None]:
    """Let products of float32 be rounded to TensorFloat-32 or not, and cuDNN look for its fastest algorithms."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
