"""LightningDataModule of calibration sequences for training and clip chunks for evaluation."""

import copy
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ptq4vm import distributed
from ptq4vm.cache import cache_folder
from ptq4vm.data.building import PreparedClips
from ptq4vm.data.calibration import CalibrationSet
from ptq4vm.data.drawing import Progress
from ptq4vm.data.inputs import Builtin, SourceSettings, list_sources
from ptq4vm.data.loading import (
    EvaluationChunks,
    ShuffledPasses,
    collate_calibration,
    evaluation_loader,
)
from ptq4vm.data.references import ReferencedChunks
from ptq4vm.data.settings import DataSettings, check_numbers
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import CalibrationClip, FlowEstimator, MattingClip, Teacher


class VideoMattingDataModule(pl.LightningDataModule):
    """Calibration sequences, cached on disk, and evaluation clips, read in chunks.

    The calibration set is drawn by seed and then fixed. The float network's outputs and the optical
    flow are computed once and stored with it; both come from :meth:`attach`, which the
    LightningModules call. With several processes, each rank builds and reads its share of the
    sequences, and evaluates whole clips.

    In a fit, the LightningModule may have two attributes: ``keeps_sequences``, true for batches of
    sequence indices instead of clips, and ``reached``, the epoch and the number of its finished
    batches from which the fit resumes.

    Args:
        root: Folder that the paths below are relative to; the working directory if not given.
        source: Source of the calibration set; several take turns. Classes of `ptq4vm.data`:
            `Auto`, `Builtin`, `Composites`, `Videos`, `CutOuts`, `EvaluationTree`.
        held_out: Patterns of clips in the foregrounds, backgrounds and videos of the sources to
            exclude from calibration. Held-out people on held-out backgrounds are also scored, by
            their distance to the float network.
        labels: Use true alpha and foreground in calibration where the source has them.
        evaluation: Folder to evaluate on, `<set>/<clip>/{com,pha,fgr}/<frame>`, or with one folder
            of that layout; the built-in test clips if not given.
        score_held_out: Evaluate on held-out clips of the videos instead, by distance to float.
        num_sequences: Number of calibration sequences.
        seq_length: Frames per calibration sequence.
        height: Height in pixels of calibration sequences and built-in clips.
        width: Width in pixels of calibration sequences and built-in clips.
        enlarge: Factor by which calibration sequences are composed larger; half are then cropped to
            height and width (keeping the scale of people), half downscaled (keeping the scene).
        settle: Frames over which the float network runs before half of the calibration sequences,
            which so begin with a settled recurrent state; the others begin with zeros. The frames
            are the sequence's own, played to and fro.
        augment: Flip, shift, rotate, scale and recolour each calibration sequence at random.
        seed: Seed of the choice of sequences, their augmentation and their order.
        batch_size: Sequences per training batch.
        steps_per_epoch: Training batches per epoch; one shuffled pass through the set if not given.
        eval_chunk: Frames of an evaluation clip that are read at a time.
        eval_clips: Maximum number of evaluation clips, spread over the set; all if not given.
        eval_frames: Maximum number of frames per evaluation clip; all if not given.
        num_workers: Worker processes that build and read sequences ahead.
        cache_dir: Cache folder; by default $PTQ4VM_CACHE, $XDG_CACHE_HOME/ptq4vm, ~/.cache/ptq4vm.

    Raises:
        PTQ4VMError: A number is out of range. Paths are checked in :meth:`setup`.

    Example:
        >>> from ptq4vm import VideoMattingDataModule
        >>> data = VideoMattingDataModule(num_sequences=2, seq_length=3, height=64, width=96)
        >>> data.setup("fit")
        >>> sorted(data.contract()["size"])
        [64, 96]
    """

    def __init__(
        self,
        root: Path | None = None,
        source: SourceSettings | list[SourceSettings] = Builtin(),  # noqa: B008  (frozen)
        held_out: list[str] | None = None,
        labels: bool = True,
        evaluation: str | None = None,
        score_held_out: bool = False,
        num_sequences: int = 16,
        seq_length: int = 4,
        height: int = 288,
        width: int = 512,
        enlarge: float = 1.0,
        settle: int = 0,
        augment: bool = True,
        seed: int = 0,
        batch_size: int = 1,
        steps_per_epoch: int | None = None,
        eval_chunk: int = 25,
        eval_clips: int | None = None,
        eval_frames: int | None = None,
        num_workers: int = 0,
        cache_dir: Path | None = None,
    ) -> None:
        check_numbers(locals())
        super().__init__()
        cache = Path(cache_dir).expanduser() if cache_dir else cache_folder()
        given = DataSettings(
            Path(root or "."), list_sources(source), list(held_out or []), labels, evaluation,
            score_held_out, num_sequences, seq_length, (height, width), enlarge, settle,
            augment, seed, eval_chunk, eval_clips, eval_frames, num_workers, cache,
        )  # fmt: skip
        self._given, self._clips = given, PreparedClips(given)
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.progress: Progress | None = None
        """Default progress callback of long operations; an argument takes precedence."""

    # Read-only: whatever the clips depend on is fixed from the start.
    root = property(lambda self: self._given.root, doc="Folder of the data.")
    sources = property(lambda self: self._given.sources, doc="Sources, as given.")
    held_out = property(lambda self: self._given.held_out, doc="Patterns of excluded clips.")
    labels = property(lambda self: self._given.labels, doc="Whether true alpha is used.")
    num_sequences = property(lambda self: self._given.num_sequences, doc="Number of sequences.")
    seq_length = property(lambda self: self._given.seq_length, doc="Frames per sequence.")
    seed = property(lambda self: self._given.seed, doc="Seed of choice and order.")
    cache_dir = property(lambda self: self._given.cache_dir, doc="Cache folder.")
    num_workers = property(lambda self: self._given.num_workers, doc="Worker processes.")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._given.size

    def batches(self, batch_size: int, steps_per_epoch: int | None) -> "VideoMattingDataModule":
        """Return a datamodule of the same clips with other training batches.

        Both share what either prepares: sources, drawn sequences and cached files.

        Args:
            batch_size: Sequences per training batch.
            steps_per_epoch: Training batches per epoch; one pass through the set if None.

        Raises:
            PTQ4VMError: A number is out of range.
        """
        check_numbers({"batch_size": batch_size, "steps_per_epoch": steps_per_epoch})
        view = copy.copy(self)
        view.batch_size, view.steps_per_epoch, view.trainer = batch_size, steps_per_epoch, None
        return view

    def settings(self) -> dict[str, Any]:
        """Return the settings that affect the result, as plain values, with `Auto` resolved.

        Cache folders, batches and worker counts are left out.

        Raises:
            PTQ4VMError: `Auto` finds no known layout, or several folders of one layout.
        """
        return self._clips.settings.plain()

    def setup(self, stage: str | None = None, progress: Progress | None = None) -> None:
        """Check files for `stage` (all for None) and draw calibration sequences; idempotent.

        Cut detection reads each clip of `videos` completely, once; of other sources it reads only
        the drawn frames and a few before them.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
            progress: Called after each sequence; :attr:`progress` if not given.

        Raises:
            PTQ4VMError: Files are missing or don't match, or no clip is as long as `seq_length`.
        """
        _ = self._clips.evaluation_source
        if stage in (None, "fit"):
            self._clips.draw(progress or self.progress)

    def attach(
        self, teacher: Teacher, flow: FlowEstimator | None = None, progress: Progress | None = None
    ) -> None:
        """Build the missing part of the calibration set and enable clips that need the teacher.

        Sequences are composed, passed through the teacher and the flow and written one at a time,
        so memory use is independent of their number. Files of an interrupted run are kept, and
        verified once. With several processes, each rank builds its share in a shared cache; an
        error on one rank ends all.

        Args:
            teacher: Float network.
            flow: Flow estimator; None for evaluation only, without a calibration set.
            progress: Called after each sequence; :attr:`progress` if not given.

        Raises:
            PTQ4VMError: Files can't be read or written.
        """
        progress = progress or self.progress

        def prepare() -> None:
            self.setup("test" if flow is None else "fit", progress)
            self._clips.use(teacher)

        distributed.first_alone(prepare)
        if flow is not None:
            distributed.together(lambda: self._clips.build(teacher, flow, progress))

    def add_references(
        self, teacher: Teacher, flow: FlowEstimator, progress: Progress | None = None
    ) -> None:
        """Add the float network's mattes to evaluation clips, and held-out people if configured.

        The mattes are computed once and cached. Call :meth:`attach` first.

        Raises:
            PTQ4VMError: Files can't be read or written, or ``held_out`` matches no videos or no
                backgrounds.
        """
        self._clips.add_references(teacher, flow, progress or self.progress)

    def content(self) -> dict[str, Any]:
        """Return fingerprints of the frames in use, by purpose; independent of file location.

        ``calibration`` has one per source, after :meth:`setup` for a fit; ``held_out`` is present
        if there are held-out people. ``format`` is the version of the conversion from files to
        frames.

        Raises:
            PTQ4VMError: A file can't be read, or ``held_out`` matches no videos or no backgrounds.
        """
        return self._clips.content(self.progress)

    def contract(self) -> dict[str, Any]:
        """Return all data settings and fingerprints that affect a fit's result, as plain values."""
        self.setup("fit")
        batches = {"batch_size": self.batch_size, "steps_per_epoch": self.steps_per_epoch}
        return {**self._clips.calibration_contract(), **batches}

    @property
    def calibration_set(self) -> CalibrationSet:
        """Lazily read calibration sequences: a map-style dataset of unbatched CalibrationClip.

        Raises:
            PTQ4VMError: :meth:`attach` hasn't been called with a teacher and a flow estimator.
        """
        if self._clips.calibration_set is None:
            raise PTQ4VMError(
                "Expected attach(teacher, flow) before the calibration set is used, got no such "
                "call."
            )
        return self._clips.calibration_set

    def train_dataloader(self) -> DataLoader[CalibrationClip] | DataLoader[Tensor]:
        """Return a loader of CalibrationClip batches, (B, T, C, H, W), shuffled by seed and epoch.

        In a fit of a module that keeps the sequences, batches are their indices, (B,). With several
        processes, ``batch_size`` is per rank; all ranks yield the same number of batches, of their
        own shares.
        """
        trainer = self.trainer
        module = trainer.lightning_module if trainer is not None and trainer.training else None
        epoch, batches = getattr(module, "reached", (0, 0))
        count, steps = len(self.calibration_set), self.steps_per_epoch
        longest = math.ceil(count / distributed.count())
        passes = longest if steps is None else steps * self.batch_size
        sampler = ShuffledPasses(distributed.share(range(count)), passes, self.seed)
        sampler.go_on(epoch, batches, self.batch_size)
        if getattr(module, "keeps_sequences", False):
            return DataLoader(torch.arange(count), batch_size=self.batch_size, sampler=sampler)  # type: ignore[arg-type]
        return DataLoader(
            self.calibration_set,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate_calibration,
            persistent_workers=self.num_workers > 0,
        )

    @property
    def evaluation_set(self) -> EvaluationChunks | ReferencedChunks:
        """Chunks of evaluation clips in order: a map-style dataset of unbatched MattingClip."""
        return self._clips.evaluation_set()

    def _loader(self, clips: Any) -> DataLoader[MattingClip]:
        return evaluation_loader(clips, clips.by_clip(), self.num_workers)

    def held_out_dataloader(self) -> DataLoader[MattingClip] | None:
        """Return a loader of held-out people, (1, T, C, H, W), after :meth:`add_references`.

        None if there are none.
        """
        return None if self._clips.held_out is None else self._loader(self._clips.held_out)

    @property
    def held_out_frames(self) -> int:
        """Total number of frames of all held-out clips."""
        return 0 if self._clips.held_out is None else self._clips.held_out.num_frames

    def val_dataloader(self) -> DataLoader[MattingClip]:
        """Return a loader of evaluation chunks in order, (1, T, C, H, W), clip by clip."""
        return self._loader(self.evaluation_set)

    test_dataloader = predict_dataloader = val_dataloader
