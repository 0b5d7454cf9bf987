"""Quantizers, observers and quantized layers.

This subpackage is independent of networks and of Lightning.
"""

from ptq4vm.quantizers.adaround import (
    annealed_beta,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    rounding_regularizer,
)
from ptq4vm.quantizers.affine import AffineCalibration
from ptq4vm.quantizers.contexts import cached_weights, disable_quantization, temporary_rounding
from ptq4vm.quantizers.convolution import ConvGeometry, affine_conv2d, conv2d
from ptq4vm.quantizers.fake_quantize import (
    LearnedScaleFakeQuantize,
    activation_quantizers,
    dropping,
    observing,
)
from ptq4vm.quantizers.functional import (
    choose_qparams,
    clamp_ste,
    dequantize,
    fake_quantize,
    quantize,
    random_mask,
    round_ste,
)
from ptq4vm.quantizers.layers import QuantizedConv2d, QuantizedLayer, QuantizedLinear
from ptq4vm.quantizers.observers import Observer, find_range, merge_observers
from ptq4vm.quantizers.qconfig import Placement, QConfig, QuantSpec, canonical_bits, parse_bits
from ptq4vm.quantizers.rounding import (
    FixedRounding,
    LatentRounding,
    LearnedRounding,
    NearestRounding,
    NoRounding,
    Rounding,
    WeightGrid,
)
from ptq4vm.quantizers.weight_quantizer import WeightQuantizer

__all__ = [
    "AffineCalibration",
    "ConvGeometry",
    "FixedRounding",
    "LatentRounding",
    "LearnedRounding",
    "LearnedScaleFakeQuantize",
    "NearestRounding",
    "NoRounding",
    "Observer",
    "Placement",
    "QConfig",
    "QuantSpec",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "Rounding",
    "WeightGrid",
    "WeightQuantizer",
    "activation_quantizers",
    "affine_conv2d",
    "annealed_beta",
    "cached_weights",
    "canonical_bits",
    "choose_qparams",
    "clamp_ste",
    "conv2d",
    "dequantize",
    "disable_quantization",
    "dropping",
    "fake_quantize",
    "find_range",
    "inverse_rectified_sigmoid",
    "merge_observers",
    "observing",
    "parse_bits",
    "quantize",
    "random_mask",
    "rectified_sigmoid",
    "round_ste",
    "rounding_regularizer",
    "temporary_rounding",
]
