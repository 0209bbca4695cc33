"""Which cubin a GPU gets, and when it is compiled: with a compiler that only says what it was asked for."""

from __future__ import annotations

import logging
import shutil

import pytest

from impasto.errors import EngineError, UnavailableError
from impasto.optimize import cubins
from impasto.optimize.cache import EngineCache
from impasto.optimize.cubins import cubin, sources


class Scribe:
    """A compiler whose cubins tell its version, the target and the source."""

    name = "scribe"

    def __init__(self, version="1.0", architectures=(75, 80, 90, 100, 120)):
        self.version, self.architectures = version, architectures
        self.compiled = []

    def compile(self, source, target):
        self.compiled.append(target)
        return f"{self.version} {target} ".encode() + source.read_bytes()


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "blur.cu").write_text("blur")
    (folder / "other.cu").write_text("other")
    (folder / "common.cuh").write_text("common")
    monkeypatch.setattr(cubins, "KERNELS", folder)
    return folder


@pytest.fixture
def cache(tmp_path):
    with EngineCache(tmp_path / "engines") as opened:
        yield opened


@pytest.fixture
def have(monkeypatch):
    """Makes a compiler the one that is found."""

    def use(compiler):
        monkeypatch.setattr(cubins, "find_compiler", lambda: compiler)
        return compiler

    return use


def test_the_sources_are_those_that_come_with_the_package():
    assert sources() == tuple(sorted(sources()))
    assert {"gram", "gram_vjp", "image", "solver", "tv"} <= set(sources())


def test_a_cubin_is_compiled_once_for_each_source_and_architecture(kernels, cache, have):
    compiler = have(Scribe())
    for _ in range(2):
        assert cubin("blur", (9, 0), cache) == b"1.0 sm_90 blur"
        assert cubin("blur", (8, 0), cache) == b"1.0 sm_80 blur"
        assert cubin("other", (9, 0), cache) == b"1.0 sm_90 other"
    assert compiler.compiled == ["sm_90", "sm_80", "sm_90"]
    assert len(cache.entries()) == 3


def test_without_a_cache_it_is_compiled_each_time(kernels, have):
    compiler = have(Scribe())
    assert cubin("blur", (12, 0)) == cubin("blur", (12, 0)) == b"1.0 sm_120 blur"
    assert len(compiler.compiled) == 2


@pytest.mark.parametrize("changed", ["blur.cu", "common.cuh"])
def test_a_change_of_a_source_or_a_header_compiles_anew(kernels, cache, have, changed):
    compiler = have(Scribe())
    cubin("blur", (9, 0), cache)
    (kernels / changed).write_text("something else")
    cubin("blur", (9, 0), cache)
    assert len(compiler.compiled) == 2


def test_another_version_of_the_compiler_compiles_anew(kernels, cache, have):
    have(Scribe("1.0"))
    cubin("blur", (9, 0), cache)
    have(Scribe("1.1"))
    assert cubin("blur", (9, 0), cache) == b"1.1 sm_90 blur"


def test_a_host_without_a_compiler_uses_what_one_left_in_the_cache(kernels, cache, have):
    have(Scribe("1.0"))
    cubin("blur", (9, 0), cache)
    cubin("other", (9, 0), cache)
    have(None)
    assert cubin("blur", (9, 0), cache) == b"1.0 sm_90 blur"
    for source, capability in (("blur", (8, 0)), ("blur", (9, 1))):
        with pytest.raises(UnavailableError, match=r"no CUDA compiler for kernel source blur.cu"):
            cubin(source, capability, cache)
    (kernels / "blur.cu").write_text("something else")
    with pytest.raises(UnavailableError, match="no CUDA compiler"):
        cubin("blur", (9, 0), cache)


def test_without_compiler_and_cache_the_error_says_what_to_install(kernels, have):
    have(None)
    with pytest.raises(UnavailableError, match=r"CUDA_HOME.* pip install nvidia-cuda-nvrtc") as refusal:
        cubin("blur", (9, 0))
    assert refusal.value.exit_code == 3


@pytest.mark.parametrize(
    ("capability", "target"), [((12, 1), "compute_120"), ((9, 9), "compute_90"), ((8, 6), "compute_80")]
)
def test_a_gpu_that_the_compiler_does_not_know_gets_ptx_and_the_log_says_so(kernels, have, caplog, capability, target):
    have(Scribe())
    with caplog.at_level(logging.WARNING, "impasto"):
        assert cubin("blur", capability) == f"1.0 {target} blur".encode()
    assert f"scribe 1.0 does not know sm_{capability[0]}{capability[1]}" in caplog.text
    assert target in caplog.text


def test_a_gpu_that_is_known_is_logged_nothing_about(kernels, have, caplog):
    have(Scribe())
    cubin("blur", (9, 0))
    assert not caplog.records


def test_a_gpu_older_than_the_compiler_is_refused(kernels, have):
    have(Scribe())
    with pytest.raises(
        UnavailableError, match=r"scribe 1.0 does not compile for compute capability 7.0: its oldest is 7.5"
    ):
        cubin("blur", (7, 0))


@pytest.mark.parametrize("error", [EngineError("blur.cu(1): error"), KeyboardInterrupt()])
def test_a_compilation_that_ends_early_leaves_nothing_in_the_cache(kernels, cache, have, monkeypatch, error):
    compiler = have(Scribe())
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "compile", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            cubin("blur", (9, 0), cache)
    assert not cache.entries()
    assert not list(cache.root.glob("*.tmp"))
    assert cubin("blur", (9, 0), cache) == b"1.0 sm_90 blur"


def test_a_damaged_cubin_is_compiled_anew(kernels, cache, have):
    compiler = have(Scribe())
    cubin("blur", (9, 0), cache)
    (file,) = (path for path in cache.entries()[0].path.iterdir() if path.suffix == ".cubin")
    file.write_bytes(b"1.0 sm_90 blue")
    assert cubin("blur", (9, 0), cache) == b"1.0 sm_90 blur"
    assert len(compiler.compiled) == 2


def test_a_cubin_that_is_pruned_before_it_is_read_is_compiled_anew(kernels, cache, have, monkeypatch):
    have(Scribe())
    inner = cache.get_or_build
    pruned = []

    def get_or_build(key, build):
        folder = inner(key, build)
        if not pruned:
            pruned.append(folder)
            shutil.rmtree(folder)
        return folder

    monkeypatch.setattr(cache, "get_or_build", get_or_build)
    assert cubin("blur", (9, 0), cache) == b"1.0 sm_90 blur"
    assert pruned


def test_a_source_that_is_missing_is_told(kernels, have):
    have(Scribe())
    with pytest.raises(EngineError, match=r"blurr.cu cannot be read .No such file.*: install Impasto anew"):
        cubin("blurr", (9, 0))
