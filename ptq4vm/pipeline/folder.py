"""Run folder: ownership, settings, and checks that its files belong to this run."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ptq4vm import distributed
from ptq4vm.atomic_io import write_json
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.data.settings import without_folders
from ptq4vm.errors import PTQ4VMError, differences
from ptq4vm.graph import load_quantized, read_header
from ptq4vm.models import weights_checksum
from ptq4vm.models.base import MattingModel
from ptq4vm.ownership import owned
from ptq4vm.pipeline.record import record_start
from ptq4vm.quantizers import QConfig
from ptq4vm.reading import read_json
from ptq4vm.reporting.runs import RECORD, SETTINGS

_KINDS = {
    "weights": "weights",
    "calibration": "calibration clips",
    "evaluation": "evaluation clips",
    "held_out": "held-out clips",
    "format": "this version's way of reading clips",
}
"""Descriptions of the parts of ``content`` in a run folder's settings."""


class ClaimedFolder:
    """Folder of a run, with its settings and its record.

    Args:
        path: run folder.
        data: calibration and evaluation clips.
    """

    def __init__(self, path: Path, data: VideoMattingDataModule) -> None:
        self.path, self.data = path, data

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Own the folder exclusively inside the context.

        Raises:
            PTQ4VMError: Another run owns the folder.
        """
        with ExitStack() as stack:
            distributed.once(lambda: stack.enter_context(owned(self.path, folder=True)))
            yield

    def claim(self, settings: dict[str, Any], teacher: MattingModel) -> None:
        """Write the settings to a new folder, or check that an existing folder has the same.

        Weights and clips are compared by content. Their paths may change and are then updated.

        Raises:
            PTQ4VMError: The folder has other settings, weights or clips.
        """
        path = self.path / SETTINGS
        content = {"weights": weights_checksum(teacher), **self.data.content()}
        settings = _json_values({**settings, "data": self.data.settings(), "content": content})
        before = read_json(path) if path.is_file() else None
        if before is not None:
            self._require_same(before, settings)
        if before != settings:
            write_sorted_json(path, settings)

    def _require_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        remedy = "Choose another --output, or remove the folder."
        if changed := differences(_without_places(before), _without_places(now)):
            raise PTQ4VMError(
                f"Expected {self.path} to be new or a run with these settings, got another "
                f"configuration ({changed}). {remedy}"
            )
        if not isinstance(held := before.get("content"), dict):
            raise PTQ4VMError(
                f"Expected {self.path} to say which weights and clips it was begun with, got a "
                f"run of an earlier version: whether these are the same can't be known. {remedy}"
            )
        told = ({kind: one.get(k) for k, kind in _KINDS.items()} for one in (held, now["content"]))
        if changed := differences(*told):
            raise PTQ4VMError(
                f"Expected the weights and clips that {self.path} was begun with, wherever they "
                f"lie, got others ({changed}). Put the former ones back, choose another --output, "
                "or remove the folder."
            )

    def record(self, teacher: MattingModel, trainer: dict[str, Any]) -> None:
        """Record seed, weights, data and trainer of this start.

        Args:
            teacher: float network.
            trainer: options of Lightning's Trainer.
        """
        facts = {
            "seed": self.data.seed,
            "weights_checksum": weights_checksum(teacher),
            "data": self.data.settings(),
            "trainer": {key: value for key, value in trainer.items() if value is not None},
        }
        record_start(self.path, _json_values(facts))

    def facts(self) -> dict[str, Any]:
        """Return the settings and the record in one dict."""
        return {**read_json(self.path / SETTINGS), **read_json(self.path / RECORD)}


def require_row(path: Path, start: Path | None, qconfig: QConfig, plan: QConfig) -> None:
    """Check that the checkpoint of a row was made by this run.

    Args:
        path: checkpoint of the row.
        start: checkpoint from which the row starts, if any.
        qconfig: settings in the checkpoint.
        plan: expected settings of a row without ``start``.

    Raises:
        PTQ4VMError: One of the two files was not made by this run.
    """
    remedy = f"Put the file back, or remove {path} and what was made of it."
    changed = "" if start is not None else differences(qconfig.to_dict(), plan.to_dict())
    if changed:
        raise PTQ4VMError(
            f"Expected {path} to have this run's settings, got others ({changed}). {remedy}"
        )
    if start is not None:
        made = read_header(path)["made"]
        if made.get("start") != weights_checksum(load_quantized(start)[0]):
            raise PTQ4VMError(
                f"Expected {path} to start from {start} as it is now, got one that started "
                f"from another. {remedy}"
            )


def write_sorted_json(path: Path, value: Any) -> None:
    """Write a JSON file with sorted keys; values that JSON lacks are converted."""
    write_json(path, value, default=str, sort_keys=True)


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without paths, whose content is compared instead."""
    data = settings.get("data")
    if isinstance(data, dict):
        data = without_folders(data)
    others = {name: value for name, value in settings.items() if name not in ("weights", "content")}
    return {**others, "data": data}


def _json_values(value: dict[str, Any]) -> Any:
    """Return the value as it will be read back from a JSON file."""
    return json.loads(json.dumps(value, default=str))
