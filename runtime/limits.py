"""Limits: what a job may ask of the machine, on by default, so that no input can exhaust it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from impasto.errors import LimitError, UnknownNameError, UsageError
from impasto.runtime.memory import free_memory


@dataclass(frozen=True)
class Limits:
    """The largest job that is accepted; ``None`` lifts a limit.

    Each ``check_…`` method raises `LimitError` when a value is above its limit, and accepts one that equals it.
    Raises `UsageError` when made with anything but positive whole numbers and ``None``; ``memory`` can be a share, too.
    """

    max_file_bytes: int | None = 256 * 2**20
    """Size of one picture's file, in bytes."""

    # Below 89 478 485, from where on some of Pillow's plugins warn.
    max_pixels: int | None = 80_000_000
    """Width × height of one input picture, known from its header before any pixel is decoded."""

    max_long_side: int | None = 8192
    """Longer side of the result, in pixels."""

    max_iterations: int | None = 20_000
    """Iterations of the solver, over all scales."""

    max_evaluations: int | None = 50_000
    """Evaluations of the objective and its gradient, over all scales: a line search makes several an iteration."""

    memory: int | float | None = 0.8
    """Memory of a job, beyond what the interpreter takes once everything is imported: in bytes, or as a share above 0
    and up to 1, a float, of what machine and container have free when the job begins. See `memory_bytes`."""

    def __post_init__(self) -> None:
        for field, value in asdict(self).items():
            if field == "memory" and isinstance(value, float):
                if not 0 < value <= 1:
                    raise UsageError(f"limit memory is {value!r}: give bytes as a whole number, or a share up to 1.0")
                continue
            # bool is an int to isinstance, and True would silently become a limit of 1.
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"limit {field} is {value!r}: give a positive whole number, or None for no limit")

    def check_file_bytes(self, size: int, what: str) -> None:
        """Check the size in bytes of the file that ``what`` names."""
        self._check("max_file_bytes", size, f"{what} has {size} bytes")

    def check_pixels(self, width: int, height: int, what: str) -> None:
        """Check the width and height of the input picture that ``what`` names."""
        self._check("max_pixels", width * height, f"{what} has {width}×{height} = {width * height} pixels")

    def check_long_side(self, width: int, height: int) -> None:
        """Check the width and height of the result."""
        self._check("max_long_side", max(width, height), f"a result of {width}×{height} pixels is too large")

    def check_iterations(self, iterations: int) -> None:
        """Check the number of solver iterations that a job asks for."""
        self._check("max_iterations", iterations, f"a job of {iterations} iterations is too long")

    def check_evaluations(self, evaluations: int) -> None:
        """Check the number of evaluations that a job asks for."""
        self._check("max_evaluations", evaluations, f"a job of {evaluations} evaluations is too long")

    def memory_bytes(self, held: int = 0) -> int | None:
        """Return the memory that a job may take, in bytes, None for any.

        A share is of what is free now and what the job holds already, ``held`` bytes. Where the system does not tell
        what is free, it is no limit.
        """
        if not isinstance(self.memory, float):
            return self.memory
        free = free_memory().bytes
        return None if free is None else int(self.memory * (free + held))

    def to_json(self) -> dict[str, int | float | None]:
        """Return the limits as a dict that ``json`` can write."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Limits:
        """Make limits from what `to_json` returned; a limit that is not named keeps its default.

        Raises `UnknownNameError` for a name that is no limit, `UsageError` for a value that cannot be one.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise UnknownNameError("limit", name, known)
        return cls(**values)

    def _check(self, field: str, value: int, problem: str) -> None:
        limit: int | None = getattr(self, field)
        if limit is not None and value > limit:
            option = "--" + field.replace("_", "-")
            raise LimitError(f"{problem}, the limit is {limit}: raise {field} ({option}) to accept it")


DEFAULT_LIMITS = Limits()
"""The limits that hold where no others are given."""
