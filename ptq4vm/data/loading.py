"""Evaluation chunks and their loader, sampling order and batch collation."""

import warnings
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data.distributed import DistributedSampler

from ptq4vm import distributed
from ptq4vm.data.sources import ClipSource, derive_seed
from ptq4vm.types import CalibrationClip, MattingClip, RecurrentState
from ptq4vm.video.cuts import CutDetector


class Chunk(NamedTuple):
    """Frames [start, stop) of a clip of a source."""

    clip: int
    start: int
    stop: int


class EvaluationChunks(Dataset[MattingClip]):
    """Clips split into consecutive chunks, clip by clip, so that memory use is bounded.

    Args:
        source: Clip source.
        chunk: Maximum number of frames per chunk.
        clips: Maximum number of clips, spread evenly over the source; None uses all.
        frames: Maximum number of frames per clip; None uses all.
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
        """Total number of frames of all chunks."""
        return sum(chunk.stop - chunk.start for chunk in self.chunks)

    def __getitem__(self, index: int) -> MattingClip:
        """Return one chunk, (T, C, H, W); warn once about each cut in it."""
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
                    f"Expected one shot in each evaluation clip, got a cut at frame {cut[1]} of "
                    f"{clip.name}. It is "
                    "scored as one, the state carried across, for float and quantized networks "
                    "alike. Split the clip "
                    "there to score its shots apart.",
                    stacklevel=2,
                )

    def clips(self) -> list[Chunk]:
        """Return one chunk per clip, covering all frames of its chunks."""
        return [
            Chunk(clip, 0, stop) for clip, stop in {c.clip: c.stop for c in self.chunks}.items()
        ]

    def by_clip(self) -> list[list[int]]:
        """Return the chunk indices of each clip."""
        return [
            [*numbers]
            for _, numbers in groupby(range(len(self)), lambda number: self.chunks[number].clip)
        ]


class NoFrames(Dataset[MattingClip]):
    """One chunk without frames, for ranks without clips in a distributed evaluation."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> MattingClip:
        """Return an empty clip, (0, 3, 1, 1)."""
        return MattingClip(torch.zeros(0, 3, 1, 1))


# Lightning keeps a DistributedSampler unchanged; `items` are this rank's share already.
class ShuffledPasses(DistributedSampler[int]):
    """Sampler of shuffled passes through a set, determined by seed and epoch.

    Args:
        items: Dataset indices.
        count: Samples per epoch; above the number of items further passes begin, below it the pass
            is incomplete.
        seed: Seed of the order.
    """

    def __init__(self, items: Sequence[int], count: int, seed: int) -> None:
        super().__init__(items, num_replicas=1, rank=0, seed=seed)  # type: ignore[arg-type]
        self.items, self.count = items, count
        self._done = (0, 0)

    def go_on(self, epoch: int, batches: int, batch_size: int) -> None:
        """Resume at an epoch and skip its batches drawn before the interruption.

        Lightning sets the sampler's epoch only after DataLoader workers have drawn from it.
        """
        self.epoch, self._done = epoch, (epoch, batches * batch_size)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = Generator().manual_seed(derive_seed(self.seed, self.epoch))
        unfinished, done = self._done
        skipped = done if self.epoch == unfinished else 0
        self.epoch += 1  # Let epochs differ without set_epoch.
        order: list[int] = []
        while len(order) < self.count:
            order += torch.randperm(len(self.items), generator=generator).tolist()
        yield from (self.items[place] for place in order[skipped : self.count])


def collate_calibration(clips: list[CalibrationClip]) -> CalibrationClip:
    """Stack sequences into a batch, (B, T, C, H, W); a field that is None in any stays None."""

    def known(parts: list[Tensor | None]) -> Tensor | None:
        tensors = [part for part in parts if part is not None]
        return torch.stack(tensors) if len(tensors) == len(parts) else None

    def stacked(states: list[RecurrentState]) -> RecurrentState:
        return tuple(map(torch.stack, zip(*states, strict=True)))

    return CalibrationClip(
        index=torch.stack([clip.index for clip in clips]),
        src=torch.stack([clip.src for clip in clips]),
        pha=torch.stack([clip.pha for clip in clips]),
        fgr=known([clip.fgr for clip in clips]),
        teacher_pha=torch.stack([clip.teacher_pha for clip in clips]),
        teacher_state=stacked([clip.teacher_state for clip in clips]),
        flow=torch.stack([clip.flow for clip in clips]),
        visible=torch.stack([clip.visible for clip in clips]),
        first_state=stacked([clip.first_state for clip in clips]),
    )


def collate_chunk(chunks: list[MattingClip]) -> MattingClip:
    """Add a batch dimension to one chunk: (1, T, C, H, W); name and start are unchanged.

    Raises:
        ValueError: There is more than one chunk. Chunks differ in length and recurrent state.
    """
    if len(chunks) != 1:
        raise ValueError(
            f"Expected one chunk in a batch, got {len(chunks)}. Evaluate with a batch size of 1."
        )
    chunk = chunks[0]
    known = (chunk.pha, chunk.fgr, chunk.flow, chunk.float_pha)
    pha, fgr, flow, float_pha = (None if part is None else part[None] for part in known)
    return chunk._replace(src=chunk.src[None], pha=pha, fgr=fgr, flow=flow, float_pha=float_pha)


def evaluation_loader(
    clips: Dataset[MattingClip], by_clip: list[list[int]], num_workers: int
) -> DataLoader[MattingClip]:
    """Return a loader of this rank's share of whole clips.

    Args:
        clips: Chunks of clips.
        by_clip: Chunk indices of each clip.
        num_workers: Worker processes.
    """
    share = [index for clip in distributed.share(by_clip) for index in clip]
    own: Dataset[MattingClip] = Subset(clips, share) if share else NoFrames()
    # Any other sampler is replaced by Lightning, which would split clips across ranks.
    sampler: DistributedSampler[int] = DistributedSampler(
        own, num_replicas=1, rank=0, shuffle=False
    )
    return DataLoader(own, sampler=sampler, num_workers=num_workers, collate_fn=collate_chunk)
