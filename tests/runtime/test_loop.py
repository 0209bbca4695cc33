from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import DivergenceError
from impasto.runtime.loop import Best, clock, descend
from impasto.runtime.problem import Losses
from impasto.runtime.solvers import LBFGS, LBFGSB, SGD, Adam, SolverState, TorchLBFGS

SHAPE = (1, 3, 4, 5)
CURVATURES = np.linspace(0.2, 1, 60, dtype=np.float32).reshape(SHAPE)
START = np.random.RandomState(1).standard_normal(SHAPE).astype(np.float32) * 5

# Each of them alone brings the bowl below a hundredth of where it starts, with room to spare.
SOLVERS = {
    "lbfgs": LBFGS(iterations=20),
    "torch-lbfgs": TorchLBFGS(),
    "lbfgs-b": LBFGSB(rounds=4, maxfun=15),
    "adam": Adam(iterations=80, learning_rate=0.3),
    "sgd": SGD(iterations=80, learning_rate=0.8),
}
BUDGET = 100


class Bowl:
    """½Σc·(x - 1)² in two terms; ``spoil`` maps the number of an evaluation, from 1, and its losses to others."""

    def __init__(self, spoil=lambda _, losses: losses):
        self.count = 0
        self._spoil = spoil

    def evaluate(self, image):
        self.count += 1
        return self._spoil(self.count, self.true(image))

    @staticmethod
    def true(image):
        assert image.shape == SHAPE
        assert image.dtype == np.float32
        offset = image - 1
        squares = 0.5 * CURVATURES.astype(np.float64) * offset.astype(np.float64) ** 2
        terms = {"content.a": float(squares[:, :, :2].sum()), "tv": float(squares[:, :, 2:].sum())}
        return Losses(terms, CURVATURES * offset)


def spoiled(losses, kind):
    match kind:
        case "nan":
            return Losses({"content.a": math.nan, "tv": 1.0}, losses.gradient)
        case "infinite":
            return Losses({"content.a": math.inf, "tv": 1.0}, losses.gradient)
        case "gradient":
            gradient = losses.gradient.copy()
            gradient[0, 1, 2, 3] = math.nan
            return Losses(losses.terms, gradient)
        case "exploded":
            return Losses({"content.a": 1e9, "tv": 1.0}, losses.gradient * 1e6)


def run(bowl, solver, best, **options):
    return list(descend(bowl, solver, best, max_evaluations=BUDGET, **options))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_keeps_the_best_iterate(solver):
    start = START.copy()
    best = Best(start)
    seen = run(Bowl(), solver, best)
    losses = [observation.loss for observation in seen]
    assert best.loss == min(losses)
    assert best.loss < 0.01 * losses[0]
    # The image kept is the one of that loss, and its terms add up to it.
    again = Bowl.true(best.image)
    assert again.total == best.loss
    assert again.terms == best.terms
    np.testing.assert_array_equal(start, START)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_counts_evaluations_and_iterations(solver):
    seen = run(Bowl(), solver, Best(START.copy()))
    assert [observation.evaluation for observation in seen] == list(range(1, len(seen) + 1))
    iterations = [observation.iteration for observation in seen]
    assert iterations[0] == 0
    assert iterations == sorted(iterations)
    lowest = math.inf
    for observation in seen:
        assert observation.improved == (observation.loss < lowest)
        lowest = min(lowest, observation.loss)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("budget", [1, 2, 7])
def test_stops_after_so_many_evaluations(solver, budget):
    bowl = Bowl()
    seen = list(descend(bowl, solver, Best(START.copy()), max_evaluations=budget))
    assert len(seen) == bowl.count == budget


@pytest.mark.parametrize("kind", ["nan", "infinite", "gradient", "exploded"])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("seed", [3, 4])
def test_recovers_from_failures_here_and_there(solver, kind, seed):
    # Never the first; few, because after each Adam and SGD take steps of half the length for good.
    failing = set(np.random.RandomState(seed).choice(np.arange(2, 16), 3, replace=False).tolist())
    bowl = Bowl(lambda count, losses: spoiled(losses, kind) if count in failing else losses)
    best = Best(START.copy())
    seen = run(bowl, solver, best)
    failed = [observation for observation in seen if observation.evaluation in failing]
    assert len(failed) == 3
    assert not any(observation.improved for observation in failed)
    good = [observation.loss for observation in seen if observation.evaluation not in failing]
    assert best.loss == min(good) == Bowl.true(best.image).total
    assert best.loss < 0.5 * good[0]
    assert any(observation.improved for observation in seen[max(failing) :])


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_gives_up_where_nothing_helps_and_keeps_the_best(solver):
    bowl = Bowl(lambda count, losses: losses if count <= 4 else spoiled(losses, "nan"))
    best, losses = Best(START.copy()), []
    with pytest.raises(DivergenceError, match="10 times in a row"):
        losses.extend(o.loss for o in descend(bowl, solver, best, max_evaluations=BUDGET))
    assert best.loss == min(losses[:4])
    assert Bowl.true(best.image).total == best.loss


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_a_start_that_fails_is_an_error_at_once(solver):
    bowl, best = Bowl(lambda _, losses: spoiled(losses, "nan")), Best(START.copy())
    with pytest.raises(DivergenceError, match="at the start"):
        run(bowl, solver, best)
    assert bowl.count == 1
    assert best.terms is None
    np.testing.assert_array_equal(best.image, START)


@pytest.mark.parametrize("solver", [Adam(iterations=30, learning_rate=0.3), LBFGS(iterations=5)], ids=["adam", "lbfgs"])
def test_leaving_an_optimum_is_no_explosion(solver):
    """At the optimum but for rounding, as where content and style are one picture, any step raises the loss a lot."""
    start = np.ones(SHAPE, np.float32)
    start[0, 0, 0, 0] += 1e-6
    ordinary = Bowl.true(np.zeros(SHAPE, np.float32)).total
    best = Best(start)
    run(Bowl(), solver, best, scale=ordinary)
    assert best.loss <= Bowl.true(start).total


def test_an_explosion_is_measured_by_the_first_loss_or_the_scale():
    def first_then(loss):
        return Bowl(lambda count, losses: losses if count == 1 else Losses({"tv": loss}, losses.gradient))

    first = Bowl.true(START).total
    solver = SGD(iterations=1, learning_rate=0.1)
    for loss, scale, failed in ((999 * first, 0.0, False), (1001 * first, 0.0, True), (1001 * first, 2 * first, False)):
        bowl, sent = first_then(loss), []
        list(descend(bowl, _Recording(solver, sent), Best(START.copy()), scale=scale))
        assert sent[1] == (math.inf if failed else loss)


class _Recording:
    """Passes a solver on, and keeps the losses that it is sent."""

    def __init__(self, solver, sent):
        self._solver, self._sent = solver, sent

    def minimise(self, start, resume=None):
        trials = self._solver.minimise(start, resume)
        trial = next(trials)
        while True:
            evaluation = yield trial
            self._sent.append(evaluation.loss)
            try:
                trial = trials.send(evaluation)
            except StopIteration:
                return


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_closing_it_stops_the_solver_and_keeps_the_best(solver):
    threads = threading.active_count()
    bowl, best = Bowl(), Best(START.copy())
    steps = descend(bowl, solver, best)
    losses = [next(steps).loss for _ in range(3)]
    steps.close()
    assert bowl.count == 3
    assert threading.active_count() == threads
    assert best.loss == min(losses)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_an_evaluation_raises_comes_through_and_leaves_the_best(solver, error):
    def spoil(count, losses):
        if count == 4:
            raise error
        return losses

    threads = threading.active_count()
    best, losses = Best(START.copy()), []
    with pytest.raises(error):
        losses.extend(observation.loss for observation in descend(Bowl(spoil), solver, best))
    assert len(losses) == 3
    assert best.loss == min(losses) == Bowl.true(best.image).total
    assert threading.active_count() == threads


def test_the_clock_runs_forward_from_zero():
    seconds = clock()
    first = seconds()
    assert 0 <= first <= seconds() < 60


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_a_resumed_loop_sees_what_the_first_one_went_on_to_see(solver):
    """Also that evaluation 30 exploded, by the measure of a first one that the resumed loop has not made."""

    def bowl(offset=0):
        return Bowl(lambda count, losses: spoiled(losses, "exploded") if count + offset == 30 else losses)

    budget = 40
    whole, best = [], Best(START.copy())
    saved = []
    for seen in descend(bowl(), solver, best, max_evaluations=budget):
        whole.append(seen)
        if seen.state is not None:
            state = seen.state()
            arrays = {name: array.copy() for name, array in state.solver.arrays.items()}
            state = replace(state, solver=SolverState(dict(state.solver.numbers), arrays))
            saved.append((state, Best(best.image.copy(), best.loss, best.terms)))
    assert saved
    facts = [replace(seen, state=None) for seen in whole]
    for state, then in saved:
        # The evaluation that was observed last is made again, and not told of.
        again = descend(bowl(state.evaluation - 1), solver, then, max_evaluations=budget, resume=state)
        assert [replace(seen, state=None) for seen in again] == facts[state.evaluation :]
        assert then.loss == best.loss
        np.testing.assert_array_equal(then.image, best.image)


def test_the_clock_counts_what_went_before():
    assert 100 <= clock(100.0)() < 160
