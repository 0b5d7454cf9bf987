"""Source of clips without alpha: video files and folders of frames."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ptq4vm.data.files import (
    cover_crop_clip,
    list_folders,
    matches,
    named_below,
    read_frames,
    require_folder,
)
from ptq4vm.data.shots import Shots, find_shots, image_frames
from ptq4vm.data.sources import ClipSource
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import MattingClip
from ptq4vm.video.images import list_frames, natural_key
from ptq4vm.video.reader import VIDEO_SUFFIXES, VideoReader

LAYOUT = "<clip>.mp4|mkv|mov|avi|webm and <clip>/<frame>.jpg|png"


def list_clips(root: Path) -> list[Path]:
    """Return the video files and the folders of frames in a folder, in natural order.

    Raises:
        PTQ4VMError: The folder is missing.
    """
    inside = require_folder(root, "videos", LAYOUT).iterdir()
    videos = [path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
    folders = [folder for folder in list_folders(root) if list_frames(folder)]
    return sorted(videos + folders, key=natural_key)


class VideoSource(ClipSource):
    """Video files and folders of frames, one clip each; only the frames being read are in memory.

    Videos are decoded by :class:`~ptq4vm.video.reader.VideoReader`, as for matting. Pixels more
    than 1 % from square are resampled to square ones.

    Args:
        root: Folder of the videos.
        size: Height and width to resize and crop to; None keeps the frames unchanged.
        names: Shell patterns of the clips to use, without suffix.
        held_out: Shell patterns of clips to exclude.
        cache: Folder in which frame counts and cuts are cached; None keeps them in memory only.

    Raises:
        PTQ4VMError: The folder is missing or holds no matching clips, or a video has no frame that
            can be decoded.
    """

    def __init__(
        self,
        root: Path,
        size: tuple[int, int] | None = None,
        names: Sequence[str] = ("*",),
        held_out: Sequence[str] = (),
        cache: Path | None = None,
    ) -> None:
        self.cache = cache
        self.root, self.size = root, size
        found = list_clips(root)
        self._clips = [c for c in found if matches(c.stem, names) and not matches(c.stem, held_out)]
        if not found:
            raise PTQ4VMError(
                f"Expected videos laid out as {LAYOUT}, got none in {root}. Correct the path."
            )
        if not self._clips:
            raise PTQ4VMError(
                f"Expected videos named {', '.join(names)} in {root}, without "
                f"{', '.join(held_out) or 'exception'}, "
                f"got {len(found)} others. Correct held_out."
            )
        self.names = [f"{root.resolve().name}/{path.name}" for path in self._clips]
        self._shots: dict[int, Shots] = {}
        self._readers = {
            path: VideoReader(path, whole=False) for path in self._clips if path.is_file()
        }
        for reader in self._readers.values():
            for note in reader.notes:
                warnings.warn(note, stacklevel=2)

    def num_frames(self, index: int) -> int:
        """Return the number of frames; videos are decoded once to count them."""
        path = self._clips[index]
        return len(list_frames(path)) if path.is_dir() else self._look(index).frames

    claims_are_within = 2

    def claimed_frames(self, index: int) -> int | None:
        """Return the container's number of frames (None without one), or the true one if known."""
        path = self._clips[index]
        if path.is_dir() or index in self._shots:
            return self.num_frames(index)
        claim = self._readers[path].num_frames
        return claim if claim is not None and claim > 0 else None

    def cuts(self, index: int, start: int, stop: int) -> Sequence[int]:
        """Return the cuts in (start, stop), detected once in the whole clip."""
        return [cut for cut in self._look(index).cuts if start < cut < stop]

    def _look(self, index: int) -> Shots:
        if index not in self._shots:
            path = self._clips[index]
            paths = list_frames(path) if path.is_dir() else [path]
            frames = image_frames(paths) if path.is_dir() else iter(self._readers[path])
            self._shots[index] = find_shots(
                frames, self.fingerprint([(index, 0, len(paths))]), self.cache
            )
        return self._shots[index]

    def read(self, index: int, start: int, stop: int) -> MattingClip:
        """Return frames [start, stop) of a clip."""
        self.check_range(index, start, stop)
        path = self._clips[index]
        src = (
            read_frames(list_frames(path)[start:stop])
            if path.is_dir()
            else self._decode(path, start, stop, self.num_frames(index))
        )
        if self.size is not None:
            src = cover_crop_clip(src, self.size)
        return MattingClip(src, name=self.names[index], start=start)

    def files(self, index: int, start: int, stop: int) -> list[tuple[str, Path]]:
        """Return the video file, or the files of these frames of a folder."""
        path = self._clips[index]
        return named_below(self.root, list_frames(path)[start:stop] if path.is_dir() else [path])

    def _decode(self, path: Path, start: int, stop: int, count: int) -> Tensor:
        reader = self._readers[path]
        frames = reader.read(start, stop, count)
        if len(frames) < stop - start:
            got = reader.count()
            raise PTQ4VMError(
                f"Expected {stop} frames in {path}, got {got}. The file has changed: run again."
            )
        if reader.concealed:
            warnings.warn(reader.notes[0], stacklevel=2)
        src = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
        if abs(reader.pixel_aspect - 1) <= 0.01:
            return src
        size = (reader.height, max(1, round(reader.width * reader.pixel_aspect)))
        return functional.interpolate(src, size, mode="bilinear", antialias=True).clamp(0, 1)
