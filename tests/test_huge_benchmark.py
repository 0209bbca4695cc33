"""The benchmark of large pictures paints what it says, in a process of its own, and reports what it found."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("onnxruntime")

from benchmarks import huge
from benchmarks.__main__ import BENCHMARKS, LONG
from benchmarks.huge import LIMIT, Case, Found
from benchmarks.machine import Machine
from impasto.errors import ImpastoError
from impasto.runtime.read_image import read_image

MACHINE = Machine("a CPU", ("avx2",), 2, "Linux x86_64", 0.1, {"impasto": "0"}, "2026-01-01")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks of other systems count otherwise")
def test_a_small_picture_is_painted_by_a_process_of_its_own(tmp_path) -> None:
    found = huge.measure(Case(96, 2_000_000_000), tmp_path)
    assert found.evaluations >= huge.EVALUATIONS
    # An interpreter without the runtime, or megabytes taken for bytes, would be beyond these.
    assert 10**7 < found.measured < 10**9
    assert 0.5 < found.predicted / found.measured < 2
    assert 0 < found.evaluation < found.seconds
    assert found.notes == []  # it fits as it is
    assert read_image(tmp_path / "result.tif").size == (96, 96)


def test_a_job_that_does_not_fit_fails_the_benchmark(tmp_path) -> None:
    with pytest.raises(ImpastoError, match="benchmark worker huge"):
        huge.measure(Case(96, 1_000_000), tmp_path)


def test_limits_are_in_proportion_and_the_last_is_the_promise() -> None:
    cases = huge.cases(quick=False)
    assert cases[-1] == Case(8192, LIMIT)
    assert [case.limit for case in cases] == sorted(case.limit for case in cases)
    pixels = [(case.limit - 350_000_000) / case.side**2 for case in cases]
    assert pixels == pytest.approx([pixels[0]] * len(cases), rel=1e-6)


@pytest.mark.parametrize("measured", [340_000_000, 360_000_000])
def test_a_peak_beyond_the_limit_is_not_kept(monkeypatch, measured) -> None:
    monkeypatch.setattr(huge, "measure", lambda *_: Found(330_000_000, measured, 60.0, 10.0, 3, ()))
    section = huge.section(MACHINE, True)
    (bound,) = section.bounds
    assert bound.kept == (measured <= 350_000_000)
    assert section.data["512"]["measured"] == measured
    assert f"{measured // 10**6}" in section.markdown()


def test_it_is_run_only_where_it_is_named() -> None:
    assert "huge" in LONG
    assert "huge" not in BENCHMARKS
