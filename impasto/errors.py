"""Everything that Impasto raises on purpose, in one tree.

Each error is one line that says what happened, with which value, and what would mend it. The command line
prints that line and exits with the class's ``exit_code``::

    ImpastoError                 1  base class; on its own, a defect of ours
    ├── UsageError               2  an option, a name or a combination that cannot work
    │   ├── UnknownNameError     2  a preset, backbone, tap, … that does not exist (lists the near ones)
    │   ├── MissingTapError      2  a tap that the backbone has, but these (partial) weights do not
    │   ├── OutputError          2  an output that cannot be written: no such folder, would overwrite, not writable
    │   └── DivergenceError      2  loss or gradient not finite, and smaller steps did not help
    ├── UnavailableError         3  a backend or a package that is not installed, or cannot run here
    │   ├── DeviceError          3  … a GPU that failed at work: the context is lost, a new one may do
    │   └── DownloadError        3  … a file that could not be fetched (no network, cut connection)
    ├── LimitError               4  the job is larger than its limits
    │   └── StorageError         4  no space left where a file is to be written
    ├── InputError               5  an input cannot be read, or is not what it says it is
    │   ├── ImageError           5  … a picture (truncated, too small for a tap, not a picture at all)
    │   ├── WeightsError         5  … a weights file (wrong shape, not finite, missing keys, wrong digest)
    │   ├── GraphError           5  … an ONNX graph
    │   │   └── UnsupportedOpError  5  … whose named node has no gradient rule
    │   ├── EngineError          5  … a cached engine that is damaged or foreign
    │   └── CheckpointError      5  … a checkpoint (truncated, not one at all, of another job)
    ├── BatchError               6  some pictures of a batch failed; the others are there
    └── Interrupted            130  stopped by the user; the best picture so far was written
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ImpastoError(Exception):
    """Base class of every error that Impasto raises on purpose."""

    exit_code = 1


class UsageError(ImpastoError):
    """An option, a name or a combination of them that cannot work."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is not among the known ones; the message lists the nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
        hint = f"did you mean {_listed(near)}?" if near else f"known: {_listed(known)}"
        super().__init__(f"unknown {kind} {name!r}: {hint}")


class MissingTapError(UsageError):
    """A tap of the backbone that the weights at hand do not reach."""


class OutputError(UsageError):
    """An output that cannot be written where it was asked for."""


class DivergenceError(UsageError):
    """The loss or its gradient stopped being finite, and smaller steps did not help."""


class UnavailableError(ImpastoError):
    """A backend or a package that is not installed or cannot run on this machine."""

    exit_code = 3


class DeviceError(UnavailableError):
    """A GPU that failed while at work."""


class DownloadError(UnavailableError):
    """A file that could not be fetched."""


class LimitError(ImpastoError):
    """A job that is larger than its limits."""

    exit_code = 4


class StorageError(LimitError):
    """No space left where a file is to be written."""


class InputError(ImpastoError):
    """An input that cannot be read or is not what it says it is."""

    exit_code = 5


class ImageError(InputError):
    """A picture that cannot be read or used."""


class WeightsError(InputError):
    """A weights file that cannot be read or does not hold what it should."""


class GraphError(InputError):
    """An ONNX graph that cannot be read, differentiated or run."""


class UnsupportedOpError(GraphError):
    """A node for whose operator there is no gradient rule."""


class EngineError(InputError):
    """A cached engine that is damaged or was made elsewhere."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read, or that another job wrote."""


class BatchError(ImpastoError):
    """Some pictures of a batch failed."""

    exit_code = 6


class Interrupted(ImpastoError):
    """Stopped by the user."""

    exit_code = 130


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
