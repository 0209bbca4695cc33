"""Engines that no process on this machine, as it is now, would use: of other versions, or of other hardware."""

from __future__ import annotations

import importlib

from impasto.optimize.keys import EngineKey, cpu

_PACKAGES = ("impasto", "onnxruntime", "openvino", "tensorrt")
"""What keys name with the ``__version__`` of the module of that name; other versions are not compared."""


def foreign(key: EngineKey | None) -> str | None:
    """Return why an engine is of no use here, in a few words, or None where nothing is known against it.

    None for a key stands for one that this version cannot read. Of an engine's machine only a CPU is compared: GPUs
    come and go with the environment (CUDA_VISIBLE_DEVICES), and an engine waits for its own.
    """
    if key is None:
        return "unreadable"
    for name in _PACKAGES:
        theirs = key.versions.get(name)
        if theirs is not None and theirs != _installed(name):
            return f"{name} {theirs}, here {_installed(name) or 'none'}"
    if set(key.machine) == set(cpu()) and key.machine != cpu():
        return f"CPU {key.machine['model']}"
    return None


def _installed(name: str) -> str | None:
    try:
        return getattr(importlib.import_module(name), "__version__", None)
    except (ImportError, OSError):  # TensorRT without its libraries
        return None
