"""Checkpoints of a fit: atomic writing, safe reading and contract checks."""

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
"""Key of the contract in a checkpoint."""


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoint plugin of Lightning with atomic writing and safe reading of local files.

    Lightning's own plugin copies from the system's temporary folder if that is on another disk, and
    leaves a partial file if the process is killed meanwhile.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write the checkpoint atomically.

        Raises:
            PTQ4VMError: it can't be written; an existing file is kept.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        # Through memory: torch.save reports a full disk with an exception of its own.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with written_whole(Path(path)) as part:
            part.write_bytes(buffer.getbuffer())

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values, regardless of ``weights_only``.

        Raises:
            PTQ4VMError: the file doesn't exist, is damaged, has other content, or isn't a Lightning
                checkpoint.
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
    """Check that a checkpoint has the contract of this fit: settings, data and weights.

    Args:
        checkpoint: content of the checkpoint.
        now: expected contract.
        path: path of the checkpoint, for messages.
        fitting: True to resume the fit; False to evaluate its network, where only the keys of
            ``now`` are compared.

    Raises:
        PTQ4VMError: the contract differs or is missing, or a fit limited by max_steps would resume.
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
            f"of others ({changed}). Give what it was made with, or begin anew without a "
            "checkpoint."
        )
    if fitting and now["max_steps"] != -1:
        raise PTQ4VMError(
            f"Expected a fit that is as long as its epochs, got max_steps = {now['max_steps']}: "
            "when such a fit goes on, Lightning counts its epochs otherwise. Begin anew, with "
            "max_epochs and steps_per_epoch."
        )


def reached(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """Return the epoch at which a fit resumes, and the number of its finished batches.

    Raises:
        PTQ4VMError: the checkpoint lacks the progress.
    """
    try:
        loops = checkpoint["loops"]["fit_loop"]
        epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
        epoch, done = int(epochs["processed"]), int(batches["current"]["processed"])
        if epochs["started"] == epoch:  # saved between epochs
            return epoch, 0
        # After the last batch of an epoch, Lightning resumes with the next epoch.
        finished = batches["is_last_batch"] and done == batches["current"]["ready"]
        return (epoch + 1, 0) if finished else (epoch, done)
    except (KeyError, TypeError, ValueError) as error:
        raise PTQ4VMError(
            f"Expected a checkpoint that says how far its fit was, got one without ({error!r}). "
            "Begin the fit anew."
        ) from error
