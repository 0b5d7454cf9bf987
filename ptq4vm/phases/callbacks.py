"""Lightning callbacks: mattes, progress, logging and interruption."""

import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning.pytorch as L
import numpy as np
import torch
import yaml
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from ptq4vm.errors import PTQ4VMError, remedy
from ptq4vm.graph import quantized_layers
from ptq4vm.phases import BlockReconstructionModule
from ptq4vm.phases.base import PTQPhase
from ptq4vm.types import MattingClip, MattingOutput
from ptq4vm.video import open_writer


class AlphaWriter(L.Callback):
    """Writer of scored or predicted mattes as 8-bit PNGs, ``<set>/<clip>/pha/<frame>.png``.

    Alpha is rounded to the nearest of the 256 levels.

    Args:
        folder: output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def _write(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: MattingOutput | None,
        batch: MattingClip,
        *_: Any,
    ) -> None:
        if outputs is None:
            return
        folder = self.folder / batch.name / "pha"
        start = int(batch.start)
        names = batch.frames or [
            f"{index:04d}" for index in range(start, start + batch.src.shape[1])
        ]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, alpha in zip(names, outputs.pha[0, :, 0].cpu().numpy(), strict=True):
                png = cv2.imencode(".png", np.rint(alpha * 255).astype(np.uint8))[1]
                (folder / f"{name}.png").write_bytes(png.tobytes())
        except OSError as error:
            raise PTQ4VMError(
                f"Can't write mattes to {folder}: {error}. {remedy(error)}"
            ) from error

    on_test_batch_end = on_predict_batch_end = _write  # type: ignore[assignment]


class PromptStop(L.Callback):
    """Immediate end of a run on SIGTERM, by the handler installed before Lightning's.

    Lightning's handler first waits for the other ranks, and hangs if they don't get the signal.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: D102
        self._handler = signal.getsignal(signal.SIGTERM)

    def _restore(self, *_: Any) -> None:
        if callable(self._handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)

    on_train_start = on_validation_start = _restore  # type: ignore[assignment]
    on_test_start = on_predict_start = _restore  # type: ignore[assignment]


class WorkProgress(L.Callback):
    """Progress in forward passes of frames, a unit that adds up over phases.

    A forward and backward pass of a frame counts as 3. In block reconstruction, passes are weighted
    with the block's share of the multiply-accumulates.

    Args:
        advance: callback, called with the work done since the last call.
        macs: multiply-accumulates by layer name.
    """

    def __init__(self, advance: Callable[[float], None], macs: dict[str, int]) -> None:
        self.advance, self.macs = advance, macs

    def _share(self, module: BlockReconstructionModule) -> float:
        names = module.layers[module.block.name]
        return sum(self.macs.get(name, 0) for name in names) / max(1, sum(self.macs.values()))

    def on_train_batch_end(  # noqa: D102
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not isinstance(pl_module, BlockReconstructionModule):
            self.advance(3.0 * batch.src.shape[0] * batch.src.shape[1])
        elif pl_module.learns:
            self.advance(
                3.0 * len(batch) * pl_module.calibration.seq_length * self._share(pl_module)
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: D102
        if isinstance(pl_module, BlockReconstructionModule):
            clips = pl_module.calibration
            self.advance(3.0 * clips.num_sequences * clips.seq_length * self._share(pl_module))

    def on_test_batch_end(  # noqa: D102
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: MattingClip,
        *_: Any,
    ) -> None:
        self.advance(float(batch.src.shape[1]))


class AlphaStrips(L.Callback):
    """Log of the first clips' mattes as picture and video: source, float and quantized alpha.

    Pictures go to Weights & Biases and TensorBoard, videos to Weights & Biases.

    Args:
        clips: number of clips.
        video: also log the first chunk of each clip as a video.
    """

    def __init__(self, clips: int = 2, video: bool = True) -> None:
        self.clips, self.video = clips, video
        self._logged = 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: D102
        self._logged = 0

    def on_validation_batch_end(  # noqa: D102
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: MattingClip,
        *_: Any,
    ) -> None:
        # Only rank 0 logs, and a rank without clips has no outputs.
        if not isinstance(pl_module, PTQPhase) or outputs is None or not trainer.is_global_zero:
            return
        if int(batch.start) != 0 or self._logged >= self.clips:
            return
        self._logged += 1
        with torch.no_grad():
            teacher = pl_module.teacher.unroll(batch.src).pha
        parts = (batch.src, teacher.expand_as(batch.src), outputs.pha.expand_as(batch.src))
        joined = torch.cat([part[0] for part in parts], dim=3).clamp(0, 1)
        frames = (joined * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                name = f"val/alpha/{batch.name}"
                logger.experiment.add_image(
                    name, frames[-1], trainer.global_step, dataformats="HWC"
                )
            elif isinstance(logger, WandbLogger):
                caption = f"{batch.name}: source, float, quantized"
                logger.log_image("val/alpha", [frames[-1]], caption=[caption])
                if self.video:
                    path = (
                        Path(logger.experiment.dir)
                        / f"{batch.name.replace('/', '-')}-{trainer.global_step}.mp4"
                    )
                    with open_writer(path, (frames.shape[1], frames.shape[2])) as writer:
                        for frame in frames:
                            writer.write(frame)
                    logger.log_video("val/video", [str(path)], caption=[caption], format=["mp4"])


class CalibrationHistograms(L.Callback):
    """Histograms of activation ranges, γ and β, logged after each epoch.

    Block reconstruction logs the epoch's block, global calibration all layers. A range is the log2
    of scale times number of steps, per tensor or per channel.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: D102
        if not isinstance(pl_module, PTQPhase) or not trainer.is_global_zero:
            return
        layers = quantized_layers(pl_module.network)
        if isinstance(pl_module, BlockReconstructionModule):
            layers = pl_module.layers[pl_module.block.name]
        values: dict[str, list[torch.Tensor]] = {}
        for layer in layers.values():
            for quantizer in layer.activation_quantizers:
                codes = quantizer.spec.quant_max - quantizer.spec.quant_min
                values.setdefault("activation range, log2", []).append(
                    (quantizer.scale * codes).log2().flatten()
                )
            if layer.affine is not None:
                values.setdefault("gamma", []).append(layer.affine.log_scale.exp())
                values.setdefault("beta", []).append(layer.affine.shift)
        joined = {name: torch.cat(parts).tolist() for name, parts in values.items()}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, numbers in joined.items():
                    logger.experiment.add_histogram(
                        f"calibration/{name}", np.array(numbers), trainer.global_step
                    )
            elif isinstance(logger, WandbLogger):
                import wandb  # optional dependency

                histograms = {
                    f"calibration/{name}": wandb.Histogram(numbers)
                    for name, numbers in joined.items()
                }
                logger.experiment.log({**histograms, "trainer/global_step": trainer.global_step})


class ResultLog(L.Callback):
    """Log of a finished run to Weights & Biases: table, pictures, report, quantized networks."""

    def on_run_end(
        self,
        loggers: Sequence[Logger],
        cells: Sequence[Sequence[str]],
        pictures: dict[str, Path],
        models: list[Path],
    ) -> None:
        """Log the results; called by the pipeline at the end of a run.

        Args:
            loggers: loggers; only Weights & Biases loggers are used.
            cells: table cells, with the column names in the first row.
            pictures: .png and .html files by name.
            models: quantized checkpoints, logged as artifacts.
        """
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                import wandb  # optional dependency

                shown: dict[str, Any] = {
                    name: wandb.Html(path.read_text())
                    if path.suffix == ".html"
                    else wandb.Image(str(path))
                    for name, path in pictures.items()
                }
                shown["table"] = wandb.Table(
                    columns=list(cells[0]), data=[list(row) for row in cells[1:]]
                )
                logger.experiment.log(shown)
                for path in models:
                    artifact = wandb.Artifact(f"{path.parent.name}-quantized", type="model")
                    artifact.add_file(str(path))
                    logger.experiment.log_artifact(artifact)


class LoggedConfig(SaveConfigCallback):
    """Resolved configuration, logged and written when the work starts, after all checks.

    A rejected run leaves the configuration of the previous run unchanged. The configuration of a
    fit has no ``ckpt_path``: running it again starts a new fit.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Do nothing: the configuration is written when the work starts."""

    def on_train_start(  # noqa: D102
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> None:
        self.config = self.config.clone()
        self.config.pop("ckpt_path", None)
        super().setup(trainer, pl_module, "fit")

    def on_validation_start(  # noqa: D102
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            super().setup(trainer, pl_module, "validate")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: D102
        super().setup(trainer, pl_module, "test")

    def on_predict_start(  # noqa: D102
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> None:
        super().setup(trainer, pl_module, "predict")

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: D102
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
