"""How much memory this process may still take, by the machine's word and by its container's."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")

_UNLIMITED = 1 << 60
"""Above this a cgroup's number means that there is no limit: version 1 writes the largest multiple of a page."""


@dataclass(frozen=True)
class Free:
    """Memory that is free, in bytes, and what says so; None where nothing does."""

    bytes: int | None
    source: str


def free_memory(root: Path = _ROOT) -> Free:
    """Return the memory that this process can take without pushing anything out: the least of what is known.

    - The machine's: ``MemAvailable`` of ``/proc/meminfo``; elsewhere than on Linux, the physical memory that
      ``os.sysconf`` says is free, or where it does not (macOS), half of all there is.
    - The container's: its limit minus what it uses, for the process's cgroup and every one above it, version 2 or 1.
      File pages that the kernel can drop (``inactive_file``) count as free.
    - The process's own: ``RLIMIT_AS`` minus its address space.

    ``root`` is where ``/proc`` and ``/sys`` are looked for.
    """
    known = [
        free
        for free in (_machine(root), *_cgroups(root), _address_space(root))
        if free is not None and free.bytes is not None
    ]
    return min(known, key=lambda free: free.bytes or 0, default=Free(None, "this system does not tell"))


def _machine(root: Path) -> Free | None:
    meminfo = _table(root / "proc/meminfo")
    if "MemAvailable" in meminfo:
        return Free(meminfo["MemAvailable"] * 1024, "the machine's available memory")
    if root == _ROOT and hasattr(os, "sysconf"):
        try:
            page = os.sysconf("SC_PAGE_SIZE")
            if "SC_AVPHYS_PAGES" in os.sysconf_names:
                return Free(page * os.sysconf("SC_AVPHYS_PAGES"), "the machine's free memory")
            return Free(page * os.sysconf("SC_PHYS_PAGES") // 2, "half of the machine's memory")
        except (OSError, ValueError):
            pass
    return None


def _cgroups(root: Path) -> list[Free]:
    """Return what is left of every limit that holds for this process."""
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        # hierarchy:controllers:path; version 2 has no controllers.
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # A container sees its own cgroup as the root, wherever the path says that it is.
        folder = base / path.strip().lstrip("/")
        for each in (folder, *folder.parents):
            if base == each or base in each.parents:
                free = _left(each, *files)
                if free is not None:
                    found.append(Free(free, "the container's memory limit"))
    return found


def _left(folder: Path, limit_file: str, usage_file: str, cache: str) -> int | None:
    limit, usage = _number(folder / limit_file), _number(folder / usage_file)
    if limit is None or usage is None or limit >= _UNLIMITED:
        return None
    reclaimable = _table(folder / "memory.stat").get(cache, 0)
    return max(0, limit - usage + min(reclaimable, usage))


def _address_space(root: Path) -> Free | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return None
    # KiB in the status file; without it, nothing is known to be taken.
    taken = _table(root / "proc/self/status").get("VmSize", 0) * 1024
    return Free(max(0, soft - taken), "the limit on this process's address space (ulimit -v)")


def _table(path: Path) -> dict[str, int]:
    """Read ``name: number`` or ``name number`` lines; others are left out."""
    found = {}
    for line in _lines(path):
        words = line.replace(":", " ", 1).split()
        if len(words) >= 2 and words[1].isdecimal():
            found[words[0]] = int(words[1])
    return found


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
