"""Output folders: replaced whole or not at all.

A folder is written beside its place, under a hidden name, and renamed into it. No system can exchange two folders in
one portable step, so an earlier one is renamed aside first. A process killed between the two renames leaves both
folders whole under hidden names, and the next run puts the earlier one back before anything else::

    .<name>.<random>.tmp    a folder while it is written; its lock is free once its process is gone
    .<name>.<random>.old    an earlier folder, set aside
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from impasto.errors import OutputError, StorageError

if sys.platform != "win32":
    import fcntl

# EFBIG: a file is larger than the file system or the process's own limit (ulimit -f) allows.
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def replaced_folder(folder: str | os.PathLike[str], foreign: Callable[[Path], str | None]) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends, it becomes ``folder``, flushed to the disk.

    ``folder`` may be missing, empty, or hold what may go: ``foreign`` looks into a folder and names something in it
    that may not, or returns None. If the block raises, ``folder`` stays as it is. What killed runs left is removed
    first. Of two processes at once, the later one wins, whole.

    Raises `OutputError` where the folder above does not exist, ``folder`` is something else or holds what may not go,
    or cannot be written; `StorageError` when there is no space left. An `OSError` in the block is taken to be about
    this folder; other exceptions pass unchanged.
    """
    with _typed_errors(folder):
        target = Path(os.path.realpath(folder))
        _sweep(target)
        _refuse_foreign(target, folder, foreign)
        workspace, lock = _workspace(target)
        try:
            yield workspace
            _sync_tree(workspace)
            _put(workspace, target, lambda aside: _refuse_foreign(aside, folder, foreign))
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _put(workspace: Path, target: Path, check: Callable[[Path], None]) -> None:
    asides: list[Path] = []
    try:
        while True:
            try:
                workspace.rename(target)
                break
            except OSError as error:
                # How systems say that the target is there and, where they would replace an empty folder, not empty.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            with contextlib.suppress(FileNotFoundError):
                asides.append(target.rename(_sibling(target, "old")))
                check(asides[-1])
    except BaseException:
        for aside in asides:
            with contextlib.suppress(OSError):
                aside.rename(target)
        raise
    _sync(target.parent)
    for aside in asides:
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Put back or remove what killed runs left."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.(tmp|old)")
    left = [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]
    # A run that is under way sets a folder aside before it fills its place: looked at in the other order.
    for path in left:
        if path.suffix == ".old":
            with contextlib.suppress(OSError):
                if not os.path.lexists(target):
                    path.rename(target)
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                lock = _lock(path, wait=False)
                if lock is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(lock)


def _workspace(target: Path) -> tuple[Path, int | None]:
    """Make a folder of our own beside the target, and hold its lock."""
    while True:
        # Not `tempfile`, which gives mode 0700 whatever the umask says: the result is an ordinary folder.
        workspace = _sibling(target, "tmp")
        workspace.mkdir()
        lock = None
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is swept either
            lock = _lock(workspace, wait=True)
        if workspace.exists():
            return workspace, lock
        # Another run took it for a dead one's before we held the lock.
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """Return a handle that holds the folder's lock until it is closed or the process ends.

    None on Windows, which does not open folders: what a killed run leaves there stays. Raises OSError if another
    process holds the lock and we do not wait.
    """
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _sibling(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.{kind}")


def _refuse_foreign(place: Path, folder: str | os.PathLike[str], foreign: Callable[[Path], str | None]) -> None:
    try:
        if not stat.S_ISDIR(place.stat().st_mode):
            raise OutputError(f"output {os.fspath(folder)!r} is not a folder: choose another name")
        name = foreign(place)
    except FileNotFoundError:
        return  # another run has just set it aside
    if name is not None:
        raise OutputError(
            f"folder {os.fspath(folder)!r} holds {name!r}, which is not ours to replace: give a new or an empty folder"
        )


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    if path.is_dir():
        if sys.platform == "win32":
            return
        handle = os.open(path, os.O_RDONLY)
    else:
        handle = os.open(path, os.O_RDWR)  # Windows flushes no file that is open for reading
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _typed_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    shown = repr(os.fspath(folder))
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        parent = repr(str(Path(folder).parent))
        raise OutputError(f"output {shown}: there is no folder {parent}; create it, or choose another") from None
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageError(
                f"no space left to write {shown} ({error.strerror}): free some, or choose another folder"
            ) from None
        raise OutputError(
            f"folder {shown} cannot be written ({error.strerror or error}): choose another, or change its permissions"
        ) from None
