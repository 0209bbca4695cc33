"""Checkpoints: a painting's state on the disk, so that another process can go on where this one was killed."""

from __future__ import annotations

import contextlib
import glob
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from impasto.errors import CheckpointError, OutputError, StorageError, UsageError
from impasto.runtime.checkpoint_file import CheckpointArrays, read_checkpoint, write_checkpoint
from impasto.runtime.files import check_writable, write_atomically
from impasto.runtime.identity import differences

SHARE = 0.1
"""The largest share of the time that goes into writing."""

_logger = logging.getLogger("impasto")


@dataclass(frozen=True)
class Checkpoint:
    """Where, and how often, a painting's state is written.

    ``every`` is in seconds, 0 for as often as `SHARE` of the time allows. With ``resume`` the painting goes on from the
    file, or begins if there is none. A file that is there is never replaced without ``resume``. It stays when the
    painting ends, so that its result is safe before it goes: call `remove` once that is written.

    Raises `UsageError` for an ``every`` that is negative or not finite.
    """

    path: str | os.PathLike[str]
    every: float = 60.0
    resume: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.every < math.inf:
            raise UsageError(f"a checkpoint every {self.every} seconds: give a number of 0 or more")

    @property
    def file(self) -> Path:
        """The path."""
        return Path(self.path)

    def exists(self) -> bool:
        """Tell whether there is something at the path."""
        return os.path.lexists(self.path)

    def check(self) -> None:
        """Raise `OutputError` where no checkpoint could be written, or one is there and ``resume`` is not asked for."""
        if self.exists() and self.file.is_file() and not self.resume:
            raise OutputError(
                f"checkpoint {str(self.file)!r} exists: go on from it with resume (--resume), or remove it"
            )
        check_writable(self.path, overwrite=True, prefix=self.prefix)

    def remove(self) -> None:
        """Remove the file, if it is there, and what killed processes left of it."""
        self.remove_leftovers()
        with contextlib.suppress(OSError):
            self.file.unlink()

    def remove_leftovers(self) -> None:
        """Remove what processes left that were killed as they wrote; each may be as large as a checkpoint."""
        for path in Path(os.path.realpath(self.path)).parent.glob(f"{glob.escape(self.prefix)}*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()

    @property
    def prefix(self) -> str:
        """What the names of files begin with that are being written."""
        return f".{self.file.name}-"


class CheckpointWriter:
    """Writes a painting's checkpoints when they are due, and never fails for it: the last good one stays.

    ``written`` counts them, ``seconds`` is what they took.
    """

    def __init__(self, checkpoint: Checkpoint, job: Mapping[str, Any]) -> None:
        """Take the job's identity; raise as `Checkpoint.check` does."""
        checkpoint.check()
        checkpoint.remove_leftovers()
        self.written, self.seconds = 0, 0.0
        self._checkpoint, self._job = checkpoint, job
        self._due = time.monotonic() + checkpoint.every
        self._warned = False

    def load(self) -> tuple[dict[str, Any], CheckpointArrays] | None:
        """Return state and arrays to go on from, None if that is not asked for or there are none.

        Raises `CheckpointError` for a file that is damaged, no checkpoint, or of another job.
        """
        if not (self._checkpoint.resume and self._checkpoint.exists()):
            return None
        state, arrays = read_checkpoint(self._checkpoint.file)
        difference = differences(state["job"], self._job)
        if difference:
            raise CheckpointError(
                f"checkpoint {str(self._checkpoint.file)!r} is of another job: {difference}; repeat the command that "
                "wrote it, or remove it to start anew"
            )
        return state, arrays

    def due(self) -> bool:
        """Tell whether it is time for a checkpoint."""
        return time.monotonic() >= self._due

    def write(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a checkpoint of a state, JSON types, and of contiguous arrays."""
        began = time.monotonic()
        try:
            write_atomically(
                self._checkpoint.path,
                lambda file: write_checkpoint(file, {"job": self._job, **state}, arrays),
                overwrite=True,
                prefix=self._checkpoint.prefix,
            )
        except (StorageError, OutputError) as error:
            if not self._warned:
                _logger.warning("painting goes on without a new checkpoint: %s", error)
            self._warned = True
        else:
            self.written += 1
            self._warned = False
        took = time.monotonic() - began
        self.seconds += took
        self._due = began + took + max(self._checkpoint.every, took * (1 / SHARE - 1))
