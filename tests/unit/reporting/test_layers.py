import copy

import numpy as np
import pytest
import torch

from ptq4vm.graph import quantize_network, quantized_layers
from ptq4vm.quantizers import QConfig, activation_quantizers, observing
from ptq4vm.reporting.layers import describe_layers, learned_blocks, measure_signal

SRC = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def quantized(random_rvm, bits="W8A8", **options):
    qconfig = QConfig(bits, range_method="minmax", **options)
    network = quantize_network(copy.deepcopy(random_rvm), qconfig)
    with torch.no_grad(), observing(activation_quantizers(network)):
        network.unroll(SRC[None])
    for layer in quantized_layers(network).values():
        layer.fix_()
    return network


def test_weights_and_output_of_the_first_layer_by_hand(random_rvm):
    network = quantized(random_rvm)
    name = "backbone.features.0.0"
    signal = measure_signal(random_rvm, network, SRC)[name]
    conv, norm = random_rvm.backbone.features[0][0], random_rvm.backbone.features[0][1]
    gain = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    folded = (conv.weight * gain.reshape(-1, 1, 1, 1)).detach().double().numpy()
    noise = network.get_submodule(name).weight.detach().double().numpy() - folded
    assert signal.weights == pytest.approx(
        10 * np.log10((folded**2).sum() / (noise**2).sum()), abs=1e-2
    )
    seen = {}
    for which, layer in (("float", norm), ("quantized", network.get_submodule(name))):
        layer.register_forward_hook(
            lambda _m, _x, y, which=which: seen.setdefault(which, []).append(y.double().numpy())
        )
    with torch.no_grad():
        random_rvm.unroll(SRC[None])
        network.unroll(SRC[None])
    before, after = (np.concatenate(seen[which]) for which in ("float", "quantized"))
    expected = 10 * np.log10((before**2).sum() / ((after - before) ** 2).sum())
    assert signal.output == pytest.approx(expected, abs=1e-2)


def test_a_bit_is_worth_six_decibels(random_rvm):
    eight, four = (
        measure_signal(random_rvm, quantized(random_rvm, bits), SRC) for bits in ("W8A8", "W4A8")
    )
    inner = list(eight)[1:-1]
    assert np.median([eight[name].weights - four[name].weights for name in inner]) == pytest.approx(
        24, abs=2
    )
    assert eight["project_mat.conv"].weights == four["project_mat.conv"].weights


def test_what_global_calibration_scaled_is_no_noise(random_rvm):
    plain, scaled = quantized(random_rvm), quantized(random_rvm)
    for layer in quantized_layers(scaled).values():
        layer.start_affine(per_channel=True)
        layer.affine.log_scale.data.fill_(0.05)
        layer.absorb_affine_()
    found = [measure_signal(random_rvm, network, SRC) for network in (plain, scaled)]
    for name, signal in found[0].items():
        assert found[1][name].weights == pytest.approx(signal.weights, abs=0.01)


@pytest.mark.parametrize("placement", ["full", "paper"])
def test_a_layer_that_took_the_next_function_along_is_compared_behind_it(random_rvm, placement):
    found = measure_signal(random_rvm, quantized(random_rvm, placement=placement), SRC)
    assert found["backbone.features.1.block.0.0"].output > 20


def test_layers_are_described_as_they_are_executed(random_rvm):
    network = quantized(
        random_rvm, "W4A8", depthwise_granularity="per_channel", ignored_modules=("refiner", "aspp")
    )
    layers = describe_layers(network, 64, 96)
    assert len(layers) == 78
    assert layers[0].name, layers[0].bits == ("backbone.features.0.0", "W8A8")
    assert {layer.bits for layer in layers if layer.block == "aspp"} == {"float"}
    assert {layer.grids for layer in layers} == {"weight, input", "weight, input by channel", ""}
    assert sum(layer.share for layer in layers) == pytest.approx(1.0)
    assert {layer.block for layer in layers} - {"aspp"} == set(learned_blocks(network))
