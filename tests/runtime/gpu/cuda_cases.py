"""What `CudaDevice` does under the stand-in driver; test_cuda.py runs these tests in a process that has it."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from impasto.errors import DeviceError, LimitError, UnavailableError
from impasto.export.objective import Objective
from impasto.models.random_weights import random_weights
from impasto.optimize import cubins
from impasto.optimize.gpus import GpuFacts
from impasto.optimize.onnxruntime_gpu import Provider
from impasto.runtime.backends.cuda import CudaBackend
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.gpu import cuda
from impasto.runtime.gpu.cuda import open_device
from impasto.runtime.gpu.driver import Driver
from impasto.runtime.gpu.protocol import TensorSpec
from impasto.runtime.kernels.solver import VectorKernels
from impasto.runtime.kernels.tv import TotalVariation
from impasto.runtime.problem import Problem
from impasto.runtime.recipes import PRESETS
from impasto.runtime.solvers import LBFGS, Adam
from impasto.runtime.stylizer import Stylizer
from impasto.runtime.targets import encoded, measure_targets
from tests.emulation.driver import InStreamOrder, host_kernels
from tests.emulation.host import HostDevice

F32 = np.dtype(np.float32)
CPU = Provider("CPUExecutionProvider", {}, memory="cpu")
FAULTS = {700: "illegal memory access", 719: "unspecified launch failure", 214: "uncorrectable ECC error"}


@pytest.fixture(autouse=True)
def kernels_of_the_host():
    with host_kernels():
        yield


@pytest.fixture
def device():
    with open_device() as opened:
        yield opened


def numbers(count, seed=0):
    return np.random.default_rng(seed).normal(size=count).astype(F32)


def put(device, values):
    """A buffer with a copy of an array."""
    buffer = device.allocate(values.nbytes)
    device.upload(buffer.address, values)
    return buffer


def get(device, buffer, like):
    return device.download(buffer.address, TensorSpec(like.dtype, like.shape))


def doubles(device, count=1001):
    """A device computes x + x right."""
    x = numbers(count)
    one, two = put(device, x), put(device, x)
    VectorKernels(device).accumulate(one.address, two.address, count, F32)
    return np.array_equal(get(device, one, x), x + x)


def test_the_device_tells_what_it_is(device):
    assert device.facts == GpuFacts("host emulation", (9, 0), 1 << 30, 13000)
    assert (device.name, device.compute_capability, device.multiprocessors) == ("host emulation", (9, 0), 4)
    assert device.versions()["cuda_driver"] == "13.0"
    assert device.stream != 0


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 7), (1, 3, 400, 311)])
def test_tensors_travel_unchanged(device, shape, dtype):
    values = np.random.default_rng(1).integers(0, 255, shape).astype(dtype)
    buffer = put(device, values)
    assert buffer.address % 256 == 0
    assert buffer.nbytes == values.nbytes
    back = get(device, buffer, values)
    assert back.dtype == values.dtype
    assert back.shape == shape
    assert np.array_equal(back, values)


@pytest.mark.parametrize("count", [5, 1 << 18, (1 << 18) + 1])  # 1 MiB is staged, more is not
def test_arrays_may_change_as_soon_as_they_are_uploaded(device, count):
    arrays = [numbers(count, seed) for seed in range(3)]
    originals = [array.copy() for array in arrays]
    buffers = []
    for array in arrays:
        buffers.append(put(device, array))
        array.fill(np.nan)
    for buffer, original in zip(buffers, originals, strict=True):
        assert np.array_equal(get(device, buffer, original), original)


def test_downloads_are_copies_of_their_own(device):
    x = numbers(7)
    buffer = put(device, x)
    first = get(device, buffer, x)
    device.upload(buffer.address, -x)
    assert np.array_equal(get(device, buffer, x), -x)
    assert np.array_equal(first, x)


def test_copies_and_clearing_keep_their_order(device):
    x = numbers(100)
    one, two = put(device, x), put(device, -x)
    device.copy(two.address, one.address, x.nbytes)
    device.clear(one.address, 40)
    device.copy(two.address + 200, one.address, 80)
    assert np.array_equal(get(device, one, x), np.r_[np.zeros(10, F32), x[10:]])
    assert np.array_equal(get(device, two, x), np.r_[x[:50], np.zeros(10, F32), x[10:20], x[70:]])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_kernels_take_arguments_of_mixed_widths(device, dtype):
    x = numbers(333)
    wide, narrow = put(device, x), device.allocate(333 * np.dtype(dtype).itemsize)
    VectorKernels(device).narrow(narrow.address, wide.address, 333, np.dtype(dtype), factor=0.5)
    expected = (x * np.float32(0.5)).astype(dtype)
    assert np.array_equal(get(device, narrow, expected), expected)
    losses = device.allocate(8 * 3)
    VectorKernels(device).gather_scalars(wide.address, 256, 3, losses.address)  # an int between two 8-byte arguments
    assert np.array_equal(get(device, losses, np.empty(3)), x[[0, 64, 128]].astype(np.float64))


def test_a_launcher_gives_the_bits_that_it_gives_without_a_driver(device):
    image = numbers(3 * 21 * 17)

    def run(on):
        variation = TotalVariation(on, 21, 17, "squared")
        losses = np.empty(variation.loss_count)
        buffers = [put(on, image), on.allocate(image.nbytes), on.allocate(losses.nbytes)]
        variation.enqueue(*(buffer.address for buffer in buffers), weight=0.25)
        return get(on, buffers[1], image), get(on, buffers[2], losses)

    for ours, expected in zip(run(device), run(HostDevice()), strict=True):
        assert np.array_equal(ours, expected)


def test_a_source_is_compiled_and_loaded_once(device, monkeypatch):
    compiled = []
    inner = cubins.cubin

    def counting(source, compute_capability, cache):
        compiled.append((source, compute_capability, cache))
        return inner(source, compute_capability, cache)

    monkeypatch.setattr(cubins, "cubin", counting)
    first = device.kernel("solver", "accumulate_f32")
    device.kernel("solver", "accumulate_f16")
    assert device.kernel("solver", "accumulate_f32") is first
    assert compiled == [("solver", (9, 0), None)]


@pytest.mark.parametrize("binary", [b"\0" * 64, b"// PTX\0"], ids=["zeros", "text"])
def test_a_binary_that_the_driver_does_not_take_is_told_with_what_to_do(device, monkeypatch, binary):
    monkeypatch.setattr(cubins, "cubin", lambda *_: binary)
    with pytest.raises(UnavailableError, match=r"kernel image is invalid.*update its driver.*CUDA_HOME"):
        device.kernel("solver", "accumulate_f32")
    assert device.memory_info()[1] == 1 << 30


def test_a_captured_graph_runs_when_it_is_replayed_and_only_then(device):
    x = numbers(50)
    total, one = put(device, x), put(device, x)
    kernels = VectorKernels(device)
    kernels.accumulate(total.address, one.address, 50, F32)
    calls = []

    def enqueue():
        calls.append(None)
        kernels.accumulate(total.address, one.address, 50, F32)
        device.copy(one.address, total.address, x.nbytes)

    replay = device.capture(enqueue)
    assert np.array_equal(get(device, total, x), 2 * x)
    for expected in (3, 6, 12):  # powers of two and three times that: exact
        replay()
        assert np.array_equal(get(device, total, x), (x + x) + x if expected == 3 else expected // 3 * ((x + x) + x))
    replay()
    del replay  # what is enqueued runs nevertheless
    assert np.array_equal(get(device, total, x), 8 * ((x + x) + x))
    assert len(calls) == 1


def test_kernels_may_be_loaded_while_capturing(device):
    buffer = device.allocate(40)
    replay = device.capture(lambda: VectorKernels(device).fill(buffer.address, 2.0, 10, F32))
    replay()
    assert np.array_equal(get(device, buffer, np.empty(10, F32)), np.full(10, 2, F32))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_capturing_raises_leaves_the_device_usable(device, error):
    x = numbers(9)
    buffer = put(device, x)

    def enqueue():
        device.clear(buffer.address, 4)
        raise error

    with pytest.raises(error):
        device.capture(enqueue)
    assert np.array_equal(get(device, buffer, x), x)
    device.capture(lambda: device.clear(buffer.address, x.nbytes))()
    assert not get(device, buffer, x).any()


@pytest.mark.parametrize(
    "forbidden",
    [lambda device: device.synchronize(), lambda device: device.allocate(8)],
    ids=["waiting", "allocating"],
)
def test_what_cannot_be_captured_is_told_and_leaves_the_device_usable(device, forbidden):
    buffer = put(device, numbers(9))

    def enqueue():
        device.clear(buffer.address, 4)
        forbidden(device)

    with pytest.raises(DeviceError, match="not permitted when stream is capturing"):
        device.capture(enqueue)
    assert doubles(device)


def test_an_error_that_is_swallowed_while_capturing_is_told_at_the_end(device):
    def enqueue():
        with pytest.raises(device._cuda.Error):
            device._stream.synchronize()

    with pytest.raises(DeviceError, match=r"previous error during capture.*run without one"):
        device.capture(enqueue)
    assert doubles(device)


def test_memory_that_is_not_there_is_a_limit_and_no_failure(device, monkeypatch):
    monkeypatch.setenv("EMULATED_MEMORY", str(8 << 20))
    held = device.allocate(3 << 20)
    assert device.memory_info() == (5 << 20, 8 << 20)
    with pytest.raises(LimitError, match=r"no room for 6 MiB: 5 MiB of 8 MiB are free"):
        device.allocate((5 << 20) + 1)
    held.free()
    held.free()
    assert device.memory_info() == (8 << 20, 8 << 20)
    assert doubles(device)


@pytest.mark.parametrize(("code", "text"), FAULTS.items(), ids=map(str, FAULTS))
def test_after_a_failure_on_the_gpu_only_closing_works_and_a_new_device_does(monkeypatch, capfd, code, text):
    monkeypatch.setenv("EMULATED_FAULT", f"2:{code}")
    device = open_device()
    x = numbers(20)
    one, two = put(device, x), put(device, x)
    kernels = VectorKernels(device)
    kernels.accumulate(one.address, two.address, 20, F32)
    replay = device.capture(lambda: kernels.accumulate(one.address, two.address, 20, F32))
    device.synchronize()
    replay()  # launched, and told later
    with pytest.raises(DeviceError, match=f"GPU 0 .host emulation. failed: .*{text}"):
        device.download(one.address, TensorSpec(F32, (20,)))
    for operation in (
        device.synchronize,
        replay,
        device.memory_info,
        lambda: device.allocate(8),
        lambda: device.upload(one.address, x),
        lambda: device.clear(one.address, 4),
        lambda: device.copy(one.address, two.address, 4),
        lambda: kernels.accumulate(one.address, two.address, 20, F32),
        lambda: device.capture(lambda: None),
    ):
        with pytest.raises(DeviceError, match=f"cannot go on .*{text}.*: close it and open it anew"):
            operation()
    one.free()
    device.close()
    two.free()
    device.close()
    assert capfd.readouterr().err == ""  # PyCUDA has a complaint for each thing that it cannot free
    monkeypatch.delenv("EMULATED_FAULT")
    with open_device() as again:
        assert doubles(again)


def test_a_failure_that_shows_when_a_kernel_is_loaded_is_no_fault_of_the_kernel(monkeypatch):
    monkeypatch.setenv("EMULATED_FAULT", "1:700")
    with open_device() as device:
        x = numbers(20)
        buffer = put(device, x)
        VectorKernels(device).fill(buffer.address, 1.0, 20, F32)
        ctypes.CDLL("libcuda.so.1").cuStreamSynchronize(ctypes.c_void_p(device.stream))
        with pytest.raises(DeviceError, match="illegal memory access"):
            device.kernel("tv", "tv_none")


def test_a_context_that_another_library_keeps_broken_asks_for_a_new_process(monkeypatch):
    driver, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
    with open_device() as device:
        assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
        monkeypatch.setenv("EMULATED_FAULT", "1:700")
        with pytest.raises(DeviceError):
            doubles(device)
    monkeypatch.delenv("EMULATED_FAULT")
    with pytest.raises(UnavailableError, match=r"does not start .*illegal memory access.*restart the process"):
        open_device()
    assert driver.cuDevicePrimaryCtxRelease_v2(0) == 0
    with open_device() as device:
        assert doubles(device)


def test_any_thread_may_use_and_close_a_device():
    device, results = open_device(), []
    for work in (lambda: results.append(doubles(device)), device.close, lambda: results.append(Driver().context())):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert results == [True, 0]
    with pytest.raises(DeviceError, match="it is closed"):
        device.synchronize()


def test_jobs_in_threads_of_their_own_share_the_gpu():
    results = []

    def job():
        with open_device() as device:
            results.extend(doubles(device, count) for count in (10, 100, 1000))

    threads = [threading.Thread(target=job) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 9


def test_closing_frees_everything_of_one_device_and_nothing_of_another():
    with open_device() as other:
        x = numbers(11)
        kept = put(other, x)
        free, _ = other.memory_info()
        device = open_device()
        buffer = put(device, numbers(1000))
        device.kernel("solver", "fill_f32")
        replay = device.capture(lambda: VectorKernels(device).fill(buffer.address, 1.0, 1000, F32))
        replay()
        assert other.memory_info()[0] == free - 4000
        device.close()
        device.close()
        assert other.memory_info()[0] == free
        with pytest.raises(DeviceError, match="it is closed"):
            replay()
        assert np.array_equal(get(other, kept, x), x)
        assert doubles(other)


def test_the_primary_context_is_current_while_a_device_is_open_and_not_after():
    driver = Driver()
    assert driver.context() == 0
    with open_device() as device:
        context = driver.context()
        assert context != 0
        driver.set_context(0)  # as another library may
        device.allocate(8)
        assert driver.context() == context
    assert driver.context() == 0


def test_gpus_are_chosen_by_their_index(monkeypatch):
    monkeypatch.setenv("EMULATED_DEVICES", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    for index in (1, 0, 1):
        with open_device(index) as device:
            assert device._cuda.Context.get_device() == device._cuda.Device(index)
            assert doubles(device)
    for index in (2, -1):
        with pytest.raises(UnavailableError, match=f"no GPU {index}: CUDA shows 2 .*'3,5'"):
            open_device(index)


def test_a_gpu_older_than_the_kernels_is_refused(monkeypatch):
    monkeypatch.setattr(cuda, "OLDEST", (10, 0))
    with pytest.raises(UnavailableError, match=r"compute capability 9.0: 10.0 .* or later"):
        open_device()


class BackendInStreamOrder(CudaBackend):
    """The backend ``cuda`` whose graphs ONNX Runtime's CPU provider runs, in the order of the device's stream."""

    def compile_for_device(self, graph, shapes):
        compiled = super().compile_for_device(graph, shapes)
        return InStreamOrder(compiled, self.device.stream) if self.device.stream else compiled


@pytest.mark.parametrize("plan", ["sliced", "fused"])
def test_a_backend_evaluates_on_it_to_the_bits_of_the_host_device(plan):
    weights = random_weights("vgg19", 5, last_conv="conv2_1")
    objective = Objective(content={"relu2_1": 1.0}, style={"relu1_1": 100.0, "relu2_1": 10.0}, tv=0.1)
    objective = objective.canonical(weights)
    random = np.random.default_rng(3)
    content, style = random.random((18, 23, 3), F32), random.random((20, 16, 3), F32)
    targets = measure_targets(OnnxRuntimeBackend(), weights, objective, content, style)
    problem = Problem(objective, weights, targets, (18, 23))
    images = [encoded(objective, random.random((18, 23, 3), F32)) for _ in range(3)]
    evaluations = []
    for device in (HostDevice(), open_device()):
        backend = BackendInStreamOrder(precision="fp32", device=device, provider=CPU)
        evaluator = backend.prepare(problem, plan)
        evaluations.append([evaluator.evaluate(image) for image in images])
        backend.close()
    for expected, got in zip(*evaluations, strict=True):
        assert got.terms == expected.terms
        assert np.array_equal(got.gradient, expected.gradient)


def stylizer_on(device, plan="sliced", solver=None):
    recipe = replace(PRESETS["impasto"], name="test", margin=0, stages=(), solver=solver or LBFGS(6))
    weights = random_weights("vgg19", 1, last_conv="conv2_2")
    stylizer = Stylizer(recipe, weights=weights, backend="onnxruntime", plan=plan, cache=False)
    stylizer.backend = BackendInStreamOrder(precision="fp32", device=device, provider=CPU)
    return stylizer


def pictures():
    random = np.random.default_rng(2)
    return random.random((24, 30, 3), F32), random.random((26, 20, 3), F32)


@pytest.mark.parametrize(
    ("plan", "solver"),
    [("sliced", LBFGS(6)), ("fused", LBFGS(6)), ("sliced", Adam(6, learning_rate=10.0))],
    ids=["sliced, L-BFGS", "fused, L-BFGS", "sliced, Adam"],
)
def test_a_painting_by_it_has_the_bits_of_one_by_the_host_device(plan, solver):
    results = []
    for device in (HostDevice(), open_device()):
        with stylizer_on(device, plan, solver) as stylizer:
            painting = stylizer.begin(*pictures(), size=30)
            losses = [step.loss for step in painting]
            results.append((losses, painting.result()))
    (expected_losses, expected), (losses, result) = results
    assert losses == expected_losses
    assert len(losses) > 4
    assert np.array_equal(result.image, expected.image)
    assert result.versions["pycuda"]


def test_a_painting_whose_gpu_fails_ends_cleanly_and_the_next_one_succeeds(monkeypatch):
    monkeypatch.setenv("EMULATED_FAULT", "60:700")
    with stylizer_on(open_device()) as stylizer, pytest.raises(DeviceError, match="illegal memory access"):
        list(stylizer.begin(*pictures(), size=30))
    monkeypatch.delenv("EMULATED_FAULT")
    with stylizer_on(open_device()) as stylizer:
        painting = stylizer.begin(*pictures(), size=30)
        assert len(list(painting)) > 4


def test_a_painting_that_is_interrupted_leaves_nothing_on_the_gpu():
    with open_device() as other:
        free = other.memory_info()[0]

        def interrupted():
            with stylizer_on(open_device()) as stylizer:
                for _ in stylizer.begin(*pictures(), size=30):
                    assert other.memory_info()[0] < free
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert other.memory_info()[0] == free
        assert doubles(other)
