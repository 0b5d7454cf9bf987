"""LightningDataModule of calibration sequences for training and clip chunks for evaluation."""

import glob
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data.distributed import DistributedSampler

from ptq4vm import distributed
from ptq4vm.cache import cache_folder
from ptq4vm.data.backgrounds import Backgrounds
from ptq4vm.data.builtin import PICTURES, BuiltinSource, bundled, cached_cutout
from ptq4vm.data.calibration import (
    CalibrationBuilder,
    CalibrationSet,
    Progress,
    SequencePlace,
    draw_from_all,
    fingerprint_sequences,
)
from ptq4vm.data.cutouts import CutoutSource
from ptq4vm.data.datasets import EvaluationSource, VideoMatteSource
from ptq4vm.data.discovery import discover, held_out_clips
from ptq4vm.data.loading import (
    EvaluationChunks,
    NoFrames,
    ShuffledPasses,
    collate_calibration,
    collate_chunk,
)
from ptq4vm.data.references import HeldOutClips, ReferencedChunks, draw_held_out
from ptq4vm.data.sources import ClipSource
from ptq4vm.data.storage import short_hash
from ptq4vm.data.transforms import ClipAugmentation
from ptq4vm.data.videos import VideoSource
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import CalibrationClip, FlowEstimator, MattingClip, Teacher

FORMAT_VERSION = 6
"""Part of every cache key; increment when the content of the cache or its computation changes."""
Chunks = TypeVar("Chunks", bound=EvaluationChunks | ReferencedChunks)
Source = Literal["builtin", "videomatte", "evaluation", "video", "cutout"]
AUTO = "auto"
BUILTIN_TEST_CLIPS, BUILTIN_TEST_FRAMES = 4, 25
HELD_OUT_VIDEO_FRAMES = 60
EVALUATION_SIDE = 512
"""Longer side in pixels of held-out videos, the working size that RVM's authors advise."""


class VideoMattingDataModule(pl.LightningDataModule):
    """Calibration sequences, cached on disk, and evaluation clips, read in chunks.

    The calibration set is drawn by seed and then fixed. The float network's outputs and the optical
    flow are computed once and stored with it; both come from :meth:`attach`, which the
    LightningModules call. With several processes, each rank builds and reads its share of the
    sequences, and evaluates whole clips.

    Args:
        root: Folder that the paths below are relative to; the working directory if not given.
        source: Source of the calibration set; several take turns. `builtin` moves a portrait over
            photographs and needs no files, `videomatte` composes `foregrounds` with `backgrounds`,
            `evaluation` uses `composites`, `video` uses `videos`, and `cutout` composes people, cut
            out of `videos` by the float network, with `backgrounds`. `auto` uses all layouts that
            :func:`~ptq4vm.data.discovery.discover` finds in `root`; without an evaluation tree it
            keeps every fifth video out of calibration and scores those.
        foregrounds: Folder with `train/{fgr,pha}/<clip>/<frame>`, VideoMatte240K's layout; by
            default `videomatte240k_layout`.
        backgrounds: Folder with `train/<clip>/<frame>`; a clip of one frame is a still. By default
            `backgrounds`.
        photographs: Add photographs shipped with scikit-image to the backgrounds.
        composites: Folder with `<set>/<clip>/{com,pha,fgr}/<frame>`, or with one folder of that
            layout.
        videos: Folder of video files or folders of frames, without alpha; by default `user_clips`.
        held_out: Patterns of clips in `foregrounds`, `backgrounds` and `videos` to exclude from
            calibration. Held-out people on held-out backgrounds are also scored, by their distance
            to the float network.
        labels: Use true alpha and foreground in calibration where the source has them.
        evaluation: Folder to evaluate on, laid out like `composites`; the built-in test clips if
            not given.
        score_held_out: Evaluate on the held-out clips of `videos` instead, by their distance to the
            float network.
        num_sequences: Number of calibration sequences.
        seq_length: Frames per calibration sequence.
        height: Height in pixels of calibration sequences and built-in clips.
        width: Width in pixels of calibration sequences and built-in clips.
        enlarge: Factor by which calibration sequences are composed larger; half of them are then
            cropped to height and width (keeping the scale of people and textures), half are
            downscaled (keeping the whole scene).
        augment: Flip, shift, rotate, scale and recolour each calibration sequence at random.
        seed: Seed of the choice of sequences, their augmentation and their order.
        batch_size: Sequences per training batch.
        steps_per_epoch: Training batches per epoch, in shuffled passes through the set; one pass if
            not given.
        eval_chunk: Frames of an evaluation clip that are read at a time.
        eval_clips: Maximum number of evaluation clips, spread over the set; all if not given.
        eval_frames: Maximum number of frames per evaluation clip; all if not given.
        num_workers: Worker processes that build and read sequences ahead.
        cache_dir: Cache folder; $PTQ4VM_CACHE, $XDG_CACHE_HOME/ptq4vm or ~/.cache/ptq4vm if not
            given.

    Raises:
        PTQ4VMError: A number is out of range. Paths are checked in :meth:`setup`.
    """

    def __init__(
        self,
        root: Path | None = None,
        source: Source | Literal["auto"] | list[Source] = "builtin",
        foregrounds: str | None = None,
        backgrounds: str | None = None,
        photographs: bool = False,
        composites: str = "evaluation",
        videos: str | None = None,
        held_out: list[str] | None = None,
        labels: bool = True,
        evaluation: str | None = None,
        score_held_out: bool = False,
        num_sequences: int = 16,
        seq_length: int = 4,
        height: int = 288,
        width: int = 512,
        enlarge: float = 1.0,
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
        super().__init__()
        self.root, self.score_held_out = Path(root or "."), score_held_out
        self.sources: list[Source] = [source] if isinstance(source, str) else list(source)  # type: ignore[list-item]
        self.foregrounds = foregrounds or "videomatte240k_layout"
        self.backgrounds: str | None = backgrounds or "backgrounds"
        self.composites, self.videos, self.evaluation = (
            composites,
            videos or "user_clips",
            evaluation,
        )
        self.photographs, self.labels = photographs, labels
        self.held_out = list(held_out or [])
        self.num_sequences, self.seq_length, self.size = num_sequences, seq_length, (height, width)
        self.enlarge, self.augment, self.seed = enlarge, augment, seed
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.eval_chunk, self.eval_clips, self.eval_frames = eval_chunk, eval_clips, eval_frames
        self.num_workers = num_workers
        self.numbers_only = False
        """True if training batches are sequence indices, for phases that hold the sequences."""
        self.progress: Progress | None = None
        """Default progress callback of long operations; an argument takes precedence."""
        self.reached = (0, 0)
        """Epoch, and number of its batches already drawn, from which a fit resumes."""
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else cache_folder()
        self._calibration_sources: list[ClipSource] = []
        self._evaluation_source: ClipSource | None = None
        self._references: ReferencedChunks | None = None
        self._held_out: HeldOutClips | None = None
        self._calibration_set: CalibrationSet | None = None
        self._scenes: tuple[CutoutSource, list[SequencePlace], int] | None = None
        self._content: dict[str, Any] = {}
        self._named = (foregrounds, backgrounds, videos)
        known = get_args(Source)
        if self.sources != [AUTO] and not (self.sources and set(self.sources) <= set(known)):
            raise PTQ4VMError(
                f"Expected source to be {AUTO} or of {', '.join(known)}, got {source!r}."
            )
        at_least = {
            "num_sequences": 1,
            "seq_length": 1,
            "batch_size": 1,
            "eval_chunk": 1,
            "num_workers": 0,
            "seed": 0,
            "steps_per_epoch": 1,
            "eval_clips": 1,
            "eval_frames": 1,
            "enlarge": 1,
        }
        numbers: dict[str, Any] = {
            name: (getattr(self, name), low) for name, low in at_least.items()
        }
        for name, (value, low) in {**numbers, "height": (height, 16), "width": (width, 16)}.items():
            if value is not None and value < low:
                raise PTQ4VMError(
                    f"Expected {name} of at least {low}, got {value}. Change it in the data "
                    "settings."
                )

    def _discover(self) -> None:
        foregrounds, backgrounds, videos = self._named
        found = discover(self.root, videos)
        self.foregrounds = foregrounds or found.foregrounds or self.foregrounds
        self.backgrounds = backgrounds or found.backgrounds
        self.photographs = self.photographs or self.backgrounds is None
        self.videos = found.videos or self.videos
        composed: list[Source] = ["videomatte"] if foregrounds or found.foregrounds else []
        self.sources = composed + (["cutout", "video"] if found.videos else [])
        self.evaluation = self.evaluation or found.evaluation
        if self.evaluation is None and found.videos:
            self.score_held_out = True
            names = [Path(name).stem for name in VideoSource(self.root / self.videos).names]
            self.held_out = self.held_out or [glob.escape(name) for name in held_out_clips(names)]
            self.eval_frames = self.eval_frames or HELD_OUT_VIDEO_FRAMES

    def setup(self, stage: str | None = None) -> None:
        """Check files for `stage` (all for None) and draw calibration sequences; idempotent.

        Cut detection reads each clip of `videos` completely, once; of other sources it reads only
        the drawn frames and a few before them.

        Raises:
            PTQ4VMError: Files are missing or don't match, or no clip is as long as `seq_length`.
        """
        if self.sources == [AUTO]:
            self._discover()
        if self._evaluation_source is None:
            self._evaluation_source = self._make_evaluation_source()
        if stage in (None, "fit") and not self._calibration_sources:
            sources = [self._make_calibration_source(name) for name in self.sources]
            self._sequences = draw_from_all(
                sources, self.num_sequences, self.seq_length, self.seed, self.progress
            )
            self._calibration_sources = sources

    def attach(
        self, teacher: Teacher, flow: FlowEstimator | None = None, progress: Progress | None = None
    ) -> None:
        """Build the missing part of the calibration set and enable clips that need the teacher.

        Sequences are composed, passed through the teacher and written one at a time, so memory use
        is independent of their number. Files of an interrupted run are kept. With several
        processes, each rank builds its share in a shared cache; an error on one rank ends all.

        Args:
            teacher: Float network.
            flow: Flow estimator; None for evaluation only, without a calibration set.
            progress: Called after each sequence; :attr:`progress` if not given.

        Raises:
            PTQ4VMError: Files can't be read or written.
        """
        with self._telling(progress):
            distributed.first_alone(
                lambda: self._attach(teacher, "test" if flow is None else "fit")
            )
            if flow is not None:
                self._calibration_set = distributed.together(lambda: self._build(teacher, flow))

    @contextmanager
    def _telling(self, progress: Progress | None) -> Iterator[None]:
        before, self.progress = self.progress, progress or self.progress
        try:
            yield
        finally:
            self.progress = before

    def _attach(self, teacher: Teacher, stage: str) -> None:
        self.setup(stage)
        for source in (*self._calibration_sources, self._evaluation_source):
            if isinstance(source, BuiltinSource):
                source.use(lambda src: cached_cutout(teacher, src, self.cache_dir, FORMAT_VERSION))
            elif isinstance(source, CutoutSource):
                source.use(teacher)
        for source in self._calibration_sources:
            if isinstance(source, BuiltinSource):
                source.portrait()  # Fill the cache on the first rank, before others read it.

    def _build(self, teacher: Teacher, flow: FlowEstimator) -> CalibrationSet:
        if self.num_sequences < distributed.count():
            raise PTQ4VMError(
                f"Expected a calibration sequence for each of {distributed.count()} processes, got "
                "num_sequences = "
                f"{self.num_sequences}. Raise it, or lower devices."
            )
        builder = CalibrationBuilder(
            sequences=self._sequences,
            length=self.seq_length,
            augmentation=ClipAugmentation() if self.augment else None,
            labels=self.labels,
            seed=self.seed,
            size=self.size if self.enlarge > 1 else None,
            num_workers=self.num_workers,
        )
        return builder.build(self._set_folder(teacher), teacher, flow, self.progress)

    def add_references(
        self, teacher: Teacher, flow: FlowEstimator, progress: Progress | None = None
    ) -> None:
        """Add the float network's mattes to evaluation clips, and held-out people if configured.

        The mattes are computed once and cached. Call :meth:`attach` first.

        Raises:
            PTQ4VMError: Files can't be read or written, or ``held_out`` matches no videos or no
                backgrounds.
        """
        with self._telling(progress):
            self._add_references(teacher, flow, self.progress)

    def _add_references(
        self, teacher: Teacher, flow: FlowEstimator, progress: Progress | None
    ) -> None:
        chunks = distributed.first_alone(lambda: self._readable(self._chunks()))
        content = self.content()
        settings = {"teacher": teacher.key, "clips": content["evaluation"], "chunks": chunks.chunks}
        folder = self.cache_dir / "references" / short_hash(settings | {"format": FORMAT_VERSION})
        self._references = distributed.together(
            lambda: ReferencedChunks(chunks, folder).build(teacher, progress)
        )
        if not self.held_out or self.score_held_out:
            return
        scenes, places, length = self._held_out_scenes()
        scenes.use(teacher)
        held_out = {"teacher": teacher.key, "clips": content["held_out"], "size": scenes.size}
        folder = self.cache_dir / "held_out" / short_hash(held_out | {"format": FORMAT_VERSION})
        builder = CalibrationBuilder(
            places, length, None, labels=False, seed=0, num_workers=self.num_workers
        )
        sequences = distributed.together(
            lambda: builder.build(folder, teacher, flow, progress, "held-out people")
        )
        self._held_out = HeldOutClips(sequences, [scenes.names[place.clip] for place in places])

    def _held_out_scenes(self) -> tuple[CutoutSource, list[SequencePlace], int]:
        """Return held-out people on held-out backgrounds, the drawn sequences and their length."""
        if self._scenes is None:
            # Match the evaluation resolution: difficulty depends on a person's share of the frame.
            source, (height, width) = self._chunks().source, self.size
            if not isinstance(source, BuiltinSource):
                height, width = source.read(0, 0, 1).src.shape[-2:]
            stages = Backgrounds(self.root / (self.backgrounds or "backgrounds"), self.held_out)
            people = VideoSource(
                self.root / self.videos, (height, width), self.held_out, cache=self.cache_dir
            )
            self._scenes = draw_held_out(
                CutoutSource(people, stages, (height, width)), self.progress
            )
        return self._scenes

    def content(self) -> dict[str, Any]:
        """Return fingerprints of the frames in use, by purpose; independent of file location.

        ``calibration`` has one per source, after :meth:`setup` for a fit; ``held_out`` is present
        if there are held-out people. ``format`` is the version of the conversion from files to
        frames.

        Raises:
            PTQ4VMError: A file can't be read, or ``held_out`` matches no videos or no backgrounds.
        """
        found, chunks = self._content, self._chunks()
        if "evaluation" not in found:
            found["evaluation"] = chunks.source.fingerprint(chunks.clips())
        if self.held_out and not self.score_held_out and "held_out" not in found:
            found["held_out"] = fingerprint_sequences(*self._held_out_scenes())
        if self._calibration_sources:
            self._calibration_content()
        return {**found, "format": FORMAT_VERSION}

    def _calibration_content(self) -> list[str]:
        if "calibration" not in self._content:
            self.setup("fit")
            drawn, sources = (self._sequences, self.seq_length), self._calibration_sources
            self._content["calibration"] = [fingerprint_sequences(one, *drawn) for one in sources]
        return self._content["calibration"]

    def contract(self) -> dict[str, Any]:
        """Return all data settings and fingerprints that affect a fit's result, as plain values."""
        batches = {"batch_size": self.batch_size, "steps_per_epoch": self.steps_per_epoch}
        return {**self._set_settings(), **batches}

    def _set_settings(self) -> dict[str, Any]:
        """Return the settings that determine the calibration set, except the float network."""
        return {
            "format": FORMAT_VERSION,
            "source": self.sources,
            "content": self._calibration_content(),
            "labels": self.labels,
            "num_sequences": self.num_sequences,
            "seq_length": self.seq_length,
            "size": self.size,
            "enlarge": self.enlarge,
            "augment": self.augment,
            "seed": self.seed,
        }

    def _set_folder(self, teacher: Teacher) -> Path:
        # Clips of these sources depend on the network that produced the cut-out alpha.
        cutout = teacher.key if {"builtin", "cutout"} & set(self.sources) else None
        settings = {**self._set_settings(), "cutout": cutout}
        return self.cache_dir / "calibration" / short_hash(settings)

    def _make_calibration_source(self, name: Source) -> ClipSource:
        size = (round(self.size[0] * self.enlarge), round(self.size[1] * self.enlarge))
        if name == "videomatte":
            foregrounds = self.root / self.foregrounds
            return VideoMatteSource(
                foregrounds, self._make_backgrounds(), size, self.seed, self.held_out
            )
        if name == "evaluation":
            return EvaluationSource(self.root / self.composites, size, self.labels)
        if name == "builtin":
            frames = max(2 * self.seq_length, 32)
            return BuiltinSource("train", size, self.num_sequences, frames, self.seed)
        videos = VideoSource(
            self.root / self.videos, size, held_out=self.held_out, cache=self.cache_dir
        )
        if name == "video":
            return videos
        return CutoutSource(videos, self._make_backgrounds(), size, self.seed)

    def _make_backgrounds(self) -> Backgrounds:
        photographs = [bundled(name) for name in PICTURES["train"]] if self.photographs else []
        return Backgrounds(
            None if self.backgrounds is None else self.root / self.backgrounds,
            held_out=self.held_out,
            photographs=photographs,
        )

    def _make_evaluation_source(self) -> ClipSource:
        if self.score_held_out:
            folder = self.root / self.videos
            size = VideoSource(folder, names=self.held_out).read(0, 0, 1).src.shape[-2:]
            shrink = min(1.0, EVALUATION_SIDE / max(size))
            height, width = (max(16, 16 * round(side * shrink / 16)) for side in size)
            return VideoSource(folder, (height, width), self.held_out, cache=self.cache_dir)
        if self.evaluation is not None:
            return EvaluationSource(self.root / self.evaluation)
        # Independent of the seed, so that results of runs with different seeds are comparable.
        return BuiltinSource("test", self.size, BUILTIN_TEST_CLIPS, BUILTIN_TEST_FRAMES)

    @property
    def calibration_set(self) -> CalibrationSet:
        """Lazily read calibration sequences: a map-style dataset of unbatched CalibrationClip.

        Raises:
            PTQ4VMError: :meth:`attach` hasn't been called with a teacher and a flow estimator.
        """
        if self._calibration_set is None:
            raise PTQ4VMError(
                "Expected attach(teacher, flow) before the calibration set is used, got no such "
                "call."
            )
        return self._calibration_set

    def train_dataloader(self) -> DataLoader[CalibrationClip] | DataLoader[Tensor]:
        """Return a loader of CalibrationClip batches, (B, T, C, H, W), shuffled by seed and epoch.

        If :attr:`numbers_only`, batches are sequence indices, (B,). With several processes,
        ``batch_size`` is per rank; all ranks yield the same number of batches, of their own shares.
        """
        count, steps = len(self.calibration_set), self.steps_per_epoch
        longest = math.ceil(count / distributed.count())
        passes = longest if steps is None else steps * self.batch_size
        sampler = ShuffledPasses(distributed.share(range(count)), passes, self.seed)
        sampler.go_on(*self.reached, self.batch_size)
        if self.numbers_only:
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
        chunks: EvaluationChunks | ReferencedChunks = self._references or self._chunks()
        return self._readable(chunks)

    def _readable(self, chunks: Chunks) -> Chunks:
        """Cut out the built-in portrait in this process rather than in a DataLoader worker."""
        if isinstance(chunks.source, BuiltinSource):
            chunks.source.portrait()
        return chunks

    def _chunks(self) -> EvaluationChunks:
        source = self._evaluation_source or self._make_evaluation_source()
        return EvaluationChunks(source, self.eval_chunk, self.eval_clips, self.eval_frames)

    def _loader(
        self, clips: EvaluationChunks | ReferencedChunks | HeldOutClips
    ) -> DataLoader[MattingClip]:
        """Return a loader of this rank's share of whole clips."""
        share = [index for clip in distributed.share(clips.by_clip()) for index in clip]
        own: Dataset[MattingClip] = Subset(clips, share) if share else NoFrames()
        # Any other sampler is replaced by Lightning, which would split clips across ranks.
        sampler: DistributedSampler[int] = DistributedSampler(
            own, num_replicas=1, rank=0, shuffle=False
        )
        return DataLoader(
            own, sampler=sampler, num_workers=self.num_workers, collate_fn=collate_chunk
        )

    def held_out_dataloader(self) -> DataLoader[MattingClip] | None:
        """Return a loader of held-out people, (1, T, C, H, W), after :meth:`add_references`.

        None if there are none.
        """
        return None if self._held_out is None else self._loader(self._held_out)

    @property
    def held_out_frames(self) -> int:
        """Total number of frames of all held-out clips."""
        return 0 if self._held_out is None else self._held_out.num_frames

    def val_dataloader(self) -> DataLoader[MattingClip]:
        """Return a loader of evaluation chunks in order, (1, T, C, H, W), clip by clip."""
        return self._loader(self.evaluation_set)

    test_dataloader = predict_dataloader = val_dataloader
