"""``--config``, ``--events``, ``impasto schema`` and ``impasto presets save``: jobs as files, from the command line."""

from __future__ import annotations

import json
import os
import threading

import pytest

from impasto.runtime.job_spec import JobSpec
from impasto.runtime.presets import Preset


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CONFIG", str(tmp_path / "settings"))
    return tmp_path / "settings"


@pytest.fixture
def job(pictures):
    """A job's file, beside the pictures; its output is out.png beside it."""
    path = pictures.folder / "job.toml"
    path.write_text(
        'content = "content.png"\nstyle = "style.jpg"\nweights = "small.safetensors"\n'
        'preset = "pytorch"\nsolver = "lbfgs"\nsize = 24\niterations = 3\n'
    )
    return path


def test_a_file_stands_for_the_options(run, pictures, job, tmp_path):
    assert run(*pictures.job, "-o", tmp_path / "options.png").code == 0
    assert run("stylize", "--config", job, "-o", tmp_path / "file.png").code == 0
    assert (tmp_path / "options.png").read_bytes() == (tmp_path / "file.png").read_bytes()


def test_options_come_before_the_file(run, pictures, job, tmp_path):
    args = [
        "--size",
        16,
        "--scales",
        "0.5,1",
        "--seed",
        0,
        "--init",
        "noise",
        "--max-pixels",
        "none",
        "--memory-limit",
        "50%",
    ]
    told = run("stylize", pictures.style, "--config", job, "-o", tmp_path / "out.png", "--json", *args)
    assert told.code == 0
    value = json.loads(told.out)
    assert value["size"] == [16, 16]
    spec = JobSpec.from_json(value)
    assert (spec.content, spec.style) == (str(pictures.style), str(pictures.style))
    assert spec.output == str(tmp_path / "out.png")
    assert spec.preset.init == "noise"
    assert [stage.scale for stage in spec.preset.stages] == [0.5, 1.0]
    assert spec.limits == {"max_pixels": None, "memory": 0.5}


@pytest.mark.parametrize("name", ["out.png", "out.jpg"])
def test_what_json_prints_paints_the_same_file_again(run, pictures, tmp_path, name):
    args = ["--init", "noise", "--seed", 9, "--style-weight", 2e6, "--quality", 71, "--json"]
    told = run(*pictures.job, "-o", tmp_path / name, *args)
    assert told.code == 0
    first = (tmp_path / name).read_bytes()
    (tmp_path / "job.json").write_text(told.out)
    again = run("stylize", "--config", tmp_path / "job.json", "--json")
    assert (again.code, again.out) == (2, "")  # the picture is there
    assert "--force" in again.error
    again = run("stylize", "--config", tmp_path / "job.json", "--force", "--json")
    assert again.code == 0
    assert (tmp_path / name).read_bytes() == first
    assert json.loads(again.out)["job"] == json.loads(told.out)["job"]


def test_another_picture_under_the_same_name_is_refused(run, pictures, tmp_path):
    for name in ("content.png", "style.jpg", "small.safetensors"):
        (tmp_path / name).write_bytes((pictures.folder / name).read_bytes())
    job = ["stylize", tmp_path / "content.png", tmp_path / "style.jpg", *pictures.job[3:]]
    told = run(*job, "-o", tmp_path / "out.png", "--json")
    assert told.code == 0
    (tmp_path / "job.json").write_text(told.out)
    (tmp_path / "content.png").write_bytes(pictures.style.read_bytes())
    refused = run("stylize", "--config", tmp_path / "job.json", "--force")
    assert refused.code == 5
    assert "content.png' is not what the job was painted with" in refused.error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size = ", ["job.toml", "TOML"]),
        ("sise = 3", ["sise", "size"]),
        ('preset = "jonson"', ["jonson", "johnson"]),
        ('plan = "fusde"', ["fusde", "fused"]),
        ("[limits]\nmax_pixels = -1", ["max_pixels", "-1"]),
        ('content = "content.png"', ["no style", "STYLE"]),
        ('content = "a.png"\nstyle = "b.png"', ["no output", "--output (-o)"]),
    ],
    ids=lambda value: value.split("\n")[0] if isinstance(value, str) else "",
)
def test_a_file_that_cannot_work_is_refused_in_one_line(run, tmp_path, text, words):
    (tmp_path / "job.toml").write_text(text)
    told = run("stylize", "--config", tmp_path / "job.toml", *([] if words[0].startswith("no ") else ["-o", "x.png"]))
    if "jonson" in words:  # a recipe is asked for only once there is a whole job
        told = run("stylize", "a.png", "b.png", "--config", tmp_path / "job.toml", "-o", tmp_path / "x.png")
    assert (told.code, told.out) == (2, "")
    assert len(told.err.splitlines()) == 1
    assert all(word in told.error for word in words), told.error


def test_a_file_that_is_not_there_is_told(run, tmp_path):
    told = run("stylize", "--config", tmp_path / "none.toml")
    assert told.code == 2
    assert "none.toml" in told.error


# --- Events and schemas ----------------------------------------------------------------------------------------------


def test_events_tell_every_evaluation_and_the_result(run, pictures, tmp_path):
    told = run(*pictures.job, "-o", tmp_path / "out.png", "--events", tmp_path / "events", "--json", "--quiet")
    assert (told.code, told.err) == (0, "")
    *steps, last = map(json.loads, (tmp_path / "events").read_text().splitlines())
    result = json.loads(told.out)
    assert last == {"event": "result", "result": result}
    assert [(step["event"], step["evaluation"], step["loss"]) for step in steps] == [
        ("step", point["evaluation"], point["loss"]) for point in result["trace"]
    ]
    told = run(*pictures.job, "-o", tmp_path / "out2.png", "--events", tmp_path / "events")
    assert told.code == 2
    assert "--force" in told.error
    assert not (tmp_path / "out2.png").exists()


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_events_can_be_followed_through_a_pipe_whose_reader_may_leave(run, pictures, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    seen = []

    def read():
        with (tmp_path / "pipe").open() as file:
            seen.append(json.loads(file.readline()))

    reader = threading.Thread(target=read)
    reader.start()
    told = run(*pictures.job, "-o", tmp_path / "out.png", "--events", tmp_path / "pipe", "--iterations", 40)
    reader.join()
    assert told.code == 0
    assert seen[0]["evaluation"] == 1
    assert (tmp_path / "out.png").exists()


def test_events_that_cannot_be_written_are_told_before_painting(run, pictures, tmp_path):
    told = run(*pictures.job, "-o", tmp_path / "out.png", "--events", tmp_path / "none" / "events")
    assert told.code == 2
    assert "events" in told.error
    assert list(tmp_path.iterdir()) == []


def test_real_outputs_are_what_the_schemas_say(run, pictures, job, tmp_path):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")

    def validator(*kind):
        told = run("schema", *kind)
        assert (told.code, told.err) == (0, "")
        schema = json.loads(told.out)
        jsonschema.Draft202012Validator.check_schema(schema)
        return jsonschema.Draft202012Validator(schema)

    args = ["--config", job, "-o", tmp_path / "out.png", "--events", tmp_path / "events", "--json", "--max-pixels", 0]
    told = run("stylize", *args)
    assert told.code == 0
    result = json.loads(told.out)
    validator("result").validate(result)
    validator("job").validate(result["job"])
    lines = (tmp_path / "events").read_text().splitlines()
    for line in lines:
        validator("event").validate(json.loads(line))
    assert not validator("job").is_valid({"sise": 3})
    assert not validator("result").is_valid({**result, "more": 1})
    assert not validator("event").is_valid({"event": "none"})
    told = run("schema")
    assert set(json.loads(told.out)["$defs"]) == {"job", "result", "event", "batch"}


def test_a_schema_of_something_else_is_refused(run):
    told = run("schema", "jobs")
    assert told.code == 2
    assert "job" in told.error


# --- Presets ---------------------------------------------------------------------------------------------------------


def test_a_saved_preset_paints_what_its_options_paint(run, pictures, tmp_path, settings):
    options = ["--preset", "pytorch", "--solver", "lbfgs", "--size", 24, "--iterations", 3, "--style-weight", 5e6]
    told = run("presets", "save", "mine", *options)
    assert (told.code, told.out) == (0, "")
    assert str(settings) in told.err
    job = ["stylize", pictures.content, pictures.style, "--weights", pictures.weights]
    assert run(*job, *options, "-o", tmp_path / "options.png").code == 0
    assert run(*job, "--preset", "mine", "-o", tmp_path / "preset.png").code == 0
    assert (tmp_path / "options.png").read_bytes() == (tmp_path / "preset.png").read_bytes()
    listed = run("presets", "list").out.splitlines()
    assert listed[-1].split()[0] == "mine"
    assert str(settings) in listed[-1]
    assert Preset.from_json(json.loads(run("presets", "show", "mine").out)).name == "mine"
    assert run("presets", "save", "mine").code == 2
    assert run("presets", "save", "mine", "--force", "--quiet").err == ""
    assert run("presets", "remove", "mine").code == 0
    assert run("presets", "remove", "mine").code == 2


def test_a_preset_is_saved_from_a_job(run, job):
    assert run("presets", "save", "mine", "--config", job, "--iterations", 8).code == 0
    preset = Preset.from_json(json.loads(run("presets", "show", "mine").out))
    assert (preset.sizing.pixels, preset.total_iterations()) == (24, 8)


@pytest.mark.parametrize("args", [["Mine!"], ["gatys"], ["mine", "--init", "a.png"], ["mine", "--preset", "none"]])
def test_a_preset_that_cannot_be_saved_is_refused_in_one_line(run, settings, args):
    told = run("presets", "save", *args)
    assert (told.code, told.out) == (2, "")
    assert len(told.err.splitlines()) == 1
    assert not settings.exists()
