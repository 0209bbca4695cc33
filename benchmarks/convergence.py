"""How low the loss is after a number of evaluations, against torch.optim.LBFGS, whatever the scale of the loss."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.evaluation import JOHNSON_HISTORY
from benchmarks.machine import Machine
from benchmarks.pictures import SHARED, pairs, square
from benchmarks.programs import OPENVINO_BF16, PROGRAMS
from benchmarks.report import Bound, Section, Table
from benchmarks.task import Task, Worker, run
from impasto.models.conventions import FloatArray, pixel_space
from impasto.models.locate import find_weights
from impasto.runtime.presets import Preset
from impasto.runtime.problem import Problem
from impasto.runtime.recipes import JOHNSON
from impasto.runtime.targets import measure_targets

REAL_BLOCKS = SHARED / "weights" / "vgg19_blocks1-3.safetensors"

JOHNSON_BLOCKS_1_TO_3 = replace(
    JOHNSON,
    objective=replace(
        JOHNSON.objective,
        content={"relu3_3": 5.0},
        style=dict.fromkeys(("relu1_1", "relu2_1", "relu3_1"), 100.0),
    ),
)
"""`johnson` on the taps that weights of blocks 1 to 3 have."""

_SCALES = (1.0, 1e-8, 1e8)
_MOST_RATIO = 1.02
# A quarter of a grey level: rounding to 8 bits then differs, if at all, by one level.
_MOST_DIFFERENCE = 0.25


@dataclass(frozen=True)
class Pair:
    """The losses that both solvers reached for two pictures, each from the evaluations that it made.

    ``bf16`` is ours where the network computes in bf16, None on a CPU that does not multiply that.
    """

    content: str
    style: str
    start: float
    ours: float
    torchs: float
    bf16: float | None = None

    @property
    def ratio(self) -> float:
        """Our loss over torch's."""
        return self.ours / self.torchs

    @property
    def noise(self) -> float | None:
        """Our loss in bf16 over that in float32."""
        return None if self.bf16 is None else self.bf16 / self.ours


@dataclass(frozen=True)
class Scale:
    """A painting with all loss weights times ``factor``, compared with that of factor 1 by the same solver.

    ``difference`` is the largest between our two pictures, in grey levels of 255. ``ours`` and ``torchs`` are final
    losses over those of factor 1, without the factor.
    """

    factor: float
    difference: float
    ours: float
    torchs: float


def compare(task: Task) -> Pair:
    """Paint the task with both solvers from the same noise, ours in bf16 too; judge all by the same evaluator."""
    judged = judge(task)
    (ours, _), (torchs, start) = _both(task)
    bf16 = None
    if PROGRAMS[OPENVINO_BF16].missing() is None:
        bf16 = judged(_best("stylizer", PROGRAMS[OPENVINO_BF16].task(task))[0])
    return Pair(task.content, task.style, start, judged(ours), judged(torchs), bf16)


def compare_scales(task: Task, factors: Sequence[float] = _SCALES) -> list[Scale]:
    """Paint the task with its loss weights times each factor, the first of which is 1."""
    assert factors[0] == 1
    scales: list[Scale] = []
    for factor in factors:
        objective = task.preset.objective.scaled(factor)
        (ours, _), (torchs, _) = _both(replace(task, preset=replace(task.preset, objective=objective)))
        losses = exact_loss(task, ours), exact_loss(task, torchs)
        if not scales:
            plain_picture, plain_losses = picture(task.preset, ours), losses
        difference = float(np.abs(picture(task.preset, ours) - plain_picture).max()) * 255
        scales.append(Scale(factor, difference, losses[0] / plain_losses[0], losses[1] / plain_losses[1]))
    return scales


def exact_loss(task: Task, image: FloatArray) -> float:
    """Return the task's loss at an iterate, (1, 3, size, size), as `judge` does."""
    return judge(task)(image)


def judge(task: Task) -> Callable[[FloatArray], float]:
    """Return what gives the task's loss at an iterate, (1, 3, size, size): the torch reference in float64."""
    import torch

    from impasto.runtime.backends.torch import TorchBackend

    backend = TorchBackend(torch.float64)
    weights = find_weights(task.weights)
    objective = task.preset.for_weights(weights).objective
    content, style = square(task.content, task.size), square(task.style, task.size)
    targets = measure_targets(backend, weights, objective, content, style)
    problem = Problem(objective, weights, targets, (task.size, task.size))
    evaluator = backend.prepare(problem, "fused")
    return lambda image: evaluator.evaluate(image).total


def picture(preset: Preset, image: FloatArray) -> FloatArray:
    """Return an iterate as RGB, (H, W, 3) in 0–1, clipped."""
    rgb: FloatArray = pixel_space(preset.objective.pixels).decode(image[0]).clip(0, 1)
    return rgb


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    size, evaluations, count = (64, 20, 1) if quick else (128, 200, 4)
    recipes: dict[str, tuple[Preset, str]] = {"VGG-19, random weights": (JOHNSON, "random")}
    if REAL_BLOCKS.exists():
        recipes["VGG-19 blocks 1–3, real weights"] = (JOHNSON_BLOCKS_1_TO_3, str(REAL_BLOCKS))
    results = {
        name: [compare(Task(preset, weights, *pair, size, evaluations)) for pair in pairs()[:count]]
        for name, (preset, weights) in recipes.items()
    }
    half = evaluations // 2
    scales = compare_scales(Task(JOHNSON, "random", *pairs()[0], size, half))
    return Section(
        title="Convergence",
        body=(
            f"`johnson` at {size}×{size} px from the same noise: the lowest loss within {evaluations} evaluations, by "
            'Impasto\'s L-BFGS over that by `torch.optim.LBFGS(line_search_fn="strong_wolfe")`, both with a history '
            f"of {JOHNSON_HISTORY} and judged by the same evaluator in float64. Below 1 is in our favour. Weights of "
            "blocks 1–3 are given style terms at relu1_1, relu2_1 and relu3_1, and content at relu3_3. Impasto's is "
            "ONNX Runtime's float32; the column of bf16 is OpenVINO's loss over that, where this CPU multiplies bf16.",
            convergence_table(results),
            f"All loss weights times a factor (random weights, first pair, {half} evaluations): how far our picture is "
            "from that of factor 1, and each solver's final loss over its own at factor 1.",
            scales_table(scales),
        ),
        bounds=(
            *(
                Bound(
                    f"Loss after {evaluations} evaluations over torch's, {name}, mean of {len(found)} pairs",
                    f"≤ {_MOST_RATIO}",
                    f"{mean(pair.ratio for pair in found):.3f}",
                    mean(pair.ratio for pair in found) <= _MOST_RATIO,
                )
                for name, found in results.items()
            ),
            *(
                Bound(
                    f"Loss after {evaluations} evaluations in bf16 over float32's, {name}, mean of {len(noises)} pairs",
                    f"≤ {_MOST_RATIO}",
                    f"{mean(noises):.3f}",
                    mean(noises) <= _MOST_RATIO,
                )
                for name, found in results.items()
                if (noises := [pair.noise for pair in found if pair.noise is not None])
            ),
            *(
                Bound(
                    f"Same picture with all loss weights × {scale.factor:g}, largest difference",
                    f"≤ {_MOST_DIFFERENCE} grey levels",
                    f"{scale.difference:.2g}",
                    scale.difference <= _MOST_DIFFERENCE,
                )
                for scale in scales[1:]
            ),
        ),
        data=_data(results, scales, size, evaluations),
    )


def convergence_table(results: Mapping[str, Sequence[Pair]]) -> Table:
    """Return a row for each pair and the mean of each set of weights, ratios first."""
    rows = []
    for name, found in results.items():
        for pair in found:
            losses = (f"{loss:.5g}" for loss in (pair.ours, pair.torchs, pair.start))
            noise = "—" if pair.noise is None else f"{pair.noise:.3f}"
            rows.append((f"{name}: {pair.content} × {pair.style}", f"{pair.ratio:.3f}", noise, *losses))
        noises = [pair.noise for pair in found if pair.noise is not None]
        noise = f"**{mean(noises):.3f}**" if noises else "—"
        rows.append((f"{name}: **mean**", f"**{mean(pair.ratio for pair in found):.3f}**", noise, "", "", ""))
    return Table(("", "ratio", "bf16 over fp32", "Impasto", "torch", "at the start"), tuple(rows))


def scales_table(scales: Sequence[Scale]) -> Table:
    """Return a row for each factor."""
    rows = tuple((f"{s.factor:g}", f"{s.difference:.2g}", f"{s.ours:.4g}", f"{s.torchs:.4g}") for s in scales)
    return Table(("factor", "our picture differs by, of 255", "our loss", "torch's loss"), rows)


def _both(task: Task) -> tuple[tuple[FloatArray, float], tuple[FloatArray, float]]:
    """Return the best iterate and the first loss, ours and torch's."""
    return _best("stylizer", task), _best("plain_torch", task)


def _best(worker: Worker, task: Task) -> tuple[FloatArray, float]:
    """Return the best iterate and the first loss."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "iterate.npy"
        losses = run(worker, replace(task, iterate=str(path)), Path(folder)).losses
        return np.load(path), losses[0]


def _data(
    results: Mapping[str, Sequence[Pair]], scales: Sequence[Scale], size: int, evaluations: int
) -> dict[str, Any]:
    return {
        "size": size,
        "evaluations": evaluations,
        "pairs": {name: [asdict(pair) for pair in found] for name, found in results.items()},
        "scales": [asdict(scale) for scale in scales],
    }
