from __future__ import annotations

import gc
import threading

import pytest

from impasto.runtime.solvers.callback import ask_back


def test_questions_and_answers_come_in_order():
    heard = []

    def work(ask):
        for k in range(5):
            heard.append(ask(k))

    generator = ask_back(work)
    asked = [next(generator)]
    while len(asked) < 5:
        asked.append(generator.send(10 * asked[-1]))
    with pytest.raises(StopIteration):
        generator.send(40)
    assert asked == [0, 1, 2, 3, 4]
    assert heard == [0, 10, 20, 30, 40]


def test_what_the_work_raises_is_raised_to_the_asker():
    def work(ask):
        raise ValueError(f"heard {ask(1)}")

    generator = ask_back(work)
    next(generator)
    with pytest.raises(ValueError, match="heard 7"):
        generator.send(7)


@pytest.mark.parametrize("collected", [False, True])
def test_stopping_unwinds_the_work(collected):
    unwound = threading.Event()

    def work(ask):
        try:
            while True:
                try:
                    ask(0)
                except Exception:  # what a library in between might do
                    pytest.fail("the stop must not look like an ordinary error")
        finally:
            unwound.set()

    before = threading.active_count()
    generator = ask_back(work)
    next(generator)
    assert threading.active_count() == before + 1
    if collected:
        del generator
        gc.collect()
    else:
        generator.close()
    assert unwound.is_set()
    assert threading.active_count() == before


def test_one_side_runs_at_a_time():
    running = []

    def work(ask):
        for _ in range(50):
            running.append("worker")
            ask(None)
            running.append("worker")

    generator = ask_back(work)
    for _ in generator:
        running.append("owner")
    # Each turn of the owner lies between the worker's question and its going on.
    assert running == ["worker", "owner", "worker"] * 50
