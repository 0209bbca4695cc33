"""TensorRT as it is found: absent, broken, of another version."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from impasto.errors import EngineError, LimitError, UnavailableError
from impasto.optimize.tensorrt_library import Messages, load, refusal


@pytest.mark.parametrize("version", ["10.4.0.26", "10.16.1.11", "11.0.0.1", "11.4.0.106"])
def test_supported_versions_are_found(pretend, version):
    pretend(version)
    assert load().__version__ == version


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0.26", "12.0.0.1", "", "unknown"])
def test_other_versions_are_refused_by_name(pretend, version):
    pretend(version)
    with pytest.raises(UnavailableError, match=f"TensorRT {version} is not supported: install one from 10.4 to 11.x"):
        load()


def test_a_module_that_only_has_the_name_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(UnavailableError, match="of no version"):
        load()


def test_where_it_is_absent_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnavailableError, match=r"not installed: pip install 'impasto\[gpu\]'"):
        load()


@pytest.mark.parametrize(
    "raises",
    [
        "raise ImportError('libnvinfer.so.11: cannot open shared object file')",
        "raise FileNotFoundError('Could not find: libnvinfer.so.11')",
        "import libnvinfer_so_11",
    ],
)
def test_libraries_that_cannot_be_loaded_are_named(monkeypatch, tmp_path, raises):
    (tmp_path / "tensorrt.py").write_text(raises)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(UnavailableError, match=r"libnvinfer.so.11.*LD_LIBRARY_PATH"):
        load()


def test_the_reason_is_the_last_error_or_else_the_last_warning():
    messages = Messages()
    assert messages.reason == "it gives no reason"
    messages.add("first", error=False)
    messages.add("a\n  warning", error=False)
    assert messages.reason == "a warning"
    messages.add("an error", error=True)
    messages.add("a later warning", error=False)
    assert messages.reason == "an error"
    messages.clear()
    assert messages.reason == "it gives no reason"


@pytest.mark.parametrize(
    "text",
    [
        "Error Code 2: OutOfMemory (no further information)",
        "Error Code 1: Cuda Runtime (out of memory)",
        "Requested amount of GPU memory (9 bytes) could not be allocated. There may not be enough free memory for it.",
        "Tactic Device request: 96MB Available: 48MB. Device memory is insufficient to use tactic.",
    ],
)
def test_a_lack_of_memory_is_known_by_tensorrts_words(text):
    messages = Messages()
    messages.add(text, error=True)
    assert isinstance(refusal(messages, "TensorRT did not", "try", EngineError), LimitError)


def test_other_refusals_keep_their_kind_reason_and_remedy():
    messages = Messages()
    messages.add("memory map is odd", error=True)
    error = refusal(messages, "TensorRT did not", "try again", EngineError)
    assert isinstance(error, EngineError)
    assert str(error) == "TensorRT did not (memory map is odd): try again"
