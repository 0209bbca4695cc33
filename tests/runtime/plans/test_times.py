"""Which plan was faster, remembered between processes."""

from __future__ import annotations

import pytest

from impasto.runtime.plans.times import PlanTimes

PLANS = ("fused", "sliced")
PROBLEM = ("tensorrt", "fp16", (512, 512))


def test_the_faster_plan_is_known_once_both_were_timed(tmp_path):
    times = PlanTimes(tmp_path / "plans.json")
    assert times.fastest(PROBLEM, PLANS) is None
    times.record(PROBLEM, "sliced", 0.020)
    assert times.fastest(PROBLEM, PLANS) is None
    times.record(PROBLEM, "fused", 0.015)
    assert times.fastest(PROBLEM, PLANS) == "fused"
    times.record(PROBLEM, "fused", 0.025)  # the last measurement counts
    assert times.fastest(PROBLEM, PLANS) == "sliced"
    assert times.fastest(("tensorrt", "fp32", (512, 512)), PLANS) is None


def test_another_process_knows_it_too(tmp_path):
    times = PlanTimes(tmp_path / "plans.json")
    times.record(PROBLEM, "sliced", 2.0)
    times.record(PROBLEM, "fused", 1.0)
    assert PlanTimes(tmp_path / "plans.json").fastest(PROBLEM, PLANS) == "fused"


def test_processes_lose_nothing_of_each_others(tmp_path):
    first, second = PlanTimes(tmp_path / "plans.json"), PlanTimes(tmp_path / "plans.json")
    first.record(PROBLEM, "sliced", 2.0)
    second.record(PROBLEM, "fused", 1.0)
    first.record("another", "sliced", 3.0)
    for times in (first, PlanTimes(tmp_path / "plans.json")):
        assert times.fastest(PROBLEM, PLANS) == "fused"


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b'{"a": {"fused": "quick"}}', b"\xff", b'{"a": 3}'])
def test_a_damaged_file_is_as_good_as_none(tmp_path, content):
    path = tmp_path / "plans.json"
    path.write_bytes(content)
    times = PlanTimes(path)
    assert times.fastest(PROBLEM, PLANS) is None
    times.record(PROBLEM, "sliced", 1.0)
    times.record(PROBLEM, "fused", 2.0)
    assert PlanTimes(path).fastest(PROBLEM, PLANS) == "sliced"


def test_a_folder_that_cannot_be_written_fails_no_job(tmp_path):
    times = PlanTimes(tmp_path / "missing" / "plans.json")
    times.record(PROBLEM, "sliced", 1.0)
    times.record(PROBLEM, "fused", 2.0)
    assert times.fastest(PROBLEM, PLANS) == "sliced"
