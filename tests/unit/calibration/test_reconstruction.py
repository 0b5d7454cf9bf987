import numpy as np
import pytest
import torch
from small_network import make_batch, make_network

from ptq4vm.calibration.layerwise import layerwise_loss
from ptq4vm.calibration.reconstruction import (
    ReconstructionSettings,
    block_step,
    find_ranges,
    make_optimizer,
    prepare_layers,
    reconstruct_block,
    set_learning_rates,
)
from ptq4vm.graph import quantize_network, quantized_layers, run_block
from ptq4vm.quantizers import (
    LearnedRounding,
    NearestRounding,
    QConfig,
    fake_quantize,
    rectified_sigmoid,
)

QCONFIG = QConfig("W3A8", first_last_bits=3, range_method="minmax")


def setting(name, count=4):
    """A quantized block of the small network, its inputs and targets."""
    teacher = make_network()
    batch = make_batch(teacher, batch=count)
    values = {"src": batch.src}
    with torch.no_grad():
        for block in teacher.blocks():
            state = None if block.state is None else teacher.initial_state(batch.src[:, 0])[0]
            inputs = [values[one] for one in block.inputs]
            targets = run_block(block, inputs, state)
            if block.name == name:
                break
            values.update(zip(block.outputs, targets, strict=False))
    network = quantize_network(teacher, QCONFIG)
    block = next(one for one in network.blocks() if one.name == name)
    return network, block, inputs, targets


@pytest.mark.parametrize("name", ["encoder", "update", "head"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_learning_lowers_the_loss_of_a_block_below_that_of_nearest_rounding(name, batch_size):
    network, block, inputs, targets = setting(name)
    seen = []
    settings = ReconstructionSettings(rounding_lr=0.05, drop_prob=0.5)
    report = reconstruct_block(
        block, network, inputs, targets, settings, float_inputs=inputs, steps=150,
        batch_size=batch_size, on_step=seen.append,
    )  # fmt: skip
    assert report.hard < 0.8 * report.nearest
    assert report.soft == pytest.approx(report.hard, rel=0.25)
    assert seen == list(range(1, 151))
    quantizer = quantized_layers(network)[name].weight_quantizer
    assert quantizer.rounding.hard
    weight = network.get_submodule(name).weight
    assert torch.equal(quantizer.codes(weight), quantizer.codes(weight).round())


@pytest.mark.parametrize("name", ["encoder", "update", "head"])
def test_codes_learn_straight_through_their_rounding(name):
    network, block, inputs, targets = setting(name)
    settings = ReconstructionSettings(rounding="codes", rounding_lr=0.01, drop_prob=0.0)
    report = reconstruct_block(block, network, inputs, targets, settings, steps=50)
    assert report.hard < 0.8 * report.nearest
    assert report.soft == report.hard  # never between two codes
    layer = network.get_submodule(name)
    codes = layer.weight_quantizer.codes(layer.weight)
    grid = layer.weight_quantizer.grid
    assert torch.equal(codes, codes.round())
    nearest = NearestRounding().codes(layer.weight, grid)
    assert 0 < (codes - nearest).abs().max() <= 1
    assert not codes.gt(grid.quant_max).any()


def test_only_codes_decay_their_learning_rate():
    for rounding, expected in (("adaround", 0.5), ("codes", 0.25)):
        network, *_ = setting("encoder")
        settings = ReconstructionSettings(rounding=rounding, rounding_lr=0.5, scale_lr=0.1)
        prepare_layers([network.encoder], settings)
        optimizer = make_optimizer([network.encoder], settings)
        set_learning_rates(optimizer, [network.encoder], settings, 0.5)
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert rates == {"rounding": pytest.approx(expected), "scales": pytest.approx(0.05)}


def test_the_rate_of_a_scale_moves_it_by_as_much_whatever_its_size():
    for size in (0.02, 4.0):
        network, *_ = setting("encoder")
        layer, lr = network.encoder, 1e-4
        layer.input_quantizer.set_qparams(torch.tensor([size]), torch.zeros(1))
        settings = ReconstructionSettings(scale_lr=lr, absolute_scales=True)
        prepare_layers([layer], settings)
        optimizer = make_optimizer([layer], settings)
        set_learning_rates(optimizer, [layer], settings, 0.0)
        layer.input_quantizer.scale.sum().backward()
        optimizer.step()  # Adam's first step is the learning rate
        assert layer.input_quantizer.scale.item() == pytest.approx(size - lr, abs=0.01 * lr)


def test_nothing_is_learned_by_rounding_to_nearest():
    network, block, inputs, targets = setting("update")
    settings = ReconstructionSettings(learn_rounding=False, learn_scales=False)
    report = reconstruct_block(block, network, inputs, targets, settings)
    assert report.nearest == report.soft == report.hard > 0
    assert isinstance(network.update.weight_quantizer.rounding, NearestRounding)


def test_scales_alone_and_roundings_alone_are_learned():
    for kept in ("learn_rounding", "learn_scales"):
        network, block, inputs, targets = setting("update")
        settings = ReconstructionSettings(**{kept: False}, scale_lr=1e-2, drop_prob=0.0)
        quantizer = network.update.input_quantizer
        found = []

        def keep(step, quantizer=quantizer, found=found):
            found.append(quantizer.log_scale.item())

        report = reconstruct_block(
            block, network, inputs, targets, settings, steps=20, on_step=keep
        )
        assert (found[0] != found[-1]) == (kept == "learn_rounding")
        learned = isinstance(network.update.weight_quantizer.rounding, LearnedRounding)
        assert learned == (kept == "learn_scales")
        assert report.soft < report.nearest


@pytest.mark.parametrize("progress", [0.1, 1.0])
def test_a_step_has_the_loss_of_the_formula(progress):
    network, block, inputs, targets = setting("encoder")
    layer = network.encoder
    settings = ReconstructionSettings(drop_prob=0.0, rounding_weight=0.3)
    prepare_layers([layer], settings)
    find_ranges([layer], lambda: run_block(block, inputs))
    with torch.no_grad():
        layer.weight_quantizer.rounding.v += 0.5

    def reconstruct(given):
        return (run_block(block, given)[0] - targets[0]).square().sum(2).mean()

    losses = block_step(reconstruct, [layer], inputs, None, settings, progress)
    grid, own = layer.weight_quantizer.grid, layer.input_quantizer
    h = rectified_sigmoid(layer.weight_quantizer.rounding.v.detach()).numpy()
    scale = grid.scale.numpy()
    codes = np.floor(layer.weight.numpy() / scale) + h + grid.zero_point.numpy()
    weight = (codes.clip(grid.quant_min, grid.quant_max) - grid.zero_point.numpy()) * scale
    x = fake_quantize(inputs[0].flatten(0, 1), own.scale, own.zero_point, 0, 255)
    y = torch.nn.functional.conv2d(x, torch.from_numpy(weight), layer.bias, padding=1).relu()
    error = (y - targets[0].flatten(0, 1)).square().sum(1).mean()
    assert losses.reconstruction.item() == pytest.approx(error.item(), rel=1e-4)
    if progress < settings.warmup:
        assert losses.rounding is None
        assert losses.total is losses.reconstruction
    else:  # β = 2
        expected = (1 - np.abs(2 * h - 1) ** 2).sum()
        assert losses.rounding.item() == pytest.approx(expected, rel=1e-4)
        total = losses.reconstruction.item() + 0.3 * expected
        assert losses.total.item() == pytest.approx(total, rel=1e-4)


def test_quantized_inputs_are_mixed_with_float_ones():
    seen = []

    def reconstruct(given):
        seen.append(given[0])
        return given[0].sum()

    settings = ReconstructionSettings(learn_rounding=False, drop_prob=0.25)
    zeros, ones = torch.zeros(4, 3, 8, 10, 10), torch.ones(4, 3, 8, 10, 10)
    block_step(reconstruct, [], [zeros], [ones], settings, 0.5)
    block_step(reconstruct, [], [zeros], None, settings, 0.5)
    assert seen[0].unique().tolist() == [0.0, 1.0]
    assert seen[0].mean().item() == pytest.approx(0.25, abs=0.03)
    assert seen[1] is zeros


def test_layerwise_losses_have_no_gradient_between_layers():
    torch.manual_seed(0)
    layers, originals = ([torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1)] for _ in "ab")
    x = torch.rand(2, 3, 4, 4)
    loss = layerwise_loss(
        layers, originals, lambda: layers[1](layers[0](x)), lambda: originals[1](originals[0](x))
    )
    loss.backward()
    with torch.no_grad():
        first, target = layers[0](x), originals[0](x)
        errors = [first - target, layers[1](first) - originals[1](target)]
    assert loss.item() == pytest.approx(sum(e.square().sum(1).mean().item() for e in errors))
    alone = torch.autograd.grad((layers[0](x) - target).square().sum(1).mean(), layers[0].weight)
    torch.testing.assert_close(layers[0].weight.grad, *alone)
