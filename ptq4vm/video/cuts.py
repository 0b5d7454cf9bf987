"""Cuts between shots: detected in the frames, or read from a file."""

import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ptq4vm.errors import PTQ4VMError
from ptq4vm.video.frames import Frame

CutTest = Callable[[Frame], bool]
"""Function called with each frame of a video in order; True if the frame begins a new shot."""
Cuts = Literal["auto", "off"] | Collection[int] | CutTest
"""Detected by :class:`CutDetector`, none, at the given frame numbers (from 0), or by a function."""

MEMORY = 8
"""Number of last steps between frames from which a shot's activity is estimated."""
_SIDE = 64
_SAMPLED = 256
_BINS = 8
_DIFFERENCE, _HISTOGRAM, _UNEXPLAINED, _ABOVE_ACTIVITY = 5.0, 0.09, 0.2, 2.0
_SURE, _ONE_SIDED, _NOISE = 0.5, 0.05, 8
_WHITE, _WASHED_OUT, _FLASH_FRAMES = 250, 0.5, 3
_EARLIER = 4
_TOLERANCE = Fraction(1, 2000)
"""Seconds; cut times in files are rounded to milliseconds."""


class CutDetector:
    """Online cut detector: a new shot is detected at its first frame, from earlier frames only.

    Frames are downscaled to 64×64 RGB. A new shot begins where a frame differs from the last one

    1. by a mean absolute difference of at least 5 of 255 and at least twice the median of the last
       eight steps,
    2. by 0.09 of its colours: half the L1 distance of 8×8×8-bin RGB histograms, and
    3. in spatial structure: the share of a colour channel's variance not explained by that
    channel's
       values at the same positions of the last frame (1 − correlation ratio, the lesser of both
       directions) is at least 0.2 and at least twice the median of the last eight steps; at least
       0.5 where hardly a pixel becomes darker, as in a flash.

    The first test is PySceneDetect's content detector, with a threshold relative to the running
    activity as in its adaptive detector. Motion and pans keep the colours (2), and lighting changes
    keep the spatial structure, whatever their tone curve (3). Flashes that wash out half of a frame
    are ignored for up to three frames. A frame must also differ from the four frames before the
    last one, so that a return to one of them is not a cut. No cut is found within a shot's first
    two steps, which estimate its activity.

    References:
        B. Castellano, PySceneDetect: ContentDetector and AdaptiveDetector (scenedetect.com).
        A. Roche et al., "The correlation ratio as a new similarity measure", MICCAI 1998.
    """

    def __init__(self) -> None:
        self._views: deque[_View] = deque(maxlen=MEMORY + 1)
        self._differences: deque[float] = deque(maxlen=MEMORY)
        self._washed_out = 0

    def __call__(self, frame: Frame) -> bool:
        """Return whether a new shot begins with this frame, (H, W, 3) uint8 RGB."""
        view = _View(frame)
        if not self._views:
            self._views.append(view)
            return False
        last = self._views[-1]
        if view.white - last.white > _WASHED_OUT and self._washed_out < _FLASH_FRAMES:
            self._washed_out += 1
            return False
        self._washed_out = 0
        is_cut = self._begins_shot(view)
        if is_cut:
            self._views.clear()
            self._differences.clear()
        else:
            self._differences.append(view.difference(last))
        self._views.append(view)
        return is_cut

    def _begins_shot(self, view: "_View") -> bool:
        if len(self._differences) < 2:
            return False
        lively = float(np.median(self._differences))
        others = list(self._views)[: -_EARLIER - 2 : -1]
        changed = max(_DIFFERENCE, _ABOVE_ACTIVITY * lively)
        if not all(
            view.difference(other) >= changed and view.recolouring(other) >= _HISTOGRAM
            for other in others
        ):
            return False
        # Computed last, since it is the most expensive test.
        unsteady = float(
            np.median([after.unexplained(before) for before, after in pairwise(self._views)])
        )
        moved = max(_UNEXPLAINED, _ABOVE_ACTIVITY * unsteady)
        for other in others:
            unexplained = view.unexplained(other)
            if unexplained < (moved if view.darkening(other) >= _ONE_SIDED else max(moved, _SURE)):
                return False
        return True


class _View:
    """Features of a frame for comparison."""

    def __init__(self, frame: Frame) -> None:
        # Subsample large frames: averaging all pixels would dominate the run time.
        every = max(1, min(frame.shape[:2]) // _SAMPLED)
        sampled = np.ascontiguousarray(frame[::every, ::every])
        small = cv2.resize(sampled, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        self.pixels = small.reshape(-1, 3).astype(np.float32)
        self.white = float((self.pixels.min(1) >= _WHITE).mean())

    @cached_property
    def histogram(self) -> NDArray[np.float64]:
        """Shares of pixels in 8×8×8 RGB bins."""
        codes = self.pixels.astype(np.int64) * _BINS // 256 @ (_BINS * _BINS, _BINS, 1)
        return np.bincount(codes, minlength=_BINS**3) / codes.size

    def difference(self, other: "_View") -> float:
        """Return the mean absolute difference in 0…255."""
        return float(np.abs(self.pixels - other.pixels).mean())

    def recolouring(self, other: "_View") -> float:
        """Return half the L1 distance of the histograms: the share of pixels to recolour."""
        return float(np.abs(self.histogram - other.histogram).sum() / 2)

    def darkening(self, other: "_View") -> float:
        """Return the share of pixels that are darker than the other's by more than noise."""
        return float((self.pixels.mean(1) < other.pixels.mean(1) - _NOISE).mean())

    def unexplained(self, other: "_View") -> float:
        """Return the share of variance not explained by the other, maximal over channels."""
        return max(
            min(_unexplained(one, two), _unexplained(two, one))
            for one, two in zip(self.pixels.T, other.pixels.T, strict=True)
        )


def _unexplained(channel: NDArray[np.float32], by: NDArray[np.float32], bins: int = 32) -> float:
    """Return the share of variance within pixels of equal ``by``; 0 for a plain picture."""
    total = float(channel.var(dtype=np.float64))
    if total < 4:  # a plain picture with the noise of a codec
        return 0.0
    place = (by * (bins / 256)).astype(np.int64)
    counts = np.bincount(place, minlength=bins)
    means = np.bincount(place, channel, minlength=bins) / np.maximum(counts, 1)
    return (
        1
        - float((counts * (means - channel.mean(dtype=np.float64)) ** 2).sum() / channel.size)
        / total
    )


def find_cuts(frames: Iterable[Frame]) -> list[int]:
    """Return the numbers of the frames that begin new shots; frame 0 is not one."""
    is_cut = CutDetector()
    return [number for number, frame in enumerate(frames) if is_cut(frame)]


def cut_test(cuts: Cuts) -> CutTest:
    """Return the test function for a choice of cuts.

    Raises:
        PTQ4VMError: The choice is invalid.
    """
    if callable(cuts):
        return cuts
    if isinstance(cuts, str):
        if cuts not in ("auto", "off"):
            raise PTQ4VMError(
                f"Expected cuts to be auto, off or numbers of frames, got {cuts!r}. Choose one of "
                "those."
            )
        return CutDetector() if cuts == "auto" else lambda frame: False
    listed, counter = CutList(frozenset(cuts)), iter(range(2**63))
    return lambda frame: listed(next(counter), Fraction(-1))


class CutList:
    """Known cuts.

    Args:
        frames: Numbers of the frames that begin shots, counted from 0.
        times: Times of cuts in seconds from the first frame; a shot begins with the first frame at
            or after each.
    """

    def __init__(self, frames: Collection[int] = (), times: Iterable[Fraction] = ()) -> None:
        self._frames, self._times = set(frames), deque(sorted(set(times)))

    def __call__(self, number: int, time: Fraction) -> bool:
        """Return whether this frame, called in order, is a cut; frame 0 is not."""
        is_cut = number in self._frames
        self._frames.discard(number)
        while self._times and time >= self._times[0] - _TOLERANCE:
            self._times.popleft()
            is_cut = True
        return is_cut and number > 0

    @property
    def left(self) -> int:
        """Number of cuts not reached yet."""
        return len(self._frames) + len(self._times)

    @classmethod
    def read(cls, path: Path) -> "CutList":
        """Read a list of cuts.

        Args:
            path: Text with one cut per line, or a JSON list. Integers are frame numbers from 0;
                12.5, 12s, 1:02.5 and 1:00:02 are times. In text, # begins a comment.

        Raises:
            PTQ4VMError: The file can't be read, or its content is invalid.
        """
        try:
            text = path.read_text(encoding="utf-8")
            entries = json.loads(text) if path.suffix.lower() == ".json" else _lines(text)
        except (OSError, ValueError, RecursionError) as error:
            raise PTQ4VMError(
                f"Expected auto, off or a file that lists cuts, got {path}: {error}"
            ) from error
        if not isinstance(entries, list):
            raise PTQ4VMError(
                f"Expected a JSON list of cuts in {path}, got {type(entries).__name__}"
            )
        found: list[int | Fraction] = []
        for place, entry in enumerate(entries, 1):
            cut = _parse(entry)
            if cut is None:
                raise PTQ4VMError(
                    f"Expected cuts such as 48 (a frame), 1.5 or 1:02.5 (a time) in {path}, got "
                    f"{str(entry)[:40]!r} as number {place}. Correct the file."
                )
            found.append(cut)
        times = [cut for cut in found if isinstance(cut, Fraction)]
        return cls([cut for cut in found if isinstance(cut, int)], times)


def _lines(text: str) -> list[str]:
    return [entry for line in text.splitlines() if (entry := line.partition("#")[0].strip())]


def _parse(entry: Any) -> int | Fraction | None:
    """Parse a frame number or a time in seconds; None if it is neither."""
    if isinstance(entry, bool) or not isinstance(entry, int | float | str):
        return None
    text = str(entry)
    if re.fullmatch(r"[0-9]{1,12}", text, re.ASCII):
        return int(text)
    found = re.fullmatch(
        r"(?:(?:([0-9]{1,6}):)?([0-9]{1,6}):)?([0-9]{1,9}(?:\.[0-9]{1,9})?)s?", text, re.ASCII
    )
    if found is None:
        return None
    hours, minutes, seconds = (Fraction(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds
