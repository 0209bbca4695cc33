"""Reverse-mode automatic differentiation from ONNX to ONNX; one module of rules for each family of operators."""

from impasto.export.autodiff import (
    convolution,
    elementwise,
    linear,
    pooling,
    reduction,
    shape,
)
from impasto.export.autodiff.tape import RULES, differentiate

__all__ = [
    "RULES",
    "convolution",
    "differentiate",
    "elementwise",
    "linear",
    "pooling",
    "reduction",
    "shape",
]
