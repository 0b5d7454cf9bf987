"""Cached float-network mattes of evaluation clips, the reference of fidelity metrics."""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ptq4vm import distributed
from ptq4vm.data.calibration import CalibrationSet
from ptq4vm.data.cutouts import CutoutSource
from ptq4vm.data.drawing import Progress, SequencePlace, draw_sequences
from ptq4vm.data.loading import Chunk, EvaluationChunks
from ptq4vm.data.sources import ClipSource
from ptq4vm.data.storage import CheckedFiles, file_name, make_folder
from ptq4vm.types import MattingClip, Teacher

HELD_OUT_CLIPS, HELD_OUT_FRAMES = 8, 24
_LEVELS = 65535
"""Alpha is stored in 16 bits; the step is about 1 % of the smallest differences of interest."""


class ReferencedChunks(Dataset[MattingClip]):
    """Evaluation chunks with the float network's alpha.

    Args:
        chunks: Evaluation chunks.
        folder: Folder of the references, written by :meth:`build`.
        files: Files that this process has written or verified, which are not verified again.
    """

    def __init__(self, chunks: EvaluationChunks, folder: Path, files: CheckedFiles) -> None:
        self.clips, self.folder, self.files = chunks, folder, files

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def chunks(self) -> list[Chunk]:
        """Clip and frame range of each chunk."""
        return self.clips.chunks

    @property
    def source(self) -> ClipSource:
        """Source of the clips."""
        return self.clips.source

    @property
    def num_frames(self) -> int:
        """Total number of frames of all chunks."""
        return self.clips.num_frames

    def __getitem__(self, index: int) -> MattingClip:
        """Return one chunk, (T, C, H, W)."""
        pha = self.files.read(self.folder / file_name(index))["pha"].float() / _LEVELS
        return self.clips[index]._replace(float_pha=pha)

    def by_clip(self) -> list[list[int]]:
        """Return the chunk indices of each clip."""
        return self.clips.by_clip()

    @torch.no_grad()
    def build(self, teacher: Teacher, progress: Progress | None = None) -> "ReferencedChunks":
        """Compute this rank's share of missing references; complete clips are not read.

        Raises:
            PTQ4VMError: Clips can't be read, or the folder can't be written.
        """
        make_folder(self.folder)
        share = distributed.share(self.clips.by_clip())
        for done, clip in enumerate(share):
            files, state = [self.folder / file_name(index) for index in clip], None
            for index, file in (
                zip(clip, files, strict=True)
                if not all(self.files.is_whole(f, ["pha"]) for f in files)
                else ()
            ):
                output = teacher.forward(self.clips[index].src[None], state)
                state = tuple(steps[:, -1] for steps in output.state)
                self.files.write(file, {"pha": _to_codes(output.pha[0])})
            if progress is not None:
                progress(done + 1, len(share), "float mattes of the evaluation clips")
        return self


class HeldOutClips(Dataset[MattingClip]):
    """Cached sequences of people excluded from calibration, as clips without true alpha."""

    def __init__(self, sequences: CalibrationSet, names: list[str]) -> None:
        self.sequences, self.names = sequences, names

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def num_frames(self) -> int:
        """Total number of frames of all clips."""
        return len(self) * len(self.sequences[0].src)

    def by_clip(self) -> list[list[int]]:
        """Return one list with one index per clip."""
        return [[number] for number in range(len(self))]

    def __getitem__(self, index: int) -> MattingClip:
        """Return one clip, (T, C, H, W)."""
        sequence = self.sequences[index]
        return MattingClip(sequence.src, name=self.names[index], float_pha=sequence.teacher_pha)


def draw_held_out(
    scenes: CutoutSource, progress: Progress | None = None
) -> tuple[CutoutSource, list[SequencePlace], int]:
    """Draw sequences of held-out people, of a length for which every video has a shot.

    Returns:
        The scenes, the location of each sequence, and frames per sequence: at most
        ``HELD_OUT_FRAMES``, and at most the longest shot of each video.
    """
    people, length = scenes.people, HELD_OUT_FRAMES
    for clip in range(len(people)):
        if progress is not None:
            progress(clip, len(people), "looking at held-out people")
        length = min(length, people.longest_shot(clip))
    return scenes, draw_sequences(scenes, HELD_OUT_CLIPS, length, 0, progress), length


def _to_codes(alpha: Tensor) -> Tensor:
    return (alpha.cpu() * _LEVELS).round().to(torch.int32).to(torch.uint16)
