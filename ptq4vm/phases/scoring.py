"""Scoring of matting networks on evaluation clips, as LightningModules."""

from typing import Any, Literal

import lightning.pytorch as L
from torch import Tensor

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import quantized_layers
from ptq4vm.metrics import Protocol, fidelity_metrics, matting_metrics
from ptq4vm.quantizers import cached_weights
from ptq4vm.types import FrameModel, MattingClip, MattingOutput, RecurrentState

Scoring = Literal["float", "png8"]
_CURVES = ("mad", "dtssd")


class MattingModule(L.LightningModule):
    """Scoring of a matting network in validation, test and prediction, chunk by chunk of clips.

    The recurrent state is carried between the chunks of a clip. Clips with true alpha give the five
    matting metrics, clips with the float network's alpha ``mad_to_float`` and ``dtssd_to_float``.
    Frames that aren't annotated, see :class:`~ptq4vm.types.MattingClip`, are left out.

    Args:
        network: float, quantized or exported network.
        scoring: ``float``, or ``png8`` to truncate mattes to 8 bits, as the reference code does.
        protocol: metrics of tests, see :func:`ptq4vm.metrics.matting_metrics`.
    """

    def __init__(
        self, network: FrameModel, scoring: Scoring = "float", protocol: Protocol = "lr"
    ) -> None:
        super().__init__()
        self.network = network
        self.val_metrics = matting_metrics(scoring, prefix="val/")
        self.test_metrics = matting_metrics(scoring, "test/", protocol)
        self.test_fidelity = fidelity_metrics(scoring, prefix="test/")
        self._state: RecurrentState | None = None
        self._previous: tuple[tuple[Tensor, Tensor] | None, ...] = (None, None)
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
            self._previous = (None, None)
        if truth is not None:
            if clip.pha is None and (clip.float_pha is None or fidelity is None):
                raise PTQ4VMError(
                    f"Expected true alpha to score {clip.name}, found none. "
                    "Give an evaluation tree."
                )
            against = ((truth, clip.pha), (fidelity, clip.float_pha))
            kept = self.per_frame.setdefault(clip.name, {}) if truth is self.test_metrics else {}
            self._previous = tuple(
                last if metrics is None or target is None
                else _compare(metrics, pha, target[0], last, kept)
                for (metrics, target), last in zip(against, self._previous, strict=True)
            )  # fmt: skip

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


def _compare(
    metrics: Any,
    preds: Tensor,
    target: Tensor,
    last: tuple[Tensor, Tensor] | None,
    kept: dict[str, list[float]],
) -> tuple[Tensor, Tensor] | None:
    """Update metrics with the frames (T, 1, H, W) whose target is known.

    Args:
        metrics: Collection of metrics.
        preds: Alpha.
        target: Target; NaN where it is unknown.
        last: Last known frame before, (1, H, W) each.
        kept: Values of each frame by metric, to be extended.

    Returns:
        The last known frame.
    """
    known = target[:, 0, 0, 0].isfinite()
    if not known.any():
        return last
    preds, target = preds[known], target[known]
    metrics.update(preds, target, previous=last)
    for name, metric in metrics.items(keep_base=True):
        if name.startswith(_CURVES):
            kept.setdefault(name, []).extend(metric.latest.tolist())
    return preds[-1], target[-1]
