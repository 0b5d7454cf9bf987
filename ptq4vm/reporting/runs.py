"""Run folders of ``ptq4vm quantize``."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypedDict

from ptq4vm.errors import PTQ4VMError
from ptq4vm.reading import read_json
from ptq4vm.reporting.results import ResultRow, read_rows

SETTINGS = "settings.json"
"""File of the settings that determine a run's result; a run with the same settings is resumed."""
RECORD = "run.json"
"""File of the run's provenance: versions, code, seed, weights, times."""
METRICS = "metrics.json"
"""File of the result table, written once the run is finished."""
LOG = "log.txt"
FRAMES = ".frames.json"
"""Suffix of files with per-frame MAD and dtSSD, ``{clip: {metric: [...]}}``."""
_LONGEST = 100
"""Maximum length of a setting that names files and folders, in characters."""


class _Data(TypedDict):
    root: str
    size: tuple[int, int]
    evaluation: str | None
    eval_clips: int | None
    eval_frames: int | None


class _Titled(TypedDict):
    title: str


class _OptionalSettings(TypedDict, total=False):
    target: str | None


class _Settings(_OptionalSettings):
    network: str
    weights: str | None
    downsample_ratio: float
    bits: list[str]
    rows: dict[str, _Titled]
    data: _Data


class _Git(TypedDict):
    revision: str
    changed: bool


class _OptionalStart(TypedDict, total=False):
    git: _Git | None
    machine: str
    versions: dict[str, str]


class _Start(_OptionalStart):
    time: str


class Record(TypedDict, total=False):
    """Provenance of a run: the keys that are read again."""

    starts: list[_Start]
    finished: str | None
    seed: int
    weights_checksum: str


@dataclass(frozen=True)
class RunFolder:
    """One run of ``ptq4vm quantize``."""

    folder: Path
    settings: Mapping[str, Any]
    record: Mapping[str, Any]
    """Provenance; empty for runs of versions without it."""
    rows: tuple[ResultRow, ...]
    """Result table; empty if the run isn't finished."""

    @property
    def bits(self) -> list[str]:
        """Bits in the order of the settings; the folder of each is its name in lower case."""
        return list(self.settings["bits"])

    @property
    def methods(self) -> list[str]:
        """Keys of the methods, in the order of the table."""
        return list(self.settings["rows"])

    @property
    def final(self) -> dict[str, ResultRow]:
        """Last row of the table for each of the bits."""
        return {row.plan: row for row in self.rows if row.plan}

    @property
    def when(self) -> str:
        """Time of the end, else of the last start, as ``YYYY-MM-DD HH:MM`` in UTC."""
        starts = self.record.get("starts") or [{}]
        said = self.record.get("finished") or starts[-1].get("time")
        path = self.folder / (METRICS if self.rows else SETTINGS)
        time = (
            datetime.fromisoformat(said)
            if said
            else datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
        )
        return f"{time:%Y-%m-%d %H:%M}"


def read_run(folder: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        PTQ4VMError: the folder isn't a run folder, or one of its files is damaged.
    """
    folder = Path(folder)
    if not (folder / SETTINGS).is_file():
        raise PTQ4VMError(
            f"Expected a run folder of `ptq4vm quantize`, got {folder} without {SETTINGS}."
        )
    settings = read_json(folder / SETTINGS, _Settings, "the settings of a run", "Quantize anew.")
    # Bits and row names become names of folders and files.
    foreign = [one for one in settings["bits"] if not one.isalnum() or len(one) > _LONGEST]
    foreign += [
        name for name in settings["rows"] if not name.isidentifier() or len(name) > _LONGEST
    ]
    if foreign or not settings["bits"]:
        got = f"{foreign[0]!r} among them" if foreign else "no bits"
        raise PTQ4VMError(
            f"Expected the settings of a run, bits and rows, in {folder / SETTINGS}, got {got}."
        )
    record = read_record(folder)
    table = read_rows(folder / METRICS) if (folder / METRICS).is_file() else ()
    run = RunFolder(folder, settings, record, table)
    try:
        run.when  # noqa: B018  (a damaged record shows itself here)
    except (OSError, ValueError) as error:
        raise PTQ4VMError(
            f"Expected times in {folder / RECORD}, got something else ({error}). Remove it."
        ) from error
    return run


def read_record(folder: Path) -> Record:
    """Read the provenance of a run; empty if there is no such file.

    Raises:
        PTQ4VMError: the file is damaged.
    """
    path = folder / RECORD
    record: Record = {}
    return (
        read_json(path, Record, "the record of a run", "Remove it.") if path.is_file() else record
    )


def require_finished(run: RunFolder) -> None:
    """Raise PTQ4VMError if a run has no result table yet."""
    if not run.rows:
        raise PTQ4VMError(
            f"Expected a finished run in {run.folder}, got one without {METRICS}. "
            "Let `ptq4vm quantize` end."
        )
