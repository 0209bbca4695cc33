"""Which backend a name stands for, and that none is ever replaced by another."""

from __future__ import annotations

import sys

import pytest

from impasto.errors import UnavailableError, UnknownNameError, UsageError
from impasto.runtime.backends.select import open_automatic, open_backend


@pytest.fixture
def exact_by_default():
    """What ``auto`` stands for is looked at here."""


def test_backends_are_opened_by_name_and_never_replaced():
    assert open_backend("onnxruntime").name == "onnxruntime"
    assert open_backend("torch").name == "torch"
    assert UnavailableError.exit_code == 3  # which the others end with where there is no GPU
    with pytest.raises(UnknownNameError, match="onnxruntime"):
        open_backend("onnxruntme")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("tensorrt", "impasto\\[gpu\\]"),
        ("cuda", "pip uninstall -y onnxruntime.*onnxruntime-gpu"),
        ("onnxruntime-cuda", "onnxruntime-gpu"),
        ("onnxruntime-tensorrt", "onnxruntime-gpu"),
        ("torch-cuda", "a build of torch for CUDA"),
    ],
)
def test_a_gpu_that_is_not_there_is_never_replaced_by_the_cpu(name, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UnavailableError, match=remedy):
        open_backend(name)


def test_auto_takes_the_first_that_can_run_and_says_why_not_the_others(monkeypatch):
    monkeypatch.setattr("impasto.runtime.backends.select.find_spec", lambda _: None)
    backend, passed = open_automatic()
    assert backend.name == "onnxruntime"
    assert passed == {
        "tensorrt": "tensorrt and pycuda not installed",
        "cuda": "pycuda not installed",
        "openvino": "openvino not installed",
    }
    with pytest.raises(UnavailableError, match=r"pycuda not installed.*onnxruntime has no precision 'fp16'"):
        open_backend("auto", precision="fp16")


def test_precisions_and_options_that_a_backend_does_not_have_are_refused():
    with pytest.raises(UnknownNameError, match="fp32"):
        open_backend("onnxruntime", precision="fp33")
    with pytest.raises(UsageError, match="onnxruntime has no precision 'bf16'"):
        open_backend("onnxruntime", precision="bf16")
    with pytest.raises(UsageError, match="engine options"):
        open_backend("onnxruntime", engine_options={"level": 5})


@pytest.mark.parametrize("name", ["auto", "tensorrt"])
def test_engine_options_are_never_ignored(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UnavailableError, match="TensorRT is not installed"):
        open_backend(name, engine_options={"level": 5})
    # What is wrong with them is told where there is no TensorRT, too.
    with pytest.raises(UsageError, match="choose among workspace, level, refit"):
        open_backend(name, engine_options={"levle": 5})
    with pytest.raises(UsageError, match="level 9"):
        open_backend(name, engine_options={"level": 9})
