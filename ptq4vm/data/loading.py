"""From data sets to batches: evaluation chunks, orders of samples, and collation."""

import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from ptq4vm.data.sources import ClipSource, derive_seed
from ptq4vm.types import CalibrationClip, MattingClip
from ptq4vm.video.cuts import CutDetector


class Chunk(NamedTuple):
    """Frames [start, stop) of a clip of a source."""

    clip: int
    start: int
    stop: int


class EvaluationChunks(Dataset[MattingClip]):
    """Clips cut into chunks that follow each other, clip after clip, so that a long clip costs no memory.

    Args:
        source: the clips.
        chunk: at most so many frames of one clip at a time.
        clips: at most so many clips, spread evenly over the source; None takes all.
        frames: at most so many frames of each clip; None takes all.
    """

    def __init__(
        self, source: ClipSource, chunk: int, clips: int | None = None, frames: int | None = None
    ) -> None:
        self.source = source
        count = len(source) if clips is None else min(clips, len(source))
        self.chunks: list[Chunk] = []
        for clip in (i * len(source) // count for i in range(count)):
            end = (
                source.num_frames(clip) if frames is None else min(frames, source.num_frames(clip))
            )
            self.chunks += [
                Chunk(clip, start, min(start + chunk, end)) for start in range(0, end, chunk)
            ]
        self._is_cut, self._next = CutDetector(), (-1, 0)
        self._cuts: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def num_frames(self) -> int:
        """Frames in all chunks together."""
        return sum(chunk.stop - chunk.start for chunk in self.chunks)

    def __getitem__(self, index: int) -> MattingClip:
        """One chunk, (T, C, H, W); cuts in it are warned of once."""
        clip = self.source.read(*self.chunks[index])
        self._look_for_cuts(self.chunks[index], clip)
        return clip

    def _look_for_cuts(self, chunk: Chunk, clip: MattingClip) -> None:
        if (chunk.clip, chunk.start) != self._next:
            self._is_cut = CutDetector()
        self._next = (chunk.clip, chunk.stop)
        frames = (clip.src * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        cuts = [
            (chunk.clip, chunk.start + place)
            for place, frame in enumerate(frames)
            if self._is_cut(frame)
        ]
        for cut in cuts:
            if cut not in self._cuts:
                self._cuts.add(cut)
                warnings.warn(
                    f"Expected one shot in each evaluation clip, got a cut at frame {cut[1]} of {clip.name}. It is "
                    "scored as one, the state carried across, for float and quantized networks alike. Split the clip "
                    "there to score its shots apart.",
                    stacklevel=2,
                )

    def clips(self) -> list[Chunk]:
        """The frames of each clip that its chunks hold together."""
        return [
            Chunk(clip, 0, stop) for clip, stop in {c.clip: c.stop for c in self.chunks}.items()
        ]

    def by_clip(self) -> list[list[int]]:
        """The numbers of the chunks of each clip."""
        return [
            [*numbers]
            for _, numbers in groupby(range(len(self)), lambda number: self.chunks[number].clip)
        ]


class NoFrames(Dataset[MattingClip]):
    """One chunk without frames, for a process that gets no clip: it takes part in an evaluation, and counts nothing."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> MattingClip:
        """(0, 3, 1, 1)."""
        return MattingClip(torch.zeros(0, 3, 1, 1))


# A DistributedSampler, which Lightning leaves as it is: the shares are made here.
class ShuffledPasses(DistributedSampler[int]):
    """Samples in shuffled passes through a set, decided by seed and epoch.

    Args:
        items: the set.
        count: samples an epoch; more than there are begins further passes, fewer leaves the pass unfinished.
        seed: of the order.
    """

    def __init__(self, items: Sequence[int], count: int, seed: int) -> None:
        super().__init__(items, num_replicas=1, rank=0, seed=seed)  # type: ignore[arg-type]
        self.items, self.count = items, count
        self._done = (0, 0)

    def go_on(self, epoch: int, batches: int, batch_size: int) -> None:
        """Begin with this epoch, and leave out so many batches, which were drawn before a stop.

        Lightning tells a sampler its epoch after loader processes have drawn from it.
        """
        self.epoch, self._done = epoch, (epoch, batches * batch_size)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = Generator().manual_seed(derive_seed(self.seed, self.epoch))
        unfinished, done = self._done
        skipped = done if self.epoch == unfinished else 0
        self.epoch += 1  # Where nobody calls set_epoch, epochs still differ.
        order: list[int] = []
        while len(order) < self.count:
            order += torch.randperm(len(self.items), generator=generator).tolist()
        yield from (self.items[place] for place in order[skipped : self.count])


def collate_calibration(clips: list[CalibrationClip]) -> CalibrationClip:
    """Stack sequences into a batch, (B, T, C, H, W); what is None stays None."""

    def known(parts: list[Tensor | None]) -> Tensor | None:
        tensors = [part for part in parts if part is not None]
        return torch.stack(tensors) if len(tensors) == len(parts) else None

    return CalibrationClip(
        index=torch.stack([clip.index for clip in clips]),
        src=torch.stack([clip.src for clip in clips]),
        pha=torch.stack([clip.pha for clip in clips]),
        fgr=known([clip.fgr for clip in clips]),
        teacher_pha=torch.stack([clip.teacher_pha for clip in clips]),
        teacher_fgr=torch.stack([clip.teacher_fgr for clip in clips]),
        teacher_state=tuple(
            map(torch.stack, zip(*(clip.teacher_state for clip in clips), strict=True))
        ),
        flow=torch.stack([clip.flow for clip in clips]),
        visible=torch.stack([clip.visible for clip in clips]),
    )


def collate_chunk(chunks: list[MattingClip]) -> MattingClip:
    """Make a batch of one chunk: (1, T, C, H, W) tensors, name and start as they are.

    Raises:
        ValueError: there is more than one; chunks differ in length and belong to different states.
    """
    if len(chunks) != 1:
        raise ValueError(
            f"Expected one chunk in a batch, got {len(chunks)}. Evaluate with a batch size of 1."
        )
    chunk = chunks[0]
    known = (chunk.pha, chunk.fgr, chunk.flow, chunk.float_pha)
    pha, fgr, flow, float_pha = (None if part is None else part[None] for part in known)
    return chunk._replace(src=chunk.src[None], pha=pha, fgr=fgr, flow=flow, float_pha=float_pha)
