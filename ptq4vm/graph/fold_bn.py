"""BatchNorm folding."""

import torch
from torch import nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph.trace import example_frame, trace
from ptq4vm.models.base import MattingModel


def fold_batch_norm_(network: MattingModel) -> MattingModel:
    """Fold every BatchNorm, in eval mode, into the preceding convolution, in place and losslessly.

    Pairs are found by tracing. The network is also traced at downsample_ratio 0.5, so that the
    refiner, which does not run at 1.0, is folded too.

    Raises:
        PTQ4VMError: A BatchNorm does not directly follow a convolution.
    """
    pairs = {}
    for ratio in {network.downsample_ratio, network.fixed_ratio or 0.5}:
        was, network.downsample_ratio = network.downsample_ratio, ratio
        try:
            pairs.update(
                {layer.batch_norm: layer.name for layer in trace(network, example_frame(network))}
            )
        finally:
            network.downsample_ratio = was
    for name, module in list(network.named_modules()):
        if not isinstance(module, nn.BatchNorm2d):
            continue
        if name not in pairs:
            raise PTQ4VMError(
                f"Expected a convolution directly before the BatchNorm {name!r} to fold it into, "
                "found none. Move the BatchNorm behind its convolution in the network's "
                "definition."
            )
        _fold(network.get_submodule(pairs[name]), module)  # type: ignore[arg-type]
        network.set_submodule(name, nn.Identity())
    return network


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    # float64, since dividing by a small standard deviation loses precision in float32.
    # y = γ (W x + b - μ) / σ + β = (γ/σ) W x + (γ/σ) (b - μ) + β
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # type: ignore[union-attr]
    bias = 0.0 if conv.bias is None else conv.bias.double()
    shift = norm.bias.double() + (bias - norm.running_mean.double()) * scale  # type: ignore[operator, union-attr]
    dtype = conv.weight.dtype
    conv.weight.copy_((conv.weight.double() * scale.reshape(-1, 1, 1, 1)).to(dtype))
    conv.bias = nn.Parameter(shift.to(dtype), requires_grad=conv.weight.requires_grad)
