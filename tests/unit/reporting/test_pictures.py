import cv2
import numpy as np
import pytest
import torch

from ptq4vm.errors import PTQ4VMError
from ptq4vm.reporting import Strip, draw_strips


def make_strip(height=36, width=64, error=0.5):
    """Create a strip of a disc; its quantized alpha differs by `error` in the right half."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    alpha = (((y - height / 2) ** 2 + (x - width / 2) ** 2) < (height / 3) ** 2).float()[None]
    off = (alpha - error * (x >= width / 2)).abs()
    return Strip("set/clip, frame 7 of $5", torch.rand(3, height, width), alpha, alpha, off)


def draw(strips, path, **options):
    draw_strips(strips, path, **options)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return cv2.imread(str(path))[..., ::-1].astype(int)


def test_picture_has_a_row_a_frame_and_a_column_a_matte(tmp_path):
    one = draw([make_strip()], tmp_path / "pictures.png", dpi=50)
    two = draw([make_strip(), make_strip(72)], tmp_path / "pictures.png", dpi=50)
    without = draw([make_strip()._replace(true_alpha=None)], tmp_path / "pictures.png", dpi=50)
    assert one.shape[1] == two.shape[1] == pytest.approx(50 * (1.4 + 5 * 3 + 0.9), abs=1)
    assert two.shape[0] > 2 * one.shape[0]
    assert without.shape == (one.shape[0], one.shape[1] - 150, 3)
    assert one.std() > 20


def test_error_is_against_truth_and_else_against_float(tmp_path):
    strip = make_strip()

    def bright(strip):
        """Compute the fraction of pixels in the heat map's maximum color, yellow."""
        picture = draw([strip], tmp_path / "pictures.png", dpi=50)
        return np.mean((picture[..., 0] > 240) & (picture[..., 2] < 200))

    exact = strip._replace(quantized_alpha=strip.float_alpha)
    assert bright(strip) > bright(exact) + 0.02
    # Both alphas are far from the true alpha; without it, they are compared and agree.
    far = exact._replace(true_alpha=1 - exact.float_alpha)
    assert bright(far) > bright(exact) + 0.1
    assert bright(far._replace(true_alpha=None)) < bright(exact) + 0.02


def test_bad_strips(tmp_path):
    strip = make_strip()
    with pytest.raises(PTQ4VMError, match="at least one frame"):
        draw_strips([], tmp_path / "pictures.png")
    with pytest.raises(PTQ4VMError, match="Expected float_alpha of"):
        draw_strips([strip._replace(float_alpha=strip.float_alpha[0])], tmp_path / "pictures.png")
    (tmp_path / "file").touch()
    with pytest.raises(PTQ4VMError, match="Can't write"):
        draw_strips([strip], tmp_path / "file" / "pictures.png")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
