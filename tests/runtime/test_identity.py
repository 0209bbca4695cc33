from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from impasto.errors import UsageError
from impasto.runtime.backends.onnxruntime import OnnxRuntimeBackend
from impasto.runtime.backends.select import BACKENDS
from impasto.runtime.identity import check_repeatable, differences, identity
from impasto.runtime.images import Picture, Sizing
from impasto.runtime.painting import Job
from impasto.runtime.recipes import find_preset
from impasto.runtime.solvers import Adam

VERSIONS = {"impasto": "1", "numpy": "2"}


@pytest.fixture
def job(shallow, picture):
    return Job(
        content=Picture(picture(1, 18, 24), None, "content"),
        style=Picture(picture(2, 20, 20), None, "style"),
        preset=find_preset("johnson"),
        weights=shallow,
        plan="fused",
        sizing=Sizing("long", 24),
    )


@pytest.fixture
def backend():
    backend = OnnxRuntimeBackend()
    yield backend
    backend.close()


def changed(job, field, picture):
    match field:
        case "content" | "style" | "start":
            return replace(job, **{field: Picture(picture(9, 18, 24), None, field)})
        case "content's last bit":
            pixels = job.content.pixels.copy()
            pixels[-1, -1, -1] = np.nextafter(pixels[-1, -1, -1], np.float32(2))
            return replace(job, content=replace(job.content, pixels=pixels))
        case "content's alpha":
            return replace(job, content=replace(job.content, alpha=np.ones((18, 24), np.float32)))
        case "content's shape":
            return replace(job, content=replace(job.content, pixels=job.content.pixels.reshape(24, 18, 3)))
        case "preset.objective.content.relu3_3":
            return replace(job, preset=job.preset.with_weights(content=3.0))
        case "preset.solver.learning_rate":
            return replace(job, preset=replace(job.preset, solver=Adam(3, learning_rate=1.0)))
        case "sizing.pixels":
            return replace(job, sizing=Sizing("long", 25))
        case "seed":
            return replace(job, seed=1)
        case "plan":
            return replace(job, plan="sliced")
        case "threads":
            return replace(job, threads=63)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("content", "content differs"),
        ("content's last bit", "content differs"),
        ("content's alpha", "content differs"),
        ("content's shape", "content differs"),
        ("style", "style differs"),
        ("start", "start differs"),
        ("preset.objective.content.relu3_3", "preset.objective.content."),
        ("preset.solver.learning_rate", "preset.solver."),
        ("sizing.pixels", "sizing.pixels is 24 there and 25 here"),
        ("seed", "seed is 0 there and 1 here"),
        ("plan", 'plan is "fused" there and "sliced" here'),
        ("threads", "and 63 here"),
    ],
)
def test_every_difference_between_jobs_is_named(job, backend, picture, field, told):
    there = identity(job, backend, VERSIONS)
    here = identity(changed(job, field, picture), backend, VERSIONS)
    assert told in differences(there, here)


def test_weights_backend_precision_and_versions_count(job, backend, vgg19):
    there = identity(job, backend, VERSIONS)
    assert "weights differs" in differences(there, identity(replace(job, weights=vgg19), backend, VERSIONS))
    newer = identity(job, backend, {"impasto": "1", "numpy": "3"})
    assert differences(there, newer) == 'versions.numpy is "2" there and "3" here'
    backend.precision = "bf16"
    assert differences(there, identity(job, backend, VERSIONS)) == 'precision is "fp32" there and "bf16" here'


def test_the_memory_of_tiles_counts_where_windows_depend_on_it(job, backend):
    def told(job: Job) -> str | None:
        limited = replace(job, tile_memory=10**9)
        return differences(identity(job, backend, VERSIONS), identity(limited, backend, VERSIONS))

    assert told(job) is None
    assert told(replace(job, plan="tiled")) == "tile_memory is null there and 1000000000 here"


def test_the_same_job_has_no_difference(job, backend, shallow, picture):
    again = replace(job, content=Picture(picture(1, 18, 24), None, "another name"))
    assert differences(identity(job, backend, VERSIONS), identity(again, backend, VERSIONS)) is None


def test_a_message_names_three_and_counts_the_rest():
    told = differences({"a": 1, "b": 2, "c": {"d": 3, "e": 4}}, {"a": 2, "b": 3, "c": {"d": 4, "f": math.pi}})
    assert told == "a is 1 there and 2 here, b is 2 there and 3 here, c.d is 3 there and 4 here, and 2 more"


def test_fp16_has_no_checkpoints_for_its_gradient_s_scale_remembers(backend):
    backend.precision = "fp16"
    with pytest.raises(UsageError, match="precision fp16 has no checkpoints"):
        check_repeatable(backend)


@pytest.mark.parametrize("name", [*BACKENDS, "openvino:GPU"])
def test_backends_of_gpus_have_no_checkpoints(backend, name):
    backend.name = name
    if name in ("onnxruntime", "torch", "openvino"):
        check_repeatable(backend)
    else:
        with pytest.raises(UsageError, match=f"backend {name} has no checkpoints"):
            check_repeatable(backend)
