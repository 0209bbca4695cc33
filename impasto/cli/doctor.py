"""``impasto doctor``."""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

from impasto.cli import options
from impasto.cli.console import emit, emit_json, human_bytes
from impasto.errors import LimitError, OutputError, UnavailableError

_PACKAGES = {
    "numpy": (),
    "onnx": (),
    "onnxruntime": ("onnxruntime-gpu",),
    "pillow": (),
    "safetensors": (),
    "scipy": (),
    "torch": (),
    "h5py": (),
    "openvino": (),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12"),
    "pycuda": (),
}
"""Distributions, each with those that bring the same package under another name."""

# The instruction sets that convolutions are chosen by: vectors, and products in bfloat16.
_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def doctor(json: options.Json = False) -> None:
    """Tell what this machine can run: versions, CPU, cache, weights, backends.

    Ends with exit code 3 if ONNX Runtime, which the main path needs, cannot be used.
    """
    backends = _backends()
    report = {
        "versions": _versions(),
        "cpu": _cpu(),
        "cache": _cache(),
        "weights": _weights(),
        "backends": backends,
    }
    if json:
        emit_json(report)
    else:
        emit(*_lines(report))
    if not backends["onnxruntime"]["available"]:
        raise UnavailableError(f"the main path cannot run: {backends['onnxruntime']['detail']}")


def _versions() -> dict[str, str | None]:
    from impasto import __version__

    versions: dict[str, str | None] = {
        "impasto": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }
    for package, others in _PACKAGES.items():
        versions[package] = next(filter(None, map(_version, (package, *others))), None)
    return versions


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    from impasto.optimize.cpus import available_cpus
    from impasto.optimize.keys import cpu

    facts = cpu()
    present = set(facts["features"].split())
    return {
        "model": facts["model"],
        "architecture": facts["architecture"],
        "features": [feature for feature in _FEATURES if feature in present],
        "count": os.cpu_count(),
        "available": available_cpus(),
    }


def _cache() -> dict[str, Any]:
    from impasto.models.locate import cache_dir
    from impasto.optimize.cache import EngineCache

    folder = cache_dir()
    entries = EngineCache().entries()
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return {
        "path": str(folder),
        "state": _state(folder, existing),
        "engines": len(entries),
        "engine_bytes": sum(entry.size for entry in entries),
        "free_bytes": shutil.disk_usage(existing).free,
    }


def _state(folder: Path, existing: Path) -> str:
    from impasto.runtime.files import check_writable

    if existing == folder.absolute() and not folder.is_dir():
        return "not a folder: remove it, or set IMPASTO_CACHE to another place"
    try:
        # A name that nothing has; the file is made and removed again.
        check_writable(existing / f"doctor-{os.getpid()}")
    except OutputError:
        return f"not writable ({existing}): engines are built anew each time; IMPASTO_CACHE names another folder"
    return "ready" if existing == folder.absolute() else "not made yet; it is when it is needed"


def _weights() -> dict[str, str]:
    from impasto.models.locate import available

    return {name: str(path) for name, path in available().items()}


def _backends() -> dict[str, dict[str, Any]]:
    from impasto.runtime.backends.select import BACKENDS, open_backend

    found: dict[str, dict[str, Any]] = {}
    for name in BACKENDS:
        try:
            with closing(open_backend(name)) as backend:
                detail = ", ".join(f"{package} {version}" for package, version in backend.versions().items())
                found[name] = {"available": True, "detail": f"{detail}, {backend.precision}"}
        # ImportError: a package that our own need (onnx) is missing or broken. LimitError: a GPU that is full.
        except (UnavailableError, LimitError, ImportError) as error:
            found[name] = {"available": False, "detail": str(error)}
    return found


def _lines(report: dict[str, Any]) -> list[str]:
    cpu, cache = report["cpu"], report["cache"]
    lines = ["versions"]
    lines += [f"  {name} {version or 'not installed'}" for name, version in report["versions"].items()]
    lines += [
        "cpu",
        f"  {cpu['model'] or 'unknown model'} ({cpu['architecture']})",
        f"  {', '.join(cpu['features']) or 'no known instruction sets'}",
        f"  {cpu['available']} of {cpu['count']} CPUs available to this process",
        "cache",
        f"  {cache['path']}: {cache['state']}",
        f"  {cache['engines']} engines, {human_bytes(cache['engine_bytes'])}; {human_bytes(cache['free_bytes'])} free",
        "weights",
    ]
    lines += [f"  {name}: {path}" for name, path in report["weights"].items()]
    if not report["weights"]:
        lines.append("  none yet: impasto weights fetch vgg19; until then --preset filterbank, which needs none")
    lines.append("backends")
    for name, backend in report["backends"].items():
        lines.append(f"  {name}: {'available' if backend['available'] else 'not available'} ({backend['detail']})")
    return lines
