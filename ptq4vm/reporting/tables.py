"""Result tables for the terminal and in Markdown."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from ptq4vm.errors import PTQ4VMError
from ptq4vm.reporting.results import FLOAT, Cost, ResultRow
from ptq4vm.terminal import plain_console

Cells = tuple[list[str], list[list[str]]]
"""Headings, and the cells of each row."""
_METRICS = {
    "mad": "MAD ×10³",
    "mse": "MSE ×10³",
    "grad": "Grad",
    "conn": "Conn",
    "dtssd": "dtSSD ×10²",
}
_NAMES = 3
"""Number of first columns that are names, not numbers."""
_WITH_RATIO = ("mad", "dtssd")
NOTHING = "–"
"""Placeholder for missing values."""


def render_table(
    rows: Sequence[ResultRow], console: Console | None = None, title: str | None = None
) -> None:
    """Print the rows in the terminal; MAD and dtSSD also show the ratio to the float row.

    Args:
        rows: at least one row. Columns without any number are left out.
        console: console to print to; None for the standard output.
        title: title above the table.

    Raises:
        PTQ4VMError: there are no rows, or two of them are of the float network.
    """
    console = console or plain_console()
    weights = [Cost(row.cost.size_mb, effective_flops=row.cost.effective_flops) for row in rows]
    against_truth = [
        row._replace(cost=cost, fidelity=None, held_out=None)
        for row, cost in zip(rows, weights, strict=True)
    ]
    render_cells(table_cells(against_truth), console, title)
    # Further columns go to a second table: one table would be wider than a terminal.
    further = [
        row._replace(metrics={}, cost=row.cost._replace(size_mb=None, effective_flops=None))
        for row in rows
    ]
    if any(row.fidelity or row.held_out or any(row.cost) for row in further):
        render_cells(table_cells(further), console)


def render_cells(cells: Cells, console: Console, title: str | None = None) -> None:
    """Print one table: numbers wrap to two lines and are never folded, names are."""
    headings, body = cells
    table = Table(
        title=None if title is None else Text(title),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for number, heading in enumerate(headings):
        name = number < _NAMES
        justify: JustifyMethod = "left" if name else "right"
        table.add_column(
            Text(heading if name else _two_lines(heading)),
            justify=justify,
            overflow="fold",
            no_wrap=not name,
        )
    for row in body:
        names, numbers = row[:_NAMES], map(_two_lines, row[_NAMES:])
        table.add_row(*map(Text, [*names, *numbers]))
    console.print(table)


def _two_lines(text: str) -> str:
    """Break at the space nearest to the middle."""
    spaces = [place for place, letter in enumerate(text) if letter == " "]
    if not spaces:
        return text
    middle = min(spaces, key=lambda place: abs(place - len(text) / 2))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


def markdown_table(rows: Sequence[ResultRow]) -> str:
    """Return the table in Markdown, ending in a newline.

    Raises:
        PTQ4VMError: there are no rows, or two of them are of the float network.
    """
    return markdown_cells(table_cells(rows))


def markdown_cells(cells: Cells) -> str:
    """Return headings and cells as a table in Markdown, ending in a newline."""
    headings, body = cells
    rules = ["---" if number < _NAMES else "---:" for number in range(len(headings))]
    lines = [headings, rules, *([cell.replace("|", r"\|") for cell in row] for row in body)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table_cells(rows: Sequence[ResultRow]) -> Cells:
    """Return the headings and the cells of each row; columns without a number are left out."""
    reference = _float_row(rows)
    names = dict.fromkeys([*_METRICS, *(name for row in rows for name in row.metrics)])
    columns: list[tuple[str, Callable[[ResultRow], str]]] = [
        (_METRICS.get(name, name), partial(_metric, name=name, reference=reference))
        for name in names
    ]
    columns += [(heading, partial(_number, get=get)) for heading, get in _NUMBERS]
    columns = [column for column in columns if any(column[1](row) != NOTHING for row in rows)]
    headings = ["name", "bits", "placement", *(heading for heading, _ in columns)]
    body = [
        [
            row.name,
            row.bits or NOTHING,
            row.placement or NOTHING,
            *(cell(row) for _, cell in columns),
        ]
        for row in rows
    ]
    return headings, body


_NUMBERS: tuple[tuple[str, Callable[[ResultRow], float | None]], ...] = (
    ("MB", lambda row: row.cost.size_mb),
    ("eff. GFLOPs", lambda row: row.cost.effective_flops and row.cost.effective_flops / 1e9),
    ("bit ops ×10⁹", lambda row: row.cost.bit_operations and row.cost.bit_operations / 1e9),
    ("MAD to float", lambda row: row.fidelity and row.fidelity.mad),
    ("dtSSD to float", lambda row: row.fidelity and row.fidelity.dtssd),
    ("held-out MAD to float", lambda row: row.held_out and row.held_out.mad),
    ("held-out dtSSD to float", lambda row: row.held_out and row.held_out.dtssd),
    ("peak GB", lambda row: row.cost.peak_gb),
    ("minutes", lambda row: row.cost.minutes),
)
"""Columns behind the metrics: heading and number."""


def _number(row: ResultRow, get: Callable[[ResultRow], float | None]) -> str:
    return format_number(get(row))


def _float_row(rows: Sequence[ResultRow]) -> ResultRow | None:
    if not rows:
        raise PTQ4VMError("Expected at least one row of results, got none")
    found = [row for row in rows if row.method == FLOAT]
    if len(found) > 1:
        raise PTQ4VMError(f"Expected one row of the float network, got {len(found)}")
    return found[0] if found else None


def _metric(row: ResultRow, name: str, reference: ResultRow | None) -> str:
    value = row.metrics.get(name)
    text = format_number(value)
    base = reference.metrics.get(name) if reference is not None and reference is not row else None
    if name not in _WITH_RATIO or value is None or not base or not math.isfinite(value / base):
        return text
    return f"{text} (×{value / base:.2f})"


def format_number(value: float | None) -> str:
    """Format with two decimals, or two significant digits below 0.1."""
    if value is None:
        return NOTHING
    value = float(value)
    return f"{value:.2f}" if value == 0 or not abs(value) < 0.1 else f"{value:.2g}"
