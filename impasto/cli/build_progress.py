"""Progress while engines are built, graph after graph, each in nested phases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from impasto.cli.progress import Update
    from impasto.runtime.backends.protocol import Backend


@contextmanager
def build_progress(backend: Backend, update: Update) -> Iterator[None]:
    """Show by ``update`` the progress of what ``backend`` builds inside the context."""

    def show(phase: str, done: int, total: int) -> None:
        update(0, None, f"building an engine: {phase}, {done} of {total}")

    backend.progress = show
    try:
        yield
    finally:
        backend.progress = None
