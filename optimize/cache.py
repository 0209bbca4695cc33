"""The engine cache: compiled graphs kept between processes, each built once, checked each time it is used.

On disk, under a folder that only its user can enter::

    <digest>/             an engine: the files that its build wrote, and engine.json with the key and their digests
    <digest>.lock         held by the process that builds or removes that engine; the system frees it with the process
    <digest>-<random>.tmp an engine while it is built or deleted; one whose lock is free was left by a killed process

An engine appears and disappears by renaming its folder, so a reader sees all of it or nothing. Lock files are empty
and stay: removing one would split those that wait on it from those that come later.

Some kinds of engine are executable code. So nothing is taken from a folder that another user owns or can enter, or
through a link, and every file's SHA-256 is compared on every use. Measured on 144 MiB: 0.11 s with the CPU's SHA
instructions, 0.32 s without, where ONNX Runtime takes 0.15 s to load that engine.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import uuid
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from impasto.errors import EngineError, StorageError
from impasto.optimize.keys import EngineKey, canonical_json

RECORD = "engine.json"
"""Name of the file in which the cache records an engine's key and digests; builds leave it to the cache."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)
# ONNX Runtime and other C++ writers report a full disk as an exception of their own; it fills up to the last blocks.
_FULL_BYTES = 1 << 20

_logger = logging.getLogger("impasto")


@dataclass(frozen=True)
class Entry:
    """One engine on disk: its folder, its size in bytes, and when it was last used, in seconds since 1970.

    ``key`` is None where the engine's record cannot be read; it has not been compared with the files.
    """

    path: Path
    key: EngineKey | None
    size: int
    used: float


class EngineCache:
    """Engines on disk, found by their `EngineKey`.

    ``root`` is the cache's own folder, made when needed and open to this user alone (mode 0700); None stands for
    ``engines`` in `impasto.models.locate.cache_dir`, which the environment variable IMPASTO_CACHE moves.
    ``max_bytes`` is what the engines may take together before the least recently used ones are removed.

    A cache that cannot be written, locked or trusted, or has no space left, never fails a job: engines are then
    built into temporary folders, which go when the cache is closed (it is a context manager), collected, or the
    process ends. That, and every damaged engine, is logged to the logger ``impasto``.

    Objects may be shared by threads, and folders by processes.
    """

    def __init__(self, root: Path | None = None, max_bytes: int = 4 << 30) -> None:
        if root is None:
            from impasto.models.locate import cache_dir

            root = cache_dir() / "engines"
        self.root = root
        self.max_bytes = max_bytes
        self._private: dict[str, tuple[Path, weakref.finalize[..., EngineCache]]] = {}

    def __enter__(self) -> EngineCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the engines that had to be built outside the cache; those in the cache stay."""
        while self._private:
            _, (_, remove) = self._private.popitem()
            remove()

    def get(self, key: EngineKey) -> Path | None:
        """Return the folder of the key's engine, every file of it checked, or None if there is none.

        A damaged engine is removed, and counts as none; so does everything in a cache that cannot be trusted.
        Another process may prune the folder later: files that are open by then stay readable (on Windows they
        cannot be removed), and a reader that finds them gone calls `get_or_build` again.
        """
        try:
            require_private(self.root)
        except FileNotFoundError:
            return None
        except (OSError, EngineError) as error:
            _logger.warning("engine cache not used: %s", error)
            return None
        try:
            return self._sound(key)
        except FileNotFoundError:
            return None
        except EngineError as damage:
            try:
                with self._lock(key.digest, wait=False):
                    return self._settled(key)
            except Timeout:
                return None  # whoever holds the lock is replacing it
            except OSError as error:
                _logger.warning("%s; it cannot be removed: %s", damage, error)
                return None

    def get_or_build(self, key: EngineKey, build: Callable[[Path], None]) -> Path:
        """Return the folder of the key's engine, checked as by `get`, after building it if there is none.

        ``build`` writes the engine's files into the empty folder that it is given. Of all threads and processes
        that ask for one key, one builds and the others wait for it; when that one is killed, the next builds.
        Where the cache fails, or ``build`` raises OSError in it, ``build`` runs once more, in a temporary folder.

        Raises what ``build`` raises, `EngineError` if it writes no file or anything but plain files, and
        `StorageError` if there is no space left in the temporary folder either.
        """
        if key.digest in self._private:
            return self._private[key.digest][0]
        try:
            with contextlib.suppress(FileExistsError):
                self.root.mkdir(mode=0o700, parents=True)
            require_private(self.root)
        except (OSError, EngineError) as error:
            return self._build_outside(key, build, str(error))
        try:
            self._sweep()
            folder = self.get(key)
            if folder is not None:
                return folder
            with self._lock(key.digest, wait=True):
                folder = self._settled(key) or self._build_inside(key, build)
        except (OSError, StorageError) as error:
            return self._build_outside(key, build, str(error))
        self.prune(keep=[key])
        return folder

    def entries(self) -> tuple[Entry, ...]:
        """Return the engines on disk, the least recently used first, without checking their files' digests."""
        found = []
        with contextlib.suppress(OSError):
            for path in self.root.iterdir():
                # Another process may remove any of them meanwhile.
                with contextlib.suppress(OSError):
                    if _DIGEST.fullmatch(path.name):
                        found.append(_entry(path))
        return tuple(sorted(found, key=lambda entry: (entry.used, entry.path)))

    def size(self) -> int:
        """Return what the engines on disk take together, in bytes."""
        return sum(entry.size for entry in self.entries())

    def prune(self, keep: Collection[EngineKey] = ()) -> tuple[Entry, ...]:
        """Remove least recently used engines, but none of ``keep``, until the rest fits ``max_bytes``.

        Returns those that were removed. What cannot be removed, as on a read-only disk, stays.
        """
        kept = {key.digest for key in keep}
        self._sweep()
        entries = self.entries()
        excess = sum(entry.size for entry in entries) - self.max_bytes
        removed = []
        for entry in entries:
            if excess > 0 and entry.path.name not in kept and self._remove(entry.path):
                removed.append(entry)
                excess -= entry.size
        return tuple(removed)

    def verify(self, entry: Entry) -> None:
        """Check an engine's place, owner and files as every use does, but leave it as it is.

        Raises `EngineError` for one that is damaged or in a cache that cannot be trusted, FileNotFoundError for one
        that is gone.
        """
        require_private(self.root)
        if entry.key is None:
            raise EngineError(f"engine {entry.path} is damaged: its {RECORD} cannot be read by this version")
        if entry.key.digest != entry.path.name:
            raise EngineError(f"engine {entry.path} is damaged: its key belongs to {entry.key.digest}")
        _examine(entry.path, entry.key)

    def remove(self, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        """Remove engines, and return those that were removed; what cannot be removed, as on a read-only disk, stays."""
        return tuple(entry for entry in entries if self._remove(entry.path))

    def clear(self) -> tuple[Entry, ...]:
        """Remove every engine, and return those that were removed; builds under way go on."""
        self._sweep()
        return self.remove(self.entries())

    def _sound(self, key: EngineKey) -> Path:
        """Return the engine's folder; raise FileNotFoundError if there is none, `EngineError` if it is damaged."""
        folder = self.root / key.digest
        _examine(folder, key)
        with contextlib.suppress(OSError):  # a cache on a read-only disk has no order of use to keep
            os.utime(folder / RECORD)
        return folder

    def _settled(self, key: EngineKey) -> Path | None:
        """With the lock held: return the engine's folder, or None after removing what is damaged."""
        try:
            return self._sound(key)
        except FileNotFoundError:
            return None
        except EngineError as damage:
            with contextlib.suppress(FileNotFoundError):  # another process has pruned it
                _delete(self._set_aside(self.root / key.digest))
            _logger.warning("%s; removed", damage)
            return None

    def _build_inside(self, key: EngineKey, build: Callable[[Path], None]) -> Path:
        """With the lock held: build, and move the finished folder into place."""
        workspace = Path(tempfile.mkdtemp(prefix=f"{key.digest}-", suffix=".tmp", dir=self.root))
        try:
            _run(build, workspace)
            (workspace / RECORD).write_bytes(_record(workspace, key))
            _sync_tree(workspace)
            folder = workspace.rename(self.root / key.digest)
            _sync(self.root)
        finally:
            _delete(workspace)
        return folder

    def _build_outside(self, key: EngineKey, build: Callable[[Path], None], reason: str) -> Path:
        _logger.warning("engine cache not used, building into a temporary folder: %s", reason)
        try:
            folder = Path(tempfile.mkdtemp(prefix="impasto-engine-"))
        except OSError as error:
            raise StorageError(
                f"no temporary folder for an engine ({error}), and none in the cache ({reason}): free some space, "
                f"or set IMPASTO_CACHE to a folder that has some"
            ) from None
        remove = weakref.finalize(self, _delete_unless_forked, folder, os.getpid())
        try:
            _run(build, folder)
            _record(folder, key)  # the same demands on a build as in the cache
        except BaseException:
            remove()
            raise
        self._private[key.digest] = folder, remove
        return folder

    def _sweep(self) -> None:
        """Delete what killed processes left: temporary folders whose lock nobody holds."""
        with contextlib.suppress(OSError):
            for path in self.root.glob("*.tmp"):
                digest = _DIGEST.match(path.name)
                if digest:
                    with contextlib.suppress(OSError), self._lock(digest[0], wait=False):
                        _delete(path)

    def _remove(self, path: Path) -> bool:
        """Remove an engine without waiting; return whether it is gone by our hand."""
        try:
            _delete(self._set_aside(path))
        except OSError:
            return False
        return True

    def _set_aside(self, path: Path) -> Path:
        # Renamed first, so that no reader meets half an engine.
        return path.rename(self.root / f"{path.name}-{uuid.uuid4().hex}.tmp")

    @contextlib.contextmanager
    def _lock(self, digest: str, *, wait: bool) -> Iterator[None]:
        """Hold an engine's lock; raise `filelock.Timeout` (an OSError) if it is held and we do not wait."""
        lock = FileLock(self.root / f"{digest}.lock")
        try:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                if not wait:
                    raise
                _logger.info("waiting for another process that builds engine %s", digest)
                lock.acquire()
        except NotImplementedError as error:  # how filelock reports a file system without locks
            raise OSError(errno.ENOLCK, str(error), str(self.root)) from None
        try:
            yield
        finally:
            lock.release()


def require_private(folder: Path) -> None:
    """Raise `EngineError` unless the folder is a real one that only this user owns and can enter."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise EngineError(f"{folder} is not a real folder: remove it, or set IMPASTO_CACHE to another place")
    # Elsewhere than on POSIX the mode says nothing; a Windows user's own folders are closed to others by default.
    if os.name == "posix":
        if status.st_uid != os.geteuid():
            raise EngineError(
                f"{folder} belongs to user {status.st_uid}, not to {os.geteuid()}: remove it, or set IMPASTO_CACHE "
                f"to a folder of your own"
            )
        if status.st_mode & 0o077:
            raise EngineError(
                f"{folder} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}): empty it and "
                f"run chmod 700 on it, or set IMPASTO_CACHE to another place"
            )


def _examine(folder: Path, key: EngineKey) -> None:
    """Compare an engine's files with its record; raises as `EngineCache._sound` does."""
    try:
        require_private(folder)
        if _record(folder, key) != (folder / RECORD).read_bytes():
            raise EngineError(f"engine {folder} is damaged: its files are not those that {RECORD} lists")
    except OSError as error:
        if not os.path.lexists(folder):
            raise FileNotFoundError(errno.ENOENT, "no such engine", str(folder)) from None
        raise EngineError(f"engine {folder} is damaged: {error}") from None


def _record(folder: Path, key: EngineKey) -> bytes:
    """Return what engine.json says of the files that the folder holds now."""
    files = {}
    for path, status in _walk(folder):
        if not stat.S_ISREG(status.st_mode):
            raise EngineError(f"engine {folder}: {path.name} is a link or a device: an engine is plain files only")
        if os.name == "posix" and status.st_uid != os.geteuid():
            raise EngineError(f"engine {folder}: {path.name} belongs to user {status.st_uid}, not to {os.geteuid()}")
        if path != folder / RECORD:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(folder).as_posix()] = {"bytes": status.st_size, "sha256": digest}
    if not files:
        raise EngineError(f"engine {folder} has no files: its build wrote nothing")
    return canonical_json({"key": key.to_json(), "files": files})


def _entry(path: Path) -> Entry:
    try:
        key = EngineKey.from_json(json.loads((path / RECORD).read_bytes())["key"])
        used = (path / RECORD).lstat().st_mtime
    except (OSError, ValueError, TypeError, KeyError, RecursionError, EngineError):
        key, used = None, path.lstat().st_mtime
    return Entry(path, key, sum(status.st_size for _, status in _walk(path)), used)


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield everything below a folder that is not itself a folder, following no links."""
    if folder.is_symlink():
        return
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            status = path.lstat()
            if not stat.S_ISDIR(status.st_mode):
                yield path, status


def _run(build: Callable[[Path], None], folder: Path) -> None:
    try:
        build(folder)
    except Exception as error:
        lacks_space = isinstance(error, OSError) and error.errno in _SPACE_ERRORS
        if lacks_space or shutil.disk_usage(folder).free < _FULL_BYTES:
            raise StorageError(
                f"no space left in {folder.parent} for an engine ({error}): free some, or set IMPASTO_CACHE to a "
                f"folder that has some"
            ) from error
        raise


def _sync_tree(folder: Path) -> None:
    """Bring a folder's files and names to the disk, so that after a power cut a renamed folder is a whole one."""
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    if os.name == "posix":
        mode = os.O_RDONLY
    elif path.is_dir():
        return  # Windows opens no folders
    else:
        mode = os.O_RDWR  # Windows flushes no file that is open for reading
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _delete(path: Path) -> None:
    """Delete a folder with all in it, or whatever stands in its place; what cannot be deleted is left to a sweep."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _delete_unless_forked(folder: Path, owner: int) -> None:
    # A forked child inherits the finalizer, but the folder is still its parent's.
    if os.getpid() == owner:
        _delete(folder)
