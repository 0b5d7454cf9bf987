"""GAC and OFA: global affine calibration with optical flow assistance, as a Lightning fit."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor

from ptq4vm.calibration.global_calibration import (
    GlobalLossSettings,
    begin_global_calibration,
    draw_window,
    end_global_calibration,
    global_loss,
)
from ptq4vm.calibration.losses import cosine
from ptq4vm.graph import load_quantized, quantized_layers
from ptq4vm.models import create_model, weights_checksum
from ptq4vm.phases.base import PTQPhase, Scoring, learning_settings
from ptq4vm.quantizers import LatentRounding, cached_weights
from ptq4vm.types import CalibrationClip


class GACModule(PTQPhase):
    """Learns γ and β of every quantized layer, and all activation scales, end to end.

    A step's loss is :func:`~ptq4vm.calibration.global_calibration.global_loss`: the network is
    unrolled over each clip with its own quantized state fed back, and its alpha compared with the
    true one, the float network's, or both. With ``flow_weight`` above 0, the alpha of the previous
    frame, warped along the optical flow, is a temporal prior. γ and β are folded away at the end.

    Args:
        checkpoint: the quantized checkpoint to start from, as block reconstruction writes it.
        weights: the float network's weights, ``official`` or a file: the teacher.
        affine: ``per_channel`` γ and β, or the paper's ``per_layer`` scalars.
        lr: Adam's learning rate for γ, β, log scales and zero points; cosine decay over the fit.
        weight_lr: Adam's learning rate for the weights' codes, in steps of their grids, straight
            through the rounding; each moves by at most one step. 0 keeps the roundings of block
            reconstruction, as the paper does.
        max_grad_norm: gradients are scaled down to this norm.
        window: frames to unroll over, from anywhere in a sequence, beginning with the float
            network's state there; by default the whole sequence from its beginning.
        truth_weight: weight of the alpha loss against the true alpha, or the float network's where
            there is no true one.
        teacher_weight: weight of the alpha loss against the float network's alpha.
        l1_weight: weight of the mean absolute error within an alpha loss.
        mse_weight: weight of the mean squared error within it. The paper's loss is this one alone.
        fgr_weight: weight of the mean absolute foreground error against the float network.
        state_weight: weight of the mean absolute error of the recurrent states against the float
            network's.
        feature_weight: weight of the error of the blocks' feature maps, as a share of their
            variance, against the float network's. It constrains the network where alpha is right
            already, and so on people and places never seen.
        coherence_weight: weight of the squared error of alpha's change between frames, against the
            float network's.
        flow_weight: λ of optical flow assistance; 0 turns it off.
        average: decay of an exponential moving average, over the steps, of all that is learned; the
            result is the average. 0 keeps the last step. Codes that oscillate between two values
            come to rest at the more frequent one.
        output: path of the quantized checkpoint.
        flow: ``dis`` needs no weights, ``raft`` needs ``flow_weights``.
        flow_weights: torchvision RAFT weights.
        scoring: ``float`` or ``png8`` metrics.

    Raises:
        PTQ4VMError: there is no alpha to learn from; the checkpoint can't be read.
    """

    def __init__(
        self,
        checkpoint: Path,
        weights: str = "official",
        affine: Literal["per_channel", "per_layer"] = "per_channel",
        lr: float = 1e-3,
        weight_lr: float = 0.0,
        max_grad_norm: float = 1.0,
        window: int | None = None,
        truth_weight: float = 0.5,
        teacher_weight: float = 0.5,
        l1_weight: float = 1.0,
        mse_weight: float = 5.0,
        fgr_weight: float = 0.1,
        state_weight: float = 0.02,
        feature_weight: float = 0.0,
        coherence_weight: float = 0.0,
        flow_weight: float = 0.05,
        average: float = 0.0,
        output: Path | None = None,
        flow: Literal["dis", "raft"] = "dis",
        flow_weights: Path | None = None,
        scoring: Scoring = "float",
    ) -> None:
        settings = learning_settings(locals())
        loss_settings = GlobalLossSettings(
            truth_weight, teacher_weight, l1_weight, mse_weight, fgr_weight, state_weight,
            feature_weight, coherence_weight, flow_weight,
        )  # fmt: skip
        network, qconfig = load_quantized(Path(checkpoint))
        settings["start"] = weights_checksum(network)
        teacher = create_model(
            network.name, weights=weights, downsample_ratio=network.downsample_ratio
        )
        super().__init__(network, qconfig, teacher, output, flow, flow_weights, scoring, settings)
        self.loss_settings = loss_settings
        self.lr, self.weight_lr, self.max_grad_norm = lr, weight_lr, max_grad_norm
        self.window, self.average = window, average
        begin_global_calibration(
            network, self.teacher, per_channel=affine == "per_channel", learn_codes=weight_lr > 0
        )

    def configure_optimizers(self) -> Any:  # noqa: D102
        layers = quantized_layers(self.network).values()
        roundings = [layer.weight_quantizer.rounding for layer in layers]
        latents = [one.latent for one in roundings if isinstance(one, LatentRounding)]
        known = set(map(id, latents))
        others = [p for p in self.network.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": others, "lr": self.lr}, {"params": latents, "lr": self.weight_lr}]
        # Fused: on CPU three times as fast.
        optimizer = torch.optim.Adam([group for group in groups if group["params"]], fused=True)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step / total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """Return the callback that averages the steps."""
        return (
            [EMAWeightAveraging(use_buffers=False, decay=self.average)] if self.average > 0 else []
        )

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Scale the gradients down to ``max_grad_norm``, so no single clip moves scales far."""
        self.clip_gradients(optimizer, self.max_grad_norm, "norm")

    def training_step(self, batch: CalibrationClip, batch_idx: int) -> Tensor:
        """Return the loss of a window of the clips, (B, T, ...)."""
        # Fixed weights need no quantization, and so no cache.
        learning = quantized_layers(self.network).values() if self.weight_lr > 0 else ()
        # Seeded by step: a resumed fit draws the same frames.
        frames = draw_window(batch.src.shape[1], self.window, self.global_step)
        with cached_weights(learning):
            loss = global_loss(self.network, self.teacher, batch, self.loss_settings, frames)
        self.log("gac/loss", loss, prog_bar=True)
        return loss

    def on_fit_end(self) -> None:
        """Absorb γ and β and write the quantized checkpoint."""
        end_global_calibration(self.network)
        made = {"flow": self.loss_settings.flow_weight, "start": self._settings["start"]}
        self._save({"phase": "gac", **made})
