"""Tests of QuantizedLinear against numpy integers and plain PyTorch."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ptq4vm.quantizers import (
    QuantizedLinear,
    QuantSpec,
    cached_weights,
    disable_quantization,
    fake_quantize,
    observing,
)

SHAPES = [(5, 6), (2, 7, 6), (2, 3, 4, 6)]
"""Shapes of pooled features, tokens, and channels-last maps."""


def make(bits=8, **options):
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 4)
    layer = QuantizedLinear(
        linear, QuantSpec(bits, "symmetric", "per_channel"), QuantSpec(8), **options
    )
    with observing(layer.activation_quantizers):
        layer(torch.randn(64, 6))
    return linear, layer


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("quantize_output", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_adds_integers_up(bits, quantize_output, shape):
    _, layer = make(bits, quantize_output=quantize_output)
    layer.fix_()
    x = torch.randn(shape)
    with torch.no_grad():
        got = layer(x)
    scale, zero = float(layer.input_quantizer.scale), int(layer.input_quantizer.zero_point)
    codes = np.clip(np.rint(x.numpy() / np.float32(scale)) + zero, 0, 255).astype(np.int64) - zero
    weights = layer.weight_quantizer.codes(layer.weight).detach().numpy().astype(np.int64)
    step = layer.accumulator_scale().detach().numpy().astype(np.float64)
    sums = codes @ weights.T
    if not quantize_output:
        oracle = sums * step + layer.bias.numpy()
    else:
        values = (sums + np.rint(layer.bias.numpy() / step)) * step
        scale, zero = float(layer.output_quantizer.scale), int(layer.output_quantizer.zero_point)
        oracle = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    np.testing.assert_allclose(got.numpy(), oracle, rtol=0, atol=1e-5)


@pytest.mark.parametrize("per_channel", [True, False])
def test_scale_and_shift_and_their_absorption(per_channel):
    linear, layer = make()
    layer.fix_()
    x = torch.randn(2, 7, 6)
    plain = layer(x)
    layer.start_affine(per_channel=per_channel)
    torch.testing.assert_close(layer(x), plain)
    layer.affine.log_scale.data.uniform_(-0.5, 0.5)
    layer.affine.shift.data.uniform_(-0.5, 0.5)
    before = layer(x)
    torch.testing.assert_close(
        before,
        layer.affine.log_scale.exp() * (plain - linear.bias) + linear.bias + layer.affine.shift,
    )
    layer.absorb_affine_()
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        layer.to_float()(layer.input_quantizer(x)), before, rtol=1e-5, atol=1e-5
    )


def test_gradients_are_those_of_the_formula():
    linear, layer = make(4)
    layer.weight_quantizer.start_rounding(layer.weight)
    layer.start_affine(per_channel=True)
    x, target = torch.randn(2, 7, 6), torch.randn(2, 7, 4)
    with cached_weights([layer]):
        (layer(x) * target).sum().backward()
    got = {
        name: parameter.grad.clone()
        for name, parameter in layer.named_parameters()
        if parameter.grad is not None
    }
    assert {
        "affine.log_scale",
        "affine.shift",
        "weight_quantizer.rounding.v",
        "input_quantizer.log_scale",
    } <= set(got)
    layer.zero_grad()
    quantizer = layer.input_quantizer
    read = fake_quantize(x, quantizer.scale, quantizer.zero_point, 0, 255)
    y = F.linear(read, layer.weight_quantizer(layer.weight)) * layer.affine.log_scale.exp()
    # γ scales the weight, not the bias.
    ((y + linear.bias + layer.affine.shift) * target).sum().backward()
    for name, parameter in layer.named_parameters():
        if name in got:
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_left_float_and_without_bias():
    linear = torch.nn.Linear(6, 4, bias=False)
    layer = QuantizedLinear(linear, QuantSpec(4, "symmetric", "per_channel"), QuantSpec(4))
    x = torch.randn(3, 6)
    with disable_quantization([layer]):
        torch.testing.assert_close(layer(x), linear(x))
    assert not layer.bias.any()
