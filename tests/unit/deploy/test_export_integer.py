"""Tests of exported integer graphs against PyTorch, ONNX Runtime and the targets' constraints."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import calibrated_network, random_network
from onnx import TensorProto, numpy_helper
from torch import nn

from ptq4vm.deploy import ExportedNetwork, ExportOptions, export_onnx, measure_parity
from ptq4vm.deploy.integer import IntegerLayer
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import network_facts, quantize_network, quantized_layers
from ptq4vm.quantizers import (
    QConfig,
    QuantizedConv2d,
    QuantizedLinear,
    QuantSpec,
    activation_quantizers,
    observing,
)

SIZE = (64, 96)


def nodes_by_output(model):
    return {name: node for node in model.graph.node for name in node.output}


def initializers(model):
    return {tensor.name: tensor for tensor in model.graph.initializer}


@pytest.mark.parametrize("weight", [
    QuantSpec(8, "symmetric", "per_channel"), QuantSpec(4, "symmetric", "per_channel"),
    QuantSpec(7, "affine", "per_channel"), QuantSpec(4, "affine", "per_channel"),
])  # fmt: skip
@pytest.mark.parametrize("activation", [
    QuantSpec(8), QuantSpec(4), QuantSpec(8, "symmetric"), QuantSpec(4, granularity="per_channel")
])  # fmt: skip
def test_integers_compute_what_the_layer_computed(tmp_path, weight, activation):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, stride=2, padding=2, dilation=2, groups=6)
    conv.weight.data[0].abs_()  # all codes of an affine grid are positive here
    layer = QuantizedConv2d(conv, weight, activation).requires_grad_(False)
    assert_exported_computes_the_same(layer, torch.randn(1, 6, 12, 15), tmp_path / "conv.onnx")


@pytest.mark.parametrize("options", [{}, {"quantize_output": True, "activation": nn.ReLU()}])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_integers_compute_what_a_layer_with_scaled_input_computed(tmp_path, options, shift):
    torch.manual_seed(0)
    spec = QuantSpec(8, "symmetric", "per_channel")
    layer = QuantizedConv2d(nn.Conv2d(6, 4, 3, padding=(1, 0)), spec, QuantSpec(8), **options)
    scale = torch.tensor([1, 0.5, 0.25, 0.125, 1, 0.5])[:, None, None]
    layer.scale_input_(scale, shift * torch.randn(6, 1, 1))
    x = torch.randn(1, 6, 12, 15) * layer.input_scale
    assert_exported_computes_the_same(layer.requires_grad_(False), x, tmp_path / "conv.onnx")


@pytest.mark.parametrize("weight_bits", [8, 4])
@pytest.mark.parametrize("shape", [(1, 6), (1, 20, 6), (1, 4, 5, 6)])
@pytest.mark.parametrize("options", [{}, {"quantize_output": True, "activation": nn.ReLU()}])
def test_integers_compute_what_the_linear_layer_computed(tmp_path, weight_bits, shape, options):
    torch.manual_seed(0)
    spec = QuantSpec(weight_bits, "symmetric", "per_channel")
    layer = QuantizedLinear(nn.Linear(6, 4), spec, QuantSpec(8), **options).requires_grad_(False)
    assert_exported_computes_the_same(layer, torch.randn(shape), tmp_path / "linear.onnx")
    (weight,) = (
        tensor
        for tensor in onnx.load(tmp_path / "linear.onnx").graph.initializer
        if len(tensor.dims) == 2
    )
    assert weight.data_type == TensorProto.INT8


def assert_exported_computes_the_same(layer, x, path):
    with observing(layer.activation_quantizers):
        layer(x / 2)  # so that some values exceed the range
    layer.fix_()
    integer = IntegerLayer(layer)
    with torch.no_grad():
        torch.testing.assert_close(integer(x), layer(x), rtol=0, atol=1e-6)
    torch.onnx.export(integer, (x,), str(path), opset_version=17, dynamo=False, verbose=False)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, layer(x).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_sums_and_bias_are_those_of_integer_kernels(bits):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 3, padding=1)
    with torch.no_grad():
        conv.weight[1] = 0.0  # a channel of zero weights
    spec, activation = QuantSpec(bits, "symmetric", "per_channel"), QuantSpec(8)
    layer = QuantizedConv2d(conv, spec, activation, quantize_output=True).requires_grad_(False)
    x = torch.randn(1, 6, 12, 15)
    with observing(layer.activation_quantizers):
        layer(x)
    layer.fix_()
    learned = layer(x)  # with gradients: float accumulation
    with torch.no_grad():
        got = layer(x)
    integer = IntegerLayer(layer)
    read, written = integer.input_grid, integer.output_grid
    codes = np.rint(x.numpy() / read.scale.numpy()) + int(read.zero_point)
    codes = np.pad(
        np.clip(codes, 0, 255) - int(read.zero_point), ((0, 0), (0, 0), (1, 1), (1, 1))
    ).astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, (3, 3), (2, 3))
    sums = np.einsum("bchwij,ocij->bohw", windows, integer.codes.numpy().astype(np.int64))
    sums = sums + integer.bias.numpy().astype(np.int64).reshape(1, -1, 1, 1)
    values = sums * integer.bias_scale.numpy().astype(np.float64).reshape(1, -1, 1, 1)
    scale, zero = float(written.scale), int(written.zero_point)
    oracle = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    np.testing.assert_allclose(got.numpy(), oracle, rtol=0, atol=1e-5)
    assert (
        got - learned
    ).abs().max() <= 1.01 * scale  # rounding the bias changes few values, by one code


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("bits", "options"), [
    ("W8A8", {}), ("W4A8", {"pack": True}), ("W4A4", {"simulate": True}),
    ("W8A8", {"dynamic_size": True}),
])  # fmt: skip
def test_frames_equal_pytorch(tmp_path, runtime, bits, options):
    network = calibrated_network(
        bits, {"downsample_ratio": 0.5}, depthwise_granularity="per_channel"
    )
    path = export_onnx(network, *SIZE, tmp_path / "q.onnx", ExportOptions(**options))
    exported = ExportedNetwork(path, runtime, threads=1)
    parity = measure_parity(network, exported, torch.rand(4, 3, *SIZE))
    assert parity.mean < 2e-3
    assert parity.frames == 4
    if runtime == "openvino" and "pack" not in options:
        assert exported.layers["int8"] == len(quantized_layers(network))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("dynamic_size", [False, True])
def test_states_of_8_bits(tmp_path, runtime, dynamic_size, request):
    if runtime == "openvino":
        request.getfixturevalue("exact_integer_sums")
    network = calibrated_network()
    options = ExportOptions(state_bits=8, dynamic_size=dynamic_size)
    path = export_onnx(network, *SIZE, tmp_path / "q.onnx", options)
    exported = ExportedNetwork(path, runtime, threads=1)
    src = torch.rand(4, 3, *SIZE)
    after = exported.forward_frame(src[:1], exported.initial_state(src[:1])).state
    expected = network.forward_frame(src[:1], network.initial_state(src[:1])).state
    for codes, values in zip(after, expected, strict=True):
        assert codes.dtype == torch.int8
        torch.testing.assert_close(
            codes * exported.state_scale, values, rtol=0, atol=1.01 * exported.state_scale
        )
    assert measure_parity(network, exported, src, state_scale=exported.state_scale).mean < 2e-3


def test_states_without_a_bound_stay_float(tmp_path, monkeypatch):
    monkeypatch.setattr("ptq4vm.models.RobustVideoMatting.state_bound", None)
    with pytest.raises(PTQ4VMError, match="state_bound"):
        export_onnx(calibrated_network(), *SIZE, tmp_path / "q.onnx", ExportOptions(state_bits=8))


def test_only_integers_and_their_scales_are_left(tmp_path):
    network = calibrated_network()
    model = onnx.load(export_onnx(network, *SIZE, tmp_path / "q.onnx"))
    assert {node.op_type for node in model.graph.node} >= {
        "QuantizeLinear",
        "DequantizeLinear",
        "Conv",
    }
    names = initializers(model)
    assert not [
        name
        for name in names
        if any(word in name for word in ("log_scale", "shift", "rounding", "offset"))
    ]
    layers = quantized_layers(network)
    for name, layer in layers.items():
        codes = numpy_helper.to_array(names[f"network.{name}.codes"])
        assert codes.dtype == np.int8
        scale = layer.weight_quantizer.scale.numpy()
        np.testing.assert_allclose(codes * scale, layer.weight.numpy(), rtol=0, atol=1e-6)
    floats = [tensor for tensor in names.values() if tensor.data_type == TensorProto.FLOAT]
    assert max(np.prod(tensor.dims) for tensor in floats if tensor.dims) <= 960, (
        "no float weight, only one a channel"
    )


def test_rules_of_tensorrt(tmp_path):
    network = calibrated_network(activation_grid="symmetric")
    path = export_onnx(network, *SIZE, tmp_path / "q.onnx", ExportOptions(target="tensorrt"))
    model = onnx.load(path)
    source, stored = nodes_by_output(model), initializers(model)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == len(quantized_layers(network))
    for node in convolutions:
        inputs, weights = (source[name] for name in node.input[:2])
        assert inputs.op_type == weights.op_type == "DequantizeLinear", (
            "Q/DQ on both inputs of each convolution"
        )
        assert source[inputs.input[0]].op_type == "QuantizeLinear"
        axis = {attribute.name: attribute.i for attribute in weights.attribute}["axis"]
        assert axis == 0, "a scale for each output channel"
        for quantized in (inputs, weights):
            zero = resolve(quantized.input[2], source, stored)
            assert zero.dtype == np.int8
            assert not zero.any(), "symmetric"
        assert resolve(inputs.input[1], source, stored).ndim == 0, "one scale for the tensor"


def resolve(name, source, stored):
    """Return a constant; the exporter deduplicates equal constants with Identity nodes."""
    while name not in stored:
        node = source[name]
        if node.op_type == "Constant":
            return numpy_helper.to_array(node.attribute[0].t)
        name = node.input[0]
    return numpy_helper.to_array(stored[name])


@pytest.mark.parametrize("weight_grid", ["symmetric", "affine"])
def test_packed_weights_are_the_same_in_half_the_room(tmp_path, weight_grid):
    network = calibrated_network("W4A8", weight_grid=weight_grid)
    wide, packed = (
        export_onnx(network, *SIZE, tmp_path / f"{pack}.onnx", ExportOptions(pack=pack))
        for pack in (False, True)
    )
    assert packed.stat().st_size < 0.62 * wide.stat().st_size
    model, other = onnx.load(packed), onnx.load(wide)
    assert model.opset_import[0].version == 21
    mine, theirs = initializers(model), initializers(other)
    kind = TensorProto.INT4 if weight_grid == "symmetric" else TensorProto.UINT4
    weights = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in mine
    ]
    four_bits = [node for node in weights if mine[node.input[0]].data_type == kind]
    assert len(four_bits) == len(quantized_layers(network)) - 2, "first and last layer have 8 bits"
    for node in four_bits:
        codes, zero_point = (
            numpy_helper.to_array(mine[node.input[i]]).astype(np.int8) for i in (0, 2)
        )
        got = codes - zero_point.reshape(-1, *(1,) * (codes.ndim - 1))
        np.testing.assert_array_equal(got, numpy_helper.to_array(theirs[node.input[0]]))
    src = torch.rand(2, 3, *SIZE)
    assert (
        measure_parity(network, ExportedNetwork(packed, "onnxruntime", threads=1), src).mean < 2e-3
    )


@pytest.mark.parametrize(("target", "settings", "message"), [
    ("openvino", {"bits": "W4A4"}, "activations of 4 bits.*--simulate"),
    ("tensorrt", {"depthwise_granularity": "per_channel", "activation_grid": "symmetric"},
     "a grid for each channel"),
    ("onnxruntime", {}, "placement deploy.*--target.*full"),
    ("tensorrt", {}, "an affine grid.*activation_grid symmetric"),
    ("openvino", {"placement": "paper"}, "placement paper.*deploy"),
])  # fmt: skip
def test_what_a_target_does_not_execute_is_refused(tmp_path, target, settings, message):
    network = calibrated_network(**settings)
    with pytest.raises(PTQ4VMError, match=message):
        export_onnx(network, *SIZE, tmp_path / "q.onnx", ExportOptions(target=target))
    assert not list(tmp_path.iterdir())


def test_a_network_that_was_never_calibrated_is_refused(tmp_path):
    with pytest.raises(PTQ4VMError, match="calibrated"):
        export_onnx(quantize_network(random_network(), QConfig()), *SIZE, tmp_path / "q.onnx")


def test_a_network_that_was_never_saved_is_described_by_its_qconfig(tmp_path):
    network = calibrated_network("W4A8", layer_bits={"project_mat.conv": "W6A8"})
    assert network.qconfig.bits == "W4A8"
    facts = ExportedNetwork(export_onnx(network, *SIZE, tmp_path / "q.onnx")).facts
    expected = network_facts(network, *SIZE)
    assert facts.bits.startswith("W4A8 mixed")
    assert (facts.bits, facts.placement) == (expected.bits, "deploy")
    assert facts.bit_operations == expected.bit_operations
    assert facts.effective_flops == expected.effective_flops
    assert (expected.runtime, facts.runtime) == ("torch", "openvino")


@pytest.mark.parametrize("left", ["weight", "affine"])
def test_a_network_that_still_learns_is_refused_with_the_remedy(tmp_path, left):
    qconfig = QConfig("W8A8", range_method="minmax")
    network = quantize_network(random_network(), qconfig)
    with torch.no_grad(), observing(activation_quantizers(network)):
        network.unroll(torch.rand(1, 1, 3, *SIZE))
    layers = quantized_layers(network)
    for layer in layers.values():
        layer.fix_()
    if left == "affine":
        next(iter(layers.values())).start_affine(per_channel=True)
    else:
        fresh = quantized_layers(quantize_network(random_network(), qconfig))
        for name, layer in layers.items():
            layer.weight_quantizer = fresh[name].weight_quantizer
    with pytest.raises(PTQ4VMError, match=r"fixed codes.*fix_\(\) and absorb_affine_\(\)"):
        export_onnx(network, *SIZE, tmp_path / "q.onnx")
    assert not list(tmp_path.iterdir())


def test_with_outputs_quantized_onnx_runtime_executes_integers(tmp_path):
    network = calibrated_network(placement="full")
    path = export_onnx(network, *SIZE, tmp_path / "q.onnx", ExportOptions(target="onnxruntime"))
    exported = ExportedNetwork(path, "onnxruntime", threads=1)
    layers = quantized_layers(network)
    assert (
        exported.layers["int8"]
        >= sum(layer.output_quantizer is not None for layer in layers.values())
        > 50
    )
    model = onnx.load(path)
    stored = initializers(model)
    weights = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    ]
    zeros = {
        node.input[2] for node in weights if stored[node.input[0]].data_type == TensorProto.INT8
    }
    assert len(zeros & stored.keys()) == len(layers), (
        "none is shared: ONNX Runtime may rewrite each"
    )
    assert measure_parity(network, exported, torch.rand(4, 3, *SIZE)).mean < 2e-3


def test_simplification_changes_nothing(tmp_path, monkeypatch):
    network = calibrated_network(placement="full")
    simple = export_onnx(
        network, *SIZE, tmp_path / "simple.onnx", ExportOptions(target="onnxruntime")
    )
    for name in ("drop_whole_slices", "quantize_before_concat", "unshare_zero_points"):
        monkeypatch.setattr(f"ptq4vm.deploy.onnx.{name}", lambda model: None)
    plain = export_onnx(
        network, *SIZE, tmp_path / "plain.onnx", ExportOptions(target="onnxruntime")
    )
    kinds = [[node.op_type for node in onnx.load(path).graph.node] for path in (simple, plain)]
    assert kinds[0].count("Slice") == kinds[1].count("Slice") - 8, (
        "height and width of four crops that crop nothing"
    )
    assert kinds[0].count("QuantizeLinear") > kinds[1].count("QuantizeLinear")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    src = torch.rand(1, 3, *SIZE)
    feed = {
        "src": src,
        **{f"r{i}i": state for i, state in enumerate(network.initial_state(src), 1)},
    }
    results = [
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(
            None, {name: value.numpy() for name, value in feed.items()}
        )
        for path in (simple, plain)
    ]
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(got, wanted)
