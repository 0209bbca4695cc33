"""The compilers of CUDA C++ that a host may have: nvcc, or NVRTC, which needs neither a toolkit nor a host compiler.

https://docs.nvidia.com/cuda/cuda-compiler-driver-nvcc/ and https://docs.nvidia.com/cuda/nvrtc/
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from impasto.errors import EngineError

FLAGS = ("-std=c++17",)
"""What both compilers are called with, besides the target and the folders of headers."""

_TOOLKIT = Path("/usr/local/cuda")
_NVRTC = ("libnvrtc.so.13", "libnvrtc.so.12")


class Compiler(Protocol):
    """One CUDA compiler."""

    @property
    def name(self) -> str:
        """The name of the compiler, ``nvcc`` or ``nvrtc``."""
        ...

    @property
    def version(self) -> str:
        """Its version, as exactly as it tells."""
        ...

    @property
    def architectures(self) -> tuple[int, ...]:
        """The architectures that it knows: 90 is sm_90 and compute_90."""
        ...

    def compile(self, source: Path, target: str) -> bytes:
        """Compile a ``.cu`` file for ``sm_<n>`` to a cubin, or for ``compute_<n>`` to PTX with its final zero byte.

        Raises `EngineError` with the first of the compiler's errors.
        """
        ...


def find_compiler() -> Compiler | None:
    """Return nvcc, or else NVRTC, or None where there is neither.

    nvcc is looked for through CUDA_HOME, CUDA_PATH, PATH and in /usr/local/cuda, and counts only where the host
    compiler is that it calls for preprocessing; NVRTC in the same toolkits, in pip's nvidia packages, and where the
    system's loader finds it.
    """
    if shutil.which("cl" if os.name == "nt" else "gcc"):
        for folder in _toolkits():
            path = shutil.which("nvcc", path=str(folder / "bin"))
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                if path:
                    return _nvcc(path)
    for library in _nvrtc_libraries():
        with contextlib.suppress(
            OSError, AttributeError
        ):  # AttributeError: a library of that name without its functions
            return _nvrtc(library)
    return None


class Nvcc:
    """nvcc, as a program; raises OSError or CalledProcessError where it does not run."""

    name = "nvcc"

    def __init__(self, path: str) -> None:
        self._path = path
        release = re.search(r"V(\d+(\.\d+)+)", self._ask("--version"))
        self.version = release[1] if release else "unknown"
        self.architectures = tuple(
            int(number) for number in re.findall(r"compute_(\d+)\b", self._ask("--list-gpu-arch"))
        )

    def compile(self, source: Path, target: str) -> bytes:
        """Compile, as `Compiler.compile` says."""
        ptx = target.startswith("compute_")
        command = [self._path, "-ptx" if ptx else "-cubin", f"-arch={target}", *FLAGS, f"-I{source.parent}"]
        with tempfile.TemporaryDirectory(prefix="impasto-nvcc-") as folder:
            output = Path(folder, "output")
            command += ["-o", str(output), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                raise _refusal(self, source, target, done.stderr + done.stdout)
            return output.read_bytes() + (b"\0" if ptx else b"")

    def _ask(self, question: str) -> str:
        return subprocess.run([self._path, question], capture_output=True, text=True, check=True).stdout


class Nvrtc:
    """NVRTC, as a shared library; raises OSError where it cannot be loaded."""

    name = "nvrtc"

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._folder = Path(library).parents[1] if "/" in library else None
        if self._folder:
            # NVRTC looks for these by name alone, which finds those beside it only once they are loaded.
            self._builtins = [ctypes.CDLL(str(path)) for path in Path(library).parent.glob("libnvrtc-builtins.so*")]
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", known)
        self.architectures = tuple(known)

    def compile(self, source: Path, target: str) -> bytes:
        """Compile, as `Compiler.compile` says."""
        folders = (source.parent, *_header_folders(self._folder, self.version.partition(".")[0]))
        options = [f"--gpu-architecture={target}", *FLAGS, *(f"--include-path={folder}" for folder in folders)]
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None
        )  # fmt: skip
        try:
            arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if self._library.nvrtcCompileProgram(program, len(options), arguments):
                log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
                raise _refusal(self, source, target, log)
            return self._read(program, "PTX" if target.startswith("compute_") else "CUBIN")
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, text)
        return text.raw

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            text = self._library.nvrtcGetErrorString(status).decode()
            raise EngineError(f"{function} of NVRTC failed ({text}): install it anew, or the CUDA toolkit")


# Asking a compiler for its version takes longer than finding it.
_nvcc: Callable[[str], Nvcc] = functools.cache(Nvcc)
_nvrtc: Callable[[str], Nvrtc] = functools.cache(Nvrtc)


def _refusal(compiler: Compiler, source: Path, target: str, log: str) -> EngineError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    first = next((line for line in lines if re.search(r"\b(error|fatal)\b", line)), lines[0] if lines else "no message")
    return EngineError(
        f"{compiler.name} {compiler.version} does not compile {source.name} for {target}: {first} "
        f"(CUDA_HOME chooses another compiler)"
    )


def _toolkits() -> Iterator[Path]:
    """Yield the folders of CUDA toolkits, in the order of preference."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    nvcc = shutil.which("nvcc")
    if nvcc:
        yield Path(nvcc).parents[1]
        yield Path(nvcc).resolve().parents[1]
    yield _TOOLKIT


def _pip_folders() -> list[Path]:
    """Return the folders of pip's nvidia packages: ``cu13``, or one for each part of CUDA 12."""
    spec = importlib.util.find_spec("nvidia")
    roots = (spec.submodule_search_locations if spec else None) or []
    return sorted((path for root in roots for path in Path(root).iterdir() if path.is_dir()), reverse=True)


def _nvrtc_libraries() -> Iterator[str]:
    for name in _NVRTC:
        for folder in (*_toolkits(), *_pip_folders()):
            for path in (folder / "lib64" / name, folder / "lib" / name):
                if path.exists():
                    yield str(path)
        yield name


def _header_folders(first: Path | None, major: str) -> Iterator[Path]:
    """Yield the folders that may hold NVRTC's headers: those beside it, of pip's packages, of toolkits."""
    pip = (
        folder for folder in _pip_folders() if folder.name == f"cu{major}" or not re.fullmatch(r"cu\d+", folder.name)
    )
    for folder in (*((first,) if first else ()), *pip, *_toolkits()):
        for path in (folder / "include", folder / "include" / "cccl"):
            if path.is_dir():
                yield path
