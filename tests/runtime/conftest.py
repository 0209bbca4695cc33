"""The filter bank, drawn once a run."""

from __future__ import annotations

import pytest

from impasto.models.random_weights import filterbank_weights
from impasto.models.weights import Weights


@pytest.fixture(scope="session")
def bank() -> Weights:
    """The filter bank of seed 0."""
    return filterbank_weights()
