"""A run that is left at any trial with a state, and taken up from it, is the run that was never left."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from impasto.runtime.solvers import LBFGS, LBFGSB, SGD, Adam, Bounds, Evaluation, SolverState, TorchLBFGS

BOX = Bounds((-1.5,), (2.0,))
RUNS = {
    "lbfgs": LBFGS(14, first_step=0.1),
    "lbfgs, history wrapped": LBFGS(25, history=3, first_step=0.1),
    "lbfgs, one pair": LBFGS(8, history=1, first_step=0.1),
    # Every other first trial is far too long: searches of several trials, of which only the first has a state.
    "lbfgs, long searches": LBFGS(12, first_step=0.1, c1=0.4, c2=0.41),
    "torch-lbfgs": TorchLBFGS(max_iter=6),
    "torch-lbfgs, history wrapped": TorchLBFGS(history=3, max_iter=20),
    "torch-lbfgs, bounded": TorchLBFGS(bounds=BOX, max_iter=5, tolerance_change=0.0),
    "lbfgs-b": LBFGSB(rounds=6, maxfun=5),
    "lbfgs-b, bounded": LBFGSB(rounds=6, maxfun=5, bounds=BOX),
    "adam": Adam(20, 0.3),
    "adam, decay and bounds": Adam(20, 0.5, decay=((6, 0.2), (13, 0.05)), bounds=BOX, bounds_until=11),
    "sgd": SGD(20, 0.0003),
}
MOST = 45


@pytest.fixture(params=RUNS)
def solver(request):
    if request.param.startswith("lbfgs-b"):
        pytest.importorskip("scipy")
    return RUNS[request.param]


def kept(state):
    """A state as a checkpoint brings it back: numbers through JSON, arrays elsewhere in memory."""
    return SolverState(json.loads(json.dumps(state.numbers)), {name: a.copy() for name, a in state.arrays.items()})


def follow(trials, function, failing, first=0):
    """Drive to the end, or for `MOST` trials; the trials' points, iterations and states, from number ``first`` on."""
    found = []
    trial = next(trials)
    for number in range(first, MOST):
        found.append((trial.iteration, trial.x.copy(), None if trial.state is None else kept(trial.state())))
        loss, gradient = function(trial.x)
        try:
            trial = trials.send(Evaluation(math.inf if number in failing else loss, gradient))
        except StopIteration:
            break
    trials.close()
    return found


def same(found, wanted):
    assert [iteration for iteration, *_ in found] == [iteration for iteration, *_ in wanted]
    for (_, x, _), (_, expected, _) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("failing", [(), (2, 9, 10, 21)], ids=["", "with failures"])
@pytest.mark.parametrize("size", [2, 61])
def test_every_state_leads_on_to_the_same_trials(solver, rosenbrock, size, failing):
    start = np.random.default_rng(size).normal(scale=0.8, size=size).astype(np.float32)
    whole = follow(solver.minimise(start), rosenbrock, failing)
    states = [(number, state) for number, (_, _, state) in enumerate(whole) if state is not None]
    assert states
    for number, state in states:
        # The start counts no more: it may be anything of the size.
        resumed = follow(solver.minimise(np.zeros(size, np.float32), state), rosenbrock, failing, number)
        same(resumed, whole[number:])


def test_a_state_can_be_taken_after_a_state_was_resumed(solver, rosenbrock):
    """Twenty kills are no more than one: each state along the way leads to the same next one."""
    start = np.random.default_rng(5).normal(scale=0.8, size=31).astype(np.float32)
    whole = follow(solver.minimise(start), rosenbrock, ())
    number, state = next((n, state) for n, (_, _, state) in enumerate(whole) if state is not None)
    while True:
        rest = follow(solver.minimise(start, state), rosenbrock, (), number)
        same(rest, whole[number:])
        later = [(n, state) for n, (_, _, state) in enumerate(rest) if n > 0 and state is not None]
        if not later:
            break
        number, state = number + later[0][0], later[0][1]


def test_states_come_as_often_as_promised(solver, rosenbrock):
    start = np.random.default_rng(6).normal(scale=0.8, size=31).astype(np.float32)
    whole = follow(solver.minimise(start), rosenbrock, ())
    assert whole[0][2] is None
    iterations = [iteration for iteration, *_ in whole]
    if isinstance(solver, LBFGSB):
        # Rounds end a little after their budget of evaluations.
        assert 2 <= sum(state is not None for *_, state in whole) <= solver.rounds - 1
    elif isinstance(solver, LBFGS):
        for number in range(1, len(whole)):
            first = iterations[number] != iterations[number - 1]
            assert (whole[number][2] is not None) >= first
    else:
        assert all((state is not None) == (iteration > 0) for iteration, _, state in whole)


def test_some_searches_are_long_enough_to_have_trials_without_a_state(rosenbrock):
    start = np.random.default_rng(7).normal(scale=0.8, size=31).astype(np.float32)
    whole = follow(RUNS["lbfgs, long searches"].minimise(start), rosenbrock, ())
    assert sum(state is None for _, _, state in whole[1:]) >= 3


@pytest.mark.parametrize("history", [3, 20])
def test_only_the_pairs_in_use_are_in_a_state(rosenbrock, history):
    start = np.random.default_rng(8).normal(scale=0.8, size=31).astype(np.float32)
    whole = follow(LBFGS(30, history=history, first_step=0.1).minimise(start), rosenbrock, ())
    counts = [sum(a.shape == (31,) for a in state.arrays.values()) for *_, state in whole if state is not None]
    # Iterate, gradient and direction, and two vectors a pair.
    assert counts[0] == 3
    assert max(counts) == 3 + 2 * history
    assert all((count - 3) % 2 == 0 for count in counts)


def test_the_arrays_of_a_state_are_the_solver_s_own_memory(solver, rosenbrock):
    """Half of what a machine has may be in them: a state is no second copy."""
    trials = solver.minimise(np.random.default_rng(9).normal(scale=0.8, size=301).astype(np.float32))
    trial = next(trials)
    while trial.state is None:
        trial = trials.send(Evaluation(*rosenbrock(trial.x)))
    first, second = trial.state().arrays, trial.state().arrays
    assert all(np.shares_memory(first[name], second[name]) for name in first)
    trials.close()
