"""What ``--preview``, ``--animate`` and ``--report`` ask for, beside the picture itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from impasto.runtime.animation import Animation
    from impasto.runtime.loop import Step
    from impasto.runtime.painting import Painting
    from impasto.runtime.report import Report
    from impasto.runtime.result import Result


@dataclass
class Seeing:
    """Files to look at, None where they are not wanted; ``overwrite`` is for the two that are written at the end."""

    preview: Path | None
    animate: Path | None
    report: Path | None
    overwrite: bool
    _animation: Animation | None = field(default=None, init=False)
    _report: Report | None = field(default=None, init=False)

    def check(self) -> None:
        """Raise now what would be raised at the end."""
        from impasto.runtime.animation import check_animation
        from impasto.runtime.preview import Preview
        from impasto.runtime.report import Report

        if self.preview is not None:
            Preview(self.preview)
        if self.animate is not None:
            check_animation(self.animate, self.overwrite)
        if self.report is not None:
            self._report = Report(self.report, self.overwrite)

    def of(self, painting: Painting) -> list[Callable[[Step], None]]:
        """Return what is to be called with each step of the painting."""
        from impasto.runtime.animation import Animation
        from impasto.runtime.preview import Preview

        watchers: list[Callable[[Step], None]] = []
        if self.preview is not None:
            watchers.append(Preview(self.preview).see)
        if self.animate is not None:
            job = painting.job
            iterations = job.preset.total_iterations()
            self._animation = Animation(self.animate, job.size, iterations, overwrite=self.overwrite)
            watchers.append(self._animation.see)
        if self._report is not None:
            watchers.append(self._report.see)
        return watchers

    def write(self, painting: Painting, result: Result) -> None:
        """Write what is written at the end, and the last preview."""
        from impasto.runtime.images import to_uint8
        from impasto.runtime.write_image import write_image

        if self.preview is not None:
            write_image(self.preview, result.image, overwrite=True)
        if self._animation is not None:
            self._animation.write(to_uint8(result.image))
        if self._report is not None:
            self._report.write(result, painting.job.content.rgb, painting.job.style.rgb)
