"""Settings that decide the clips, as one value, and their checks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq4vm.errors import PTQ4VMError

if TYPE_CHECKING:
    from ptq4vm.data.inputs import SourceSettings

FOLDERS = ("foregrounds", "backgrounds", "videos", "composites")
"""Settings of sources that are folders, relative to the data's root."""
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
    "settle": 0,
    "height": 16,
    "width": 16,
}
"""Lowest allowed value of each number."""


@dataclass(frozen=True)
class DataSettings:
    """Settings that decide the clips; see ``VideoMattingDataModule`` for their meaning."""

    root: Path
    sources: "list[SourceSettings]"
    held_out: list[str]
    labels: bool
    evaluation: str | None
    score_held_out: bool
    num_sequences: int
    seq_length: int
    size: tuple[int, int]
    """Height and width in pixels."""
    enlarge: float
    settle: int
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

    @property
    def drawn_size(self) -> tuple[int, int]:
        """Height and width of the sources' clips, ``enlarge`` times those of the sequences."""
        height, width = self.size
        return round(height * self.enlarge), round(width * self.enlarge)

    def path(self, kind: str, folder: str | None) -> Path:
        """Return the path of a source's folder.

        Raises:
            PTQ4VMError: The folder is None.
        """
        if folder is None:
            raise PTQ4VMError(
                f"Expected a folder of {kind}, got none. Set data.source.{kind}, or leave it out."
            )
        return self.root / folder

    def folder(self, kind: str) -> Path:
        """Return the folder of held-out clips of a kind.

        Raises:
            PTQ4VMError: No source has a folder of this kind, or several have different ones.
        """
        folders = {source.folders().get(kind): None for source in self.sources}
        named = [folder for folder in folders if folder is not None]
        if len(named) != 1:
            names = ", ".join(named or (type(source).__name__ for source in self.sources))
            raise PTQ4VMError(
                f"Expected sources with one folder of {kind} to score held-out clips, got {names}. "
                "Name one, e.g. in CutOuts, or leave held_out and score_held_out out."
            )
        return self.root / named[0]

    def resolved(self) -> "DataSettings":
        """Return the settings with ``Auto`` replaced by the sources found in the root."""
        return self.sources[0].resolve(self)

    def calibration(self) -> dict[str, Any]:
        """Return all that determines the calibration set beside the files, as plain values."""
        names = ("labels", "num_sequences", "seq_length", "size", "enlarge", "settle", "augment")
        sources = [source.plain() for source in self.sources]
        return {"sources": sources, **{name: getattr(self, name) for name in (*names, "seed")}}

    def plain(self) -> dict[str, Any]:
        """Return all that affects the result, as plain values; folders included."""
        names = ("held_out", "score_held_out", "eval_clips", "eval_frames")
        return {
            "root": str(self.root.resolve()),
            **self.calibration(),
            "sources": [{**source.plain(), **source.folders()} for source in self.sources],
            **{name: getattr(self, name) for name in names},
            "evaluation": None if self.evaluation is None else str(self.evaluation),
        }


def without_folders(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of :meth:`DataSettings.plain` without paths, to compare two runs."""
    kept = {name: value for name, value in plain.items() if name not in ("root", "evaluation")}
    kept["sources"] = [
        {name: value for name, value in source.items() if name not in FOLDERS}
        if isinstance(source, Mapping)
        else source  # of an earlier version
        for source in plain.get("sources", [])
    ]
    return kept


def check_numbers(values: Mapping[str, Any]) -> None:
    """Check the numbers of ``LEAST`` among the values; None is allowed.

    Raises:
        PTQ4VMError: A number is out of range.
    """
    for name, low in LEAST.items():
        value = values.get(name)
        if value is not None and value < low:
            raise PTQ4VMError(
                f"Expected {name} of at least {low}, got {value}. Change it in the data settings."
            )
