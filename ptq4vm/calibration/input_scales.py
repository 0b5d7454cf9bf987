"""Scales and shifts of input channels, chosen by the error of each layer's output."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptq4vm.quantizers import (
    Observer,
    QuantizedConv2d,
    QuantizedLayer,
    WeightQuantizer,
    disable_quantization,
)
from ptq4vm.quantizers.functional import dequantize, quantize

EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_FIRST = 0.5
_VALUES, _LEAST_FRAMES, _MOST_FRAMES = 2**20, 8, 128
"""Inputs of a layer that are kept to compare scales: of about so many values."""
_LEAST_REACH = 1e-3
_LEAST_SCALE = 2.0**-10
_ZEROS = 0.01
"""Share of exact zeros from which on a channel is not shifted."""
_GAIN = 0.95
"""Largest error, relative to the layer's without it, that is worth a scale, or a shift too."""


class InputScale(NamedTuple):
    """Scale and shift of the channels of a layer's input, (C, 1, 1) each."""

    scale: Tensor
    shift: Tensor


@torch.no_grad()
def choose_input_scales(
    layers: Sequence[QuantizedLayer], run: Callable[[], None]
) -> list[InputScale | None]:
    """Return a scale and shift for the input channels of each layer; None where none is worth it.

    A layer that reads values of very different ranges, such as colours beside feature maps, spends
    few codes of its one grid on the small ones. Channels divided by s = rᵅ, where r is a channel's
    largest magnitude, come closer to each other; the weights multiplied by s differ more instead
    (migration of difficulty as in SmoothQuant, arXiv 2211.10438, at every layer, since the division
    fuses with the quantization that follows). Channels less a shift, the middle of their range or
    their mean, are centred on 0 too (arXiv 2304.09145): what is constant needs no codes, and its
    product with the weights, in the bias, is exact. Squeeze-excitation reads little else. Channels
    that are often exactly 0, as the recurrent state before the first frame, keep 0 on the grid.

    Exponent and shift with the least squared error of the layer's output are chosen, weights
    rounded to nearest. Scales are powers of two: they alone leave the float layer exactly as it is.

    Args:
        layers: of one block, their weights float.
        run: runs the block over all sequences.
    """
    with disable_quantization(layers), _inputs(layers) as seen:
        run()
    return [_choose(layer, seen[layer]) if layer in seen else None for layer in layers]


def set_input_scales(layers: Sequence[QuantizedLayer], scales: Sequence[InputScale | None]) -> None:
    """Scale and shift the inputs of layers, in place, where that is worth it."""
    for layer, one in zip(layers, scales, strict=True):
        if one is not None:
            layer.scale_input_(*one)


class _Inputs:
    """Some inputs of a layer, and ranges and shares of zeros of their channels, (C, 1, 1)."""

    def __init__(self) -> None:
        self.low, self.high = torch.tensor(torch.inf), torch.tensor(-torch.inf)
        self.frames: list[Tensor] = []
        """Some inputs, evenly spread over all calls, (1, C, h, w)."""
        self._zeros, self._calls, self._every = torch.zeros(()), 0, 1

    @property
    def zeros(self) -> Tensor:
        """Share of exact zeros."""
        return self._zeros / self._calls

    def add(self, x: Tensor) -> None:
        """Add an input, (B, C, h, w)."""
        channels = x.transpose(0, 1).reshape(x.shape[1], 1, 1, -1)
        low, high = channels.aminmax(dim=-1)
        self.low = torch.minimum(self.low.to(low), low)
        self.high = torch.maximum(self.high.to(high), high)
        self._zeros = self._zeros.to(low) + (channels == 0).float().mean(-1)
        if self._calls % self._every == 0:
            self.frames.append(x[:1].clone())
        self._calls += 1
        if len(self.frames) > min(max(_VALUES // x[0].numel(), _LEAST_FRAMES), _MOST_FRAMES):
            self.frames, self._every = self.frames[::2], 2 * self._every


@contextmanager
def _inputs(layers: Sequence[QuantizedLayer]) -> Iterator[dict[nn.Module, _Inputs]]:
    """Collect the inputs of layers that can be scaled."""
    seen: dict[nn.Module, _Inputs] = {}

    def keep(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.setdefault(layer, _Inputs()).add(given[0])

    hooks = [
        layer.register_forward_pre_hook(keep) for layer in layers if layer.input_scale is not None
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _choose(layer: QuantizedLayer, seen: _Inputs) -> InputScale | None:
    x, low, high = torch.cat(seen.frames), seen.low, seen.high
    if isinstance(layer, QuantizedConv2d) and any(layer.geometry.padding):
        low, high = low.clamp(max=0), high.clamp(min=0)  # what is padded is shifted too

    def measure(exponent: float, shift: Tensor) -> tuple[float, InputScale]:
        reach = torch.maximum(high - shift, shift - low)
        reach = reach.clamp(min=float(reach.max()) * _LEAST_REACH)
        scale = (reach / reach.max()).pow(exponent).clamp(min=_LEAST_SCALE).log2().round().exp2()
        return _error(layer, x, scale, shift), InputScale(scale, shift)

    none = torch.zeros_like(low)
    middles = ((low + high) / 2, x.mean((0, 2, 3)).view_as(low))
    # The shift first, at one exponent: all pairs take twice as long and choose nearly the same.
    found = measure(_FIRST, none)
    for middle in middles:
        moved = measure(_FIRST, torch.where(seen.zeros < _ZEROS, middle, 0.0))
        found = moved if moved[0] < _GAIN * found[0] else found
    others = (measure(exponent, found[1].shift) for exponent in EXPONENTS if exponent != _FIRST)
    least, best = min([found, *others], key=lambda one: one[0])
    return best if least < _GAIN * _error(layer, x, torch.ones_like(none), none) else None


def _error(layer: QuantizedLayer, x: Tensor, scale: Tensor, shift: Tensor) -> float:
    """Return the squared error of the layer's output with this scale and shift."""
    spec = layer.activation_spec
    x, weight = (x - shift) / scale, layer.weight * scale
    observer = Observer(spec)
    observer.observe(x)
    grid = observer.calculate_qparams()
    codes = quantize(x, *grid, spec.quant_min, spec.quant_max)
    rounded = WeightQuantizer(weight, layer.weight_quantizer.spec)(weight)
    output = layer.multiply(dequantize(codes, *grid), rounded, None)
    return float((output - layer.multiply(x, weight, None)).square().mean())
