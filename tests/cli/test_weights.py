"""``impasto weights``."""

from __future__ import annotations

import hashlib
import io
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from impasto.models import sources
from impasto.models.locate import find_weights
from impasto.models.random_weights import random_weights
from impasto.models.weights import load_weights


def test_list_tells_what_is_here_and_what_can_be_fetched(run, pictures, own_cache):
    lines = run("weights", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == [*sources.SOURCES, "filterbank", "random"]
    assert all(f"impasto weights fetch {name}" in line for name, line in zip(sources.SOURCES, lines, strict=False))
    (own_cache / "weights").mkdir(parents=True)
    (own_cache / "weights" / "vgg19.safetensors").write_bytes(pictures.weights.read_bytes())
    lines = run("weights", "list").out.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted([*sources.SOURCES, "filterbank", "random"])
    for line in lines[-2:]:
        assert "drawn, needs no file" in line
    assert lines[0].split()[0] == "vgg19"
    assert str(own_cache) in lines[0]


def test_show(run, pictures):
    told = run("weights", "show", pictures.weights)
    assert (told.code, told.err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in told.out.splitlines())
    weights = load_weights(pictures.weights)
    assert rows["backbone"] == "vgg19"
    assert rows["convention"] == "caffe"
    assert rows["sha256"] == weights.sha256
    assert rows["taps"].split() == list(weights.taps)
    assert rows["taps"].split()[-1] == "relu3_1"


@pytest.mark.parametrize("name", ["filterbank", "filterbank-7"])
def test_show_of_the_filter_bank_which_is_always_here(run, own_cache, name):
    told = run("weights", "show", name)
    assert (told.code, told.err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in told.out.splitlines())
    weights = find_weights(name)
    assert (rows["name"], rows["backbone"], rows["convention"]) == (name, "filterbank", "unit")
    assert rows["sha256"] == weights.sha256
    assert rows["taps"].split() == list(weights.backbone.taps)
    parameters = sum(tensor.size for tensor in weights.tensors.values())
    assert rows["parameters"].split()[0] == str(parameters)
    assert not own_cache.exists()


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("filterbank-4294967296", 2, "seed"),
        ("filterbanks", 2, "filterbank"),
        ("vgg19", 3, "impasto weights fetch vgg19"),
        ("vgg91", 2, "vgg19"),
        ("missing.safetensors", 5, "do not exist"),
        ("random-99999999999", 2, "seed"),
    ],
)
def test_show_of_what_is_not_there(run, own_cache, name, code, words):
    told = run("weights", "show", name)
    assert (told.code, told.out) == (code, "")
    assert words in told.error


@pytest.fixture
def archive(tmp_path):
    """Weights as a NumPy archive, which does not say its convention."""
    weights = random_weights("vgg19", 4, last_conv="conv3_3")
    path = tmp_path / "foreign.npz"
    np.savez(path, **weights.tensors)
    return path


def test_convert_to_a_file(run, archive, tmp_path):
    output = tmp_path / "ours.safetensors"
    args = ["weights", "convert", archive, output, "--convention", "torchvision", "--backbone", "vgg19"]
    told = run(*args)
    assert (told.code, told.out) == (0, "")
    assert str(output) in told.err
    weights = load_weights(output)
    assert weights.convention.name == "torchvision"
    assert weights.taps[-1] == "relu3_3"
    assert np.array_equal(weights.tensors["conv2_1.weight"], np.load(archive)["conv2_1.weight"])
    first = output.read_bytes()
    told = run(*args)
    assert (told.code, output.read_bytes()) == (2, first)
    assert "--force" in told.error
    assert run(*args, "--force").code == 0


def test_convert_into_the_cache(run, archive, own_cache):
    args = ["weights", "convert", archive, "--name", "mine", "--convention", "caffe", "--backbone", "vgg19"]
    assert run(*args).code == 0
    assert find_weights("mine").taps[-1] == "relu3_3"
    assert run("weights", "show", "mine").code == 0
    assert "mine" in run("weights", "list").out
    assert run(*args).code == 2


@pytest.mark.parametrize(
    "name", ["random", "random-3", "filterbank", "filterbank-12", "a/b", "../x", ".hidden", "", "a.b"]
)
def test_names_that_could_not_be_found_again_are_refused(run, archive, own_cache, name):
    told = run("weights", "convert", archive, "--name", name, "--convention", "caffe", "--backbone", "vgg19")
    assert told.code == 2
    assert repr(name) in told.error
    assert not own_cache.exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "either OUT"),
        (["out.safetensors", "--name", "x"], "either OUT"),
        (["out.safetensors"], "convention"),
        (["out.safetensors", "--convention", "cafe"], "caffe"),
        (["out.safetensors", "--convention", "caffe", "--backbone", "vgg91"], "vgg19"),
        (["out.safetensors", "--convention", "caffe"], "backbone"),  # VGG-16's first layers are the same
        (["no/out.safetensors", "--convention", "caffe"], "no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_convert_needs_to_know(run, archive, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    archive = tmp_path / "stops-early.npz"
    np.savez(archive, **random_weights("vgg19", 4, last_conv="conv3_1").tensors)
    told = run("weights", "convert", archive, *args)
    assert (told.code, told.out) == (2, "")
    assert words in told.error


def test_convert_of_a_damaged_file(run, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04 not really a zip file")
    told = run("weights", "convert", tmp_path / "a.pth", tmp_path / "out.safetensors")
    assert told.code == 5
    assert "a.pth" in told.error
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@pytest.fixture
def source(monkeypatch, own_cache):
    """A source named vgg11 on a server of this machine, with the first convolution only."""
    torch = pytest.importorskip("torch")
    tensors = random_weights("vgg11", 9, last_conv="conv1_1").tensors
    buffer = io.BytesIO()
    torch.save(
        {key.replace("conv1_1", "features.0"): torch.from_numpy(value) for key, value in tensors.items()}, buffer
    )
    data = buffer.getvalue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    # A proxy of the environment would be asked for this machine's own address.
    monkeypatch.setenv("no_proxy", "*")
    url = f"http://127.0.0.1:{server.server_port}/vgg11-test.pth"
    source = sources.Source("vgg11", "vgg11", url, hashlib.sha256(data).hexdigest(), len(data))
    monkeypatch.setitem(sources.SOURCES, "vgg11", source)
    yield source
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetch_prints_the_path_and_shows_progress(run, source, own_cache):
    told = run("weights", "fetch", "vgg11")
    assert told.code == 0
    assert told.out == f"{own_cache / 'weights' / 'vgg11.safetensors'}\n"
    assert "impasto: fetching vgg11 100%" in told.err
    assert find_weights("vgg11").taps[-1] == "pool1"
    told = run("weights", "fetch", "vgg11", "--quiet")
    assert (told.code, told.err) == (0, "")


def test_fetch_of_another_file_than_the_registered_one(run, source, own_cache, monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "vgg11", replace(source, sha256="0" * 64))
    told = run("weights", "fetch", "vgg11")
    assert (told.code, told.out) == (5, "")
    assert "SHA-256" in told.error
    assert not list((own_cache / "weights").glob("vgg11*.safetensors"))


def test_fetch_without_a_network(run, source, own_cache, monkeypatch):
    # Port 9 is the discard service, which nothing runs any more.
    monkeypatch.setitem(sources.SOURCES, "vgg11", replace(source, url="http://127.0.0.1:9/vgg11.pth"))
    told = run("weights", "fetch", "vgg11")
    assert (told.code, told.out) == (3, "")
    assert "127.0.0.1:9" in told.error


def test_fetch_of_an_unknown_name(run, own_cache):
    told = run("weights", "fetch", "vgg91")
    assert (told.code, told.out) == (2, "")
    assert "vgg19" in told.error
