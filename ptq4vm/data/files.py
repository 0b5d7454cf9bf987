"""Frames in folders: finding, reading and resizing them."""

import hashlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ptq4vm.errors import PTQ4VMError
from ptq4vm.video import images


def list_folders(folder: Path) -> list[Path]:
    """The folders within a folder, in natural order; hidden ones are left out."""
    return sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=images.natural_key)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name fits one of the patterns, as in a shell: ``take_*``."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def require_folder(folder: Path, what: str, layout: str) -> Path:
    """The folder, or an error that says what should be there.

    Args:
        folder: path that must be a folder.
        what: what the user knows it as, e.g. the setting that names it.
        layout: the files expected within it.

    Raises:
        PTQ4VMError: there is no such folder.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise PTQ4VMError(f"Expected a folder of {what} laid out as {layout}, got {got} at {folder}. Correct the path.")
    return folder


def read_image(path: Path, gray: bool = False) -> Tensor:
    """Read one image as (1 or 3, H, W) uint8; arguments and errors as :func:`ptq4vm.video.images.read_image`."""
    image = torch.from_numpy(images.read_image(path, gray))
    return image[None] if gray else image.permute(2, 0, 1).contiguous()


def read_frames(paths: Sequence[Path], gray: bool = False) -> Tensor:
    """Read frames of one clip.

    Returns:
        (T, 1 or 3, H, W), floats in [0, 1].

    Raises:
        PTQ4VMError: a file can't be read, or the frames differ in size.
    """
    frames = [read_image(path, gray) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise PTQ4VMError(
                f"Expected frames of one size within a clip, got {size_text(frames[0])} in {paths[0]} and "
                f"{size_text(frame)} in {path}. Resize them alike."
            )
    return torch.stack(frames).float() / 255


def size_text(frames: Tensor) -> str:
    """`width×height` of (..., H, W)."""
    return f"{frames.shape[-1]}×{frames.shape[-2]}"


def cover_crop(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize until the size is covered, keeping the aspect ratio, and cut out the centre.

    Args:
        frames: (T, C, h, w), floats.
        size: height and width to return.

    Returns:
        (T, C, H, W).
    """
    (height, width), (have_height, have_width) = size, frames.shape[-2:]
    if (have_height, have_width) == (height, width):
        return frames
    scale = max(height / have_height, width / have_width)
    resized = (max(height, round(have_height * scale)), max(width, round(have_width * scale)))
    if resized != (have_height, have_width):
        frames = functional.interpolate(frames, resized, mode="bilinear", align_corners=False, antialias=True)
        frames = frames.clamp(0, 1)
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    return frames[..., top : top + height, left : left + width].contiguous()


def ping_pong(index: int, length: int) -> int:
    """Where frame `index` of an endless to-and-fro reading of a clip of `length` frames lies in that clip."""
    if length == 1:
        return 0
    index %= 2 * (length - 1)
    return min(index, 2 * (length - 1) - index)


def files_fingerprint(root: Path, paths: Iterable[Path]) -> str:
    """Hash of the files' paths below `root`, sizes and times of change; it reads none of them."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(f"{path.relative_to(root).as_posix()}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
