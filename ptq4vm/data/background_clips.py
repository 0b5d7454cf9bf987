"""Background clips and their pairing with foregrounds."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from ptq4vm.data.files import (
    cover_crop_clip,
    list_folders,
    matches,
    named_below,
    ping_pong,
    read_frames,
    require_folder,
)
from ptq4vm.errors import PTQ4VMError
from ptq4vm.video.images import list_frames

LAYOUT = "train/<clip>/<frame>.jpg|png"


class BackgroundClips:
    """Background clips: stills, or frame sequences, looped back and forth if too short.

    Args:
        root: Folder with `train/<clip>/<frame>`; images directly in `train` are stills. None uses
            the photographs only.
        names: Shell patterns of the clips to use.
        held_out: Shell patterns of clips to exclude.
        photographs: Files of additional stills.

    Raises:
        PTQ4VMError: The folder is missing, or holds no matching clips.
    """

    def __init__(
        self,
        root: Path | None,
        names: Sequence[str] = ("*",),
        held_out: Sequence[str] = (),
        photographs: Sequence[Path] = (),
    ) -> None:
        self.root = Path() if root is None else root
        place = "the photographs" if root is None else self.root / "train"
        self._clips = {} if root is None else self._list_clips(root / "train")
        self._clips |= {photograph.name: [photograph] for photograph in photographs}
        self.names = [
            name for name in self._clips if matches(name, names) and not matches(name, held_out)
        ]
        if not self.names:
            raise PTQ4VMError(
                f"Expected backgrounds named {', '.join(names)} in {place}, but "
                f"{', '.join(held_out) or 'none'}, got "
                f"{', '.join(self._clips)}. Correct held_out."
            )

    @staticmethod
    def _list_clips(folder: Path) -> dict[str, list[Path]]:
        require_folder(folder, "backgrounds", LAYOUT)
        clips = {image.stem: [image] for image in list_frames(folder)}
        clips |= {one.name: frames for one in list_folders(folder) if (frames := list_frames(one))}
        if not clips:
            raise PTQ4VMError(
                f"Expected backgrounds laid out as {LAYOUT}, got no image in {folder}."
            )
        return clips

    def read(self, index: int, start: int, stop: int, size: tuple[int, int]) -> Tensor:
        """Return frames [start, stop), resized and cropped to ``size`` (H, W): (T, 3, H, W)."""
        paths = self._frames(index, start, stop)
        if len(paths) == 1:
            return cover_crop_clip(read_frames(paths), size).expand(stop - start, -1, -1, -1)
        return cover_crop_clip(read_frames(paths), size)

    def files(self, index: int, start: int, stop: int) -> list[tuple[str, Path]]:
        """See :meth:`ClipSource.files`."""
        return named_below(self.root, self._frames(index, start, stop))

    def _frames(self, index: int, start: int, stop: int) -> list[Path]:
        """Return the paths of frames [start, stop), or of the still."""
        paths = self._clips[self.names[index]]
        if len(paths) == 1:
            return paths
        return [paths[ping_pong(t, len(paths))] for t in range(start, stop)]


def pair_evenly(people: int, backgrounds: int, seed: int) -> list[tuple[int, int]]:
    """Pair every person with every background, in an order drawn by seed.

    Each round pairs every person with a background not yet used for that person, so any prefix of
    the list uses people and backgrounds evenly.

    Returns:
        (person, background) indices, ``people * backgrounds`` pairs.
    """
    generator = Generator().manual_seed(seed)
    clips = torch.randperm(people, generator=generator).tolist()
    stages = torch.randperm(backgrounds, generator=generator).tolist()
    # Round r shifts the backgrounds by r, so that no pair repeats.
    return [
        (clip, stages[(i + r) % len(stages)])
        for r in range(len(stages))
        for i, clip in enumerate(clips)
    ]
