"""Equalisation of channels between layers, where it is exact (Nagel et al., arXiv 1906.04721)."""

import torch
from torch import Tensor, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph.trace import example_frame, trace
from ptq4vm.models.base import MattingModel

_DEVIATIONS = 3.0
_QUIETEST = 1e-3
_LEAST_SCALE = 0.05
_IDENTITY = 1e-3
"""So near to 1 is every gain of a BatchNorm that has learned nothing: its eps of up to 1e-3 alone moves it."""


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
    for norm, reader in _links(network).values():
        conv: nn.Conv2d = network.get_submodule(reader)  # type: ignore[assignment]
        scale = _scale(norm, conv)
        norm.weight.div_(scale)
        norm.bias.div_(scale)
        conv.weight.mul_(scale[:, None, None, None] if conv.groups > 1 else scale[:, None, None])
    return network


def require_statistics(network: MattingModel) -> None:
    """See that the BatchNorms tell how far channels reach, before a network is quantized anew.

    Raises:
        PTQ4VMError: as :func:`equalize_`; or one is the identity, as where weights come from an ONNX file.
    """
    for writer, (norm, _) in _links(network).items():
        gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # type: ignore[operator, arg-type]
        if not norm.running_mean.any() and (gain - 1).abs().max() < _IDENTITY:  # type: ignore[union-attr, operator]
            raise PTQ4VMError(
                f"Expected the statistics of a BatchNorm behind {writer!r} to equalise it, got the identity: the "
                "weights were read from an ONNX file, into whose convolutions BatchNorm is folded, or were never "
                "trained. Set equalize off, or give the weights as .pth."
            )


def _links(network: MattingModel) -> dict[str, tuple[nn.BatchNorm2d, str]]:
    """By the convolution that writes: its BatchNorm, and the convolution that reads."""
    links = dict(network.relu_links())
    if not links:
        raise PTQ4VMError(
            f"Expected layers of {network.name} to equalise, it names none. Set equalize off."
        )
    norms = {layer.name: layer.batch_norm for layer in trace(network, example_frame(network))}
    for writer in links:
        if norms.get(writer) is None:
            raise PTQ4VMError(
                f"Expected a BatchNorm behind {writer!r} to equalise it, found none. Set equalize off."
            )
    return {
        writer: (network.get_submodule(norms[writer]), reader)  # type: ignore[misc, arg-type]
        for writer, reader in links.items()
    }


def _scale(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> Tensor:
    reach = _share(norm.bias + _DEVIATIONS * norm.weight.abs())
    if conv.groups == 1:
        reach = (reach / _share(conv.weight.abs().amax((0, 2, 3)))).sqrt()
    return (reach / reach.max()).clamp(min=_LEAST_SCALE)


def _share(size: Tensor) -> Tensor:
    """Of the largest."""
    return (size / size.max()).clamp(min=_QUIETEST)
