"""GAC and OFA: global affine calibration with optical flow assistance, as a Lightning fit."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor

from ptq4vm.calibration.block_steps import scale_groups
from ptq4vm.calibration.global_calibration import (
    begin_global_calibration,
    end_global_calibration,
    global_loss,
)
from ptq4vm.calibration.losses import cosine
from ptq4vm.calibration.windows import draw_window
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import load_quantized, quantized_layers
from ptq4vm.models import float_network, weights_checksum
from ptq4vm.models.base import MattingModel
from ptq4vm.phases.base import PTQPhase
from ptq4vm.phases.scoring import Scoring
from ptq4vm.phases.settings import GACSettings
from ptq4vm.quantizers import LatentRounding, cached_weights
from ptq4vm.types import CalibrationClip


def require_truth(settings: GACSettings, data: VideoMattingDataModule) -> None:
    """Check that a loss against the true alpha is not asked for where labels are excluded.

    Raises:
        PTQ4VMError: it is.
    """
    if settings.truth_weight > 0 and not data.labels:
        raise PTQ4VMError(
            f"Expected truth_weight 0 without labels, got {settings.truth_weight:g} with "
            "data.labels false. Set gac.truth_weight to 0, or leave data.labels out."
        )


class GACModule(PTQPhase):
    """Learns γ and β of every quantized layer, and all activation scales, end to end.

    A step's loss is :func:`~ptq4vm.calibration.global_calibration.global_loss`: the network is
    unrolled over each clip with its own quantized state fed back, and its alpha compared with the
    true one, the float network's, or both. With ``flow_weight`` above 0, the alpha of the previous
    frame, warped along the optical flow, is a temporal prior. γ and β are folded away at the end.

    Args:
        checkpoint: the quantized checkpoint to start from, as block reconstruction writes it.
        weights: the teacher: ``official``, a file of float weights, or the float network itself.
        output: path of the quantized checkpoint.
        scoring: ``float`` or ``png8`` metrics.
        settings: fields of :class:`GACSettings`.

    Raises:
        PTQ4VMError: there is no alpha to learn from; the checkpoint can't be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import lightning.pytorch as L
        >>> from ptq4vm import VideoMattingDataModule, load_model
        >>> from ptq4vm.phases import BlockReconstructionModule, GACModule
        >>> folder = Path(tempfile.mkdtemp())
        >>> data = VideoMattingDataModule(num_sequences=1, seq_length=2, height=64, width=96)
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> quiet |= {"accelerator": "cpu", "limit_val_batches": 0, "enable_checkpointing": False}
        >>> quiet |= {"default_root_dir": folder}
        >>> start, end = folder / "biq.safetensors", folder / "gac.safetensors"
        >>> nearest = {"learn_rounding": False, "learn_scales": False}
        >>> phase = BlockReconstructionModule(output=start, **nearest)
        >>> L.Trainer(max_epochs=phase.epochs, **quiet).fit(phase, datamodule=data)
        >>> phase = GACModule(start, output=end, flow_weight=0.0)
        >>> L.Trainer(max_epochs=1, **quiet).fit(phase, datamodule=data)
        >>> load_model(end).qconfig.bits
        'W8A8'
    """

    settings: GACSettings

    def __init__(
        self,
        checkpoint: Path,
        weights: str | MattingModel = "official",
        output: Path | None = None,
        scoring: Scoring = "float",
        **settings: Any,
    ) -> None:
        own = GACSettings(**settings)
        network, qconfig = load_quantized(Path(checkpoint))
        self._start = weights_checksum(network)
        teacher = (
            float_network(network.name, weights, network.downsample_ratio)
            if isinstance(weights, str)
            else float_network(weights)
        )
        if (teacher.name, teacher.downsample_ratio) != (network.name, network.downsample_ratio):
            raise PTQ4VMError(
                f"Expected the float network of {checkpoint}, {network.name} at ratio "
                f"{network.downsample_ratio:g}, got {teacher.name} at {teacher.downsample_ratio:g}."
            )
        super().__init__(network, qconfig, teacher, own, output, scoring)
        self._trains = False
        begin_global_calibration(
            network,
            self.teacher,
            per_channel=own.affine == "per_channel",
            learn_codes=own.weight_lr > 0,
            scale_bias=own.scale_bias,
        )

    def contract(self, *args: Any) -> dict[str, Any]:  # noqa: D102
        return {**super().contract(*args), "start": self._start}

    def check(self, trainer: L.Trainer, data: VideoMattingDataModule, *args: Any) -> str | None:
        """Check the labels too; see :meth:`PTQPhase.check`."""
        require_truth(self.settings, data)
        return super().check(trainer, data, *args)

    def configure_optimizers(self) -> Any:  # noqa: D102
        layers = quantized_layers(self.network).values()
        roundings = [layer.weight_quantizer.rounding for layer in layers]
        latents = [one.latent for one in roundings if isinstance(one, LatentRounding)]
        quantizers = [one for layer in layers for one in layer.activation_quantizers]
        lr, absolute = self.settings.lr, self.settings.absolute_scales
        groups = scale_groups(quantizers, lr, absolute=absolute)
        known = {id(p) for p in latents} | {id(p) for group in groups for p in group["params"]}
        others = [p for p in self.network.parameters() if p.requires_grad and id(p) not in known]
        groups += [{"params": others, "lr": lr}, {"params": latents, "lr": self.settings.weight_lr}]
        # Fused: on CPU three times as fast.
        optimizer = torch.optim.Adam([group for group in groups if group["params"]], fused=True)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step / total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """Return the callback that averages the steps."""
        return (
            [EMAWeightAveraging(use_buffers=False, decay=self.settings.average)]
            if self.settings.average > 0
            else []
        )

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Scale the gradients down to ``max_grad_norm``, so no single clip moves scales far."""
        self.clip_gradients(optimizer, self.settings.max_grad_norm, "norm")

    def training_step(self, batch: CalibrationClip, batch_idx: int) -> Tensor:
        """Return the loss of a window of the clips, (B, T, ...)."""
        # Fixed weights need no quantization, and so no cache.
        learning = quantized_layers(self.network).values() if self.settings.weight_lr > 0 else ()
        # Seeded by step: a resumed fit draws the same frames.
        window = draw_window(batch, self.settings.window, self.global_step)
        with cached_weights(learning):
            loss = global_loss(self.network, self.teacher, window, self.settings)
        self.log("gac/loss", loss, prog_bar=True)
        return loss

    def on_train_start(self) -> None:  # noqa: D102
        self._trains = True

    def on_fit_end(self) -> None:
        """Absorb γ and β and write the quantized checkpoint."""
        if not self._trains:
            # Killed between the last step and this: Lightning skips training, and its end.
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, EMAWeightAveraging):
                    callback.on_train_end(self.trainer, self)
        end_global_calibration(self.network)
        made = {"flow": self.settings.flow_weight, "start": self._start}
        self._save({"phase": "gac", **made})
