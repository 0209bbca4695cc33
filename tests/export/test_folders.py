from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from impasto.errors import OutputError, StorageError
from impasto.export.folders import replaced_folder

# Writes two files into a folder, each holding the text given; dies at the n-th step that touches the file system.
_WRITER = """
import os, signal, sys
from pathlib import Path
from impasto.export.folders import replaced_folder

folder, text, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
steps = 0

def die(event, arguments):
    global steps
    if armed and event in {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.listdir", "os.scandir"}:
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)

armed = False
sys.addaudithook(die)
armed = True
with replaced_folder(folder, lambda folder: None) as workspace:
    for name in "ab":
        (workspace / name).write_text(text)
armed = False
"""


def _content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def _all_ours(_folder: Path) -> str | None:
    return None


def _write(folder: Path, text: str) -> None:
    with replaced_folder(folder, _all_ours) as workspace:
        for name in "ab":
            (workspace / name).write_text(text)


def _run(*arguments: object) -> int:
    return subprocess.run([sys.executable, "-c", _WRITER, *map(str, arguments)], check=False).returncode


def test_a_new_an_empty_and_an_earlier_folder_are_filled(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for text in ("one", "two"):
        _write(folder, text)
        assert _content(folder) == {"a": text, "b": text}
    (tmp_path / "empty").mkdir()
    _write(tmp_path / "empty", "three")
    assert _content(tmp_path / "empty") == {"a": "three", "b": "three"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "out"]


def test_the_folder_has_an_ordinary_mode(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    _write(tmp_path / "out", "text")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    _write(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert _content(tmp_path / "real") == {"a": "text", "b": "text"}


def test_what_may_not_go_stays(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    _write(folder, "old")

    def foreign(place: Path) -> str | None:
        return next((path.name for path in place.iterdir() if path.name == "notes"), None)

    (folder / "notes").write_text("mine")
    with pytest.raises(OutputError, match=r"'notes'.*empty folder"), replaced_folder(folder, foreign):
        pytest.fail("the folder was given out")
    (folder / "notes").unlink()
    # The same, where it appears while the new folder is being written.

    def intrude() -> None:
        with replaced_folder(folder, foreign) as workspace:
            (workspace / "a").write_text("new")
            (folder / "notes").write_text("mine")

    with pytest.raises(OutputError, match="'notes'"):
        intrude()
    assert _content(folder) == {"a": "old", "b": "old", "notes": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_block_that_raises_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    folder = tmp_path / "out"
    _write(folder, "old")

    def fail() -> None:
        with replaced_folder(folder, _all_ours) as workspace:
            (workspace / "a").write_text("new")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert _content(folder) == {"a": "old", "b": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_space_is_a_storage_error(tmp_path: Path, number: int) -> None:
    with pytest.raises(StorageError, match="no space left"), replaced_folder(tmp_path / "out", _all_ours):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, message in (
        (tmp_path / "none" / "out", r"there is no folder .*none"),
        (tmp_path / "file" / "out", r"there is no folder .*file"),
        (tmp_path / "file", "is not a folder"),
    ):
        with pytest.raises(OutputError, match=message), replaced_folder(folder, _all_ours):
            pytest.fail("the folder was given out")


def test_a_folder_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"), replaced_folder(tmp_path / "out", _all_ours):
        pytest.fail("the folder was given out")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_at_any_step_the_old_or_the_new_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    old, new = {"a": "old", "b": "old"}, {"a": "new", "b": "new"}
    seen = set()
    for step in range(1, 100):
        _write(folder, "old")
        if _run(folder, "new", step) == 0:
            break
        seen.add("missing" if not folder.exists() else _content(folder)["a"])
        if folder.exists():
            assert _content(folder) in (old, new)
        # A later run that fails must not lose what the killed one left, and cleans up.
        with pytest.raises(RuntimeError), replaced_folder(folder, _all_ours):
            raise RuntimeError
        assert _content(folder) in (old, new)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    else:
        pytest.fail("the writer never came to its end")
    # Kills before, between and after the two renames were all tried.
    assert seen == {"old", "missing", "new"}


def test_several_writers_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    loop = _WRITER.replace("with replaced_folder", "for _ in range(40):\n  with replaced_folder").replace(
        "    for name in", "      for name in"
    )
    loop = loop.replace("        (workspace / name)", "          (workspace / name)")
    writers = [subprocess.Popen([sys.executable, "-c", loop, str(folder), text, "0"]) for text in ("one", "two")]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert _content(folder) in ({"a": "one", "b": "one"}, {"a": "two", "b": "two"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
