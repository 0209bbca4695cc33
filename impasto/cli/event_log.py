"""``--events FILE``: what happens, written while it happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from impasto.cli.console import say
from impasto.errors import OutputError

if TYPE_CHECKING:
    from impasto.runtime.loop import Step
    from impasto.runtime.result import Result


class EventLog:
    """Writes one line for each event, at once; a file that cannot be written any more stops nothing."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file

    def step(self, step: Step) -> None:
        """Write a `Step`."""
        from impasto.runtime.events import step_event

        if self._file is not None:
            self.write(step_event(step))

    def result(self, result: Result, output: str) -> None:
        """Write how it ended."""
        from impasto.runtime.events import result_event

        if self._file is not None:
            self.write(result_event(result, output))

    def write(self, event: Mapping[str, object]) -> None:
        """Write an event."""
        from impasto.runtime.events import line

        if self._file is None:
            return
        try:
            self._file.write(line(event))
            self._file.flush()
        except OSError as error:
            say(f"warning: no more events are written ({error.strerror})")
            self._file = None


@contextlib.contextmanager
def event_log(path: Path | None, overwrite: bool) -> Iterator[EventLog]:
    """Open the file of events, a new one, a pipe, or with ``overwrite`` one that is there; None writes nothing.

    Raises `OutputError` where it cannot be opened.
    """
    if path is None:
        yield EventLog(None)
        return
    if path.is_file() and not overwrite:
        raise OutputError(f"events {str(path)!r} exists: choose another name, or allow it to be replaced (--force)")
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"events {str(path)!r} cannot be written ({error.strerror}): choose another name") from None
    try:
        yield EventLog(file)
    finally:
        # What could not be written was told of already.
        with contextlib.suppress(OSError):
            file.close()
