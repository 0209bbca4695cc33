"""Part `host`: versions, what the GPU is, and the peaks that it reaches."""

from __future__ import annotations

import platform
import shutil
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from benchmarks.gpu.findings import Check, Part, differing
from benchmarks.gpu.peaks import COPIED_BYTES, PRECISIONS, copy_bandwidth, matrix_tflops, torch_on_gpu
from benchmarks.gpu.room import Room
from benchmarks.report import Table
from impasto import __version__
from impasto.optimize.cuda_compilers import find_compiler
from impasto.runtime.gpu.cuda import CudaDevice, open_device
from impasto.runtime.gpu.protocol import Device

_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "pycuda", "torch")
_SMI = ("driver_version", "vbios_version", "power.limit", "clocks.max.sm", "clocks.max.memory", "ecc.mode.current",
        "persistence_mode", "utilization.gpu")  # fmt: skip
_ATTRIBUTES = ("MULTIPROCESSOR_COUNT", "L2_CACHE_SIZE", "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR", "CLOCK_RATE",
               "MEMORY_CLOCK_RATE", "GLOBAL_MEMORY_BUS_WIDTH")  # fmt: skip


def part(quick: bool) -> Part:
    """Describe the first GPU and measure its peaks."""
    found = Part("Host")
    versions = installed_versions()
    with open_device() as device:
        free, total = device.memory_info()
        gpu = {
            "name": device.name,
            "compute capability": "{}.{}".format(*device.compute_capability),
            "memory, GiB": f"{total / 2**30:.1f}, {free / 2**30:.1f} free",
            **_attributes(device),
            **_driver(0),
        }
        cuda = device.facts.driver_version
        versions["CUDA of the driver"] = f"{cuda // 1000}.{cuda % 1000 // 10}"
        found.checks.append(copied(device))
        bandwidth = copy_bandwidth(device, 1 << 16 if quick else COPIED_BYTES)
    peaks = {"copy": bandwidth}
    rows = [("copy within memory, read and written", f"{1e-9 * bandwidth:.0f} GB/s")]
    with found.attempt("peaks of matrix products"):
        torch_on_gpu()
        for precision in PRECISIONS:
            peaks[precision] = 1e12 * matrix_tflops(precision, 1024 if quick else 8192)
            rows.append((f"matrix product {precision}", f"{1e-12 * peaks[precision]:.0f} TFLOP/s"))
    found.body += [
        Table(("", "version"), tuple(versions.items())),
        Table(("", "GPU"), tuple(gpu.items())),
        "Peaks as measured, which the shares of the other parts refer to; products are PyTorch's of 8192² matrices.",
        Table(("", "peak"), tuple(rows)),
    ]
    found.data |= {"versions": versions, "gpu": gpu, "peaks": peaks}
    return found


def installed_versions() -> dict[str, str]:
    """Return what is installed, by name; packages that are not, as ``none``."""
    found = {"impasto": __version__, "python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    compiler = find_compiler()
    found["compiler of kernels"] = f"{compiler.name} {compiler.version}" if compiler else "none"
    return found


def copied(device: Device) -> Check:
    """Check that bytes arrive on the device, move there, and come back."""
    values = np.random.default_rng(0).integers(0, 256, (1 << 20) + 3, np.uint8)
    with Room(device) as room:
        origin, to = room.put(values), room.empty(values.shape, values.dtype)
        device.copy(to, origin, values.nbytes)
        return Check(
            "bytes to the device and back", differing(room.get(to, values.shape, values.dtype), values), 0, "bytes"
        )


def _attributes(device: CudaDevice) -> dict[str, str]:
    import pycuda.driver as cuda

    device.make_current()
    gpu = cuda.Device(0)
    found = {}
    for name in _ATTRIBUTES:
        attribute = getattr(cuda.device_attribute, name, None)
        if attribute is not None:
            with suppress(cuda.Error):  # a driver may be older than the name
                found[name.lower().replace("_", " ")] = str(gpu.get_attribute(attribute))
    return found


def _driver(index: int) -> dict[str, Any]:
    """Return what nvidia-smi tells of the GPU that CUDA counts so; nothing where it does not run."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    import pycuda.driver as cuda

    # nvidia-smi counts otherwise than CUDA does, and shows GPUs that this process may not.
    place = cuda.Device(index).pci_bus_id()
    query = [command, f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader", f"--id={place}"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    values = done.stdout.strip().split(", ")
    return dict(zip(_SMI, values, strict=True)) if done.returncode == 0 and len(values) == len(_SMI) else {}
