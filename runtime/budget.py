"""Memory shared out among jobs that are painted at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable


class Budget:
    """Bytes that several workers reserve before they take them.

    A worker whose job is done rests: its reservation stays, for its sessions stay warm, until it reserves again or
    another needs the room; then it is made to leave what it holds. While a worker rests it uses nothing of that. Where
    nobody else works any job may begin, however large. ``total`` of None is no limit.
    """

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._reserved: dict[Hashable, int] = {}
        self._resting: dict[Hashable, Callable[[], None]] = {}
        self._changed = threading.Condition()

    @property
    def reserved(self) -> int:
        """Bytes that are reserved now."""
        with self._changed:
            return sum(self._reserved.values())

    def reserve(self, worker: Hashable, size: int) -> None:
        """Reserve ``size`` bytes for a worker in place of what it has, as soon as there is room.

        One worker at a time may ask: two would wait for one another.
        """
        with self._changed:
            self._resting.pop(worker, None)
            while not self._has_room(worker, size):
                if self._resting:
                    other, leave = self._resting.popitem()
                    leave()
                    del self._reserved[other]
                else:
                    self._changed.wait()
            self._reserved[worker] = size

    def rest(self, worker: Hashable, leave: Callable[[], None]) -> None:
        """Say that a worker's job is done; ``leave`` frees what it holds, perhaps in another's thread."""
        with self._changed:
            if worker in self._reserved:
                self._resting[worker] = leave
                self._changed.notify_all()

    def give_back(self, worker: Hashable) -> None:
        """Give back what a worker has reserved, if anything."""
        with self._changed:
            self._reserved.pop(worker, None)
            self._resting.pop(worker, None)
            self._changed.notify_all()

    def _has_room(self, worker: Hashable, size: int) -> bool:
        others = sum(reserved for other, reserved in self._reserved.items() if other != worker)
        return self._total is None or others == 0 or others + size <= self._total
