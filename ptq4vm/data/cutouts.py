"""People cut out of unlabelled videos by the float network, before other backgrounds."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator

from ptq4vm.data.backgrounds import Backgrounds, pair_evenly
from ptq4vm.data.sources import LayeredSource, Layers
from ptq4vm.data.videos import VideoSource
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import Teacher

WARMUP_FRAMES = 6
"""The float network sees so many frames before the first one that is cut out."""


class CutoutSource(LayeredSource):
    """Variety from little: the people of unlabelled videos, each composed with every background.

    Alpha and foreground are the float network's own, which :meth:`use` must have brought before clips are read.

    Args:
        people: the videos.
        backgrounds: what to put them before.
        size: height and width of the videos; backgrounds are scaled to cover it and cut.
        seed: pairs people with backgrounds.
    """

    def __init__(
        self, people: VideoSource, backgrounds: Backgrounds, size: tuple[int, int], seed: int = 0
    ) -> None:
        self.people, self.size = people, size
        self.claims_are_within = people.claims_are_within
        self._backgrounds = backgrounds
        self._pairs = pair_evenly(len(people), len(backgrounds.names), seed)
        self.names = [f"{people.names[c]}+{self._backgrounds.names[b]}" for c, b in self._pairs]
        self._teacher: Teacher | None = None

    def use(self, teacher: Teacher) -> None:
        """Cut people out with this network."""
        self._teacher = teacher

    def num_frames(self, index: int) -> int:
        """The number of frames of the video."""
        return self.people.num_frames(self._pairs[index][0])

    def claimed_frames(self, index: int) -> int | None:
        """As the video claims."""
        return self.people.claimed_frames(self._pairs[index][0])

    def cuts(self, index: int, start: int, stop: int) -> Sequence[int]:
        """Those of the video."""
        return self.people.cuts(self._pairs[index][0], start, stop)

    def read_layers(self, index: int, start: int, stop: int) -> Layers:
        """Frames [start, stop) of a person, cut out, and of a background.

        Raises:
            PTQ4VMError: no network has been given that cuts people out.
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
        """Of the video, with the frames that the network sees before, and of the background."""
        clip, stage = self._pairs[index]
        video = self.people.files(clip, max(0, start - WARMUP_FRAMES), stop)
        return video + self._backgrounds.files(stage, start, stop)

    def draw_order(self, generator: Generator) -> list[int]:
        """The pairs as they stand: they are mixed by seed already, and evenly."""
        return list(range(len(self)))
