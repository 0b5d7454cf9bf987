"""Result tables for the terminal, Markdown and JSON."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from ptq4vm.atomic_io import write_json
from ptq4vm.deploy import Speed
from ptq4vm.errors import PTQ4VMError
from ptq4vm.terminal import plain_console

FLOAT = "float"
"""Name of the reference row."""

_HEADINGS = {
    "mad": "MAD ×10³",
    "mse": "MSE ×10³",
    "grad": "Grad",
    "conn": "Conn",
    "dtssd": "dtSSD ×10²",
}
_NAMES = ("name", "bits", "placement")
_EXTRA_HEADINGS = {
    "mad_to_float": "MAD to float",
    "dtssd_to_float": "dtSSD to float",
    "held_out_mad": "held-out MAD to float",
    "held_out_dtssd": "held-out dtSSD to float",
    "peak_gb": "peak GB",
}
_WITH_RATIO = ("mad", "dtssd")
NOTHING = "–"
"""Placeholder for missing values."""


class ResultRow(NamedTuple):
    """Measured results of one network."""

    name: str
    """Method or run; ``float`` is the network before quantization."""
    bits: str
    """Bits of weights and activations, e.g. ``W4A8``."""
    placement: str
    """Placement of the quantizers; empty for the float network."""
    metrics: Mapping[str, float]
    """Metrics by name; lower is better, and all are optional.

    ``mad`` (×10³), ``mse`` (×10³), ``grad``, ``conn`` and ``dtssd`` (×10²).
    """
    size_mb: float | None = None
    """Size of the weights in 10⁶ bytes."""
    bit_operations: float | None = None
    """Σ MACs × weight bits × activation bits for one frame."""
    extra: Mapping[str, float] | None = None
    """Further numbers by name, e.g. ``mad_to_float``; each becomes a column."""


def render_table(
    rows: Sequence[ResultRow], console: Console | None = None, title: str | None = None
) -> None:
    """Print the rows in the terminal; MAD and dtSSD also show the ratio to the float row.

    Args:
        rows: at least one row. Columns without any number are left out.
        console: console to print to; None for the standard output.
        title: title above the table.

    Raises:
        PTQ4VMError: there are no rows, or two of them are named ``float``.
    """
    console = console or plain_console()
    headings, body = table_cells([row._replace(extra=None) for row in rows])
    _print(console, title, headings, body)
    # Extra columns go to a second table: one table would be wider than a terminal.
    if any(row.extra for row in rows):
        headings, body = table_cells(
            [row._replace(metrics={}, size_mb=None, bit_operations=None) for row in rows]
        )
        _print(console, None, headings, body)


def _print(console: Console, title: str | None, headings: list[str], body: list[list[str]]) -> None:
    """Print one table: numbers wrap to two lines and are never folded, names are."""
    table = Table(
        title=None if title is None else Text(title),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for heading in headings:
        name = heading in _NAMES
        justify: JustifyMethod = "left" if name else "right"
        table.add_column(
            Text(heading if name else _two_lines(heading)),
            justify=justify,
            overflow="fold",
            no_wrap=not name,
        )
    for cells in body:
        table.add_row(
            *(
                Text(c if h in _NAMES else _two_lines(c))
                for h, c in zip(headings, cells, strict=True)
            )
        )
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
        PTQ4VMError: there are no rows, or two of them are named ``float``.
    """
    headings, body = table_cells(rows)
    rules = ["---" if number < 3 else "---:" for number in range(len(headings))]
    lines = [headings, rules, *([cell.replace("|", r"\|") for cell in cells] for cells in body)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_metrics(path: Path, rows: Sequence[ResultRow], meta: Mapping[str, Any]) -> None:
    """Write ``{"meta": …, "rows": [{"name": …, "bits": …, …}, …]}`` as JSON, atomically.

    Args:
        path: file to write.
        rows: results, written without rounding. NaN and infinity become null, as JSON lacks them.
        meta: conditions of the measurement: seed, data, versions; plain values, paths and
            one-element tensors or arrays.

    Raises:
        PTQ4VMError: a value has no JSON form, or the file can't be written.
    """
    content = _plain({"meta": meta, "rows": [row._asdict() for row in rows]}, "")
    write_json(path, content, ensure_ascii=False, allow_nan=False)


def _extra(row: ResultRow, name: str) -> str:
    return format_number((row.extra or {}).get(name))


def table_cells(rows: Sequence[ResultRow]) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of each row."""
    reference = _float_row(rows)
    names = [*_HEADINGS, *(name for row in rows for name in row.metrics if name not in _HEADINGS)]
    columns: list[tuple[str, Callable[[ResultRow], str]]] = [
        (_HEADINGS.get(name, name), lambda row, name=name: _metric(row, name, reference))  # type: ignore[misc]
        for name in dict.fromkeys(names)
    ]
    columns.append(("MB", lambda row: format_number(row.size_mb)))
    columns.append(("bit ops ×10⁹", lambda row: format_number(row.bit_operations, 1e9)))
    found = dict.fromkeys(name for row in rows for name in row.extra or {})
    extras = [
        *(name for name in _EXTRA_HEADINGS if name in found),
        *(n for n in found if n not in _EXTRA_HEADINGS),
    ]
    for name in extras:
        columns.append((name, partial(_extra, name=name)))
    columns = [column for column in columns if any(column[1](row) != NOTHING for row in rows)]
    readable = (_EXTRA_HEADINGS.get(heading, heading.replace("_", " ")) for heading, _ in columns)
    headings = [*_NAMES, *readable]
    body = [
        [
            row.name,
            str(row.bits) or NOTHING,
            row.placement or NOTHING,
            *(cell(row) for _, cell in columns),
        ]
        for row in rows
    ]
    return headings, body


def _float_row(rows: Sequence[ResultRow]) -> ResultRow | None:
    if not rows:
        raise PTQ4VMError("Expected at least one row of results, got none")
    named = [row for row in rows if row.name == FLOAT]
    if len(named) > 1:
        raise PTQ4VMError(f"Expected one row named '{FLOAT}' to compare with, got {len(named)}")
    return named[0] if named else None


def _metric(row: ResultRow, name: str, reference: ResultRow | None) -> str:
    value = row.metrics.get(name)
    text = format_number(value)
    base = reference.metrics.get(name) if reference is not None and reference is not row else None
    if name not in _WITH_RATIO or value is None or not base or not math.isfinite(value / base):
        return text
    return f"{text} (×{value / base:.2f})"


def format_number(value: float | None, unit: float = 1.0) -> str:
    """Format with two decimals, or two significant digits below 0.1."""
    if value is None:
        return NOTHING
    scaled = float(value) / unit
    return f"{scaled:.2f}" if scaled == 0 or not abs(scaled) < 0.1 else f"{scaled:.2g}"


def _plain(value: Any, where: str) -> Any:
    """Convert to plain JSON values."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}.{number}") for number, item in enumerate(value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Path):
        return str(value)
    if getattr(value, "shape", None) is not None and math.prod(value.shape) == 1:
        return _plain(value.item(), where)
    raise PTQ4VMError(
        f"Expected plain values in {where.lstrip('.')}, got {type(value).__name__}; convert it"
    )


def speed_rows(speeds: Sequence[Speed]) -> list[ResultRow]:
    """Return rows of latency, frames per second and memory, relative to the first."""
    return [
        ResultRow(
            speed.model,
            speed.bits,
            f"{speed.runtime} ({speed.layers})" if speed.layers else speed.runtime,
            {},
            speed.size_mb,
            extra={
                "median ms": speed.median_ms,
                "p90 ms": speed.p90_ms,
                "fps": speed.fps,
                "fps to the first": speed.fps / speeds[0].fps,
                "peak MB": speed.memory_mb,
            },
        )
        for speed in speeds
    ]
