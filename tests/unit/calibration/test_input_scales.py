import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptq4vm.calibration.input_scales import choose_input_scales, set_input_scales
from ptq4vm.quantizers import (
    QuantizedConv2d,
    QuantizedLinear,
    QuantSpec,
    WeightQuantizer,
    disable_quantization,
    observing,
)

RANGES = torch.tensor([40.0, 40.0, 1.0, 1.0, 1.0, 0.02])
"""As of features beside recurrent states and colours."""


def make_layer(bits=8, groups=1, granularity="per_tensor", padding=1):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 12, 3, padding=padding, groups=groups)
    weight_spec = QuantSpec(bits, "symmetric", "per_channel", "mse")
    return QuantizedConv2d(conv, weight_spec, QuantSpec(bits, "affine", granularity, "mse"))


def make_input(ranges=RANGES):
    generator = torch.Generator().manual_seed(1)
    return (2 * torch.rand(2, 6, 9, 10, generator=generator) - 1) * ranges[:, None, None]


def error(layer, x, target):
    layer = copy.deepcopy(layer)
    with torch.no_grad(), observing(layer.activation_quantizers):
        layer(x)
    layer.fix_()
    with torch.no_grad():
        return float((layer(x) - target).square().mean())


@pytest.mark.parametrize("bits", [4, 8])
def test_channels_of_small_range_are_scaled_up(bits):
    layer, x = make_layer(bits), make_input()
    with torch.no_grad():
        layer.weight[:, :2] *= 0.1  # no channel decides the output alone
        layer.weight_quantizer.restart_(layer.weight)
    with torch.no_grad(), disable_quantization([layer]):
        target = layer(x)
    before = error(layer, x, target)
    ((scale, shift),) = choose_input_scales([layer], lambda: layer(x))
    assert scale.flatten()[0] == 1
    assert scale.flatten()[2] < 1
    assert torch.equal(scale, scale.log2().round().exp2())
    set_input_scales([layer], [(scale, shift)])
    with torch.no_grad(), disable_quantization([layer]):
        torch.testing.assert_close(layer(x), target)  # the float layer is the same
    assert error(layer, x, target) < 0.9 * before
    expected = WeightQuantizer(layer.weight, layer.weight_quantizer.spec)
    assert torch.equal(layer.weight_quantizer.scale, expected.scale)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("bits", [4, 8])
def test_channels_off_zero_are_centred(bits, padding):
    layer, x = make_layer(bits, padding=padding), make_input(torch.ones(6))
    middles = torch.tensor([-3.0, -1.0, 0.5, 2.0, 4.0, 4.0])
    x += middles[:, None, None]
    with torch.no_grad(), disable_quantization([layer]):
        target = layer(x)
    before = error(layer, x, target)
    ((scale, shift),) = choose_input_scales([layer], lambda: layer(x))
    assert torch.equal(shift.flatten().sign(), x.mean((0, 2, 3)).sign())
    if not padding:  # a range has to hold the padding too
        assert (shift.flatten() - middles).abs().max() < 0.2
    set_input_scales([layer], [(scale, shift)])
    with torch.no_grad(), disable_quantization([layer]):
        torch.testing.assert_close(layer(x), target, atol=1e-5, rtol=1e-5)
    assert error(layer, x, target) < 0.5 * before


def test_channels_that_are_often_zero_keep_zero_on_the_grid():
    layer, x = make_layer(4, padding=0), make_input(torch.ones(6))
    x += 4.0
    x[0, :3] = 0.0  # as the recurrent state before the first frame
    ((_, shift),) = choose_input_scales([layer], lambda: layer(x))
    assert not shift[:3].any()
    assert (shift[3:] - 4.0).abs().max() < 0.5


def test_channels_alike_are_left_alone():
    layer, x = make_layer(), make_input(torch.ones(6))
    assert choose_input_scales([layer], lambda: layer(x)) == [None]


def test_layers_with_a_grid_for_each_channel_have_no_scale():
    spec = QuantSpec(8, "affine", "per_tensor", "mse")
    linear = QuantizedLinear(nn.Linear(6, 4), QuantSpec(8, "symmetric"), spec)
    for layer in (make_layer(groups=6), make_layer(granularity="per_channel"), linear):
        assert layer.input_scale is None
        with pytest.raises(RuntimeError, match="dense layer"):
            layer.scale_input_(torch.ones(6, 1, 1), torch.zeros(6, 1, 1))
    x = make_input()
    assert choose_input_scales([linear], lambda: linear(x[0, :, 0].T)) == [None]


@pytest.mark.parametrize("straight", [False, True])
def test_learned_roundings_begin_again_in_the_same_parameters(straight):
    layer = make_layer(4)
    layer.weight_quantizer.start_rounding(layer.weight, straight=straight)
    parameters = list(layer.weight_quantizer.parameters())
    layer.scale_input_(torch.full((6, 1, 1), 0.25), torch.zeros(6, 1, 1))
    assert all(a is b for a, b in zip(parameters, layer.weight_quantizer.parameters(), strict=True))
    fresh = WeightQuantizer(layer.weight, layer.weight_quantizer.spec)
    fresh.start_rounding(layer.weight, straight=straight)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, layer.weight_quantizer.state_dict()[name])


@pytest.mark.parametrize("shifts", [0.0, 0.3])
def test_a_loaded_layer_scales_as_the_saved_one(shifts):
    layer, x = make_layer(), make_input()
    scale = torch.tensor([1, 1, 0.25, 0.25, 0.25, 0.25])[:, None, None]
    layer.scale_input_(scale, torch.arange(6.0)[:, None, None] * shifts)
    with torch.no_grad(), observing(layer.activation_quantizers):
        layer(x)
    other = make_layer()
    other.load_state_dict(layer.state_dict())
    layer.fix_()
    other.fix_()
    with torch.no_grad():
        assert torch.equal(other(x), layer(x))
        padded = (F.pad(x, (1, 1, 1, 1)) - layer.input_shift) / layer.input_scale
        quantized = layer.input_quantizer(padded) * layer.input_scale + layer.input_shift
        plain = layer.to_float()
        plain.padding = (0, 0)
        torch.testing.assert_close(plain(quantized), layer(x), atol=1e-3, rtol=1e-4)
