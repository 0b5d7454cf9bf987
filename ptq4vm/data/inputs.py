"""Sources of calibration clips as settings classes, each of which opens its source."""

import glob
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from ptq4vm.data.background_clips import BackgroundClips
from ptq4vm.data.builtin import PICTURES, BuiltinSource, bundled
from ptq4vm.data.cutouts import CutoutSource
from ptq4vm.data.datasets import EvaluationSource, VideoMatteSource
from ptq4vm.data.discovery import discover, held_out_clips
from ptq4vm.data.settings import FOLDERS, DataSettings
from ptq4vm.data.sources import ClipSource
from ptq4vm.data.videos import VideoSource, list_clips
from ptq4vm.errors import PTQ4VMError

HELD_OUT_VIDEO_FRAMES = 60


class SourceSettings(ABC):
    """Base class of the sources of calibration clips: frozen dataclasses of their settings."""

    @abstractmethod
    def open(self, settings: DataSettings) -> ClipSource:
        """Return the source of clips of ``settings.drawn_size``.

        Raises:
            PTQ4VMError: Files are missing or don't match.
        """

    def resolve(self, settings: DataSettings) -> DataSettings:
        """Return the settings with the sources that this one stands for; its own unless `Auto`."""
        return settings

    def folders(self) -> dict[str, str | None]:
        """Return the settings that are folders, relative to the data's root."""
        folders = {name: value for name, value in vars(self).items() if name in FOLDERS}
        return {name: None if one is None else str(one) for name, one in folders.items()}

    def plain(self) -> dict[str, Any]:
        """Return the name of the class and the settings that are no folders."""
        others = {name: value for name, value in vars(self).items() if name not in FOLDERS}
        return {"source": type(self).__name__, **others}


@dataclass(frozen=True)
class Builtin(SourceSettings):
    """A portrait moved over photographs; needs no files."""

    def open(self, settings: DataSettings) -> ClipSource:  # noqa: D102
        frames = max(2 * settings.seq_length, 32)
        count = settings.num_sequences
        return BuiltinSource("train", settings.drawn_size, count, frames, settings.seed)


@dataclass(frozen=True)
class Composites(SourceSettings):
    """Foregrounds with alpha, composed with every background.

    Args:
        foregrounds: Folder with `train/{fgr,pha}/<clip>/<frame>`, VideoMatte240K's layout.
        backgrounds: Folder with `train/<clip>/<frame>`; a clip of one frame is a still. None uses
            the photographs only.
        photographs: Add photographs shipped with scikit-image to the backgrounds.
    """

    foregrounds: str = "videomatte240k_layout"
    backgrounds: str | None = "backgrounds"
    photographs: bool = False

    def open(self, settings: DataSettings) -> ClipSource:  # noqa: D102
        return VideoMatteSource(
            settings.path("foregrounds", self.foregrounds),
            _open_backgrounds(settings, self.backgrounds, self.photographs),
            settings.drawn_size,
            settings.seed,
            settings.held_out,
        )


@dataclass(frozen=True)
class Videos(SourceSettings):
    """Videos without alpha.

    Args:
        videos: Folder of video files or folders of frames.
        names: Patterns of the clips to use, held out or not; by default all that aren't held out.
    """

    videos: str = "user_clips"
    names: tuple[str, ...] | None = None

    def open(self, settings: DataSettings) -> VideoSource:  # noqa: D102
        return VideoSource(
            settings.path("videos", self.videos),
            settings.drawn_size,
            self.names or ("*",),
            settings.held_out if self.names is None else (),
            settings.cache_dir,
        )


@dataclass(frozen=True)
class CutOuts(SourceSettings):
    """People of videos, cut out by the float network, composed with every background.

    Args:
        videos: Folder of video files or folders of frames.
        backgrounds: Folder with `train/<clip>/<frame>`; a clip of one frame is a still. None uses
            the photographs only.
        photographs: Add photographs shipped with scikit-image to the backgrounds.
    """

    videos: str = "user_clips"
    backgrounds: str | None = "backgrounds"
    photographs: bool = False

    def open(self, settings: DataSettings) -> ClipSource:  # noqa: D102
        people = Videos(self.videos).open(settings)
        backgrounds = _open_backgrounds(settings, self.backgrounds, self.photographs)
        return CutoutSource(people, backgrounds, settings.drawn_size, settings.seed)


@dataclass(frozen=True)
class EvaluationTree(SourceSettings):
    """Finished composites with alpha.

    Args:
        composites: Folder with `<set>/<clip>/{com,pha,fgr}/<frame>`, or with one folder of that
            layout.
    """

    composites: str = "evaluation"

    def open(self, settings: DataSettings) -> ClipSource:  # noqa: D102
        root = settings.path("composites", self.composites)
        return EvaluationSource(root, settings.drawn_size, settings.labels)


@dataclass(frozen=True)
class Auto(SourceSettings):
    """All layouts that are found in the root: videos, foregrounds, backgrounds, evaluation.

    Without an evaluation tree, every fifth video is kept out of calibration and scored.

    Args:
        videos: Folder of the videos, where there are several; likewise the others.
        foregrounds: Folder of foregrounds with alpha.
        backgrounds: Folder of backgrounds.
        photographs: Add photographs shipped with scikit-image to the backgrounds; they are the
            only ones where there are no others.
    """

    videos: str | None = None
    foregrounds: str | None = None
    backgrounds: str | None = None
    photographs: bool = False

    def open(self, settings: DataSettings) -> ClipSource:
        """Raise TypeError: it stands for several sources; see :meth:`resolve`."""
        raise TypeError("Expected the sources that Auto finds, got Auto itself.")

    def resolve(self, settings: DataSettings) -> DataSettings:
        """Return the settings with sources, evaluation and held-out videos as found in the root.

        Raises:
            PTQ4VMError: The root has no known layout, or several folders of one layout.
        """
        found = discover(settings.root, **self.folders(), evaluation=settings.evaluation)
        photographs = self.photographs or found.backgrounds is None
        sources: list[SourceSettings] = []
        if found.foregrounds is not None:
            sources.append(Composites(found.foregrounds, found.backgrounds, photographs))
        if found.videos is not None:
            sources.append(CutOuts(found.videos, found.backgrounds, photographs))
            sources.append(Videos(found.videos))
        settings = replace(settings, sources=sources, evaluation=found.evaluation)
        if found.evaluation is not None or found.videos is None:
            return settings
        names = [path.stem for path in list_clips(settings.root / found.videos)]
        return replace(
            settings,
            score_held_out=True,
            held_out=settings.held_out or [glob.escape(name) for name in held_out_clips(names)],
            eval_frames=settings.eval_frames or HELD_OUT_VIDEO_FRAMES,
        )


def _open_backgrounds(
    settings: DataSettings, folder: str | None, photographs: bool
) -> BackgroundClips:
    if folder is None and not photographs:
        raise PTQ4VMError(
            "Expected backgrounds or photographs, got neither. Set data.source.photographs to true."
        )
    return BackgroundClips(
        None if folder is None else settings.root / folder,
        held_out=settings.held_out,
        photographs=[bundled(name) for name in PICTURES["train"]] if photographs else [],
    )


def list_sources(source: SourceSettings | list[SourceSettings]) -> list[SourceSettings]:
    """Return one or several sources as a list.

    Raises:
        PTQ4VMError: There is none, one is no source, or ``Auto`` is one of several.
    """
    sources = list(source) if isinstance(source, list | tuple) else [source]
    if not sources or not all(isinstance(one, SourceSettings) for one in sources):
        raise PTQ4VMError(
            "Expected source to be Auto or of Builtin, Composites, Videos, CutOuts, EvaluationTree "
            f"(classes of ptq4vm.data), got {source!r}. Name one."
        )
    if len(sources) > 1 and any(isinstance(one, Auto) for one in sources):
        raise PTQ4VMError(
            f"Expected Auto alone, which stands for all sources it finds, got it among "
            f"{len(sources)}. Name the others only."
        )
    return sources
