"""The float network's mattes of clips that are scored, computed once: what fidelity is measured against."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ptq4vm import distributed
from ptq4vm.data.calibration import (
    CalibrationSet,
    Progress,
    SequencePlace,
    draw_sequences,
    file_name,
)
from ptq4vm.data.cutouts import CutoutSource
from ptq4vm.data.loading import Chunk, EvaluationChunks
from ptq4vm.data.sources import ClipSource
from ptq4vm.data.storage import is_whole, make_folder, read_tensors, write_tensors
from ptq4vm.types import MattingClip, Teacher

HELD_OUT_CLIPS, HELD_OUT_FRAMES = 8, 24
_LEVELS = 65535
"""Alpha is kept in 16 bits: a hundredth of what the smallest differences of interest are."""


class ReferencedChunks(Dataset[MattingClip]):
    """Evaluation chunks together with the float network's alpha.

    Args:
        chunks: the clips.
        folder: of the references, made by :meth:`build`.
    """

    def __init__(self, chunks: EvaluationChunks, folder: Path) -> None:
        self.clips, self.folder = chunks, folder

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def chunks(self) -> list[Chunk]:
        """Which frames each chunk holds."""
        return self.clips.chunks

    @property
    def source(self) -> ClipSource:
        """Where the clips come from."""
        return self.clips.source

    @property
    def num_frames(self) -> int:
        """Frames in all chunks together."""
        return self.clips.num_frames

    def __getitem__(self, index: int) -> MattingClip:
        """One chunk, (T, C, H, W)."""
        pha = read_tensors(self.folder / file_name(index))["pha"].float() / _LEVELS
        return self.clips[index]._replace(float_pha=pha)

    def by_clip(self) -> list[list[int]]:
        """The numbers of the chunks of each clip."""
        return self.clips.by_clip()

    @torch.no_grad()
    def build(self, teacher: Teacher, progress: Progress | None = None) -> "ReferencedChunks":
        """Make what is missing, each process its share; a clip whose chunks are all there is not looked at.

        Raises:
            PTQ4VMError: clips can't be read, or the folder can't be written.
        """
        make_folder(self.folder)
        share = distributed.share(self.clips.by_clip())
        for done, clip in enumerate(share):
            files, state = [self.folder / file_name(index) for index in clip], None
            for index, file in (
                zip(clip, files, strict=True)
                if not all(is_whole(f, ["pha"]) for f in files)
                else ()
            ):
                output = teacher.forward(self.clips[index].src[None], state)
                state = tuple(steps[:, -1] for steps in output.state)
                write_tensors(file, {"pha": _to_codes(output.pha[0])})
            if progress is not None:
                progress(done + 1, len(share), "float mattes of the evaluation clips")
        return self


class HeldOutClips(Dataset[MattingClip]):
    """People that calibration never sees: cached sequences, as clips without true alpha."""

    def __init__(self, sequences: CalibrationSet, names: list[str]) -> None:
        self.sequences, self.names = sequences, names

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def num_frames(self) -> int:
        """Frames of all clips together."""
        return len(self) * len(self.sequences[0].src)

    def by_clip(self) -> list[list[int]]:
        """The numbers of the clips, one by one."""
        return [[number] for number in range(len(self))]

    def __getitem__(self, index: int) -> MattingClip:
        """One clip, (T, C, H, W)."""
        sequence = self.sequences[index]
        return MattingClip(sequence.src, name=self.names[index], float_pha=sequence.teacher_pha)


def draw_held_out(
    scenes: CutoutSource, progress: Progress | None = None
) -> tuple[CutoutSource, list[SequencePlace], int]:
    """Draw sequences of held-out people, as long as the shortest of their longest shots allows.

    Returns:
        The scenes, where each sequence begins, and frames of each.
    """
    people, length = scenes.people, HELD_OUT_FRAMES
    for clip in range(len(people)):
        if progress is not None:
            progress(clip, len(people), "looking at held-out people")
        length = min(length, people.longest_shot(clip))
    return scenes, draw_sequences(scenes, HELD_OUT_CLIPS, length, 0, progress), length


def _to_codes(alpha: Tensor) -> Tensor:
    return (alpha.cpu() * _LEVELS).round().to(torch.int32).to(torch.uint16)
