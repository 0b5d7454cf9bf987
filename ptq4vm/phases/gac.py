"""GAC and OFA: global affine calibration with optical flow assistance, as a Lightning fit."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor

from ptq4vm.calibration.losses import alpha_loss, cosine, feature_loss, temporal_loss
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import load_quantized, quantized_layers, run_blocks
from ptq4vm.models import create_model, weights_checksum
from ptq4vm.phases.base import PTQPhase, Scoring, learning_settings
from ptq4vm.quantizers import cached_weights, clamp_ste
from ptq4vm.types import CalibrationClip


class GACModule(PTQPhase):
    """Learns scale and shift (γ, β) of every quantized layer, and all activation scales, over the whole network.

    The network is unrolled over each calibration clip with its own quantized state fed back; the loss is on alpha,
    against the truth, the float network's alpha, or both. With ``flow_weight`` above 0, optical flow assists: the
    prediction of the frame before, warped along the flow, is a temporal prior. γ and β fold away afterwards.

    Args:
        checkpoint: the quantized checkpoint to start from, as block reconstruction writes it.
        weights: the float network's weights, ``official`` or a file: the teacher.
        affine: ``per_channel`` γ and β, or the paper's ``per_layer`` scalars.
        lr: Adam's learning rate for γ, β, log scales and zero points; cosine decay over the fit.
        weight_lr: its learning rate for the weights' codes, in steps of their grids, straight through the rounding;
            each moves by at most one step. 0 keeps the roundings of block reconstruction, as the paper does.
        max_grad_norm: gradients are scaled down to this norm.
        window: frames to unroll over, from anywhere in a sequence, beginning with the float network's state there; the
            whole sequence from its beginning if not given.
        truth_weight: weight of the alpha loss against the true alpha, or the float network's where nobody knows it.
        teacher_weight: weight of the alpha loss against the float network's alpha.
        l1_weight: weight of the mean absolute error within an alpha loss.
        mse_weight: weight of the mean squared error within it. The paper's loss is this one alone.
        fgr_weight: weight of the mean absolute foreground error against the float network.
        state_weight: weight of the mean absolute error of the recurrent states against the float network's.
        feature_weight: weight of the error of the blocks' feature maps, as a share of their variance, against the float
            network's. It says what to do where alpha is right already, and so about people and places never seen.
        coherence_weight: weight of the squared error of alpha's change between frames, against the float network's.
        flow_weight: λ of optical flow assistance; 0 turns it off.
        average: what is kept at the end is an exponential moving average over the steps of all that learns, with this
            decay; 0 keeps the last step. Codes that learning throws to and fro so come to rest where they mostly were.
        output: where the quantized checkpoint goes.
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
        if truth_weight <= 0 and teacher_weight <= 0:
            raise PTQ4VMError(
                "Expected truth_weight or teacher_weight above 0, got neither. Set one of them."
            )
        network, qconfig = load_quantized(Path(checkpoint))
        settings["start"] = weights_checksum(network)
        teacher = create_model(
            network.name, weights=weights, downsample_ratio=network.downsample_ratio
        )
        super().__init__(network, qconfig, teacher, output, flow, flow_weights, scoring, settings)
        self.lr, self.weight_lr, self.max_grad_norm, self.window = (
            lr,
            weight_lr,
            max_grad_norm,
            window,
        )
        self.truth_weight, self.teacher_weight = truth_weight, teacher_weight
        self.l1_weight, self.mse_weight = l1_weight, mse_weight
        self.fgr_weight, self.state_weight, self.flow_weight = fgr_weight, state_weight, flow_weight
        self.feature_weight, self.coherence_weight = feature_weight, coherence_weight
        self.average = average
        for name, layer in quantized_layers(network).items():
            layer.start_affine(per_channel=affine == "per_channel")
            for quantizer in layer.activation_quantizers:
                quantizer.log_scale.requires_grad_(True)
                quantizer.offset.requires_grad_(quantizer.spec.grid == "affine")
            if weight_lr > 0:
                floats = self._teacher[0].get_submodule(name).weight
                layer.weight_quantizer.start_latent(layer.weight, floats)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:  # noqa: D102
        latents = [
            layer.weight_quantizer.latent for layer in quantized_layers(self.network).values()
        ]
        latents = [latent for latent in latents if latent is not None]
        known = set(map(id, latents))
        others = [p for p in self.network.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": others, "lr": self.lr}, {"params": latents, "lr": self.weight_lr}]
        # Fused: on CPU three times as fast.
        optimizer = torch.optim.Adam([group for group in groups if group["params"]], fused=True)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step / total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """What averages the steps."""
        return (
            [EMAWeightAveraging(use_buffers=False, decay=self.average)] if self.average > 0 else []
        )

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """A clip on which the network fails must not throw the scales about."""
        self.clip_gradients(optimizer, self.max_grad_norm, "norm")

    def training_step(self, batch: CalibrationClip, batch_idx: int) -> Tensor:
        """Unroll over the clips, (B, T, ...), the quantized state fed back."""
        # Weights that don't learn need no preparation: they lie on their grids.
        learning = quantized_layers(self.network).values() if self.weight_lr > 0 else ()
        with cached_weights(learning):
            loss = self._loss(batch)
        self.log("gac/loss", loss, prog_bar=True)
        return loss

    def _loss(self, batch: CalibrationClip) -> Tensor:
        start, stop = self._frames(batch.src.shape[1])
        state = self.network.initial_state(batch.src[:, 0])
        if start > 0:
            state = tuple(steps[:, start - 1] for steps in batch.teacher_state)
        frames = slice(start, stop)
        src = batch.src[:, frames]
        values, states = run_blocks(self.network.blocks(), {"src": src}, state)
        # A loss against a target in [0, 1] then has no gradient where the clamp already gives the target, and a
        # helpful one where it doesn't.
        pha = (
            clamp_ste(values["pha_unclamped"], 0.0, 1.0)
            if "pha_unclamped" in values
            else values["pha"]
        )
        losses = [
            w * alpha_loss(pha, y[:, frames], self.l1_weight, self.mse_weight)
            for w, y in self._targets(batch)
        ]
        if self.fgr_weight > 0:
            losses.append(
                self.fgr_weight * (values["fgr"] - batch.teacher_fgr[:, frames]).abs().mean()
            )
        if self.state_weight > 0:
            pairs = zip(states, batch.teacher_state, strict=True)
            losses += [self.state_weight * (s - y[:, frames]).abs().mean() for s, y in pairs]
        if self.feature_weight > 0:
            with torch.no_grad():
                features, _ = run_blocks(self.teacher.blocks(), {"src": src}, state)
            losses.append(self.feature_weight * feature_loss(values, features))
        losses += self._temporal_losses(batch, pha, start)
        return torch.stack(losses).sum()

    def _frames(self, time: int) -> tuple[int, int]:
        """Which frames of a sequence to unroll over."""
        if self.window is None or self.window >= time:
            return 0, time
        # By step, not from the global generator: a fit that goes on after a kill must draw the same.
        generator = torch.Generator().manual_seed(self.global_step)
        start = int(torch.randint(time - self.window + 1, (), generator=generator))
        return start, start + self.window

    def _temporal_losses(self, batch: CalibrationClip, pha: Tensor, start: int) -> list[Tensor]:
        """What alpha's changes from each frame to the next cost, shared out over all frames."""
        losses: list[Tensor] = []
        time = pha.shape[1]
        if time == 1:
            return losses
        share, pairs = (time - 1) / time, slice(start, start + time - 1)
        if self.flow_weight > 0:
            along = (pha[:, 1:], pha[:, :-1], batch.flow[:, pairs], batch.visible[:, pairs])
            losses.append(
                share * self.flow_weight * temporal_loss(*(x.flatten(0, 1) for x in along))
            )
        if self.coherence_weight > 0:
            change = batch.teacher_pha[:, start : start + time].diff(dim=1)
            losses.append(
                share * self.coherence_weight * (pha.diff(dim=1) - change).square().mean()
            )
        return losses

    def _targets(self, batch: CalibrationClip) -> list[tuple[float, Tensor]]:
        """Weights and alphas to learn from."""
        weights = [(self.truth_weight, batch.pha), (self.teacher_weight, batch.teacher_pha)]
        return [(weight, alpha) for weight, alpha in weights if weight > 0]

    def on_fit_end(self) -> None:
        """Absorb γ and β and write the quantized checkpoint."""
        for layer in quantized_layers(self.network).values():
            layer.fix_()
            layer.absorb_affine_()
        self._save({"phase": "gac", "flow": self.flow_weight, "start": self._settings["start"]})
