"""PyTorch's side of the loop: `johnson` by autograd and torch.optim.LBFGS on the GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.gpu.johnson import Johnson, rounding
from impasto.runtime.gpu.gradient_scale import GradientScale
from impasto.runtime.problem import FloatArray, Problem
from impasto.runtime.recipes import JOHNSON
from impasto.runtime.solvers import LBFGS


class _Enough(Exception):
    pass


def eager(problem: Problem, start: FloatArray, device: str = "cuda") -> Callable[[int], list[float]]:
    """Return a descent in eager float32, whose products may be rounded to TensorFloat-32."""
    return _descent(Johnson(problem, "tf32", device), start, device)


def compiled(problem: Problem, start: FloatArray, device: str = "cuda") -> Callable[[int], list[float]]:
    """Return a descent with the network in float16, features last in channels, all of it by torch.compile."""
    model = Johnson(problem, "fp16", device, half_grams=True).to(memory_format=torch.channels_last)
    return _descent(torch.compile(model), start, device, half=True)


def _descent(
    model: Callable[[torch.Tensor], torch.Tensor], start: FloatArray, device: str, *, half: bool = False
) -> Callable[[int], list[float]]:
    assert isinstance(JOHNSON.solver, LBFGS)
    history = JOHNSON.solver.history
    scale = _loss_scale(model, start, device) if half else 1.0

    def descend(evaluations: int) -> list[float]:
        x = torch.from_numpy(start).to(device).requires_grad_()
        solver = torch.optim.LBFGS(
            [x],
            max_iter=evaluations,
            max_eval=evaluations,
            history_size=history,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
        entered: list[float] = []

        def closure() -> torch.Tensor:
            entered.append(time.perf_counter())
            # The solver looks for max_eval only at the end of a line search.
            if len(entered) > evaluations:
                raise _Enough
            solver.zero_grad()
            loss = model(x).sum()
            (loss * scale).backward()
            if half:
                assert x.grad is not None
                x.grad /= scale
            loss.item()  # as every loop that shows its loss waits
            return loss

        with rounding(tf32=True):
            try:
                while len(entered) <= evaluations:
                    solver.step(closure)
            except _Enough:
                pass
        if device == "cuda":
            torch.cuda.empty_cache()  # what ours is to have next
        seconds: list[float] = np.diff(entered).tolist()
        return seconds

    return descend


def _loss_scale(model: Callable[[torch.Tensor], torch.Tensor], start: FloatArray, device: str) -> float:
    """Return the power of two that keeps float16's cotangents in range, found at the start."""
    x = torch.from_numpy(start).to(device).requires_grad_()
    scale = GradientScale()

    def largest() -> float:
        x.grad = None
        (model(x).sum() * scale.value).backward()
        assert x.grad is not None
        return float(x.grad.abs().max())

    scale.find(largest)
    return scale.value
