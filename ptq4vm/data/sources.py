"""What every source of clips offers."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from ptq4vm.data.files import content_digest
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import MattingClip


class ClipSource(ABC):
    """Clips that are read a few frames at a time, so that a clip's length costs no memory."""

    names: list[str]
    """`<set>/<clip>` of each clip."""
    exact_flow: bool = False
    """Whether :meth:`read` gives the exact flow too."""

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def num_frames(self, index: int) -> int:
        """The number of frames of a clip."""

    @abstractmethod
    def read(self, index: int, start: int, stop: int) -> MattingClip:
        """Frames [start, stop) of a clip, floats in [0, 1], (T, C, H, W).

        Raises:
            PTQ4VMError: the clip has no such frames, or they can't be read.
        """

    claims_are_within: int = 1
    """The true number of frames is at most so many times :meth:`claimed_frames`."""

    def claimed_frames(self, index: int) -> int | None:
        """The number of frames as far as it is known without reading the clip; None where it isn't."""
        return self.num_frames(index)

    def cuts(self, index: int, start: int, stop: int) -> Sequence[int]:
        """Those of the frames within (start, stop) with which a new shot begins; none unless a source looks."""
        return ()

    def longest_shot(self, index: int) -> int:
        """Frames of the longest stretch of a clip without a cut."""
        count = self.num_frames(index)
        return max(
            after - before for before, after in pairwise((0, *self.cuts(index, 0, count), count))
        )

    @abstractmethod
    def files(self, index: int, start: int, stop: int) -> list[tuple[str, Path]]:
        """The files that frames [start, stop) of a clip are made of, in a fixed order.

        Each comes with a name that stays the same when the whole data set is copied elsewhere.
        """

    def fingerprint(self, places: Iterable[tuple[int, int, int]] | None = None) -> str:
        """A short hash that changes with what these frames are made of: for caches and run folders.

        Names and contents count, not where the files lie nor when they were written. Files that no
        place needs are not read. Large ones are sampled, as
        :func:`~ptq4vm.data.files.content_digest` says.

        Args:
            places: clip, first frame and the one after the last; all frames if not given.

        Raises:
            PTQ4VMError: a file can't be read.
        """
        if places is None:
            places = [(clip, 0, self.num_frames(clip)) for clip in range(len(self))]
        digests: dict[Path, str] = {}
        whole = hashlib.sha256()
        for clip, start, stop in places:
            whole.update(f"[{start}, {stop})\n".encode())
            for name, path in self.files(clip, start, stop):
                if path not in digests:
                    digests[path] = content_digest(path)
                whole.update(f"{name} {digests[path]}\n".encode())
        return whole.hexdigest()[:16]

    def draw_order(self, generator: Generator) -> list[int]:
        """An order of clips for drawing a calibration set from."""
        return torch.randperm(len(self), generator=generator).tolist()

    def check_range(self, index: int, start: int, stop: int) -> None:
        """Raises: PTQ4VMError: the clip has no frames [start, stop)."""
        if not 0 <= start < stop <= self.num_frames(index):
            raise PTQ4VMError(
                f"Expected frames within [0, {self.num_frames(index)}) of clip {self.names[index]}, "
                f"got [{start}, {stop})."
            )


class Layers(NamedTuple):
    """A clip before it is composed; floats in [0, 1], (T, C, H, W)."""

    fgr: Tensor
    pha: Tensor
    bgr: Tensor
    flow: Tensor | None = None
    """Exact backward flow of the composite, as in :class:`~ptq4vm.types.MattingClip`."""


def compose(layers: Layers, name: str, start: int) -> MattingClip:
    """Put the foreground before the background, in code values: src = fgr·pha + bgr·(1 − pha)."""
    src = layers.fgr * layers.pha + layers.bgr * (1 - layers.pha)
    return MattingClip(src, layers.pha, layers.fgr, layers.flow, name, start)


class LayeredSource(ClipSource):
    """A source whose foregrounds and backgrounds come apart, and so can be augmented apart."""

    @abstractmethod
    def read_layers(self, index: int, start: int, stop: int) -> Layers:
        """Frames [start, stop) of a clip before composition."""

    def read(self, index: int, start: int, stop: int) -> MattingClip:
        """Frames [start, stop) of a clip, composed."""
        return compose(self.read_layers(index, start, stop), self.names[index], start)


def derive_seed(seed: int, number: int) -> int:
    """A seed for the `number`-th thing decided by `seed`; the same on every machine."""
    return (seed * 1_000_003 + number) % 2**63
