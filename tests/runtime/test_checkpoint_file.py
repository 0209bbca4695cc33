from __future__ import annotations

import hashlib
import io
import json
import math
import tracemalloc

import numpy as np
import pytest

from impasto.errors import CheckpointError
from impasto.runtime.checkpoint_file import read_checkpoint, write_checkpoint

STATE = {
    "loss": 0.1 + 0.2,
    "infinite": math.inf,
    "name": "Nürnberg, " + "0" * 64,
    "none": None,
    "nested": {"order": [2, 0, 1], "paired": True},
}


def arrays(seed=0, size=11):
    stream = np.random.default_rng(seed)
    special = np.float32([math.nan, math.inf, -math.inf, -0.0, 1e-45])
    return {
        "best": stream.standard_normal((1, 3, 2, size)).astype(np.float32),
        "special": special,
        "wide": stream.standard_normal((3, 3)),
        "one": stream.standard_normal(1).astype(np.float32),
    }


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "c"
    with path.open("wb") as file:
        write_checkpoint(file, STATE, arrays())
    return path


def test_what_was_written_is_read_to_the_bit(path):
    state, found = read_checkpoint(path)
    assert state == STATE
    wanted = arrays()
    assert list(found) == list(wanted)
    assert len(found) == len(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_it_is_an_ordinary_safetensors_file(path):
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata()["format"] == "impasto checkpoint 1"
        assert json.loads(file.metadata()["state"]) == STATE
        for name, array in arrays().items():
            assert file.get_tensor(name).tobytes() == array.tobytes()


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place(path):
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    digest = header["__metadata__"]["sha256"]
    assert hashlib.sha256(content.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_the_same_state_gives_the_same_bytes(path):
    again = io.BytesIO()
    write_checkpoint(again, STATE, arrays())
    assert again.getvalue() == path.read_bytes()


def test_a_file_cut_anywhere_is_damaged_and_stays_as_it_is(path):
    content = path.read_bytes()
    for length in [*range(60), *range(60, len(content), 7), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
        assert path.read_bytes() == content[:length]
    path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_a_bit_flipped_anywhere_is_noticed(path):
    content = path.read_bytes()
    stream = np.random.default_rng(1)
    for place in [*range(120), *stream.integers(120, len(content), 150)]:
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << stream.integers(8)
        path.write_bytes(spoilt)
        with pytest.raises(CheckpointError, match=r"damaged|no checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\xff" * 200,
        (2).to_bytes(8, "little") + b"{}",
        (40).to_bytes(8, "little") + b'{"__metadata__":{"format":"another"}}   ',
    ],
    ids=["empty", "picture", "huge header", "no metadata", "another format"],
)
def test_another_kind_of_file_is_none(tmp_path, content):
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="no checkpoint that this version"):
        read_checkpoint(path)
    assert path.read_bytes() == content


def test_weights_are_none(tmp_path, shallow):
    from impasto.models.weights import save_weights

    save_weights(shallow, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint that this version"):
        read_checkpoint(tmp_path / "w.safetensors")


def test_a_file_that_is_not_there_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be read \(No such file"):
        read_checkpoint(tmp_path / "c")


def test_neither_writing_nor_reading_holds_a_second_copy(tmp_path):
    rows = {f"row{i}": np.full(2**18, i, np.float32) for i in range(12)}
    path = tmp_path / "c"

    def peak(work):
        tracemalloc.start()
        work()
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def write():
        with path.open("wb") as file:
            write_checkpoint(file, {}, rows)

    def read():
        for name, array in read_checkpoint(path)[1].items():
            np.copyto(rows[name], array)

    row = rows["row0"].nbytes
    assert peak(write) < row / 2
    # Two blocks of 1 MiB while the digest is taken, or the row before and the one being read; not the twelve.
    assert peak(read) < 2.5 * row
