"""A CUDA driver without a GPU under the real PyCUDA, for tests of `CudaDevice`; `libcuda.cpp` says how it behaves.

PyCUDA asks for its driver when it is imported. So tests that want this one run in a process of their own, which
`run` starts; others of the process would take the driver for a GPU.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from impasto.optimize import cubins
from impasto.optimize.cache import EngineCache
from impasto.runtime.gpu.protocol import DeviceGraph
from tests.emulation.host import ROOT, compile_source

_HERE = Path(__file__).resolve().parent
_SOURCES = (_HERE / "libcuda.cpp", _HERE / "driver_state.h")
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-fvisibility=default")


def pycuda_folder() -> Path | None:
    """Return where PyCUDA is that was built without a driver, or None: ``site`` beneath it holds the package.

    The environment variable IMPASTO_TEST_PYCUDA tells; ``shared/tools/pycuda_bindings.py --into`` makes such a folder.
    """
    folder = os.environ.get("IMPASTO_TEST_PYCUDA")
    return Path(folder) if folder else None


def cuda_headers() -> Path | None:
    """Return the folder of cuda.h, or None."""
    homes = (os.environ.get("CUDA_HOME", "/usr/local/cuda"), "/usr/local/cuda")
    return next((Path(home, "include") for home in homes if Path(home, "include", "cuda.h").exists()), None)


@functools.cache
def build() -> Path:
    """Compile the driver and return the folder of its libcuda.so.1, made anew only when a source has changed."""
    headers = cuda_headers()
    assert headers, "no cuda.h"
    text = b"\0".join(source.read_bytes() for source in (*_SOURCES, Path(__file__), headers / "cuda.h"))
    folder = ROOT / "build" / "emulation" / f"libcuda-{hashlib.sha256(text).hexdigest()[:16]}"
    if not folder.exists():
        unfinished = folder.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        command = ["g++", *_FLAGS, f"-I{headers}", f"-I{_HERE}"]
        subprocess.run([*command, "-c", "-o", str(unfinished / "driver.o"), str(_SOURCES[0])], check=True)
        (unfinished / "rest.cpp").write_text(_rest(headers, unfinished / "driver.o"))
        parts = [str(unfinished / part) for part in ("driver.o", "rest.cpp")]
        library = str(unfinished / "libcuda.so.1")
        subprocess.run([*command, "-Wl,-soname,libcuda.so.1", "-o", library, *parts, "-ldl"], check=True)
        unfinished.rename(folder)
    return folder


def _rest(headers: Path, driver: Path) -> str:
    """Return C++ that defines every entry point of the headers that the driver itself does not."""
    named = set[str]()
    for header in ("cuda.h", "cudaGL.h", "cudaProfiler.h"):
        if (headers / header).exists():
            named |= set(re.findall(r"\bcu[A-Z]\w*\b", (headers / header).read_text()))
    symbols = subprocess.run(["nm", "--defined-only", str(driver)], check=True, capture_output=True, text=True).stdout
    missing = sorted(named - set(symbols.split()))
    return "".join(f'extern "C" int {name}() {{ return 801; }}  // CUDA_ERROR_NOT_SUPPORTED\n' for name in missing)


def environment(pycuda: Path) -> dict[str, str]:
    """Return the environment of a process in which PyCUDA meets this driver; ``impasto`` and ``tests`` are found."""
    return os.environ | {
        "LD_LIBRARY_PATH": f"{build()}:{pycuda / 'lib'}",  # the latter for PyCUDA's other library, cuRAND
        "PYTHONPATH": f"{ROOT}:{pycuda / 'site'}",
    }


def run(pycuda: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in that environment and return what it wrote, both streams together."""
    return subprocess.run(
        [sys.executable, *arguments], env=environment(pycuda), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


@contextmanager
def host_kernels() -> Iterator[None]:
    """Have `cubins.cubin` return what this driver takes for a cubin: the source, compiled for the host."""

    def host_cubin(source: str, compute_capability: tuple[int, int], cache: EngineCache | None = None) -> bytes:
        return compile_source(cubins.KERNELS / f"{source}.cu").read_bytes()

    original, cubins.cubin = cubins.cubin, host_cubin
    try:
        yield
    finally:
        cubins.cubin = original


class InStreamOrder:
    """A `DeviceGraph` that computes on the host, made to wait for its turn in a stream, and to be captured with it."""

    capturable = True

    def __init__(self, graph: DeviceGraph, stream: int) -> None:
        self._graph, self._stream = graph, ctypes.c_void_p(stream)
        self.inputs, self.outputs, self.scratch_bytes = graph.inputs, graph.outputs, graph.scratch_bytes
        self.bind, self.close = graph.bind, graph.close
        self._function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: graph.enqueue())

    def enqueue(self) -> None:
        """Enqueue the computation as a host function."""
        status = ctypes.CDLL("libcuda.so.1").cuLaunchHostFunc(self._stream, self._function, None)
        assert status == 0, status
