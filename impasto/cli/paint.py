"""The painting loop as the command line runs it: with progress, and stopped by signals in good order."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from impasto.cli.build_progress import build_progress
from impasto.cli.console import say
from impasto.cli.progress import progress
from impasto.errors import Interrupted

if TYPE_CHECKING:
    from impasto.runtime.loop import Step
    from impasto.runtime.painting import Painting
    from impasto.runtime.result import Result
    from impasto.runtime.stylizer import Stylizer

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """SIGINT and SIGTERM while a painting is made.

    ``armed`` says whether there is a picture to keep. Until there is, a signal raises KeyboardInterrupt as usual.
    From then on the first one sets ``asked`` and the loop ends after the evaluation under way, so that picture and
    loss belong together and no write is cut off; a second one raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.armed = False
        self.asked = False

    def handle(self, *_: object) -> None:
        """Handle a signal."""
        if self.asked or not self.armed:
            raise KeyboardInterrupt
        self.asked = True
        say("stopping after this evaluation (once more to stop at once)")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Handle SIGINT and SIGTERM inside the context by the request that is yielded.

    A signal that the process was started to ignore, as shells do for jobs in the background, stays ignored. Raises
    `Interrupted` for a KeyboardInterrupt inside: the result was not written then.
    """
    request = StopRequest()
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    handled = {number: handler for number, handler in previous.items() if handler != signal.SIG_IGN}
    try:
        for number in handled:
            signal.signal(number, request.handle)
        yield request
    except KeyboardInterrupt:
        raise Interrupted("interrupted: the result was not written") from None
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def paint(
    painting: Painting,
    stylizer: Stylizer,
    request: StopRequest,
    quiet: bool,
    each: Callable[[Step], None] | None = None,
) -> Result:
    """Run a stylizer's painting to its end, or to the evaluation in which a stop is requested; return the best picture.

    Progress is measured by the length of the stylizer's preset; ``each`` is called with every step. Raises
    KeyboardInterrupt when stopped before the first evaluation.
    """
    preset = stylizer.preset
    total = preset.total_iterations()
    # L-BFGS-B and torch's L-BFGS are limited by evaluations.
    by_iteration = bool(preset.stages) or hasattr(preset.solver, "iterations")
    with progress("painting", quiet) as update, build_progress(stylizer.backend, update):
        for step in painting:
            request.armed = True
            count = step.iteration if by_iteration else step.evaluation
            update(count, total, f"iteration {step.iteration}, loss {step.loss:.4g}, {step.seconds:.0f} s")
            if each is not None:
                each(step)
            if request.asked:
                painting.close()
                break
    result = painting.result()
    return replace(result, stop="interrupted") if request.asked and result.stop != "done" else result
