"""Base modules of all phases: scoring of a network, and learning from its float teacher."""

import copy
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from ptq4vm import distributed
from ptq4vm.calibration import make_teacher, teacher_key
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.flow import create_flow
from ptq4vm.graph import float_twin_, quantized_layers, require_calibrated, save_quantized
from ptq4vm.metrics import fidelity_metrics, matting_metrics
from ptq4vm.models.base import MattingModel
from ptq4vm.phases.checkpoints import CONTRACT, WholeCheckpoints, reached, require_contract
from ptq4vm.quantizers import QConfig, cached_weights
from ptq4vm.types import MattingClip, MattingOutput, RecurrentState

Scoring = Literal["float", "png8"]
_CURVES = ("mad", "dtssd")


class MattingModule(L.LightningModule):
    """Scoring of a matting network in validation, test and prediction, chunk by chunk of clips.

    The recurrent state is carried between the chunks of a clip. Clips with true alpha give the five
    matting metrics, clips with the float network's alpha ``mad_to_float`` and ``dtssd_to_float``.

    Args:
        network: float or quantized network.
        scoring: ``float``, or ``png8`` to truncate mattes to 8 bits, as the reference code does.
    """

    def __init__(self, network: MattingModel, scoring: Scoring = "float") -> None:
        super().__init__()
        self.network = network
        self.val_metrics = matting_metrics(scoring, prefix="val/")
        self.test_metrics = matting_metrics(scoring, prefix="test/")
        self.test_fidelity = fidelity_metrics(scoring, prefix="test/")
        self._state: RecurrentState | None = None
        self._previous: tuple[Any, ...] | None = None
        self.per_frame: dict[str, dict[str, list[float]]] = {}
        """Per-frame MAD and dtSSD of the last test, to truth and to float, by clip and metric."""

    def forward(self, src: Tensor, state: RecurrentState | None = None) -> MattingOutput:
        """Matte a clip (B, T, 3, H, W), RGB in [0, 1]."""
        return self.network.unroll(src, state)

    def _step(
        self, clip: MattingClip, truth: Any | None, fidelity: Any | None
    ) -> MattingOutput | None:
        if clip.src.shape[1] == 0:  # empty batch: this rank has no clip
            return None
        with cached_weights(quantized_layers(self.network).values()):
            output = self(clip.src, self._state if int(clip.start) > 0 else None)
        self._state = output.state
        self._score_alpha(clip, output.pha[0], truth, fidelity)
        return output

    def _score_alpha(
        self, clip: MattingClip, pha: Tensor, truth: Any | None, fidelity: Any | None
    ) -> None:
        """Score the alpha (T, 1, H, W) of a chunk."""
        if int(clip.start) == 0:
            self._previous = None
        if truth is not None:
            if clip.pha is None and (clip.float_pha is None or fidelity is None):
                raise PTQ4VMError(
                    f"Expected true alpha to score {clip.name}, found none. "
                    "Give an evaluation tree."
                )
            against = ((truth, clip.pha), (fidelity, clip.float_pha))
            self._compare(pha, against)
            if truth is self.test_metrics:
                self._keep_frames(clip.name, against)

    def _compare(self, preds: Tensor, against: tuple[tuple[Any, Tensor | None], ...]) -> None:
        """Update metrics with alpha (T, 1, H, W) and each known target (1, T, 1, H, W)."""
        last_preds, *last_targets = self._previous or (None, *(None for _ in against))
        for (metrics, target), last in zip(against, last_targets, strict=True):
            if metrics is not None and target is not None:
                metrics.update(
                    preds, target[0], previous=None if last is None else (last_preds, last)
                )
        self._previous = (
            preds[-1],
            *(None if target is None else target[0, -1] for _, target in against),
        )

    def _keep_frames(self, clip: str, against: tuple[tuple[Any, Tensor | None], ...]) -> None:
        kept = self.per_frame.setdefault(clip, {})
        for metrics, target in against:
            for name, metric in metrics.items(keep_base=True):
                if target is not None and name.startswith(_CURVES):
                    kept.setdefault(name, []).extend(metric.latest.tolist())

    def validation_step(self, batch: MattingClip, batch_idx: int) -> MattingOutput | None:  # type: ignore[override]  # noqa: D102
        return self._step(batch, self.val_metrics, None)

    def test_step(self, batch: MattingClip, batch_idx: int) -> MattingOutput | None:  # type: ignore[override]  # noqa: D102
        return self._step(batch, self.test_metrics, self.test_fidelity)

    def predict_step(self, batch: MattingClip, batch_idx: int) -> MattingOutput | None:  # noqa: D102
        return self._step(batch, None, None)

    def on_test_epoch_start(self) -> None:  # noqa: D102
        self.per_frame = {}

    def on_validation_epoch_end(self) -> None:  # noqa: D102
        self._log_metrics(self.val_metrics)

    def on_test_epoch_end(self) -> None:  # noqa: D102
        self._log_metrics(self.test_metrics)
        self._log_metrics(self.test_fidelity)

    def _log_metrics(self, metrics: Any) -> None:
        # All ranks or none: compute is a collective operation.
        called = any(metric.update_called for metric in metrics.values())
        if self.trainer.strategy.reduce_boolean_decision(called, all=False):
            self.log_dict({name: value.float() for name, value in metrics.compute().items()})
            metrics.reset()


class FloatMattes(MattingModule):
    """Scoring of the float network from its precomputed mattes, without running it."""

    def test_step(self, batch: MattingClip, batch_idx: int) -> None:  # type: ignore[override]  # noqa: D102
        if batch.src.shape[1] == 0:  # empty batch: this rank has no clip
            return
        if batch.float_pha is None:
            raise PTQ4VMError(
                f"Expected the float network's alpha of {batch.name}, found none. "
                "Call add_references."
            )
        self._score_alpha(batch, batch.float_pha[0], self.test_metrics, self.test_fidelity)


class PTQPhase(MattingModule):
    """Base class of learning phases: has a float teacher and writes a quantized checkpoint.

    Args:
        network: quantizable network to learn.
        qconfig: quantization configuration.
        teacher: float network.
        output: quantized checkpoint to write; None for Lightning's own checkpoints only.
        flow: optical flow for the calibration clips; ``raft`` requires ``flow_weights``, ``dis`` no
            weights.
        flow_weights: torchvision RAFT weights.
        scoring: as for :class:`MattingModule`.
        settings: further arguments that affect the result, as plain values without paths.
    """

    def __init__(
        self,
        network: MattingModel,
        qconfig: QConfig,
        teacher: MattingModel,
        output: Path | None,
        flow: Literal["dis", "raft"] = "dis",
        flow_weights: Path | None = None,
        scoring: Scoring = "float",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(network, scoring)
        # In a list, to hide the teacher from Lightning's checkpoints and optimizers.
        self._teacher = [float_twin_(copy.deepcopy(teacher), qconfig)]
        self.qconfig = qconfig
        self._teacher_key = teacher_key(teacher)
        self.output = output
        self.flow = create_flow(flow, flow_weights)
        self._settings = dict(settings or {})
        self._fit = ExitStack()
        self.reached = (0, 0)
        """Epoch, and number of its finished batches, from which the fit resumes."""

    epoch_is = "epoch"
    """Name of the unit learned in an epoch, for messages."""
    keeps_sequences = False
    """True if training batches consist only of indices of calibration sequences."""

    @property
    def teacher(self) -> MattingModel:
        """Float network with folded BatchNorm, on this module's device."""
        return self._teacher[0].to(self.device)

    @property
    def calibration(self) -> VideoMattingDataModule:
        """Datamodule of the running trainer."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(datamodule, VideoMattingDataModule):
            raise PTQ4VMError(
                f"Expected a VideoMattingDataModule, got {type(datamodule).__name__}."
            )
        return datamodule

    def check(
        self,
        trainer: L.Trainer,
        data: VideoMattingDataModule,
        stage: str,
        checkpoint: str | Path | None = None,
    ) -> str | None:
        """Check the trainer, the data and the checkpoint, before Lightning's loggers write.

        Args:
            trainer: trainer that will run this phase.
            data: its datamodule.
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
            checkpoint: Lightning checkpoint to resume from.

        Returns:
            A log line on the point of resumption; None without a checkpoint.

        Raises:
            PTQ4VMError: the trainer, the files or the checkpoint aren't suitable.
        """
        self._check_trainer(trainer, stage)
        data.setup(stage)
        if checkpoint is None:
            return None
        found = trainer.strategy.load_checkpoint(checkpoint, weights_only=True)
        self._require_same(found, checkpoint, trainer, data, stage)
        (epoch, batch), step = reached(found), found.get("global_step")
        return f"goes on from {checkpoint}: {self.epoch_is} {epoch}, batch {batch}, step {step}"

    def _check_trainer(self, trainer: L.Trainer, stage: str) -> None:
        strategy = trainer.strategy
        if trainer.world_size > 1 and not isinstance(strategy, DDPStrategy):
            raise PTQ4VMError(
                f"Expected the strategy ddp on {trainer.world_size} devices, "
                f"got {type(strategy).__name__}. Set --trainer.strategy ddp."
            )
        if stage == "fit" and trainer.precision != "32-true":
            raise PTQ4VMError(
                f"Expected precision 32-true, got {trainer.precision}: integer codes must be "
                "exact. Leave --trainer.precision out."
            )
        if type(strategy.checkpoint_io) is TorchCheckpointIO:  # Lightning's default
            strategy.checkpoint_io = WholeCheckpoints()
        if stage == "fit" and self.output is not None and Path(self.output).exists():
            raise PTQ4VMError(
                f"Expected {self.output} to be new, got a file. "
                "Choose another output, or remove it."
            )

    def setup(self, stage: str) -> None:
        """Create the calibration set with the teacher's mattes and the flow, unless it exists."""
        self._check_trainer(self.trainer, stage)
        distributed.introduce()
        teacher = self._teacher[0].to(self.trainer.strategy.root_device)
        self.reached = (0, 0)
        # Evaluation needs no calibration set, and the teacher only for the built-in cut-outs.
        self.calibration.attach(
            make_teacher(teacher, self._teacher_key), self.flow if stage == "fit" else None
        )

    def on_fit_start(self) -> None:
        """Disable DDP's gradient synchronization, see :meth:`on_before_optimizer_step`.

        DDP waits for every parameter that was trainable at its start; phases learn a few at a time.
        """
        if isinstance(self.trainer.strategy, DDPStrategy):
            self._fit.enter_context(self.trainer.strategy.block_backward_sync())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Average the gradients over all ranks, in one message."""
        if self.trainer.world_size == 1:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        mean = self.trainer.strategy.reduce(
            torch.cat([grad.flatten() for grad in gradients]), reduce_op="mean"
        )
        for grad, part in zip(
            gradients, mean.split([grad.numel() for grad in gradients]), strict=True
        ):  # type: ignore[union-attr]
            grad.copy_(part.view_as(grad))

    def teardown(self, stage: str) -> None:
        """End what applies only during a fit."""
        self._fit.close()

    def _save(self, made: dict[str, Any]) -> None:
        """Write the quantized checkpoint from rank 0; the others wait."""
        if self.output is not None:
            distributed.once(save_quantized, self.network, self.qconfig, self.output, made)

    def contract(
        self, trainer: L.Trainer, data: VideoMattingDataModule, stage: str
    ) -> dict[str, Any]:
        """Return the contract of a fit: everything that affects its result, as plain values.

        Files are represented by their content. Paths, devices, loggers and data loading workers are
        excluded, since they may differ when a fit is resumed. For stages other than ``fit``, the
        contract has only the settings of the network itself.
        """
        made = {
            "phase": type(self).__name__,
            "float_network": self._teacher_key,
            "qconfig": self.qconfig.to_dict(),
            **self._settings,
        }
        if stage == "fit":
            shaping = (
                "max_steps", "limit_train_batches", "overfit_batches", "accumulate_grad_batches",
                "gradient_clip_val", "gradient_clip_algorithm",
            )  # fmt: skip
            made |= {name: getattr(trainer, name) for name in shaping}
            made |= {"max_epochs": self._max_epochs(trainer), "processes": trainer.world_size}
            made |= {"flow_method": self.flow.key, "data": data.contract()}
        return json.loads(json.dumps(made))

    def _max_epochs(self, trainer: L.Trainer) -> int:
        """Return the number of epochs as resolved by Lightning; schedules depend on it."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        endless = trainer.max_steps != -1 or any(isinstance(one, Timer) for one in callbacks)
        return trainer.max_epochs or (-1 if endless else 1000)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the contract to a checkpoint."""
        checkpoint[CONTRACT] = self.contract(self.trainer, self.calibration, "fit")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the contract and the tensor shapes of a checkpoint before Lightning loads it.

        Raises:
            PTQ4VMError: the checkpoint is of another module, network or fit, or has no contract.
        """
        stage = str(self.trainer.state.fn.value)  # type: ignore[union-attr]
        path = self.trainer.ckpt_path
        self._require_same(checkpoint, path, self.trainer, self.calibration, stage)
        if stage == "fit":
            self.reached = reached(checkpoint)

    def _require_same(
        self,
        checkpoint: Mapping[str, Any],
        path: str | Path | None,
        trainer: L.Trainer,
        data: VideoMattingDataModule,
        stage: str,
    ) -> None:
        now = self.contract(trainer, data, stage)
        require_contract(checkpoint, now, path, fitting=stage == "fit")
        found, expected = _shapes(checkpoint["state_dict"]), _shapes(self.state_dict())
        wrong = sorted(name for name, _ in found ^ expected)
        if wrong:
            raise PTQ4VMError(
                f"Expected a checkpoint of this {type(self).__name__}, got one with missing, "
                f"left-over or differently shaped tensors: {', '.join(wrong[:5])}. "
                "Give the checkpoint that this configuration wrote."
            )

    def on_test_start(self) -> None:  # noqa: D102
        require_calibrated(self.network)

    def on_predict_start(self) -> None:  # noqa: D102
        require_calibrated(self.network)

    def on_validation_start(self) -> None:
        """Check that all blocks are calibrated, which fails during a block reconstruction fit."""
        require_calibrated(self.network)


def learning_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Select the arguments that affect a phase's result, from ``locals()`` in its ``__init__``."""
    # The contract has the qconfig and files' contents elsewhere; output and scoring don't matter.
    files = {"checkpoint", "weights", "flow_weights", "output"}
    elsewhere = files | {"self", "__class__", "qconfig", "scoring"}
    return {name: value for name, value in arguments.items() if name not in elsewhere}


def _shapes(state: Mapping[str, Any]) -> set[tuple[str, Any]]:
    return {(str(name), getattr(value, "shape", None)) for name, value in state.items()}
