import errno
import gc
import json
import logging
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest

from impasto.errors import EngineError, StorageError
from impasto.optimize.cache import RECORD, EngineCache
from impasto.optimize.keys import EngineKey

posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX modes, owners and signals")
FILES = {"model.onnx": b"graph" * 1000, "weights/a.bin": bytes(range(256)) * 64, "empty": b""}


def make_key(number=0, **changes):
    fields = {
        "kind": "onnxruntime",
        "graph": f"{number:064x}",
        "weights": "cd" * 32,
        "shape": (1, 3, 64, 48),
        "precision": "fp32",
        "options": {"threads": "2"},
        "versions": {"onnxruntime": "1.31.1"},
        "machine": {"model": "test"},
    }
    return EngineKey(**fields | changes)


class Builder:
    """Writes an engine's files, and counts how often it was asked to."""

    def __init__(self, files=FILES):
        self.files = files
        self.folders = []

    def __call__(self, folder):
        self.folders.append(folder)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    @property
    def count(self):
        return len(self.folders)


def assert_whole(folder, files=FILES):
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop(RECORD, None)
    assert found == files


def leftovers(root):
    return [path.name for path in root.iterdir() if path.suffix != ".lock" and len(path.name) != 64]


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache" / "engines"


@pytest.fixture
def cache(root):
    with EngineCache(root) as cache:
        yield cache


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where engines go that the cache cannot take."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# Hits and misses


def test_an_engine_is_built_once(cache, root):
    build = Builder()
    assert cache.get(make_key()) is None
    assert not root.exists()
    folder = cache.get_or_build(make_key(), build)
    assert_whole(folder)
    assert folder == root / make_key().digest
    assert cache.get_or_build(make_key(), build) == folder == cache.get(make_key())
    assert EngineCache(root).get_or_build(make_key(), build) == folder
    assert build.count == 1
    assert leftovers(root) == []


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "openvino"},
        {"graph": "ab" * 32},
        {"weights": "ab" * 32},
        {"shape": (1, 3, 48, 64)},
        {"precision": "bf16"},
        {"options": {"threads": "4"}},
        {"versions": {"onnxruntime": "1.31.2"}},
        {"machine": {"model": "another"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_key_that_differs_in_one_field_misses(cache, change):
    build = Builder()
    cache.get_or_build(make_key(), build)
    assert cache.get(make_key(**change)) is None
    assert cache.get_or_build(make_key(**change), build) != cache.get_or_build(make_key(), build)
    assert build.count == 2


def test_the_record_tells_the_key_and_the_files(cache):
    folder = cache.get_or_build(make_key(), Builder())
    record = json.loads((folder / RECORD).read_bytes())
    assert EngineKey.from_json(record["key"]) == make_key()
    assert {name: file["bytes"] for name, file in record["files"].items()} == {n: len(c) for n, c in FILES.items()}


@posix_only
def test_nobody_else_can_enter(cache, root):
    folder = cache.get_or_build(make_key(), Builder())
    assert stat.S_IMODE(root.stat().st_mode) == stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_default_folder_is_the_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path))
    assert EngineCache().root == tmp_path / "engines"


# Builds that fail


@pytest.mark.parametrize("error", [ValueError("no such operator"), KeyboardInterrupt()])
def test_a_failed_build_leaves_nothing_and_is_tried_again(cache, root, error):
    def fail(folder):
        (folder / "half").write_bytes(b"x")
        raise error

    with pytest.raises(type(error)):
        cache.get_or_build(make_key(), fail)
    assert leftovers(root) == []
    assert cache.get(make_key()) is None
    assert_whole(cache.get_or_build(make_key(), Builder()))


def test_a_build_that_writes_nothing_is_an_error(cache, root):
    with pytest.raises(EngineError, match="wrote nothing"):
        cache.get_or_build(make_key(), Builder({}))
    assert leftovers(root) == []


@posix_only
def test_a_build_that_writes_a_link_is_an_error(cache, root):
    with pytest.raises(EngineError, match="plain files"):
        cache.get_or_build(make_key(), lambda folder: (folder / "model.onnx").symlink_to("/etc/hostname"))
    assert leftovers(root) == []


# Damage


def flip(path, generator):
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def test_any_flipped_bit_is_found(cache, caplog):
    generator = random.Random(7)
    build = Builder()
    for round_number in range(40):
        folder = cache.get_or_build(make_key(), build)
        flip(folder / generator.choice([RECORD, "model.onnx", "weights/a.bin"]), generator)
        caplog.clear()
        assert cache.get(make_key()) is None
        assert "damaged" in caplog.text
        assert not folder.exists()
        assert build.count == round_number + 1


DAMAGES = {
    "truncated": lambda folder: os.truncate(folder / "model.onnx", 100),
    "emptied": lambda folder: os.truncate(folder / "model.onnx", 0),
    "longer": lambda folder: (folder / "empty").write_bytes(b"x"),
    "file missing": lambda folder: (folder / "empty").unlink(),
    "file added": lambda folder: (folder / "more").write_bytes(b""),
    "no files": lambda folder: [shutil.rmtree(folder), folder.mkdir(0o700)],
    "no record": lambda folder: (folder / RECORD).unlink(),
    "record empty": lambda folder: (folder / RECORD).write_bytes(b""),
    "record is no JSON": lambda folder: (folder / RECORD).write_bytes(b"\xff\x00["),
    "record nested deeply": lambda folder: (folder / RECORD).write_bytes(b"[" * 100_000),
    "record is a folder": lambda folder: [(folder / RECORD).unlink(), (folder / RECORD).mkdir()],
    "file in place of it": lambda folder: [shutil.rmtree(folder), folder.write_bytes(b"x")],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_engine_is_rebuilt(cache, root, caplog, damage):
    build = Builder()
    folder = cache.get_or_build(make_key(), build)
    damage(folder)
    cache.entries()  # lists the damaged without failing
    assert_whole(cache.get_or_build(make_key(), build))
    assert build.count == 2
    assert [record.name for record in caplog.records if record.levelno == logging.WARNING] == ["impasto"]
    assert leftovers(root) == []


def test_an_engine_of_another_key_is_not_taken(cache):
    other = cache.get_or_build(make_key(1), Builder({"model.onnx": b"other"}))
    folder = cache.get_or_build(make_key(), Builder())
    shutil.rmtree(folder)
    other.rename(folder)
    assert_whole(cache.get_or_build(make_key(), Builder()))


def test_a_record_copied_from_another_engine_is_not_taken(cache):
    other = cache.get_or_build(make_key(1), Builder({"model.onnx": b"other"}))
    folder = cache.get_or_build(make_key(), Builder())
    shutil.copy(other / RECORD, folder / RECORD)
    shutil.copy(other / "model.onnx", folder / "model.onnx")
    assert cache.get(make_key()) is None


# Links, owners, modes


@posix_only
@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o722])
def test_an_engine_that_others_can_enter_is_rebuilt(cache, caplog, mode):
    build = Builder()
    folder = cache.get_or_build(make_key(), build)
    folder.chmod(mode)
    folder = cache.get_or_build(make_key(), build)
    assert build.count == 2
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert f"{mode:04o}" in caplog.text


@posix_only
def test_an_engine_behind_a_link_is_rebuilt(cache, tmp_path):
    build = Builder()
    folder = cache.get_or_build(make_key(), build)
    target = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(target)
    assert cache.size() == 0
    assert not cache.get_or_build(make_key(), build).is_symlink()
    assert build.count == 2
    assert_whole(target)


@posix_only
@pytest.mark.parametrize("name", ["model.onnx", RECORD, "weights"])
def test_a_linked_file_is_rebuilt(cache, tmp_path, name):
    build = Builder()
    folder = cache.get_or_build(make_key(), build)
    target = (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(target)
    assert_whole(cache.get_or_build(make_key(), build))
    assert build.count == 2
    assert target.exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", [".", "model.onnx", RECORD])
def test_an_engine_of_another_user_is_rebuilt(cache, caplog, name):
    build = Builder()
    folder = cache.get_or_build(make_key(), build)
    os.chown(folder / name, 12345, -1)
    assert (cache.get_or_build(make_key(), build) / name).stat().st_uid == os.geteuid()
    assert build.count == 2
    assert "12345" in caplog.text


def linked(root):
    target = root.parent / "target"
    target.mkdir(0o700)
    root.symlink_to(target)


UNUSABLE_ROOTS = {
    "a file": lambda root: root.write_bytes(b""),
    "a link": linked,
    "a dangling link": lambda root: root.symlink_to("nowhere"),
    "open to others": lambda root: [root.mkdir(), root.chmod(0o755)],
}


@posix_only
@pytest.mark.parametrize("make", UNUSABLE_ROOTS.values(), ids=UNUSABLE_ROOTS.keys())
def test_without_a_usable_folder_a_job_still_has_its_engine(root, temporary, caplog, make):
    root.parent.mkdir()
    make(root)
    before = sorted(root.parent.rglob("*"))
    build = Builder()
    with EngineCache(root) as cache:
        assert cache.get(make_key()) is None
        folder = cache.get_or_build(make_key(), build)
        assert_whole(folder)
        assert folder.parent == temporary
        assert cache.get_or_build(make_key(), build) == folder
        assert build.count == 1
        assert cache.size() == 0
        assert cache.prune() == cache.clear() == ()
    assert not folder.exists()
    assert sorted(root.parent.rglob("*")) == before
    assert "building into a temporary folder" in caplog.text


@posix_only
@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_no_engine_is_taken_from_an_open_folder(cache, root, temporary, caplog, mode):
    build = Builder()
    cache.get_or_build(make_key(), build)
    root.chmod(mode)
    assert cache.get(make_key()) is None
    assert cache.get_or_build(make_key(), build).parent == temporary
    assert build.count == 2
    assert "chmod 700" in caplog.text


@posix_only
def test_no_engine_is_taken_from_the_folder_of_another_user(cache, temporary, monkeypatch):
    build = Builder()
    cache.get_or_build(make_key(), build)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert cache.get(make_key()) is None
    # Files made now belong to `user`, who is not who we are told we are: a foreign build is refused like a foreign hit.
    with pytest.raises(EngineError, match=f"belongs to user {user}"):
        cache.get_or_build(make_key(), build)
    assert list(temporary.iterdir()) == []


# Read-only and full disks


@pytest.fixture
def read_only(root, monkeypatch):
    """Refuses every change below the cache's folder, as a read-only mount does, for the root user too."""

    def refuse(name):
        real = getattr(os, name)

        def checked(path, *arguments, **options):
            writes = name != "open" or arguments[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and Path(path).is_relative_to(root) and Path(path) != root:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, *arguments, **options)

        monkeypatch.setattr(os, name, checked)

    def apply():
        for name in ("open", "mkdir", "rename", "unlink", "rmdir", "utime"):
            refuse(name)

    return apply


def test_a_read_only_cache_serves_what_it_has(cache, root, temporary, read_only, caplog):
    build = Builder()
    folder = cache.get_or_build(make_key(), build)
    read_only()
    assert cache.get_or_build(make_key(), build) == folder
    assert caplog.text == ""
    other = cache.get_or_build(make_key(1), build)
    assert_whole(other)
    assert other.parent == temporary
    assert build.count == 2
    assert cache.clear() == ()
    assert cache.get(make_key()) == folder
    assert "Read-only" in caplog.text


def test_a_damaged_engine_on_a_read_only_disk_is_not_used(cache, temporary, read_only, caplog):
    build = Builder()
    folder = cache.get_or_build(make_key(), build)
    flip(folder / "model.onnx", random.Random(0))
    read_only()
    assert cache.get(make_key()) is None
    assert "cannot be removed" in caplog.text
    assert_whole(cache.get_or_build(make_key(), build))
    assert build.folders[-1].parent == temporary


@posix_only
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_cache_is_left_alone(cache, root, temporary, caplog):
    whole = Builder()

    def build(folder):
        whole(folder)
        if folder.is_relative_to(root):
            Path("/dev/full").write_bytes(b"x")  # the system's own ENOSPC

    assert_whole(cache.get_or_build(make_key(), build))
    assert whole.folders[-1].parent == temporary
    assert leftovers(root) == []
    assert "no space left" in caplog.text.lower()


def test_a_full_disk_that_a_writer_reports_in_its_own_words(cache, root, temporary, monkeypatch):
    # ONNX Runtime: InvalidProtobuf "Protobuf serialization failed", or Fail "ToGraphProtoWithExternalIni…".
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 0))
    whole = Builder()

    def build(folder):
        whole(folder)
        if folder.is_relative_to(root):
            raise RuntimeError("Protobuf serialization failed")

    assert_whole(cache.get_or_build(make_key(), build))
    assert whole.count == 2
    assert leftovers(root) == []


def test_a_full_disk_everywhere_is_a_storage_error(cache, root, temporary):
    def build(folder):
        (folder / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match="IMPASTO_CACHE"):
        cache.get_or_build(make_key(), build)
    assert list(temporary.iterdir()) == []
    assert leftovers(root) == []


def test_no_temporary_folder_is_a_storage_error(tmp_path, monkeypatch):
    (tmp_path / "engines").write_bytes(b"")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with EngineCache(tmp_path / "engines") as cache, pytest.raises(StorageError, match="IMPASTO_CACHE"):
        cache.get_or_build(make_key(), Builder())


def test_a_disk_that_fails_while_moving_into_place(cache, root, temporary, monkeypatch):
    def fail(handle):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    assert_whole(cache.get_or_build(make_key(), Builder()))
    assert cache.size() == 0
    assert leftovers(root) == []


def test_temporary_engines_go_with_the_cache_object(root, temporary):
    root.parent.mkdir()
    root.write_bytes(b"")
    cache = EngineCache(root)
    folder = cache.get_or_build(make_key(), Builder())
    assert folder.exists()
    del cache
    gc.collect()
    assert list(temporary.iterdir()) == []


# Size, order of use


def aged(cache, count):
    """Fill the cache with engines of one size, number 0 the longest unused."""
    for number in range(count):
        folder = cache.get_or_build(make_key(number), Builder({"model.onnx": bytes(10_000)}))
        os.utime(folder / RECORD, (1e9 + number, 1e9 + number))
    return [make_key(number) for number in range(count)]


def test_entries_and_size(cache):
    keys = aged(cache, 3)
    entries = cache.entries()
    assert [entry.key for entry in entries] == keys
    assert [entry.used for entry in entries] == [1e9, 1e9 + 1, 1e9 + 2]
    # The engine's file, and a record of some hundred bytes.
    assert all(10_000 < entry.size < 12_000 for entry in entries)
    assert cache.size() == sum(p.stat().st_size for entry in entries for p in entry.path.iterdir())


def test_pruning_removes_the_least_recently_used(cache, root):
    keys = aged(cache, 5)
    cache.get(keys[0])
    cache.max_bytes = cache.size() * 3 // 5
    assert [entry.key for entry in cache.prune()] == [keys[1], keys[2]]
    assert [entry.key for entry in cache.entries()] == [keys[3], keys[4], keys[0]]
    assert cache.prune() == ()
    assert leftovers(root) == []


def test_pruning_keeps_what_it_is_told_to(cache):
    keys = aged(cache, 4)
    cache.max_bytes = 0
    assert [entry.key for entry in cache.prune(keep=[keys[0], keys[2]])] == [keys[1], keys[3]]
    assert cache.get(keys[0])
    assert cache.get(keys[2])


def test_building_prunes_but_never_what_was_built(root):
    with EngineCache(root, max_bytes=25_000) as cache:
        aged(cache, 4)
        assert [entry.key for entry in cache.entries()] == [make_key(2), make_key(3)]
        folder = cache.get_or_build(make_key(9), Builder({"model.onnx": bytes(100_000)}))
        assert_whole(folder, {"model.onnx": bytes(100_000)})
        assert [entry.key for entry in cache.entries()] == [make_key(9)]


@posix_only
def test_a_reader_whose_engine_is_pruned_reads_on(cache, root):
    build = Builder()
    folder = cache.get_or_build(make_key(), build)
    with (folder / "model.onnx").open("rb") as file:
        assert [entry.key for entry in EngineCache(root, max_bytes=0).prune()] == [make_key()]
        assert file.read() == FILES["model.onnx"]
    assert not folder.exists()
    assert_whole(cache.get_or_build(make_key(), build))
    assert build.count == 2


def test_clearing_removes_engines_and_nothing_else(cache, root):
    keys = aged(cache, 3)
    (root / "note.txt").write_text("the user's own")
    assert {entry.key for entry in cache.clear()} == set(keys)
    assert cache.entries() == ()
    assert cache.size() == 0
    assert (root / "note.txt").read_text() == "the user's own"
    assert cache.clear() == ()


def test_a_cache_that_was_never_used_is_empty(cache, root):
    assert cache.entries() == cache.prune() == cache.clear() == ()
    assert cache.size() == 0
    assert not root.exists()


# Threads, processes, and being killed

WORKER = """
import os, random, signal, sys, time
from pathlib import Path
from impasto.optimize.cache import EngineCache
from impasto.optimize.keys import EngineKey

task, root, *arguments = sys.argv[1:]
cache = EngineCache(Path(root))

def make_key(number):
    return EngineKey("onnxruntime", f"{number:064x}", "", (1, 3, 8, 8), "fp32", machine={})

def content(number):
    return random.Random(number).randbytes(50_000)

def write(number):
    def build(folder):
        for name in ("a", "b", "c"):
            with open(folder / name, "wb") as file:
                for start in range(0, 50_000, 1000):
                    file.write(content(number)[start : start + 1000])
                    file.flush()
    return build

def ready():
    print("ready", flush=True)

def suicide(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if task == "loop":
    ready()
    for round_number in range(10**9):
        for number in range(3):
            cache.get_or_build(make_key(number), write(number))
        cache.clear()
elif task == "die in build":
    def build(folder):
        (folder / "half").write_bytes(b"x")
        suicide()
    cache.get_or_build(make_key(0), build)
elif task in ("die before rename", "die after rename"):
    rename = os.rename
    def deadly(source, target):
        if task == "die after rename":
            rename(source, target)
        suicide()
    os.rename = deadly
    cache.get_or_build(make_key(0), write(0))
elif task == "die in delete":
    import shutil
    cache.get_or_build(make_key(0), write(0))
    shutil.rmtree = suicide
    cache.clear()
elif task == "meet":
    mine, everyone, log = arguments[0], arguments[1].split(","), Path(arguments[2])
    def build(folder):
        with log.open("a") as file:
            file.write(mine + "\\n")
        deadline = time.monotonic() + 30
        while not all((log.parent / name).exists() for name in everyone) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        write(0)(folder)
    (log.parent / mine).touch()
    folder = cache.get_or_build(make_key(0), build)
    assert (folder / "c").read_bytes() == content(0)
    print(folder)
elif task == "outside":
    print(cache.get_or_build(make_key(0), write(0)))
"""


def worker_key(number):
    return EngineKey("onnxruntime", f"{number:064x}", "", (1, 3, 8, 8), "fp32", machine={})


def worker_files(number):
    return dict.fromkeys("abc", random.Random(number).randbytes(50_000))


def start(task, root, *arguments):
    command = [sys.executable, "-c", WORKER, task, str(root), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_threads_build_once(root):
    cache = EngineCache(root)
    whole = Builder()

    def build(folder):
        time.sleep(0.1)
        whole(folder)

    folders = []
    threads = [threading.Thread(target=lambda: folders.append(cache.get_or_build(make_key(), build))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [root / make_key().digest] * 4
    assert whole.count == 1


def test_processes_build_once(root, tmp_path):
    names = ["first", "second", "third"]
    workers = [start("meet", root, name, ",".join(names), str(tmp_path / "log")) for name in names]
    results = [worker.communicate(timeout=60) for worker in workers]
    assert [errors for _, errors in results] == ["", "", ""]
    assert {output.strip() for output, _ in results} == {str(root / worker_key(0).digest)}
    assert len((tmp_path / "log").read_text().split()) == 1
    assert leftovers(root) == []


@posix_only
@pytest.mark.parametrize("task", ["die in build", "die before rename", "die after rename", "die in delete"])
@pytest.mark.parametrize("number", [0, 1], ids=["same key", "another key"])
def test_a_process_killed_at_a_chosen_point(cache, root, task, number):
    worker = start(task, root)
    assert worker.communicate(timeout=60) == ("", "")
    assert worker.returncode == -signal.SIGKILL
    # Only a finished build leaves nothing to sweep.
    assert len(leftovers(root)) == (task != "die after rename")
    build = Builder(worker_files(number))
    assert_whole(cache.get_or_build(worker_key(number), build), worker_files(number))
    assert build.count == (0 if task == "die after rename" and number == 0 else 1)
    assert leftovers(root) == []


@posix_only
def test_a_process_killed_at_any_point(cache, root):
    generator = random.Random(20)
    left = 0
    for _ in range(20):
        worker = start("loop", root)
        assert worker.stdout.readline() == "ready\n"
        time.sleep(generator.uniform(0, 0.08))
        worker.kill()
        worker.communicate(timeout=60)
        assert worker.returncode == -signal.SIGKILL
        left += len(leftovers(root))
        number = generator.randrange(3)
        assert_whole(cache.get_or_build(worker_key(number), Builder(worker_files(number))), worker_files(number))
        assert leftovers(root) == []
        for entry in cache.entries():
            assert cache.get(entry.key) == entry.path
    # Most of a round is building: if no kill had met one, this test would show nothing.
    assert left > 0


def test_a_build_under_way_is_not_swept(cache, root):
    def build(folder):
        with EngineCache(root) as other:
            other.get_or_build(make_key(1), Builder())
            other.clear()
        assert folder.is_dir()
        Builder()(folder)

    assert_whole(cache.get_or_build(make_key(), build))


def test_temporary_engines_go_with_the_process(tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "engines").write_bytes(b"")
    run = subprocess.run(
        [sys.executable, "-c", WORKER, "outside", str(tmp_path / "engines")],
        env=os.environ | {"TMPDIR": str(temporary), "TMP": str(temporary)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(run.stdout.strip()).parent == temporary
    assert list(temporary.iterdir()) == []
