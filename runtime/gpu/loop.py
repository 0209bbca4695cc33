"""The loop on the device: what `impasto.runtime.loop.descend` is on the host, woken once an evaluation."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from impasto.errors import DeviceError
from impasto.models.conventions import PixelSpace
from impasto.runtime.gpu import adam, lbfgs
from impasto.runtime.gpu.evaluator import DeviceEvaluator
from impasto.runtime.gpu.memory import Memory
from impasto.runtime.gpu.protocol import Address, Device, TensorSpec
from impasto.runtime.gpu.report import DeviceEvaluation, DeviceTrials, Reporter
from impasto.runtime.kernels.image import ImageKernels
from impasto.runtime.loop import Judge, Observation
from impasto.runtime.problem import FloatArray
from impasto.runtime.solvers import LBFGS, Adam


class DeviceBest:
    """The best iterate so far, kept on the device while the loop runs, with its loss and terms.

    It begins as the start, (1, 3, H, W) float32, which is left as it is.
    """

    def __init__(self, image: FloatArray) -> None:
        self._image = image
        self._place: tuple[Device, Address] | None = None  # while the loop runs
        self._fetched = True
        self._lost: DeviceError | None = None
        self.loss = math.inf
        self.terms: Mapping[str, float] | None = None

    @property
    def image(self) -> FloatArray:
        """The image, (1, 3, H, W) float32, fetched from the device if it has changed; not to be written to.

        Raises `DeviceError` where it was lost with the device.
        """
        if self._lost is not None:
            raise DeviceError("the best picture was lost with the device: paint it again") from self._lost
        if self._place is not None and not self._fetched:
            device, address = self._place
            self._image = device.download(address, TensorSpec(np.dtype(np.float32), self._image.shape))
            self._fetched = True
        return self._image

    def rgb(self, space: PixelSpace, margin: int) -> NDArray[np.uint8]:
        """Return the image without a margin as 8-bit RGB, (H, W, 3), made on the device: a quarter of the bytes travel.

        To be asked for only while the loop runs.
        """
        assert self._place is not None
        device, address = self._place
        height, width = self._image.shape[2:]
        spec = TensorSpec(np.dtype(np.uint8), (height - 2 * margin, width - 2 * margin, 3))
        with closing(Memory(device)) as memory:
            pixels = memory.tensor("rgb", spec)
            ImageKernels(device, space).to_rgb(address, pixels, height, width, margin)
            return device.download(pixels, spec)

    @property
    def is_on_device(self) -> bool:
        """Whether the loop runs and has found an image there."""
        return self._place is not None and self.terms is not None

    def hold(self, device: Device, memory: Memory) -> None:
        """Keep the iterates to come in memory of their own."""
        self._place = device, memory.reserve("best", self._image.nbytes)

    def take(self, origin: Address, loss: float, terms: Mapping[str, float]) -> None:
        """Enqueue a copy of a better image."""
        assert self._place is not None
        device, address = self._place
        device.copy(address, origin, self._image.nbytes)
        self.loss, self.terms, self._fetched = loss, terms, False

    def release(self) -> None:
        """Fetch the image before the memory goes; if the device has failed, say so when the image is asked for."""
        try:
            _ = self.image
        except DeviceError as error:
            self._lost = error
        self._place = None


def descend_on_device(
    evaluator: DeviceEvaluator,
    solver: LBFGS | Adam,
    best: DeviceBest,
    *,
    scale: float = 0.0,
    max_evaluations: int | None = None,
) -> Generator[Observation, None, None]:
    """Minimise from ``best.image``, as `impasto.runtime.loop.descend` does, with every vector on the device.

    The solver's memory is allocated at the first step, and freed when the generator ends, however it does. Raises
    `LimitError` where it is not to be had, `DeviceError` where the device fails, and `DivergenceError`.
    """
    with closing(Memory(evaluator.device)) as memory:
        best.hold(evaluator.device, memory)
        try:
            reporter = Reporter(evaluator, memory)
            start = best.image.reshape(-1)
            with closing(_minimise(solver, start, evaluator, reporter, memory)) as trials:
                yield from _drive(trials, evaluator, reporter, best, Judge(scale), max_evaluations)
        finally:
            best.release()


def _minimise(
    solver: LBFGS | Adam, start: FloatArray, evaluator: DeviceEvaluator, reporter: Reporter, memory: Memory
) -> DeviceTrials:
    if isinstance(solver, LBFGS):
        return lbfgs.minimise(solver, start, evaluator, reporter.kernels, memory)
    return adam.minimise(solver, start, evaluator, reporter.kernels, memory)


def _drive(
    trials: DeviceTrials,
    evaluator: DeviceEvaluator,
    reporter: Reporter,
    best: DeviceBest,
    judge: Judge,
    max_evaluations: int | None,
) -> Generator[Observation, None, None]:
    trial = next(trials)
    count = 0
    while True:
        report = reporter.evaluate(trial)
        count += 1
        passed = judge.passes(report.loss, math.isfinite(report.largest))
        improved = passed and report.loss < best.loss
        if improved:
            best.take(evaluator.image, report.loss, report.terms)
        yield Observation(trial.iteration, count, report.loss, report.terms, improved)
        if count == max_evaluations:
            return
        try:
            trial = trials.send(DeviceEvaluation(report.loss if passed else math.inf, report))
        except StopIteration:
            return
