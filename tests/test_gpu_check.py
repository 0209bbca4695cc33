"""The GPU check without a GPU: what is wrong is found wrong, what is missing is named, and the report says both.

Kernels run on the host emulation; where IMPASTO_TEST_PYCUDA names a PyCUDA that was built without a driver, parts run
whole under the stand-in driver.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.gpu import __main__ as command  # noqa: E402
from benchmarks.gpu import (  # noqa: E402
    check_gram,
    check_picture,
    check_solver,
    engines,
    kernels,
    loop,
    paint,
    parity,
    sanitizer,
    torch_loop,
    worker,
)
from benchmarks.gpu.document import document, file_stem, verdict  # noqa: E402
from benchmarks.gpu.findings import Check, Part, differing, distance, worst  # noqa: E402
from benchmarks.gpu.kernel_times import Time  # noqa: E402
from benchmarks.gpu.loop import COMPILED, EAGER, Times  # noqa: E402
from benchmarks.gpu.parity import Case, Error  # noqa: E402
from benchmarks.gpu.room import TYPES  # noqa: E402
from benchmarks.gpu.variants import EVERY, Variant, open_variant  # noqa: E402
from benchmarks.report import Bound, Table  # noqa: E402
from benchmarks.task import ROOT  # noqa: E402
from impasto.errors import DeviceError, GraphError, LimitError, UnavailableError  # noqa: E402
from impasto.optimize.cache import EngineCache  # noqa: E402
from impasto.optimize.onnxruntime_gpu import Provider  # noqa: E402
from impasto.runtime.backends.cuda import CudaBackend  # noqa: E402
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from impasto.runtime.backends.select import open_backend  # noqa: E402
from impasto.runtime.problem import Losses  # noqa: E402
from impasto.runtime.stylizer import Stylizer  # noqa: E402
from tests.emulation import driver  # noqa: E402
from tests.emulation.host import KERNELS, HostDevice, compiler  # noqa: E402

on_emulation = pytest.mark.skipif(compiler() is None, reason="no g++ to compile kernels for the host")
CPU = Provider("CPUExecutionProvider", {}, memory="cpu")
FUSED = Variant("onnxruntime", "fp32", ("fused",))


@pytest.fixture
def cache(tmp_path: Path):
    with EngineCache(tmp_path / "engines") as cache:
        yield cache


# The command


def test_a_host_without_pycuda_is_told_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, module, None)
    assert command.main([]) == 3
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert "PyCUDA" in output.err
    assert "pip install 'impasto[gpu]'" in output.err


@pytest.mark.parametrize(
    "arguments", [["speed"], ["--write", "--quick"], ["--write", "host"], ["--write", "--write-to", "x"]]
)
def test_the_command_refuses(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        command.main(arguments)
    assert exit.value.code == 2
    assert "benchmarks.gpu: error" in capsys.readouterr().err


RIGHT, WRONG = Check("a 3×4", 1e-7, 1e-6, "of it"), Check("b", math.nan, 1.0, "of it")
PARTS = {
    "right": Part("Right", checks=[RIGHT]),
    "wrong": Part("Wrong", checks=[RIGHT, WRONG]),
    "failed": Part("Failed", failures=["it fell"]),
    "skipped": Part("Skipped", skipped=["no torch"]),
}


@pytest.mark.parametrize(
    ("names", "code", "told"),
    [
        (["right"], 0, "All of 1 checks are right."),
        (["right", "skipped"], 0, "All of 1 checks are right, 1 left out."),
        (["wrong", "right"], 1, "wrong: b: error nan, at most 1 of it"),
        (["right", "failed"], 1, "failed: it fell"),
        (["skipped"], 3, "skipped: no torch"),
    ],
)
def test_the_exit_code_judges_and_says_what_is_wrong(
    names: list[str],
    code: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    @contextmanager
    def opened():
        yield SimpleNamespace(name="NVIDIA RTX 6000 v1.5")

    monkeypatch.setattr(command, "open_device", opened)
    monkeypatch.setattr(command, "PARTS", PARTS)
    monkeypatch.setattr(command, "run", lambda name, _: PARTS[name])
    assert command.main([*names, "--quick", "--write-to", str(tmp_path / "new" / "v1.5")]) == code
    output = capsys.readouterr()
    assert told in output.err
    assert (tmp_path / "new" / "v1.5.md").read_text(encoding="utf-8") == output.out
    figures = json.loads((tmp_path / "new" / "v1.5.json").read_text())
    assert figures["gpu"] == "NVIDIA RTX 6000 v1.5"
    assert list(figures["parts"]) == names


def test_what_was_found_before_a_crash_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @contextmanager
    def opened():
        yield SimpleNamespace(name="GPU")

    def run(name: str, quick: bool) -> Part:
        if name == "wrong":
            raise KeyboardInterrupt
        return PARTS[name]

    monkeypatch.setattr(command, "open_device", opened)
    monkeypatch.setattr(command, "PARTS", PARTS)
    monkeypatch.setattr(command, "run", run)
    with pytest.raises(KeyboardInterrupt):
        command.main(["right", "wrong", "--write-to", str(tmp_path / "x")])
    assert list(json.loads((tmp_path / "x.json").read_text())["parts"]) == ["right"]


def test_a_part_runs_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever of PyCUDA this host has, the process does not.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("LD_LIBRARY_PATH", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    part = worker.run("host", quick=True)
    assert not part.wrong
    assert not part.ran
    assert "CUDA" in part.skipped[0]


def test_a_process_that_crashes_is_a_part_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=-11))
    assert worker.run("engines", quick=False).wrong == [
        "the process of part 'engines' ended with -11: its messages are above"
    ]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize(("given", "arguments"), [([], "--write"), (["ARGS=kernels --quick"], "kernels --quick")])
def test_make_writes_unless_told_otherwise(given: list[str], arguments: str) -> None:
    command = ["make", "--no-print-directory", "-n", "gpu-check", *given]
    of_make = ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # where make runs these tests
    outside_make = {name: value for name, value in os.environ.items() if name not in of_make}
    done = subprocess.run(command, cwd=ROOT, env=outside_make, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].endswith(f"-m benchmarks.gpu {arguments}")


# Findings and report


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DeviceError("gone"), "failures"),
        (GraphError("odd"), "failures"),
        (ValueError("a\nb"), "failures"),
        (UnavailableError("none"), "skipped"),
        (LimitError("full"), "skipped"),
    ],
)
def test_what_is_missing_is_skipped_and_what_fails_is_wrong(error: Exception, kind: str) -> None:
    part = Part("x")
    with part.attempt("this"):
        raise error
    expected = "this: ValueError: a b" if isinstance(error, ValueError) else f"this: {error}"
    assert {"failures": part.failures, "skipped": part.skipped} == {"failures": [], "skipped": []} | {kind: [expected]}


def test_a_part_survives_json() -> None:
    part = Part(
        "x", ["words", Table(("a",), (("b",),))], [RIGHT], [Bound("w", "≥ 1", "2", True)], ["f"], ["s"], {"d": 1}
    )
    assert Part.from_json(json.loads(json.dumps(part.to_json()))) == part


def test_errors_are_measured() -> None:
    exact, magnitude = np.array([1.0, 2.0, 0.0]), np.array([1.0, 4.0, 0.0])
    assert worst(np.float32([1, 2.5, 0]), exact, magnitude) == 0.125
    assert worst(np.float32([1, 2, 1e-30]), exact, magnitude) == math.inf
    assert math.isnan(worst(np.float32([np.nan, 2, 0]), exact, magnitude))
    assert differing(np.float32([1, -0.0, np.nan]), np.float32([1, 0.0, np.nan])) == 1
    assert distance(np.float32([3, 4]), np.float32([3, 0])) == pytest.approx(4 / 3)


@pytest.mark.parametrize("quick", [True, False])
def test_the_report_begins_with_what_is_wrong_and_what_was_not_run(quick: bool) -> None:
    parts = {**PARTS, "aimed": Part("Aimed", ["words"], [RIGHT], [Bound("speed", "≥ 2×", "1×", False)])}
    text = document("GPU", "2026-01-01", parts, quick)
    places = [text.index(part) for part in ("2 wrong (1 in wrong, 1 in failed), of 4 checks.", "- wrong: b: error nan")]
    places += [text.index(part) for part in ("- failed: it fell", "## Not run", "- skipped: no torch", "## Right")]
    assert places == sorted(places)
    assert "**b**" in text
    assert ("| speed |" in text) is not quick
    assert ("quick run" in text) is quick


def test_checks_that_differ_by_size_share_a_row() -> None:
    checks = [
        Check("gram fp32 3×4", 0.5, 1, "u"),
        Check("gram fp32 64×262144", 0.75, 1, "u"),
        Check("sum 8", 0, 0, "u"),
    ]
    rows = document("GPU", "2026-01-01", {"x": Part("X", checks=checks)}, False).splitlines()[-2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells == [["gram fp32", "2 of 2", "64×262144", "0.75", "1", "u"], ["sum", "1 of 1", "8", "0", "0", "u"]]
    wrong = document("GPU", "2026-01-01", {"x": Part("X", checks=[*checks, Check("sum 9", 0.1, 0, "u")])}, False)
    assert "**sum**" in wrong
    assert "1 of 2" in wrong


def test_nothing_run_is_not_all_right() -> None:
    assert verdict({"skipped": PARTS["skipped"]}) == "Nothing could run."


@pytest.mark.parametrize("variant", EVERY, ids=str)
def test_every_variant_is_one_that_its_backend_has(variant: Variant) -> None:
    # Where there is no GPU it is missing, which leaves it out; a precision that there is not would count as wrong.
    with suppress(UnavailableError):
        open_backend(variant.backend, precision=variant.precision).close()


def test_a_file_is_named_after_gpu_and_day() -> None:
    assert file_stem("NVIDIA H200 (PCIe)", "2026-01-31") == "nvidia-h200-pcie-2026-01-31"


# Kernels


class Faulty(HostDevice):
    """An emulated device, one of whose kernels does what ``fault`` makes of it."""

    def __init__(self, source: str, fault, entry: str = "") -> None:
        super().__init__()
        self.source, self.entry, self.fault = source, entry, fault

    def kernel(self, source: str, entry: str, folder: Path = KERNELS):
        kernel = super().kernel(source, entry, folder)
        wanted = source == self.source and self.entry in ("", entry)
        return functools.partial(self.fault, kernel) if wanted else kernel


def idle(kernel, grid, block, *arguments) -> None:
    """Do nothing, as a kernel that was forgotten to launch."""


def off(kernel, grid, block, *arguments) -> None:
    """Compute with floating-point arguments that are a hundred-thousandth too large."""
    changed = [type(x)(x * (1 + 1e-5)) if isinstance(x, np.floating) else x for x in arguments]
    kernel(grid, block, *changed)


def wrong(module, device: HostDevice) -> list[str]:
    """What the checks find wrong first."""
    part = Part("Kernels")
    with part.attempt("kernels"):
        for check in module.checks(device, quick=True):
            part.checks.append(check)
            if not check.right:
                break
    assert not part.failures
    return part.wrong


@on_emulation
@pytest.mark.parametrize("module", [check_gram, check_picture, check_solver], ids=lambda module: module.__name__[-7:])
def test_every_kernel_is_right(module) -> None:
    device = HostDevice()
    found = list(module.checks(device, quick=True))
    device.close()
    assert [check for check in found if not check.right] == []
    assert len({check.what for check in found}) == len(found)


@on_emulation
@pytest.mark.parametrize(
    ("module", "source"),
    [(check_gram, "gram"), (check_gram, "gram_vjp"), (check_picture, "tv"), (check_solver, "solver")],
)
def test_a_kernel_that_is_a_little_off_is_found_wrong(module, source: str) -> None:
    assert wrong(module, Faulty(source, off))


@on_emulation
@pytest.mark.parametrize("module", [check_gram, check_picture, check_solver], ids=lambda module: module.__name__[-7:])
def test_every_kernel_that_does_nothing_is_found_wrong(module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_gram, "QUICK", ((3, 37), (128, 1030)))
    monkeypatch.setattr(check_gram, "TYPES", {"bf16": TYPES["bf16"]})
    watched = kernels.Watched(HostDevice())
    assert all(check.right for check in module.checks(watched, quick=True))
    assert len(watched.kernels) >= 5
    assert [entry for source, entry in sorted(watched.kernels) if not wrong(module, Faulty(source, idle, entry))] == []


@on_emulation
def test_kernels_that_cannot_be_loaded_are_wrong_and_others_are_still_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(HostDevice):
        def kernel(self, source: str, entry: str, folder: Path = KERNELS):
            if source == "tv":
                raise DeviceError("no tv")
            return super().kernel(source, entry, folder)

    monkeypatch.delitem(kernels.CHECKS, "gram, gram_vjp")
    part = Part("Kernels")
    kernels.check(part, Broken(), quick=True)
    assert part.wrong == ["tv, image: no tv"]
    assert any(check.what.startswith("solver") for check in part.checks)


@on_emulation
def test_kernels_are_timed_beside_copies() -> None:
    part, device = Part("Kernels"), kernels.Watched(HostDevice())
    kernels.measure(part, device, quick=True)
    device.close()
    assert not part.wrong
    tables = [x for x in part.body if isinstance(x, Table)]
    assert [len(table.rows) for table in tables] == [6, 13]
    for figures in (part.data["gram"], part.data["streaming"]):
        assert all(figure["seconds"] > 0 for figure in figures)
    assert {source for source, _ in device.kernels} == {"gram", "gram_vjp", "image", "solver", "tv"}


def test_times_become_ratios() -> None:
    times = [Time("gram bf16 64×8", 1e-3, 2_000_000, 4_000_000_000, 2e-3), Time("gram_vjp", 1e-3, 1, 1)]
    rows = kernels.gram_table(times).rows
    assert rows[0] == ("gram bf16 64×8", "2.00", "1000.0", "2000.0", "4.0", "2")
    assert (rows[1][1], rows[1][3]) == ("", "")
    assert kernels.streaming_table([Time("tv", 2e-3, 4_000_000, 0, 1e-3)]).rows == (("tv", "50%", "2000.0", "2", "4"),)


def test_the_largest_error_of_a_float32_gram_matrix_is_the_targets() -> None:
    checks = [
        Check("gram fp32 3×4", 2e-7, 1, ""),
        Check("gram fp32 3×4, loss", 1, 1, ""),
        Check("gram fp16 3×4", 1, 1, ""),
    ]
    assert kernels.largest_gram_error(checks) == 2e-7
    assert kernels.largest_gram_error([]) is None


# Parity


def error(gradients: list[float], precision: str = "fp32", losses: float = 0.0, cosines: float = 1.0) -> Error:
    own = {"fp32": [2e-7, 4e-7], "fp16": [0.01, 0.02]}.get(precision, [])
    return Error("case", "cuda", precision, "fused", [losses, 0.0], gradients, [1.0, cosines], own)


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (error([1e-7, 2e-7]), []),
        (error([2e-3, 2e-7]), []),  # a flip
        (error([2e-5, 3e-5]), ["gradient without a flip"]),
        (error([4e-3, 2e-7]), ["gradient"]),
        (error([1e-7, 2e-7], losses=2e-5), ["losses"]),
        (error([1e-7, 2e-7], cosines=0.9999), ["cosine of the gradient"]),
        (error([math.nan, 1e-7], losses=math.nan), ["losses", "gradient", "gradient without a flip"]),
        (error([1e-7, math.nan]), ["gradient", "gradient without a flip"]),
        (error([0.03, 0.039], "fp16"), []),
        (error([0.03, 0.041], "fp16"), ["gradient"]),
        (error([0.03, 0.039], "fp16", losses=6e-3), ["losses"]),
        (error([0.04, 0.3], "bf16"), []),
        (error([0.04, 0.5], "bf16"), ["gradient"]),
    ],
)
def test_parity_is_judged(found: Error, wrong: list[str]) -> None:
    checks = parity.judged(found, Case("case", [], [], [], {}, small=True))
    assert [check.what.split(": ")[1] for check in checks if not check.right] == wrong


class Off(OnnxRuntimeBackend):
    """Whose gradient is a ten-thousandth too long."""

    def prepare(self, problem, plan, memory=None):
        evaluator = super().prepare(problem, plan, memory)

        def evaluate(image):
            losses = evaluator.evaluate(image)
            return Losses(losses.terms, losses.gradient * np.float32(1.0001))

        return SimpleNamespace(evaluate=evaluate)


@on_emulation
def test_backends_are_compared_with_float64(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = parity.make_cases(quick=True)
    assert max(cases[0].own["fp32"]) < 1e-5  # PyTorch's own computes the same thing
    monkeypatch.setattr(parity, "make_cases", lambda _: cases)

    def opened(variant: Variant, cache: EngineCache):
        match variant.backend:
            case "cuda":
                return CudaBackend(cache, variant.precision, device=HostDevice(), provider=CPU)
            case "off":
                return Off(cache)
        raise UnavailableError("not here")

    variants = [
        Variant("cuda", "fp32", ("sliced",)),
        Variant("off", "fp32", ("fused",)),
        Variant("none", "fp32", ("fused",)),
    ]
    found = parity.compared(True, variants, opened)
    assert found.skipped == ["none fp32: not here"]
    assert {line.partition(":")[0] for line in found.wrong} == {
        "two blocks of VGG-19, off fp32 fused",
        "filter bank, off fp32 fused",
    }
    assert len(found.data["errors"]) == 4
    json.dumps(found.to_json())


def test_bfloat16_is_left_out_where_the_gpu_has_none(monkeypatch: pytest.MonkeyPatch, cache: EngineCache) -> None:
    from benchmarks.gpu import variants

    turing = SimpleNamespace(device=HostDevice(compute_capability=(7, 5)), close=lambda: None)
    monkeypatch.setattr(variants, "open_backend", lambda *_, **__: turing)
    assert open_variant(Variant("cuda", "fp16", ("fused",)), cache) is turing
    with pytest.raises(UnavailableError, match="does not compute in bfloat16"):
        open_variant(Variant("cuda", "bf16", ("fused",)), cache)


# Loop


@pytest.fixture(scope="module")
def problem():
    return loop.make_problem(OnnxRuntimeBackend(), 32)


START = np.random.RandomState(0).standard_normal((1, 3, 32, 32)).astype(np.float32)


def test_pytorchs_sides_descend_the_same_objective(problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled one whole, without a break between graphs; half precision is that of the terms."""
    whole = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    made = []
    monkeypatch.setattr(torch_loop.torch, "compile", lambda model: made.append(whole(model)) or made[-1])
    for side in (torch_loop.eager, torch_loop.compiled):
        seconds = side(problem, START, "cpu")(5)
        assert len(seconds) == 5
        assert min(seconds) > 0
    exact = OnnxRuntimeBackend().prepare(problem, "fused").evaluate(START)
    with torch.no_grad():
        terms = made[0](torch.from_numpy(START)).tolist()
    # A term averages many activations, each off by a few roundings of 2⁻¹¹ that are independent of the others'.
    assert terms == pytest.approx(list(exact.terms.values()), rel=10 * 2.0**-11)


@on_emulation
def test_the_loop_is_measured_beside_pytorch(problem, cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(variant: Variant, cache: EngineCache):
        if variant.backend == "cuda":
            return CudaBackend(cache, variant.precision, device=HostDevice(), provider=CPU)
        return OnnxRuntimeBackend(cache)

    monkeypatch.setattr(loop, "make_problem", lambda *_: problem)
    monkeypatch.setattr(loop, "WARM_UP", 1)
    rivals = {EAGER: lambda problem, start: torch_loop.eager(problem, start, "cpu")}
    part = Part("Loop")
    times = list(loop.measured(part, 32, 1, 3, (Variant("cuda", "fp32", ("fused",)), FUSED), rivals, opened, cache))
    assert not part.wrong
    assert not part.skipped
    assert [loop.name(t) for t in times] == ["cuda fp32 fused", "onnxruntime fp32 fused"]
    for t in times:
        assert len(t.seconds) == len(t.rivals[EAGER]) == 1
        assert min(t.seconds) > 0
        assert t.finite
    loop.report(part, times, 0.1)
    json.dumps(part.to_json())


def times(precision: str, plan: str, size: int, seconds: float) -> Times:
    return Times("tensorrt", precision, plan, size, [seconds] * 3, {EAGER: [3.5] * 3, COMPILED: [1.4] * 3}, 10**9)


@pytest.mark.parametrize(("seconds", "kept"), [(0.9, [True, True, True]), (1.2, [False, False, False])])
def test_targets_of_the_loop_are_the_fastest_variants(seconds: float, kept: list[bool]) -> None:
    found = [times("fp16", "sliced", 512, seconds), times("fp16", "fused", 512, 2.0), times("fp32", "fused", 512, 0.1)]
    found.append(times("bf16", "sliced", 1024, 1.0))
    # 379 GFLOP at 512 px (design.md), four times that at 1024 px.
    part = Part("Loop")
    loop.report(part, found, 4 * 0.379 / 0.61 if kept[2] else 4 * 0.379 / 0.59)
    assert [target.kept for target in part.targets] == kept
    assert "tensorrt fp16 sliced" in part.targets[0].what
    text = "\n".join(x for x in part.body if isinstance(x, str))
    assert f"tensorrt fp16 sliced ({2 / seconds:.2f}× as fast as fused)" in text
    assert not part.wrong


def test_losses_that_are_not_finite_are_wrong() -> None:
    part = Part("Loop")
    loop.report(part, [replace(times("fp16", "fused", 512, 1.0), finite=False)], None)
    assert part.wrong == ["tensorrt fp16 fused: losses are not finite"]
    assert part.targets[-1].what.startswith("The loop in fp16")


# Engines, paintings, the sanitizer


def test_engines_are_loaded_again(cache: EngineCache) -> None:
    found = engines.built([(21, 34)], [FUSED], lambda _, cache: OnnxRuntimeBackend(cache), cache)
    assert not found.wrong
    assert found.data["engines"][0]["built"][0] > 0
    assert found.data["engines"][0]["built"][1] == 0


def test_engines_that_are_built_again_are_wrong(cache: EngineCache) -> None:
    def forgetting(variant: Variant, cache: EngineCache) -> OnnxRuntimeBackend:
        cache.remove(cache.entries())
        return OnnxRuntimeBackend(cache)

    found = engines.built([(21, 34)], [FUSED], forgetting, cache)
    assert [line.split(":")[1] for line in found.wrong] == [" built again"]


def test_paintings_are_compared(cache: EngineCache) -> None:
    made = []

    def opened(variant: Variant, plan: str | None, cache: EngineCache) -> Stylizer:
        made.append(variant)
        stylizer = Stylizer("filterbank", backend="onnxruntime", plan=plan, cache=cache)
        if variant.backend == "other" and len(made) == 3:
            stylizer.backend = Off(cache)
        return stylizer

    found = paint.painted(40, 6, [Variant("other", "fp32", ("fused",))], opened, cache)
    # The second stylizer's gradient is another, and what painted is not what was asked for.
    assert [line.split(": ")[1] for line in found.wrong] == ["by another stylizer", "not as asked for"]
    same = paint.painted(40, 6, [FUSED], opened, cache)
    assert not same.wrong
    assert len(same.checks) == 4


@pytest.mark.parametrize(
    ("code", "output", "wrong"),
    [
        (0, "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", []),
        (0, "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 0 hazards displayed\n", []),
        (86, "========= COMPUTE-SANITIZER\n========= Invalid read\n========= ERROR SUMMARY: 3 errors\n", ["3"]),
        (86, "========= COMPUTE-SANITIZER\n========= Race\n========= RACECHECK SUMMARY: 2 hazards\n", ["2"]),
        (86, "", ["1"]),
        (1, "Traceback\nValueError: x\n", ["ended with 1: ValueError: x"]),
    ],
)
def test_the_sanitizer_is_judged(code: int, output: str, wrong: list[str]) -> None:
    part = Part("Sanitizer")
    sanitizer.judge(part, "memcheck", code, output)
    assert len(part.wrong) == len(wrong)
    assert all(expected in line for expected, line in zip(wrong, part.wrong, strict=True))


def test_a_sanitizer_that_is_not_installed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer.shutil, "which", lambda *_, **__: None)
    part = sanitizer.part(quick=True)
    assert not part.ran
    assert "compute-sanitizer is not installed" in part.skipped[0]


# Whole parts, by the real PyCUDA


STAND_IN = """
import sys
from benchmarks.gpu import __main__ as command, host, kernels, parity
from benchmarks.gpu.variants import Variant
from impasto.optimize.onnxruntime_gpu import Provider
from impasto.runtime.backends.cuda import CudaBackend
from impasto.runtime.gpu.cuda import open_device
from tests.emulation.driver import InStreamOrder, host_kernels

class StandIn(CudaBackend):
    def compile_for_device(self, graph, shapes):
        return InStreamOrder(super().compile_for_device(graph, shapes), self.device.stream)

def opened(variant, cache):
    cpu = Provider("CPUExecutionProvider", {}, memory="cpu")
    return StandIn(cache, variant.precision, device=open_device(cache=cache), provider=cpu)

variants = [Variant("cuda", "fp32", ("fused", "sliced"))]
parts = {"host": host.part, "kernels": kernels.part, "parity": lambda quick: parity.compared(quick, variants, opened)}
command.run = lambda name, quick: parts[name](quick)
with host_kernels():
    sys.exit(command.main(["host", "kernels", "parity", "--quick", "--write-to", sys.argv[1]]))
"""


def test_parts_run_whole_under_the_stand_in_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pycuda = driver.pycuda_folder()
    if pycuda is None:
        pytest.skip("IMPASTO_TEST_PYCUDA does not name a folder with PyCUDA; shared/tools/pycuda_bindings.py makes one")
    if compiler() is None or driver.cuda_headers() is None:
        pytest.skip("no g++ or no CUDA headers to compile the stand-in driver")
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    done = driver.run(pycuda, "-W", "error", "-c", STAND_IN, str(tmp_path / "report"))
    assert done.returncode == 0, done.stdout
    figures = json.loads((tmp_path / "report.json").read_text())
    checked = {name: len(part["checks"]) for name, part in figures["parts"].items()}
    assert checked["host"] == 1
    assert checked["kernels"] > 200
    assert checked["parity"] == 16
    assert figures["parts"]["host"]["data"]["gpu"]["compute capability"] == "9.0"
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"All of {sum(checked.values())} checks are right, " in text
    assert "- kernels: cuBLAS beside gram: torch" in text
