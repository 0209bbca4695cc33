"""Output files: written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from impasto.errors import OutputError, StorageError

Writer = Callable[[BinaryIO], object]
"""What writes a file's content to a binary file object."""

# EFBIG: the file is larger than the file system or the process's own limit (ulimit -f) allows.
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_PREFIX = ".impasto-"


def write_atomically(
    path: str | os.PathLike[str], data: bytes | Writer, overwrite: bool = False, prefix: str = _PREFIX
) -> None:
    """Write a file so that other processes, and a crash at any point, see the old content or all of the new.

    ``data`` is the content, or a callable that writes it to the binary file it is given. The content goes to a
    temporary file of a unique name (``prefix``, digits, ``.tmp``) in the same folder, is flushed to the disk, and is
    moved into place. The temporary file is removed on any failure; only a process killed outright leaves it behind,
    and it is in nobody's way.

    With ``overwrite`` false an existing file is never replaced, even if it appears while the data are written.
    An overwritten file keeps its permission bits. A symbolic link is followed, as `open` does.

    Raises `OutputError` when the folder does not exist, the path is a folder or something else that is not a regular
    file, the file exists and ``overwrite`` is false, or it cannot be written; `StorageError` when there is no space
    left. An `OSError` that ``data`` raises is taken to be about this file; other exceptions pass unchanged.
    """
    with _typed_errors(path):
        target = _target(path, overwrite)
        temporary, file = _open_temporary(target.parent, prefix)
        try:
            # Leaving the inner block closes the file, which flushes and so may fail for want of space as well.
            with file:
                if callable(data):
                    data(file)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                with contextlib.suppress(FileNotFoundError):
                    temporary.chmod(stat.S_IMODE(target.stat().st_mode))
                temporary.replace(target)
            else:
                _move_to_free_name(temporary, target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def check_writable(path: str | os.PathLike[str], overwrite: bool = False, prefix: str = _PREFIX) -> None:
    """Raise now what `write_atomically` would raise on the same arguments after a long job.

    The folder's permissions are tried out by creating and removing a temporary file in it, since what a mode says is
    not what a read-only mount, an access list or a quota does. How much space the data will need is not checked.
    """
    with _typed_errors(path):
        temporary, file = _open_temporary(_target(path, overwrite).parent, prefix)
        file.close()
        temporary.unlink()


def _target(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """Return the file that the path leads to, having checked all that can be seen without writing."""
    shown = repr(os.fspath(path))
    try:
        target = Path(os.path.realpath(path))
        mode = target.stat().st_mode
    except ValueError as error:  # a NUL character, or one that the file system's encoding lacks
        raise OutputError(f"output {shown} is no possible name ({error}): choose another") from None
    except FileNotFoundError:
        target.parent.stat()
        return target
    if stat.S_ISDIR(mode):
        raise OutputError(f"output {shown} is a folder: give the name of a file in it")
    if not stat.S_ISREG(mode):
        # Moving a file over /dev/null would replace the device.
        raise OutputError(f"output {shown} is not a regular file: give the name of one")
    if not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    return target


def _open_temporary(folder: Path, prefix: str) -> tuple[Path, BinaryIO]:
    # Not `tempfile`, which gives mode 0600 whatever the umask says: the result is an ordinary file.
    temporary = folder / f"{prefix}{secrets.token_hex(8)}.tmp"
    return temporary, temporary.open("xb")


def _move_to_free_name(temporary: Path, target: Path) -> None:
    """Give the file its name unless that is taken; the temporary name may remain beside it."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:
        # No hard links on this file system (FAT, some network mounts): take the name with an empty file first. Being
        # killed between the two steps leaves that empty file, never another process's data overwritten.
        target.open("xb").close()
        try:
            temporary.replace(target)
        except BaseException:
            target.unlink()
            raise


@contextlib.contextmanager
def _typed_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    shown = repr(os.fspath(path))
    try:
        yield
    except FileExistsError:
        raise OutputError(
            f"output {shown} exists: choose another name, or allow it to be replaced with overwrite=True (--force)"
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        folder = repr(str(Path(path).parent))
        raise OutputError(f"output {shown}: there is no folder {folder}; create it, or choose another") from None
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageError(
                f"no space left to write {shown} ({error.strerror}): free some, or choose another folder"
            ) from None
        raise OutputError(
            f"output {shown} cannot be written ({error.strerror or error}): choose another name or folder, or change "
            "its permissions"
        ) from None
