"""The quality and the filter bank benchmarks: distances are what their names say, and a run gives what it reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import bank, quality  # noqa: E402
from benchmarks.quality import Judge, Painted, quality_table  # noqa: E402
from benchmarks.task import Run  # noqa: E402
from impasto.errors import UnavailableError  # noqa: E402
from impasto.models.random_weights import random_weights  # noqa: E402
from impasto.models.reference import Reference  # noqa: E402
from impasto.models.weights import save_weights  # noqa: E402
from impasto.runtime.recipes import FILTERBANK  # noqa: E402


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """One with random weights in place of trained ones."""
    path = tmp_path / "blocks.safetensors"
    save_weights(random_weights("vgg19", 1, last_conv="conv3_3"), path)
    monkeypatch.setattr(quality, "REAL_BLOCKS", path)
    monkeypatch.setattr(quality, "PAIRS", (("demo content", "demo style"),))
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    return Judge()


def test_distances_are_those_of_the_formulas(judge: Judge) -> None:
    random = np.random.default_rng(3)
    painting, content = (random.random((29, 34, 3), np.float32) for _ in range(2))
    style = random.random((25, 40, 3), np.float32) ** 2
    weights = random_weights("vgg19", 1, last_conv="conv3_3")
    network = Reference(weights, ["relu1_1", "relu2_1", "relu3_1", "relu3_3"], dtype=torch.float64)

    def taps(rgb: np.ndarray) -> dict[str, np.ndarray]:
        bgr = rgb[..., ::-1].astype(np.float64) * 255 - (103.939, 116.779, 123.68)
        found = network(torch.from_numpy(bgr.transpose(2, 0, 1)[None].copy()))
        return {tap: value[0].flatten(1).numpy() for tap, value in found.items()}

    ours, photograph, model = taps(painting), taps(content), taps(style)
    expected = 0.0
    for tap in ("relu1_1", "relu2_1", "relu3_1"):
        found, wanted = (f[tap] @ f[tap].T / f[tap].shape[1] for f in (ours, model))
        expected += np.square(found - wanted).sum() / np.square(wanted).sum() / 3
    kept = np.square(ours["relu3_3"] - photograph["relu3_3"]).sum() / np.square(photograph["relu3_3"]).sum()
    # float32 features against float64 ones; squares double the relative error.
    assert judge.distances(painting, content, style) == pytest.approx((expected, kept), rel=1e-4)


def test_a_picture_is_at_no_distance_from_itself(judge: Judge) -> None:
    picture = np.random.default_rng(4).random((24, 31, 3), np.float32)
    assert judge.distances(picture, picture, picture) == (0.0, 0.0)


def test_a_painting_is_nearer_to_the_style_than_the_photograph(judge: Judge, tmp_path: Path) -> None:
    pair = ("demo content", "demo style")
    preset = FILTERBANK.with_iterations(24)
    (found,) = quality.measure(judge, preset, "filterbank", [pair], 64, tmp_path / "pictures")
    (start,) = quality.measure(judge, replace(preset.with_weights(style=0.0), stages=()), "filterbank", [pair], 64)
    assert found.style < 0.7 * start.style
    assert start.content < 1e-3 < found.content
    # A third of the iterations are the last stage's, each an evaluation or a few, and the first point is one.
    assert 8 < found.evaluations < 24
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["filterbank-demo_content-demo_style-64.png"]


def test_pictures_that_are_not_here_are_named() -> None:
    with pytest.raises(UnavailableError, match="'nowhere'"):
        quality.picture("nowhere")


def test_the_table_has_a_mean_for_each_preset() -> None:
    painted = [Painted("a", "b", 0.01, 0.5, 100, 3.0), Painted("c", "d", 0.03, 0.7, 120, 5.0)]
    text = quality_table({"one": painted, "two": painted[:1]}).markdown()
    assert "**0.0200** | **0.600**" in text
    assert "**0.0100** | **0.500**" in text


def test_command(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "find_preset", lambda _: FILTERBANK.with_iterations(6))
    path = tmp_path / "figures.json"
    arguments = ["--size", "40", "--content-weights", "0.01,0.1", "--json", str(path)]
    assert quality.main(arguments) == 0
    assert capsys.readouterr().out.count("**mean**") == 2
    light, heavy = (found[0] for found in json.loads(path.read_text()).values())
    assert light["content"] > heavy["content"]


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the curve needs the extra bench")
    path = tmp_path / "curve.png"
    quality.draw_curve(path, {"filterbank": [(0.02, 0.01, 0.6), (0.04, 0.02, 0.5)]})
    assert path.read_bytes().startswith(b"\x89PNG")


def test_shares_are_of_the_same_round() -> None:
    def took(milliseconds: float) -> Run:
        return Run([9.0, 9.0, *[milliseconds / 1e3] * 3], [1.0] * 5, 10**9, 10**8)

    costs = bank.Costs({bank.BANK: [took(100), took(300)], bank.VGG: [took(400), took(600)]})
    assert costs.shares() == pytest.approx([0.25, 0.5])
    assert "0.38 (0.25–0.50)" in bank.costs_table(costs).markdown()
