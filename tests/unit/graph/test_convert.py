import copy

import pytest
import torch

from ptq4vm.deploy import TARGETS
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import (
    fold_batch_norm_,
    partition,
    quantize_network,
    quantized_layers,
    run_block,
    run_blocks,
    trace,
)
from ptq4vm.graph.partition import block_layers
from ptq4vm.models import create_model
from ptq4vm.models.base import Block
from ptq4vm.quantizers import NoRounding, QConfig


def randomized(name="rvm_mobilenetv3", **arguments):
    """Create a network with random BatchNorm statistics."""
    torch.manual_seed(0)
    network = create_model(name, **arguments)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize(
    ("name", "ratio"), [("rvm_mobilenetv3", 1.0), ("rvm_mobilenetv3", 0.5), ("rvm_resnet50", 1.0)]
)
def test_folding_batch_norm_changes_nothing(name, ratio):
    # In float64, rounding errors are negligible.
    network = randomized(name, downsample_ratio=ratio).double()
    folded = fold_batch_norm_(copy.deepcopy(network))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    src = torch.rand(1, 2, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        a, b = network.unroll(src), folded.unroll(src)
    for x, y in zip((a.pha, a.fgr, *a.state), (b.pha, b.fgr, *b.state), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_depthwise_layers_may_have_a_grid_for_each_channel():
    network = quantize_network(
        randomized(), QConfig(depthwise_granularity="per_channel", range_method="minmax")
    )
    for layer in quantized_layers(network).values():
        channels = layer.geometry.groups if layer.geometry.groups > 1 else 1
        assert layer.input_quantizer.scale.numel() == channels
    with pytest.raises(PTQ4VMError, match="placement deploy"):
        QConfig(placement="paper", depthwise_granularity="per_channel")


def test_every_executed_layer_is_quantized_and_lies_in_one_block():
    network = quantize_network(randomized(), QConfig("W4A8", range_method="minmax"))
    executed = {layer.name for layer in trace(network, torch.rand(1, 3, 64, 64))}
    assert executed == set(quantized_layers(network))
    blocks = partition(network)
    assert sum(len(block_layers(network, block)) for block in blocks) == len(executed) == 78


def test_gates_of_a_gru_stay_together():
    network = quantize_network(randomized(), QConfig(range_method="minmax"))
    for block in partition(network):
        gates = {name.rsplit(".", 2)[1] for name in block_layers(network, block) if ".gru." in name}
        assert gates in (set(), {"ih", "hh"})


def test_a_layer_in_no_block_is_refused(monkeypatch):
    network = quantize_network(randomized(), QConfig(range_method="minmax"))
    blocks = network.blocks()
    monkeypatch.setattr(network, "blocks", lambda: tuple(b for b in blocks if b.name != "aspp"))
    with pytest.raises(PTQ4VMError, match="aspp"):
        partition(network)


def test_blocks_that_differ_from_the_forward_are_refused(monkeypatch):
    network = randomized()
    forward = network.forward_frame
    monkeypatch.setattr(network, "forward_frame", lambda s, h: forward(s, h)._replace(pha=s[:, :1]))
    with pytest.raises(PTQ4VMError, match="forward_frame"):
        partition(network)


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_block_by_block_is_the_time_loop(ratio):
    network = randomized()
    network.downsample_ratio = ratio
    src = torch.rand(2, 3, 3, 66, 70)
    with torch.no_grad():
        state = tuple(torch.rand_like(x) for x in network.initial_state(src[:, 0]))
        values, states = run_blocks(network.blocks(), {"src": src}, state)
        for t in range(3):
            expected, state = network.forward_values(src[:, t], state)
            assert values.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(values[name][:, t], value, rtol=0, atol=1e-4)
            for got, wanted in zip(states, state, strict=True):
                torch.testing.assert_close(got[:, t], wanted, rtol=0, atol=1e-5)


def test_paper_placement_quantizes_what_leaves_the_activation_function():
    network = quantize_network(
        randomized(), QConfig("W4A4", placement="paper", activation_grid="symmetric")
    )
    layer = quantized_layers(network)["aspp.aspp1.0"]
    assert layer.input_quantizer is None
    assert isinstance(layer.activation, torch.nn.ReLU)


@pytest.mark.parametrize(
    "change", [{"layer_bits": {"nowhere": "W8A8"}}, {"ignored_modules": ("nowhere",)}]
)
def test_names_that_the_network_does_not_have_are_refused(change):
    with pytest.raises(PTQ4VMError, match="nowhere"):
        quantize_network(randomized(), QConfig(**change))


def test_a_block_with_state_needs_one():
    block = Block("gru", ("x",), ("y",), lambda x, h: (x, h), state=0)
    with pytest.raises(PTQ4VMError, match="state"):
        run_block(block, [torch.rand(1, 2, 3)])


def test_paper_placement_of_resnet_computes_the_float_network():
    """Fuse each ReLU into its convolution, except the one after the residual addition."""
    network = randomized("rvm_resnet50")
    quantized = quantize_network(network, QConfig("W8A8", placement="paper", range_method="minmax"))
    for layer in quantized_layers(quantized).values():
        layer.output_quantizer.enabled = False
        layer.weight_quantizer.rounding = NoRounding()
    src = torch.rand(1, 1, 3, 64, 64)
    with torch.no_grad():
        a, b = network.unroll(src), quantized.unroll(src)
    for x, y in zip((a.pha, *a.state), (b.pha, *b.state), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4)


def test_all_float_is_refused():
    with pytest.raises(PTQ4VMError, match="ignored_modules"):
        quantize_network(
            randomized(), QConfig(ignored_modules=("backbone", "aspp", "decoder", "project_mat"))
        )


def test_full_placement_quantizes_each_tensor_once():
    network = quantize_network(randomized(), QConfig(placement="full"))
    layers = quantized_layers(network)
    relu = layers[
        "backbone.features.2.block.0.0"
    ]  # expansion; its ReLU feeds the depthwise convolution
    assert isinstance(relu.activation, torch.nn.ReLU)
    assert relu.output_quantizer.spec.grid == "unsigned"
    assert layers["backbone.features.2.block.1.0"].input_quantizer is None
    swish = layers["backbone.features.7.block.0.0"]  # Hardswish is not fused: two grids
    assert swish.activation is None
    assert swish.output_quantizer.spec.grid == "affine"
    assert layers["backbone.features.7.block.1.0"].input_quantizer is not None
    assert layers["project_mat.conv"].output_quantizer is None, "alpha is not quantized"
    assert layers["aspp.aspp2.1"].output_quantizer is None, "nor is a gate"


def test_full_placement_without_quantizers_computes_the_float_network():
    network = randomized()
    quantized = quantize_network(network, QConfig(placement="full"))
    for layer in quantized_layers(quantized).values():
        layer.weight_quantizer.rounding = NoRounding()
        for quantizer in layer.activation_quantizers:
            quantizer.enabled = False
    src = torch.rand(1, 2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            quantized.unroll(src).pha, network.unroll(src).pha, rtol=1e-3, atol=1e-4
        )


def test_a_target_sets_what_it_executes():
    qconfig = QConfig("W4A8")
    fitted = {name: target.fit(qconfig) for name, target in TARGETS.items()}
    by_channel = QConfig("W4A8", depthwise_granularity="per_channel")
    assert fitted["openvino"] == TARGETS["openvino"].fit(by_channel) == by_channel
    assert fitted["onnxruntime"] == QConfig("W4A8", placement="full")
    assert fitted["tensorrt"] == QConfig("W4A8", activation_grid="symmetric")
    for name in ("onnxruntime", "tensorrt"):
        with pytest.raises(PTQ4VMError, match="depthwise_granularity per_tensor, which"):
            TARGETS[name].fit(by_channel)
