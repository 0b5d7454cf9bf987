"""Backgrounds of composites: a colour, an image, a folder or a video."""

import re
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from ptq4vm.errors import PTQ4VMError
from ptq4vm.video.frames import Frame, FrameReader
from ptq4vm.video.images import IMAGE_SUFFIXES
from ptq4vm.video.videos import open_frames

COLOURS = {
    "green": (120, 255, 155),  # as in figures of matting papers, unlike CSS
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "gray": (128, 128, 128),
    "red": (255, 0, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
}


def parse_colour(text: str) -> tuple[int, int, int] | None:
    """Parse ``#rrggbb`` or a name in :data:`COLOURS` to RGB in 0…255; None if it is neither."""
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        red, green, blue = bytes.fromhex(text[1:])
        return red, green, blue
    return COLOURS.get(text.lower())


def cover_crop(image: Frame, size: tuple[int, int]) -> Frame:
    """Resize (h, w, 3) to cover ``size`` (H, W), keeping the aspect ratio, and crop the center."""
    if image.shape[:2] == size:
        return image
    scale = max(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (
        max(round(side * scale), target)
        for side, target in zip(image.shape[:2], size, strict=False)
    )
    resized = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return np.asarray(resized[top : top + size[0], left : left + size[1]], np.uint8)


def open_background(
    background: str | Path, size: tuple[int, int], rate: Fraction
) -> Generator[Frame, None, None]:
    """Open an endless stream of backgrounds, one per frame of the source.

    Args:
        background: A colour (see :func:`parse_colour`), or the path of an image, a folder of images
            or a video. A colour's name takes precedence over a file; write ``./green`` for the
            file.
        size: (H, W) of the source; images and videos are resized to cover it and cropped.
        rate: Frames per second of the source. A video keeps its own speed, a folder advances one
            image per frame; both loop.

    Returns:
        Infinite generator of (H, W, 3) uint8 RGB.

    Raises:
        PTQ4VMError: It is neither a colour nor readable.
    """
    colour = parse_colour(background) if isinstance(background, str) else None
    if colour is not None:
        return _repeat(np.full((*size, 3), colour, np.uint8))
    if not Path(background).exists():
        raise PTQ4VMError(
            f"Expected a background that is #rrggbb, one of {', '.join(COLOURS)}, or an image, "
            "folder or video, "
            f"got {background}"
        )
    reader = open_frames(Path(background))
    if reader.path.suffix.lower() in IMAGE_SUFFIXES and reader.path.is_file():
        return _repeat(cover_crop(next(iter(reader)), size))
    return _play(reader, size, step=reader.rate / rate if reader.path.is_file() else Fraction(1))


def _repeat(image: Frame) -> Generator[Frame, None, None]:
    while True:
        yield image


def _play(
    reader: FrameReader, size: tuple[int, int], step: Fraction
) -> Generator[Frame, None, None]:
    """Yield every ``step``-th frame of ``reader`` in a loop; below 1, frames are repeated."""
    due = Fraction(0)
    while True:
        shown = False
        for image in reader:
            shown = True
            due -= 1
            if due >= 0:
                continue
            fitting = cover_crop(image, size)
            while due < 0:
                yield fitting
                due += step
        if not shown:
            raise PTQ4VMError(
                f"Expected frames in the background {reader.path}, got none; was it changed "
                "meanwhile?"
            )
