"""``impasto plan``, and the limit of memory that ``impasto stylize`` keeps."""

from __future__ import annotations

import json

import pytest

FIELDS = {
    "size": list,
    "preset": str,
    "solver": str,
    "backend": str,
    "precision": str,
    "fits": bool,
    "limit_bytes": (int, type(None)),
    "free_bytes": (int, type(None)),
    "free_source": str,
    "asked": dict,
    "painted": (dict, type(None)),
    "seconds": (float, type(None)),
    "notes": list,
    "remedies": list,
}
FORECAST = {
    "plan": str,
    "memory_bytes": int,
    "scratch_bytes": int,
    "components": dict,
    "evaluations": int,
    "stages": list,
}
STAGE = {"size": list, "evaluations": int, "memory_bytes": int, "windows": int, "overhead": float}


@pytest.fixture
def job(pictures) -> list[str]:
    """All but what is asked about a painting of both pictures."""
    recipe = ["--preset", "pytorch", "--solver", "lbfgs", "--iterations", "30", "--backend", "onnxruntime"]
    return ["plan", str(pictures.content), str(pictures.style), *recipe, "--weights", str(pictures.weights)]


def check(value: dict, schema: dict) -> None:
    assert set(value) == set(schema)
    for name, kind in schema.items():
        assert isinstance(value[name], kind), name


def test_json_has_everything_that_is_foretold(run, job) -> None:
    told = run(*job, "--size", 200, "--memory-limit", "3GB", "--json")
    assert (told.code, told.err) == (0, "")
    value = json.loads(told.out)
    check(value, FIELDS)
    assert value["fits"] is True
    assert value["limit_bytes"] == 3 * 10**9
    assert value["asked"] == value["painted"]
    assert value["remedies"] == value["notes"] == []
    check(value["painted"], FORECAST)
    (stage,) = value["painted"]["stages"]
    check(stage, STAGE)
    assert stage["size"] == value["size"] == [200, 200]  # the preset makes squares
    assert sum(value["painted"]["components"].values()) == value["painted"]["memory_bytes"]
    assert value["seconds"] > 0


def test_text_tells_memory_time_and_plan(run, job) -> None:
    told = run(*job, "--size", 200)
    assert told.code == 0
    assert "memory: about" in told.out
    assert "time: about" in told.out
    assert "fits" in told.out
    assert "plan: fused, tiles: none" in told.out
    assert "time:" not in run(*job, "--size", 200, "--no-time").out


def test_without_time_nothing_is_built(run, job, own_cache) -> None:
    assert run(*job, "--size", 200, "--no-time").code == 0
    assert not own_cache.exists()


def test_what_does_not_fit_says_what_would(run, job) -> None:
    need = json.loads(run(*job, "--size", 3000, "--no-time", "--json", "--plan", "fused").out)["asked"]["memory_bytes"]
    told = run(*job, "--size", 3000, "--no-time", "--json", "--plan", "fused", "--memory-limit", need // 4)
    assert told.code == 0
    value = json.loads(told.out)
    assert value["fits"] is False
    assert value["painted"] is None
    assert value["asked"]["memory_bytes"] == need
    (size,) = [remedy for remedy in value["remedies"] if "untiled" in remedy]
    side = size.split("--size ")[1].split(")")[0]
    again = json.loads(run(*job, "--size", side, "--no-time", "--json", "--memory-limit", need // 4).out)
    assert again["fits"] is True
    text = run(*job, "--size", 3000, "--no-time", "--plan", "fused", "--memory-limit", need // 4).out
    assert "does not fit" in text
    assert f"--size {side}" in text


def test_what_would_be_kept_in_files_is_told(run) -> None:
    recipe = ["--preset", "filterbank", "--backend", "onnxruntime", "--no-time", "--size", "1500x1000"]
    value = json.loads(run("plan", *recipe, "--memory-limit", "450MB", "--json").out)
    assert value["painted"]["scratch_bytes"] > 50 * 12 * 1500 * 1000  # with 20 pairs
    assert value["asked"]["scratch_bytes"] == 0
    assert [note.split()[0] for note in value["notes"]] == ["tiled,", "pictures"]
    told = run("plan", *recipe, "--memory-limit", "450MB").out
    assert "files: " in told
    assert "(TMPDIR), while it is painted" in told
    assert "files: " not in run("plan", *recipe, "--memory-limit", "none").out


def test_without_pictures_a_size_stands_for_both(run, pictures) -> None:
    recipe = ["--preset", "gatys-notebook", "--backend", "onnxruntime", "--weights", "random", "--no-time", "--json"]
    value = json.loads(run("plan", "--size", "640x480", *recipe).out)
    assert value["size"] == [640, 480]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--size WxH"),
        (["--size", "640"], "--size WxH"),
        (["--size", "0x5"], "--size"),
        (["--size", "big"], "--size"),
        (["one.png"], "not enough"),
        (["a.png", "b.png", "--size", "3x4"], "long side"),
        (["--size", "9x9", "--memory-limit", "much"], "memory"),
        (["--size", "9x9", "--memory-limit", "120%"], "memory"),
    ],
)
def test_what_makes_no_sense_is_a_matter_of_usage(run, arguments: list[str], words: str) -> None:
    told = run("plan", *arguments, "--preset", "filterbank")
    assert told.code == 2
    assert words in told.error


def test_a_picture_that_cannot_be_read_is_that_of_stylize(run, job, pictures) -> None:
    assert run("plan", pictures.folder / "none.png", pictures.style, *job[3:]).code == 5


@pytest.mark.parametrize(
    ("text", "limit"),
    [("3GB", 3 * 10**9), ("1.5G", 1_500_000_000), ("800MB", 8 * 10**8), ("12345", 12345), ("none", None)],
)
def test_memory_is_given_in_bytes_with_a_unit_or_none(run, job, text: str, limit: int | None) -> None:
    value = json.loads(run(*job, "--size", 64, "--no-time", "--json", "--memory-limit", text).out)
    assert value["limit_bytes"] == limit


def test_a_share_is_of_what_is_free(run, job) -> None:
    value = json.loads(run(*job, "--size", 64, "--no-time", "--json", "--memory-limit", "50%").out)
    # Pictures and weights, some MB here, count as free, and other programs come and go meanwhile.
    assert value["limit_bytes"] == pytest.approx(0.5 * value["free_bytes"], rel=0.2)


def test_stylize_refuses_what_cannot_fit_before_it_begins(run, pictures, tmp_path) -> None:
    output = tmp_path / "out.png"
    told = run(*pictures.job, "-o", output, "--backend", "onnxruntime", "--memory-limit", "1MB")
    assert told.code == 4
    assert "--memory-limit" in told.error
    assert not output.exists()


def test_stylize_tiles_what_does_not_fit_whole_and_says_so(run, pictures, tmp_path) -> None:
    job = [*pictures.job[:3], "--preset", "pytorch", "--solver", "adam", "--iterations", "1", "--size", "352"]
    job += ["--weights", str(pictures.weights), "--backend", "onnxruntime"]
    need = json.loads(run("plan", *job[1:], "--no-time", "--json").out)["asked"]["memory_bytes"]
    told = run(*job, "-o", tmp_path / "out.png", "--memory-limit", int(0.75 * need), "--json")
    assert told.code == 0
    value = json.loads(told.out)
    assert value["plan"] == "tiled"
    assert any(note.startswith("tiled") for note in value["notes"])
    assert "note: tiled" in told.err
