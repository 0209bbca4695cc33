"""``impasto cache``."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from impasto.cli.console import columns, emit, human_age, human_bytes
from impasto.errors import OutputError, UsageError

app = typer.Typer(help="The cache: compiled engines, and weights that were downloaded or converted.")


@app.command()
def show() -> None:
    """List the engines with size and age, and the weights."""
    from impasto.models.locate import available, cache_dir
    from impasto.optimize.cache import EngineCache

    cache = EngineCache()
    entries = cache.entries()
    now = time.time()
    rows = []
    for entry in entries:
        kind = "unreadable" if entry.key is None else entry.key.kind
        shape = "" if entry.key is None else "×".join(map(str, entry.key.shape)) or "any size"
        rows.append(("engine", entry.path.name[:12], kind, shape, human_bytes(entry.size), human_age(now - entry.used)))
    for name, path in available().items():
        status = path.stat()
        rows.append(("weights", name, "", "", human_bytes(status.st_size), human_age(now - status.st_mtime)))
    emit(
        f"cache {cache_dir()}",
        *(columns(rows) if rows else []),
        f"engines: {len(entries)}, {human_bytes(sum(entry.size for entry in entries))} "
        f"of at most {human_bytes(cache.max_bytes)}",
        f"weights: {len(rows) - len(entries)}",
    )


@app.command()
def clear(
    weights: Annotated[
        bool, typer.Option("--weights", help="Also the weights, and what is left of downloads that were cut.")
    ] = False,
) -> None:
    """Remove the compiled engines; they are built again when needed."""
    from impasto.optimize.cache import EngineCache

    cache = EngineCache()
    removed = cache.clear()
    lines = [f"removed {len(removed)} engines, {human_bytes(sum(entry.size for entry in removed))}"]
    left = cache.entries()
    if left:
        lines.append(f"{len(left)} engines could not be removed from {cache.root}")
    if weights:
        count, size = _clear_weights()
        lines.append(f"removed {count} weights files, {human_bytes(size)}")
    emit(*lines)


def _clear_weights() -> tuple[int, int]:
    """Remove the weights and what is left of downloads; return how many files and bytes that were."""
    from filelock import FileLock, Timeout

    from impasto.models.locate import cache_dir

    folder = cache_dir() / "weights"
    files = [path for pattern in ("*.safetensors", "*.part", "*.etag") for path in folder.glob(pattern)]
    with ExitStack() as locks:
        try:
            for lock in sorted(folder.glob("*.lock")):
                locks.enter_context(FileLock(lock).acquire(timeout=0))
        except Timeout as error:
            name = Path(error.lock_file).stem
            raise UsageError(
                f"weights {name!r} are being fetched by another process: wait for it, or stop it"
            ) from None
        size = 0
        for path in files:
            size += path.stat().st_size
            try:
                path.unlink()
            except OSError as error:
                raise OutputError(f"cannot remove {str(path)!r}: {error.strerror}") from None
    return len(files), size
