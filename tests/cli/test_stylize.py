"""``impasto stylize``: the picture, the JSON, the streams, and what is refused before painting."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from impasto.models.locate import find_weights
from impasto.runtime.default import choose
from impasto.runtime.read_image import read_image
from impasto.runtime.recipes import find_preset
from impasto.runtime.stylizer import Stylizer

FIELDS = {
    "output",
    "size",
    "preset",
    "backend",
    "precision",
    "plan",
    "weights",
    "taps",
    "loss",
    "trace",
    "seconds",
    "peak_memory_bytes",
    "seed",
    "versions",
}


def test_it_paints_what_the_library_paints(run, pictures, tmp_path):
    args = ["--size", 48, "--iterations", 3, "--weights", pictures.weights]
    told = run("stylize", pictures.content, pictures.style, "-o", tmp_path / "out.png", *args)
    assert (told.code, told.out) == (0, "")
    assert "do not reach" in told.err  # the weights end early, and the default preset does without the rest
    with Stylizer(weights=pictures.weights) as stylizer:
        result = stylizer.stylize(pictures.content, pictures.style, size=48, iterations=3)
    assert result.size == (48, 34)  # 56×40 → 48×34.3
    result.save(tmp_path / "expected.png")
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


SHORT = ["--size", 24, "--iterations", 3]


def test_without_weights_the_filter_bank_paints_and_says_once_what_would_be_closer(run, pictures, tmp_path, own_cache):
    job = ["stylize", pictures.content, pictures.style, *SHORT]
    told = run(*job, "-o", tmp_path / "out.png", "--json")
    assert told.code == 0
    value = json.loads(told.out)
    assert (value["preset"], value["weights"]["name"]) == ("filterbank", "filterbank")
    line = choose("impasto")[1]
    assert [said for said in told.err.splitlines() if "filter bank" in said] == [f"impasto: {line}"]
    # As the library paints it, and without a word where that is asked for.
    with Stylizer() as stylizer:
        stylizer.stylize(pictures.content, pictures.style, size=24, iterations=3).save(tmp_path / "expected.png")
    told = run(*job, "-o", tmp_path / "quiet.png", "--quiet")
    assert (told.code, told.out, told.err) == (0, "", "")
    expected = (tmp_path / "expected.png").read_bytes()
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "quiet.png").read_bytes() == expected


@pytest.mark.parametrize(
    ("args", "weights"),
    [
        (["--preset", "filterbank"], "filterbank"),
        (["--weights", "filterbank"], "filterbank"),
        (["--weights", "filterbank-3"], "filterbank-3"),
        (["--preset", "filterbank", "--weights", "filterbank-3", "--plan", "sliced"], "filterbank-3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_who_asks_for_the_filter_bank_is_told_of_no_other_weights(run, pictures, tmp_path, own_cache, args, weights):
    told = run("stylize", pictures.content, pictures.style, *SHORT, "-o", tmp_path / "out.png", "--json", *args)
    assert told.code == 0
    assert "weights fetch" not in told.err
    value = json.loads(told.out)
    assert (value["preset"], value["weights"]["name"]) == ("filterbank", weights)
    assert value["taps"]["style"][0] == "bank0"
    assert set(value["terms"]) == {f"{kind}.{tap}" for kind, taps in value["taps"].items() for tap in taps}


def test_with_vgg19_in_the_cache_the_default_paints_with_that(run, pictures, tmp_path, own_cache):
    (own_cache / "weights").mkdir(parents=True)
    (own_cache / "weights" / "vgg19.safetensors").write_bytes(pictures.weights.read_bytes())
    told = run("stylize", pictures.content, pictures.style, *SHORT, "-o", tmp_path / "out.png", "--json")
    assert told.code == 0
    assert "filter bank" not in told.err
    value = json.loads(told.out)
    assert (value["preset"], value["weights"]["name"]) == ("impasto", "vgg19")


def test_a_picture_too_small_for_the_filter_bank_is_told_by_its_size(run, pictures, tmp_path, own_cache):
    dot = tmp_path / "dot.png"
    for size in ((1, 1), (2, 2)):
        Image.new("RGB", size, (200, 30, 90)).save(dot)
        args = ["stylize", dot, dot, "-o", tmp_path / "out.png", "--preset", "filterbank", "--size", size[0]]
        told = run(*args)
        assert (told.code, told.out) == (5, "")
        assert f"{size[0]}x{size[1]} pixels is too small for tap bank0" in told.error
        assert not (tmp_path / "out.png").exists()


def test_json_is_one_object_with_every_field_and_terms_that_add_up(run, pictures, tmp_path):
    output = tmp_path / "out.jpg"
    told = run(*pictures.job, "-o", output, "--json", "--seed", 5, "--tv-weight", 1e3)
    assert told.code == 0
    value = json.loads(told.out)
    assert set(value) >= FIELDS
    assert value["output"] == str(output)
    assert value["size"] == [24, 24] == list(read_image(output).size)
    assert (value["preset"], value["backend"], value["precision"], value["plan"]) == (
        "pytorch",
        "onnxruntime",
        "fp32",
        "fused",
    )
    assert value["weights"] == {"name": "small.safetensors", "sha256": find_weights(pictures.weights).sha256}
    assert value["taps"] == {
        "content": ["conv2_2"],
        "style": ["conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1"],
    }
    loss = value["loss"]
    # Sums of float64 numbers in two orders.
    assert loss["total"] == pytest.approx(loss["content"] + loss["style"] + loss["tv"], rel=1e-12)
    assert sum(value["terms"].values()) == pytest.approx(loss["total"], rel=1e-12)
    assert loss["tv"] > 0
    assert value["seed"] == 5
    assert {"impasto", "numpy", "onnxruntime"} <= set(value["versions"])
    assert value["stop"] == "done"
    assert value["peak_memory_bytes"] > 0
    trace = value["trace"]
    assert [point["evaluation"] for point in trace] == list(range(1, len(trace) + 1))
    assert trace[-1]["iteration"] == 3
    assert min(point["loss"] for point in trace) == pytest.approx(loss["total"], rel=1e-12)
    seconds = [point["seconds"] for point in trace]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= value["seconds"]


def test_progress_goes_to_standard_error_as_plain_lines(run, pictures, tmp_path):
    told = run(*pictures.job, "-o", tmp_path / "out.png")
    lines = told.err.splitlines()
    assert all(line.startswith("impasto: ") for line in lines)
    assert "painting 0%, iteration 0, loss " in lines[0]
    assert any("painting 100%, iteration 3" in line for line in lines)
    assert str(tmp_path / "out.png") in lines[-1]
    assert "\x1b" not in told.err


def test_quiet_prints_nothing_but_the_json_that_is_asked_for(run, pictures, tmp_path):
    told = run(*pictures.job, "-o", tmp_path / "a.png", "--quiet")
    assert (told.code, told.out, told.err) == (0, "", "")
    told = run(*pictures.job, "-o", tmp_path / "b.png", "--quiet", "--json")
    assert (told.code, told.err) == (0, "")
    assert json.loads(told.out)["stop"] == "done"


def test_on_a_terminal_there_is_a_bar_and_standard_output_stays_clean(start, pictures, tmp_path):
    pty = pytest.importorskip("pty", reason="no terminals to open on this system")
    master, slave = pty.openpty()
    process = start(*pictures.job, "-o", tmp_path / "out.png", "--json", stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # how Linux tells that the other side is closed
            break
        if not chunk:
            break
        shown += chunk
    out, _ = process.communicate()
    os.close(master)
    assert process.returncode == 0
    assert json.loads(out)["stop"] == "done"
    assert "━".encode() in shown
    assert b"\x1b" in shown


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_the_suffix_decides_the_format(run, pictures, tmp_path, suffix):
    output = tmp_path / f"out.{suffix}"
    assert run(*pictures.job, "-o", output).code == 0
    with Image.open(output) as image:
        assert image.format == {"jpg": "JPEG"}.get(suffix, suffix.upper())
        assert image.size == (24, 24)


def test_quality_reaches_the_file(run, pictures, tmp_path):
    for quality in (20, 95):
        assert run(*pictures.job, "-o", tmp_path / f"{quality}.jpg", "--quality", quality).code == 0
    assert (tmp_path / "20.jpg").stat().st_size < (tmp_path / "95.jpg").stat().st_size


def job_json(run, pictures, tmp_path, *args):
    told = run(*pictures.job, "-o", tmp_path / "out.png", "--force", "--json", *args)
    assert told.code == 0, told.err
    return json.loads(told.out)


def test_options_change_the_objective(run, pictures, tmp_path):
    first = job_json(run, pictures, tmp_path)["trace"][0]["loss"]
    # Painting starts from the content picture, where the content term is zero: the loss is style's alone.
    assert job_json(run, pictures, tmp_path, "--style-weight", 3e6)["trace"][0]["loss"] == pytest.approx(
        3 * first, rel=1e-5
    )
    assert job_json(run, pictures, tmp_path, "--content-weight", 3)["trace"][0]["loss"] == pytest.approx(
        first, rel=1e-5
    )
    assert job_json(run, pictures, tmp_path, "--tv-weight", 1e9)["trace"][0]["loss"] > 2 * first
    assert job_json(run, pictures, tmp_path, "--pooling", "average")["trace"][0]["loss"] != pytest.approx(
        first, rel=1e-3
    )


def test_the_seed_draws_the_noise(run, pictures, tmp_path):
    def start(*args):
        return job_json(run, pictures, tmp_path, "--init", "noise", *args)["trace"][0]["loss"]

    assert start("--seed", 1) == start("--seed", 1) != start("--seed", 2)


def test_init_takes_a_picture(run, pictures, tmp_path):
    style = job_json(run, pictures, tmp_path, "--init", "style")["trace"][0]["loss"]
    picture = job_json(run, pictures, tmp_path, "--init", pictures.style)["trace"][0]["loss"]
    content = job_json(run, pictures, tmp_path, "--init", "content")["trace"][0]["loss"]
    assert picture == style != content


@pytest.mark.parametrize("solver", ["adam", "lbfgs-b"])
def test_another_solver_paints_as_many_iterations(run, pictures, tmp_path, solver):
    if solver == "lbfgs-b":
        pytest.importorskip("scipy")
    trace = job_json(run, pictures, tmp_path, "--solver", solver, "--iterations", 6)["trace"]
    assert 2 <= len(trace) <= 8
    assert trace[-1]["loss"] < trace[0]["loss"]


def test_scales_say_at_which_sizes(run, pictures, tmp_path):
    one = job_json(run, pictures, tmp_path, "--scales", 1)
    same = job_json(run, pictures, tmp_path)
    two = job_json(run, pictures, tmp_path, "--scales", "0.5,1")
    assert one["trace"][0]["loss"] == same["trace"][0]["loss"] != two["trace"][0]["loss"]
    assert run(*pictures.job, "-o", tmp_path / "two.png", *SHORT, "--scales", "0.7").code == 2


def test_the_sliced_plan_and_torch_agree_with_the_default(run, pictures, tmp_path):
    pytest.importorskip("torch")
    first = job_json(run, pictures, tmp_path)
    for args in (["--plan", "sliced"], ["--backend", "torch"], ["--threads", 1]):
        other = job_json(run, pictures, tmp_path, *args)
        # The same start; rounding aside, the same loss.
        assert other["trace"][0]["loss"] == pytest.approx(first["trace"][0]["loss"], rel=1e-5)


def test_save_every_writes_pictures_on_the_way(run, pictures, tmp_path):
    told = run(*pictures.job, "-o", tmp_path / "a.b.png", "--iterations", 5, "--save-every", 2)
    assert told.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b-0002.png", "a.b-0004.png", "a.b.png"]
    stages = [
        np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("a.b-0002.png", "a.b-0004.png", "a.b.png")
    ]
    assert len({stage.shape for stage in stages}) == 1
    assert not np.array_equal(stages[0], stages[2])


def test_save_every_replaces_files_only_by_force(run, pictures, tmp_path):
    taken = tmp_path / "out-0002.png"
    taken.write_bytes(b"mine")
    for name in ("out-0003.png", "out-0006.png", "out-2.png"):  # none of this job's
        (tmp_path / name).write_bytes(b"other")
    args = [*pictures.job, "-o", tmp_path / "out.png", "--iterations", 5, "--save-every", 2]
    told = run(*args)
    assert (told.code, taken.read_bytes()) == (2, b"mine")
    assert "out-0002.png" in told.error
    assert "--force" in told.error
    assert not (tmp_path / "out.png").exists()
    assert run(*args, "--force").code == 0
    assert taken.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out-0006.png").read_bytes() == b"other"


def refused(run, pictures, tmp_path, code, *words, output=None, args=()):
    before = sorted(tmp_path.rglob("*"))
    told = run(*pictures.job, "-o", output or tmp_path / "out.png", *args)
    assert (told.code, told.out) == (code, "")
    assert len(told.err.splitlines()) == 1
    assert all(str(word) in told.error for word in words), told.error
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_exists_is_kept_without_force(run, pictures, tmp_path):
    output = tmp_path / "out.png"
    output.write_bytes(b"mine")
    refused(run, pictures, tmp_path, 2, "out.png", "--force")
    assert output.read_bytes() == b"mine"
    assert run(*pictures.job, "-o", output, "--force").code == 0
    assert output.read_bytes().startswith(b"\x89PNG")


def test_outputs_that_cannot_be_written_are_refused_before_painting(run, pictures, tmp_path):
    refused(run, pictures, tmp_path, 2, "no folder", "missing", output=tmp_path / "missing" / "out.png")
    refused(run, pictures, tmp_path, 2, ".gif", ".png", output=tmp_path / "out.gif")
    (tmp_path / "folder.png").mkdir()
    refused(run, pictures, tmp_path, 2, "is a folder", output=tmp_path / "folder.png")
    refused(run, pictures, tmp_path, 2, "is a folder", output=tmp_path / "folder.png", args=["--force"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--preset", "jonson"], ["preset 'jonson'", "johnson"]),
        (["--solver", "adan"], ["solver 'adan'", "adam"]),
        (["--solver", "sgd"], ["sgd", "adam"]),
        (["--backend", "onnx"], ["backend 'onnx'", "onnxruntime"]),
        (["--plan", "slice"], ["plan 'slice'", "sliced"]),
        (["--pooling", "maximum"], ["pooling 'maximum'", "max"]),
        (["--init", "contnet"], ["init 'contnet'", "content"]),
        (["--weights", "vgg91"], ["weights 'vgg91'", "vgg19"]),
        (["--content-weight", "-1"], ["-1"]),
        (["--style-weight", "nan"], ["nan"]),
        (["--preset", "johnson"], ["relu4_2", "conv3_1", "weights fetch vgg19"]),
    ],
    ids=lambda value: value[-1],
)
def test_names_and_values_that_cannot_work(run, pictures, tmp_path, args, words):
    refused(run, pictures, tmp_path, 2, *words, args=args)


def test_what_is_not_installed_or_fetched(run, pictures, tmp_path, monkeypatch, own_cache):
    refused(run, pictures, tmp_path, 3, "impasto weights fetch vgg19", "filterbank", args=["--weights", "vgg19"])
    told = run("stylize", pictures.content, pictures.style, "-o", tmp_path / "out.png", "--preset", "johnson")
    assert told.code == 3
    assert "impasto weights fetch vgg19" in told.error
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "impasto.models.reference", raising=False)
    refused(run, pictures, tmp_path, 3, "impasto[reference]", args=["--backend", "torch"])


@pytest.mark.parametrize(
    "args",
    [
        ["--max-pixels", "100"],
        ["--max-file-bytes", "50"],
        ["--max-long-side", "23"],
        ["--max-iterations", "2"],
    ],
    ids=lambda args: args[0],
)
def test_limits_refuse_and_can_be_lifted(run, pictures, tmp_path, args):
    refused(run, pictures, tmp_path, 4, args[0], args[1], args=args)
    for lifted in ("none", "0"):
        assert run(*pictures.job, "-o", tmp_path / "out.png", "--force", args[0], lifted).code == 0


def test_the_default_limits_hold(run, pictures, tmp_path):
    refused(run, pictures, tmp_path, 4, "8192", args=["--size", "9000"])
    refused(run, pictures, tmp_path, 4, "20000", args=["--iterations", "20001"])
    assert find_preset("impasto").total_iterations() <= 20000


def test_a_file_called_noise_does_not_hide_the_word(run, pictures, tmp_path, monkeypatch):
    named = job_json(run, pictures, tmp_path, "--init", "noise")["trace"][0]["loss"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").write_bytes(pictures.content.read_bytes())
    assert job_json(run, pictures, tmp_path, "--init", "noise")["trace"][0]["loss"] == named
