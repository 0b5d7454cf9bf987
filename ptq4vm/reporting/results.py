"""Results of networks: rows of a table, and their JSON file."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from ptq4vm.atomic_io import write_json
from ptq4vm.errors import PTQ4VMError
from ptq4vm.reading import read_json

FLOAT = "float"
"""Method of the reference row."""


class Fidelity(NamedTuple):
    """Distance of a network's mattes to the float network's."""

    mad: float
    """Mean absolute difference of alpha, ×10³."""
    dtssd: float
    """Difference of alpha's changes between frames, ×10²."""


class Cost(NamedTuple):
    """Cost of a network and of its quantization; None where unknown."""

    size_mb: float | None = None
    """Size of the weights in 10⁶ bytes."""
    bit_operations: float | None = None
    """Σ MACs × weight bits × activation bits for one frame."""
    effective_flops: float | None = None
    """Σ MACs × 2 W A / (W + A) / 32 for one frame, as arXiv 2506.10840 counts."""
    peak_gb: float | None = None
    """Peak memory of the fit in 10⁹ bytes."""
    minutes: float | None = None
    """Time of the fit."""


class ResultRow(NamedTuple):
    """Measured results of one network."""

    name: str
    """Title in the table."""
    bits: str
    """Bits of weights and activations, e.g. ``W4A8``."""
    placement: str
    """Placement of the quantizers; empty for the float network."""
    metrics: Mapping[str, float]
    """Metrics against the true alpha by name; lower is better, and all are optional.

    ``mad`` (×10³), ``mse`` (×10³), ``grad``, ``conn`` and ``dtssd`` (×10²).
    """
    cost: Cost = Cost()
    fidelity: Fidelity | None = None
    """Distance to the float network on the evaluation clips."""
    held_out: Fidelity | None = None
    """Distance to the float network on held-out people."""
    method: str = ""
    """Key of the method, which names the row's files; :data:`FLOAT` for the float network."""
    plan: str = ""
    """Entry of the run's ``bits`` that the row belongs to; empty for the float network."""


def fidelity_of(metrics: Mapping[str, float]) -> Fidelity | None:
    """Return ``mad_to_float`` and ``dtssd_to_float`` out of logged metrics; None without them."""
    if "mad_to_float" not in metrics:
        return None
    return Fidelity(metrics["mad_to_float"], metrics["dtssd_to_float"])


def truth_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the logged metrics that compare with the true alpha."""
    return {name: value for name, value in metrics.items() if not name.endswith("_to_float")}


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
    write_results(path, [row_values(row) for row in rows], meta)


def write_results(path: Path, rows: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]) -> None:
    """Write rows of any kind as :func:`write_metrics` does."""
    content = _plain({"meta": meta, "rows": rows}, "")
    write_json(path, content, ensure_ascii=False, allow_nan=False)


def row_values(row: ResultRow) -> dict[str, Any]:
    """Return a row as nested dictionaries."""
    return {
        name: value._asdict() if isinstance(value, Cost | Fidelity) else value
        for name, value in row._asdict().items()
    }


class FidelityValues(TypedDict):
    """:class:`Fidelity` in a JSON file."""

    mad: float | None
    dtssd: float | None


class _OptionalCost(TypedDict, total=False):
    effective_flops: float | None


class _Cost(_OptionalCost):
    size_mb: float | None
    bit_operations: float | None
    peak_gb: float | None
    minutes: float | None


class _Row(TypedDict):
    name: str
    bits: str
    placement: str
    metrics: dict[str, float | None]
    cost: _Cost
    fidelity: FidelityValues | None
    held_out: FidelityValues | None
    method: str
    plan: str


class _Table(TypedDict):
    rows: list[_Row]


def read_rows(path: Path) -> tuple[ResultRow, ...]:
    """Read the rows of a file written by :func:`write_metrics`.

    Raises:
        PTQ4VMError: the file has other content.
    """
    remedy = "Remove it; runs of earlier versions are not read."
    rows = read_json(path, _Table, "rows of results of this version", remedy)["rows"]
    return tuple(
        ResultRow(
            **{name: row[name] for name in ("name", "bits", "placement", "metrics")},
            cost=Cost(**{name: row["cost"].get(name) for name in Cost._fields}),  # type: ignore[arg-type]
            fidelity=_read_fidelity(row["fidelity"]),
            held_out=_read_fidelity(row["held_out"]),
            method=row["method"],
            plan=row["plan"],
        )
        for row in rows
    )


def _read_fidelity(values: Any) -> Fidelity | None:
    return None if values is None else Fidelity(**values)


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
