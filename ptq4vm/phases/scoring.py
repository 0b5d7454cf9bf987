"""Scoring of matting networks on evaluation clips, as LightningModules."""

from typing import Any, Literal

import lightning.pytorch as L
from torch import Tensor

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import quantized_layers
from ptq4vm.metrics import fidelity_metrics, matting_metrics
from ptq4vm.quantizers import cached_weights
from ptq4vm.types import FrameModel, MattingClip, MattingOutput, RecurrentState

Scoring = Literal["float", "png8"]
_CURVES = ("mad", "dtssd")


class MattingModule(L.LightningModule):
    """Scoring of a matting network in validation, test and prediction, chunk by chunk of clips.

    The recurrent state is carried between the chunks of a clip. Clips with true alpha give the five
    matting metrics, clips with the float network's alpha ``mad_to_float`` and ``dtssd_to_float``.

    Args:
        network: float, quantized or exported network.
        scoring: ``float``, or ``png8`` to truncate mattes to 8 bits, as the reference code does.
    """

    def __init__(self, network: FrameModel, scoring: Scoring = "float") -> None:
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
        with cached_weights(quantized_layers(self).values()):  # none in an exported network
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
