"""Context managers that replace what layers round with, or that turn their quantization off."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ptq4vm.quantizers.layers import QuantizedLayer
from ptq4vm.quantizers.rounding import NoRounding, Rounding


@contextmanager
def temporary_rounding(layers: Iterable[QuantizedLayer], kind: type[Rounding]) -> Iterator[None]:
    """Replace the rounding of these layers, and put the old one back at the end.

    Args:
        layers: their weights must not be fixed.
        kind: a rounding without parameters, e.g. ``NearestRounding``.

    Raises:
        RuntimeError: a weight is fixed.
    """
    quantizers = [layer.weight_quantizer for layer in layers]
    if any(quantizer.fixed for quantizer in quantizers):
        raise RuntimeError("a fixed weight lies on its grid: its float value is gone")
    before = [quantizer.rounding for quantizer in quantizers]
    for quantizer in quantizers:
        quantizer.rounding = kind()
    try:
        yield
    finally:
        for quantizer, rounding in zip(quantizers, before, strict=True):
            quantizer.rounding = rounding


@contextmanager
def disable_quantization(layers: Iterable[QuantizedLayer]) -> Iterator[None]:
    """Let these layers compute as the float layers that they were made from.

    Raises:
        RuntimeError: a weight is fixed.
    """
    layers = list(layers)
    activations = [(one, one.enabled) for layer in layers for one in layer.activation_quantizers]
    with temporary_rounding(layers, NoRounding):
        for one, _ in activations:
            one.enabled = False
        try:
            yield
        finally:
            for one, enabled in activations:
                one.enabled = enabled


@contextmanager
def cached_weights(layers: Iterable[QuantizedLayer]) -> Iterator[None]:
    """Quantize each layer's weight once, at the start, rather than for each frame of a rollout.

    The gradient is the same: it passes through that one quantization. Enter it for a single forward
    pass: the cache does not follow optimizer steps or a replaced rounding.
    """
    layers = list(layers)
    for layer in layers:
        layer._prepared = layer.weight_quantizer(layer.weight)
        layer._prepared_codes = layer._weight_codes() if layer._adds_codes() else None
    try:
        yield
    finally:
        for layer in layers:
            layer._prepared = layer._prepared_codes = None
