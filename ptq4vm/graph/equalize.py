"""Cross-layer equalization (Nagel et al., arXiv 1906.04721)."""

import torch
from torch import Tensor, nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph.trace import example_frame, trace
from ptq4vm.models.base import MattingModel

_DEVIATIONS = 3.0
_QUIETEST = 1e-3
_LEAST_SCALE = 0.05
_IDENTITY = 1e-3
"""Tolerance of the gain of an untrained BatchNorm around 1; its eps of up to 1e-3 shifts it."""


@torch.no_grad()
def equalize_(network: MattingModel) -> MattingModel:
    """Equalize the channel ranges between layers in place; the network's output does not change.

    BatchNorm must not be folded yet. ReLU commutes with a positive scale, so a channel can be
    scaled down after one convolution and up again by the weights of the next. Channel ranges are
    the BatchNorm's mean plus three standard deviations, so no data is needed. A per-tensor
    activation scale then wastes fewer codes on channels of small range. If the next convolution
    mixes channels, activation and weight ranges are balanced by the square root of their ratio; a
    depthwise convolution has one weight scale per channel, so only activations are considered.

    Raises:
        PTQ4VMError: The network defines no ReLU links, or a linked convolution has no BatchNorm.
    """
    for norm, reader in _links(network).values():
        conv: nn.Conv2d = network.get_submodule(reader)  # type: ignore[assignment]
        scale = _scale(norm, conv)
        # ReLU(x / s) = ReLU(x) / s for s > 0: divide what BatchNorm emits, multiply what reads it.
        # A depthwise kernel (C, 1, k, k) has its input channel in dimension 0, others in 1.
        norm.weight.div_(scale)
        norm.bias.div_(scale)
        conv.weight.mul_(scale[:, None, None, None] if conv.groups > 1 else scale[:, None, None])
    return network


def require_statistics(network: MattingModel) -> None:
    """Check that the BatchNorms have the statistics that equalization needs.

    Raises:
        PTQ4VMError: See :func:`equalize_`; or a BatchNorm is the identity, as in weights from an
            ONNX file.
    """
    for writer, (norm, _) in _links(network).items():
        # The ONNX reader writes mean 0 and gain 1: see onnx_weights._identity_norm.
        gain = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # type: ignore[operator, arg-type]
        if not norm.running_mean.any() and (gain - 1).abs().max() < _IDENTITY:  # type: ignore[union-attr, operator]
            raise PTQ4VMError(
                f"Expected the statistics of a BatchNorm behind {writer!r} to equalise it, got the "
                "identity: the weights were read from an ONNX file, into whose convolutions "
                "BatchNorm is folded, or were never trained. Set equalize off, or give the "
                "weights as .pth."
            )


def _links(network: MattingModel) -> dict[str, tuple[nn.BatchNorm2d, str]]:
    """Return BatchNorm and next convolution by the name of each linked convolution."""
    links = dict(network.relu_links())
    if not links:
        raise PTQ4VMError(
            f"Expected layers of {network.name} to equalise, it names none. Set equalize off."
        )
    norms = {layer.name: layer.batch_norm for layer in trace(network, example_frame(network))}
    for writer in links:
        if norms.get(writer) is None:
            raise PTQ4VMError(
                f"Expected a BatchNorm behind {writer!r} to equalise it, found none. Set equalize "
                "off."
            )
    return {
        writer: (network.get_submodule(norms[writer]), reader)  # type: ignore[misc, arg-type]
        for writer, reader in links.items()
    }


def _scale(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> Tensor:
    reach = _share(norm.bias + _DEVIATIONS * norm.weight.abs())
    if conv.groups == 1:
        # s = sqrt(r₁ / r₂), section 4.1: both ranges become sqrt(r₁ r₂).
        reach = (reach / _share(conv.weight.abs().amax((0, 2, 3)))).sqrt()
    # Bounded: the weights of a nearly dead channel would otherwise be scaled to nothing.
    return (reach / reach.max()).clamp(min=_LEAST_SCALE)


def _share(size: Tensor) -> Tensor:
    """Return sizes relative to the largest."""
    return (size / size.max()).clamp(min=_QUIETEST)
