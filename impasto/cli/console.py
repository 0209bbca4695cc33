"""What commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from impasto.errors import OutputError


def say(line: str) -> None:
    """Print a line for the user on standard error, where it disturbs nobody who reads the results.

    A reader that has gone away is no reason to stop a painting, so failures are ignored.
    """
    # Where standard error is closed it is None, which print would take for standard output.
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"impasto: {line}", file=sys.stderr, flush=True)


class _Spoken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"warning: {record.getMessage()}")


@contextlib.contextmanager
def spoken_warnings(quiet: bool = False) -> Iterator[None]:
    """Say what the library warns of inside the context (an engine cache that cannot be used), or nothing if quiet."""
    logger = logging.getLogger("impasto")
    handler = logging.NullHandler() if quiet else _Spoken(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def emit(*lines: str) -> None:
    """Print a command's result on standard output.

    A reader that has gone away has had enough of it, which is no error. Raises `OutputError` for any other reason why
    it cannot be written.
    """
    if sys.stdout is None:
        return
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would be flushed, and fail, once more as Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise OutputError(f"standard output cannot be written ({error.strerror}): send it elsewhere") from None


def emit_json(value: object) -> None:
    """Print one JSON object on standard output; numbers that JSON does not have (NaN, infinity) become null."""
    emit(json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False))


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align rows of cells into lines, two spaces between columns; all rows have equally many cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def human_bytes(size: float) -> str:
    """Return a size in bytes in the unit that suits it, decimal: ``34.1 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_age(seconds: float) -> str:
    """Return how long ago something was, in the unit that suits it: ``3 hours ago``."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
