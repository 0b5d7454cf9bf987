"""Lists and comparisons of run folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ptq4vm.atomic_io import write_json
from ptq4vm.errors import PTQ4VMError, flat_settings
from ptq4vm.reporting.results import ResultRow, row_values
from ptq4vm.reporting.runs import SETTINGS, RunFolder, read_run, require_finished
from ptq4vm.reporting.tables import NOTHING, format_number, table_cells
from ptq4vm.terminal import plain_console


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
        size = format_number(row.cost.size_mb)
        cells.append([name, network, row.bits, *_listed(row), size, when, "finished"])
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
    flat = [flat_settings(run.settings) for run in runs]
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
                "final": {bits: row_values(row) for bits, row in run.final.items()},
                "rows": [row_values(row) for row in run.rows],
            }
            for run in runs
        ]
        write_json(path, {"runs": content, "differing": differing})


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


def _differing(runs: Sequence[RunFolder]) -> list[str]:
    """Return dotted names of differing settings, except for rows that only some runs have."""
    rows = [run.settings["rows"] for run in runs]
    common = set.intersection(*map(set, rows))
    flat = [
        flat_settings({**run.settings, "rows": {name: row[name] for name in common}})
        for run, row in zip(runs, rows, strict=True)
    ]
    keys = {key for one in flat for key in one}
    return sorted(key for key in keys if any(one.get(key) != flat[0].get(key) for one in flat))


def _short(value: Any) -> str:
    return NOTHING if value is None else value if isinstance(value, str) else json.dumps(value)


def _figures(run: RunFolder, name: str, bits: str) -> str:
    """Return the metrics of one row as the text of a single cell."""
    row = next((row for row in run.rows if (row.name, row.bits) == (name, bits)), None)
    return NOTHING if row is None else "  ".join(_listed(row))


def _listed(row: ResultRow) -> list[str]:
    """Return MAD, dtSSD and MAD to float."""
    to_float = None if row.fidelity is None else row.fidelity.mad
    return [format_number(one) for one in (*map(row.metrics.get, ("mad", "dtssd")), to_float)]
