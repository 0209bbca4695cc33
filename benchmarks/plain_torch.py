"""What a user has without Impasto: `johnson` in plain PyTorch, float32 or bf16, with PyTorch's own L-BFGS."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import mse_loss

from benchmarks.closure import Closure
from benchmarks.pictures import square
from benchmarks.task import Run, Task, answer, peak_bytes
from impasto.export.objective import Objective
from impasto.models.conventions import pixel_space
from impasto.models.layers import Conv, Layer, Pool, Relu
from impasto.models.locate import find_weights
from impasto.models.weights import Weights
from impasto.optimize.cpus import available_cpus
from impasto.runtime.presets import Preset
from impasto.runtime.solvers import LBFGS

COMPILED = "torch.compile"
"""The backend of a task whose loss is compiled; any other is eager."""

_SEED = 0
"""The seed of the noise that a `Stylizer` starts from where none is given."""


def paint(task: Task) -> Run:
    """Paint the task by ``torch.optim.LBFGS`` with its strong Wolfe line search and tolerances of zero."""
    imports = peak_bytes()
    weights = find_weights(task.weights)
    preset = task.preset.for_weights(weights)
    content, style = encoded(task, preset)
    johnson = _Johnson(preset.objective, weights, content, style, task.precision == "bf16")
    criterion = torch.compile(johnson) if task.backend == COMPILED else johnson
    x = start(task, preset)
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

    def evaluate() -> torch.Tensor:
        solver.zero_grad()
        loss: torch.Tensor = criterion(x)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return Closure(task, x, evaluate).run(solver.step, imports)


def encoded(task: Task, preset: Preset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return content and style picture, (1, 3, size, size) in the preset's pixel space."""
    space = pixel_space(preset.objective.pixels)
    content, style = (space.encode(square(name, task.size))[None] for name in (task.content, task.style))
    return torch.from_numpy(content), torch.from_numpy(style)


def start(task: Task, preset: Preset) -> torch.Tensor:
    """Return the noise that a `Stylizer` starts from, to be descended from."""
    assert preset.init == "noise"
    noise = np.random.RandomState(_SEED).standard_normal((1, 3, task.size, task.size)) * preset.noise
    return torch.from_numpy(noise.astype(np.float32)).requires_grad_()


class _Johnson(torch.nn.Module):
    """The losses of jcjohnson/neural-style, as they are written by whoever ports them.

    ``bf16`` has the network, and nothing else, in bf16 and in the layout that torch is quickest in then.
    """

    def __init__(
        self, objective: Objective, weights: Weights, content: torch.Tensor, style: torch.Tensor, bf16: bool
    ) -> None:
        super().__init__()
        self.objective = objective
        self.layers = torch.nn.ModuleDict(
            {layer.name: module(layer, weights) for layer in weights.backbone.needed(objective.taps)}
        )
        self.layers.requires_grad_(False)
        self.bf16 = bf16
        if bf16:
            self.layers.to(torch.bfloat16, memory_format=torch.channels_last)
        with torch.no_grad():
            of_content, of_style = self.features_of(content), self.features_of(style)
            self.features = {tap: of_content[tap] for tap in objective.content}
            self.grams = {tap: gram(of_style[tap]) for tap in objective.style}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taps = self.features_of(x)
        loss = x.new_zeros(())
        for tap, weight in self.objective.content.items():
            loss = loss + weight * mse_loss(taps[tap], self.features[tap])
        for tap, weight in self.objective.style.items():
            loss = loss + weight * mse_loss(gram(taps[tap]), self.grams[tap])
        return loss + total_variation(self.objective, x)

    def features_of(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.bf16:
            x = x.to(torch.bfloat16, memory_format=torch.channels_last)
        found = {}
        for name, layer in self.layers.items():
            x = layer(x)
            if name in self.objective.taps:
                found[name] = x.float()
        return found


def module(layer: Layer, weights: Weights) -> torch.nn.Module:
    """Return a layer of VGG as torch has it; raise `TypeError` for another network's."""
    match layer:
        case Conv():
            conv = torch.nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel, padding=layer.kernel // 2)
            conv.weight.data, conv.bias.data = (
                torch.from_numpy(weights.tensors[name].copy()) for name in layer.tensors()
            )
            return conv
        case Relu():
            return torch.nn.ReLU()
        case Pool():
            return torch.nn.MaxPool2d(2)
    raise TypeError(f"VGG has no {layer}")


def gram(features: torch.Tensor) -> torch.Tensor:
    """Return the Gram matrix over the number of elements, (C, C)."""
    flat = features.flatten(2)[0]
    return flat @ flat.T / flat.numel()


def total_variation(objective: Objective, x: torch.Tensor) -> torch.Tensor:
    """Return the objective's term of the picture itself."""
    return objective.tv / 2 * (x.diff(dim=2).square().sum() + x.diff(dim=3).square().sum())


if __name__ == "__main__":
    torch.set_num_threads(available_cpus())
    answer(paint)
