"""Files of a run folder beside its table: per-frame values, fit logs, timings, sensitivity."""

import csv
import math
import re
from pathlib import Path
from typing import NamedTuple, TypedDict

from ptq4vm.deploy import Speed
from ptq4vm.errors import PTQ4VMError
from ptq4vm.reading import parse_number, read_json
from ptq4vm.reporting.results import FLOAT
from ptq4vm.reporting.runs import FRAMES, RunFolder
from ptq4vm.reporting.speeds import is_timing, read_speeds

_BLOCK_LOSSES = ("block", "nearest", "hard")


class _LayerError(TypedDict):
    mad: float


class _Layer(TypedDict):
    name: str
    errors: dict[str, _LayerError]


class _Sensitivity(TypedDict):
    layers: list[_Layer]


class RowFiles(NamedTuple):
    """Table row and the location of its files."""

    title: str
    bits: str
    """Bits of the row; empty for the float network."""
    stem: Path
    """Path of the row's files without suffix; also the folder of its fit log."""


class Losses(NamedTuple):
    """Losses from the log of one fit."""

    row: RowFiles
    nearest: dict[int, float]
    """Block reconstruction loss by block, before learning, with rounding to nearest."""
    hard: dict[int, float]
    """Block reconstruction loss by block, after learning."""
    loss: list[float]
    """Losses of global calibration, in the order of the logged steps."""


def row_files(run: RunFolder) -> list[RowFiles]:
    """Locate the files of each row of the run's table, in the table's order.

    Raises:
        PTQ4VMError: a row is of other bits or of another method than the run's.
    """
    found = []
    for row in run.rows:
        own = row.method == FLOAT or (row.plan in run.bits and row.method in run.methods)
        if not own:
            raise PTQ4VMError(
                f"Expected the rows of {run.folder}'s settings in its table, got {row.name!r}."
            )
        found.append(RowFiles(row.name, row.plan, run.folder / row.plan.lower() / row.method))
    return found


def values_by_frame(row: RowFiles) -> dict[str, dict[str, list[float]]]:
    """Read the per-frame values, {clip: {metric: values}}; empty if the run has no such file."""
    path = row.stem.with_suffix(FRAMES)
    if not path.is_file():
        return {}
    kind = dict[str, dict[str, list[float]]]
    return read_json(path, kind, "numbers by clip and metric", "Remove it.")  # type: ignore[no-any-return]


def read_losses(row: RowFiles) -> Losses | None:
    """Read the CSV logs of all starts of a fit; None if nothing was logged.

    Raises:
        PTQ4VMError: a log is damaged.
    """
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


def read_timings(run: RunFolder) -> dict[str, list[Speed]]:
    """Read the results of `ptq4vm benchmark --json` in the run folder, by file and frame size."""
    found = {}
    for path in sorted(run.folder.glob("*.json")):
        content = read_json(path)
        if is_timing(content):
            meta = content.get("meta")
            size = meta.get("size", "") if isinstance(meta, dict) else ""
            found[f"{path.name}, frames of {size}"] = read_speeds(path)
    return found


def read_sensitivity(run: RunFolder) -> dict[str, dict[str, float]]:
    """Read the sensitivity, MAD ×10³ to float, by layer and bits; empty if not measured."""
    for path in (run.folder / "sensitivity.json", run.folder / "auto" / "sensitivity.json"):
        if path.is_file():
            layers = read_json(path, _Sensitivity, "a sensitivity file", "Remove it.")["layers"]
            return {
                layer["name"]: {bits: error["mad"] for bits, error in layer["errors"].items()}
                for layer in layers
            }
    return {}
