import numpy as np
import pytest

from impasto.errors import ImageError
from impasto.export.objective import Objective
from impasto.models.conventions import PIXEL_SPACES
from impasto.runtime.targets import decoded, encoded, measure_targets


class Recorder:
    """A backend that only notes what it is asked to measure."""

    def __init__(self):
        self.asked = []

    def measure(self, _weights, _objective, image, content, style):
        self.asked.append((image, content, style))
        return dict.fromkeys(content, image), dict.fromkeys(style, image)


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


@pytest.mark.parametrize("space", PIXEL_SPACES)
def test_pictures_go_to_pixels_and_back(picture, space):
    objective = Objective(content={"relu1_1": 1.0}, style={}, pixels=space)
    rgb = picture(4, 5, 7)
    image = encoded(objective, rgb)
    assert image.shape == (1, 3, 5, 7)
    assert image.dtype == np.float32
    back = decoded(objective, image)
    assert back.shape == rgb.shape
    # Rounded once in a space whose values reach 255 for 1: half of 2⁻¹⁶ over 255, and once more in 0–1.
    np.testing.assert_allclose(back, rgb, rtol=0, atol=2**-17 / 255 * 2 + 2**-24)


def test_what_no_picture_can_show_is_clipped():
    objective = Objective(content={"relu1_1": 1.0}, style={}, pixels="unit")
    image = np.array([-0.5, 0.25, 1.75], np.float32).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(decoded(objective, image), np.array([[[0, 0.25, 1]]], np.float32))
