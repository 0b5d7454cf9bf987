"""What every source and sink of frames has in common, whatever it is stored as."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from ptq4vm.errors import PTQ4VMError, remedy
from ptq4vm.ownership import temporary_path

Frame = NDArray[np.uint8]
"""One picture, (H, W, 3) RGB or, where a writer takes it, (H, W) grey or (H, W, 4) RGB and alpha, not multiplied."""

DEFAULT_RATE = Fraction(25)
"""Frames per second where the source doesn't say, as a folder of images doesn't."""


MAX_SIDE = 16384
"""Longer sides of a frame are taken for mistakes."""


def require_size(height: int, width: int) -> None:
    """Raise PTQ4VMError where a frame can't have this size, in pixels."""
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise PTQ4VMError(
            f"Expected a frame of at least 1 x 1 pixels, got {height} x {width}; at most {MAX_SIDE} a side. Give the "
            "frames' size, height first."
        )


class FrameReader(ABC):
    """Frames of one source in order, read while they are asked for. Each ``iter()`` begins again at the first."""

    path: Path
    width: int
    """Pixels, of the upright picture."""
    height: int
    rate: Fraction
    """Frames per second."""
    num_frames: int | None
    """How many frames there are as far as the source tells; an estimate for a video, None where it says nothing."""
    names: Sequence[str] = ()
    """Names of the frames without suffix, where each has a file of its own in a folder."""
    pixel_aspect = Fraction(1)
    """Width of a pixel as a multiple of its height."""

    @property
    def notes(self) -> Sequence[str]:
        """Facts of the source that a user should know, a line each; complete after the last frame."""
        return ()

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yields (H, W, 3) uint8 RGB; raises :class:`PTQ4VMError` at a frame that can't be read."""

    def timed(self) -> Iterator[tuple[Fraction, Frame]]:
        """Each frame behind the time when it is shown, in seconds from the first."""
        for number, frame in enumerate(self):
            yield number / self.rate, frame


class FrameWriter(ABC):
    """Takes frames of one size and leaves a whole output or none.

    All is written under a temporary name beside the target, which :meth:`close` gives its name and :meth:`abort`
    removes. As a context manager it closes at the end and aborts at an exception.

    Args:
        path: the target; folders above it are made.
        size: (height, width) of each frame.

    Raises:
        PTQ4VMError: nothing can be written there.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self.path, self.size = (
            Path(os.path.realpath(path)),
            size,
        )  # unlike resolve, takes loops of links
        self.num_frames = 0
        self._closed = False
        self._part = temporary_path(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from error

    def write(self, frame: np.ndarray[Any, Any], time: Fraction | None = None) -> None:
        """Append one frame.

        Args:
            frame: (H, W, 3) RGB, (H, W) grey or (H, W, 4) RGB and alpha, uint8.
            time: when a video shows it, in seconds from the first; by default at the video's rate.

        Raises:
            PTQ4VMError: wrong size or type, or the medium is full.
        """
        if self._closed:
            raise PTQ4VMError(
                f"{self.path}: expected frames before the output is closed, got one after"
            )
        if frame.dtype != np.uint8 or frame.shape not in (
            self.size,
            (*self.size, 3),
            (*self.size, 4),
        ):
            raise PTQ4VMError(
                f"{self.path}: expected uint8 frames of {self.size}, {(*self.size, 3)} or {(*self.size, 4)}, "
                f"got {frame.dtype} of {frame.shape} at frame {self.num_frames}"
            )
        try:
            self._write(frame, time)
        except OSError as error:
            raise self._cannot_write(error) from error
        self.num_frames += 1

    def close(self) -> None:
        """Finish the output and give it its name.

        Raises:
            PTQ4VMError: there was no frame, or the rest couldn't be written; nothing is left behind then.
        """
        if self._closed:
            return
        try:
            if self.num_frames == 0:
                raise PTQ4VMError(f"{self.path}: expected at least one frame to write, got none")
            self._finish()
            self._publish()
        except OSError as error:
            raise self._cannot_write(error) from error
        finally:
            # After success there is nothing left to remove; after a failure this is what keeps halves away.
            self.abort()

    def abort(self) -> None:
        """Give up: remove what was written so far. Does nothing after :meth:`close`."""
        if not self._closed:
            self._closed = True
            self._discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @abstractmethod
    def _write(self, frame: Frame, time: Fraction | None) -> None:
        """Append a frame of the right size and type."""

    @abstractmethod
    def _finish(self) -> None:
        """Write out what is still held back."""

    def _publish(self) -> None:
        self._part.replace(self.path)

    def _discard(self) -> None:
        self._part.unlink(missing_ok=True)

    def _cannot_write(self, error: Exception) -> PTQ4VMError:
        return PTQ4VMError(f"Can't write {self.path}: {error}. {remedy(error)}")
