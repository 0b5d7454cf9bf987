"""Base module of the learning phases: float teacher, calibration data, resume contract."""

import copy
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import DDPStrategy

from ptq4vm import distributed
from ptq4vm.calibration import make_teacher, teacher_key
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.flow import create_flow
from ptq4vm.graph import fold_batch_norm_, require_calibrated, save_quantized
from ptq4vm.models import fetch_weights
from ptq4vm.models.base import MattingModel
from ptq4vm.phases.checkpoints import CONTRACT, WholeCheckpoints, reached, require_contract
from ptq4vm.phases.scoring import MattingModule, Scoring
from ptq4vm.phases.settings import FlowSettings
from ptq4vm.quantizers import QConfig

_PUBLISHED_FLOW = ("raft_small", "raft_large")


class PTQPhase(MattingModule):
    """Base class of learning phases: has a float teacher and writes a quantized checkpoint.

    Args:
        network: quantizable network to learn.
        qconfig: quantization configuration.
        teacher: float network.
        settings: settings of the phase, a dataclass; part of the resume contract.
        output: quantized checkpoint to write; None for Lightning's own checkpoints only.
        scoring: as for :class:`MattingModule`.
    """

    def __init__(
        self,
        network: MattingModel,
        qconfig: QConfig,
        teacher: MattingModel,
        settings: FlowSettings,
        output: Path | None,
        scoring: Scoring = "float",
    ) -> None:
        super().__init__(network, scoring)
        # In a list, to hide the teacher from Lightning's checkpoints and optimizers.
        self._teacher = [fold_batch_norm_(copy.deepcopy(teacher))]
        self.qconfig = qconfig
        self._teacher_key = teacher_key(teacher)
        self.output = output
        weights = settings.flow_weights
        if weights is not None and str(weights) in _PUBLISHED_FLOW:
            weights = fetch_weights(str(weights))
        self.flow = create_flow(settings.flow, weights)
        self.settings = settings
        self._fit = ExitStack()
        self.reached = (0, 0)
        """Epoch, and number of its finished batches, from which the fit resumes."""

    network: MattingModel
    settings: FlowSettings
    epoch_is = "epoch"
    """Name of the unit learned in an epoch, for messages."""
    keeps_sequences = False
    """True if training batches consist only of indices of calibration sequences."""

    @property
    def epochs(self) -> int | None:
        """Number of epochs that a fit must have; None if the trainer may choose."""
        return None

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
        if stage == "fit" and self.epochs not in (None, trainer.max_epochs):
            raise PTQ4VMError(
                f"Expected a trainer with max_epochs {self.epochs}, a {self.epoch_is} each, got "
                f"{trainer.max_epochs}. Leave it out of `ptq4vm fit`; in Python, give phase.epochs."
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
        """Restore gradient synchronization."""
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
        settings = asdict(self.settings)
        del settings["flow_weights"]  # a path; the key of the flow has the content
        made = {
            "phase": type(self).__name__,
            "float_network": self._teacher_key,
            "qconfig": self.qconfig.to_dict(),
            **settings,
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


def _shapes(state: Mapping[str, Any]) -> set[tuple[str, Any]]:
    return {(str(name), getattr(value, "shape", None)) for name, value in state.items()}
