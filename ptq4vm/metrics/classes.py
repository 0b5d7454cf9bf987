"""Matting metrics as torchmetrics classes.

Each is the mean over all frames of all clips and supports any number of processes. See
:mod:`ptq4vm.metrics.functional` for the definitions.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from ptq4vm.errors import PTQ4VMError
from ptq4vm.metrics import functional

Scoring = Literal["float", "png8"]
"""Precision of the scored predictions.

``float`` scores predictions unchanged; ``png8`` first truncates them to 8 bits, like published
results.
"""
Protocol = Literal["lr", "hr"]
"""Low-resolution evaluation, or the high-resolution one: no Conn, and Grad without normalization.

Both are those of "Robust High-Resolution Video Matting with Temporal Guidance" (Lin et al.).
"""
_HR_ABOVE = 1024
"""Longer side of a frame in pixels above which the protocol is ``hr``, unless another is given."""


class _FrameMean(Metric):
    """Mean over frames of one of the five metrics.

    Subclasses define the metric's name and its values per frame.
    """

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
        # MetricCollection merges metrics with equal state names and defaults, so names are unique.
        # A float32 total loses precision over many frames, and not every device has float64.
        # Compensated (Kahan) summation therefore tracks the rounding error of each addition.
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
            preds: Predicted alpha, floats in [0, 1].
            target: Ground-truth alpha, same shape; never quantized.
            previous: (preds, target) of the preceding frame, (1, H, W) or (B, 1, H, W), if a clip
                is scored in chunks. Used by dtSSD only; if None, frame 0 begins a clip.

        Raises:
            PTQ4VMError: Shapes are invalid, or the function of the same name in
                :mod:`ptq4vm.metrics.functional` raises.
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
        # Both are non-negative, so the larger is also the larger in magnitude.
        large, small = (torch.maximum(total, added), torch.minimum(total, added))
        setattr(self, self._lost, getattr(self, self._lost) + (small - (new - large)))
        setattr(self, self._total, new)
        setattr(self, self._frames, getattr(self, self._frames) + values.numel())

    def compute(self) -> Tensor:
        """Return the mean over all frames, (); NaN if there were none."""
        return (getattr(self, self._total) + getattr(self, self._lost)) / getattr(
            self, self._frames
        )

    @abstractmethod
    def _per_frame(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Return the values of these frames, (T,) or (B, T)."""


class MAD(_FrameMean):
    """Mean absolute difference x 1e3; see :func:`ptq4vm.metrics.functional.mad`.

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import MAD
        >>> metric = MAD()
        >>> metric.update(torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, 1, 4, 4))
        >>> metric.compute()
        tensor(500.)
    """

    metric_name = "mad"

    def _per_frame(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        return functional.mad(preds, target)


class MSE(_FrameMean):
    """Mean squared error x 1e3; see :func:`ptq4vm.metrics.functional.mse`.

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import MSE
        >>> metric = MSE()
        >>> metric.update(torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, 1, 4, 4))
        >>> metric.compute()
        tensor(250.)
    """

    metric_name = "mse"

    def _per_frame(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        return functional.mse(preds, target)


class Grad(_FrameMean):
    """Gradient error / 1000; see :func:`ptq4vm.metrics.functional.grad`.

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import Grad
        >>> metric = Grad()
        >>> alpha = torch.rand(2, 1, 16, 16)
        >>> metric.update(alpha, alpha)
        >>> metric.compute()
        tensor(0.)
    """

    metric_name = "grad"

    def __init__(self, scoring: Scoring = "float", normalize: bool = True, **kwargs: Any) -> None:
        super().__init__(scoring, **kwargs)
        self.normalize = normalize

    def _per_frame(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        return functional.grad(preds, target, normalize=self.normalize)


class Conn(_FrameMean):
    """Connectivity error / 1000; see :func:`ptq4vm.metrics.functional.conn`.

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import Conn
        >>> metric = Conn()
        >>> alpha = torch.rand(2, 1, 16, 16)
        >>> metric.update(alpha, alpha)
        >>> metric.compute()
        tensor(0.)
    """

    metric_name = "conn"

    def _per_frame(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        return functional.conn(preds, target)


class DTSSD(_FrameMean):
    """Temporal incoherence x 1e2; see :func:`ptq4vm.metrics.functional.dtssd`.

    Frame 0 of a clip counts as 0.

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import DTSSD
        >>> metric = DTSSD()
        >>> flicker = torch.tensor([0.5, 0.6, 0.5, 0.6]).reshape(4, 1, 1, 1).expand(4, 1, 4, 4)
        >>> target = torch.full((4, 1, 4, 4), 0.5)
        >>> metric.update(flicker[:2], target[:2])
        >>> last = (flicker[1], target[1])
        >>> metric.update(flicker[2:], target[2:], previous=last)  # the next chunk of the clip
        >>> round(float(metric.compute()), 3)  # (0 + 10 + 10 + 10) / 4
        7.5
    """

    metric_name = "dtssd"

    def _per_frame(
        self, preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        return functional.dtssd(preds, target, previous)


def choose_protocol(height: int, width: int) -> Protocol:
    """Return ``hr`` for frames with a longer side above 1024 pixels, else ``lr``.

    Example:
        >>> from ptq4vm.metrics import choose_protocol
        >>> choose_protocol(288, 512), choose_protocol(1080, 1920)
        ('lr', 'hr')
    """
    return "hr" if max(height, width) > _HR_ABOVE else "lr"


def matting_metrics(
    scoring: Scoring = "float", prefix: str = "", protocol: Protocol = "lr"
) -> MetricCollection:
    """Return the metrics of a protocol as one collection.

    Args:
        scoring: ``float``, or ``png8`` to truncate predictions to 8 bits like published results.
        prefix: Prefix of every key, e.g. ``val/``.
        protocol: ``lr``, or ``hr`` without Conn and with ``normalize=False`` in
            :func:`ptq4vm.metrics.functional.grad`.

    Returns:
        A collection with the keys mad, mse, grad, conn (``lr`` only) and dtssd, sorted by name by
        torchmetrics, updated with ``update(preds, target, previous=None)``.

    Raises:
        PTQ4VMError: ``scoring`` or ``protocol`` is unknown.

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import matting_metrics
        >>> metrics = matting_metrics(prefix="val/")
        >>> alpha = torch.rand(3, 1, 16, 16)
        >>> metrics.update(alpha, alpha)
        >>> sorted(metrics.compute())
        ['val/conn', 'val/dtssd', 'val/grad', 'val/mad', 'val/mse']
    """
    if protocol not in get_args(Protocol):
        raise PTQ4VMError(
            f"Expected protocol to be one of {', '.join(get_args(Protocol))}, got {protocol!r}."
        )
    low = protocol == "lr"
    metrics: list[_FrameMean] = [MAD(scoring), MSE(scoring), Grad(scoring, normalize=low)]
    metrics += [Conn(scoring), DTSSD(scoring)] if low else [DTSSD(scoring)]
    # No two metrics share a state, so compute groups have no use.
    return MetricCollection(
        {m.metric_name: m for m in metrics}, prefix=prefix or None, compute_groups=False
    )


def fidelity_metrics(scoring: Scoring = "float", prefix: str = "") -> MetricCollection:
    """Return the collection that compares mattes with those of the float network.

    Its keys are ``mad_to_float`` and ``dtssd_to_float``; see :func:`matting_metrics` for the
    arguments.

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import fidelity_metrics
        >>> metrics = fidelity_metrics()
        >>> metrics.update(torch.full((1, 1, 4, 4), 0.5), torch.full((1, 1, 4, 4), 0.25))
        >>> metrics.compute()["mad_to_float"]
        tensor(250.)
    """
    metrics: dict[str, Any] = {"mad_to_float": MAD(scoring), "dtssd_to_float": DTSSD(scoring)}
    return MetricCollection(metrics, prefix=prefix or None, compute_groups=False)
