"""Equalisation of channels between layers, where it is exact (Nagel et al., arXiv 1906.04721)."""

import torch
from torch import Tensor, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph.trace import example_frame, trace
from ptq4vm.models.base import MattingModel

_DEVIATIONS = 3.0
_QUIETEST = 1e-3
_LEAST_SCALE = 0.05


@torch.no_grad()
def equalize_(network: MattingModel) -> MattingModel:
    """Level the channels that a ReLU hands on, in place; the network, BatchNorm not yet folded, computes what it did.

    ReLU lets a positive scale pass, so a channel can leave one convolution smaller and be enlarged by the next one's
    weights. How far a channel reaches is told by its BatchNorm, mean plus three deviations, and needs no data. One
    scale for a whole tensor then wastes less on quiet channels. Where the next convolution mixes channels, levelling
    its weights too meets in the middle; a depthwise one has a scale for each channel anyway.

    Raises:
        PTQ4VMError: the network names no layers to equalise, or such that no BatchNorm follows.
    """
    links = network.relu_links()
    if not links:
        raise PTQ4VMError(f"Expected layers of {network.name} to equalise, it names none. Set equalize off.")
    norms = {layer.name: layer.batch_norm for layer in trace(network, example_frame(network))}
    for writer, reader in links:
        if norms.get(writer) is None:
            raise PTQ4VMError(f"Expected a BatchNorm behind {writer!r} to equalise it, found none. Set equalize off.")
        norm: nn.BatchNorm2d = network.get_submodule(norms[writer])  # type: ignore[assignment, arg-type]
        conv: nn.Conv2d = network.get_submodule(reader)  # type: ignore[assignment]
        scale = _scale(norm, conv)
        norm.weight.div_(scale)
        norm.bias.div_(scale)
        conv.weight.mul_(scale[:, None, None, None] if conv.groups > 1 else scale[:, None, None])
    return network


def _scale(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> Tensor:
    reach = _share(norm.bias + _DEVIATIONS * norm.weight.abs())
    if conv.groups == 1:
        reach = (reach / _share(conv.weight.abs().amax((0, 2, 3)))).sqrt()
    return (reach / reach.max()).clamp(min=_LEAST_SCALE)


def _share(size: Tensor) -> Tensor:
    """Of the largest."""
    return (size / size.max()).clamp(min=_QUIETEST)
