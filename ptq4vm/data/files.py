"""Listing, reading and resizing of frames in folders."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ptq4vm.errors import PTQ4VMError
from ptq4vm.video import images

_BLOCKS, _BLOCK = 16, 2**16
"""Number and bytes of the hashed blocks; files up to their product are hashed completely."""


def list_folders(folder: Path) -> list[Path]:
    """List the subfolders of a folder in natural order, without hidden ones."""
    return sorted(
        (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")),
        key=images.natural_key,
    )


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name matches one of the shell patterns, e.g. ``take_*``."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def named_below(root: Path, paths: Iterable[Path]) -> list[tuple[str, Path]]:
    """Pair each path with its name relative to ``root``, or its file name if it lies elsewhere."""

    def name(path: Path) -> str:
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name

    return [(name(path), path) for path in paths]


def require_folder(folder: Path, what: str, layout: str) -> Path:
    """Return ``folder`` if it is one.

    Args:
        folder: Path of the folder.
        what: Description for the error message, e.g. the setting with this path.
        layout: Files expected in the folder.

    Raises:
        PTQ4VMError: There is no such folder.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise PTQ4VMError(
            f"Expected a folder of {what} laid out as {layout}, got {got} at {folder}. Correct the "
            "path."
        )
    return folder


def read_image(path: Path, gray: bool = False) -> Tensor:
    """Read an image as (1 or 3, H, W) uint8; see :func:`ptq4vm.video.images.read_image`."""
    image = torch.from_numpy(images.read_image(path, gray))
    return image[None] if gray else image.permute(2, 0, 1).contiguous()


def read_frames(paths: Sequence[Path], gray: bool = False) -> Tensor:
    """Read frames of one clip.

    Returns:
        (T, 1 or 3, H, W), floats in [0, 1].

    Raises:
        PTQ4VMError: A file can't be read, or the frames differ in size.
    """
    frames = [read_image(path, gray) for path in paths]
    for path, frame in zip(paths, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise PTQ4VMError(
                f"Expected frames of one size within a clip, got {size_text(frames[0])} in "
                f"{paths[0]} and "
                f"{size_text(frame)} in {path}. Resize them alike."
            )
    return torch.stack(frames).float() / 255


def size_text(frames: Tensor) -> str:
    """Format the size of (..., H, W) as `width×height`."""
    return f"{frames.shape[-1]}×{frames.shape[-2]}"


def cover_crop_clip(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize frames to cover ``size``, keeping the aspect ratio, and crop the center.

    Args:
        frames: (T, C, h, w), floats.
        size: Height and width of the result.

    Returns:
        (T, C, H, W).
    """
    (height, width), (have_height, have_width) = size, frames.shape[-2:]
    if (have_height, have_width) == (height, width):
        return frames
    scale = max(height / have_height, width / have_width)
    resized = (max(height, round(have_height * scale)), max(width, round(have_width * scale)))
    if resized != (have_height, have_width):
        frames = functional.interpolate(
            frames, resized, mode="bilinear", align_corners=False, antialias=True
        )
        frames = frames.clamp(0, 1)
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    return frames[..., top : top + height, left : left + width].contiguous()


def ping_pong(index: int, length: int) -> int:
    """Return the position of frame `index` when `length` frames are looped back and forth."""
    if length == 1:
        return 0
    index %= 2 * (length - 1)
    return min(index, 2 * (length - 1) - index)


def content_digest(path: Path) -> str:
    """Compute the SHA-256 digest of a file's content, independent of its path and time stamps.

    Files up to 1 MiB are hashed completely. For larger files the size and 16 blocks of 64 KiB,
    evenly spread from first to last byte, are hashed: re-encoding or trimming a video changes most
    of them, but an edit between the blocks that keeps the size is not detected.

    Raises:
        PTQ4VMError: The file can't be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(str(size).encode())
            whole = size <= _BLOCKS * _BLOCK
            for block in range(1 if whole else _BLOCKS):
                file.seek(0 if whole else block * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCKS * _BLOCK if whole else _BLOCK))
    except OSError as error:
        raise PTQ4VMError(
            f"Expected a file that can be read, got: {error}. Put it back, or take it out."
        ) from error
    return digest.hexdigest()
