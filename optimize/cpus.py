"""How many processors this process may really use."""

from __future__ import annotations

import os
from pathlib import Path


def available_cpus() -> int:
    """Return the number of processors that affinity and cgroup quota leave to this process, at least 1.

    Runtimes that count the machine's processors instead start too many threads inside containers.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, int(_cgroup_quota(Path("/sys/fs/cgroup/cpu.max")) or affinity)))


def _cgroup_quota(path: Path) -> float | None:
    """Return the processors that a cgroup v2 ``cpu.max`` file allows, rounded up, None where it sets no limit."""
    try:
        quota, period = path.read_text().split()
        return None if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return None
