from fractions import Fraction
from itertools import islice

import numpy as np
import pytest

from ptq4vm.video import open_background, open_frames
from ptq4vm.video.backgrounds import cover_crop, parse_colour


@pytest.mark.parametrize(
    ("text", "colour"),
    [
        ("#0a80FF", (10, 128, 255)),
        ("Black", (0, 0, 0)),
        ("#12345", None),
        ("#1234567", None),
        ("beach.jpg", None),
    ],
)
def test_parse_colour(text, colour):
    assert parse_colour(text) == colour


@pytest.mark.parametrize("shape", [(10, 300), (300, 10), (49, 65), (98, 130), (1, 1), (480, 640)])
def test_cover_crop_fills_the_frame(shape):
    assert cover_crop(np.zeros((*shape, 3), np.uint8), (49, 65)).shape == (49, 65, 3)


def test_cover_crop_keeps_the_middle():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255
    np.testing.assert_array_equal(cover_crop(image, (20, 20)), 255)
    np.testing.assert_array_equal(cover_crop(image, (10, 10)), 255)


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(30, [0, 1, 2, 0, 1, 2, 0]), (15, [0, 2, 1, 0, 2, 1, 0]), (60, [0, 0, 1, 1, 2, 2, 0])],
)
def test_video_plays_at_its_own_speed(video, make_frames, rate, shown):
    backgrounds = list(islice(open_background(video, (49, 65), Fraction(rate)), 7))
    np.testing.assert_array_equal(backgrounds, make_frames()[shown])
    assert open_frames(video).rate == 30
