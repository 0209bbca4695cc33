import numpy as np
import pytest

from impasto.errors import ImageError
from impasto.export.objective import Objective
from impasto.models.conventions import PIXEL_SPACES, pixel_space
from impasto.runtime.backends.protocol import Measured
from impasto.runtime.canvas import picture_of
from impasto.runtime.targets import encoded, measure_targets


class Recorder:
    """A backend that only notes what it is asked to measure, and by which picture it calibrates."""

    def __init__(self):
        self.asked, self.calibrated = [], []

    def calibrate(self, _weights, _objective, image):
        self.calibrated.append(image)
        return {"scale": image}

    def measure(self, _weights, objective, image, content, style, calibration):
        self.asked.append((image, content, style))
        assert calibration["scale"] is self.calibrated[-1]
        means = [tap for tap in style if objective.statistic(tap) == "covariance"]
        return Measured(dict.fromkeys(content, image), dict.fromkeys(style, image), dict.fromkeys(means, image))


OBJECTIVE = Objective(content={"relu2_2": 1.0, "conv1_1": 2.0}, style={"relu3_1": 1.0, "pool1": 1.0})


def test_each_picture_is_measured_at_its_own_taps_only(shallow, picture):
    backend = Recorder()
    content, style = picture(1, 12, 9), picture(2, 11, 14)
    targets = measure_targets(backend, shallow, OBJECTIVE, content, style)
    (content_image, *content_taps), (style_image, *style_taps) = backend.asked
    assert content_taps == [("relu2_2", "conv1_1"), ()]
    assert style_taps == [(), ("relu3_1", "pool1")]
    np.testing.assert_array_equal(content_image, encoded(OBJECTIVE, content))
    np.testing.assert_array_equal(style_image, encoded(OBJECTIVE, style))
    assert list(targets.content) == ["relu2_2", "conv1_1"]
    assert list(targets.style) == ["relu3_1", "pool1"]
    assert targets.style_positions == {"relu3_1": 2 * 3, "pool1": 5 * 7}
    assert targets.means == {}


def test_filters_are_calibrated_once_by_the_style_picture(bank, picture):
    """Whichever picture is measured then, and whichever has terms on the filters."""
    content, style = picture(1, 20, 21), picture(2, 23, 30)
    for terms in (
        {"content": {"bank0": 1.0}, "style": {"bank1": 1.0}},
        {"content": {"bank0": 1.0}, "style": {}},
        {"content": {}, "style": {"bank0": 1.0}},
    ):
        backend = Recorder()
        objective = Objective(**terms, pixels="unit", convention="unit")
        targets = measure_targets(backend, bank, objective, content, style)
        (image,) = backend.calibrated
        np.testing.assert_array_equal(image, encoded(objective, style))
        assert list(targets.calibration) == ["scale"]


def test_means_are_kept_for_covariances_only(bank, picture):
    objective = Objective(
        content={}, style={"bank0": 1.0, "bank1": 1.0}, statistics={"bank1": "covariance"}, pixels="unit"
    )
    targets = measure_targets(Recorder(), bank, objective, picture(1, 20, 21), picture(2, 23, 30))
    assert list(targets.style) == ["bank0", "bank1"]
    assert list(targets.means) == ["bank1"]
    # Halved, and rounded up: all of the picture is looked at.
    assert targets.style_positions == {"bank0": 23 * 30, "bank1": 12 * 15}


@pytest.mark.parametrize(("content", "style"), [({"relu1_1": 1.0}, {}), ({}, {"relu1_1": 1.0})])
def test_a_picture_without_taps_is_not_measured(shallow, picture, content, style):
    backend = Recorder()
    measure_targets(backend, shallow, Objective(content=content, style=style), picture(1, 2, 2), picture(2, 3, 3))
    assert len(backend.asked) == 1


def test_a_picture_too_small_is_told_from_its_size_and_tap(shallow, picture):
    with pytest.raises(ImageError, match="9x3 pixels is too small for tap relu3_1, which needs at least 4x4"):
        measure_targets(Recorder(), shallow, OBJECTIVE, picture(1, 12, 9), picture(2, 3, 9))
    with pytest.raises(ImageError, match="1x20 pixels is too small for tap relu2_2, which needs at least 2x2"):
        measure_targets(Recorder(), shallow, OBJECTIVE, picture(1, 20, 1), picture(2, 9, 9))


@pytest.mark.parametrize(
    "taps", [{"content": ["bank2"], "style": ["bank0"]}, {"content": ["bank0"], "style": ["bank2"]}]
)
def test_both_pictures_must_reach_every_filter(bank, shallow, picture, taps):
    """Even those by which only the other is compared: the style picture calibrates them, graphs compute them all."""
    content, style = (dict.fromkeys(taps[kind], 1.0) for kind in ("content", "style"))
    objective = Objective(content=content, style=style, pixels="unit", convention="unit")
    need = bank.backbone.smallest("bank2")
    assert need > bank.backbone.smallest("bank0")
    enough, narrow = picture(1, need, 40), picture(2, need - 1, 40)
    measure_targets(Recorder(), bank, objective, enough, enough)
    words = f"40x{need - 1} pixels is too small for tap bank2, which needs at least {need}x{need}"
    for pictures in ((enough, narrow), (narrow, enough)):
        with pytest.raises(ImageError, match=words):
            measure_targets(Recorder(), bank, objective, *pictures)
    # Without filters a picture need only reach its own taps.
    vgg = Objective(content={"relu3_1": 1.0}, style={"relu1_1": 1.0})
    measure_targets(Recorder(), shallow, vgg, picture(1, 4, 4), picture(2, 1, 1))


@pytest.mark.parametrize("space", PIXEL_SPACES)
def test_pictures_go_to_pixels_and_back(picture, space):
    objective = Objective(content={"relu1_1": 1.0}, style={}, pixels=space)
    rgb = picture(4, 5, 7)
    image = encoded(objective, rgb)
    assert image.shape == (1, 3, 5, 7)
    assert image.dtype == np.float32
    back = picture_of(pixel_space(objective.pixels), image)
    assert back.shape == rgb.shape
    # Rounded once in a space whose values reach 255 for 1: half of 2⁻¹⁶ over 255, and once more in 0–1.
    np.testing.assert_allclose(back, rgb, rtol=0, atol=2**-17 / 255 * 2 + 2**-24)


def test_what_no_picture_can_show_is_clipped():
    objective = Objective(content={"relu1_1": 1.0}, style={}, pixels="unit")
    image = np.array([-0.5, 0.25, 1.75], np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(
        picture_of(pixel_space(objective.pixels), image), np.array([[[0, 0.25, 1]]], np.float32)
    )
