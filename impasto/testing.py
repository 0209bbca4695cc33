"""For the tests of programs that embed Impasto: a stylizer that paints nothing, at once, without weights or backend.

>>> from impasto.testing import FakeStylizer
>>> with FakeStylizer() as stylizer:
...     result = stylizer.stylize("photo.jpg", "painting.jpg", size=64)

It reads its pictures, holds them against the limits and checks sizes and names as `Stylizer` does, so that what a
program does wrong shows; the result is the content picture, tinted with the style's mean colour.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, cast

import numpy as np

from impasto.errors import ImpastoError, Interrupted, UsageError
from impasto.runtime.asynchronous import astylize
from impasto.runtime.images import FloatArray, resize, to_uint8
from impasto.runtime.limits import Limits
from impasto.runtime.loop import Step
from impasto.runtime.presets import Preset
from impasto.runtime.read_image import Source, read_image
from impasto.runtime.recipes import find_preset
from impasto.runtime.result import Result, TracePoint
from impasto.runtime.scales import Scales
from impasto.runtime.stylizer import Stylizer

_ITERATIONS = 3


class FakeStylizer:
    """Stands in for a `Stylizer` in tests; takes the same arguments, of which ``preset`` and ``limits`` matter.

    ``jobs`` lists the options of every job that was begun. With ``error`` every job raises that. A job has three
    iterations unless it asks for another number.
    """

    def __init__(
        self,
        preset: str | Preset = "impasto",
        *,
        limits: Limits | None = None,
        error: ImpastoError | None = None,
        **_options: Any,
    ) -> None:
        self.preset = find_preset(preset) if isinstance(preset, str) else preset
        self.limits = limits or Limits()
        self.error = error
        self.jobs: list[Mapping[str, Any]] = []
        self.closed = False
        self._busy = threading.Lock()

    def __enter__(self) -> FakeStylizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    def warm_up(self, width: int, height: int) -> None:
        """Check the size."""
        self.limits.check_long_side(width, height)

    def health(self) -> dict[str, Any]:
        """Return what `Stylizer.health` does, of a backend called ``fake``."""
        return {
            "painting": self._busy.locked(),
            "preset": self.preset.name,
            "weights": {"name": "fake", "sha256": ""},
            "backend": "fake",
            "precision": "fp32",
            "versions": {},
            "passed_over": {},
            "free_memory_bytes": None,
            "notes": [],
        }

    def begin(
        self,
        content: Source,
        style: Source,
        *,
        size: int | None = None,
        iterations: int | None = None,
        scales: Scales = "auto",
        init: Source | str | None = None,
        seed: int = 0,
    ) -> FakePainting:
        """Return the painting of a job, as `Stylizer.begin` does."""
        if size is not None and size < 1:
            raise UsageError(f"size is {size}: give at least 1 pixel")
        self.jobs.append({"size": size, "iterations": iterations, "scales": scales, "init": init, "seed": seed})
        pictures = [read_image(each, self.limits) for each in (content, style)]
        sizing = self.preset.sizing if size is None else self.preset.sizing.with_size(size)
        at = sizing.apply(*pictures[0].size)
        self.limits.check_long_side(*at)
        self.limits.check_iterations(iterations or self.preset.total_iterations())
        if self.error is not None:
            raise self.error
        tint = pictures[1].rgb.mean(axis=(0, 1))
        image = (resize(pictures[0].rgb, at) + tint) / np.float32(2)
        return FakePainting(image.astype(np.float32), self.preset, iterations or _ITERATIONS, seed)

    def steps(self, content: Source, style: Source, **options: Any) -> Iterator[Step]:
        """Yield the steps of a job, as `Stylizer.steps` does."""
        return iter(self.begin(content, style, **options))

    def stylize(self, content: Source, style: Source, **options: Any) -> Result:
        """Return the result of a job, as `Stylizer.stylize` does."""
        painting = self.begin(content, style, **options)
        for _ in painting:
            pass
        return painting.result()

    async def astylize(
        self,
        content: Source,
        style: Source,
        *,
        deadline: float | None = None,
        each: Callable[[Step], None] | None = None,
        **options: Any,
    ) -> Result:
        """Return the result of a job, as `Stylizer.astylize` does; the very same code runs it."""
        # What that asks of a stylizer is here: `begin` and `exclusive`.
        return await astylize(cast("Stylizer", self), content, style, deadline=deadline, each=each, **options)

    @contextmanager
    def exclusive(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the stylizer for one job, as `Stylizer.exclusive` does."""
        if not self._busy.acquire(blocking=wait):
            raise UsageError("this Stylizer is painting already: make one for each thread, or wait for it to end")
        try:
            yield
        finally:
            self._busy.release()


class FakePainting:
    """An iterator over the steps of a job whose picture is known; see `FakeStylizer`."""

    def __init__(self, image: FloatArray, preset: Preset, iterations: int, seed: int) -> None:
        self._image, self._preset, self._iterations, self._seed = image, preset, iterations, seed
        self._trace: list[TracePoint] = []
        self._closed = False

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        number = len(self._trace)
        if self._closed or number > self._iterations:
            raise StopIteration
        loss = 1.0 / (1 + number)
        self._trace.append(TracePoint(number, number + 1, 1e-3 * number, loss))
        size = (self._image.shape[1], self._image.shape[0])
        terms = {"content.fake": loss / 2, "style.fake": loss / 2}
        return Step(number, number + 1, 1e-3 * number, loss, terms, True, size, lambda: to_uint8(self._image))

    def close(self) -> None:
        """Stop; `result` stays available."""
        self._closed = True

    def result(self) -> Result:
        """Return the picture; raise `Interrupted` before the first step, as a painting does."""
        if not self._trace:
            raise Interrupted("stopped before the first evaluation: there is no picture yet")
        loss = self._trace[-1].loss
        return Result(
            image=self._image,
            alpha=None,
            preset=self._preset.name,
            backend="fake",
            precision="fp32",
            plan="fused",
            weights={"name": "fake", "sha256": ""},
            taps={"content": ["fake"], "style": ["fake"]},
            loss={"total": loss, "content": loss / 2, "style": loss / 2, "tv": 0.0},
            terms={"content.fake": loss / 2, "style.fake": loss / 2},
            trace=tuple(self._trace),
            seconds=self._trace[-1].seconds,
            peak_memory_bytes=None,
            seed=self._seed,
            versions={},
            stop="done" if len(self._trace) > self._iterations else "stopped",
            notes=("painted by a test double",),
            job={"preset": self._preset.to_json(), "seed": self._seed},
        )
