"""Speeds of networks: table cells, and their JSON file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from ptq4vm.deploy import Speed
from ptq4vm.reading import read_json
from ptq4vm.reporting.results import write_results
from ptq4vm.reporting.tables import NOTHING, Cells, format_number


class _Table(TypedDict):
    rows: list[Speed]


def speed_cells(speeds: Sequence[Speed]) -> Cells:
    """Return headings and cells of latency, frames per second and memory."""
    headings = ["name", "bits", "runtime", "MB", "median ms", "p90 ms", "fps", "fps to the first"]
    return [*headings, "peak MB"], [
        [
            speed.model,
            speed.bits or NOTHING,
            f"{speed.runtime} ({speed.layers})" if speed.layers else speed.runtime,
            *map(
                format_number,
                (
                    speed.size_mb,
                    speed.median_ms,
                    speed.p90_ms,
                    speed.fps,
                    speed.fps / speeds[0].fps,
                    speed.memory_mb,
                ),
            ),
        ]
        for speed in speeds
    ]


def write_speeds(path: Path, speeds: Sequence[Speed], meta: Mapping[str, Any]) -> None:
    """Write ``{"meta": …, "rows": [{"model": …, "median_ms": …, …}, …]}`` as JSON, atomically.

    Raises:
        PTQ4VMError: the file can't be written.
    """
    write_results(path, [asdict(speed) for speed in speeds], meta)


def is_timing(content: Any) -> bool:
    """Return whether the content of a JSON file seems to be of :func:`write_speeds`."""
    rows = content.get("rows") if isinstance(content, dict) else None
    return isinstance(rows, list) and any(isinstance(row, dict) and "fps" in row for row in rows)


def read_speeds(path: Path) -> list[Speed]:
    """Read a file written by :func:`write_speeds`.

    Raises:
        PTQ4VMError: the file has other content.
    """
    rows = read_json(path, _Table, "results of a benchmark", "Remove it.")["rows"]
    return [Speed(**row) for row in rows]
