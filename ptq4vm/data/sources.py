"""Base classes of clip sources."""

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
    """Base class of sources whose clips are read a few frames at a time, in bounded memory."""

    names: list[str]
    """`<set>/<clip>` of each clip."""
    exact_flow: bool = False
    """True if :meth:`read` returns exact flow."""

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def num_frames(self, index: int) -> int:
        """Return the number of frames of a clip."""

    @abstractmethod
    def read(self, index: int, start: int, stop: int) -> MattingClip:
        """Return frames [start, stop) of a clip, floats in [0, 1], (T, C, H, W).

        Raises:
            PTQ4VMError: The clip has no such frames, or they can't be read.
        """

    claims_are_within: int = 1
    """Upper bound of the ratio of the true number of frames to :meth:`claimed_frames`."""

    def claimed_frames(self, index: int) -> int | None:
        """Return the number of frames known without reading the clip, or None if unknown."""
        return self.num_frames(index)

    def cuts(self, index: int, start: int, stop: int) -> Sequence[int]:
        """Return the frames in (start, stop) that begin a shot; empty without cut detection."""
        return ()

    def longest_shot(self, index: int) -> int:
        """Return the length in frames of a clip's longest shot."""
        count = self.num_frames(index)
        return max(
            after - before for before, after in pairwise((0, *self.cuts(index, 0, count), count))
        )

    @abstractmethod
    def files(self, index: int, start: int, stop: int) -> list[tuple[str, Path]]:
        """Return (name, path) of the files of frames [start, stop) of a clip, in a fixed order.

        Names do not change when the whole data set is copied elsewhere.
        """

    def fingerprint(self, places: Iterable[tuple[int, int, int]] | None = None) -> str:
        """Hash names and contents of the frames' files, for cache keys and run folders.

        Location and time stamps of the files don't matter. Files of other frames are not read.
        Large files are sampled, see :func:`~ptq4vm.data.files.content_digest`.

        Args:
            places: (clip, start, stop) of frames [start, stop); all frames if not given.

        Returns:
            16 hexadecimal digits.

        Raises:
            PTQ4VMError: A file can't be read.
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
        """Return a permutation of the clips for drawing calibration sequences."""
        return torch.randperm(len(self), generator=generator).tolist()

    def check_range(self, index: int, start: int, stop: int) -> None:
        """Check that the clip has frames [start, stop).

        Raises:
            PTQ4VMError: It does not, or the range is empty.
        """
        if not 0 <= start < stop <= self.num_frames(index):
            raise PTQ4VMError(
                f"Expected frames within [0, {self.num_frames(index)}) of clip "
                f"{self.names[index]}, "
                f"got [{start}, {stop})."
            )


class Layers(NamedTuple):
    """Clip before composition; floats in [0, 1], (T, C, H, W)."""

    fgr: Tensor
    pha: Tensor
    bgr: Tensor
    flow: Tensor | None = None
    """Exact backward flow of the composite, see :class:`~ptq4vm.types.MattingClip`."""


def compose(layers: Layers, name: str, start: int) -> MattingClip:
    """Compose the layers without linearization: src = fgr·pha + bgr·(1 − pha)."""
    src = layers.fgr * layers.pha + layers.bgr * (1 - layers.pha)
    return MattingClip(src, layers.pha, layers.fgr, layers.flow, name, start)


class LayeredSource(ClipSource):
    """Base class of sources with separate foreground and background, augmented independently."""

    @abstractmethod
    def read_layers(self, index: int, start: int, stop: int) -> Layers:
        """Return the layers of frames [start, stop) of a clip."""

    def read(self, index: int, start: int, stop: int) -> MattingClip:
        """Return frames [start, stop) of a clip, composed."""
        return compose(self.read_layers(index, start, stop), self.names[index], start)


def derive_seed(seed: int, number: int) -> int:
    """Derive the `number`-th seed from `seed`, independent of the platform."""
    return (seed * 1_000_003 + number) % 2**63
