import subprocess
import sys
from pathlib import Path

import pytest

import impasto.models

ROOT = Path(__file__).parents[2]


def test_all_names_are_there():
    assert all(hasattr(impasto.models, name) for name in impasto.models.__all__)


def test_importing_needs_nothing_heavy():
    script = (
        "import sys, impasto.models, impasto.models.fetch;"
        "heavy = {'torch', 'h5py', 'scipy', 'onnx', 'onnxruntime', 'PIL', 'safetensors', 'urllib.request'};"
        "print(*heavy & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []


def test_the_reference_names_its_extra_where_torch_is_missing(monkeypatch):
    from impasto.errors import UnavailableError

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "impasto.models.reference", raising=False)
    with pytest.raises(UnavailableError, match=r"pip install 'impasto\[reference\]'"):
        import impasto.models.reference  # noqa: F401
