"""The layers that backbones are made of: what each computes, what it needs, and which size it gives."""

from __future__ import annotations

from dataclasses import dataclass

IMAGE = "image"
"""The source of a backbone's first layers: the picture itself, of three channels."""


@dataclass(frozen=True)
class Layer:
    """A layer's output has the layer's name; ``source`` is the layer that it reads, or `IMAGE`."""

    name: str
    source: str

    @property
    def stride(self) -> int:
        """How many positions of the source, along one side, one position of the output spans."""
        return 1

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the layer's weights."""
        return {}

    def side(self, source: int) -> int:
        """Return the height or width of the output for that of the source."""
        return source

    def smallest(self, side: int) -> int:
        """Return the smallest height or width of the source for which the output has at least ``side``."""
        return side


@dataclass(frozen=True)
class Conv(Layer):
    """A convolution, stride 1, zero-padded so that height and width stay."""

    in_channels: int
    out_channels: int
    kernel: int = 3

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Kernels, OIHW, and a bias for each."""
        shape = (self.out_channels, self.in_channels, self.kernel, self.kernel)
        return {f"{self.name}.weight": shape, f"{self.name}.bias": shape[:1]}


@dataclass(frozen=True)
class Relu(Layer):
    """max(x, 0)."""


@dataclass(frozen=True)
class Pool(Layer):
    """2×2 pooling, stride 2, floor mode; the maximum or the average, as the export says."""

    @property
    def stride(self) -> int:
        """Two."""
        return 2

    def side(self, source: int) -> int:
        """Half, rounded down."""
        return source // 2

    def smallest(self, side: int) -> int:
        """Twice."""
        return 2 * side


BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


@dataclass(frozen=True)
class Halve(Layer):
    """Half the size: the binomial filter (1, 4, 6, 4, 1)/16 in both directions, reflect-padded by 2, stride 2."""

    @property
    def stride(self) -> int:
        """Two."""
        return 2

    def side(self, source: int) -> int:
        """Half, rounded up."""
        return -(-source // 2)

    def smallest(self, side: int) -> int:
        """One less than twice; at least 3, since a reflection by 2 needs three positions."""
        return max(3, 2 * side - 1)


@dataclass(frozen=True)
class Filters(Layer):
    """A bank of filters: ``scale · (weight ∗ x) - threshold``, reflect-padded so that height and width stay.

    ``scale`` and ``threshold`` are one number a filter and belong to a style picture, over whose positions the
    response has mean μ and standard deviation σ: scale = 1/σ, threshold = μ/σ + offset. So a response says how many
    standard deviations of the style it lies above a level of its own; a positive factor on all channels and an offset
    of each cancel.
    """

    in_channels: int
    out_channels: int
    kernel: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Kernels, OIHW, and an offset for each, in standard deviations."""
        shape = (self.out_channels, self.in_channels, self.kernel, self.kernel)
        return {f"{self.name}.weight": shape, f"{self.name}.offset": shape[:1]}

    def calibration(self) -> tuple[str, str]:
        """Return the names under which graphs take scale and threshold, each (O,)."""
        return f"{self.name}.scale", f"{self.name}.threshold"

    def smallest(self, side: int) -> int:
        """The same; at least what the reflection needs."""
        return max(side, self.kernel // 2 + 1)
