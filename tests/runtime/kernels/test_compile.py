"""Every kernel compiled for every architecture, where there is nvcc."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.emulation.host import KERNELS, ROOT

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
SOURCES = sorted(KERNELS.glob("*.cu"))
FLAGS = ["-std=c++17", "-Werror", "all-warnings", "-Xptxas", "-v", "--fatbin"]
NVCC = shutil.which("nvcc")
_FIGURES = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'"
    r".*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers(?:[^\n]*?, (\d+) bytes smem)?",
    re.DOTALL,
)
_NO_BFLOAT16_TENSOR_CORES = {"gram_wide_bf16", "gram_vjp_wide_bf16"}

sources = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def test_there_are_kernels():
    assert {"gram", "gram_vjp", "tv", "solver", "image"} <= {source.stem for source in SOURCES}


def figures(source):
    """Compile and return (kernel, architecture) → (stack, spilt, registers, shared memory), once for every change."""
    files = [source, *sorted(KERNELS.glob("*.cuh")), Path(__file__)]
    version = subprocess.run([NVCC, "--version"], check=True, capture_output=True).stdout
    digest = hashlib.sha256(version + b"\0".join(file.read_bytes() for file in files)).hexdigest()
    report = ROOT / "build" / "nvcc" / f"{source.stem}-{digest[:16]}.txt"
    if not report.exists():
        report.parent.mkdir(parents=True, exist_ok=True)
        targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
        binary = report.with_suffix(".fatbin")
        command = [NVCC, *FLAGS, "--threads=0", *targets, "-o", str(binary), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        binary.unlink()
        unfinished = report.with_suffix(".part")
        unfinished.write_text(done.stdout + done.stderr)
        unfinished.replace(report)
    return {
        (name, int(architecture)): (int(stack), int(stores) + int(loads), int(registers), int(shared or 0))
        for name, architecture, stack, stores, loads, registers, shared in _FIGURES.findall(report.read_text())
    }


@pytest.mark.skipif(NVCC is None, reason="no nvcc to compile kernels")
@sources
def test_every_kernel_compiles_for_every_architecture_without_warnings_and_with_its_arrays_in_registers(source):
    found = figures(source)
    names = {name for name, _ in found}
    assert names
    for name in names:
        wanted = ARCHITECTURES[1:] if name in _NO_BFLOAT16_TENSOR_CORES else ARCHITECTURES
        assert sorted(number for other, number in found if other == name) == list(wanted)
    # An array that is indexed at run time, or does not fit, takes a hundred bytes of local memory and more. nvcc 13.0
    # puts one number of two kernels there, for some architectures, by choice: they use far fewer registers than 255.
    assert {key: spilt for key, (_, spilt, _, _) in found.items() if spilt > 16} == {}
    # Blocks have at most 48 KB of static shared memory, and 65536 registers.
    assert {key: shared for key, (_, _, _, shared) in found.items() if shared > 48 * 1024} == {}
    assert {key: registers for key, (_, _, registers, _) in found.items() if registers > 255} == {}


@sources
def test_no_kernel_adds_floats_atomically_or_asks_for_dynamic_shared_memory(source):
    text = "".join(file.read_text() for file in (source, *KERNELS.glob("*.cuh")))
    assert "atomicAdd" not in text
    assert not re.search(r"extern\s+__shared__", text)
