"""What L-BFGS costs beside the evaluations: ``python -m benchmarks.solvers``, from the repository's root.

Prints, for a 512×512 picture and several history lengths, the milliseconds between the end of one evaluation and the
start of the next once the history is full (p20/p50/p80 over 20 iterations), of `impasto.runtime.solvers.LBFGS` and of
torch.optim.LBFGS with its strong Wolfe line search, in one run on the same function.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import numpy as np
import torch

from impasto.models.conventions import FloatArray
from impasto.runtime.solvers import LBFGS, drive

SIZE = 3 * 512 * 512
HISTORIES = (20, 100)
COUNTED = 20


class Clocked:
    """An ill-conditioned quadratic, cheap to evaluate, that records the time spent between its evaluations."""

    def __init__(self) -> None:
        stream = np.random.default_rng(0)
        self._curvatures = np.geomspace(1e-5, 1, SIZE).astype(np.float32)
        self.start = stream.standard_normal(SIZE).astype(np.float32)
        self.gaps: list[float] = []
        self._left = 0.0

    def __call__(self, x: FloatArray) -> tuple[float, FloatArray]:
        """Return loss and gradient at a flat x."""
        if self._left:
            self.gaps.append(time.perf_counter() - self._left)
        gradient = self._curvatures * x
        loss = 0.5 * float(gradient @ x)
        self._left = time.perf_counter()
        return loss, gradient


def ours(function: Clocked, history: int) -> None:
    """Run our solver until the gaps after the full history are enough."""
    drive(LBFGS(10_000, history=history), function.start, lambda x: function(x), history + COUNTED + 2)


def torchs(function: Clocked, history: int) -> None:
    """Run torch's."""
    x = torch.from_numpy(function.start.copy()).requires_grad_()

    def closure() -> float:
        loss, gradient = function(x.detach().numpy())
        x.grad = torch.from_numpy(gradient)
        return loss

    evaluations = history + COUNTED + 2
    torch.optim.LBFGS(
        [x],
        max_iter=evaluations,
        max_eval=evaluations,
        history_size=history,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    ).step(closure)


def percentiles(run: Callable[[Clocked, int], None], history: int) -> tuple[float, float, float]:
    """Return the p20, p50 and p80 of the last gaps, in milliseconds."""
    function = Clocked()
    run(function, history)
    p20, p50, p80 = np.percentile(function.gaps[-COUNTED:], (20, 50, 80)) * 1e3
    return float(p20), float(p50), float(p80)


def main() -> None:
    """Print the table."""
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} torch threads")
    print(f"numpy {np.__version__}, torch {torch.__version__}; n = {SIZE}; ms beside one evaluation, p20/p50/p80\n")
    print(f"{'history':>7}  {'impasto':>20}  {'torch':>20}  {'ratio':>5}  of 900 ms")
    for history in HISTORIES:
        mine, other = percentiles(ours, history), percentiles(torchs, history)
        columns = ["/".join(f"{value:.1f}" for value in row) for row in (mine, other)]
        print(f"{history:7}  {columns[0]:>20}  {columns[1]:>20}  {mine[1] / other[1]:5.2f}  {mine[1] / 9:.1f} %")


if __name__ == "__main__":
    main()
