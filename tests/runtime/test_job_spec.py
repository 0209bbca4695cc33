"""Jobs as values: their files, and what may stand in them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from impasto.errors import UnknownNameError, UsageError
from impasto.runtime.job_spec import JobSpec, read_job
from impasto.runtime.limits import Limits
from impasto.runtime.recipes import PRESETS, find_preset
from impasto.runtime.solvers import Adam

TOML = """
content = "photo.jpg"
style = "art/painting.jpg"
output = "../out.png"
preset = "johnson"
init = "start.png"
weights = "nets/own.safetensors"
style_weight = 300
[limits]
max_pixels = 0
memory = 0.5
"""


def test_paths_are_taken_from_the_file_s_folder(tmp_path):
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "job.toml").write_text(TOML)
    spec = read_job(folder / "job.toml")
    assert spec.content == str(folder / "photo.jpg")
    assert spec.style == str(folder / "art" / "painting.jpg")
    assert spec.output == str(tmp_path / "out.png")
    assert spec.init == str(folder / "start.png")
    assert spec.weights == str(folder / "nets" / "own.safetensors")
    assert spec.make_limits() == replace(Limits(), max_pixels=None, memory=0.5)


@pytest.mark.parametrize(("init", "weights"), [("noise", "vgg19"), ("style", "filterbank-7"), ("content", "random")])
def test_names_are_no_paths(tmp_path, init, weights):
    (tmp_path / "job.json").write_text(json.dumps({"init": init, "weights": weights}))
    spec = read_job(tmp_path / "job.json")
    assert (spec.init, spec.weights) == (init, weights)


def test_a_job_goes_to_json_and_back():
    spec = JobSpec(
        content="a",
        scales=(0.5, 1.0),
        preset=PRESETS["gatys"],
        seed=7,
        limits={"memory": None},
        engine_options={"refit": True},
    )
    value = json.loads(json.dumps(spec.to_json(), allow_nan=False))
    assert JobSpec.from_json(value) == spec
    assert JobSpec().to_json() == {}


def test_changes_are_made_to_a_preset_by_name_and_to_one_that_is_given_whole():
    for preset in ("gatys", PRESETS["gatys"], replace(PRESETS["gatys"], name="mine")):
        recipe, _ = JobSpec(preset=preset, iterations=7, solver="adam", style_weight=5.0, pooling="max").recipe()
        assert isinstance(recipe.solver, Adam)
        assert recipe.solver.iterations == 7
        assert set(recipe.objective.style.values()) == {5.0}
        assert recipe.objective.pooling == "max"


def test_a_whole_preset_has_the_size_and_the_start_too():
    preset = JobSpec(preset="pytorch", size=99, init="noise").whole_preset()
    # A preset that makes squares makes squares.
    assert (preset.sizing.edge, preset.sizing.pixels, preset.init) == ("stretch", 99, "noise")
    assert JobSpec(preset="gordic", size=99).whole_preset().sizing.edge == "long"
    with pytest.raises(UsageError, match=r"init is 'a\.png'"):
        JobSpec(init="a.png").whole_preset()


def test_a_preset_without_a_size_has_the_usual_one():
    value = find_preset("johnson").to_json()
    del value["sizing"]
    assert JobSpec.from_json({"preset": value}).preset == find_preset("johnson")


def test_what_is_given_anew_has_no_digest():
    spec = JobSpec(content="a", style="b", digests={"content": "1", "style": "2"})
    assert spec.changed({"content": "c"}) == JobSpec(content="c", style="b", digests={"style": "2"})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("job.toml", "size = ", "is no TOML"),
        ("job.toml", "size = 1979-05-27", "must be a whole number"),
        ("job.toml", "tv_weight = nan", "tv_weight is nan"),
        ("job.toml", "a = " + "[" * 100_000, "is no TOML"),
        ("job.json", "[" * 100_000, "is no JSON"),
        ("job.json", '{"size": NaN}', "NaN is no number in JSON"),
        ("job.json", "[]", "must be a table"),
        ("job.json", '"text"', "must be a table"),
        ("job.json", "", "is no JSON"),
        ("job.json", '{"sise": 3}', "did you mean size"),
        ("job.json", '{"preset": {"name": "x"}}', "preset.source is missing"),
        ("job.json", '{"preset": 3}', "must be text or a table"),
        ("job.json", '{"limits": {"pixels": 3}}', "unknown limit 'pixels'"),
        ("job.json", '{"limits": {"max_pixels": -3}}', "positive whole number"),
        ("job.json", '{"seed": 4294967296}', "from 0 to 4294967295"),
        ("job.yaml", "size: 3", r"must end in \.toml or \.json"),
    ],
    ids=lambda value: value[:24],
)
def test_a_file_that_is_no_job_is_refused_by_name(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        read_job(tmp_path / name)
    assert name in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_job(tmp_path / "none.toml")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        read_job(tmp_path / "folder.json")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no TOML"):
        read_job(tmp_path / "bytes.toml")
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(UsageError, match="more than"):
        read_job(tmp_path / "big.json")


def test_unknown_names_are_told_when_the_recipe_is_made():
    with pytest.raises(UnknownNameError, match="johnson"):
        JobSpec(preset="jonson").recipe()
    with pytest.raises(UnknownNameError, match="adam"):
        JobSpec(solver="adm").recipe()
