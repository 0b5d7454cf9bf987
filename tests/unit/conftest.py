from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from ptq4vm.models.base import Block, MattingModel


class Threshold(MattingModel):
    """Network with alpha = 1 where the mean of RGB exceeds 0.5.

    The state counts frames; the top left pixel of alpha is the frame number / 10.
    """

    name = "threshold"

    def __init__(self):
        super().__init__()
        self.ratios = []

    def initial_state(self, src):
        return (src.new_zeros(src.shape[0], 1, 1, 1),)

    def blocks(self):
        return (Block("all", ("src",), ("fgr", "pha"), self._forward, state=0),)

    def _forward(self, src, count):
        self.ratios.append(self.downsample_ratio)
        pha = (src.mean(1, keepdim=True) > 0.5).float()
        pha[..., :1, :1] = count / 10
        return 1 - src, pha, count + 1


def noise(height=49, width=65, count=3, seed=0):
    """Create smooth frames that survive 4:2:0 subsampling, (count, height, width, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    phases = np.random.default_rng(seed).uniform(0, 3, (count, 3))
    waves = [[np.sin(3 * x + 2 * y + phase) for phase in row] for row in phases]
    return np.round(127 + 100 * np.moveaxis(np.array(waves), 1, -1)).astype(np.uint8)


def write_video(path, frames, rate=Fraction(30), rotation=0):
    """Write a lossless RGB video with PyAV, which keeps odd sizes and exact values."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=rate, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "rgb24"
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model():
    return Threshold()


@pytest.fixture
def make_frames():
    return noise


@pytest.fixture
def make_video():
    return write_video


@pytest.fixture
def video(tmp_path):
    """Write a video of 3 frames, 65x49, at 30 fps."""
    return write_video(tmp_path / "in.mkv", noise())
