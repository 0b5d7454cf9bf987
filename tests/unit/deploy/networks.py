"""Random float and quantized networks for the export tests."""

import torch

from ptq4vm.graph import quantize_network, quantized_layers
from ptq4vm.models import RobustVideoMatting
from ptq4vm.quantizers import QConfig, activation_quantizers, observing


def random_network(**settings):
    """Create a random network with BatchNorm statistics estimated on noise."""
    torch.manual_seed(0)
    network = RobustVideoMatting(**settings)
    with torch.no_grad():
        network.train()(torch.rand(2, 1, 3, 64, 64))
    network.name = "rvm_mobilenetv3"
    return network.eval().requires_grad_(False)


def calibrated_network(bits="W8A8", settings=None, **qconfig):
    """Quantize `random_network`, observed on noise, with random γ and β absorbed."""
    config = QConfig(bits, range_method="minmax", **qconfig)
    network = quantize_network(random_network(**(settings or {})), config)
    with torch.no_grad(), observing(activation_quantizers(network)):
        network.unroll(torch.rand(1, 3, 3, 64, 96))
    for layer in quantized_layers(network).values():
        layer.start_affine(per_channel=True)
        layer.affine.log_scale.data.uniform_(-0.1, 0.1)
        layer.affine.shift.data.uniform_(-0.1, 0.1)
        layer.fix_()
        layer.absorb_affine_()
    return network
