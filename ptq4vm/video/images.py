"""Frames as images: a folder of them, or a single one."""

import re
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from ptq4vm.errors import PTQ4VMError
from ptq4vm.ownership import temporary_path
from ptq4vm.video.frames import DEFAULT_RATE, Frame, FrameReader, FrameWriter

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_image(path: Path) -> Frame:
    """Read an image upright as (H, W, 3) uint8 RGB; grey is spread over the channels, transparency dropped.

    Raises:
        PTQ4VMError: there is no such file, or it is not an image.
    """
    try:
        # Not cv2.imread: it neither says why a file can't be read nor takes every file name on every system.
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise PTQ4VMError(f"Can't read the image {path}: {error}") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise PTQ4VMError(f"Expected an image at {path}, got a file that can't be decoded as one")
    return np.ascontiguousarray(image[..., ::-1]).astype(np.uint8, copy=False)


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sorts 2.png before 10.png."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part.lower()) for part in parts]


class ImageReader(FrameReader):
    """A folder of .png and .jpg images in natural order, or one image. All must be of the first one's size.

    Raises:
        PTQ4VMError: the folder holds no image, or the first can't be read.
    """

    def __init__(self, path: Path, rate: Fraction = DEFAULT_RATE) -> None:
        self.path, self.rate = path, rate
        self._files = self._list(path) if path.is_dir() else [path]
        self.height, self.width = read_image(self._files[0]).shape[:2]
        self.num_frames = len(self._files)

    def __iter__(self) -> Iterator[Frame]:
        for file in self._files:
            image = read_image(file)
            if image.shape[:2] != (self.height, self.width):
                raise PTQ4VMError(
                    f"Expected every image in {self.path} to be {self.width}x{self.height} like {self._files[0].name}, "
                    f"got {image.shape[1]}x{image.shape[0]} in {file.name}"
                )
            yield image

    @staticmethod
    def _list(folder: Path) -> list[Path]:
        try:
            # Hidden files are left out: some systems put a ._0001.png beside 0001.png that is no image.
            files = [
                file
                for file in folder.iterdir()
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
            ]
        except OSError as error:
            raise PTQ4VMError(f"Can't read the folder {folder}: {error}") from error
        if not files:
            raise PTQ4VMError(f"Expected images ({', '.join(IMAGE_SUFFIXES)}) in the folder {folder}, got none")
        return sorted(files, key=natural_key)


def _save_png(path: Path, frame: Frame) -> None:
    if frame.ndim == 3:
        frame = frame[..., [2, 1, 0, 3][: frame.shape[2]]]
    _, data = cv2.imencode(".png", frame)
    path.write_bytes(data.tobytes())


class ImageWriter(FrameWriter):
    """One .png image, grey, RGB or RGBA with 8 bits; refuses a second frame."""

    def _write(self, frame: Frame, time: Fraction | None) -> None:
        if self.num_frames:
            raise PTQ4VMError(f"{self.path}: one image holds one frame, got more; name a folder or a video instead")
        _save_png(self._part, frame)

    def _finish(self) -> None:
        pass


class FolderWriter(FrameWriter):
    """A folder of 0000.png, 0001.png, …, grey, RGB or RGBA with 8 bits.

    A folder that is already there is replaced, but only where nothing else than such frames would be lost.
    """

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        super().__init__(path, size)
        self._refuse_to_overwrite()
        try:
            self._part.mkdir()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _refuse_to_overwrite(self) -> None:
        if self.path.is_dir():
            other = next((file for file in self.path.iterdir() if not re.fullmatch(r"\d{4,}\.png", file.name)), None)
            if other is not None:
                raise PTQ4VMError(
                    f"Expected the folder {self.path} to be new or to hold earlier frames only, "
                    f"got {other.name} in it; name another folder"
                )
        elif self.path.exists():
            raise PTQ4VMError(f"Expected a folder to write frames to, got the file {self.path}; name another")

    def _write(self, frame: Frame, time: Fraction | None) -> None:
        _save_png(self._part / f"{self.num_frames:04d}.png", frame)

    def _finish(self) -> None:
        # Again, since the run may have been long.
        self._refuse_to_overwrite()

    def _publish(self) -> None:
        if not self.path.exists():
            self._part.rename(self.path)
            return
        earlier = temporary_path(self.path)
        try:
            self.path.rename(earlier)
            self._part.rename(self.path)
        finally:
            # After an error or a signal in between, what was there stays.
            if earlier.exists() and not self.path.exists():
                earlier.rename(self.path)
        shutil.rmtree(earlier, ignore_errors=True)

    def _discard(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)
