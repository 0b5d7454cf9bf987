"""Checkpoints of a fit: written whole or not at all, read without running anything in them."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models.weights import load_plain
from ptq4vm.writing import written_whole


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, for files on local disks.

    Lightning's own writes to the system's folder for temporary files and then copies where that is another disk: a
    process killed meanwhile leaves half a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
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

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Tensors and plain values, whatever ``weights_only`` says.

        Raises:
            PTQ4VMError: it is damaged, holds more than that, or is no checkpoint of Lightning's.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, map_location, True)
        if not Path(path).is_file():
            raise PTQ4VMError(f"Expected a checkpoint of a fit, got {path}, which is not there. Check the path.")
        remedy = "Go on from another checkpoint, or begin anew."
        checkpoint = load_plain(Path(path), "a checkpoint of a fit", remedy, map_location)
        kinds = {"state_dict": dict, "epoch": int, "loops": dict}
        if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(k), t) for k, t in kinds.items()):
            raise PTQ4VMError(f"Expected a checkpoint of a fit, got {path}, which holds something else. {remedy}")
        return checkpoint
