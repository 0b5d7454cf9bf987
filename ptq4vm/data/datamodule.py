"""The LightningDataModule: calibration sequences for learning, chunks of clips for measuring."""

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
"""Part of every cache key: raise it when what the cache holds, or how it is made, changes."""
Chunks = TypeVar("Chunks", bound=EvaluationChunks | ReferencedChunks)
Source = Literal["builtin", "videomatte", "evaluation", "video", "cutout"]
BUILTIN_TEST_CLIPS, BUILTIN_TEST_FRAMES = 4, 25


class VideoMattingDataModule(pl.LightningDataModule):
    """Calibration sequences, made once and kept on disk, and evaluation clips, read chunk by chunk.

    The set is chosen by seed, then fixed: the float network's outputs and the optical flow for it are computed once
    and kept beside it. Both come from :meth:`attach`, which the LightningModules call. With several processes each has
    its share of the sequences, and whole clips to evaluate.

    Args:
        root: Folder that the paths below are relative to; the working directory if not given.
        source: What to calibrate on. `builtin` needs no files: a portrait moved before photographs. `videomatte`
            composes `foregrounds` with `backgrounds`, `evaluation` takes `composites`, `video` takes `videos`, `cutout`
            composes people, cut out of `videos` by the float network, with `backgrounds`. Several take turns.
        foregrounds: Folder with `train/{fgr,pha}/<clip>/<frame>`, VideoMatte240K's layout.
        backgrounds: Folder with `train/<clip>/<frame>`; a clip of one frame is a still.
        photographs: Put people before photographs that scikit-image ships, too.
        composites: Folder with `<set>/<clip>/{com,pha,fgr}/<frame>`, or with one folder that holds those.
        videos: Folder with video files or folders of frames, of which no alpha is known.
        held_out: Patterns of clips in `foregrounds`, `backgrounds` and `videos` that calibration never sees. Held-out
            people before held-out backgrounds are scored too, by their distance to the float network.
        labels: Use true alpha and foreground in calibration where the source has them.
        evaluation: Folder to evaluate on, laid out like `composites`; the built-in test clips if not given.
        num_sequences: Number of calibration sequences.
        seq_length: Frames of a calibration sequence.
        height: Height in pixels of calibration sequences and built-in clips.
        width: Width in pixels of calibration sequences and built-in clips.
        enlarge: Compose calibration sequences this many times as large; half of them are cut down to height and width,
            which keeps the scale of people and textures, half are shrunk, which keeps the whole of a scene.
        augment: Flip, shift, turn, scale and recolour calibration sequences, each sequence in its own way.
        seed: Decides which sequences are taken, how they are augmented and in which order they come.
        batch_size: Sequences in a training batch.
        steps_per_epoch: Training batches in an epoch, in shuffled passes through the set; one pass if not given.
        eval_chunk: Frames of an evaluation clip that are read at a time.
        eval_clips: Evaluate on at most so many clips, spread over the set; all if not given.
        eval_frames: Evaluate on at most so many frames of each clip; all if not given.
        num_workers: Processes that make and read sequences ahead.
        cache_dir: Folder for what is computed once; $PTQ4VM_CACHE, $XDG_CACHE_HOME/ptq4vm or
            ~/.cache/ptq4vm if not given.

    Raises:
        PTQ4VMError: a number is out of range; paths are looked at in :meth:`setup`.
    """

    def __init__(
        self,
        root: Path | None = None,
        source: Source | list[Source] = "builtin",
        foregrounds: str = "videomatte240k_layout",
        backgrounds: str = "backgrounds",
        photographs: bool = False,
        composites: str = "evaluation",
        videos: str = "user_clips",
        held_out: list[str] | None = None,
        labels: bool = True,
        evaluation: str | None = None,
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
        self.root, self.sources = (
            Path(root or "."),
            [source] if isinstance(source, str) else list(source),
        )
        self.foregrounds, self.backgrounds, self.photographs = foregrounds, backgrounds, photographs
        self.composites, self.videos, self.evaluation = composites, videos, evaluation
        self.held_out, self.labels = list(held_out or []), labels
        self.num_sequences, self.seq_length, self.size = num_sequences, seq_length, (height, width)
        self.enlarge, self.augment, self.seed = enlarge, augment, seed
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.eval_chunk, self.eval_clips, self.eval_frames = eval_chunk, eval_clips, eval_frames
        self.num_workers = num_workers
        self.numbers_only = False
        """For phases that keep the sequences themselves: training batches then only name them."""
        self.progress: Progress | None = None
        """Told of everything that takes long, unless a call names another."""
        self.reached = (0, 0)
        """Where a fit goes on: its epoch, and how many of its batches were drawn before."""
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else cache_folder()
        self._calibration_sources: list[ClipSource] = []
        self._evaluation_source: ClipSource | None = None
        self._references: ReferencedChunks | None = None
        self._held_out: HeldOutClips | None = None
        self._calibration_set: CalibrationSet | None = None
        self._scenes: tuple[CutoutSource, list[SequencePlace], int] | None = None
        self._content: dict[str, Any] = {}
        if not self.sources or not set(self.sources) <= set(get_args(Source)):
            raise PTQ4VMError(
                f"Expected source to be of {', '.join(get_args(Source))}, got {source!r}."
            )
        at_least = {"num_sequences": 1, "seq_length": 1, "batch_size": 1, "eval_chunk": 1, "num_workers": 0, "seed": 0,
                    "steps_per_epoch": 1, "eval_clips": 1, "eval_frames": 1, "enlarge": 1}  # fmt: skip
        numbers: dict[str, Any] = {
            name: (getattr(self, name), low) for name, low in at_least.items()
        }
        for name, (value, low) in {**numbers, "height": (height, 16), "width": (width, 16)}.items():
            if value is not None and value < low:
                raise PTQ4VMError(
                    f"Expected {name} of at least {low}, got {value}. Change it in the data settings."
                )

    def setup(self, stage: str | None = None) -> None:
        """Look at the files that `stage` needs (all for None), and draw the calibration sequences; idempotent.

        Of those it reads what tells that no cut is within: whole videos once, else the frames that were drawn.

        Raises:
            PTQ4VMError: files are missing, don't match, or no clip is as long as `seq_length`.
        """
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
        """Make the calibration set, or what is missing of it; clips that need the teacher can be read from then on.

        A sequence at a time is made, passed through the teacher and written, so memory doesn't depend on their
        number. What an interrupted run has written is kept. With several processes each makes its share, in a cache
        that all of them reach; a mistake in one ends all.

        Args:
            teacher: the float network.
            flow: None where only evaluation follows: no calibration set is made then.
            progress: told of each finished sequence; :attr:`progress` if not given.

        Raises:
            PTQ4VMError: files can't be read or written.
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
                source.portrait()  # By the first process, before others look for it in the cache.

    def _build(self, teacher: Teacher, flow: FlowEstimator) -> CalibrationSet:
        if self.num_sequences < distributed.count():
            raise PTQ4VMError(
                f"Expected a calibration sequence for each of {distributed.count()} processes, got num_sequences = "
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
        """Have the evaluation clips scored against the float network too, and held-out people if there are any.

        Its mattes are computed once and kept; :meth:`attach` must have come before.

        Raises:
            PTQ4VMError: files can't be read or written; ``held_out`` names no videos or no backgrounds.
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
        if not self.held_out:
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
        """Held-out people before such backgrounds, what is taken of them, and frames of each."""
        if self._scenes is None:
            # As large as what is evaluated: a person's share of a frame decides how hard it is.
            source, (height, width) = self._chunks().source, self.size
            if not isinstance(source, BuiltinSource):
                height, width = source.read(0, 0, 1).src.shape[-2:]
            stages = Backgrounds(self.root / self.backgrounds, self.held_out)
            people = VideoSource(
                self.root / self.videos, (height, width), self.held_out, cache=self.cache_dir
            )
            self._scenes = draw_held_out(
                CutoutSource(people, stages, (height, width)), self.progress
            )
        return self._scenes

    def content(self) -> dict[str, Any]:
        """Fingerprints of the frames that are read, by their use; equal wherever the files lie.

        ``calibration`` has one for each source, after :meth:`setup` for a fit; ``held_out`` is
        there if such people are. ``format`` changes with how frames are made of files.

        Raises:
            PTQ4VMError: a file can't be read; ``held_out`` names no videos or no backgrounds.
        """
        found, chunks = self._content, self._chunks()
        if "evaluation" not in found:
            found["evaluation"] = chunks.source.fingerprint(chunks.clips())
        if self.held_out and "held_out" not in found:
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
        """All of the data that shapes what a fit learns, in plain values."""
        batches = {"batch_size": self.batch_size, "steps_per_epoch": self.steps_per_epoch}
        return {**self._set_settings(), **batches}

    def _set_settings(self) -> dict[str, Any]:
        """Settings that decide the calibration set, but for the float network."""
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
        # Whoever cut people out decided what the clips look like.
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
            self.root / self.backgrounds, held_out=self.held_out, photographs=photographs
        )

    def _make_evaluation_source(self) -> ClipSource:
        if self.evaluation is not None:
            return EvaluationSource(self.root / self.evaluation)
        # Not decided by the seed: figures of runs with different seeds are to be comparable.
        return BuiltinSource("test", self.size, BUILTIN_TEST_CLIPS, BUILTIN_TEST_FRAMES)

    @property
    def calibration_set(self) -> CalibrationSet:
        """The calibration sequences, read lazily; a map-style Dataset of unbatched CalibrationClip.

        Raises:
            PTQ4VMError: :meth:`attach` hasn't been called with a teacher and a flow estimator.
        """
        if self._calibration_set is None:
            raise PTQ4VMError(
                "Expected attach(teacher, flow) before the calibration set is used, got no such call."
            )
        return self._calibration_set

    def train_dataloader(self) -> DataLoader[CalibrationClip] | DataLoader[Tensor]:
        """Batches of CalibrationClip, (B, T, C, H, W), or of their numbers, (B,); shuffled by seed and epoch.

        With several processes ``batch_size`` is each one's; all make the same number of batches of their own shares.
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
        """Chunks of evaluation clips in order; a map-style Dataset of unbatched MattingClip."""
        chunks: EvaluationChunks | ReferencedChunks = self._references or self._chunks()
        return self._readable(chunks)

    def _readable(self, chunks: Chunks) -> Chunks:
        """With the built-in portrait cut out, by now at the latest: here, not in a loader process."""
        if isinstance(chunks.source, BuiltinSource):
            chunks.source.portrait()
        return chunks

    def _chunks(self) -> EvaluationChunks:
        source = self._evaluation_source or self._make_evaluation_source()
        return EvaluationChunks(source, self.eval_chunk, self.eval_clips, self.eval_frames)

    def _loader(
        self, clips: EvaluationChunks | ReferencedChunks | HeldOutClips
    ) -> DataLoader[MattingClip]:
        """Whole clips, each for one process alone."""
        share = [index for clip in distributed.share(clips.by_clip()) for index in clip]
        own: Dataset[MattingClip] = Subset(clips, share) if share else NoFrames()
        # Of this share alone; of this type so that Lightning makes no shares of it, which would cut clips apart.
        sampler: DistributedSampler[int] = DistributedSampler(
            own, num_replicas=1, rank=0, shuffle=False
        )
        return DataLoader(
            own, sampler=sampler, num_workers=self.num_workers, collate_fn=collate_chunk
        )

    def held_out_dataloader(self) -> DataLoader[MattingClip] | None:
        """Held-out people, (1, T, C, H, W) each, if :meth:`add_references` found some."""
        return None if self._held_out is None else self._loader(self._held_out)

    @property
    def held_out_frames(self) -> int:
        """Frames of all held-out clips together."""
        return 0 if self._held_out is None else self._held_out.num_frames

    def val_dataloader(self) -> DataLoader[MattingClip]:
        """Chunks of evaluation clips in order, (1, T, C, H, W), one clip after the other."""
        return self._loader(self.evaluation_set)

    test_dataloader = predict_dataloader = val_dataloader
