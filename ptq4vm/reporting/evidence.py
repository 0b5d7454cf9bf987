"""What a run folder holds beside its table: values by frame, logs of the fits, timings, sensitivity."""

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ptq4vm.errors import PTQ4VMError
from ptq4vm.reporting.runs import FRAMES, RunFolder, read_json, read_rows
from ptq4vm.reporting.tables import FLOAT, ResultRow

_TIMED = "median ms"
"""By which `ptq4vm benchmark`'s JSON is told from others."""


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
            raise PTQ4VMError(f"Expected the rows of {run.folder}'s settings in its table, got {row.name!r}.")
        found.append(RowFiles(row.name, bits, run.folder / bits.lower() / names[row.name]))
    return found


def values_by_frame(row: RowFiles) -> dict[str, dict[str, list[float]]]:
    """Of each clip and metric; empty where the row was scored before they were kept."""
    path = row.stem.with_suffix(FRAMES)
    if not path.is_file():
        return {}
    try:
        return {
            clip: {name: [float(value) for value in values] for name, values in metrics.items()}
            for clip, metrics in read_json(path).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise PTQ4VMError(f"Expected numbers by clip and metric in {path}, got {error!r}. Remove it.") from error


def read_losses(row: RowFiles) -> Losses | None:
    """What Lightning's CSV logger wrote, over all starts of a fit; None where it logged nothing."""
    found = Losses(row, {}, {}, [])
    for path in sorted(row.stem.glob("version_*/metrics.csv"), key=_version):
        try:
            with path.open(newline="") as file:
                for line in csv.DictReader(file):
                    if line.get("biq/block"):
                        block = int(float(line["biq/block"]))
                        found.nearest[block], found.hard[block] = float(line["biq/nearest"]), float(line["biq/hard"])
                    if line.get("gac/loss") and math.isfinite(loss := float(line["gac/loss"])):
                        found.loss.append(loss)
        except (KeyError, TypeError, ValueError) as error:
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
        rows = content.get("rows")
        if isinstance(rows, list) and rows and isinstance(rows[0], dict) and _TIMED in (rows[0].get("extra") or {}):
            size = content.get("meta", {}).get("size", "")
            found[f"{path.name}, frames of {size}"] = read_rows(path)
    return found


def read_sensitivity(run: RunFolder) -> dict[str, dict[str, float]]:
    """MAD x 1e3 that each layer alone costs, by layer and bits, where it was measured in this run; else empty."""
    for path in (run.folder / "sensitivity.json", run.folder / "auto" / "sensitivity.json"):
        if path.is_file():
            layers = read_json(path).get("layers", [])
            try:
                return {
                    layer["name"]: {bits: float(error["mad"]) for bits, error in layer["errors"].items()}
                    for layer in layers
                }
            except (KeyError, TypeError, AttributeError) as error:
                raise PTQ4VMError(f"Expected a sensitivity file in {path}, got {error!r}. Remove it.") from error
    return {}
