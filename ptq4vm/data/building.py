"""Sources in use, drawn sequences and cached outputs of the float network; each is made once."""

from pathlib import Path
from typing import Any, TypeVar

from ptq4vm import distributed
from ptq4vm.data.assembly import (
    DataSettings,
    draw_held_out_scenes,
    make_calibration_source,
    make_evaluation_source,
)
from ptq4vm.data.builtin import BuiltinSource, cached_cutout
from ptq4vm.data.calibration import (
    CalibrationBuilder,
    CalibrationSet,
    Progress,
    SequencePlace,
    draw_from_all,
)
from ptq4vm.data.contract import (
    FORMAT_VERSION,
    Content,
    calibration_folder,
    held_out_folder,
    references_folder,
)
from ptq4vm.data.cutouts import CutoutSource
from ptq4vm.data.loading import EvaluationChunks
from ptq4vm.data.references import HeldOutClips, ReferencedChunks
from ptq4vm.data.sources import ClipSource
from ptq4vm.data.transforms import ClipAugmentation
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import FlowEstimator, Teacher

Chunks = TypeVar("Chunks", bound=EvaluationChunks | ReferencedChunks)


class PreparedClips:
    """Sources, sequences and cached outputs of a datamodule, kept between its calls."""

    def __init__(self) -> None:
        self.calibration_sources: list[ClipSource] = []
        self.sequences: list[SequencePlace] = []
        self.calibration_set: CalibrationSet | None = None
        self.references: ReferencedChunks | None = None
        self.held_out: HeldOutClips | None = None
        self._evaluation_source: ClipSource | None = None
        self._scenes: tuple[CutoutSource, list[SequencePlace], int] | None = None
        self._content = Content()

    def set_up_evaluation(self, settings: DataSettings) -> None:
        """Make the source of evaluation clips."""
        if self._evaluation_source is None:
            self._evaluation_source = make_evaluation_source(settings)

    def draw(self, settings: DataSettings, progress: Progress | None = None) -> None:
        """Make the calibration sources and draw the sequences."""
        if not self.calibration_sources:
            sources = [make_calibration_source(settings, name) for name in settings.sources]
            self.sequences = draw_from_all(
                sources, settings.num_sequences, settings.seq_length, settings.seed, progress
            )
            self.calibration_sources = sources

    def use(self, teacher: Teacher, cache_dir: Path) -> None:
        """Let the sources that cut out people do so by the float network."""
        for source in (*self.calibration_sources, self._evaluation_source):
            if isinstance(source, BuiltinSource):
                source.use(lambda src: cached_cutout(teacher, src, cache_dir, FORMAT_VERSION))
            elif isinstance(source, CutoutSource):
                source.use(teacher)
        for source in self.calibration_sources:
            if isinstance(source, BuiltinSource):
                source.portrait()  # Fill the cache on the first rank, before others read it.

    def build(
        self,
        settings: DataSettings,
        teacher: Teacher,
        flow: FlowEstimator,
        progress: Progress | None = None,
    ) -> None:
        """Build this rank's share of the missing calibration sequences.

        Raises:
            PTQ4VMError: There are fewer sequences than processes, or files can't be read or
                written.
        """
        if settings.num_sequences < distributed.count():
            raise PTQ4VMError(
                f"Expected a calibration sequence for each of {distributed.count()} processes, got "
                "num_sequences = "
                f"{settings.num_sequences}. Raise it, or lower devices."
            )
        builder = CalibrationBuilder(
            sequences=self.sequences,
            length=settings.seq_length,
            augmentation=ClipAugmentation() if settings.augment else None,
            labels=settings.labels,
            seed=settings.seed,
            size=settings.size if settings.enlarge > 1 else None,
            num_workers=settings.num_workers,
        )
        folder = calibration_folder(settings, self.calibration_content(settings), teacher)
        self.calibration_set = builder.build(folder, teacher, flow, progress)

    def add_references(
        self,
        settings: DataSettings,
        teacher: Teacher,
        flow: FlowEstimator,
        progress: Progress | None = None,
    ) -> None:
        """Build the float network's mattes of evaluation clips, and held-out people if configured.

        Raises:
            PTQ4VMError: Files can't be read or written, or ``held_out`` matches no videos or no
                backgrounds.
        """
        chunks = distributed.first_alone(lambda: readable(self.chunks(settings)))
        content, cache = self.content(settings, progress), settings.cache_dir
        folder = references_folder(cache, teacher, content["evaluation"], chunks)
        self.references = distributed.together(
            lambda: ReferencedChunks(chunks, folder).build(teacher, progress)
        )
        if not settings.has_people:
            return
        scenes, places, length = self._held_out_scenes(settings, progress)
        scenes.use(teacher)
        folder_of_people = held_out_folder(cache, teacher, content["held_out"], scenes.size)
        builder = CalibrationBuilder(
            places, length, None, labels=False, seed=0, num_workers=settings.num_workers
        )
        sequences = distributed.together(
            lambda: builder.build(folder_of_people, teacher, flow, progress, "held-out people")
        )
        self.held_out = HeldOutClips(sequences, [scenes.names[place.clip] for place in places])

    def _held_out_scenes(
        self, settings: DataSettings, progress: Progress | None
    ) -> tuple[CutoutSource, list[SequencePlace], int]:
        if self._scenes is None:
            source = self.chunks(settings).source
            self._scenes = draw_held_out_scenes(settings, source, progress)
        return self._scenes

    def chunks(self, settings: DataSettings) -> EvaluationChunks:
        """Return the chunks of evaluation clips."""
        source = self._evaluation_source or make_evaluation_source(settings)
        return EvaluationChunks(
            source, settings.eval_chunk, settings.eval_clips, settings.eval_frames
        )

    def evaluation_set(self, settings: DataSettings) -> EvaluationChunks | ReferencedChunks:
        """Return the chunks of evaluation clips, with the float network's mattes if built."""
        chunks: EvaluationChunks | ReferencedChunks = self.references or self.chunks(settings)
        return readable(chunks)

    def content(self, settings: DataSettings, progress: Progress | None = None) -> dict[str, Any]:
        """Return fingerprints of the frames in use, by purpose, with the format version."""
        self._content.evaluation(self.chunks(settings))
        if settings.has_people:
            self._content.held_out(*self._held_out_scenes(settings, progress))
        if self.calibration_sources:
            self.calibration_content(settings)
        return self._content.known()

    def calibration_content(self, settings: DataSettings) -> list[str]:
        """Return the fingerprint of each calibration source, after :meth:`draw`."""
        return self._content.calibration(
            self.calibration_sources, self.sequences, settings.seq_length
        )


def readable(chunks: Chunks) -> Chunks:
    """Cut out the built-in portrait in this process rather than in a DataLoader worker."""
    if isinstance(chunks.source, BuiltinSource):
        chunks.source.portrait()
    return chunks
