"""What a part found: checks that are right or wrong, targets kept or missed, what failed, and what was skipped."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Bound, Table
from impasto.errors import DeviceError, ImpastoError, LimitError, UnavailableError


@dataclass(frozen=True)
class Check:
    """One thing that is right or wrong: an error that must not be above its bound, both in ``unit``."""

    what: str
    error: float
    bound: float
    unit: str

    @property
    def right(self) -> bool:
        """Whether the error is within the bound; NaN is not."""
        return self.error <= self.bound


@dataclass
class Part:
    """What one part found, as it goes along.

    ``targets`` are the project's wishes for speed: missing one is told, and is not wrong. ``failures`` are what ended
    with an error that it should not have, ``skipped`` what could not run, each with its reason.
    """

    title: str
    body: list[str | Table] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    targets: list[Bound] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        """Everything that is wrong, a line each."""
        checks = (f"{c.what}: error {c.error:.3g}, at most {c.bound:.3g} {c.unit}" for c in self.checks if not c.right)
        return [*(line.rstrip() for line in checks), *self.failures]

    @property
    def ran(self) -> bool:
        """Whether anything was put to the proof."""
        return bool(self.checks or self.failures)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Go on after an error: what is missing or too large is skipped, anything else that fails is wrong."""
        try:
            yield
        except DeviceError as error:
            self.failures.append(f"{what}: {error}")
        except (UnavailableError, LimitError) as error:
            self.skipped.append(f"{what}: {error}")
        except ImpastoError as error:
            self.failures.append(f"{what}: {error}")
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self.failures.append(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:500]}")

    def to_json(self) -> dict[str, Any]:
        """Return the part as JSON types."""
        return asdict(self) | {"body": [asdict(x) if isinstance(x, Table) else x for x in self.body]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Part:
        """Return the part that `to_json` wrote."""
        return cls(
            **values
            | {
                "body": [x if isinstance(x, str) else _table(x) for x in values["body"]],
                "checks": [Check(**check) for check in values["checks"]],
                "targets": [Bound(**target) for target in values["targets"]],
            }
        )


def _table(values: dict[str, Any]) -> Table:
    return Table(tuple(values["header"]), tuple(map(tuple, values["rows"])))


def worst(found: NDArray[Any], exact: NDArray[Any], magnitude: NDArray[Any] | float) -> float:
    """Return the largest ``|found - exact| / magnitude``; no error counts as none of a magnitude of zero, too."""
    error = np.abs(found.astype(np.float64) - exact)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(error == 0, 0.0, error / magnitude).max())


def differing(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return how many elements do not have the bits expected."""
    size = found.dtype.itemsize
    bits = np.dtype(f"u{size}")
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    return float((np.ascontiguousarray(found).view(bits) != np.ascontiguousarray(expected).view(bits)).sum())


def distance(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """Return the relative distance, by the Euclidean norm and in float64."""
    wide = exact.astype(np.float64)
    return float(np.linalg.norm(found.astype(np.float64) - wide) / np.linalg.norm(wide))


def cosine(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """Return the cosine of the angle between two arrays, in float64."""
    a, b = found.astype(np.float64).ravel(), exact.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
