"""Quantization jobs with plain values as settings."""

from ptq4vm.phases import BlockReconstructionSettings, GACSettings
from ptq4vm.pipeline import QuantizeSettings
from ptq4vm.pipeline import quantize as quantize_network


def quantize(data, output, network="rvm_mobilenetv3", weights="official", trainer=None, **settings):
    """Call `ptq4vm.quantize`; ``block_reconstruction`` and ``gac`` are dictionaries."""
    for name, kind in (("block_reconstruction", BlockReconstructionSettings), ("gac", GACSettings)):
        if name in settings:
            settings[name] = kind(**settings[name])
    return quantize_network(
        network, data, QuantizeSettings(**settings), output, weights, trainer=trainer
    )
