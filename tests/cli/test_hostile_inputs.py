"""Inputs that are not what they say, disks that are full: the right code, one line, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from impasto.models.random_weights import random_weights
from impasto.runtime import files

# The header of a safetensors file: its length, then JSON.
METADATA = {"backbone": "vgg19", "convention": "caffe"}


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def weights_with_nan(path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = dict(random_weights("vgg19", 1, last_conv="conv1_1").tensors)
    tensors["conv1_1.weight"][3, 1, 2, 0] = np.nan
    save_file(tensors, path, METADATA)


def weights_of_a_wrong_shape(path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = dict(random_weights("vgg19", 1, last_conv="conv1_1").tensors)
    tensors["conv1_1.weight"] = np.zeros((64, 3, 5, 5), np.float32)
    save_file(tensors, path, METADATA)


def weights_without_a_key(path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = dict(random_weights("vgg19", 1, last_conv="conv1_2").tensors)
    del tensors["conv1_1.bias"]
    save_file(tensors, path, METADATA)


HOSTILE_WEIGHTS = {
    "nan": weights_with_nan,
    "wrong-shape": weights_of_a_wrong_shape,
    "missing-key": weights_without_a_key,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not weights at all, but long enough to hold a header\n"),
    "huge-header": lambda path: path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}"),
    "offsets-beyond-the-end": lambda path: path.write_bytes(
        safetensors(
            {"__metadata__": METADATA, "conv1_1.bias": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}}
        )
    ),
    "shape-that-lies": lambda path: path.write_bytes(
        safetensors(
            {"__metadata__": METADATA, "conv1_1.bias": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}},
            bytes(4),
        )
    ),
    "no-metadata": lambda path: path.write_bytes(safetensors({})),
    "a-folder": lambda path: path.mkdir(),
}


def refused(run, tmp_path, code, *args):
    """Run a command that must fail; return its error after checking that it left nothing."""
    before = sorted(tmp_path.rglob("*"))
    told = run(*args)
    assert (told.code, told.out) == (code, "")
    assert len(told.err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    return told.error


@pytest.mark.parametrize("kind", HOSTILE_WEIGHTS)
def test_weights_that_are_no_good(run, pictures, tmp_path, kind):
    path = tmp_path / "bad.safetensors"
    HOSTILE_WEIGHTS[kind](path)
    error = refused(run, tmp_path, 5, *pictures.job, "-o", tmp_path / "out.png", "--weights", path)
    assert "bad.safetensors" in error
    assert "bad.safetensors" in refused(run, tmp_path, 5, "weights", "show", path)


@pytest.fixture
def hostile(pictures, tmp_path):
    """Make one of the files that are no pictures, and return its path."""
    jpeg = pictures.style.read_bytes()
    content = {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "text.png": b"this is no picture\n",
        "empty.png": b"",
        "signature-only.png": b"\x89PNG\r\n\x1a\n",
        "weights.png": pictures.weights.read_bytes(),
    }

    def make(name):
        path = tmp_path / name
        if name == "folder.png":
            path.mkdir()
        elif name != "missing.png":
            path.write_bytes(content[name])
        return path

    return make


HOSTILE_PICTURES = [
    "truncated.jpg",
    "text.png",
    "empty.png",
    "signature-only.png",
    "weights.png",
    "missing.png",
    "folder.png",
]


@pytest.mark.parametrize("role", ["content", "style", "init"])
@pytest.mark.parametrize("name", HOSTILE_PICTURES)
def test_pictures_that_are_none(run, pictures, hostile, tmp_path, name, role):
    # A word for --init that is neither known nor a file is a usage error.
    code = 2 if (role, name) == ("init", "missing.png") else 5
    path = hostile(name)
    _, content, style, *options = pictures.job
    given = {"content": content, "style": style, role: path}
    init = ["--init", path] if role == "init" else []
    job = ["stylize", given["content"], given["style"], *options, *init]
    assert name in refused(run, tmp_path, code, *job, "-o", tmp_path / "out.png")


@pytest.mark.parametrize("role", ["content", "style"])
def test_a_picture_that_leaves_nothing_at_a_tap(run, pictures, tmp_path, role):
    # conv3_1 comes after two poolings, so 3 pixels leave nothing there.
    args = [*pictures.job, "-o", tmp_path / "out.png", "--size", 3]
    assert "too small for tap" in refused(run, tmp_path, 5, *args)


def test_a_picture_of_one_pixel(run, pictures, tmp_path):
    dot = tmp_path / "dot.png"
    Image.new("RGB", (1, 1), (200, 30, 90)).save(dot)
    _, _, _, *options = pictures.job
    out = tmp_path / "out.png"
    # The preset stretches: one pixel becomes 24×24 of one colour, which is a picture like another.
    assert run("stylize", dot, dot, *options, "-o", out).code == 0
    out.unlink()
    args = ["stylize", dot, dot, *options, "--size", 1, "-o", out]
    assert "1x1 pixels is too small" in refused(run, tmp_path, 5, *args)


def test_a_full_disk(run, pictures, tmp_path, monkeypatch):
    output = tmp_path / "out.png"
    assert run(*pictures.job, "-o", output).code == 0  # the engines are in the cache now
    old = output.read_bytes()

    def no_space(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", no_space)
    told = run(*pictures.job, "-o", output, "--force")
    assert (told.code, told.out) == (4, "")
    assert "no space left" in told.error
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert output.read_bytes() == old


@pytest.fixture
def tiny_disk(tmp_path):
    """A folder on a file system of 8 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if sys.platform != "linux" or mount is None or os.geteuid() != 0:
        pytest.skip("needs root on Linux")
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", "size=8k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not allow mounts")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(run, pictures, tiny_disk):
    # 128×128 pixels of noise take more than 8 kB as PNG, even clipped.
    told = run(*pictures.job, "-o", tiny_disk / "out.png", "--size", 128, "--init", "noise", "--iterations", 1)
    assert (told.code, told.out) == (4, "")
    assert "no space left" in told.error
    assert list(tiny_disk.iterdir()) == []


def test_a_cache_that_cannot_be_made_only_warns(run, pictures, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "file" / "cache"))
    told = run(*pictures.job, "-o", tmp_path / "out.png")
    assert told.code == 0
    assert "impasto: warning: engine cache not used" in told.err
    told = run(*pictures.job, "-o", tmp_path / "out.png", "--force", "--quiet")
    assert (told.code, told.err) == (0, "")
