"""Where an iteration goes: the runtimes' own profiles of the graph, and what is left around it.

``python -m benchmarks.profiling TASK`` is the worker. The runtimes are asked to profile behind the library's back, in a
process that does nothing else: the library has no need of it.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any
from unittest.mock import patch

from benchmarks.evaluation import WARM_UP
from benchmarks.machine import Machine
from benchmarks.pictures import pairs, square
from benchmarks.programs import OPENVINO, OPENVINO_BF16, ORT, PROGRAMS, here
from benchmarks.report import Section, Table
from benchmarks.task import Task, answer, ask
from benchmarks.watch import watch
from impasto.runtime.problem import FloatArray
from impasto.runtime.recipes import JOHNSON
from impasto.runtime.stylizer import Stylizer

CONVOLUTIONS, GRAMS, POOLING = "convolutions", "Gram matrices and their gradient", "pooling and its gradient"
ELEMENTS, COPIES = "element by element, sums", "copies between layouts and types"
AROUND, SOLVER = "around the graph: calls, copies, Python", "solver and loop"

_KINDS = {
    CONVOLUTIONS: ("Conv", "FusedConv", "ConvTranspose", "Convolution", "ConvolutionBackpropData"),
    GRAMS: ("Gemm", "MatMul", "FusedMatMul", "FullyConnected"),
    POOLING: ("MaxPool", "AveragePool", "AvgPool", "Pooling", "DepthToSpace", "SpaceToDepth", "Slice", "StridedSlice"),
    COPIES: ("Cast", "Concat", "Convert", "Expand", "Broadcast", "Pad", "ReorderInput", "ReorderOutput", "Reorder",
             "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
}  # fmt: skip
"""Operators of ONNX Runtime and OpenVINO; what is not named computes element by element or sums."""


@dataclass(frozen=True)
class Profile:
    """Seconds of an iteration with one evaluation, on average, by kind; and those of the convolutions, by block.

    The graph's parts are the profiler's, `AROUND` is the rest of an evaluation, `SOLVER` the rest of an iteration.
    """

    seconds: Mapping[str, float]
    blocks: Mapping[str, float]

    @property
    def total(self) -> float:
        """Of an iteration."""
        return sum(self.seconds.values())


Runs = list[Counter[tuple[str, str]]]
"""Seconds by operator and node, of every run of a graph."""


def kind(operator: str) -> str:
    """Return the kind of an operator."""
    return next((name for name, operators in _KINDS.items() if operator in operators), ELEMENTS)


def block(node: str) -> str | None:
    """Return the VGG block that a convolution's node belongs to, by its name; None for a name that does not tell."""
    found = re.search(r"(?:conv|relu)(\d)_", node)
    return f"block {found[1]}" if found else None


def paint(task: Task) -> Profile:
    """Paint the task in this process, with the runtime profiling itself."""
    content, style = square(task.content, task.size), square(task.style, task.size)
    every: Runs = []
    profiled = {"onnxruntime": _onnxruntime, "openvino": _openvino}[task.backend]
    with profiled(every) as collect:
        evaluations, iterations = _times(task, content, style, collect)
    runs = every[-len(iterations) :]
    seconds = dict.fromkeys((CONVOLUTIONS, GRAMS, POOLING, ELEMENTS, COPIES), 0.0)
    blocks: defaultdict[str, float] = defaultdict(float)
    for run in runs:
        for (operator, node), value in run.items():
            seconds[kind(operator)] += value / len(runs)
            if kind(operator) == CONVOLUTIONS:
                blocks[block(node) or "elsewhere"] += value / len(runs)
    seconds[AROUND] = mean(evaluations) - sum(seconds.values())
    seconds[SOLVER] = mean(iterations) - mean(evaluations)
    return Profile(seconds, dict(sorted(blocks.items())))


def _times(
    task: Task, content: FloatArray, style: FloatArray, collect: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """Paint; return the seconds of evaluations, and of the steps that they are in, without the first few."""
    preset = replace(task.preset, evaluations=task.evaluations)
    evaluations: list[float] = []
    steps: list[float] = []
    with Stylizer(
        preset, weights=task.weights, backend=task.backend, plan=task.plan, precision=task.precision, cache=False
    ) as stylizer:
        watch(stylizer.backend, lambda _, seconds: evaluations.append(seconds))
        last = 0.0
        for step in stylizer.steps(content, style, size=task.size, scales=1):
            steps.append(step.seconds - last)
            start = time.perf_counter()
            collect()
            last = step.seconds + time.perf_counter() - start
    return evaluations[WARM_UP:], steps[WARM_UP:]


@contextmanager
def _onnxruntime(runs: Runs) -> Iterator[Callable[[], None]]:
    """Have ONNX Runtime profile; its profile, of every run, is written when the session ends."""
    import onnxruntime

    made: list[onnxruntime.InferenceSession] = []

    with tempfile.TemporaryDirectory() as folder:

        class Profiled(onnxruntime.InferenceSession):  # type: ignore[misc]
            def __init__(self, model: str | bytes, options: onnxruntime.SessionOptions, **rest: Any) -> None:
                options.enable_profiling = True
                options.profile_file_prefix = str(Path(folder) / str(len(made)))
                super().__init__(model, options, **rest)
                made.append(self)

        with patch.object(onnxruntime, "InferenceSession", Profiled):
            yield lambda: None
        # The last one is the objective's; those before measured the targets.
        events = json.loads(Path(made[-1].end_profiling()).read_text())
    found: Counter[tuple[str, str]] = Counter()
    for event in sorted(events, key=lambda event: event["ts"] + event["dur"]):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            found[event["args"]["op_name"], event["name"]] += event["dur"] / 1e6
        elif event["name"] == "model_run":
            runs.append(found)
            found = Counter()


@contextmanager
def _openvino(runs: Runs) -> Iterator[Callable[[], None]]:
    """Have OpenVINO count; its counts are means over all runs of a request so far."""
    import openvino

    made: list[openvino.InferRequest] = []

    class Core(openvino.Core):  # type: ignore[misc]
        def compile_model(self, model: openvino.Model, device: str, settings: dict[str, Any]) -> Any:
            return super().compile_model(model, device, {**settings, openvino.properties.enable_profiling(): True})

    create = openvino.CompiledModel.create_infer_request

    def kept(model: openvino.CompiledModel) -> openvino.InferRequest:
        made.append(create(model))
        return made[-1]

    before: Counter[tuple[str, str]] = Counter()

    def collect() -> None:
        nonlocal before
        sums: Counter[tuple[str, str]] = Counter()
        for node in made[-1].get_profiling_info():
            sums[node.node_type, node.node_name] += (len(runs) + 1) * node.real_time.total_seconds()
        runs.append(sums - before)
        before = sums

    with patch.object(openvino, "Core", Core), patch.object(openvino.CompiledModel, "create_infer_request", kept):
        yield collect


def section(_machine: Machine, quick: bool) -> Section:
    """Measure and report."""
    size, evaluations = (96, 5) if quick else (512, 12)
    names, left_out = here((ORT, OPENVINO, OPENVINO_BF16))
    task = Task(JOHNSON, "random", *pairs()[0], size, evaluations)
    with tempfile.TemporaryDirectory() as cache:
        found = {name: Profile(**ask("profiling", PROGRAMS[name].task(task).to_json(), Path(cache))) for name in names}
    return Section(
        title="Where an iteration goes",
        body=(
            f"`johnson` at {size}×{size} px, fused: an iteration with one evaluation, the mean of the "
            f"{evaluations - WARM_UP} after the first {WARM_UP}, by the runtimes' own profiles, which slow them "
            "a little. *Around the graph* is what an evaluation takes beside its operators: feeding the graph, the "
            "runtime's own work, copies of what comes out. The solver's history is short; *The solver's own cost* has "
            "what a full one takes.",
            shares_table(found, lambda profile: profile.seconds),
            "The convolutions by block, of which each has half the height and width of the one before; share of the "
            "iteration.",
            shares_table(found, lambda profile: profile.blocks),
            *([left_out] if left_out else []),
        ),
        bounds=(),
        data={name: asdict(profile) for name, profile in found.items()},
    )


def shares_table(found: Mapping[str, Profile], part: Callable[[Profile], Mapping[str, float]]) -> Table:
    """Return a row for each part of an iteration, its share and milliseconds by program."""
    names = dict.fromkeys(name for profile in found.values() for name in part(profile))
    rows = tuple(
        (
            name,
            *(
                f"{(value := part(profile).get(name, 0.0)) / profile.total:.0%} ({value * 1e3:.0f} ms)"
                for profile in found.values()
            ),
        )
        for name in names
    )
    return Table(("", *found), rows)


if __name__ == "__main__":
    answer(paint)
