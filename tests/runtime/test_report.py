"""Reports: one page that any strict parser and any browser takes, with everything in it."""

from __future__ import annotations

import base64
import io
import math
import shutil
import subprocess
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from impasto.errors import OutputError
from impasto.runtime.curves import curves
from impasto.runtime.loop import Step
from impasto.runtime.presets import Stage
from impasto.runtime.recipes import find_preset
from impasto.runtime.report import Report
from impasto.runtime.solvers import LBFGS
from impasto.runtime.stylizer import Stylizer

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def page(shallow, picture, tmp_path_factory):
    """The path of a report of a painting in two sizes, its result, and the number of evaluations."""
    preset = find_preset("pytorch")
    preset = replace(preset, name="<small> & 'odd'", solver=LBFGS(3), stages=(Stage(0.5, 3), Stage(1.0, 3)))
    content, style = picture(1, 30, 41), picture(2, 33, 27)
    path = tmp_path_factory.mktemp("report") / "out.html"
    report = Report(path)
    with Stylizer(preset, weights=shallow, cache=False, backend="onnxruntime") as stylizer:
        painting = stylizer.begin(content, style, size=40)
        for step in painting:
            report.see(step)
    result = painting.result()
    report.write(result, content, style)
    return path, result


def elements(page, name):
    return list(ElementTree.parse(page[0]).iter(name))


def text_of(page):
    return " ".join("".join(ElementTree.parse(page[0]).getroot().itertext()).split())


def test_the_page_is_whole_by_a_strict_parser_and_holds_nothing_from_elsewhere(page):
    root = ElementTree.parse(page[0]).getroot()
    assert root.tag == "html"
    assert not list(root.iter("script"))
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not value.startswith(("http:", "https:", "//", "file:")), (element.tag, name)
            assert not name.startswith("on")


def test_the_three_pictures_are_in_it(page):
    images = elements(page, "img")
    assert [image.get("alt") for image in images] == ["Painting", "Content", "Style"]
    sizes = []
    for image in images:
        kind, _, data = image.get("src").partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as opened:
            opened.load()
            sizes.append(opened.size)
            assert (int(image.get("width")), int(image.get("height"))) == opened.size
    assert sizes == [page[1].size, (41, 30), (27, 33)]


def test_there_is_a_curve_for_every_term_and_a_line_for_every_size(page):
    (svg,) = ElementTree.parse(page[0]).getroot().iter(f"{SVG}svg")
    told = [text.text for text in svg.iter(f"{SVG}text")]
    assert {"total", *page[1].terms} <= set(told)
    assert {"20×20", "40×40"} <= set(told)
    strokes = [path for path in svg.iter(f"{SVG}path") if path.get("stroke-width")]
    assert len(strokes) == 2 * (1 + len(page[1].terms))  # in the plot and in the legend


def test_settings_timings_and_the_job_are_told(page):
    told = text_of(page)
    result = page[1]
    for words in ("<small> & 'odd'", result.weights["sha256"][:12], "onnxruntime in fp32", "conv3_1", "versions"):
        assert words in told
    assert f"{result.loss['total']:.6g}" in told
    assert '"digests"' in told


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page with")
def test_a_browser_shows_it(page, tmp_path):
    target = tmp_path / "shot.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shot = [CHROMIUM, *options, f"--screenshot={target}", "--window-size=1200,1600", page[0].as_uri()]
    subprocess.run(shot, check=True, capture_output=True, timeout=120)
    with Image.open(target) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500  # pictures, not a blank or an error page


def test_a_file_that_is_there_is_refused_at_once(page):
    with pytest.raises(OutputError, match="exists"):
        Report(page[0])
    Report(page[0], overwrite=True)


def test_terms_that_begin_late_and_failed_evaluations_leave_gaps():
    report = Report("nowhere.html", overwrite=True)
    losses = [{"a": 1.0}, {"a": math.nan}, {"a": 2.0, "b": 3.0}]
    for number, terms in enumerate(losses):
        report.see(Step(number, number + 1, 0.0, sum(terms.values()), terms, True, (4, 4), lambda: None))
    assert report._terms["b"][2] == 3.0
    assert np.isnan(report._terms["b"][:2]).all()
    svg = ElementTree.fromstring(curves(report._iterations, report._terms, [], "evaluation"))
    drawn = [path.get("d") for path in svg.iter(f"{SVG}path") if path.get("stroke-width")][::2]
    assert [d.count("M") for d in drawn] == [2, 2, 1]


@pytest.mark.parametrize(
    ("xs", "columns"),
    [
        ([], {}),
        ([1], {"a": [5.0]}),
        ([1, 2], {"a": [0.0, -1.0]}),
        ([1, 2], {"<&>": [1e-300, 1e300]}),
        ([1, 2, 3], {str(n): [1.0, 1.0, 1.0] for n in range(40)}),
    ],
    ids=["nothing", "one point", "nothing positive", "600 decades", "40 flat curves"],
)
def test_curves_are_drawn_inside_their_frame_whatever_they_are(xs, columns):
    svg = ElementTree.fromstring(curves(xs, columns, [(xs[0], "<start>")] if xs else [], "x & y"))
    width, height = int(svg.get("width")), int(svg.get("height"))
    for text in svg.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x")) <= width
        assert 0 <= float(text.get("y")) <= height
    assert set(columns) <= {text.text for text in svg.iter(f"{SVG}text")}
