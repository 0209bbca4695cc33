"""An evaluation as one launch, where the device can make a CUDA graph of it."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from impasto.errors import DeviceError, LimitError
from impasto.runtime.gpu.replay import replay

CAPTURABLE, OTHER = SimpleNamespace(capturable=True), SimpleNamespace(capturable=False)


class Recorder:
    """A device whose captures are told apart from what they captured."""

    def __init__(self, error=None):
        self.error = error
        self.captured = []

    def capture(self, enqueue):
        self.captured.append(enqueue)
        if self.error is not None:
            raise self.error
        return "replay"


def enqueue():
    raise AssertionError("enqueued")


def test_what_can_be_captured_is(caplog):
    device = Recorder()
    assert replay(device, enqueue, iter([CAPTURABLE, CAPTURABLE])) == "replay"
    assert device.captured == [enqueue]
    assert caplog.records == []


def test_one_graph_that_cannot_be_captured_suffices_to_try_nothing(caplog):
    device = Recorder()
    assert replay(device, enqueue, [CAPTURABLE, OTHER]) is enqueue
    assert device.captured == []
    assert caplog.records == []


@pytest.mark.parametrize("kind", [DeviceError, LimitError])
def test_a_capture_that_fails_is_warned_of_and_done_without(caplog, kind):
    with caplog.at_level(logging.WARNING, "impasto"):
        assert replay(Recorder(kind("the GPU cannot: ask another")), enqueue, [CAPTURABLE]) is enqueue
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the GPU cannot: ask another" in caplog.text


def test_any_other_error_is_raised():
    with pytest.raises(KeyboardInterrupt):
        replay(Recorder(KeyboardInterrupt()), enqueue, [CAPTURABLE])
