"""A source of clips without alpha: video files and folders of frames."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import torch
from torch import Tensor

from ptq4vm.data.files import (
    cover_crop,
    list_folders,
    list_frames,
    matches,
    named_below,
    natural_key,
    read_frames,
    require_folder,
)
from ptq4vm.data.sources import ClipSource
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import MattingClip

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"})
LAYOUT = "<clip>.mp4|mkv|mov|avi|webm and <clip>/<frame>.jpg|png"


class VideoSource(ClipSource):
    """Video files and folders of frames; each is a clip. Memory holds the frames asked for and no others.

    Args:
        root: the folder that holds them.
        size: height and width to scale and cut to; None leaves the frames as they are.
        names: patterns of the clips to take, without suffix.
        held_out: patterns of those to leave alone.

    Raises:
        PTQ4VMError: the folder is missing, holds no such clips, or a video has no frame that can be decoded.
    """

    def __init__(
        self,
        root: Path,
        size: tuple[int, int] | None = None,
        names: Sequence[str] = ("*",),
        held_out: Sequence[str] = (),
    ) -> None:
        self.root, self.size = require_folder(root, "videos", LAYOUT), size
        videos = [path for path in root.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
        folders = [folder for folder in list_folders(root) if list_frames(folder)]
        found = sorted(videos + folders, key=natural_key)
        self._clips = [c for c in found if matches(c.stem, names) and not matches(c.stem, held_out)]
        if not found:
            raise PTQ4VMError(f"Expected videos laid out as {LAYOUT}, got none in {root}. Correct the path.")
        if not self._clips:
            raise PTQ4VMError(
                f"Expected videos named {', '.join(names)} in {root}, without {', '.join(held_out) or 'exception'}, "
                f"got {len(found)} others. Correct held_out."
            )
        self.names = [f"{root.resolve().name}/{path.name}" for path in self._clips]
        self._counts: dict[int, int] = {}
        for path in set(videos) & set(self._clips):
            with _opened(path) as capture:
                if not capture.grab():
                    raise PTQ4VMError(f"Expected a video with frames in {path}, got none. Replace or remove it.")

    def num_frames(self, index: int) -> int:
        """The number of frames that can really be decoded, whatever the container claims. Counted once."""
        if index not in self._counts:
            path = self._clips[index]
            self._counts[index] = len(list_frames(path)) if path.is_dir() else _count_frames(path)
        return self._counts[index]

    def read(self, index: int, start: int, stop: int) -> MattingClip:
        """Frames [start, stop) of a clip. A video is decoded from its beginning: seeking isn't exact in all formats."""
        self.check_range(index, start, stop)
        path = self._clips[index]
        src = read_frames(list_frames(path)[start:stop]) if path.is_dir() else _decode(path, start, stop)
        if self.size is not None:
            src = cover_crop(src, self.size)
        return MattingClip(src, name=self.names[index], start=start)

    def files(self, index: int, start: int, stop: int) -> list[tuple[str, Path]]:
        """The video, or these frames of a folder."""
        path = self._clips[index]
        return named_below(self.root, list_frames(path)[start:stop] if path.is_dir() else [path])


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise PTQ4VMError(f"Expected a video that can be decoded in {path}, got something else. Remove it.")
        yield capture
    finally:
        capture.release()


def _count_frames(path: Path) -> int:
    with _opened(path) as capture:
        count = 0
        while capture.grab():
            count += 1
    return count


def _decode(path: Path, start: int, stop: int) -> Tensor:
    frames = []
    with _opened(path) as capture:
        for index in range(stop):
            if not capture.grab():
                raise PTQ4VMError(f"Expected {stop} frames in {path}, got {index}. The file has changed: run again.")
            if index >= start:
                _, image = capture.retrieve()
                frames.append(torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).permute(2, 0, 1))
    return torch.stack(frames).float() / 255
