"""What a user has without Impasto: `johnson` in plain eager PyTorch, float32 or bf16, with PyTorch's own L-BFGS."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch.nn.functional import mse_loss

from benchmarks.pictures import square
from benchmarks.task import Run, Task, answer, peak_bytes
from impasto.export.objective import Objective
from impasto.models.conventions import pixel_space
from impasto.models.locate import find_weights
from impasto.models.reference import Reference
from impasto.models.weights import Weights
from impasto.optimize.cpus import available_cpus
from impasto.runtime.problem import FloatArray
from impasto.runtime.solvers import LBFGS

_SEED = 0
"""The seed of the noise that a `Stylizer` starts from where none is given."""


class _Enough(Exception):
    pass


def paint(task: Task) -> Run:
    """Paint the task by ``torch.optim.LBFGS`` with its strong Wolfe line search and tolerances of zero."""
    imports = peak_bytes()
    weights = find_weights(task.weights)
    preset = task.preset.for_weights(weights)
    space = pixel_space(preset.objective.pixels)
    content, style = (
        torch.from_numpy(space.encode(square(name, task.size))[None]) for name in (task.content, task.style)
    )
    criterion = _Johnson(preset.objective, weights, content, style, task.precision == "bf16")
    noise = np.random.RandomState(_SEED).standard_normal((1, 3, task.size, task.size)) * preset.noise
    x = torch.from_numpy(noise.astype(np.float32)).requires_grad_()
    assert preset.init == "noise"
    assert isinstance(preset.solver, LBFGS)
    solver = torch.optim.LBFGS(
        [x],
        max_iter=preset.solver.iterations,
        max_eval=task.evaluations,
        history_size=preset.solver.history,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    entered: list[float] = []
    losses: list[float] = []
    lowest: tuple[float, FloatArray] = (math.inf, x.detach().numpy())

    def closure() -> torch.Tensor:
        nonlocal lowest
        entered.append(time.perf_counter())
        # The solver ends after max_eval only at the end of a line search.
        if len(losses) == task.evaluations:
            raise _Enough
        solver.zero_grad()
        loss: torch.Tensor = criterion(x)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        if task.iterate is not None and losses[-1] < lowest[0]:
            lowest = (losses[-1], x.detach().numpy().copy())
        return loss

    try:
        solver.step(closure)  # type: ignore[no-untyped-call]
        entered.append(time.perf_counter())
    except _Enough:
        pass
    if task.iterate is not None:
        np.save(task.iterate, lowest[1])
    return Run(np.diff(entered).tolist(), losses, peak_bytes(), imports)


class _Johnson(torch.nn.Module):
    """The losses of jcjohnson/neural-style, as they are written by whoever ports them.

    ``bf16`` has the network, and nothing else, in bf16 and in the layout that torch is quickest in then.
    """

    def __init__(
        self, objective: Objective, weights: Weights, content: torch.Tensor, style: torch.Tensor, bf16: bool
    ) -> None:
        super().__init__()
        self.objective = objective
        self.network = Reference(weights, objective.taps, dtype=torch.bfloat16 if bf16 else torch.float32)
        self.bf16 = bf16
        if bf16:
            self.network.to(memory_format=torch.channels_last)
        with torch.no_grad():
            of_content, of_style = self.features_of(content), self.features_of(style)
            self.features = {tap: of_content[tap] for tap in objective.content}
            self.grams = {tap: _gram(of_style[tap]) for tap in objective.style}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taps = self.features_of(x)
        loss = x.new_zeros(())
        for tap, weight in self.objective.content.items():
            loss = loss + weight * mse_loss(taps[tap], self.features[tap])
        for tap, weight in self.objective.style.items():
            loss = loss + weight * mse_loss(_gram(taps[tap]), self.grams[tap])
        return loss + self.objective.tv / 2 * (x.diff(dim=2).square().sum() + x.diff(dim=3).square().sum())

    def features_of(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.bf16:
            x = x.to(torch.bfloat16, memory_format=torch.channels_last)
        return {tap: features.float() for tap, features in self.network(x).items()}


def _gram(features: torch.Tensor) -> torch.Tensor:
    flat = features.flatten(2)[0]
    return flat @ flat.T / flat.numel()


if __name__ == "__main__":
    torch.set_num_threads(available_cpus())
    answer(paint)
