"""Properties and signal-to-noise ratios of the layers of a quantized network."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ptq4vm.graph import block_layers, fold_batch_norm_, partition, quantized_layers, trace
from ptq4vm.graph.trace import example_frame
from ptq4vm.models.base import MattingModel
from ptq4vm.quantizers import QuantizedLayer


class Layer(NamedTuple):
    """Convolution or linear layer and its quantization."""

    name: str
    block: str
    weight_bits: int
    activation_bits: int
    share: float
    """Share of all multiply-accumulates."""
    grids: str
    """Quantized tensors of the layer, as text."""

    @property
    def bits(self) -> str:
        """``W4A8``, for example, or ``float``."""
        return "float" if self.weight_bits == 32 else f"W{self.weight_bits}A{self.activation_bits}"


class Signal(NamedTuple):
    """Signal-to-quantization-noise ratios of a layer in dB; None without noise or signal."""

    weights: float | None
    """Ratio of the weights."""
    output: float | None
    """Ratio of the output in the quantized network, including noise from preceding layers."""


def describe_layers(network: MattingModel, height: int, width: int) -> list[Layer]:
    """Describe convolutions and linear layers in order of execution, for frames of this size."""
    traced = trace(network, example_frame(network, height, width))
    total = sum(layer.macs for layer in traced)
    parts = {f"{module}.": block.name for block in partition(network) for module in block.modules}
    found = []
    for layer in traced:
        module = network.get_submodule(layer.name)
        bits = (32, 32)
        if isinstance(module, QuantizedLayer):
            bits = (module.weight_quantizer.spec.bits, module.activation_spec.bits)
        block = next(
            (name for part, name in parts.items() if f"{layer.name}.".startswith(part)), ""
        )
        found.append(Layer(layer.name, block, *bits, layer.macs / total, _grids(module)))
    return found


def learned_blocks(network: MattingModel) -> list[str]:
    """Return the names of the blocks of block reconstruction, in its order."""
    return [block.name for block in partition(network) if block_layers(network, block)]


def _grids(module: nn.Module) -> str:
    if not isinstance(module, QuantizedLayer):
        return ""
    parts = ["weight"]
    if module.input_quantizer is not None:
        parts.append("input by channel" if module.input_quantizer.scale.numel() > 1 else "input")
    if module.output_quantizer is not None:
        parts.append(
            "output"
            if module.activation is None
            else f"output behind {type(module.activation).__name__}"
        )
    return ", ".join(parts)


@torch.inference_mode()
def measure_signal(teacher: MattingModel, network: MattingModel, src: Tensor) -> dict[str, Signal]:
    """Compare each quantized layer with its float twin while both networks process the same frames.

    Args:
        teacher: float network; it isn't modified.
        network: quantized network.
        src: successive frames (T, 3, H, W) on the networks' device, RGB in [0, 1].

    Returns:
        Signal-to-quantization-noise ratios by layer name.
    """
    twin = fold_batch_norm_(copy.deepcopy(teacher))
    layers = quantized_layers(network)
    states = [one.initial_state(src[:1]) for one in (twin, network)]
    powers = {name: [0.0, 0.0] for name in layers}
    for frame in src[:, None]:
        with _outputs(twin, layers) as before, _outputs(network, layers) as after:
            states = [
                one.forward_frame(frame, state).state
                for one, state in zip((twin, network), states, strict=True)
            ]
        for name, layer in layers.items():
            for signal, kept in zip(before[name], after[name], strict=True):
                # The quantized layer may include the activation function that follows it.
                signal = signal if layer.activation is None else layer.activation(signal)
                powers[name][0] += float(signal.double().square().sum())
                powers[name][1] += float((kept - signal).double().square().sum())
    found = {}
    for name, layer in layers.items():
        weight: Tensor = twin.get_submodule(name).weight  # type: ignore[assignment]
        # Compare with the weight after scaling by γ, which isn't noise.
        reference = layer.weight_quantizer.reference(weight)
        in_weights = None
        if reference is not None:
            noise = layer.weight_quantizer(layer.weight) - reference
            in_weights = _decibels(float(reference.square().sum()), float(noise.square().sum()))
        found[name] = Signal(in_weights, _decibels(*powers[name]))
    return found


@contextmanager
def _outputs(network: MattingModel, names: Any) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs of the named layers inside the context."""
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _m, _x, y, name=name: kept[name].append(y.clone())
        )  # type: ignore[misc]
        for name in names
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
