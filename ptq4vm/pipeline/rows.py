"""Rows of the results table: methods, their starting points and their options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import FINAL_CHECKPOINT
from ptq4vm.reporting.results import FLOAT


@dataclass(frozen=True)
class Method:
    """Method of a row: block reconstruction, or global calibration of another row's network.

    Args:
        title: name in the table.
        start: row whose network is calibrated globally; None for block reconstruction.
        options: options of the phase, which override those of the run.
        qconfig: changes of the run's qconfig; only without ``start``.
        checkpoint: quantized checkpoint that is taken as it is, without a phase; it must have the
            run's bits and qconfig.
    """

    title: str
    start: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    qconfig: dict[str, Any] = field(default_factory=dict)
    checkpoint: Path | None = None

    def __post_init__(self) -> None:
        for name in ("options", "qconfig"):
            if not isinstance(value := getattr(self, name), Mapping):
                raise PTQ4VMError(
                    f"Expected {name} of the row {self.title!r} by name, got {value!r}. Leave it "
                    "out."
                )
        if self.checkpoint is not None and (self.start is not None or self.options or self.qconfig):
            raise PTQ4VMError(
                f"Expected the row {self.title!r} with a checkpoint to have no start, options or "
                "qconfig, got one of them. Leave it out."
            )


_RESERVED = (FLOAT, Path(FINAL_CHECKPOINT).stem)
"""Names of the files of the float network and of the result."""
DEFAULT_ROWS = {
    "rtn": Method("round to nearest", options={"learn_rounding": False, "learn_scales": False}),
    "biq": Method("BIQ"),
    "gac": Method("BIQ + GAC", start="biq", options={"flow_weight": 0.0}),
    "ofa": Method("BIQ + GAC + OFA", start="biq"),
}
"""Steps of the paper, by file name."""


def check_rows(rows: Mapping[str, Method]) -> dict[str, Method]:
    """Check that rows are well named and start only from earlier rows; return them as a dict.

    Raises:
        PTQ4VMError: There are no rows, a name is not an identifier, a row starts from one that
            doesn't come before it, or a row with a start changes the qconfig.
    """
    seen: dict[str, Method] = {}
    for name, row in rows.items():
        if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED:
            raise PTQ4VMError(
                f"Expected rows named by letters, digits and _, other than {', '.join(_RESERVED)}, "
                f"got {name!r}. Their files are named so."
            )
        if row.start is not None and row.start not in seen:
            known = ", ".join(seen) or "none"
            raise PTQ4VMError(
                f"Expected row {name} to start from a row before it ({known}), got {row.start!r}."
            )
        if row.start is not None and row.qconfig:
            raise PTQ4VMError(
                f"Expected row {name} to keep the qconfig of {row.start}, got changes. Remove "
                "qconfig."
            )
        seen[name] = row
    if not seen:
        raise PTQ4VMError(
            "Expected at least one row, got none. Leave rows out for the paper's steps."
        )
    return seen
