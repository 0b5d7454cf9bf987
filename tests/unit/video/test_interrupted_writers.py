"""Tests of interrupted writers: an output is either unchanged or complete."""

import os
import signal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ptq4vm import ownership
from ptq4vm.video.videos import open_writer

FRAME = np.full((8, 8), 200, np.uint8)


@pytest.fixture
def earlier(tmp_path):
    folder = tmp_path / "frames"
    with open_writer(folder, (8, 8), Fraction(25)) as writer:
        writer.write(FRAME)
    return folder


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [0, 1])
def test_a_folder_that_is_replaced_is_there_whole(earlier, monkeypatch, step, after):
    """Interrupt before or after each of the two renames that replace the folder."""
    rename, steps = Path.rename, []

    def interrupted(self, target):
        steps.append(target)
        if len(steps) == step + 1 and not after:
            raise KeyboardInterrupt
        moved = rename(self, target)
        if len(steps) == step + 1:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", interrupted)

    def write_two():
        with open_writer(earlier, (8, 8), Fraction(25)) as writer:
            writer.write(FRAME)
            writer.write(FRAME)

    with pytest.raises(KeyboardInterrupt):
        write_two()
    ownership._remove_made()  # runs at process exit
    assert [path.name for path in earlier.parent.iterdir()] == ["frames"]
    assert len(list(earlier.iterdir())) == (2 if step and after else 1)


@pytest.mark.parametrize("name", ["alpha.mp4", "alpha.png", "alpha", "a.b/alpha.mkv"])
def test_what_a_killed_process_left_goes_with_the_next_start(tmp_path, name):
    path = tmp_path / name
    child = os.fork()
    if child == 0:
        try:
            writer = open_writer(path, (8, 8), Fraction(25))
            writer.write(FRAME)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    assert [file.name.startswith(".alpha.") for file in path.parent.iterdir()] == [True]
    with open_writer(path, (8, 8), Fraction(25)) as writer:
        writer.write(FRAME)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
