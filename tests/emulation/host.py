"""A `Device` whose memory is the host's and whose kernels are the same sources, compiled for the host by g++.

Buffers lie between guards, so that a kernel which writes beyond one is caught at the latest when `HostDevice.close`
looks at them; fresh memory is filled with NaN, so that what a kernel forgets to write shows.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from impasto.errors import DeviceError, LimitError
from impasto.runtime.gpu.protocol import TensorSpec

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "runtime" / "kernels"
_HERE = Path(__file__).resolve().parent
_GUARD = 256
_PATTERN = 0xA5
_ENTRY = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(')
_FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-w"]


def compiler() -> str | None:
    """Return the host compiler's path, or None where there is none."""
    return shutil.which("g++")


@functools.cache
def compile_source(path: Path) -> Path:
    """Compile a ``.cu`` file for the host and return the library, made anew only when a source has changed."""
    sources = [path, *sorted(path.parent.glob("*.cuh")), *sorted(KERNELS.glob("*.cuh")), *sorted(_HERE.rglob("*.h"))]
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources) + " ".join(_FLAGS).encode())
    library = ROOT / "build" / "emulation" / f"{path.stem}-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        unit = library.with_suffix(".cpp")
        unit.write_text(_unit(path))
        unfinished = library.with_suffix(".part")
        folders = [f"-I{folder}" for folder in (_HERE / "include", path.parent, KERNELS)]
        command = ["g++", *_FLAGS, "-include", str(_HERE / "emulation.h"), *folders, "-o", str(unfinished), str(unit)]
        subprocess.run(command, check=True)
        unfinished.replace(library)
    return library


def _unit(path: Path) -> str:
    """Return a C++ file that holds the source and a table of its entry points."""
    names = entry_points(path)
    rows = "".join(
        f'    {{"{n}", [](dim3 g, dim3 b, const void *p) {{ return emulation::launch({n}, g, b, p); }}}},\n'
        for n in names
    )
    return f"""#include "{path}"
static const emulation::Entry ENTRIES[] = {{
{rows}}};
extern "C" int emulation_launch(const char *name, const unsigned *grid, const unsigned *block, const void *packed,
                                char *error, size_t room) {{
    for (const auto &entry : ENTRIES)
        if (!std::strcmp(entry.name, name)) {{
            std::string text = entry.launch({{grid[0], grid[1], grid[2]}}, {{block[0], block[1], block[2]}}, packed);
            std::snprintf(error, room, "%s", text.c_str());
            return text.empty() ? 0 : 1;
        }}
    return 2;
}}
"""


def entry_points(path: Path) -> list[str]:
    """Return the names of a source's kernels; macros that define some are expanded by the preprocessor."""
    command = [
        "g++",
        "-E",
        "-P",
        "-x",
        "c++",
        "-std=c++17",
        f"-I{_HERE / 'include'}",
        f"-I{path.parent}",
        f"-I{KERNELS}",
    ]
    text = subprocess.run([*command, str(path)], check=True, capture_output=True, text=True).stdout
    return _ENTRY.findall(text)


class _HostBuffer:
    def __init__(self, nbytes: int) -> None:
        size = -(-nbytes // 256) * 256
        self.memory = np.full(size + 3 * _GUARD, _PATTERN, np.uint8)
        self._first = _GUARD + -(self.memory.ctypes.data + _GUARD) % 256
        self.nbytes = nbytes
        self.memory[self._first : self._first + nbytes] = 0xFF  # NaN in every float type
        self.address = self.memory.ctypes.data + self._first
        self.freed = False

    def free(self) -> None:
        """Mark as freed; the guards are still looked at."""
        self.freed = True

    def is_whole(self) -> bool:
        """Tell whether the guards are as they were."""
        before, after = self.memory[: self._first], self.memory[self._first + self.nbytes :]
        return bool((before == _PATTERN).all() and (after == _PATTERN).all())


class HostDevice:
    """A device on the host. ``multiprocessors`` is small, so that splits are few and tests quick."""

    name = "host emulation"
    stream = 0

    def __init__(self, multiprocessors: int = 4, compute_capability: tuple[int, int] = (9, 0)) -> None:
        self.multiprocessors = multiprocessors
        self.compute_capability = compute_capability
        self.launches: list[str] = []
        self.memory_limit: int | None = None
        self._buffers: list[_HostBuffer] = []

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the buffers that were not freed."""
        return sum(buffer.nbytes for buffer in self._buffers if not buffer.freed)

    def versions(self) -> dict[str, str]:
        """Return what there is to tell."""
        return {"gpu": self.name}

    def allocate(self, nbytes: int) -> _HostBuffer:
        """Return guarded memory, filled with NaN."""
        assert nbytes > 0
        if self.memory_limit is not None and self.allocated_bytes + nbytes > self.memory_limit:
            raise LimitError(f"no room for {nbytes} bytes beside {self.allocated_bytes}")
        self._buffers.append(_HostBuffer(nbytes))
        return self._buffers[-1]

    def kernel(self, source: str, entry: str, folder: Path = KERNELS) -> Callable[..., None]:
        """Return a kernel of ``runtime/kernels/<source>.cu``."""
        library = ctypes.CDLL(str(compile_source(folder / f"{source}.cu")))
        return _HostKernel(self, library, entry)

    def upload(self, address: int, values: np.ndarray) -> None:
        """Copy an array in."""
        assert values.flags.c_contiguous
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def download(self, address: int, spec: TensorSpec) -> np.ndarray:
        """Copy a tensor out."""
        values = np.empty(spec.shape, spec.dtype)
        ctypes.memmove(values.ctypes.data, address, values.nbytes)
        return values

    def copy(self, to: int, origin: int, nbytes: int) -> None:
        """Copy within the memory."""
        ctypes.memmove(to, origin, nbytes)

    def clear(self, address: int, nbytes: int) -> None:
        """Fill with zeros."""
        ctypes.memset(address, 0, nbytes)

    def synchronize(self) -> None:
        """Nothing is ever under way."""

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """Return the work itself."""
        return enqueue

    def close(self) -> None:
        """Look whether a kernel wrote beyond a buffer."""
        for buffer in self._buffers:
            assert buffer.is_whole(), f"a kernel wrote beyond a buffer of {buffer.nbytes} bytes"


class _HostKernel:
    def __init__(self, device: HostDevice, library: ctypes.CDLL, entry: str) -> None:
        self._device, self._library, self._entry = device, library, entry

    def __call__(self, grid: tuple[int, int], block: int, *arguments: int | np.generic) -> None:
        """Run the kernel."""
        self._device.launches.append(self._entry)
        text = ctypes.create_string_buffer(256)
        status = self._library.emulation_launch(
            self._entry.encode(), (ctypes.c_uint * 3)(*grid, 1), (ctypes.c_uint * 3)(block, 1, 1), pack(arguments),
            text, ctypes.c_size_t(256),
        )  # fmt: skip
        if status == 2:
            raise DeviceError(f"there is no kernel {self._entry!r}")
        if status:
            raise DeviceError(f"kernel {self._entry!r}: {text.value.decode()}")


def pack(arguments: tuple[int | np.generic, ...]) -> bytes:
    """Lay arguments out as a C compiler would lay out a struct of them."""
    packed = b""
    for argument in arguments:
        value = np.uint64(argument) if isinstance(argument, int) else argument
        packed += b"\0" * (-len(packed) % value.dtype.itemsize) + value.tobytes()
    return packed + b"\0" * 8
