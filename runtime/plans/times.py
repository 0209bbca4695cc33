"""How long evaluations took by each plan, from which the faster one is known the next time."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from impasto.errors import ImpastoError
from impasto.runtime.backends.protocol import Plan
from impasto.runtime.files import write_atomically


class PlanTimes:
    """Seconds of an evaluation, by problem and plan; kept in a file if one is given, which may be lost at any time."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._seconds = _read(path) if path else {}

    def fastest(self, problem: Hashable, plans: Sequence[Plan]) -> Plan | None:
        """Return the fastest of the plans for a problem; None as long as they have not all been timed."""
        seconds = self._seconds.get(_digest(problem), {})
        if not seconds.keys() >= set(plans):
            return None
        fastest: Plan = min(plans, key=lambda plan: seconds[plan])
        return fastest

    def record(self, problem: Hashable, plan: Plan, seconds: float) -> None:
        """Take note of what an evaluation took."""
        self._seconds.setdefault(_digest(problem), {})[plan] = seconds
        if self._path is not None:
            # Other processes may have added to the file since it was read.
            theirs = _read(self._path)
            self._seconds = {p: {**theirs.get(p, {}), **self._seconds.get(p, {})} for p in {**theirs, **self._seconds}}
            # A choice that cannot be kept is made again; no job fails for it.
            with suppress(ImpastoError):
                write_atomically(self._path, json.dumps(self._seconds, indent=1).encode(), overwrite=True)


def _digest(problem: Hashable) -> str:
    return sha256(repr(problem).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(path.read_bytes())
        return {
            str(problem): {str(plan): float(seconds) for plan, seconds in plans.items()}
            for problem, plans in found.items()
            if isinstance(plans, Mapping)
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
