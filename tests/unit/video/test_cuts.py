import json
from fractions import Fraction

import cv2
import numpy as np
import pytest

from ptq4vm.errors import PTQ4VMError
from ptq4vm.video import CutList, find_cuts

SIZE = (96, 160)


def scene(seed, count, step=1.0, size=SIZE):
    """Create frames of a moving disc over a background panned by `step` pixels per frame."""
    random = np.random.default_rng(seed)
    base, spread = random.integers(40, 200, 3), random.integers(-40, 55, (7, 12, 3))
    middle, colour = random.uniform(0.2, 0.8), random.integers(0, 256, 3)
    wide = cv2.resize(
        (base + spread).astype(np.uint8), (4 * size[1], size[0]), interpolation=cv2.INTER_CUBIC
    )
    y, x = np.mgrid[: size[0], : size[1]]
    frames = []
    for t in range(count):
        left = int(10 + step * t)
        frame = wide[:, left : left + size[1]].astype(float) + random.normal(0, 2, (*size, 3))
        frame[np.hypot(x - size[1] * middle - 8 * np.sin(t / 3), y - size[0] * 0.6) < 24] = colour
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    return frames


@pytest.mark.parametrize("seed", range(6))
def test_cuts_are_found_with_the_first_frame_of_a_shot(seed):
    frames = scene(10 * seed, 12) + scene(10 * seed + 1, 7) + scene(10 * seed + 2, 9, step=3)
    assert find_cuts(frames) == [12, 19]
    darker = [(frame * 0.4).astype(np.uint8) for frame in frames]
    assert find_cuts(darker) == [12, 19]


def test_cuts_are_found_at_any_size():
    assert find_cuts(scene(1, 8, size=(400, 600)) + scene(2, 8, size=(400, 600))) == [8]
    assert find_cuts([frame[:20, :30] for frame in scene(1, 8) + scene(2, 8)]) == [8]


def flash(frames, gain, length):
    bright = [np.clip(frame * float(gain) + 10, 0, 255).astype(np.uint8) for frame in frames]
    return [*frames[:10], *bright[10 : 10 + length], *frames[10 + length :]]


def fade(frames):
    levels = [*np.ones(8), *np.linspace(1, 0, 8), 0, 0, *np.linspace(0, 1, 8)]
    return [(frame * level).astype(np.uint8) for frame, level in zip(frames, levels, strict=False)]


def dissolve(before, after):
    shares = np.clip((np.arange(len(before)) - 5) / 20, 0, 1)
    return [
        (a * (1 - s) + b * s).astype(np.uint8)
        for a, b, s in zip(before, after, shares, strict=True)
    ]


NO_CUTS = {
    "still": lambda seed: [scene(seed, 1)[0]] * 10,
    "pan": lambda seed: scene(seed, 40, step=6),
    "fast pan that begins at once": lambda seed: (
        scene(seed, 10, step=0) + scene(seed, 20, step=8)[1:]
    ),
    "every third frame": lambda seed: scene(seed, 90, step=2)[::3],
    "flash": lambda seed: flash(scene(seed, 30), 1.6, 2),
    "flash that washes out": lambda seed: flash(scene(seed, 30), 30, 2),
    "fade": lambda seed: fade(scene(seed, 26)),
    "dissolve": lambda seed: dissolve(scene(seed, 30), scene(seed + 1, 30)),
    "noise": lambda seed: list(
        np.random.default_rng(seed).integers(0, 256, (12, *SIZE, 3), dtype=np.uint8)
    ),
    "pictures one after another": lambda seed: [scene(seed + n, 1)[0] for n in range(12)],
    "black": lambda seed: [np.zeros((*SIZE, 3), np.uint8)] * 6,
}


@pytest.mark.parametrize("seed", [0, 20, 40])
@pytest.mark.parametrize("kind", NO_CUTS)
def test_what_changes_within_a_shot_is_no_cut(kind, seed):
    assert find_cuts(NO_CUTS[kind](seed)) == []


def test_another_picture_between_is_left_at_most_once():
    """Report one cut for a short insert: the return to the previous shot is no cut."""
    before, other = scene(3, 30), scene(4, 2)
    assert find_cuts([*before[:10], *other, *before[12:]]) == [10]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cuts.txt", "3\n# a comment\n\n 0.2s  # six frames on at 30\n0:00.5\n0:00:01\n"),
        ("cuts.json", '[3, 0.2, "0:00.5", "1s"]'),
    ],
)
def test_lists_hold_frames_and_times(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    cuts = CutList.read(tmp_path / name)
    assert cuts.left == 4
    assert [n for n in range(40) if cuts(n, Fraction(n, 30))] == [3, 6, 15, 30]
    assert cuts.left == 0


def test_times_count_where_frames_are_shown_and_the_first_frame_is_no_cut():
    cuts = CutList([0, 2], [Fraction(0), Fraction("0.033"), Fraction(9)])
    times = [Fraction(0), Fraction("0.0334"), Fraction("0.5"), Fraction("0.6")]
    assert [n for n, time in enumerate(times) if cuts(n, time)] == [1, 2]
    assert cuts.left == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.txt", "12\nsoon\n", "got 'soon' as number 2"),
        ("c.txt", "-3\n", "got '-3'"),
        ("c.txt", "1e3\n", "got '1e3'"),
        ("c.txt", "²\n", "such as 48"),
        ("c.json", "[true]", "got 'True'"),
        ("c.json", "[null]", "got 'None'"),
        ("c.json", json.dumps({"cuts": [1]}), "JSON list of cuts in .*, got dict"),
        ("c.json", "[1, 2", "that lists cuts"),
        ("c.json", "[" * 100_000, "that lists cuts"),
        ("c.json", f"[{'9' * 5000}]", "that lists cuts"),
        ("c.txt", "9" * 5000, "such as 48"),
        ("c.txt", b"\xff\xfe\x00", "that lists cuts"),
    ],
)
def test_bad_lists_are_explained(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PTQ4VMError, match=message):
        CutList.read(tmp_path / name)


def test_a_list_that_is_not_there_is_explained(tmp_path):
    with pytest.raises(
        PTQ4VMError, match=r"Expected auto, off or a file that lists cuts, got .*gone\.txt"
    ):
        CutList.read(tmp_path / "gone.txt")
