"""Sources of evaluation clips, and of held-out people on held-out backgrounds."""

from ptq4vm.data.background_clips import BackgroundClips
from ptq4vm.data.builtin import BuiltinSource
from ptq4vm.data.cutouts import CutoutSource
from ptq4vm.data.datasets import EvaluationSource
from ptq4vm.data.drawing import Progress, SequencePlace
from ptq4vm.data.references import draw_held_out
from ptq4vm.data.settings import DataSettings
from ptq4vm.data.sources import ClipSource
from ptq4vm.data.videos import VideoSource
from ptq4vm.types import WORKING_SIDE

BUILTIN_TEST_CLIPS, BUILTIN_TEST_FRAMES = 4, 25


def working_size(height: int, width: int) -> tuple[int, int]:
    """Return the size, in multiples of 16 pixels, with a longer side of at most 512 pixels."""
    shrink = min(1.0, WORKING_SIDE / max(height, width))
    return max(16, 16 * round(height * shrink / 16)), max(16, 16 * round(width * shrink / 16))


def open_evaluation(settings: DataSettings) -> ClipSource:
    """Return the source of evaluation clips.

    Raises:
        PTQ4VMError: Files are missing or don't match.
    """
    if settings.score_held_out:
        folder = settings.folder("videos")
        videos = VideoSource(folder, names=settings.held_out, cache=settings.cache_dir)
        videos.size = working_size(*videos.read(0, 0, 1).src.shape[-2:])
        return videos
    if settings.evaluation is not None:
        return EvaluationSource(settings.root / settings.evaluation, sparse=True)
    # Independent of the seed, so that results of runs with different seeds are comparable.
    return BuiltinSource("test", settings.size, BUILTIN_TEST_CLIPS, BUILTIN_TEST_FRAMES)


def draw_held_out_scenes(
    settings: DataSettings, evaluation: ClipSource, progress: Progress | None = None
) -> tuple[CutoutSource, list[SequencePlace], int]:
    """Return held-out people on held-out backgrounds, the drawn sequences and their length.

    Videos and backgrounds are those of the sources, one folder of each.

    Args:
        settings: Data settings.
        evaluation: Source of evaluation clips, whose resolution the scenes have.
        progress: Called after each step.

    Raises:
        PTQ4VMError: No source has videos or backgrounds, or ``held_out`` matches none of them.
    """
    # Match the evaluation resolution: difficulty depends on a person's share of the frame.
    height, width = settings.size
    if not isinstance(evaluation, BuiltinSource):
        height, width = evaluation.read(0, 0, 1).src.shape[-2:]
    stages = BackgroundClips(settings.folder("backgrounds"), settings.held_out)
    people = VideoSource(
        settings.folder("videos"), (height, width), settings.held_out, cache=settings.cache_dir
    )
    return draw_held_out(CutoutSource(people, stages, (height, width)), progress)
