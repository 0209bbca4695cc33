"""Painting from asyncio: in a thread of its own, one job of a stylizer after the other, stopped with its task."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from impasto.errors import LimitError, UsageError
from impasto.runtime.loop import Step
from impasto.runtime.read_image import Source
from impasto.runtime.result import Result

if TYPE_CHECKING:
    from impasto.runtime.stylizer import Stylizer


async def astylize(
    stylizer: Stylizer,
    content: Source,
    style: Source,
    *,
    deadline: float | None = None,
    each: Callable[[Step], None] | None = None,
    **options: Any,
) -> Result:
    """Paint as `Stylizer.stylize` does, whose ``options`` these are, without blocking the event loop.

    Jobs of one stylizer wait for their turn. A task that is cancelled ends when the evaluation under way has; one that
    still waits, when its turn comes. ``deadline`` is in seconds from the call, waiting included: after it the best
    picture so far is returned, with ``stop`` being ``stopped``. ``each`` is called in the event loop with every step.

    Raises as `Stylizer.stylize` does; `LimitError` where the deadline passed before the first evaluation, `UsageError`
    for one that is not positive.
    """
    if deadline is not None and not deadline > 0:
        raise UsageError(f"deadline is {deadline}: give seconds, more than 0")
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result | None] = loop.create_future()
    cancelled = threading.Event()
    due = None if deadline is None else time.monotonic() + deadline

    def work() -> None:
        try:
            result = _paint(stylizer, content, style, options, due, cancelled, tell)
        except BaseException as error:
            answer(fail, error)
        else:
            answer(succeed, result)

    def succeed(result: object) -> None:
        if not done.done():
            done.set_result(cast("Result | None", result))

    def fail(error: object) -> None:
        if not done.done():
            done.set_exception(cast("BaseException", error))

    def tell(step: Step) -> None:
        if each is not None:
            answer(each, step)

    def answer(function: Callable[[Any], object], value: object) -> None:
        # A loop that was closed meanwhile waits for nothing any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(function, value)

    # Not the loop's own executor, whose few threads are the application's, and jobs wait long.
    threading.Thread(target=work, name="impasto-job", daemon=True).start()
    try:
        result = await asyncio.shield(done)
    except asyncio.CancelledError:
        cancelled.set()
        # The task ends when its work has: whoever cancelled it may close the stylizer next.
        with contextlib.suppress(Exception):
            await asyncio.shield(done)
        raise
    if result is None:
        raise LimitError(f"no picture within {deadline} s: give it longer, or lower size")
    return result


def _paint(
    stylizer: Stylizer,
    content: Source,
    style: Source,
    options: dict[str, Any],
    due: float | None,
    cancelled: threading.Event,
    tell: Callable[[Step], None],
) -> Result | None:
    """Return the best picture, None where there is none when it ends."""
    with stylizer.exclusive(wait=True):
        if _ends(due, cancelled):
            return None
        painting = stylizer.begin(content, style, **options)
        seen = False
        for step in painting:
            seen = True
            tell(step)
            if _ends(due, cancelled):
                painting.close()
        return painting.result() if seen else None


def _ends(due: float | None, cancelled: threading.Event) -> bool:
    return cancelled.is_set() or (due is not None and time.monotonic() >= due)
