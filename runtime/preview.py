"""A picture that is refreshed while it is painted."""

from __future__ import annotations

import logging
import os
import time

from impasto.errors import OutputError, StorageError
from impasto.runtime.files import check_writable
from impasto.runtime.loop import Step
from impasto.runtime.write_image import image_format, write_image

SHARE = 0.05
"""The largest share of the time that goes into previews."""

_logger = logging.getLogger("impasto")


class Preview:
    """Replaces a file by the best picture so far, each time in one step: a viewer sees a whole picture or the last one.

    ``every`` is in seconds; it becomes longer where writing would take more than `SHARE` of the time. The file may be
    there already. Where one cannot be written later, that is a warning, once, and the painting goes on.

    Raises `OutputError` for a suffix that is no picture's, and where nothing can be written.
    """

    def __init__(self, path: str | os.PathLike[str], every: float = 1.0) -> None:
        image_format(path)
        check_writable(path, overwrite=True)
        self._path, self._every = path, every
        self._due = 0.0
        self._warned = False

    def see(self, step: Step) -> None:
        """Write the best picture so far, if it is time; the first is due at once."""
        began = time.monotonic()
        if began < self._due:
            return
        try:
            write_image(self._path, step.preview(), overwrite=True)
        except (OutputError, StorageError) as error:
            if not self._warned:
                _logger.warning("painting goes on without previews: %s", error)
            self._warned = True
        took = time.monotonic() - began
        self._due = began + took + max(self._every, took * (1 / SHARE - 1))
