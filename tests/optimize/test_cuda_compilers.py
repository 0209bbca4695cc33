"""The CUDA compilers of a host: which one is found, and what nvcc and NVRTC make of small sources."""

from __future__ import annotations

import contextlib
import os

import pytest

from impasto.errors import EngineError
from impasto.optimize import cuda_compilers
from impasto.optimize.cuda_compilers import Nvcc, Nvrtc, find_compiler

SOURCE = """
#include <cuda_fp16.h>
#include "twice.cuh"
extern "C" __global__ void doubling(__half *x) { x[threadIdx.x] = __float2half(twice(__half2float(x[threadIdx.x]))); }
"""


@pytest.fixture(params=["nvcc", "nvrtc"])
def compiler(request):
    if request.param == "nvcc":
        found = find_compiler()
        if not isinstance(found, Nvcc):
            pytest.skip("no nvcc here")
        return found
    for library in cuda_compilers._nvrtc_libraries():
        with contextlib.suppress(OSError):
            return Nvrtc(library)
    return pytest.skip("no NVRTC here")


@pytest.fixture
def source(tmp_path):
    (tmp_path / "twice.cuh").write_text("__device__ inline float twice(float x) { return 2 * x; }\n")
    path = tmp_path / "doubling.cu"
    path.write_text(SOURCE)
    return path


def test_a_cubin_is_an_elf_file_that_holds_the_kernel(compiler, source):
    assert {75, 80, 86, 89, 90} <= set(compiler.architectures)
    for target in ("sm_75", "sm_90"):
        binary = compiler.compile(source, target)
        assert binary.startswith(b"\x7fELF")
        assert b".text.doubling" in binary
    assert sorted(path.name for path in source.parent.iterdir()) == ["doubling.cu", "twice.cuh"]


def test_ptx_is_text_that_ends_with_one_zero_byte(compiler, source):
    ptx = compiler.compile(source, "compute_80")
    assert ptx.index(b"\0") == len(ptx) - 1
    assert b".target sm_80" in ptx
    assert b".entry doubling(" in ptx


def test_the_error_is_the_first_of_the_compilers_with_its_line(compiler, source):
    source.write_text(SOURCE + "\n__global__ void wrong() { undeclared = 1; }\n")
    with pytest.raises(EngineError, match=r"^nv\w+ 1\d\.\d.* does not compile doubling.cu for sm_80: ") as refusal:
        compiler.compile(source, "sm_80")
    assert 'doubling.cu(6): error: identifier "undeclared"' in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_header_that_is_missing_is_named(compiler, source):
    source.write_text('#include "missing.cuh"\n')
    with pytest.raises(EngineError, match=r"missing.cuh"):
        compiler.compile(source, "sm_80")


def toolkit(folder, version, status=0):
    """A folder with an nvcc that answers what it is asked."""
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(
        f"#!/bin/sh\n"
        f'case "$1" in\n'
        f'--version) echo "Cuda compilation tools, release 12.4, V{version}";;\n'
        f'--list-gpu-arch) printf "compute_75\\ncompute_90\\n";;\n'
        f"esac\n"
        f"exit {status}\n"
    )
    nvcc.chmod(0o755)
    return folder


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A host with a host compiler and nothing of CUDA."""
    if os.name != "posix":
        pytest.skip("programs here are shell scripts")
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "gcc").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(cuda_compilers, "_TOOLKIT", tmp_path / "none")
    monkeypatch.setattr(cuda_compilers, "_NVRTC", ())
    return tmp_path


def test_a_host_without_cuda_has_no_compiler(bare):
    assert find_compiler() is None


def test_nvcc_is_found_in_the_order_of_the_documentation(bare, monkeypatch):
    default = toolkit(bare / "default", "12.4.1")
    monkeypatch.setattr(cuda_compilers, "_TOOLKIT", default)
    assert find_compiler().version == "12.4.1"
    monkeypatch.setenv("PATH", f"{toolkit(bare / 'path', '12.4.2') / 'bin'}:{os.environ['PATH']}")
    assert find_compiler().version == "12.4.2"
    monkeypatch.setenv("CUDA_PATH", str(toolkit(bare / "cuda_path", "12.4.3")))
    assert find_compiler().version == "12.4.3"
    monkeypatch.setenv("CUDA_HOME", str(toolkit(bare / "cuda_home", "12.4.4")))
    found = find_compiler()
    assert (found.name, found.version, found.architectures) == ("nvcc", "12.4.4", (75, 90))


def test_one_that_does_not_run_is_passed_over(bare, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(bare / "broken", "12.4.1", status=1)))
    monkeypatch.setenv("CUDA_PATH", str(toolkit(bare / "sound", "12.4.2")))
    assert find_compiler().version == "12.4.2"


def test_without_a_host_compiler_nvcc_does_not_count(bare, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(bare / "sound", "12.4.1")))
    (bare / "programs" / "gcc").unlink()
    assert find_compiler() is None


def test_a_library_that_is_no_nvrtc_is_passed_over(bare, monkeypatch):
    library = bare / "cuda" / "lib64" / "libnvrtc.so.99"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"no library")
    monkeypatch.setenv("CUDA_HOME", str(bare / "cuda"))
    monkeypatch.setattr(cuda_compilers, "_NVRTC", ("libnvrtc.so.99",))
    monkeypatch.setattr(cuda_compilers, "_pip_folders", list)
    assert find_compiler() is None
