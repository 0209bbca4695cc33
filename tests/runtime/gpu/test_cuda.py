"""`CudaDevice` by the real PyCUDA: over a stand-in driver, and on hosts that lack what it needs.

Needs PyCUDA built without a driver (IMPASTO_TEST_PYCUDA), CUDA's headers and g++.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from impasto.errors import UnavailableError
from impasto.runtime.gpu.cuda import open_device
from tests.emulation import driver
from tests.emulation.host import ROOT, compiler

CASES = Path(__file__).with_name("cuda_cases.py")
ASK = """
from impasto.errors import UnavailableError
from impasto.runtime.gpu.cuda import open_device
try:
    open_device()
except UnavailableError as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


@pytest.fixture
def pycuda():
    folder = driver.pycuda_folder()
    if folder is None:
        pytest.skip("IMPASTO_TEST_PYCUDA does not name a folder with PyCUDA; shared/tools/pycuda_bindings.py makes one")
    if compiler() is None or driver.cuda_headers() is None:
        pytest.skip("no g++ or no CUDA headers to compile the stand-in driver")
    return folder


def ask(pycuda, *libraries):
    """What `open_device` says where these folders' libraries are all that there is."""
    environment = os.environ | {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PYTHONPATH": f"{ROOT}:{pycuda / 'site'}",
    }
    return subprocess.run([sys.executable, "-c", ASK], env=environment, cwd=ROOT, capture_output=True, text=True)


def test_all_cases_hold_under_the_stand_in_driver(pycuda):
    done = driver.run(pycuda, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES))
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_a_host_whose_driver_finds_no_gpu_is_told_so(pycuda):
    done = ask(pycuda, pycuda / "lib")
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("no GPU that CUDA can use (cuInit failed: no CUDA-capable device is detected; ")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("driver_library", "remedy"),
    [(False, "PyCUDA finds no NVIDIA driver (libcuda.so.1"), (True, "PyCUDA was built by a CUDA toolkit newer than")],
    ids=["no driver", "a driver without what PyCUDA was built for"],
)
def test_a_host_without_a_driver_that_pycuda_can_use_is_told_so(pycuda, tmp_path, driver_library, remedy):
    (tmp_path / "libcurand.so.10").symlink_to(pycuda / "lib" / "libcurand.so.10")
    if driver_library:
        library = str(tmp_path / "libcuda.so.1")
        command = ["g++", "-shared", "-Wl,-soname,libcuda.so.1", "-o", library, "-x", "c++", "/dev/null"]
        subprocess.run(command, check=True)
    done = ask(pycuda, tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith(remedy)
    assert done.stdout.count("\n") == 1


def test_a_host_without_pycuda_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(UnavailableError, match=r"PyCUDA cannot be imported .*pip install 'impasto\[gpu\]'") as refusal:
        open_device()
    assert refusal.value.exit_code == 3
