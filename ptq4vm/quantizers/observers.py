"""Calibration of quantization ranges from observed values."""

from itertools import zip_longest

import torch
from torch import Tensor

from ptq4vm.errors import PTQ4VMError
from ptq4vm.quantizers.functional import choose_qparams, dequantize, quantize
from ptq4vm.quantizers.qconfig import QuantSpec

_SAMPLES_A_CALL, _SAMPLES_A_ROW = 4096, 64
_SEARCH_SAMPLES, _SEARCH_SAMPLES_A_ROW = 32768, 2048
_STEPS = 40

_LOUDEST_TO_QUIETEST = 64


class Observer:
    """Observer of a tensor's values over many frames, in bounded memory.

    It chooses one grid, or one for each channel. Minimum and maximum are exact; the rest of the
    distribution is an evenly strided sample of every call.
    """

    def __init__(self, spec: QuantSpec) -> None:
        self.spec = spec
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.samples: list[Tensor] = []

    def observe(self, x: Tensor) -> None:
        """Observe x, any shape; (B, C, ...) for per-channel grids."""
        x = x.detach()
        # (grids, values)
        x = (
            x.transpose(0, 1).flatten(1)
            if self.spec.granularity == "per_channel"
            else x.reshape(1, -1)
        )
        low, high = (value.cpu() for value in x.aminmax(dim=1))
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        # An odd stride shares no factor with power-of-two widths, so it visits all columns.
        stride = max(1, x.shape[1] // max(_SAMPLES_A_CALL // len(x), _SAMPLES_A_ROW)) | 1
        # Copied, since a view would keep all of x in memory.
        self.samples.append(x[:, ::stride].to("cpu", copy=True))

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point, (1,) or (C,) each.

        Raises:
            PTQ4VMError: No value was observed, or a value is not finite.
        """
        if self.low is None or self.high is None:
            raise PTQ4VMError(
                "Expected calibration frames to reach this quantizer, got none. Was its layer "
                "executed?"
            )
        if not torch.isfinite(torch.cat([self.low, self.high])).all():
            raise PTQ4VMError(
                "Expected finite activations, got NaN or infinity. Check the weights and the "
                "frames."
            )
        values = torch.cat(self.samples, dim=1)
        values = values[
            :,
            :: max(1, values.numel() // max(_SEARCH_SAMPLES, len(values) * _SEARCH_SAMPLES_A_ROW)),
        ]
        # The sample may miss the extremes, which bound the search.
        values = torch.cat([values, self.low[:, None], self.high[:, None]], dim=1)
        low, high = find_range(values, self.spec)
        scale, zero_point = choose_qparams(
            low, high, self.spec.quant_min, self.spec.quant_max, self.spec.grid
        )
        # A channel of small range in calibration may exceed it in other scenes.
        return scale.clamp(min=float(scale.max()) / _LOUDEST_TO_QUIETEST), zero_point


def merge_observers(observers: list[Observer]) -> Observer:
    """Merge observers, interleaving their calls.

    If n workers observe every n-th sequence each, the result equals one observer of all sequences
    in order.
    """
    merged = Observer(observers[0].spec)
    seen = [one for one in observers if one.low is not None and one.high is not None]
    if seen:
        merged.low = torch.stack([one.low for one in seen]).amin(0)  # type: ignore[misc]
        merged.high = torch.stack([one.high for one in seen]).amax(0)  # type: ignore[misc]
    calls = zip_longest(*(one.samples for one in seen))
    merged.samples = [sample for call in calls for sample in call if sample is not None]
    return merged


def find_range(values: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Return the range of each row of ``values`` (N, samples) by the spec's method.

    Returns:
        Lowest and highest value, (N,) each.
    """
    low, high = values.amin(1), values.amax(1)
    if spec.range_method == "minmax":
        return low, high
    if spec.range_method == "percentile":
        # torch.quantile is limited to rows of 16 million values.
        ordered = values.sort(1).values
        cut = round(0.0005 * (values.shape[1] - 1))
        return ordered[:, cut], ordered[:, values.shape[1] - 1 - cut]
    return _search_mse(values, low, high, spec)


def _search_mse(
    values: Tensor, low: Tensor, high: Tensor, spec: QuantSpec
) -> tuple[Tensor, Tensor]:
    """Shrink both ends alternately, keeping the range with the least squared error."""
    fractions = torch.linspace(1.0, 1 / _STEPS, _STEPS)
    both = spec.grid == "symmetric"
    # The best low depends on high, and the other way round: two rounds over both ends.
    for end in ("both",) if both else ("high", "low", "high", "low"):
        best = torch.full_like(low, float("inf"))
        best_low, best_high = low.clone(), high.clone()
        for fraction in fractions.tolist():
            a = low * fraction if end != "high" else low
            b = high * fraction if end != "low" else high
            scale, zero_point = choose_qparams(a, b, spec.quant_min, spec.quant_max, spec.grid)
            scale, zero_point = scale[:, None], zero_point[:, None]
            codes = quantize(values, scale, zero_point, spec.quant_min, spec.quant_max)
            error = (dequantize(codes, scale, zero_point) - values).square_().mean(1)
            better = error < best
            best, best_low, best_high = (
                torch.where(better, new, old)
                for new, old in ((error, best), (a, best_low), (b, best_high))
            )
        low, high = best_low, best_high
    return low, high
