"""A file is written whole or not at all, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from impasto.errors import OutputError, StorageError
from impasto.runtime.files import check_writable, write_atomically

posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX signals, links or permissions")

BOTH = pytest.mark.parametrize(
    "attempt",
    [
        pytest.param(lambda path, overwrite=False: write_atomically(path, b"new", overwrite), id="write"),
        pytest.param(lambda path, overwrite=False: check_writable(path, overwrite), id="check"),
    ],
)
Attempt = Callable[..., None]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("size", [0, 1, 300_001])
def test_content_is_written_and_nothing_else_is_left(tmp_path: Path, size: int, overwrite: bool) -> None:
    content = os.urandom(size)
    write_atomically(tmp_path / "a.bin", content, overwrite)
    write_atomically(str(tmp_path / "b.bin"), lambda file: file.write(content), overwrite)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes() == content
    assert names(tmp_path) == ["a.bin", "b.bin"]


def test_overwrite_replaces_and_its_absence_does_not(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old and longer")
    with pytest.raises(OutputError, match="overwrite=True"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old and longer"
    write_atomically(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.bin"]


def no_hard_links(source: object, target: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", no_hard_links)
    path = tmp_path / "a.bin"

    def write(file: BinaryIO) -> None:
        file.write(b"mine")
        path.write_bytes(b"theirs")

    with pytest.raises(OutputError, match="exists"):
        write_atomically(path, write)
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_of_many_writers_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", no_hard_links)
    path = tmp_path / "a.bin"
    barrier = threading.Barrier(8)
    winners: list[int] = []

    def run(number: int) -> None:
        def write(file: BinaryIO) -> None:
            file.write(bytes([number]) * 1000)
            barrier.wait()  # past the early check, before the move: the race itself

        try:
            write_atomically(path, write)
        except OutputError:
            return
        winners.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert path.read_bytes() == bytes(winners) * 1000
    assert names(tmp_path) == ["a.bin"]


def test_without_hard_links_a_failed_move_gives_the_name_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Path, target: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", no_hard_links)
    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        write_atomically(tmp_path / "a.bin", b"new")
    assert names(tmp_path) == []


@BOTH
def test_missing_folder(tmp_path: Path, attempt: Attempt) -> None:
    with pytest.raises(OutputError, match=r"no folder .*deep"):
        attempt(tmp_path / "deep" / "a.bin")


@BOTH
def test_a_file_in_place_of_the_folder(tmp_path: Path, attempt: Attempt) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(OutputError, match="no folder"):
        attempt(tmp_path / "a" / "b.bin")


@BOTH
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_place_of_the_file(tmp_path: Path, attempt: Attempt, overwrite: bool) -> None:
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        attempt(tmp_path / "a.bin", overwrite)
    assert names(tmp_path) == ["a.bin"]


@BOTH
def test_existing_file(tmp_path: Path, attempt: Attempt) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    with pytest.raises(OutputError, match="exists"):
        attempt(tmp_path / "a.bin")
    attempt(tmp_path / "a.bin", True)
    assert names(tmp_path) == ["a.bin"]


@BOTH
@pytest.mark.parametrize("name", ["", ".", "a\0b", "\ud800", "x" * 300])
def test_impossible_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: Attempt, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError):
        attempt(name, True)
    assert names(tmp_path) == []


@posix_only
@BOTH
def test_a_device_is_not_replaced(tmp_path: Path, attempt: Attempt) -> None:
    pipe = tmp_path / "pipe"  # stands for /dev/null, which a failing test run as root would destroy
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="regular"):
        attempt(pipe, True)
    assert pipe.is_fifo()


@posix_only
@BOTH
def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: Attempt) -> None:
    tmp_path.chmod(0o555)
    try:
        if os.access(tmp_path, os.W_OK):  # root: permissions do not bind, so say what the system would have said
            real = Path.open

            def denied(self: Path, mode: str = "r") -> object:
                if "x" in mode:
                    raise PermissionError(errno.EACCES, "Permission denied")
                return real(self, mode)

            monkeypatch.setattr(Path, "open", denied)
        with pytest.raises(OutputError, match="Permission denied"):
            attempt(tmp_path / "a.bin")
    finally:
        tmp_path.chmod(0o755)
    assert names(tmp_path) == []


def test_check_leaves_everything_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.bin")
    assert names(tmp_path) == []
    (tmp_path / "old.bin").write_bytes(b"old")
    check_writable(tmp_path / "old.bin", overwrite=True)
    assert (tmp_path / "old.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["old.bin"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["data", "fsync"])
def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, step: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="space"):
        write_atomically(path, full if step == "data" else b"new", overwrite=True)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )


@posix_only
def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    # A limit on the size of files (ulimit -f) is the one that needs no rights to set; here data wait in the file
    # object's buffer when the write fails, and closing it fails once more.
    code = """
        import resource, sys
        from impasto.errors import StorageError
        from impasto.runtime.files import write_atomically
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        def write(file):
            for _ in range(1000):
                file.write(bytes(1001))
        for data in (bytes(100_001), write):
            try:
                write_atomically(sys.argv[1], data, overwrite=True)
            except StorageError as error:
                print("StorageError")
    """
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    process = run_python(code, str(path))
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output.split()) == (0, ["StorageError", "StorageError"])
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [KeyError("theirs"), KeyboardInterrupt()])
def test_other_exceptions_pass_and_leave_nothing(tmp_path: Path, error: BaseException) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)) as caught:
        write_atomically(tmp_path / "a.bin", write)
    assert caught.value is error
    assert names(tmp_path) == []


@posix_only
def test_killed_in_the_middle(tmp_path: Path) -> None:
    code = """
        import sys, time
        from impasto.runtime.files import write_atomically
        def write(file):
            file.write(bytes(1_000_000))
            file.flush()
            print("half", flush=True)
            time.sleep(600)
        write_atomically(sys.argv[1], write, overwrite=True)
    """
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    process = run_python(code, str(path))
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    stale = [name for name in names(tmp_path) if name != "a.bin"]
    assert len(stale) == 1, "the process was killed before its file was moved"

    check_writable(path, overwrite=True)
    write_atomically(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == sorted(["a.bin", *stale])


@posix_only
def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_bytes(b"")
    write_atomically(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    (tmp_path / "a.bin").chmod(0o640)
    write_atomically(tmp_path / "a.bin", b"newer", overwrite=True)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640


@posix_only
def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "a.bin"
    link.symlink_to(tmp_path / "elsewhere" / "real.bin")
    write_atomically(link, b"one")
    with pytest.raises(OutputError, match="exists"):
        write_atomically(link, b"two")
    write_atomically(link, b"three", overwrite=True)
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "real.bin").read_bytes() == b"three"
    assert names(tmp_path / "elsewhere") == ["real.bin"]


@posix_only
@BOTH
def test_a_loop_of_links(tmp_path: Path, attempt: Attempt) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OutputError):
        attempt(tmp_path / "a", True)
