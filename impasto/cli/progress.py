"""Progress on standard error: a bar on a terminal, plain lines elsewhere, nothing when it is not wanted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from impasto.cli.console import say

Update = Callable[[float, float | None, str], None]
"""Called with how much is done, of how much (None: not known), and a note on it (``loss 1.2e+05``)."""

_SILENCE = 30.0
"""Seconds after which a plain line is due although not a tenth of the work has been done since the last."""


@contextmanager
def progress(title: str, quiet: bool = False) -> Iterator[Update]:
    """Show the progress of what runs inside the context."""
    if quiet:
        yield _nothing
    elif sys.stderr is not None and sys.stderr.isatty():
        with _bar(title) as update:
            yield update
    else:
        yield _lines(title)


@contextmanager
def _bar(title: str) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    layout = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Standard output is left alone: it may be a file, and carries the results.
    with Progress(*layout, console=Console(stderr=True), redirect_stdout=False, transient=True) as bar:
        task = bar.add_task(title, total=None, note="")

        def update(done: float, total: float | None, note: str) -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


def _nothing(*_: object) -> None:
    """Show nothing."""


def _lines(title: str) -> Update:
    shown_tenth, shown_at = -1, 0.0

    def update(done: float, total: float | None, note: str) -> None:
        nonlocal shown_tenth, shown_at
        now = time.monotonic()
        tenth = int(10 * done / total) if total else 0
        if tenth > shown_tenth or now - shown_at > _SILENCE:
            shown_tenth, shown_at = tenth, now
            share = f" {100 * done / total:.0f}%" if total else ""
            say(f"{title}{share}{', ' if share else ' '}{note}")

    return update
