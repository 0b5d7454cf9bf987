"""Base classes of frame readers and writers."""

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
"""(H, W, 3) RGB; writers also accept (H, W) grey and (H, W, 4) RGB with unassociated alpha."""

DEFAULT_RATE = Fraction(25)
"""Frames per second of sources without a rate, such as folders of images."""


MAX_SIDE = 16384
"""Maximum height and width of a frame; larger values are considered errors."""


def require_size(height: int, width: int) -> None:
    """Check the size of a frame in pixels.

    Raises:
        PTQ4VMError: A side is not in [1, :data:`MAX_SIDE`].
    """
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise PTQ4VMError(
            f"Expected a frame of at least 1 x 1 pixels, got {height} x {width}; at most "
            f"{MAX_SIDE} a side. Give the "
            "frames' size, height first."
        )


class FrameReader(ABC):
    """Base class of frame sources, read lazily in order; each ``iter()`` restarts."""

    path: Path
    width: int
    """Pixels, of the upright picture."""
    height: int
    rate: Fraction
    """Frames per second."""
    num_frames: int | None
    """Number of frames from the source's header: an estimate for videos, None if unknown."""
    names: Sequence[str] = ()
    """Names of the frames' files without suffix, for a folder."""
    pixel_aspect = Fraction(1)
    """Width of a pixel as a multiple of its height."""

    @property
    def notes(self) -> Sequence[str]:
        """Notes on the source for the user, one line each; complete after the last frame."""
        return ()

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yield (H, W, 3) uint8 RGB; raise :class:`PTQ4VMError` at an unreadable frame."""

    def timed(self) -> Iterator[tuple[Fraction, Frame]]:
        """Yield (timestamp, frame); timestamps are in seconds from the first frame."""
        for number, frame in enumerate(self):
            yield number / self.rate, frame


class FrameWriter(ABC):
    """Base class of atomic writers of equally sized frames.

    Output goes to a temporary name beside the target; :meth:`close` renames it, :meth:`abort`
    removes it. As a context manager, the writer closes at the end and aborts at an exception.

    Args:
        path: Target; parent folders are created.
        size: (height, width) of each frame.

    Raises:
        PTQ4VMError: The target can't be written.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self.path, self.size = (
            Path(os.path.realpath(path)),
            size,
        )  # Path.resolve raises at symlink loops
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
            time: Timestamp in a video, in seconds from the first frame; by default from the video's
                rate.

        Raises:
            PTQ4VMError: The size or type is wrong, or the medium is full.
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
                f"{self.path}: expected uint8 frames of {self.size}, {(*self.size, 3)} or "
                f"{(*self.size, 4)}, "
                f"got {frame.dtype} of {frame.shape} at frame {self.num_frames}"
            )
        try:
            self._write(frame, time)
        except OSError as error:
            raise self._cannot_write(error) from error
        self.num_frames += 1

    def close(self) -> None:
        """Finish the output and rename it to the target.

        Raises:
            PTQ4VMError: There was no frame, or writing failed; temporary output is removed.
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
            # Remove partial output after a failure; after success none is left.
            self.abort()

    def abort(self) -> None:
        """Remove the output written so far; a no-op after :meth:`close`."""
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
        """Append a frame of valid size and type."""

    @abstractmethod
    def _finish(self) -> None:
        """Write buffered data."""

    def _publish(self) -> None:
        self._part.replace(self.path)

    def _discard(self) -> None:
        self._part.unlink(missing_ok=True)

    def _cannot_write(self, error: Exception) -> PTQ4VMError:
        return PTQ4VMError(f"Can't write {self.path}: {error}. {remedy(error)}")
