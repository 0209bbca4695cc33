"""CUDA kernels as cubins: the sources of `impasto.runtime.kernels`, compiled for one GPU and kept in the engine cache.

A GPU newer than the compiler gets PTX instead, which its driver compiles when it is loaded.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from impasto.errors import EngineError, UnavailableError
from impasto.optimize.cache import EngineCache
from impasto.optimize.cuda_compilers import FLAGS, Compiler, find_compiler
from impasto.optimize.keys import EngineKey

KERNELS = Path(__file__).resolve().parents[1] / "runtime" / "kernels"
"""Where the sources lie: beside this package, both in a checkout and where it is installed."""

_CUBIN = "kernels.cubin"  # or PTX, which the driver takes just the same

_logger = logging.getLogger("impasto")


def sources() -> tuple[str, ...]:
    """Return the names of all kernel sources, without ``.cu``."""
    return tuple(sorted(path.stem for path in KERNELS.glob("*.cu")))


def cubin(source: str, compute_capability: tuple[int, int], cache: EngineCache | None = None) -> bytes:
    """Return ``runtime/kernels/<source>.cu`` compiled for a GPU, from the cache or by nvcc, or else by NVRTC.

    The result goes to `cuModuleLoadData` as it is: a cubin, or PTX with its final zero byte. Where there is no
    compiler, a cubin that any version of one left in the cache for these sources and this GPU will do. Raises
    `UnavailableError` without both, or for a GPU older than the compiler's oldest, `EngineError` for sources that do
    not compile.
    """
    path = KERNELS / f"{source}.cu"
    digest = _digest(path)
    compiler = find_compiler()
    if compiler is None:
        found = cache and _compiled_before(cache, digest, compute_capability)
        if not found:
            raise UnavailableError(
                f"no CUDA compiler for kernel source {path.name}: install the CUDA toolkit (nvcc, found through "
                f"CUDA_HOME or PATH), or pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt "
                f"nvidia-cuda-cccl (for CUDA 12 nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-nvcc-cu12)"
            )
        return found
    target = _target(compiler, compute_capability)
    if cache is None:
        return compiler.compile(path, target)

    def build(folder: Path) -> None:
        (folder / _CUBIN).write_bytes(compiler.compile(path, target))

    key = _key(digest, target, {compiler.name: compiler.version})
    try:
        return (cache.get_or_build(key, build) / _CUBIN).read_bytes()
    except FileNotFoundError:  # another process pruned the cache just now
        return (cache.get_or_build(key, build) / _CUBIN).read_bytes()


def _digest(path: Path) -> str:
    """Return the SHA-256 of a source and of all headers beside it."""
    digest = hashlib.sha256()
    try:
        for part in (path, *sorted(path.parent.glob("*.cuh"))):
            text = part.read_bytes()
            digest.update(f"{part.name}\0{len(text)}\0".encode() + text)
    except OSError as error:
        raise EngineError(f"kernel source {path} cannot be read ({error.strerror}): install Impasto anew") from None
    return digest.hexdigest()


def _target(compiler: Compiler, compute_capability: tuple[int, int]) -> str:
    """Return what to compile for: the GPU itself, or the newest virtual architecture that it can run."""
    gpu = 10 * compute_capability[0] + compute_capability[1]
    if gpu in compiler.architectures:
        return f"sm_{gpu}"
    older = [known for known in compiler.architectures if known < gpu]
    if not older:
        raise UnavailableError(
            f"{compiler.name} {compiler.version} does not compile for compute capability "
            f"{compute_capability[0]}.{compute_capability[1]}: its oldest is {min(compiler.architectures) / 10}"
        )
    _logger.warning(
        "%s %s does not know sm_%d: its kernels are compiled to PTX for compute_%d, and by the driver from there; "
        "a newer CUDA toolkit makes them start sooner",
        compiler.name, compiler.version, gpu, max(older),
    )  # fmt: skip
    return f"compute_{max(older)}"


def _key(digest: str, target: str, versions: dict[str, str]) -> EngineKey:
    return EngineKey(
        kind="cubin",
        graph=digest,
        weights="",
        shape=(),
        precision="all",
        options={"target": target, "flags": " ".join(FLAGS)},
        versions=versions,
        machine={},
    )


def _compiled_before(cache: EngineCache, digest: str, compute_capability: tuple[int, int]) -> bytes | None:
    """Return the cubin that was used last of those that compilers which are gone made for the GPU."""
    target = "sm_{}{}".format(*compute_capability)
    for entry in reversed(cache.entries()):
        if entry.key and entry.key == _key(digest, target, dict(entry.key.versions)):
            folder = cache.get(entry.key)
            if folder:
                return (folder / _CUBIN).read_bytes()
    return None
