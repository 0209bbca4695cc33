import hashlib
import http.server
import io
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from impasto.errors import DownloadError, OutputError, StorageError, WeightsError
from impasto.models.fetch import fetch
from impasto.models.layers import Conv
from impasto.models.random_weights import random_weights
from impasto.models.sources import Source
from impasto.models.weights import load_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights():
    # 900 KB with what stands for the classifier: several chunks.
    return random_weights("vgg19", 5, last_conv="conv2_1")


@pytest.fixture(scope="module")
def content(weights):
    numbers = {layer.name: i for i, layer in enumerate(weights.backbone.layers) if isinstance(layer, Conv)}
    state = {
        f"features.{numbers[key.split('.')[0]]}.{key.split('.')[1]}": torch.from_numpy(tensor)
        for key, tensor in weights.tensors.items()
    }
    state["classifier.0.weight"] = torch.randn(100, 1000)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves one file; its attributes say how badly."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.etag = '"1"'
        self.ranges = True  # understands Range
        self.cut = None  # closes the connection after so many bytes
        self.stall = None  # falls silent after so many bytes, until released
        self.released = threading.Event()
        self.length = True  # says Content-Length
        self.shift = 0  # lies in Content-Range by so many bytes
        self.status = None  # answers this and nothing else
        self.requests = []

    def handle_error(self, *_):
        pass  # a client that hangs up is what some tests are about

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/files/vgg19-test.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        if server.status:
            self.send_error(server.status)
            return
        size = len(server.content)
        start = 0
        wanted = self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range") in (None, server.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start + server.shift}-{size - 1}/{size}")
        else:
            self.send_response(200)
        if server.length:
            self.send_header("Content-Length", str(size - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(server.content[start : server.cut])
        if server.stall:
            self.wfile.flush()
            server.released.wait(30)


@pytest.fixture
def server(content, monkeypatch):
    # A proxy of the environment would be asked for this machine's own address.
    monkeypatch.setenv("no_proxy", "*")
    with Server(content) as server:
        # Sending half a file is cutting it: what is sent is set by `cut`, and `stall` keeps the line open after it.
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def source_of(server, **changes):
    fields = {
        "name": "vgg19",
        "backbone": "vgg19",
        "url": server.url,
        "sha256": hashlib.sha256(server.content).hexdigest(),
        "max_bytes": len(server.content),
    }
    return Source(**fields | changes)


def files(cache):
    # The lock file stays on some systems and goes on others.
    return sorted(path.name for path in (cache / "weights").iterdir() if path.suffix != ".lock")


WHOLE = ["vgg19.safetensors"]
PART = ["vgg19-test.pth.etag", "vgg19-test.pth.part"]


def cut_after(server, cache, size):
    server.cut = size
    with pytest.raises(DownloadError) as raised:
        fetch(source_of(server), cache)
    server.cut = None
    return str(raised.value)


def test_whole(server, weights, tmp_path):
    progress = []
    path = fetch(source_of(server), tmp_path, lambda done, total: progress.append((done, total)))
    assert path == tmp_path / "weights" / "vgg19.safetensors"
    found = load_weights(path)
    assert (found.backbone.name, found.convention.name) == ("vgg19", "torchvision")
    # The classifier is gone, the convolutions are all there.
    assert found.tensors.keys() == weights.tensors.keys()
    assert all(np.array_equal(found.tensors[key], weights.tensors[key]) for key in found.tensors)
    assert files(tmp_path) == WHOLE
    done = [d for d, _ in progress]
    assert done == sorted(set(done))
    assert progress[-1] == (len(server.content), len(server.content))
    assert {total for _, total in progress} == {len(server.content)}


def test_the_second_time_nothing_is_downloaded(server, tmp_path):
    first = fetch(source_of(server), tmp_path)
    assert fetch(source_of(server), tmp_path) == first
    assert len(server.requests) == 1


def test_the_cache_of_the_user_by_default(server, tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path))
    assert fetch(source_of(server)) == tmp_path / "weights" / "vgg19.safetensors"


def test_damaged_weights_in_the_cache_are_replaced(server, tmp_path):
    path = fetch(source_of(server), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    fetch(source_of(server), tmp_path)
    assert path.read_bytes() == whole


def test_cut_and_resumed(server, content, tmp_path):
    message = cut_after(server, tmp_path, 300_000)
    assert f"{len(content) - 300_000} bytes are missing" in message
    assert "300000 bytes are kept, and running it again resumes there" in message
    assert files(tmp_path) == PART
    progress = []
    fetch(source_of(server), tmp_path, lambda done, total: progress.append((done, total)))
    assert (server.requests[1]["Range"], server.requests[1]["If-Range"]) == ("bytes=300000-", '"1"')
    assert progress[0][0] > 300_000
    assert progress[-1] == (len(content), len(content))
    assert files(tmp_path) == WHOLE


def test_cut_at_random_moments_until_it_is_whole(server, content, tmp_path):
    random = np.random.default_rng(4)
    held = 0
    while held < len(content):
        held += int(random.integers(1, 200_000))
        if held < len(content):
            cut_after(server, tmp_path, held)
    fetch(source_of(server), tmp_path)
    assert files(tmp_path) == WHOLE


def test_cut_before_the_first_byte(server, tmp_path):
    assert "run it again" in cut_after(server, tmp_path, 0)
    fetch(source_of(server), tmp_path)


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    cut_after(server, tmp_path, 300_000)
    fetch(source_of(server), tmp_path)
    assert "Range" in server.requests[1]
    assert files(tmp_path) == WHOLE


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_etag_ranges_are_asked_for_all_the_same(server, tmp_path, etag):
    server.etag = etag
    cut_after(server, tmp_path, 300_000)
    fetch(source_of(server), tmp_path)
    assert server.requests[1]["Range"] == "bytes=300000-"
    assert "If-Range" not in server.requests[1]


def test_a_file_that_changed_in_between_is_begun_anew(server, content, tmp_path):
    true = source_of(server)
    server.content = bytes(len(content))
    server.cut = 300_000
    with pytest.raises(DownloadError):
        fetch(true, tmp_path)
    server.content, server.cut, server.etag = content, None, '"2"'
    fetch(true, tmp_path)
    assert files(tmp_path) == WHOLE


def test_a_file_that_changed_without_an_etag_fails_once(server, content, tmp_path):
    true = source_of(server)
    server.etag = None
    server.content = bytes(len(content))
    server.cut = 300_000
    with pytest.raises(DownloadError):
        fetch(true, tmp_path)
    server.content, server.cut = content, None
    with pytest.raises(WeightsError, match="the download was removed, run it again"):
        fetch(true, tmp_path)
    fetch(true, tmp_path)
    assert files(tmp_path) == WHOLE


def test_a_part_that_is_complete_already(server, content, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / PART[1]).write_bytes(content)
    fetch(source_of(server), tmp_path)
    assert len(server.requests) == 1
    assert files(tmp_path) == WHOLE


def test_a_part_that_is_longer_than_the_file(server, content, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / PART[1]).write_bytes(content + b"more")
    fetch(source_of(server), tmp_path)
    assert len(server.requests) == 2
    assert files(tmp_path) == WHOLE


def test_a_range_that_was_not_asked_for(server, tmp_path):
    cut_after(server, tmp_path, 300_000)
    server.shift = 1
    with pytest.raises(DownloadError, match=r"bytes 300000- were asked for and 'bytes 300001-.* starts over"):
        fetch(source_of(server), tmp_path)
    assert files(tmp_path) == []
    fetch(source_of(server), tmp_path)
    assert files(tmp_path) == WHOLE


def test_without_a_length(server, tmp_path):
    server.length = False
    progress = []
    fetch(source_of(server), tmp_path, lambda _, total: progress.append(total))
    assert set(progress) == {None}
    assert files(tmp_path) == WHOLE


@pytest.mark.parametrize("digits", [64, 8])
def test_a_wrong_digest(server, content, tmp_path, digits):
    source = source_of(server)
    server.content = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(WeightsError, match=r"arrived with SHA-256 [0-9a-f]{64}.* removed"):
        fetch(source_of(server, sha256=source.sha256[:digits]), tmp_path)
    assert files(tmp_path) == []


def test_the_first_digits_suffice(server, tmp_path):
    fetch(source_of(server, sha256=hashlib.sha256(server.content).hexdigest()[:8]), tmp_path)
    assert files(tmp_path) == WHOLE


@pytest.mark.parametrize("length", [True, False])
def test_more_than_the_source_has_is_not_read(server, content, tmp_path, length):
    source = source_of(server)
    server.content = content + bytes(10_000_000)
    server.length = length
    seen = [0]
    with pytest.raises(WeightsError, match=f"larger than the {len(content)} bytes"):
        fetch(source, tmp_path, lambda done, _: seen.append(done))
    assert max(seen) <= (0 if length else len(content))
    assert files(tmp_path) == []


def test_a_file_that_is_no_weights(server, tmp_path):
    # The digest is right, so the source itself is wrong: what is there stays for a look.
    server.content = b"<html>" * 100
    with pytest.raises(WeightsError, match="neither a torch"):
        fetch(source_of(server), tmp_path)
    assert "vgg19.safetensors" not in files(tmp_path)


@pytest.mark.parametrize("status", [403, 404, 416, 500, 503])
def test_a_server_that_refuses(server, tmp_path, status):
    server.status = status
    with pytest.raises(DownloadError, match=f"the server answered {status}"):
        fetch(source_of(server), tmp_path)
    assert files(tmp_path) == []


def test_no_network(server, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/vgg19-test.pth"
        with pytest.raises(DownloadError, match=r"could not be downloaded: .*refused.* \(run it again\)"):
            fetch(source_of(server, url=url), tmp_path)
    assert files(tmp_path) == []


def test_a_server_that_speaks_no_http(server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/vgg19-test.pth"
        with pytest.raises(DownloadError, match="could not be downloaded"):
            fetch(source_of(server, url=url), tmp_path)
        thread.join()


def test_a_server_that_falls_silent(server, tmp_path):
    server.cut, server.stall = 300_000, True
    with pytest.raises(DownloadError, match=r"timed out.*300000 bytes are kept"):
        fetch(source_of(server), tmp_path, timeout=0.2)
    server.cut, server.stall = None, None
    fetch(source_of(server), tmp_path)
    assert server.requests[1]["Range"] == "bytes=300000-"


def test_killed_in_the_middle(server, tmp_path):
    source = source_of(server)
    server.cut, server.stall = 300_000, True
    script = (
        "from pathlib import Path; from impasto.models.fetch import fetch; from impasto.models.sources import Source;"
        f"fetch({source!r}, Path({str(tmp_path)!r}))"
    )
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    part = tmp_path / "weights" / PART[1]
    deadline = time.monotonic() + 30
    while not (part.is_file() and part.stat().st_size == 300_000):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert files(tmp_path) == PART
    server.cut, server.stall = None, None
    fetch(source, tmp_path)
    assert server.requests[1]["Range"] == "bytes=300000-"
    assert files(tmp_path) == WHOLE


def test_two_at_once_download_once(server, tmp_path):
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(source_of(server), tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / "weights" / "vgg19.safetensors"] * 4
    assert len(server.requests) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk(server, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / PART[1]).symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"no space left for .*IMPASTO_CACHE"):
        fetch(source_of(server), tmp_path)
    assert "vgg19.safetensors" not in files(tmp_path)


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "weights").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"cannot write .*weights"):
        fetch(source_of(server), tmp_path)
    assert server.requests == []
