"""What engines and kernels depend on of the GPU that they are compiled for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuFacts:
    """One NVIDIA GPU: its name as CUDA gives it, its compute capability, (9, 0) for sm_90, and its memory in bytes.

    ``driver_version`` is the newest CUDA that the driver runs, as `cuDriverGetVersion` gives it: 13020 for CUDA 13.2.
    """

    name: str
    compute_capability: tuple[int, int]
    total_memory: int
    driver_version: int

    def machine(self) -> dict[str, str]:
        """Return what an engine's key holds of the GPU; memory is left out, for it varies with the driver."""
        return {
            "gpu": self.name,
            "compute_capability": "{}.{}".format(*self.compute_capability),
            "cuda_driver": str(self.driver_version),
        }
