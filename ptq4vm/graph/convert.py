"""Conversion of a float network into a quantizable network."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from torch import nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph.fold_bn import fold_batch_norm_
from ptq4vm.graph.trace import TracedLayer, example_frame, trace
from ptq4vm.models.base import MattingModel
from ptq4vm.quantizers import (
    LearnedScaleFakeQuantize,
    QConfig,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    QuantSpec,
)
from ptq4vm.types import FrameModel, NetworkFacts

Network = TypeVar("Network", bound=MattingModel)


def quantize_network(network: Network, qconfig: QConfig) -> Network:
    """Return a copy of a float network with BatchNorm folded and quantizable layers.

    Convolutions and linear layers are replaced. The first and last *executed* quantizable layers
    use ``qconfig.first_last_bits``. By default the refiner stays float, so the last one is the
    projection that emits alpha at every downsample_ratio.

    Raises:
        PTQ4VMError: ``layer_bits`` or ``ignored_modules`` name unknown modules; an attention module
            is to be quantized; no layer is left to quantize; or layers share an activation module
            that placement would fuse.

    Example:
        >>> from ptq4vm import QConfig
        >>> from ptq4vm.graph import quantize_network, quantized_layers
        >>> from ptq4vm.models import create_model
        >>> network = create_model("rvm_mobilenetv3")  # random weights
        >>> quantized = quantize_network(network, QConfig("W4A8", range_method="minmax"))
        >>> layer = quantized_layers(quantized)["aspp.aspp1.0"]
        >>> layer.weight_quantizer.spec.bits, layer.activation_spec.bits
        (4, 8)
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    fold_batch_norm_(network)
    _require_convertible(network, qconfig)
    layers = _quantizable_layers(network, qconfig)
    taken = _fused_activations(network, layers, qconfig)
    # Executed, not defined: project_seg is defined behind project_mat and never runs.
    edges = {layers[0].name, layers[-1].name}
    # Grids of the layer outputs that reach the next layer already quantized.
    handed_on: dict[str | None, QuantSpec] = {}
    for layer in layers:
        activation: nn.Module | None = None
        if layer.name in taken:
            activation = network.get_submodule(taken[layer.name])
            # The layer runs it from now on; at its old place nothing must happen any more.
            network.set_submodule(taken[layer.name], nn.Identity())
        plain: nn.Conv2d | nn.Linear = network.get_submodule(layer.name)  # type: ignore[assignment]
        kind: type[QuantizedLayer] = (
            QuantizedLinear if isinstance(plain, nn.Linear) else QuantizedConv2d
        )
        specs = qconfig.specs(layer.name, edge=layer.name in edges, depthwise=_is_depthwise(plain))
        source: LearnedScaleFakeQuantize | None = None
        reads, hands_on = qconfig.placement != "paper", qconfig.placement == "paper"
        if qconfig.placement == "full":
            # An input that is already on the grid needs no second quantizer. Outputs stay float
            # after global pooling, where integer compute saves little, and at the last layer, whose
            # alpha needs more than 256 levels.
            reads = handed_on.get(layer.source) != specs[1]
            hands_on = not layer.pooled and layer is not layers[-1]
            if not reads and layer.source is not None:
                source = network.get_submodule(layer.source).output_quantizer  # type: ignore[assignment]
        if hands_on and (layer.activation is None or layer.name in taken):
            handed_on[layer.name] = specs[1]
        network.set_submodule(layer.name, kind(plain, *specs, reads, hands_on, activation, source))
    network.qconfig = qconfig
    return network


def _require_convertible(network: MattingModel, qconfig: QConfig) -> None:
    qconfig.require_used()
    names = {name for name, _ in network.named_modules()}
    for name in (*qconfig.layer_bits, *qconfig.ignored_modules):
        if name not in names and name != "refiner":
            raise PTQ4VMError(
                f"Expected layer_bits and ignored_modules to name modules of {network.name}, got "
                f"{name!r}."
            )
    for name, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention) and not qconfig.is_float(name):
            raise PTQ4VMError(
                f"Expected attention made of nn.Linear, got nn.MultiheadAttention in {name!r}, "
                "whose projections are no layers of their own. Write it out, or add its name to "
                "ignored_modules."
            )


def _quantizable_layers(network: MattingModel, qconfig: QConfig) -> list[TracedLayer]:
    layers = [
        layer
        for layer in trace(network, example_frame(network))
        if not qconfig.is_float(layer.name)
    ]
    if not layers:
        raise PTQ4VMError(
            f"Expected layers to quantize, got ignored_modules that hold all of {network.name}. "
            "Shorten it."
        )
    return layers


def _fused_activations(
    network: MattingModel, layers: Sequence[TracedLayer], qconfig: QConfig
) -> dict[str, str]:
    """Return, by layer name, the activation modules that quantized layers take over.

    Raises:
        PTQ4VMError: Layers share an activation module.
    """
    taken = {
        layer.name: layer.activation
        for layer in layers
        if layer.activation and _takes(network, layer, qconfig)
    }
    if len(set(taken.values())) < len(taken):
        raise PTQ4VMError(
            f"Expected one activation module for each use in {network.name}, got one that several "
            "layers share. Give each its own in the network's definition, or choose placement "
            "deploy."
        )
    return taken


def _is_depthwise(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1
    )


def _takes(network: MattingModel, layer: TracedLayer, qconfig: QConfig) -> bool:
    """Return whether the quantized layer fuses the activation function after it.

    With placement full only ReLU is fused, as in integer kernels.
    """
    if qconfig.placement != "full":
        return qconfig.placement == "paper"
    return layer.activation is not None and isinstance(
        network.get_submodule(layer.activation), nn.ReLU
    )


def quantized_layers(module: nn.Module) -> dict[str, QuantizedLayer]:
    """Return the quantized layers by name, in order of definition."""
    return {
        name: child for name, child in module.named_modules() if isinstance(child, QuantizedLayer)
    }


@dataclass(frozen=True)
class Cost:
    """Size and compute of a network at one frame size."""

    size_mb: float
    """Stored weights, biases and scales, in 10^6 bytes.

    Weights count at their own bits, everything else as float32.
    """
    bit_operations: float
    """Σ MACs x weight bits x activation bits of one frame, in 10^9."""
    effective_flops: float
    """Σ MACs x 2 W A / (W + A) / 32 of one frame, W and A the bits, in 10^9.

    As in arXiv 2506.10840; of a float network it is the MACs.
    """
    macs: float
    """Multiply-accumulates of one frame, in 10^9."""
    weight_bits: float
    """Mean weight bits, weighted by MACs, of the quantized layers; 32 if there are none."""
    activation_bits: float
    """Mean activation bits, weighted by MACs, of the quantized layers; 32 if there are none."""


def bits_label(qconfig: QConfig, cost: Cost) -> str:
    """Return the bits as a label, e.g. ``W4A4``.

    With per-layer bits the MAC-weighted means are added: ``W4A4 mixed (W4.2A4.5)``.
    """
    if not qconfig.layer_bits:
        return qconfig.bits
    return f"{qconfig.bits} mixed (W{cost.weight_bits:.1f}A{cost.activation_bits:.1f})"


def network_cost(network: MattingModel, height: int, width: int) -> Cost:
    """Return size and compute of a float (32 bits) or quantized network at a frame size.

    Example:
        >>> from ptq4vm.graph import network_cost
        >>> from ptq4vm.models import create_model
        >>> cost = network_cost(create_model("rvm_mobilenetv3"), 288, 512)
        >>> round(cost.macs, 1), cost.weight_bits
        (4.5, 32.0)
    """
    layers = {
        layer.name: layer.macs for layer in trace(network, example_frame(network, height, width))
    }
    bits, operations, effective = 0, 0, 0.0
    quantized = times_weight_bits = times_activation_bits = 0
    for name, macs in layers.items():
        module = network.get_submodule(name)
        if isinstance(module, QuantizedLayer):
            weight_bits = module.weight_quantizer.spec.bits
            scales = module.weight_quantizer.scale.numel()
            # An activation grid has a scale and a zero point.
            scales += 2 * sum(one.scale.numel() for one in module.activation_quantizers)
            bits += weight_bits * module.weight.numel() + 32 * scales
            activation_bits = module.activation_spec.bits
            operations += macs * weight_bits * activation_bits
            effective += macs * 2 * weight_bits * activation_bits / (weight_bits + activation_bits)
            quantized += macs
            times_weight_bits += macs * weight_bits
            times_activation_bits += macs * activation_bits
        else:
            operations += macs * 32 * 32
            effective += macs * 32
            bits += 32 * module.weight.numel()  # type: ignore[union-attr, operator]
        bias = module.bias
        if bias is not None:
            bits += 32 * bias.numel()  # type: ignore[union-attr, operator]
    weight_mean = times_weight_bits / quantized if quantized else 32.0
    activation_mean = times_activation_bits / quantized if quantized else 32.0
    return Cost(
        bits / 8e6, operations / 1e9, effective / 32e9, sum(layers.values()) / 1e9,
        weight_mean, activation_mean,
    )  # fmt: skip


def network_facts(network: FrameModel, height: int, width: int) -> NetworkFacts:
    """Return the facts stored with an exported network, else those of a network in PyTorch."""
    if network.facts is not None:
        return network.facts
    torch_network = cast(MattingModel, network)  # the only kind that stores none
    cost = network_cost(torch_network, height, width)
    qconfig: QConfig | None = torch_network.qconfig
    bits, placement = (
        ("W32A32", "") if qconfig is None else (bits_label(qconfig, cost), qconfig.placement)
    )
    return NetworkFacts(
        bits, placement, "torch", "", cost.size_mb, cost.bit_operations, cost.effective_flops
    )
