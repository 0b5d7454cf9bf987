"""Scales of input channels, chosen by the error of each layer's output."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ptq4vm.quantizers import Observer, QuantizedLayer, WeightQuantizer, disable_quantization
from ptq4vm.quantizers.functional import dequantize, quantize

EXPONENTS = (0.25, 0.5, 0.75, 1.0)
_FRAMES = 8
"""Inputs of a layer that are kept to compare exponents."""
_LEAST_REACH = 1e-3
_LEAST_SCALE = 2.0**-10
_GAIN = 0.9
"""Largest error, relative to the unscaled layer's, that is worth a scale."""


@torch.no_grad()
def choose_input_scales(
    layers: Sequence[QuantizedLayer], run: Callable[[], None]
) -> list[Tensor | None]:
    """Return a scale for the input channels of each layer; None where none lowers its error.

    A layer that reads values of very different ranges, such as colours beside feature maps, spends
    few codes of its one grid on the small ones. Channels divided by s = rᵅ, where r is a channel's
    largest magnitude, come closer to each other; the weights multiplied by s differ more instead.
    The exponent α with the least squared error of the layer's output is chosen, weights rounded to
    nearest (migration of difficulty as in SmoothQuant, arXiv 2211.10438, at every layer, since
    the division fuses with the quantization that follows). Scales are powers of two, so that the
    float layer stays exactly the same.

    Args:
        layers: of one block, their weights float.
        run: runs the block over all sequences.
    """
    with disable_quantization(layers), _inputs(layers) as seen:
        run()
    return [_choose(layer, *seen[layer]) if layer in seen else None for layer in layers]


def set_input_scales(layers: Sequence[QuantizedLayer], scales: Sequence[Tensor | None]) -> None:
    """Scale the inputs of layers, in place, where there is a scale."""
    for layer, scale in zip(layers, scales, strict=True):
        if scale is not None:
            layer.set_input_scale_(scale)


@contextmanager
def _inputs(
    layers: Sequence[QuantizedLayer],
) -> Iterator[dict[QuantizedLayer, tuple[Tensor, list[Tensor]]]]:
    """Collect the reach of the channels, (C, 1, 1), and a few inputs, (1, C, h, w), by layer."""
    seen: dict[QuantizedLayer, tuple[Tensor, list[Tensor]]] = {}

    def keep(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0]
        reach, frames = seen.get(layer, (torch.zeros_like(layer.input_scale), []))  # type: ignore[call-overload, arg-type]
        if len(frames) < _FRAMES:
            frames.append(x[:1].clone())
        found = x.abs().amax((0, 2, 3)).view_as(reach)
        seen[layer] = (torch.maximum(reach, found), frames)  # type: ignore[index]

    hooks = [
        layer.register_forward_pre_hook(keep) for layer in layers if layer.input_scale is not None
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _choose(layer: QuantizedLayer, reach: Tensor, frames: Sequence[Tensor]) -> Tensor | None:
    x = torch.cat(list(frames))
    target = layer._multiply(x, layer.weight, None)
    reach = reach.clamp(min=float(reach.max()) * _LEAST_REACH)
    best, least = None, _GAIN * _error(layer, x, target, torch.ones_like(reach))
    for exponent in EXPONENTS:
        scale = (reach / reach.max()).pow(exponent).clamp(min=_LEAST_SCALE).log2().round().exp2()
        if (error := _error(layer, x, target, scale)) < least:
            best, least = scale, error
    return best


def _error(layer: QuantizedLayer, x: Tensor, target: Tensor, scale: Tensor) -> float:
    """Return the squared error of the layer's output with this scale."""
    spec = layer.activation_spec
    observer = Observer(spec)
    observer.observe(x / scale)
    grid = observer.calculate_qparams()
    codes = quantize(x / scale, *grid, spec.quant_min, spec.quant_max)
    weight = layer.weight * scale
    rounded = WeightQuantizer(weight, layer.weight_quantizer.spec)(weight)
    output = layer._multiply(dequantize(codes, *grid), rounded, None)
    return float((output - target).square().mean())
