"""What the device solvers descend: an objective whose image, gradient and losses never leave the device."""

from __future__ import annotations

from typing import Protocol

from impasto.runtime.gpu.protocol import Address, Device


class DeviceEvaluator(Protocol):
    """A problem made ready to be evaluated again and again on a device.

    The three addresses are 256-byte aligned and never change, so that an evaluation can be captured in a CUDA graph.
    ``image`` and ``gradient`` are float32 of ``size`` elements, a (1, 3, H, W) picture each, in the objective's pixel
    space; ``losses`` is float64, the weighted terms in the order of ``terms``. Where an evaluation fails, losses or
    gradient are not finite; nothing is raised.
    """

    @property
    def device(self) -> Device:
        """Where it runs."""
        ...

    @property
    def size(self) -> int:
        """Elements of the image: 3·H·W."""
        ...

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms, as `Objective.terms` has them."""
        ...

    @property
    def image(self) -> Address:
        """Where an evaluation reads the iterate: solvers write their trials here."""
        ...

    @property
    def gradient(self) -> Address:
        """Where an evaluation writes the gradient of the sum of the terms."""
        ...

    @property
    def losses(self) -> Address:
        """Where an evaluation writes the terms."""
        ...

    def enqueue(self) -> None:
        """Enqueue an evaluation at ``image``."""
        ...

    def observed(self, largest: float) -> None:
        """Be told the largest absolute element of the last gradient, not finite where the evaluation failed.

        To be called after each evaluation: half precision keeps its range by it.
        """
        ...
