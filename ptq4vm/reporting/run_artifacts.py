"""What a run folder holds beside its table: values by frame, logs of the fits, timings, sensitivity."""

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from ptq4vm.errors import PTQ4VMError
from ptq4vm.reading import parse_number, read_json
from ptq4vm.reporting.runs import FRAMES, RunFolder, read_rows
from ptq4vm.reporting.tables import FLOAT, ResultRow

_TIMED = "median ms"
"""By which `ptq4vm benchmark`'s JSON is told from others."""
_BLOCK_LOSSES = ("block", "nearest", "hard")


class _LayerError(TypedDict):
    mad: float


class _Layer(TypedDict):
    name: str
    errors: dict[str, _LayerError]


class _Sensitivity(TypedDict):
    layers: list[_Layer]


class RowFiles(NamedTuple):
    """A row of the table and where its files are."""

    title: str
    bits: str
    """Empty for the float network."""
    stem: Path
    """Path of its files, without suffix; the folder of its log."""


class Losses(NamedTuple):
    """The log of one fit."""

    row: RowFiles
    nearest: dict[int, float]
    """Block reconstruction's loss of each block before learning, with roundings to nearest."""
    hard: dict[int, float]
    """And after it."""
    loss: list[float]
    """Global calibration's, in the order of the steps that were logged."""


def row_files(run: RunFolder, names: Mapping[str, str]) -> list[RowFiles]:
    """Where the files of each row of the table are, in its order; ``names`` are the files' by the rows' titles."""
    methods = [row for row in run.rows if row.name != FLOAT]
    each = max(1, len(methods) // len(run.bits))
    found = [RowFiles(FLOAT, "", run.folder / FLOAT)]
    for number, row in enumerate(methods):
        bits = run.bits[min(number // each, len(run.bits) - 1)]
        if row.name not in names:
            raise PTQ4VMError(
                f"Expected the rows of {run.folder}'s settings in its table, got {row.name!r}."
            )
        found.append(RowFiles(row.name, bits, run.folder / bits.lower() / names[row.name]))
    return found


def values_by_frame(row: RowFiles) -> dict[str, dict[str, list[float]]]:
    """Of each clip and metric; empty where the row was scored before they were kept."""
    path = row.stem.with_suffix(FRAMES)
    if not path.is_file():
        return {}
    kind = dict[str, dict[str, list[float]]]
    return read_json(path, kind, "numbers by clip and metric", "Remove it.")  # type: ignore[no-any-return]


def read_losses(row: RowFiles) -> Losses | None:
    """What Lightning's CSV logger wrote, over all starts of a fit; None where it logged nothing."""
    found = Losses(row, {}, {}, [])
    for path in sorted(row.stem.glob("version_*/metrics.csv"), key=_version):
        try:
            with path.open(newline="") as file:
                for line in csv.DictReader(file):
                    if line.get("biq/block"):
                        block, nearest, hard = (
                            parse_number(line[f"biq/{key}"]) for key in _BLOCK_LOSSES
                        )
                        found.nearest[int(block)], found.hard[int(block)] = nearest, hard
                    if line.get("gac/loss") and math.isfinite(
                        loss := parse_number(line["gac/loss"])
                    ):
                        found.loss.append(loss)
        except (OSError, csv.Error, KeyError, OverflowError, TypeError, ValueError) as error:
            raise PTQ4VMError(
                f"Expected the log of a fit in {path}, got something else ({error!r}). Remove it."
            ) from error
    return found if found.hard or found.loss else None


def _version(path: Path) -> int:
    match = re.search(r"\d+$", path.parent.name)
    return int(match[0]) if match else 0


def read_timings(run: RunFolder) -> dict[str, tuple[ResultRow, ...]]:
    """What `ptq4vm benchmark --json` wrote into the run folder, by file and size of the frames."""
    found = {}
    for path in sorted(run.folder.glob("*.json")):
        content = read_json(path)
        first = next(iter(_list(content.get("rows"))), None)
        if _TIMED in _dict(_dict(first).get("extra")):
            size = _dict(content.get("meta")).get("size", "")
            found[f"{path.name}, frames of {size}"] = read_rows(path)
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def read_sensitivity(run: RunFolder) -> dict[str, dict[str, float]]:
    """MAD x 1e3 that each layer alone costs, by layer and bits, where it was measured in this run; else empty."""
    for path in (run.folder / "sensitivity.json", run.folder / "auto" / "sensitivity.json"):
        if path.is_file():
            layers = read_json(path, _Sensitivity, "a sensitivity file", "Remove it.")["layers"]
            return {
                layer["name"]: {bits: error["mad"] for bits, error in layer["errors"].items()}
                for layer in layers
            }
    return {}
