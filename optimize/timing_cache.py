"""TensorRT's timing cache: what earlier builds measured, so that later ones need not measure it again.

One file for each TensorRT version and GPU, in the engine cache's folder beside the engines. Builds read it without a
lock, for it is replaced as a whole, and add to what it holds by then under a lock. It only saves time: one that cannot
be read, trusted or written is done without.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from filelock import FileLock

from impasto.errors import EngineError
from impasto.optimize.cache import require_private
from impasto.optimize.gpus import GpuFacts
from impasto.optimize.keys import canonical_json

_logger = logging.getLogger("impasto")


class TimingCache:
    """The timing cache of one TensorRT version and GPU below ``root``, an engine cache's folder."""

    def __init__(self, root: Path, version: str, gpu: GpuFacts) -> None:
        name = hashlib.sha256(canonical_json({"tensorrt": version, **gpu.machine()})).hexdigest()[:16]
        self.path = root / f"timings-{name}.bin"

    def attach(self, config: Any) -> None:
        """Give a `tensorrt.IBuilderConfig` what is known; one that TensorRT refuses is begun anew, with a warning."""
        try:
            known = self._read()
            timings = config.create_timing_cache(known)
            if timings is not None and config.set_timing_cache(timings, False):
                return
            _logger.warning("timing cache %s is damaged or from elsewhere: begun anew", self.path)
        except (OSError, EngineError) as error:
            _logger.warning("timing cache not used: %s", error)
        config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep(self, config: Any) -> None:
        """Add what the build of this `tensorrt.IBuilderConfig` measured to the file."""
        measured = config.get_timing_cache()
        try:
            require_private(self.path.parent)
            with FileLock(self.path.with_suffix(".lock")):
                # Other processes may have added to the file since it was read.
                merged = config.create_timing_cache(self._read())
                if merged is None or not merged.combine(measured, False):
                    merged = measured
                fresh = self.path.with_suffix(".new")
                fresh.unlink(missing_ok=True)  # left by a killed process, or a link
                fresh.write_bytes(bytes(merged.serialize()))
                fresh.replace(self.path)
        except (OSError, NotImplementedError, EngineError) as error:  # filelock's word for a disk without locks
            _logger.warning("timing cache not kept: %s", error)

    def _read(self) -> bytes:
        """Return the file's bytes, none if there is no file, after the folder's owner and mode were checked."""
        require_private(self.path.parent)
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
