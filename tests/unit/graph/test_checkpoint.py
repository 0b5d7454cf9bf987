import pytest
import torch

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import load_quantized, network_cost, quantize_network, quantized_layers, save_quantized
from ptq4vm.graph.trace import example_frame
from ptq4vm.models import create_model
from ptq4vm.quantizers import QConfig, activation_quantizers, observing


@pytest.fixture(scope="module", params=["W8A8", "W4A4"])
def quantized(request):
    torch.manual_seed(0)
    qconfig = QConfig(request.param, range_method="minmax")
    network = quantize_network(create_model("rvm_mobilenetv3"), qconfig)
    src = torch.rand(1, 2, 3, 64, 64)
    with torch.no_grad(), observing(activation_quantizers(network)):
        network.unroll(src)
    for layer in quantized_layers(network).values():
        layer.start_affine(per_channel=True)
        layer.affine.log_scale.data.uniform_(-0.1, 0.1)
        layer.affine.shift.data.uniform_(-0.1, 0.1)
        layer.fix_()
    return network, qconfig, src


def test_absorbed_saved_and_loaded_network_computes_the_same(quantized, tmp_path):
    network, qconfig, src = quantized
    with torch.no_grad():
        before = network.unroll(src)
        for layer in quantized_layers(network).values():
            layer.absorb_affine_()
        save_quantized(network, qconfig, tmp_path / "q.safetensors", {})
        loaded, loaded_qconfig = load_quantized(tmp_path / "q.safetensors")
        absorbed, after = network.unroll(src), loaded.unroll(src)
    assert loaded_qconfig == qconfig
    # γ times a weight is not γ times a scale times a code, bit for bit: one rounding more.
    torch.testing.assert_close(absorbed.pha, before.pha, rtol=0, atol=2e-2)
    torch.testing.assert_close(after.pha, absorbed.pha, rtol=0, atol=2e-2)
    assert (after.pha - absorbed.pha).abs().mean() < 1e-4


def test_first_and_last_executed_layers_have_eight_bits(quantized):
    network, _, _ = quantized
    layers = quantized_layers(network)
    assert layers["backbone.features.0.0"].weight_quantizer.spec.bits == 8
    assert layers["project_mat.conv"].activation_spec.bits == 8
    assert not any(name.startswith(("refiner", "project_seg")) for name in layers)


def test_cost_of_the_float_network_matches_the_paper():
    cost = network_cost(create_model("rvm_mobilenetv3"), 288, 512)
    assert cost.macs == pytest.approx(4.5, abs=0.1)
    assert cost.bit_operations == pytest.approx(cost.macs * 1024)
    assert cost.size_mb == pytest.approx(14.9, abs=0.2)


def test_garbage_is_refused(tmp_path):
    path = tmp_path / "q.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(PTQ4VMError, match="quantized checkpoint"):
        load_quantized(path)


def test_example_frame_is_on_the_networks_device():
    assert example_frame(create_model("rvm_mobilenetv3"), 32, 48).shape == (1, 3, 32, 48)
