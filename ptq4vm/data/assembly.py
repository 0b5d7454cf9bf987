"""Data settings as plain values: their checks, and the clip sources made from them."""

import glob
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ptq4vm.data.backgrounds import Backgrounds
from ptq4vm.data.builtin import PICTURES, BuiltinSource, bundled
from ptq4vm.data.calibration import Progress, SequencePlace
from ptq4vm.data.cutouts import CutoutSource
from ptq4vm.data.datasets import EvaluationSource, VideoMatteSource
from ptq4vm.data.discovery import discover, held_out_clips
from ptq4vm.data.references import draw_held_out
from ptq4vm.data.sources import ClipSource
from ptq4vm.data.videos import VideoSource, list_clips
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import WORKING_SIDE

Source = Literal["builtin", "videomatte", "evaluation", "video", "cutout"]
AUTO = "auto"
BUILTIN_TEST_CLIPS, BUILTIN_TEST_FRAMES = 4, 25
HELD_OUT_VIDEO_FRAMES = 60
LEAST = {
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
    "height": 16,
    "width": 16,
}
"""Lowest allowed value of each number."""


@dataclass(frozen=True)
class DataSettings:
    """Settings that decide the clips; see ``VideoMattingDataModule`` for their meaning."""

    root: Path
    sources: list[Source]
    foregrounds: str
    backgrounds: str | None
    photographs: bool
    composites: str
    videos: str
    held_out: list[str]
    labels: bool
    evaluation: str | None
    score_held_out: bool
    num_sequences: int
    seq_length: int
    size: tuple[int, int]
    """Height and width in pixels."""
    enlarge: float
    augment: bool
    seed: int
    eval_chunk: int
    eval_clips: int | None
    eval_frames: int | None
    num_workers: int
    cache_dir: Path

    @property
    def has_people(self) -> bool:
        """True if held-out people on held-out backgrounds are scored."""
        return bool(self.held_out) and not self.score_held_out


def list_sources(source: str | list[Source]) -> list[Source]:
    """Return one or several source names as a list.

    Raises:
        PTQ4VMError: A name is unknown, or there is none.
    """
    sources: list[Source] = [source] if isinstance(source, str) else list(source)  # type: ignore[list-item]
    known = get_args(Source)
    if sources != [AUTO] and not (sources and set(sources) <= set(known)):
        raise PTQ4VMError(f"Expected source to be {AUTO} or of {', '.join(known)}, got {source!r}.")
    return sources


def check_numbers(values: Mapping[str, Any]) -> None:
    """Check the numbers of ``LEAST`` among the settings; None is allowed.

    Raises:
        PTQ4VMError: A number is out of range.
    """
    for name, low in LEAST.items():
        value = values[name]
        if value is not None and value < low:
            raise PTQ4VMError(
                f"Expected {name} of at least {low}, got {value}. Change it in the data settings."
            )


def discover_settings(
    settings: DataSettings, foregrounds: str | None, backgrounds: str | None, videos: str | None
) -> DataSettings:
    """Return the settings with sources and folders as found in the root.

    Args:
        settings: Settings whose source is ``auto``.
        foregrounds: Folder given by the user; None uses what is found. Same for the others.
        backgrounds: Folder given by the user.
        videos: Folder given by the user.

    Raises:
        PTQ4VMError: The root has no known layout, or several folders of one layout.
    """
    found = discover(settings.root, videos)
    composed: list[Source] = ["videomatte"] if foregrounds or found.foregrounds else []
    cut_out: list[Source] = ["cutout", "video"] if found.videos else []
    backgrounds = backgrounds or found.backgrounds
    settings = replace(
        settings,
        foregrounds=foregrounds or found.foregrounds or settings.foregrounds,
        backgrounds=backgrounds,
        photographs=settings.photographs or backgrounds is None,
        videos=found.videos or settings.videos,
        sources=composed + cut_out,
        evaluation=settings.evaluation or found.evaluation,
    )
    if settings.evaluation is not None or not found.videos:
        return settings
    names = [path.stem for path in list_clips(settings.root / settings.videos)]
    return replace(
        settings,
        score_held_out=True,
        held_out=settings.held_out or [glob.escape(name) for name in held_out_clips(names)],
        eval_frames=settings.eval_frames or HELD_OUT_VIDEO_FRAMES,
    )


def make_calibration_source(settings: DataSettings, name: Source) -> ClipSource:
    """Return a source of calibration clips, ``enlarge`` times larger than the sequences.

    Raises:
        PTQ4VMError: Files are missing or don't match.
    """
    root, held_out, seed = settings.root, settings.held_out, settings.seed
    height, width = settings.size
    size = (round(height * settings.enlarge), round(width * settings.enlarge))
    if name == "videomatte":
        foregrounds = root / settings.foregrounds
        return VideoMatteSource(foregrounds, _make_backgrounds(settings), size, seed, held_out)
    if name == "evaluation":
        return EvaluationSource(root / settings.composites, size, settings.labels)
    if name == "builtin":
        frames = max(2 * settings.seq_length, 32)
        return BuiltinSource("train", size, settings.num_sequences, frames, seed)
    videos = VideoSource(root / settings.videos, size, held_out=held_out, cache=settings.cache_dir)
    if name == "video":
        return videos
    return CutoutSource(videos, _make_backgrounds(settings), size, seed)


def _make_backgrounds(settings: DataSettings) -> Backgrounds:
    photographs = [bundled(name) for name in PICTURES["train"]] if settings.photographs else []
    return Backgrounds(
        None if settings.backgrounds is None else settings.root / settings.backgrounds,
        held_out=settings.held_out,
        photographs=photographs,
    )


def make_evaluation_source(settings: DataSettings) -> ClipSource:
    """Return the source of evaluation clips.

    Raises:
        PTQ4VMError: Files are missing or don't match.
    """
    if settings.score_held_out:
        folder = settings.root / settings.videos
        videos = VideoSource(folder, names=settings.held_out, cache=settings.cache_dir)
        size = videos.read(0, 0, 1).src.shape[-2:]
        shrink = min(1.0, WORKING_SIDE / max(size))
        height, width = (max(16, 16 * round(side * shrink / 16)) for side in size)
        videos.size = height, width
        return videos
    if settings.evaluation is not None:
        return EvaluationSource(settings.root / settings.evaluation)
    # Independent of the seed, so that results of runs with different seeds are comparable.
    return BuiltinSource("test", settings.size, BUILTIN_TEST_CLIPS, BUILTIN_TEST_FRAMES)


def draw_held_out_scenes(
    settings: DataSettings, evaluation: ClipSource, progress: Progress | None = None
) -> tuple[CutoutSource, list[SequencePlace], int]:
    """Return held-out people on held-out backgrounds, the drawn sequences and their length.

    Args:
        settings: Data settings.
        evaluation: Source of evaluation clips, whose resolution the scenes have.
        progress: Called after each step.

    Raises:
        PTQ4VMError: ``held_out`` matches no videos or no backgrounds.
    """
    # Match the evaluation resolution: difficulty depends on a person's share of the frame.
    height, width = settings.size
    if not isinstance(evaluation, BuiltinSource):
        height, width = evaluation.read(0, 0, 1).src.shape[-2:]
    root, held_out = settings.root, settings.held_out
    stages = Backgrounds(root / (settings.backgrounds or "backgrounds"), held_out)
    people = VideoSource(
        root / settings.videos, (height, width), held_out, cache=settings.cache_dir
    )
    return draw_held_out(CutoutSource(people, stages, (height, width)), progress)
