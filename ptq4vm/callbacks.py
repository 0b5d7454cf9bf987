"""What a run shows and keeps while it runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as L
import numpy as np

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import block_layers
from ptq4vm.phases import BlockReconstructionModule
from ptq4vm.types import MattingClip, MattingOutput


class AlphaWriter(L.Callback):
    """Writes the mattes that are scored or predicted, as 8-bit PNG, rounded: ``<set>/<clip>/pha/<frame>.png``.

    Args:
        folder: where to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def on_test_batch_end(  # noqa: D102
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: MattingClip, *_: Any
    ) -> None:
        self._write(outputs, batch)

    def on_predict_batch_end(  # noqa: D102
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: MattingClip, *_: Any
    ) -> None:
        self._write(outputs, batch)

    def _write(self, output: MattingOutput | None, clip: MattingClip) -> None:
        if output is None:
            return
        folder = self.folder / clip.name / "pha"
        start = int(clip.start)
        names = clip.frames or [f"{index:04d}" for index in range(start, start + clip.src.shape[1])]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, alpha in zip(names, output.pha[0, :, 0].cpu().numpy(), strict=True):
                png = cv2.imencode(".png", np.rint(alpha * 255).astype(np.uint8))[1]
                (folder / f"{name}.png").write_bytes(png.tobytes())
        except OSError as error:
            raise PTQ4VMError(f"Can't write mattes to {folder}: {error}. Choose another folder.") from error


class WorkProgress(L.Callback):
    """Tells how much work is done, in frames that went forward once, so that different phases add up.

    A frame that goes forward and backward counts as three; a step of block reconstruction counts its block's share.

    Args:
        advance: called with the work done since the last call.
        macs: multiply-accumulates by layer, which give the blocks' shares.
    """

    def __init__(self, advance: Callable[[float], None], macs: dict[str, int]) -> None:
        self.advance, self.macs = advance, macs

    def _share(self, module: L.LightningModule) -> float:
        if not isinstance(module, BlockReconstructionModule):
            return 1.0
        names = block_layers(module.network, module.block)
        return sum(self.macs.get(name, 0) for name in names) / max(1, sum(self.macs.values()))

    def on_train_batch_end(  # noqa: D102
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        frames = batch.src.shape[0] * batch.src.shape[1]
        learns = not isinstance(pl_module, BlockReconstructionModule) or pl_module.learns
        self.advance(3.0 * frames * self._share(pl_module) if learns else 0.0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: D102
        if isinstance(pl_module, BlockReconstructionModule):
            clips = pl_module.calibration
            self.advance(3.0 * clips.num_sequences * clips.seq_length * self._share(pl_module))

    def on_test_batch_end(  # noqa: D102
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: MattingClip, *_: Any
    ) -> None:
        self.advance(float(batch.src.shape[1]))


class AlphaStrips(L.Callback):
    """Logs mattes of the first clips as images, to loggers that take images (Weights & Biases).

    Args:
        clips: how many.
    """

    def __init__(self, clips: int = 2) -> None:
        self.clips = clips
        self._logged = 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: D102
        self._logged = 0

    def on_validation_batch_end(  # noqa: D102
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: MattingClip, *_: Any
    ) -> None:
        if not isinstance(outputs, MattingOutput) or int(batch.start) != 0 or self._logged >= self.clips:
            return
        self._logged += 1
        from lightning.pytorch.loggers import WandbLogger  # imports wandb, which not every run needs

        strip = [batch.src[0, -1], outputs.pha[0, -1].expand(3, -1, -1)]
        image = np.concatenate([x.clamp(0, 1).permute(1, 2, 0).cpu().numpy() for x in strip], axis=1)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("val/alpha", [image], caption=[batch.name])
