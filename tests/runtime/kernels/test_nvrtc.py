"""Every kernel compiled by NVRTC, which needs neither GPU nor driver: 12 and 13, where pip's packages of them are.

They are looked for among what is installed and in IMPASTO_TEST_NVRTC, a folder that this filled::

    pip install --target <folder> nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-nvcc-cu12 \\
        nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from impasto.optimize.cubins import KERNELS, sources
from impasto.optimize.cuda_compilers import Nvrtc
from tests.emulation.host import compiler, entry_points

FOLDER = os.environ.get("IMPASTO_TEST_NVRTC")
ARCHITECTURES = (75, 80, 120)
"""The oldest, the first whose tensor cores know bfloat16, and the newest: sources tell no others apart."""


class Strict(Nvrtc):
    """NVRTC whose warnings are errors; it has no option for that."""

    def _read(self, program, what):
        if what != "ProgramLog":
            log = super()._read(program, "ProgramLog").rstrip(b"\0").decode()
            assert not log.strip(), log
        return super()._read(program, what)


def libraries():
    """The paths of NVRTC's libraries, by major version."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations if spec else None) or []]
    roots += [Path(FOLDER) / "nvidia"] if FOLDER else []
    return {path.suffix[1:]: path for root in roots for path in root.glob("*/lib/libnvrtc.so.1[23]")}


@pytest.fixture(params=["12", "13"], scope="module")
def nvrtc(request):
    path = libraries().get(request.param)
    if path is None:
        pytest.skip(f"no NVRTC {request.param} among pip's packages; IMPASTO_TEST_NVRTC may name a folder of them")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, *([FOLDER] if FOLDER else [])])  # for the headers
        yield Strict(str(path))


@pytest.mark.parametrize("source", sources())
def test_every_kernel_compiles_without_warnings(nvrtc, source):
    path = KERNELS / f"{source}.cu"
    entries = entry_points(path) if compiler() else []
    for architecture in ARCHITECTURES:
        cubin = nvrtc.compile(path, f"sm_{architecture}")
        assert cubin.startswith(b"\x7fELF")
        missing = [entry for entry in entries if b".text." + entry.encode() + b"\0" not in cubin]
        assert not [entry for entry in missing if architecture >= 80 or not entry.endswith("_bf16")]
