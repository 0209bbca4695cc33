from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from impasto.errors import StorageError
from impasto.runtime.scratch import clear, free_room, in_memory, is_mapped, like, mapped, release


@pytest.mark.parametrize("allocate", [in_memory, mapped])
def test_an_array_is_zeros_that_can_be_written(allocate):
    array = allocate((1, 3, 5, 7))
    assert array.shape == (1, 3, 5, 7)
    assert array.dtype == np.float32
    assert not array.any()
    array[0, 1] = 2.5
    assert array.sum() == 2.5 * 35


def test_a_mapped_array_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    array = mapped((300, 300))
    array[:] = 1
    assert not list(tmp_path.iterdir())
    assert array.sum() == 300 * 300


def resident(array):
    """The kilobytes of a mapped array's pages that count as this process's."""
    start = f"{array.__array_interface__['data'][0]:x}-"
    lines = Path("/proc/self/smaps").read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith(start))
    return int(next(line for line in lines[first:] if line.startswith("Rss:")).split()[1])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is resident")
def test_released_pages_are_no_longer_in_memory_and_keep_their_values():
    array = mapped((1, 3, 256, 256))
    values = np.random.RandomState(1).standard_normal(array.shape).astype(np.float32)
    array[:] = values
    assert resident(array) >= values.nbytes // 1024
    # Rows 10 to 19 of the second plane are 10 KiB, which begin and end within a page.
    release(array[0, 1, 10:20][:, ::2].T, np.zeros(3, np.float32))
    kept = resident(array)
    assert values.nbytes // 1024 - 16 <= kept <= values.nbytes // 1024 - 8
    release(array[0, ::-1, ::-1])
    assert resident(array) == 0
    np.testing.assert_array_equal(array, values)


def test_an_array_like_another_is_kept_where_that_is():
    for given in (np.ones(7, np.float32), mapped((7,))):
        for found, shape in ((like(given), (7,)), (like(given[2:4], (3, 5)), (3, 5))):
            assert found.shape == shape
            assert found.dtype == np.float32
            assert not found.any()
            assert is_mapped(found) == is_mapped(given)


def test_a_private_map_is_left_alone(tmp_path):
    """What was changed in it is nowhere else."""
    path = tmp_path / "numbers"
    np.zeros(4096, np.float32).tofile(path)
    private = np.memmap(path, np.float32, "c")
    private[:] = 7
    release(private, private[3:])
    assert (private == 7).all()


@pytest.mark.parametrize("allocate", [in_memory, mapped])
@pytest.mark.parametrize("stripe", [1, 100, 10**6])
def test_an_array_is_cleared_to_its_last_row(allocate, stripe, monkeypatch):
    monkeypatch.setattr("impasto.runtime.scratch._STRIPE", stripe)
    array = allocate((1, 3, 23, 7))
    array[:] = 5
    clear(array)
    assert not array.any()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be taken ahead here")
def test_a_full_disk_is_an_error_before_anything_is_written(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"no room for 400 bytes .* set TMPDIR"):
        mapped((10, 10))


def test_free_room_is_that_of_the_folder_for_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mounts = tmp_path / "mounts"
    assert 0 < free_room(mounts) <= shutil.disk_usage(tmp_path).total
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\ntmpfs {tmp_path}/other tmpfs rw 0 0\n")
    assert free_room(mounts) > 0


@pytest.mark.skipif(os.name != "posix", reason="no file tells mounts elsewhere")
@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_a_folder_in_memory_has_no_room(tmp_path, monkeypatch, kind):
    folder = tmp_path / "a folder" / "below"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    mounts = tmp_path / "mounts"
    point = str(Path(os.path.realpath(tmp_path)) / "a folder").replace(" ", r"\040")
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\n{kind} {point} {kind} rw 0 0\n")
    assert free_room(mounts) == 0
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\n{kind} {point} {kind} rw 0 0\n/dev/sdb {point}/below ext4 rw 0 0\n")
    assert free_room(mounts) > 0
