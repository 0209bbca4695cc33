"""Downloads weights into the cache: resumed where they were cut, verified, converted, and moved into place whole.

Beside ``<cache>/weights/vgg19.safetensors`` there are, while it is made, ``<file>.part`` (the bytes so far),
``<file>.etag`` (which version of the file they belong to) and ``vgg19.lock``.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from impasto.errors import DownloadError, OutputError, StorageError, WeightsError
from impasto.models.convert import convert_weights
from impasto.models.locate import cache_dir as default_cache_dir
from impasto.models.sources import Source
from impasto.models.weights import load_weights, save_weights

Progress = Callable[[int, int | None], None]

_CHUNK = 1 << 18


def fetch(
    source: Source, cache_dir: Path | None = None, progress: Progress | None = None, timeout: float = 30.0
) -> Path:
    """Return the path of these weights as safetensors, downloading and converting them unless they are there already.

    ``progress`` is called with the bytes so far and the bytes in all (None where the server does not tell);
    ``timeout`` is how many seconds the server may be silent. A second process that asks for the same weights waits
    for the first. The proxies of the environment are used.

    Raises `DownloadError` when the server cannot be reached or the connection is cut (the next call resumes),
    `WeightsError` when the file is not the one the source describes (it is removed), `StorageError` when no space is
    left, and `OutputError` when the cache cannot be written. In every case, and if the process is killed, the
    weights in the cache are whole or absent.
    """
    from filelock import FileLock

    folder = (cache_dir or default_cache_dir()) / "weights"
    target = folder / f"{source.name}.safetensors"
    part = folder / f"{PurePosixPath(source.url).name}.part"
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{source.name}.lock").acquire()
    with lock:
        if _is_whole(target):
            return target
        _Download(source, part, progress, timeout).run()
        _verify(source, part)
        save_weights(convert_weights(part, backbone=source.backbone), target)
        _discard(part)
    return target


class _Download:
    """One file's way from the web into ``part``, which may hold its beginning already."""

    def __init__(self, source: Source, part: Path, progress: Progress | None, timeout: float) -> None:
        self.source = source
        self.part = part
        self.progress = progress
        self.timeout = timeout

    def run(self) -> None:
        """Append what is missing; a part that the server does not know how to continue is begun anew."""
        from urllib.error import HTTPError

        try:
            self._request()
        except HTTPError as error:
            with error:
                if error.code != 416 or not self._held():
                    raise DownloadError(
                        f"{self.source.url} cannot be downloaded: the server answered {error.code} {error.reason}"
                    ) from None
                # 416, "range not satisfiable": nothing follows what we hold, so it is complete or another file's.
                complete = error.headers.get("Content-Range") == f"bytes */{self._held()}"
            if not complete:
                _discard(self.part)
                self.run()

    def _request(self) -> None:
        import urllib.request

        held = self._held()
        request = urllib.request.Request(self.source.url, headers={"User-Agent": "impasto"})
        if held:
            request.add_header("Range", f"bytes={held}-")
            etag = _etag_file(self.part)
            if etag.is_file():
                # The server sends the whole file instead of the rest if it has changed since.
                request.add_header("If-Range", etag.read_text(encoding="utf-8"))
        with self._connection(), urllib.request.urlopen(request, timeout=self.timeout) as response:
            self._receive(response, start=held if self._continues(response, held) else 0)

    def _continues(self, response: Any, held: int) -> bool:
        """Tell whether the answer is the rest of the file after ``held`` bytes; otherwise it is all of it."""
        if response.status != 206:
            return False
        offered = response.headers.get("Content-Range", "")
        if not offered.startswith(f"bytes {held}-"):
            _discard(self.part)
            raise DownloadError(
                f"{self.source.url} cannot be resumed: bytes {held}- were asked for and {offered!r} came "
                "(run it again, which starts over)"
            )
        return True

    def _receive(self, response: Any, start: int) -> None:
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdigit() else None
        self._limit(total or start)
        with _writing(self.part):
            if not start:
                _remember_version(self.part, response.headers.get("ETag"))
            file = self.part.open("ab" if start else "wb")
        with file:
            done = start
            while chunk := response.read1(_CHUNK):
                done += len(chunk)
                self._limit(done)
                with _writing(self.part):
                    file.write(chunk)
                    file.flush()
                if self.progress:
                    self.progress(done, total)
        # A connection that is closed early looks like the end of the file.
        if total is not None and done < total:
            raise DownloadError(self._cut(f"{total - done} bytes are missing"))

    def _limit(self, size: int) -> None:
        if size > self.source.max_bytes:
            _discard(self.part)
            raise WeightsError(
                f"{self.source.url} is larger than the {self.source.max_bytes} bytes that {self.source.name!r} has: "
                "it is another file now, and nothing of it was kept (update impasto)"
            )

    def _held(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _cut(self, reason: object) -> str:
        kept = f"{self._held()} bytes are kept, and running it again resumes there" if self._held() else "run it again"
        return f"{self.source.url} could not be downloaded: {reason} ({kept})"

    @contextmanager
    def _connection(self) -> Iterator[None]:
        from http.client import HTTPException
        from urllib.error import HTTPError, URLError

        try:
            yield
        except HTTPError:
            raise
        except URLError as error:
            raise DownloadError(self._cut(error.reason)) from None
        except (OSError, HTTPException) as error:
            raise DownloadError(self._cut(error or type(error).__name__)) from None


def _remember_version(part: Path, etag: str | None) -> None:
    # If-Range takes strong tags only; W/"…" marks a weak one.
    if etag and not etag.startswith("W/"):
        _etag_file(part).write_text(etag, encoding="utf-8")
    else:
        _etag_file(part).unlink(missing_ok=True)


def _etag_file(part: Path) -> Path:
    return part.with_suffix(".etag")


def _verify(source: Source, part: Path) -> None:
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(source.sha256):
        _discard(part)
        raise WeightsError(
            f"{source.url} arrived with SHA-256 {digest}, but {source.name!r} has {source.sha256}: the download was "
            "removed, run it again"
        )


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_file(part).unlink(missing_ok=True)


def _is_whole(target: Path) -> bool:
    if not target.is_file():
        return False
    try:
        load_weights(target)
    except WeightsError:
        return False
    return True


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"no space left for {str(path)!r}: free some and run it again, or set IMPASTO_CACHE to another folder"
            ) from None
        raise OutputError(
            f"cannot write {str(path)!r}: {error.strerror or error} (IMPASTO_CACHE names another folder)"
        ) from None
