"""Tests of windows of calibration clips against plain indexing."""

import pytest
import torch
from small_network import make_batch, make_network

from ptq4vm.calibration.windows import draw_window

TIME, LENGTH = 5, 2


@pytest.fixture
def clips():
    batch = make_batch(make_network(), time=TIME)
    return batch._replace(
        fgr=torch.rand_like(batch.src),
        flow=torch.rand_like(batch.flow),
        first_state=(torch.rand_like(batch.first_state[0]),),
    )


@pytest.mark.parametrize("length", [None, TIME, TIME + 4])
def test_clips_no_longer_than_the_window_are_whole(clips, length):
    assert draw_window(clips, length, 3) is clips


def test_a_window_is_frames_of_the_clips_and_the_state_before_them(clips):
    before = torch.cat([clips.first_state[0][:, None], clips.teacher_state[0]], 1)
    drawn = []
    for seed in range(60):
        window = draw_window(clips, LENGTH, seed)
        starts = [t for t in range(TIME) if torch.equal(window.src[:, 0], clips.src[:, t])]
        (start,) = starts
        frames, changes = slice(start, start + LENGTH), slice(start, start + LENGTH - 1)
        for name in ("src", "pha", "fgr", "teacher_pha"):
            assert torch.equal(getattr(window, name), getattr(clips, name)[:, frames])
        for name in ("flow", "visible"):
            assert torch.equal(getattr(window, name), getattr(clips, name)[:, changes])
        assert torch.equal(window.teacher_state[0], clips.teacher_state[0][:, frames])
        assert torch.equal(window.first_state[0], before[:, start])
        drawn.append(start)
    assert set(drawn) == {0, 1, 2, 3}
    assert 18 <= drawn.count(0) <= 42  # every clip begins with its beginning


def test_a_window_depends_on_the_seed_alone(clips):
    one = draw_window(clips, LENGTH, 7)
    torch.rand(3)
    assert torch.equal(draw_window(clips, LENGTH, 7).src, one.src)
