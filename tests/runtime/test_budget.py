"""Memory shared out among workers: never more than there is, and nobody waits for ever."""

from __future__ import annotations

import random
import threading

import pytest

from impasto.runtime.budget import Budget


def test_reservations_are_replaced_and_given_back():
    budget = Budget(100)
    budget.reserve("a", 60)
    budget.reserve("b", 40)
    assert budget.reserved == 100
    budget.reserve("a", 10)
    assert budget.reserved == 50
    budget.give_back("a")
    budget.give_back("a")
    assert budget.reserved == 40


def test_where_nobody_works_a_job_of_any_size_may_begin():
    budget = Budget(100)
    budget.reserve("a", 1000)
    assert budget.reserved == 1000


def test_without_a_total_all_may():
    budget = Budget(None)
    for worker in range(9):
        budget.reserve(worker, 10**12)
    assert budget.reserved == 9 * 10**12


def test_who_rests_stays_warm_until_the_room_is_needed():
    budget, left = Budget(100), []
    for worker in "abc":
        budget.reserve(worker, 30)
        budget.rest(worker, lambda worker=worker: left.append(worker))
    budget.reserve("a", 35)  # of his own room and what is free
    assert left == []
    budget.reserve("d", 35)
    assert len(left) == 1
    assert "a" not in left  # he works
    assert budget.reserved == 35 + 30 + 35


def test_who_works_is_waited_for():
    budget, left = Budget(100), []
    budget.reserve("a", 50)
    waiter = threading.Thread(target=budget.reserve, args=("b", 51))
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    budget.rest("a", lambda: left.append("a"))
    waiter.join(60)
    assert (budget.reserved, left) == (51, ["a"])


@pytest.mark.parametrize("seed", range(5))
def test_many_workers_never_take_more_than_there_is_and_all_end(seed):
    total, stream = 100, random.Random(seed)
    budget, door = Budget(total), threading.Lock()
    held, over = {}, []

    def work(worker, sizes):
        for size in sizes:
            with door:
                budget.reserve(worker, size)
                held[worker] = size
                if sum(held.values()) > total and len(held) > 1:
                    over.append(dict(held))
            budget.rest(worker, lambda: held.pop(worker))
        budget.give_back(worker)
        held.pop(worker, None)

    sizes = {worker: [stream.randint(1, 130) for _ in range(40)] for worker in range(6)}
    threads = [threading.Thread(target=work, args=each) for each in sizes.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert over == []
    assert budget.reserved == 0
