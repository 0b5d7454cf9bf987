"""torchmetrics over :mod:`ptq4vm.metrics.functional`: mean over all frames of all clips, on any number of processes."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from ptq4vm.errors import PTQ4VMError
from ptq4vm.metrics import functional

Scoring = Literal["float", "png8"]
"""``float`` scores predictions as they are; ``png8`` truncates them to 8 bits first, as published figures do."""


class _FrameMean(Metric):
    """Mean over frames of one of the five metrics. Subclasses name the metric and give its values per frame."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    metric_name: ClassVar[str]

    def __init__(self, scoring: Scoring = "float", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if scoring not in get_args(Scoring):
            raise PTQ4VMError(
                f"Expected scoring to be one of {', '.join(get_args(Scoring))}, got {scoring!r}."
            )
        self.scoring = scoring
        self.latest = torch.zeros(0)
        """Values of the frames of the last update, (T,) or (B, T)."""
        # MetricCollection merges metrics whose states have equal names and equal first values: each has its own names.
        # In float32 a total of many frames stops growing evenly, and not every device has float64: what each addition
        # rounds away is kept as well (Kahan's compensated summation).
        self._total, self._frames = f"{self.metric_name}_total", f"{self.metric_name}_frames"
        self._lost = f"{self.metric_name}_lost"
        self.add_state(self._total, default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state(self._lost, default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state(
            self._frames, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Add successive frames of one clip (T, 1, H, W), or of a batch of clips (B, T, 1, H, W).

        Args:
            preds: predicted alpha, floats in [0, 1].
            target: true alpha, same shape; never quantized.
            previous: (preds, target) of the frame before, (1, H, W) or (B, 1, H, W), when the clip is scored in
                chunks. Only dtSSD looks at it; without it frame 0 begins a clip.

        Raises:
            PTQ4VMError: other shapes, or as the function of the same name in :mod:`ptq4vm.metrics.functional`.
        """
        if preds.ndim not in (4, 5):
            raise PTQ4VMError(
                f"Expected alpha (T, 1, H, W) or (B, T, 1, H, W), got {tuple(preds.shape)}."
            )
        if self.scoring == "png8":
            preds = functional.to_png8(preds)
            previous = previous and (functional.to_png8(previous[0]), previous[1])
        values = self._per_frame(preds, target, previous)
        self.latest = values.detach()
        added, total = self.latest.float().sum(), getattr(self, self._total)
        new = total + added
        large, small = (
            torch.maximum(total, added),
            torch.minimum(total, added),
        )  # neither is ever negative
        setattr(self, self._lost, getattr(self, self._lost) + (small - (new - large)))
        setattr(self, self._total, new)
        setattr(self, self._frames, getattr(self, self._frames) + values.numel())

    def compute(self) -> Tensor:
        """Mean over every frame seen, (); NaN when none was."""
        return (getattr(self, self._total) + getattr(self, self._lost)) / getattr(
            self, self._frames
        )

    @abstractmethod
    def _per_frame(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Values of these frames, (T,) or (B, T)."""


class MAD(_FrameMean):
    """Mean absolute difference x 1e3, see :func:`ptq4vm.metrics.functional.mad`."""

    metric_name = "mad"

    def _per_frame(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        return functional.mad(preds, target)


class MSE(_FrameMean):
    """Mean squared error x 1e3, see :func:`ptq4vm.metrics.functional.mse`."""

    metric_name = "mse"

    def _per_frame(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        return functional.mse(preds, target)


class Grad(_FrameMean):
    """Gradient error / 1000, see :func:`ptq4vm.metrics.functional.grad`."""

    metric_name = "grad"

    def __init__(self, scoring: Scoring = "float", normalize: bool = True, **kwargs: Any) -> None:
        super().__init__(scoring, **kwargs)
        self.normalize = normalize

    def _per_frame(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        return functional.grad(preds, target, normalize=self.normalize)


class Conn(_FrameMean):
    """Connectivity error / 1000, see :func:`ptq4vm.metrics.functional.conn`."""

    metric_name = "conn"

    def _per_frame(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        return functional.conn(preds, target)


class DTSSD(_FrameMean):
    """Temporal incoherence x 1e2, see :func:`ptq4vm.metrics.functional.dtssd`. Frame 0 of a clip counts as 0."""

    metric_name = "dtssd"

    def _per_frame(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        return functional.dtssd(preds, target, previous)


def matting_metrics(
    scoring: Scoring = "float", prefix: str = "", conn: bool = True, normalize_grad: bool = True
) -> MetricCollection:
    """All five metrics as one collection.

    Args:
        scoring: ``float``, or ``png8`` to truncate predictions to 8 bits as published figures do.
        prefix: put before every key, e.g. ``val/``.
        conn: False leaves Conn out: it runs on the CPU, and the high-resolution evaluation has none.
        normalize_grad: see :func:`ptq4vm.metrics.functional.grad`; False for the high-resolution evaluation.

    Returns:
        A collection with the keys mad, mse, grad, conn, dtssd, which torchmetrics sorts by name;
        ``update(preds, target, previous=None)``.

    Raises:
        PTQ4VMError: unknown ``scoring``.
    """
    metrics: list[_FrameMean] = [
        MAD(scoring),
        MSE(scoring),
        Grad(scoring, normalize=normalize_grad),
        DTSSD(scoring),
    ]
    if conn:
        metrics.insert(3, Conn(scoring))
    # no two share a state, so there are no groups to look for
    return MetricCollection(
        {m.metric_name: m for m in metrics}, prefix=prefix or None, compute_groups=False
    )


def fidelity_metrics(scoring: Scoring = "float", prefix: str = "") -> MetricCollection:
    """How far mattes are from the float network's own: ``mad_to_float`` and ``dtssd_to_float``; see matting_metrics."""
    metrics: dict[str, Any] = {"mad_to_float": MAD(scoring), "dtssd_to_float": DTSSD(scoring)}
    return MetricCollection(metrics, prefix=prefix or None, compute_groups=False)
