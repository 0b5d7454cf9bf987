"""The rows of the table: each is a method, what it starts from and what it does otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ptq4vm.errors import PTQ4VMError


@dataclass(frozen=True)
class Method:
    """One method: block reconstruction, or global calibration of what another row left behind.

    Args:
        title: its name in the table.
        start: the row whose network global calibration goes on with; block reconstruction if not given.
        options: of that phase, over those that the run gives to all.
        qconfig: changes of the run's qconfig; only where there is no ``start``.
    """

    title: str
    start: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    qconfig: dict[str, Any] = field(default_factory=dict)


DEFAULT_ROWS = {
    "rtn": Method("round to nearest", options={"learn_rounding": False, "learn_scales": False}),
    "biq": Method("BIQ"),
    "gac": Method("BIQ + GAC", start="biq", options={"flow_weight": 0.0}),
    "ofa": Method("BIQ + GAC + OFA", start="biq"),
}
"""The paper's steps, by the name of their files."""


def check_rows(rows: Mapping[str, Method]) -> dict[str, Method]:
    """The rows, seen to follow from each other.

    Raises:
        PTQ4VMError: there are none, one starts from a row that doesn't come before it, or changes its qconfig.
    """
    seen: dict[str, Method] = {}
    for name, row in rows.items():
        if not name.isidentifier():
            raise PTQ4VMError(
                f"Expected rows named by letters, digits and _, got {name!r}. Their files are named so."
            )
        if row.start is not None and row.start not in seen:
            known = ", ".join(seen) or "none"
            raise PTQ4VMError(
                f"Expected row {name} to start from a row before it ({known}), got {row.start!r}."
            )
        if row.start is not None and row.qconfig:
            raise PTQ4VMError(
                f"Expected row {name} to keep the qconfig of {row.start}, got changes. Remove qconfig."
            )
        seen[name] = row
    if not seen:
        raise PTQ4VMError(
            "Expected at least one row, got none. Leave rows out for the paper's steps."
        )
    return seen
