"""Sources in use, drawn sequences and cached outputs of the float network; each is made once."""

from functools import cached_property
from typing import Any, TypeVar

from ptq4vm import distributed
from ptq4vm.data.builtin import BuiltinSource, cached_cutout
from ptq4vm.data.calibration import CalibrationSet, DrawnSequences
from ptq4vm.data.cutouts import CutoutSource
from ptq4vm.data.drawing import Progress, SequencePlace, draw_from_all, fingerprint_sequences
from ptq4vm.data.evaluation import draw_held_out_scenes, open_evaluation
from ptq4vm.data.loading import EvaluationChunks
from ptq4vm.data.references import HeldOutClips, ReferencedChunks
from ptq4vm.data.settings import DataSettings
from ptq4vm.data.sources import ClipSource
from ptq4vm.data.storage import FORMAT_VERSION, CheckedFiles, short_hash
from ptq4vm.data.transforms import ClipAugmentation
from ptq4vm.errors import PTQ4VMError
from ptq4vm.types import FlowEstimator, Teacher

Chunks = TypeVar("Chunks", bound=EvaluationChunks | ReferencedChunks)


class PreparedClips:
    """Clips of a datamodule and of its views: each source, sequence and cached file once.

    Args:
        given: Settings as given; :attr:`settings` are those with ``Auto`` resolved.
    """

    def __init__(self, given: DataSettings) -> None:
        self.given = given
        self.calibration_sources: list[ClipSource] = []
        self.sequences: list[SequencePlace] = []
        self.calibration_set: CalibrationSet | None = None
        self.references: ReferencedChunks | None = None
        self.held_out: HeldOutClips | None = None
        self._scenes: tuple[CutoutSource, list[SequencePlace], int] | None = None
        self._held_out_content: str | None = None
        self._files = CheckedFiles()

    @cached_property
    def settings(self) -> DataSettings:
        """Settings with the sources found in the root."""
        return self.given.resolved()

    @cached_property
    def evaluation_source(self) -> ClipSource:
        """Source of evaluation clips."""
        return open_evaluation(self.settings)

    def draw(self, progress: Progress | None = None) -> None:
        """Open the calibration sources and draw the sequences."""
        if self.calibration_sources:
            return
        settings = self.settings
        sources = [source.open(settings) for source in settings.sources]
        self.sequences = draw_from_all(
            sources, settings.num_sequences, settings.seq_length, settings.seed, progress
        )
        self.calibration_sources = sources

    def use(self, teacher: Teacher) -> None:
        """Let the sources that cut out people do so by the float network."""
        cache = self.settings.cache_dir
        for source in (*self.calibration_sources, self.evaluation_source):
            if isinstance(source, BuiltinSource):
                source.use(lambda src: cached_cutout(teacher, src, cache, FORMAT_VERSION))
            elif isinstance(source, CutoutSource):
                source.use(teacher)
        for source in self.calibration_sources:
            if isinstance(source, BuiltinSource):
                source.portrait()  # Fill the cache on the first rank, before others read it.

    def build(
        self, teacher: Teacher, flow: FlowEstimator, progress: Progress | None = None
    ) -> None:
        """Build this rank's share of the missing calibration sequences, after :meth:`draw`.

        Raises:
            PTQ4VMError: There are fewer sequences than processes, or files can't be read or
                written.
        """
        settings = self.settings
        if settings.num_sequences < distributed.count():
            raise PTQ4VMError(
                f"Expected a calibration sequence for each of {distributed.count()} processes, got "
                f"num_sequences = {settings.num_sequences}. Raise it, or lower devices."
            )
        sequences = DrawnSequences(
            self.sequences,
            settings.seq_length,
            self.calibration_contract(),
            ClipAugmentation() if settings.augment else None,
            settings.labels,
            settings.seed,
            settings.size if settings.enlarge > 1 else None,
            settings.settle,
        )
        cache = settings.cache_dir / "calibration"
        self.calibration_set = CalibrationSet.build(
            sequences, teacher, flow, cache, progress,
            files=self._files, num_workers=settings.num_workers,
        )  # fmt: skip

    def add_references(
        self, teacher: Teacher, flow: FlowEstimator, progress: Progress | None = None
    ) -> None:
        """Build the float network's mattes of evaluation clips, and held-out people if configured.

        Raises:
            PTQ4VMError: Files can't be read or written, or ``held_out`` matches no videos or no
                backgrounds.
        """
        chunks = distributed.first_alone(lambda: readable(self.chunks()))
        content, cache = self.content(progress), self.settings.cache_dir
        key = {"teacher": teacher.key, "clips": content["evaluation"], "chunks": chunks.chunks}
        folder = cache / "references" / short_hash(key | {"format": FORMAT_VERSION})
        self.references = distributed.together(
            lambda: ReferencedChunks(chunks, folder, self._files).build(teacher, progress)
        )
        if not self.settings.has_people:
            return
        scenes, places, length = self._held_out_scenes(progress)
        scenes.use(teacher)
        drawn = DrawnSequences(places, length, {"clips": content["held_out"], "size": scenes.size})
        sequences = distributed.together(
            lambda: CalibrationSet.build(
                drawn, teacher, flow, cache / "held_out", progress,
                files=self._files, num_workers=self.settings.num_workers, what="held-out people",
            )
        )  # fmt: skip
        self.held_out = HeldOutClips(sequences, [scenes.names[place.clip] for place in places])

    def _held_out_scenes(
        self, progress: Progress | None
    ) -> tuple[CutoutSource, list[SequencePlace], int]:
        if self._scenes is None:
            self._scenes = draw_held_out_scenes(self.settings, self.evaluation_source, progress)
        return self._scenes

    def chunks(self) -> EvaluationChunks:
        """Return the chunks of evaluation clips."""
        limits = (self.settings.eval_chunk, self.settings.eval_clips, self.settings.eval_frames)
        return EvaluationChunks(self.evaluation_source, *limits)

    def evaluation_set(self) -> EvaluationChunks | ReferencedChunks:
        """Return the chunks of evaluation clips, with the float network's mattes if built."""
        chunks: EvaluationChunks | ReferencedChunks = self.references or self.chunks()
        return readable(chunks)

    # ---- fingerprints of the frames in use -------------------------------------------------------

    @cached_property
    def _evaluation_content(self) -> str:
        chunks = self.chunks()
        return chunks.source.fingerprint(chunks.clips())

    @cached_property
    def _calibration_content(self) -> list[str]:
        length = self.settings.seq_length
        return [
            fingerprint_sequences(source, self.sequences, length)
            for source in self.calibration_sources
        ]

    def content(self, progress: Progress | None = None) -> dict[str, Any]:
        """Return fingerprints of the frames in use, by purpose, with the format version."""
        found: dict[str, Any] = {"evaluation": self._evaluation_content, "format": FORMAT_VERSION}
        if self.settings.has_people:
            if self._held_out_content is None:
                self._held_out_content = fingerprint_sequences(*self._held_out_scenes(progress))
            found["held_out"] = self._held_out_content
        if self.calibration_sources:
            found["calibration"] = self._calibration_content
        return found

    def calibration_contract(self) -> dict[str, Any]:
        """Return all that determines the drawn sequences, after :meth:`draw`.

        Folders are represented by the fingerprint of the frames drawn from each source.
        """
        content = {"content": self._calibration_content, "format": FORMAT_VERSION}
        return {**self.settings.calibration(), **content}


def readable(chunks: Chunks) -> Chunks:
    """Cut out the built-in portrait in this process rather than in a DataLoader worker."""
    if isinstance(chunks.source, BuiltinSource):
        chunks.source.portrait()
    return chunks
