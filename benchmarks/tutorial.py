"""The loop of PyTorch's neural-style tutorial, and of the many programs that grew from it, on `johnson`'s terms.

The network is an `nn.Sequential` into which loss modules are put that pass their input on, and ``LBFGS`` has its
defaults: steps of length 1 without a line search, 20 iterations a call. The terms are `johnson`'s, and the picture
starts from its noise and is not clamped, so that programs do the same arithmetic and descend the same loss.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import mse_loss

from benchmarks.closure import Closure
from benchmarks.plain_torch import encoded, gram, module, start, total_variation
from benchmarks.task import Run, Task, answer, peak_bytes
from impasto.export.objective import Objective
from impasto.models.locate import find_weights
from impasto.models.weights import Weights
from impasto.optimize.cpus import available_cpus


def paint(task: Task) -> Run:
    """Paint the task."""
    imports = peak_bytes()
    weights = find_weights(task.weights)
    preset = task.preset.for_weights(weights)
    objective = preset.objective
    model, contents, styles = _model(objective, weights, *encoded(task, preset))
    x = start(task, preset)
    model.eval()
    model.requires_grad_(False)
    solver = torch.optim.LBFGS([x])

    def evaluate() -> torch.Tensor:
        solver.zero_grad()
        model(x)
        loss = total_variation(objective, x)
        for tap, content in contents.items():
            loss = loss + objective.content[tap] * content.loss
        for tap, style in styles.items():
            loss = loss + objective.style[tap] * style.loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def solve(closure: Closure) -> None:
        while True:  # the closure leaves it
            solver.step(closure)  # type: ignore[no-untyped-call]

    return Closure(task, x, evaluate).run(solve, imports)


class _ContentLoss(nn.Module):
    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target = target.detach()
        self.loss = torch.zeros(())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.loss = mse_loss(features, self.target)
        return features


class _StyleLoss(nn.Module):
    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target = gram(target).detach()
        self.loss = torch.zeros(())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self.loss = mse_loss(gram(features), self.target)
        return features


def _model(
    objective: Objective, weights: Weights, content: torch.Tensor, style: torch.Tensor
) -> tuple[nn.Sequential, dict[str, _ContentLoss], dict[str, _StyleLoss]]:
    """Return the network up to its last loss, as the tutorial builds it: each target by the network so far."""
    model = nn.Sequential()
    contents: dict[str, _ContentLoss] = {}
    styles: dict[str, _StyleLoss] = {}
    for layer in weights.backbone.needed(objective.taps):
        model.add_module(layer.name, module(layer, weights))
        if layer.name in objective.content:
            contents[layer.name] = _ContentLoss(model(content))
            model.add_module(f"content_loss_{layer.name}", contents[layer.name])
        if layer.name in objective.style:
            styles[layer.name] = _StyleLoss(model(style))
            model.add_module(f"style_loss_{layer.name}", styles[layer.name])
    return model, contents, styles


if __name__ == "__main__":
    torch.set_num_threads(available_cpus())
    answer(paint)
