"""The service that docs/service.md shows: its own code, by the test double and by a real stylizer."""

import io
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from impasto.errors import DeviceError
from impasto.runtime.read_image import read_image
from impasto.runtime.stylizer import Stylizer
from impasto.runtime.write_image import encode_image
from impasto.testing import FakeStylizer

PAGE = Path(__file__).parent.parent / "docs" / "service.md"


@pytest.fixture(scope="module")
def create_app():
    pytest.importorskip("fastapi", reason="FastAPI is not installed")
    pytest.importorskip("python_multipart", reason="python-multipart is not installed")
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names["create_app"]


@pytest.fixture
def client(create_app):
    """A function from what `create_app` is given to a client of the running application."""
    testclient = pytest.importorskip("fastapi.testclient", reason="httpx is not installed", exc_type=Exception)
    open_clients = []

    def make(**given):
        client = testclient.TestClient(create_app(**given))
        open_clients.append(client)
        return client.__enter__()

    yield make
    for each in open_clients:
        each.__exit__(None, None, None)


@pytest.fixture
def files(picture):
    return {"content": encode_image(picture(1, 30, 40)), "style": encode_image(picture(2, 20, 20))}


@pytest.mark.parametrize("make", [FakeStylizer, Stylizer])
def test_a_picture_is_painted_for_whoever_asks(client, files, make, tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path))
    # Warming up at the page's size would be most of the time.
    monkeypatch.setattr(Stylizer, "warm_up", lambda *_: None)
    service = client(make=make)
    answer = service.post("/paint?size=32", files=files)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["x-impasto-stop"] == "done"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (32, 24)
    health = service.get("/health").json()
    assert (health["jobs"], health["painting"], health["preset"]) == (0, False, "filterbank")


def test_errors_have_their_status_and_one_line(client, files):
    service = client(make=FakeStylizer)
    cases = [
        ("size=32", files | {"content": b"no picture"}, 415, "picture"),
        ("size=0", files, 422, "size is 0"),
        ("size=5000", files, 413, "1024"),
    ]
    for query, sent, status, words in cases:
        answer = service.post(f"/paint?{query}", files=sent)
        assert answer.status_code == status
        assert words in answer.json()["error"]
        assert "\n" not in answer.json()["error"]
    assert service.get("/health").json()["jobs"] == 0
    broken = client(make=partial(FakeStylizer, error=DeviceError("the context is lost")))
    assert broken.post("/paint", files=files).status_code == 503


def test_several_clients_are_served_in_turn(client, files):
    service = client(make=FakeStylizer)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda size: service.post(f"/paint?size={size}", files=files), range(20, 28)))
    assert [read_image(answer.content).size[0] for answer in answers] == list(range(20, 28))


# --- The double ------------------------------------------------------------------------------------------------------


def test_the_double_has_every_public_method_of_a_stylizer_that_paints():
    ours = {name for name in vars(Stylizer) if not name.startswith("_")}
    # What only makes sense with a backend.
    assert ours - set(vars(FakeStylizer)) == {"foresee", "job", "painting"}


def test_the_double_s_steps_and_result_are_as_a_painting_s(picture):
    with FakeStylizer("gatys") as stylizer:
        steps = list(stylizer.steps(picture(1, 30, 40), picture(2, 20, 20), size=20, iterations=5))
        result = stylizer.stylize(picture(1, 30, 40), picture(2, 20, 20), size=20, iterations=5)
    assert stylizer.closed
    assert [step.iteration for step in steps] == list(range(6))
    assert steps[-1].preview().shape == (15, 20, 3)
    assert (result.size, result.stop, result.preset) == ((20, 15), "done", "gatys")
    assert np.isfinite(result.image).all()
    assert [job["iterations"] for job in stylizer.jobs] == [5, 5]
    painting = stylizer.begin(picture(1, 30, 40), picture(2, 20, 20))
    next(painting)
    painting.close()
    assert list(painting) == []
    assert painting.result().stop == "stopped"
