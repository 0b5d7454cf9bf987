"""Unlabelled people, cut out by the float network and composed with other backgrounds."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator

from ptq4vm.data.background_clips import BackgroundClips, pair_evenly
from ptq4vm.data.sources import LayeredSource, Layers
from ptq4vm.data.videos import VideoSource
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import Teacher

WARMUP_FRAMES = 6
"""Warm-up frames of the float network before the first frame that is used."""


class CutoutSource(LayeredSource):
    """People of unlabelled videos, each composed with every background.

    Alpha and foreground are the float network's outputs; call :meth:`use` before reading clips.

    Args:
        people: Videos.
        backgrounds: Background clips.
        size: Height and width of the videos; backgrounds are resized to cover it and cropped.
        seed: Seed of the pairing of people and backgrounds.
    """

    def __init__(
        self,
        people: VideoSource,
        backgrounds: BackgroundClips,
        size: tuple[int, int],
        seed: int = 0,
    ) -> None:
        self.people, self.size = people, size
        self.claims_are_within = people.claims_are_within
        self._backgrounds = backgrounds
        self._pairs = pair_evenly(len(people), len(backgrounds.names), seed)
        self.names = [f"{people.names[c]}+{self._backgrounds.names[b]}" for c, b in self._pairs]
        self._teacher: Teacher | None = None

    def use(self, teacher: Teacher) -> None:
        """Set the network that cuts people out."""
        self._teacher = teacher

    def num_frames(self, index: int) -> int:
        """Return the number of frames of the video."""
        return self.people.num_frames(self._pairs[index][0])

    def claimed_frames(self, index: int) -> int | None:
        """Return the video's claimed number of frames."""
        return self.people.claimed_frames(self._pairs[index][0])

    def cuts(self, index: int, start: int, stop: int) -> Sequence[int]:
        """Return the cuts of the video."""
        return self.people.cuts(self._pairs[index][0], start, stop)

    def read_layers(self, index: int, start: int, stop: int) -> Layers:
        """Return frames [start, stop) of a cut-out person and of a background.

        Raises:
            PTQ4VMError: No network is set.
        """
        self.check_range(index, start, stop)
        if self._teacher is None:
            raise PTQ4VMError(
                "Expected a network that cuts people out, got none. Call attach(teacher) first."
            )
        clip, stage = self._pairs[index]
        first = max(0, start - WARMUP_FRAMES)
        src = self.people.read(clip, first, stop).src
        with torch.no_grad():
            output = self._teacher.forward(src[None])
        fgr, pha = (layer[0, start - first :].float().cpu() for layer in (output.fgr, output.pha))
        return Layers(fgr, pha, self._backgrounds.read(stage, start, stop, self.size))

    def files(self, index: int, start: int, stop: int) -> list[tuple[str, Path]]:
        """Return the files of the video, including warm-up frames, and of the background."""
        clip, stage = self._pairs[index]
        video = self.people.files(clip, max(0, start - WARMUP_FRAMES), stop)
        return video + self._backgrounds.files(stage, start, stop)

    def draw_order(self, generator: Generator) -> list[int]:
        """Return the pairs in order; they are already shuffled evenly by seed."""
        return list(range(len(self)))
