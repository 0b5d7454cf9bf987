"""Tests of hand-written backward passes against autograd on naive compositions."""

import pytest
import torch
import torch.nn.functional as F

from ptq4vm.quantizers import (
    ConvGeometry,
    LearnedScaleFakeQuantize,
    QuantizedConv2d,
    QuantSpec,
    affine_conv2d,
    cached_weights,
    conv2d,
    dropping,
    fake_quantize,
    inverse_rectified_sigmoid,
    observing,
    random_mask,
    rectified_sigmoid,
    round_ste,
    rounding_regularizer,
)

GEOMETRIES = {
    "dense": ((8, 4, 3, 3), ConvGeometry((1, 1), (1, 1), (1, 1), 1)),
    "pointwise": ((8, 4, 1, 1), ConvGeometry((1, 1), (0, 0), (1, 1), 1)),
    "strided": ((8, 4, 3, 3), ConvGeometry((2, 2), (1, 1), (1, 1), 1)),
    "depthwise": ((4, 1, 5, 5), ConvGeometry((1, 1), (2, 2), (1, 1), 4)),
    "depthwise strided": ((4, 1, 5, 5), ConvGeometry((2, 2), (2, 2), (1, 1), 4)),
    "depthwise dilated": ((4, 1, 5, 5), ConvGeometry((1, 1), (4, 4), (2, 2), 4)),
    "depthwise dilated, other padding": ((4, 1, 3, 5), ConvGeometry((1, 1), (1, 3), (1, 2), 4)),
    "depthwise dilated, padded beyond": ((4, 1, 3, 3), ConvGeometry((1, 1), (5, 5), (2, 2), 4)),
    "dilated": ((8, 4, 3, 3), ConvGeometry((1, 1), (2, 2), (2, 2), 1)),
}


@pytest.fixture(params=[None, 16], ids=["whole", "in pieces"], autouse=True)
def _piece(request, monkeypatch):
    if request.param is not None:
        monkeypatch.setattr("ptq4vm.quantizers.functional._PART", request.param)


def gradients(output, inputs, memory_format=torch.preserve_format):
    """Compute gradients for a fixed random upstream gradient in the given memory format."""
    weight = torch.randn(
        output.shape, generator=torch.Generator().manual_seed(3), dtype=output.dtype
    )
    weight = torch.empty_like(output, memory_format=memory_format).copy_(weight)
    return torch.autograd.grad(output, inputs, weight)


def draw(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes
    ]


def naive_fake_quantize(x, scale, zero_point, low, high):
    """Fake-quantize with `torch.where` as clamp, so that values on the bounds get a gradient."""
    code = round_ste(x / scale) + zero_point
    code = torch.where(code < low, torch.full_like(code, low), code)
    code = torch.where(code > high, torch.full_like(code, high), code)
    return (code - zero_point) * scale


@pytest.mark.parametrize(
    ("low", "high", "zero_point"), [(0, 15, 0.0), (0, 15, 15.0), (0, 255, 99.0), (-8, 7, 0.0)]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fake_quantize_has_the_gradients_of_the_naive_composition(
    low, high, zero_point, memory_format
):
    x = (draw((2, 5, 6, 7))[0].detach() * 3).contiguous(memory_format=memory_format)
    # Ties, and values on both bounds, half a step and one step beyond them.
    edges = (
        torch.tensor([low, high, low - 0.5, high + 0.5, low - 1, high + 1, 0.5, 1.5], dtype=x.dtype)
        - zero_point
    )
    x[0, 0, 0, :4], x[0, 0, 1, :4] = edges[:4] * 0.25, edges[4:] * 0.25
    x.requires_grad_()
    scale = torch.tensor([0.25], dtype=x.dtype, requires_grad=True)
    zero = torch.tensor([zero_point], dtype=x.dtype, requires_grad=True)
    ours, naive = (
        fake_quantize(x, scale, zero, low, high),
        naive_fake_quantize(x, scale, zero, low, high),
    )
    torch.testing.assert_close(ours, naive)
    for layout in (torch.preserve_format, torch.contiguous_format):
        got = gradients(fake_quantize(x, scale, zero, low, high), (x, scale, zero), layout)
        expected = gradients(naive_fake_quantize(x, scale, zero, low, high), (x, scale, zero))
        torch.testing.assert_close(got, expected)


def test_fake_quantize_with_one_scale_a_channel():
    x, scale, zero = draw((2, 3, 4, 4), (1, 3, 1, 1), (1, 3, 1, 1))
    scale.data.abs_().mul_(0.1).add_(0.05)
    zero.data.round_().add_(5)
    ours, naive = fake_quantize(x, scale, zero, 0, 15), naive_fake_quantize(x, scale, zero, 0, 15)
    torch.testing.assert_close(
        gradients(ours, (x, scale, zero)), gradients(naive, (x, scale, zero))
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_is_dropped_passes_with_its_gradient(memory_format):
    x = (
        (draw((2, 5, 6, 7))[0].detach() * 3)
        .contiguous(memory_format=memory_format)
        .requires_grad_()
    )
    scale = torch.tensor([0.25], dtype=x.dtype, requires_grad=True)
    zero = torch.tensor([4.0], dtype=x.dtype, requires_grad=True)
    keep = random_mask(x, 0.5)
    ours = fake_quantize(x, scale, zero, 0, 15, keep)
    naive = torch.where(keep, naive_fake_quantize(x, scale, zero, 0, 15), x)
    torch.testing.assert_close(ours, naive)
    assert torch.equal(ours[~keep], x[~keep])
    torch.testing.assert_close(
        gradients(ours, (x, scale, zero)), gradients(naive, (x, scale, zero))
    )


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_random_mask_has_its_share_and_layout(share):
    torch.manual_seed(0)
    like = torch.empty(3, 7, 41, 53).to(memory_format=torch.channels_last)
    mask = random_mask(like, share)
    assert (mask.dtype, mask.shape, mask.stride()) == (torch.bool, like.shape, like.stride())
    assert mask.float().mean().item() == pytest.approx(share, abs=0.01)
    assert bool(mask.all()) == (share == 1.0)
    torch.manual_seed(0)
    assert torch.equal(mask, random_mask(like, share))


def test_neighbours_of_a_random_mask_are_independent():
    torch.manual_seed(0)
    mask = random_mask(torch.empty(400_000), 0.5).float()
    for distance in range(1, 9):
        assert (mask[distance:] * mask[:-distance]).mean().item() == pytest.approx(0.25, abs=0.005)
    assert mask.view(-1, 4).mean(0).tolist() == pytest.approx([0.5] * 4, abs=0.01)


def test_dropping_within_the_quantizer_keeps_zero_gradient_of_scale_where_all_is_dropped():
    quantizer = LearnedScaleFakeQuantize(QuantSpec(4))
    x = torch.randn(100, requires_grad=True)
    with observing([quantizer]):
        quantizer(x)
    with dropping([quantizer], 1.0):
        y = quantizer(x * 5)
    y.sum().backward()
    assert quantizer.log_scale.grad.item() == quantizer.offset.grad.item() == 0.0
    assert x.grad.tolist() == [5.0] * 100


@pytest.mark.parametrize("name", GEOMETRIES)
def test_conv2d_has_torchs_gradients(name):
    shape, geometry = GEOMETRIES[name]
    x, weight, bias = inputs = draw((2, 4, 13, 12), shape, shape[:1])
    ours, torchs = conv2d(x, weight, bias, geometry), F.conv2d(x, weight, bias, *geometry)
    torch.testing.assert_close(ours, torchs)
    torch.testing.assert_close(gradients(ours, inputs), gradients(torchs, inputs))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("scale_bias", [True, False])
def test_affine_conv2d_has_the_gradients_of_scaling_the_weight(name, per_channel, scale_bias):
    shape, geometry = GEOMETRIES[name]
    count = shape[0] if per_channel else 1
    x, weight, bias, log_scale, shift = draw((2, 4, 13, 12), shape, shape[:1], (count,), (count,))
    weight, bias = weight.detach(), bias.detach()
    inputs = (x, log_scale, shift)
    ours = affine_conv2d(x, weight, bias, log_scale, shift, geometry, scale_bias=scale_bias)
    gamma = log_scale.exp()
    scaled = gamma * bias if scale_bias else bias
    naive = F.conv2d(x, weight * gamma.reshape(-1, 1, 1, 1), scaled + shift, *geometry)
    torch.testing.assert_close(ours, naive)
    torch.testing.assert_close(gradients(ours, inputs), gradients(naive, inputs))


@pytest.mark.parametrize("name", ["dense", "depthwise dilated"])
def test_gradcheck(name):
    shape, geometry = GEOMETRIES[name]
    x, weight, bias, log_scale, shift = draw((1, 4, 6, 5), shape, shape[:1], shape[:1], shape[:1])
    assert torch.autograd.gradcheck(lambda *t: conv2d(*t, geometry), (x, weight, bias))
    fixed = weight.detach(), bias.detach()
    assert torch.autograd.gradcheck(
        lambda x, *t: affine_conv2d(x, *fixed, *t, geometry), (x, log_scale, shift)
    )


@pytest.mark.parametrize("beta", [20.0, 7.3, 2.0])
def test_rounding_regularizer_has_the_gradient_of_its_formula(beta):
    decided = inverse_rectified_sigmoid(torch.tensor([0.0, 1.0]).repeat(50))
    v = torch.cat(
        [torch.linspace(-4, 4, 101), torch.tensor([-9.0, 9.0, 0.0]), decided]
    ).requires_grad_()
    naive = (1.0 - (2.0 * rectified_sigmoid(v) - 1.0).abs().pow(beta)).sum()
    ours = rounding_regularizer(v, beta)
    torch.testing.assert_close(ours, naive)
    torch.testing.assert_close(torch.autograd.grad(3 * ours, v), torch.autograd.grad(3 * naive, v))


@pytest.mark.parametrize("mode", ["soft", "nearest", "latent", "fixed"])
@pytest.mark.parametrize("affine", [True, False])
def test_prepared_weights_give_the_same_rollout(mode, affine):
    torch.manual_seed(0)
    layer = QuantizedConv2d(
        torch.nn.Conv2d(3, 3, 3, padding=1), QuantSpec(4, "symmetric"), QuantSpec(4)
    )
    x = torch.randn(1, 3, 8, 8)
    with observing(layer.activation_quantizers):
        layer(x)
    if mode == "soft":
        layer.weight_quantizer.start_rounding(layer.weight)
    floats = layer.weight.detach().clone()
    if mode in ("latent", "fixed"):
        layer.fix_()
    if mode == "latent":
        layer.weight_quantizer.start_latent(layer.weight, floats)
    if affine:
        layer.start_affine(per_channel=True)

    def rollout():
        layer.zero_grad(set_to_none=True)
        y = layer(layer(layer(x)))
        y.square().sum().backward()
        return y.detach(), {
            name: p.grad for name, p in layer.named_parameters() if p.grad is not None
        }

    plain, plain_gradients = rollout()
    with cached_weights([layer]):
        prepared, prepared_gradients = rollout()
    assert torch.equal(plain, prepared)
    torch.testing.assert_close(plain_gradients, prepared_gradients)
    assert ("weight_quantizer.rounding.v" in plain_gradients) == (mode == "soft")
    assert ("weight_quantizer.rounding.latent" in plain_gradients) == (mode == "latent")
    assert layer._prepared is None
