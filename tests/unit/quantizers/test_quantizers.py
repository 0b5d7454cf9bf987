import numpy as np
import pytest
import torch

from ptq4vm.errors import PTQ4VMError
from ptq4vm.quantizers import (
    LearnedScaleFakeQuantize,
    QConfig,
    QuantizedConv2d,
    QuantSpec,
    WeightQuantizer,
    annealed_beta,
    choose_qparams,
    disable_quantization,
    dropping,
    fake_quantize,
    inverse_rectified_sigmoid,
    observing,
    parse_bits,
    quantize,
    rectified_sigmoid,
    rounding_regularizer,
)


def test_rounds_half_to_even_then_adds_the_zero_point():
    # ONNX's QuantizeLinear: saturate(round_half_even(x / scale) + zero_point).
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    codes = quantize(x, torch.tensor(1.0), torch.tensor(1.0), 0, 255)
    assert codes.tolist() == [1, 3, 3, 1, 0]


@pytest.mark.parametrize(("low", "high", "zero_point"), [(0, 255, 3), (-128, 127, 0), (0, 15, 7)])
def test_fake_quantize_equals_torchs_own_forward_and_backward(low, high, zero_point):
    torch.manual_seed(0)
    ours, theirs = (torch.randn(4, 500, dtype=torch.float32).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours.data)
    scale = torch.tensor(
        [0.0625]
    )  # a power of two: dividing by it equals multiplying by its inverse
    a = fake_quantize(ours, scale, torch.tensor([float(zero_point)]), low, high)
    b = torch.fake_quantize_per_tensor_affine(theirs, 0.0625, zero_point, low, high)
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    weight = torch.randn_like(a)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)


def test_gradient_of_scale_and_zero_point_is_that_of_lsq_plus():
    x = torch.tensor([-9.0, 0.3, 1.26, 99.0])
    scale = torch.tensor([0.5], requires_grad=True)
    zero_point = torch.tensor([2.0], requires_grad=True)
    fake_quantize(x, scale, zero_point, 0, 15).sum().backward()
    inside = [round(0.3 / 0.5) - 0.3 / 0.5, round(1.26 / 0.5) - 1.26 / 0.5]
    assert scale.grad.item() == pytest.approx((0 - 2) + sum(inside) + (15 - 2), abs=1e-5)
    assert zero_point.grad.item() == pytest.approx(-0.5 * 2)


def test_values_on_the_bounds_keep_their_gradient():
    x = torch.tensor([-2.0, 1.75], requires_grad=True)
    fake_quantize(x, torch.tensor([0.25]), torch.tensor([8.0]), 0, 15).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("grid", ["affine", "unsigned", "symmetric"])
def test_zero_is_exact_and_extremes_are_covered(grid):
    spec = QuantSpec(8, grid)
    low = torch.tensor([0.0 if grid == "unsigned" else -0.7])
    scale, zero_point = choose_qparams(
        low, torch.tensor([1.3]), spec.quant_min, spec.quant_max, grid
    )
    zero, top = fake_quantize(
        torch.tensor([0.0, 1.3]), scale, zero_point, spec.quant_min, spec.quant_max
    ).tolist()
    assert zero == 0.0
    assert top == pytest.approx(1.3, abs=float(scale))


def test_dropping_leaves_about_that_share_float():
    torch.manual_seed(0)
    quantizer = LearnedScaleFakeQuantize(QuantSpec(2))
    x = torch.randn(10000)
    with observing([quantizer]):
        quantizer(x)
    with dropping([quantizer], 0.5):
        share = (quantizer(x) == x).float().mean()
    assert 0.45 < share < 0.55


def test_rectified_sigmoid_and_its_inverse():
    h = torch.linspace(0, 1, 11)
    torch.testing.assert_close(rectified_sigmoid(inverse_rectified_sigmoid(h)), h)
    assert rounding_regularizer(torch.tensor([-9.0, 9.0]), 2.0).item() == pytest.approx(
        0.0, abs=1e-5
    )
    assert rounding_regularizer(torch.tensor([0.0]), 20.0).item() == pytest.approx(1.0)


def test_beta_goes_from_20_to_2_after_the_warmup():
    assert annealed_beta(0.1, 0.2) is None
    assert annealed_beta(0.2, 0.2) == pytest.approx(20.0)
    assert annealed_beta(1.0, 0.2) == pytest.approx(2.0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_soft_rounding_starts_at_the_float_weight_and_hard_is_within_one_step(bits, granularity):
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3)
    quantizer = WeightQuantizer(weight, QuantSpec(bits, "symmetric", granularity, "minmax"))
    quantizer.start_rounding(weight)
    torch.testing.assert_close(
        quantizer(weight), weight, rtol=0, atol=float(quantizer.scale.max()) * 0.51
    )
    quantizer.rounding.harden()
    assert ((quantizer(weight) - weight).abs() <= quantizer.scale * 1.001).all()
    fixed = weight.clone()
    quantizer.fix_(fixed)
    torch.testing.assert_close(quantizer(fixed), fixed)
    assert quantizer.codes(fixed).round().unique().numel() <= 2**bits


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("scale_bias", [True, False])
def test_absorbed_affine_computes_the_same(per_channel, scale_bias):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 6, 3, padding=1)
    layer = QuantizedConv2d(conv, QuantSpec(8, "symmetric", "per_channel"), QuantSpec(8))
    x = torch.randn(1, 4, 8, 8)
    with observing(layer.activation_quantizers):
        layer(x)
    layer.fix_()
    plain = layer(x)
    layer.start_affine(per_channel=per_channel, scale_bias=scale_bias)
    torch.testing.assert_close(layer(x), plain)
    layer.affine.log_scale.data.uniform_(-0.5, 0.5)
    layer.affine.shift.data.uniform_(-0.5, 0.5)
    before = layer(x)
    gamma = layer.affine.log_scale.exp().reshape(1, -1, 1, 1)
    bias = 0.0 if scale_bias else conv.bias.reshape(1, -1, 1, 1)
    expected = gamma * (plain - bias) + bias + layer.affine.shift.reshape(1, -1, 1, 1)
    torch.testing.assert_close(before, expected, rtol=1e-4, atol=1e-5)
    layer.absorb_affine_()
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        layer.to_float()(layer.input_quantizer(x)), before, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("bits", ["W8", "8", "W1A8", "W8A16", ""])
def test_unknown_bits_are_refused(bits):
    with pytest.raises(PTQ4VMError, match="Choose"):
        QConfig(bits)


def test_bits_by_layer_win():
    qconfig = QConfig("W4A4", layer_bits={"aspp": "W6A8"})
    assert [spec.bits for spec in qconfig.specs("aspp", edge=True)] == [6, 8]
    assert [spec.bits for spec in qconfig.specs("other", edge=True)] == [8, 8]
    assert QConfig(**qconfig.to_dict()) == qconfig
    assert parse_bits("w4a8") == (4, 8)


def test_weights_of_8_bits_have_no_zero_points():
    """Check that 8-bit weights are symmetric: code minus zero point would not fit 8 bits."""
    qconfig = QConfig("W4A8", weight_grid="affine", layer_bits={"aspp": "W7A8", "wide": "W8A8"})
    grids = {name: qconfig.specs(name, edge=False)[0].grid for name in ("other", "aspp", "wide")}
    assert grids == {"other": "affine", "aspp": "affine", "wide": "symmetric"}
    assert qconfig.specs("other", edge=True)[0].grid == "symmetric"


def test_a_zero_point_on_its_bound_still_learns():
    quantizer = LearnedScaleFakeQuantize(QuantSpec(4))
    quantizer.set_qparams(torch.tensor([0.1]), torch.tensor([0.0]))
    quantizer(torch.tensor([-1.0])).sum().backward()
    assert quantizer.offset.grad.item() != 0.0


def test_layers_left_float_compute_as_before():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 4, 3)
    layer, x = (
        QuantizedConv2d(conv, QuantSpec(4, "symmetric", "per_channel"), QuantSpec(4)),
        torch.rand(1, 3, 8, 8),
    )
    with torch.no_grad():
        with observing(layer.activation_quantizers):
            layer(x)
        quantized = layer(x)
        with disable_quantization([layer]):
            torch.testing.assert_close(layer(x), conv(x))
        assert torch.equal(layer(x), quantized)
        assert not torch.allclose(quantized, conv(x))
    layer.fix_()
    with pytest.raises(RuntimeError, match="float value is gone"), disable_quantization([layer]):
        pass


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_learned_on_within_one_step(bits):
    torch.manual_seed(0)
    floats = torch.randn(3, 4, 3, 3)
    fresh = WeightQuantizer(floats, QuantSpec(bits, "symmetric", "per_channel"))
    keys = set(fresh.state_dict())
    # Like after block reconstruction: weights on the grid, some not rounded to nearest.
    fresh.start_rounding(floats)
    with torch.no_grad():
        fresh.rounding.v += torch.randn_like(fresh.rounding.v)
    fixed = floats.clone()
    fresh.fix_(fixed)
    before = fresh.codes(fixed)
    fresh.start_latent(fixed, floats)
    assert torch.equal(fresh(fixed), fixed)
    target = torch.randn_like(fixed)
    (fresh(fixed) * target).sum().backward()
    expected = (target * fresh.scale).where(
        (before > -(2 ** (bits - 1))) & (before < 2 ** (bits - 1) - 1), 0.0
    )
    inside = expected != 0
    torch.testing.assert_close(fresh.rounding.latent.grad[inside], expected[inside])
    with torch.no_grad():
        fresh.rounding.latent += 100 * torch.randn_like(fresh.rounding.latent)
    moved = fixed.clone()
    fresh.fix_(moved)
    codes = (moved / fresh.scale).round()
    assert (
        0 < (codes - before).abs().max() <= 2
    )  # a latent at the edge of its code may cross two boundaries
    assert codes.abs().max() <= 2 ** (bits - 1)
    assert set(fresh.state_dict()) == keys
    assert fresh.fixed


def pinned(quantizer):
    """Compute the fraction of latents that are clamped to the edge of their code."""
    latent = quantizer.rounding.latent
    return float(((latent - latent.round()).abs() > 0.4899).float().mean())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_codes_are_learned_on_from_where_they_were_however_often_gamma_was_absorbed(
    bits, granularity, per_channel
):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(16, 32, 3)
    floats = conv.weight.detach().clone()
    plain, calibrated = (
        QuantizedConv2d(conv, QuantSpec(bits, "symmetric", granularity), QuantSpec(8)) for _ in "ab"
    )
    for layer in (plain, calibrated):
        layer.fix_()
    for _ in range(3):
        for layer in (plain, calibrated):
            layer.weight_quantizer.start_latent(layer.weight, floats)
        latents = [layer.weight_quantizer.rounding.latent.detach() for layer in (plain, calibrated)]
        torch.testing.assert_close(latents[1], latents[0], rtol=0, atol=1e-3)
        shares = [pinned(layer.weight_quantizer) for layer in (plain, calibrated)]
        assert shares[1] == pytest.approx(shares[0], abs=1e-3)
        assert shares[0] < 0.1
        calibrated.start_affine(per_channel=per_channel)
        calibrated.affine.log_scale.data.fill_(0.02)
        moves = 0.05 * torch.randn_like(floats)
        for layer in (plain, calibrated):
            layer.weight_quantizer.rounding.latent.data += moves
            layer.fix_()
        calibrated.absorb_affine_()
        codes = [layer.weight_quantizer.codes(layer.weight) for layer in (plain, calibrated)]
        assert torch.equal(*codes)
    torch.testing.assert_close(calibrated.weight, plain.weight * np.exp(0.06), rtol=1e-5, atol=0)
