"""Tracing of executed layers in order, by forward hooks."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ptq4vm.models.base import MattingModel
from ptq4vm.models.frame_graph import ACTIVATIONS, LAYERS
from ptq4vm.quantizers import QuantizedLayer

_LAYERS = (*LAYERS, QuantizedLayer)


@dataclass
class TracedLayer:
    """Executed convolution or linear layer."""

    name: str
    macs: int = 0
    """Multiply-accumulates for one frame of the traced size."""
    batch_norm: str | None = None
    """Name of the BatchNorm that reads the output."""
    activation: str | None = None
    """Name of the activation function that reads the (normalised) output."""
    source: str | None = None
    """Name of the layer whose output, directly or via its activation, is the input."""
    pooled: bool = False
    """True if the output is a single pixel, as after global pooling."""


def trace(network: MattingModel, src: Tensor) -> list[TracedLayer]:
    """Run one frame, (1, 3, H, W), and return its convolutions and linear layers in order.

    Example:
        >>> from ptq4vm.graph import trace
        >>> from ptq4vm.graph.trace import example_frame
        >>> from ptq4vm.models import create_model
        >>> network = create_model("rvm_mobilenetv3")
        >>> layers = trace(network, example_frame(network))
        >>> layers[0].name, layers[0].batch_norm, layers[-1].name
        ('backbone.features.0.0', 'backbone.features.0.1', 'project_mat.conv')
    """
    layers: dict[str, TracedLayer] = {}
    # Tensors by id: the output of a layer is recognised where a module reads the same object.
    produced: dict[int, tuple[TracedLayer, Tensor]] = {}

    def after(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, _LAYERS):
                layer = layers.setdefault(name, TracedLayer(name))
                # Each output value takes one kernel: weight[0] is (in channels / groups, kh, kw).
                layer.macs += output.numel() * module.weight[0].numel()  # type: ignore[operator]
                layer.source = (
                    produced[id(inputs[0])][0].name if id(inputs[0]) in produced else None
                )
                # One value for each output channel.
                layer.pooled = output.numel() == len(module.weight)  # type: ignore[arg-type]
            elif id(inputs[0]) in produced:
                layer = produced[id(inputs[0])][0]
                if isinstance(module, nn.BatchNorm2d):
                    layer.batch_norm = name
                else:
                    layer.activation = name
            else:
                return
            # Keep a reference to the tensor, so that its id is not reused.
            produced[id(output)] = (layer, output)

        return hook

    watched = (*_LAYERS, nn.BatchNorm2d, *ACTIVATIONS)
    handles = [
        module.register_forward_hook(after(name, module))
        for name, module in network.named_modules()
        if isinstance(module, watched)
    ]
    training = network.training
    try:
        with torch.no_grad():
            network.eval().forward_frame(src, network.initial_state(src))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return list(layers.values())


def example_frame(
    network: MattingModel, height: int | None = None, width: int | None = None
) -> Tensor:
    """Return a grey frame, (1, 3, height, width), on the network's device.

    Its size defaults to the network's ``example_size``.
    """
    parameter = next(network.parameters())
    size = (height or network.example_size[0], width or network.example_size[1])
    return torch.full((1, 3, *size), 0.5, dtype=parameter.dtype, device=parameter.device)
