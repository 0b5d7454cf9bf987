"""Checkpoints of a fit: written whole or not at all, read without running anything in them."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ptq4vm.atomic_io import written_whole
from ptq4vm.errors import PTQ4VMError, differences
from ptq4vm.models.weights import load_plain

CONTRACT = "ptq4vm"
"""Where a checkpoint of a fit says how it was made."""


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, for files on local disks.

    Lightning's own writes to the system's folder for temporary files and then copies where that is another disk: a
    process killed meanwhile leaves half a file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write the file beside its place, then move it there.

        Raises:
            PTQ4VMError: it can't be written; what was there before stays.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        # Through memory: torch.save says a full disk in a way of its own.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with written_whole(Path(path)) as part:
            part.write_bytes(buffer.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and plain values, whatever ``weights_only`` says.

        Raises:
            PTQ4VMError: it is damaged, holds more than that, or is no checkpoint of Lightning's.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, True)
        if not Path(path).is_file():
            raise PTQ4VMError(
                f"Expected a checkpoint of a fit, got {path}, which is not there. Check the path."
            )
        remedy = "Go on from another checkpoint, or begin anew."
        checkpoint = load_plain(Path(path), "a checkpoint of a fit", remedy, map_location)
        kinds = {"state_dict": dict, "epoch": int, "loops": dict}
        if not isinstance(checkpoint, dict) or not all(
            isinstance(checkpoint.get(k), t) for k, t in kinds.items()
        ):
            raise PTQ4VMError(
                f"Expected a checkpoint of a fit, got {path}, which holds something else. {remedy}"
            )
        return checkpoint


def require_contract(
    checkpoint: Mapping[str, Any], now: Mapping[str, Any], path: str | Path | None, *, fitting: bool
) -> None:
    """See that a checkpoint of a fit was made with these settings, data and weights.

    Args:
        checkpoint: as it was read.
        now: what it should have been made with.
        path: where it lies, to be named.
        fitting: go on with the fit; else its network is only evaluated, and what it says beyond
            ``now`` is passed over.

    Raises:
        PTQ4VMError: it was made with others, or doesn't say with which.
    """
    made = checkpoint.get(CONTRACT)
    if not isinstance(made, dict):
        raise PTQ4VMError(
            f"Expected {path} to say with which settings, data and weights it was made, got a "
            "checkpoint of an earlier version or of another program. Begin the fit anew, without a "
            "checkpoint."
        )
    if not fitting:
        made = {name: value for name, value in made.items() if name in now}
    if changed := differences(made, now):
        raise PTQ4VMError(
            f"Expected {path} to be made with these settings, data and weights, got a checkpoint "
            f"of others ({changed}). Give what it was made with, or begin anew without a checkpoint."
        )
    if fitting and now["max_steps"] != -1:
        raise PTQ4VMError(
            f"Expected a fit that is as long as its epochs, got max_steps = {now['max_steps']}: "
            "when such a fit goes on, Lightning counts its epochs otherwise. Begin anew, with "
            "max_epochs and steps_per_epoch."
        )


def reached(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """The epoch that a fit goes on with from a checkpoint, and how many of its batches are done.

    Raises:
        PTQ4VMError: it doesn't say.
    """
    try:
        loops = checkpoint["loops"]["fit_loop"]
        epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
        epoch, done = int(epochs["processed"]), int(batches["current"]["processed"])
        if epochs["started"] == epoch:  # written between epochs
            return epoch, 0
        # Where its last batch was done too, Lightning goes on with the next epoch.
        finished = batches["is_last_batch"] and done == batches["current"]["ready"]
        return (epoch + 1, 0) if finished else (epoch, done)
    except (KeyError, TypeError, ValueError) as error:
        raise PTQ4VMError(
            f"Expected a checkpoint that says how far its fit was, got one without ({error!r}). "
            "Begin the fit anew."
        ) from error
