"""Run folders: reading, listing and comparing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypedDict

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ptq4vm.atomic_io import write_json
from ptq4vm.errors import PTQ4VMError
from ptq4vm.reading import read_json
from ptq4vm.reporting.tables import NOTHING, ResultRow, format_number, table_cells
from ptq4vm.terminal import plain_console

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
_LISTED = ("mad", "dtssd", "mad_to_float")


class _Data(TypedDict):
    root: str
    size: tuple[int, int]
    evaluation: str | None
    eval_clips: int | None
    eval_frames: int | None


class _Titled(TypedDict):
    title: str


class _OptionalSettings(TypedDict, total=False):
    rows: dict[str, _Titled] | None
    target: str | None


class _Settings(_OptionalSettings):
    network: str
    weights: str | None
    downsample_ratio: float
    bits: list[str]
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


class _OptionalRow(TypedDict, total=False):
    size_mb: float | None
    bit_operations: float | None
    extra: dict[str, float | None] | None


class _Row(_OptionalRow):
    name: str
    bits: str
    placement: str
    metrics: dict[str, float | None]


class _Table(TypedDict):
    rows: list[_Row]


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
    def final(self) -> dict[str, ResultRow]:
        """Last row of the table for each of the bits."""
        each = max(1, (len(self.rows) - 1) // len(self.bits))
        return dict(zip(self.bits, self.rows[each::each], strict=False))

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
        name
        for name in settings.get("rows") or {}
        if not name.isidentifier() or len(name) > _LONGEST
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


def read_rows(path: Path) -> tuple[ResultRow, ...]:
    """Read the rows of a file written by :func:`write_metrics`.

    Raises:
        PTQ4VMError: the file has other content.
    """
    rows = read_json(path, _Table, "rows of results", "Remove it.")["rows"]
    return tuple(
        ResultRow(**{key: row[key] for key in ResultRow._fields if key in row}) for row in rows
    )


def list_runs(folder: Path, console: Console | None = None) -> None:
    """Print a table of all run folders below ``folder``, one row for each of a run's bits.

    Damaged run folders are listed below the table with their error.

    Raises:
        PTQ4VMError: there is no run folder.
    """
    found = sorted(path.parent for path in Path(folder).rglob(SETTINGS))
    if not found:
        raise PTQ4VMError(
            f"Expected run folders of `ptq4vm quantize` below {folder}, found none. "
            "Name another folder."
        )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("run", "network", "bits"):
        table.add_column(heading, overflow="fold")
    for heading in ("MAD\n×10³", "dtSSD\n×10²", "MAD to\nfloat", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("when (UTC)", "state"):
        table.add_column(heading, overflow="fold")
    damaged = []
    for path in found:
        try:
            for cells in _list_run(read_run(path), str(path.relative_to(folder))):
                table.add_row(*map(Text, cells))
        except PTQ4VMError as error:
            damaged.append(f"{path}: {error}")
    console = console or plain_console()
    if table.row_count:
        console.print(table)
    for line in damaged:
        console.print(
            f"damaged  {line}", highlight=False, markup=False, emoji=False, soft_wrap=True
        )


def _list_run(run: RunFolder, name: str) -> list[list[str]]:
    network, when = str(run.settings["network"]), run.when
    if not run.rows:
        return [[name, network, " ".join(map(str, run.bits)), *[NOTHING] * 4, when, "unfinished"]]
    cells = []
    for row in run.final.values():
        values = {**row.metrics, **(row.extra or {})}
        numbers = [format_number(values.get(key)) for key in _LISTED]
        cells.append(
            [name, network, row.bits, *numbers, format_number(row.size_mb), when, "finished"]
        )
    return cells


def compare_runs(
    runs: Sequence[RunFolder], console: Console | None = None, path: Path | None = None
) -> None:
    """Print the last rows of runs side by side, their differing settings, and all their rows.

    Args:
        runs: finished runs.
        console: console to print to; None for the standard output.
        path: JSON file for the same content; None for no file.

    Raises:
        PTQ4VMError: a run isn't finished, or the file can't be written.
    """
    for run in runs:
        require_finished(run)
    console = console or plain_console()
    names = _names(runs)
    finals = [
        row._replace(name=f"{name}: {row.name}")
        for name, run in names
        for row in run.final.values()
    ]
    headings, body = table_cells(finals)
    _print_across("Last rows", headings, body, console)
    flat = [_flat(run.settings) for run in runs]
    differing = _differing(runs)
    if differing:
        cells = [
            [name, *(_short(one.get(key)) for key in differing)]
            for (name, _), one in zip(names, flat, strict=True)
        ]
        _print_across("Settings that differ", ["", *differing], cells, console)
    titles = list(dict.fromkeys((row.name, row.bits) for run in runs for row in run.rows))
    cells = [[name, *(_figures(run, *title) for title in titles)] for name, run in names]
    labels = [f"{row} {bits}" for row, bits in titles]
    _print_across("All rows: MAD ×10³, dtSSD ×10², MAD to float", ["", *labels], cells, console)
    if path is not None:
        content = [
            {
                "folder": str(run.folder),
                "settings": run.settings,
                "record": run.record,
                "final": {bits: row._asdict() for bits, row in run.final.items()},
                "rows": [row._asdict() for row in run.rows],
            }
            for run in runs
        ]
        write_json(path, {"runs": content, "differing": differing})


def require_finished(run: RunFolder) -> None:
    """Raise PTQ4VMError if a run has no result table yet."""
    if not run.rows:
        raise PTQ4VMError(
            f"Expected a finished run in {run.folder}, got one without {METRICS}. "
            "Let `ptq4vm quantize` end."
        )


def _print_across(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], console: Console
) -> None:
    """Print a transposed table, with a column per row."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_column(Text(row[0]), overflow="fold")
    for number, heading in enumerate(headings[1:], 1):
        table.add_row(Text(heading), *(Text(row[number]) for row in rows))
    console.print(table)


def _names(runs: Sequence[RunFolder]) -> list[tuple[str, RunFolder]]:
    """Pair each run with its folder's name, or with the whole path if names repeat."""
    short = [run.folder.resolve().name for run in runs]
    return [
        (name if short.count(name) == 1 else str(run.folder), run)
        for name, run in zip(short, runs, strict=True)
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
    return flat


def _differing(runs: Sequence[RunFolder]) -> list[str]:
    """Return dotted names of differing settings, except for rows that only some runs have."""
    rows = [run.settings.get("rows") or {} for run in runs]
    common = set.intersection(*map(set, rows))
    flat = [
        _flat({**run.settings, "rows": {name: row[name] for name in common}})
        for run, row in zip(runs, rows, strict=True)
    ]
    keys = {key for one in flat for key in one}
    return sorted(key for key in keys if any(one.get(key) != flat[0].get(key) for one in flat))


def _short(value: Any) -> str:
    return NOTHING if value is None else value if isinstance(value, str) else json.dumps(value)


def _figures(run: RunFolder, name: str, bits: str) -> str:
    """Return the metrics of one row as the text of a single cell."""
    row = next((row for row in run.rows if (row.name, row.bits) == (name, bits)), None)
    values = {} if row is None else {**row.metrics, **(row.extra or {})}
    return "  ".join(format_number(values.get(key)) for key in _LISTED) if values else NOTHING
