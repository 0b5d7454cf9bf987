"""Readers and writers of images and folders of images."""

import re
import shutil
import struct
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ptq4vm.errors import PTQ4VMError
from ptq4vm.ownership import temporary_path
from ptq4vm.video.frames import DEFAULT_RATE, Frame, FrameReader, FrameWriter

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""Suffixes of images that can be read, alone and as frames of a folder."""
MAX_PIXELS = 2**27
"""Maximum pixels of a frame, e.g. 16384 × 8192; larger ones are rejected before decoding."""
_UNSUPPORTED = (".avif", ".jxl", ".heic", ".heif")


def read_image(path: Path, gray: bool = False) -> Frame:
    """Read an image, upright and without transparency.

    Args:
        path: Image file with one frame.
        gray: Return one channel.

    Returns:
        (H, W, 3) RGB, or (H, W) with ``gray``; uint8.

    Raises:
        PTQ4VMError: The file is missing, no image, animated or too large.
    """
    try:
        if not path.is_file():
            raise OSError("no such file")
        # cv2.imread gives no reason for a failure, and fails at some file names on some systems.
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise PTQ4VMError(
            f"Expected a readable image at {path}, got: {error}. Correct the path."
        ) from error
    _check_header(path, data)
    try:
        image = (
            cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR)
            if data.size
            else None
        )
    except cv2.error as error:
        raise PTQ4VMError(
            f"Expected an image at {path}, got a damaged one ({error.err}). Replace it."
        ) from error
    if image is None:
        raise PTQ4VMError(
            f"Expected an image at {path}, got {data.size} bytes that can't be decoded. Replace "
            "the file or remove it "
            "along with the same frame in the neighbouring folders."
        )
    return np.ascontiguousarray(image if gray else image[..., ::-1]).astype(np.uint8, copy=False)


def _check_header(path: Path, data: NDArray[np.uint8]) -> None:
    """Reject an image that is too large or animated, before it is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data.tobytes())) as image:
                (width, height), frames = image.size, getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise PTQ4VMError(
            f"Expected an image of at most {MAX_PIXELS} pixels at {path}, got: {error}"
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error):
        return  # leave it to OpenCV, which may support the file
    if width * height > MAX_PIXELS:
        raise PTQ4VMError(
            f"Expected an image of at most {MAX_PIXELS} pixels at {path}, got {width}x{height}. "
            "Scale it down."
        )
    if frames > 1:
        raise PTQ4VMError(
            f"Expected an image with one frame at {path}, got {frames}. Convert it to a video or "
            "to a folder of "
            "images with ffmpeg or ImageMagick."
        )


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key that places 2.png before 10.png."""
    parts = re.split(r"([0-9]+)", path.name)
    return [
        (0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part.lower())
        for part in parts
        if part
    ]


def list_frames(folder: Path) -> list[Path]:
    """List the images of a folder in natural order, without hidden files; empty if it is missing.

    Raises:
        PTQ4VMError: The folder can't be read.
    """
    if not folder.is_dir():
        return []
    try:
        # macOS writes metadata to ._0001.png beside 0001.png on some file systems.
        files = [
            file
            for file in folder.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        ]
    except OSError as error:
        raise PTQ4VMError(f"Can't read the folder {folder}: {error}") from error
    return sorted(files, key=natural_key)


def require_supported(path: Path) -> None:
    """Check that a path's suffix is not a known but unsupported image format.

    Raises:
        PTQ4VMError: It is one.
    """
    if path.suffix.lower() in _UNSUPPORTED:
        raise PTQ4VMError(
            f"Expected an image as {', '.join(IMAGE_SUFFIXES)}, got {path}. Convert it, to .png "
            "for one."
        )


class ImageReader(FrameReader):
    """Reader of a folder of equally sized images in natural order, or of one image.

    Raises:
        PTQ4VMError: The folder holds no image, or the first can't be read.
    """

    def __init__(self, path: Path, rate: Fraction = DEFAULT_RATE) -> None:
        self.path, self.rate = path, rate
        require_supported(path)
        self._files = list_frames(path) if path.is_dir() else [path]
        if not self._files:
            raise PTQ4VMError(
                f"Expected images ({', '.join(IMAGE_SUFFIXES)}) in the folder {path}, got none"
            )
        self.height, self.width = read_image(self._files[0]).shape[:2]
        self.num_frames = len(self._files)
        self.names = tuple(file.stem for file in self._files) if path.is_dir() else ()

    def __iter__(self) -> Iterator[Frame]:
        for file in self._files:
            image = read_image(file)
            if image.shape[:2] != (self.height, self.width):
                raise PTQ4VMError(
                    f"Expected every image in {self.path} to be {self.width}x{self.height} like "
                    f"{self._files[0].name}, "
                    f"got {image.shape[1]}x{image.shape[0]} in {file.name}"
                )
            yield image


def _save_png(path: Path, frame: Frame) -> None:
    if frame.ndim == 3:
        frame = frame[..., [2, 1, 0, 3][: frame.shape[2]]]
    _, data = cv2.imencode(".png", frame)
    path.write_bytes(data.tobytes())


class ImageWriter(FrameWriter):
    """Writer of one .png image, 8-bit grey, RGB or RGBA; rejects a second frame."""

    def _write(self, frame: Frame, time: Fraction | None) -> None:
        if self.num_frames:
            raise PTQ4VMError(
                f"{self.path}: one image holds one frame, got more; name a folder or a video "
                "instead"
            )
        _save_png(self._part, frame)

    def _finish(self) -> None:
        pass


_MARK = ".ptq4vm"
"""Hidden file that marks a folder of named frames as written here and replaceable."""


class FolderWriter(FrameWriter):
    """Writer of a folder of PNGs, 8-bit grey, RGB or RGBA: 0000.png, 0001.png, … or named.

    An existing folder is replaced only if it holds nothing but numbered frames, or frames and the
    hidden file that marks it as written here.

    Args:
        path: Folder.
        size: (height, width) of the frames.
        names: Names of the frames without suffix, for a source that is a folder of images.

    Raises:
        PTQ4VMError: The folder holds other files, or two frames have the same name.
    """

    def __init__(self, path: Path, size: tuple[int, int], names: Sequence[str] = ()) -> None:
        super().__init__(path, size)
        self._names = names
        twice = (
            next((name for name in names if names.count(name) > 1), None)
            if len(set(names)) < len(names)
            else None
        )
        if twice is not None:
            raise PTQ4VMError(
                f"Expected images of different names, got two named {twice}: rename or remove one"
            )
        self._refuse_to_overwrite()
        try:
            self._part.mkdir()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _refuse_to_overwrite(self) -> None:
        if self.path.is_dir():
            files = [file.name for file in self.path.iterdir()]
            frame = r".+\.png" if _MARK in files else r"\d{4,}\.png"
            other = next(
                (name for name in files if name != _MARK and not re.fullmatch(frame, name)), None
            )
            if other is not None:
                raise PTQ4VMError(
                    f"Expected the folder {self.path} to be new or to hold earlier frames only, "
                    f"got {other} in it; name another folder"
                )
        elif self.path.exists():
            raise PTQ4VMError(
                f"Expected a folder to write frames to, got the file {self.path}; name another"
            )

    def _write(self, frame: Frame, time: Fraction | None) -> None:
        name = self._names[self.num_frames] if self._names else f"{self.num_frames:04d}"
        _save_png(self._part / f"{name}.png", frame)

    def _finish(self) -> None:
        # Repeat the check: the folder may have changed since the first one.
        self._refuse_to_overwrite()
        if not all(re.fullmatch(r"\d{4,}", name) for name in self._names):
            (self._part / _MARK).touch()

    def _publish(self) -> None:
        if not self.path.exists():
            self._part.rename(self.path)
            return
        earlier = temporary_path(self.path)
        try:
            self.path.rename(earlier)
            self._part.rename(self.path)
        finally:
            # Restore the earlier folder after an error or a signal between the renames.
            if earlier.exists() and not self.path.exists():
                earlier.rename(self.path)
        shutil.rmtree(earlier, ignore_errors=True)

    def _discard(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)
