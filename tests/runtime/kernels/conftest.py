"""Devices that run kernels on the host."""

from pathlib import Path

import pytest

from tests.emulation.host import HostDevice


@pytest.fixture
def device():
    device = HostDevice()
    yield device
    device.close()


@pytest.fixture
def turing():
    """Return a device of sm_75, and what loads kernels of turing.cu on it, which no device here would choose."""
    device = HostDevice(compute_capability=(7, 5))
    yield device, lambda entry: device.kernel("turing", entry, folder=Path(__file__).parent)
    device.close()
