"""Whole paintings whose loop stays on the (emulated) device, against the same by the host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import LimitError, UnavailableError
from impasto.models.random_weights import random_weights
from impasto.optimize.cache import EngineCache
from impasto.optimize.onnxruntime_gpu import Provider
from impasto.runtime.backends.cuda import CudaBackend
from impasto.runtime.images import to_uint8
from impasto.runtime.presets import Stage
from impasto.runtime.recipes import PRESETS
from impasto.runtime.solvers import LBFGS, Adam, TorchLBFGS
from impasto.runtime.stylizer import Stylizer
from tests.emulation.host import HostDevice, compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="no g++ to compile the kernels for the host")

CPU = Provider("CPUExecutionProvider", {}, memory="cpu")
ITERATIONS = 8


@pytest.fixture(scope="module")
def vgg():
    return random_weights("vgg19", 1, last_conv="conv2_2")


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(2)
    return random.random((30, 40, 3), np.float32), random.random((36, 36, 3), np.float32)


def preset(**changes):
    return replace(PRESETS["impasto"], name="test", margin=0, stages=(), **changes)


def painted(stylizer, pictures, **options):
    painting = stylizer.begin(*pictures, size=40, **options)
    steps = list(painting)
    return painting.result(), steps


def on_device(recipe, weights, precision="fp32"):
    device = HostDevice()
    stylizer = Stylizer(recipe, weights=weights, backend="onnxruntime", plan="sliced", cache=False)
    stylizer.backend = CudaBackend(precision=precision, device=device, provider=CPU)
    return stylizer, device


@pytest.mark.parametrize(
    "solver",
    [LBFGS(ITERATIONS), LBFGS(ITERATIONS, history=3), Adam(ITERATIONS, learning_rate=10.0)],
    ids=["lbfgs", "lbfgs with a full history", "adam"],
)
def test_the_device_paints_what_the_host_paints(vgg, pictures, solver):
    recipe = preset(solver=solver)
    host, expected = painted(Stylizer(recipe, weights=vgg, backend="onnxruntime", cache=False), pictures)
    stylizer, _ = on_device(recipe, vgg)
    found, steps = painted(stylizer, pictures)
    # Rounding differs, and a descent doubles differences again and again: the end agrees only roughly.
    assert [step.loss for step in steps[:4]] == pytest.approx([step.loss for step in expected[:4]], rel=1e-4)
    assert found.loss["total"] == pytest.approx(host.loss["total"], rel=0.02)
    assert found.loss["total"] < 0.5 * expected[0].loss
    assert (found.backend, found.precision, found.plan) == ("cuda", "fp32", "sliced")
    assert found.versions["gpu"] == "host emulation"
    stylizer.close()


def test_several_stages_are_painted_one_after_the_other(vgg, pictures):
    recipe = replace(preset(solver=LBFGS(6)), stages=(Stage(0.5, 3), Stage(1.0, 3)))
    host, expected = painted(Stylizer(recipe, weights=vgg, backend="onnxruntime", cache=False), pictures)
    stylizer, _ = on_device(recipe, vgg)
    found, steps = painted(stylizer, pictures)
    assert [step.size for step in steps] == [step.size for step in expected]
    assert found.loss["total"] == pytest.approx(host.loss["total"], rel=0.02)
    stylizer.close()


def test_the_same_job_gives_the_same_bits(vgg, pictures):
    recipe = preset(solver=LBFGS(4))
    results = []
    for _ in range(2):
        stylizer, _ = on_device(recipe, vgg)
        results.append(painted(stylizer, pictures)[0].image)
        stylizer.close()
    assert np.array_equal(*results)


def test_solvers_without_a_version_for_the_device_run_on_the_host(vgg, pictures):
    recipe = preset(solver=TorchLBFGS(tolerance_grad=0.0, tolerance_change=0.0), evaluations=5, init="noise")
    recipe = replace(recipe, objective=replace(recipe.objective, content_norm="mean", style_norm="mean"))
    host, _ = painted(Stylizer(recipe, weights=vgg, backend="onnxruntime", cache=False), pictures)
    stylizer, _ = on_device(recipe, vgg)
    found, _ = painted(stylizer, pictures)
    assert found.loss["total"] == pytest.approx(host.loss["total"], rel=1e-3)
    stylizer.close()


@pytest.mark.parametrize("precision", ["fp16"])
def test_half_precision_descends_as_far(vgg, pictures, precision):
    recipe = preset(solver=LBFGS(ITERATIONS))
    host, expected = painted(Stylizer(recipe, weights=vgg, backend="onnxruntime", cache=False), pictures)
    stylizer, _ = on_device(recipe, vgg, precision)
    found, _ = painted(stylizer, pictures)
    # 2% of what was descended: the noise of the gradient, not a limit of the loss.
    assert found.loss["total"] - host.loss["total"] < 0.02 * (expected[0].loss - host.loss["total"])
    stylizer.close()


def test_leaving_early_keeps_the_best_picture_and_frees_the_memory(vgg, pictures):
    stylizer, device = on_device(preset(solver=LBFGS(ITERATIONS)), vgg)
    painting = stylizer.begin(*pictures, size=40)
    previews = [step.preview() for _, step in zip(range(3), painting, strict=False)]
    painting.close()
    result = painting.result()
    # Made on the device as the loop ran, on the host from the result.
    assert np.array_equal(previews[-1], to_uint8(result.image))
    assert result.stop == "stopped"
    assert previews[0].shape == (30, 40, 3)
    assert result.loss["total"] <= result.trace[0].loss
    stylizer.close()
    assert device.allocated_bytes == 0


def test_warming_up_times_both_plans_and_the_faster_one_is_taken(vgg, pictures):
    stylizer, _ = on_device(preset(solver=LBFGS(ITERATIONS)), vgg)
    stylizer.plan = None
    assert painted(stylizer, pictures, iterations=2)[0].plan == "sliced"  # the default, as long as none was timed
    stylizer.warm_up(40, 30)
    kind = stylizer.backend._times._seconds
    ((problem, seconds),) = kind.items()
    assert set(seconds) == {"sliced", "fused"}
    for plan in seconds:
        kind[problem] = {"sliced": 2.0, "fused": 2.0, plan: 1.0}
        assert painted(stylizer, pictures, iterations=2)[0].plan == plan
    stylizer.close()


def test_a_device_without_room_is_a_limit_and_not_a_crash(vgg, pictures):
    stylizer, device = on_device(preset(solver=LBFGS(ITERATIONS)), vgg)
    device.memory_limit = 1 << 20
    with pytest.raises(LimitError, match="room"):
        painted(stylizer, pictures)
    stylizer.backend.close()
    assert device.allocated_bytes == 0


def test_a_provider_that_does_not_run_is_found_out_at_once_and_the_device_closed(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("CUDA failure 35")

    closed = []
    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    monkeypatch.setattr(HostDevice, "close", lambda device: closed.append(device))
    with pytest.raises(UnavailableError, match="CUDA failure 35"):
        CudaBackend(device=HostDevice(), provider=CPU)
    assert len(closed) == 1


def test_times_of_plans_are_kept_inside_the_caches_folder(vgg, pictures, tmp_path):
    stylizer, _ = on_device(preset(solver=LBFGS(ITERATIONS)), vgg)
    cache = EngineCache(tmp_path / "engines")
    cache.root.mkdir(mode=0o700)
    stylizer.backend = CudaBackend(cache, "fp32", device=HostDevice(), provider=CPU)
    painted(stylizer, pictures)
    stylizer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["engines"]
    assert (cache.root / "plans.json").is_file()
