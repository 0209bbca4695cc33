"""Painting from asyncio: the loop goes on, jobs wait for their turn, and cancelled ones end."""

from __future__ import annotations

import asyncio
import json
import threading

import numpy as np
import pytest

from impasto.errors import ImageError, LimitError, UsageError
from impasto.runtime.limits import Limits
from impasto.runtime.recipes import find_preset
from impasto.runtime.stylizer import Stylizer

LONG = 1_000_000


@pytest.fixture
def stylizer(shallow):
    preset = find_preset("pytorch").with_solver("adam").with_iterations(4)
    with Stylizer(preset, weights=shallow, cache=False, limits=Limits(max_iterations=None, max_evaluations=None)) as it:
        yield it


@pytest.fixture
def pair(picture):
    return picture(1, 24, 24), picture(2, 20, 22)


def test_it_paints_what_stylize_paints_and_tells_the_steps_in_the_loop(stylizer, pair):
    async def main():
        steps, threads = [], set()

        def each(step):
            steps.append(step.evaluation)
            threads.add(threading.current_thread())

        result = await stylizer.astylize(*pair, size=24, seed=3, init="noise", each=each)
        return result, steps, threads

    result, steps, threads = asyncio.run(main())
    expected = stylizer.stylize(*pair, size=24, seed=3, init="noise")
    np.testing.assert_array_equal(result.image, expected.image)
    assert steps == [point.evaluation for point in result.trace]
    assert threads == {threading.main_thread()}


def test_several_jobs_of_one_stylizer_wait_for_their_turn(stylizer, pair):
    async def main():
        jobs = [stylizer.astylize(*pair, size=24, seed=seed, init="noise") for seed in range(5)]
        return await asyncio.gather(*jobs)

    for seed, result in enumerate(asyncio.run(main())):
        np.testing.assert_array_equal(result.image, stylizer.stylize(*pair, size=24, seed=seed, init="noise").image)


def test_a_cancelled_job_has_ended_when_its_task_has(stylizer, pair):
    async def main():
        began = asyncio.Event()
        task = asyncio.create_task(stylizer.astylize(*pair, size=24, iterations=LONG, each=lambda _step: began.set()))
        waiting = asyncio.create_task(stylizer.astylize(*pair, size=24))
        await began.wait()
        assert stylizer.health()["painting"]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The next one has its turn, and is whole.
        return await waiting

    assert asyncio.run(main()).stop == "done"
    assert not stylizer.health()["painting"]


def test_a_job_that_waits_can_be_cancelled(stylizer, pair):
    async def main():
        began = asyncio.Event()
        first = asyncio.create_task(stylizer.astylize(*pair, size=24, iterations=LONG, each=lambda _step: began.set()))
        await began.wait()
        second = asyncio.create_task(stylizer.astylize(*pair, size=24, iterations=LONG))
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        return await asyncio.gather(first, second, return_exceptions=True)

    assert [type(end) for end in asyncio.run(main())] == [asyncio.CancelledError] * 2


def test_after_the_deadline_there_is_the_best_picture_so_far(stylizer, pair):
    stylizer.stylize(*pair, size=24)  # warm
    result = asyncio.run(stylizer.astylize(*pair, size=24, iterations=LONG, deadline=1.0))
    assert result.stop == "stopped"
    assert 1 <= len(result.trace) < LONG
    assert result.loss["total"] == pytest.approx(min(point.loss for point in result.trace), rel=1e-12)


def test_a_deadline_that_passes_before_the_turn_comes_is_told(stylizer, pair):
    async def main():
        began = asyncio.Event()
        first = asyncio.create_task(stylizer.astylize(*pair, size=24, iterations=LONG, each=lambda _step: began.set()))
        await began.wait()
        second = asyncio.create_task(stylizer.astylize(*pair, size=24, deadline=1e-3))
        await asyncio.sleep(0.05)
        first.cancel()
        return await asyncio.gather(first, second, return_exceptions=True)

    _, late = asyncio.run(main())
    assert isinstance(late, LimitError)
    assert "no picture within 0.001 s" in str(late)


def test_errors_arrive_in_the_task(stylizer, pair):
    with pytest.raises(ImageError, match=r"none\.png"):
        asyncio.run(stylizer.astylize("none.png", pair[1]))
    with pytest.raises(UsageError, match="deadline is 0"):
        asyncio.run(stylizer.astylize(*pair, deadline=0))
    assert asyncio.run(stylizer.astylize(*pair, size=24)).stop == "done"


def test_health_is_json_and_says_by_what_is_painted(stylizer):
    health = json.loads(json.dumps(stylizer.health(), allow_nan=False))
    assert (health["painting"], health["preset"], health["backend"]) == (False, "pytorch", "onnxruntime")
    assert health["weights"]["sha256"] == stylizer.weights.sha256
