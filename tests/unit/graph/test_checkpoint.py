import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save, save_file

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import (
    load_quantized,
    network_cost,
    quantize_network,
    quantized_layers,
    read_header,
    save_quantized,
)
from ptq4vm.graph.trace import example_frame
from ptq4vm.models import create_model
from ptq4vm.quantizers import QConfig, WeightQuantizer, activation_quantizers, observing


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
    # Not bit-identical: (γ * scale) * code is rounded differently from γ * (scale * code).
    torch.testing.assert_close(absorbed.pha, before.pha, rtol=0, atol=2e-2)
    torch.testing.assert_close(after.pha, absorbed.pha, rtol=0, atol=2e-2)
    assert (after.pha - absorbed.pha).abs().mean() < 1e-4


@pytest.mark.parametrize("offset", [-3.0, -0.2, 0.4, 1.7])
def test_a_zero_point_that_learned_to_leave_its_codes_is_bounded(quantized, tmp_path, offset):
    network, qconfig, src = quantized
    network = copy.deepcopy(network)
    layer = quantized_layers(network)["aspp.aspp1.0"]
    with torch.no_grad():
        layer.input_quantizer.offset.fill_(offset)
        before = network.unroll(src).pha
        layer.fix_()
        assert torch.equal(network.unroll(src).pha, before)
    assert layer.input_quantizer.offset.item() == pytest.approx(min(max(offset, -0.5), 1.5))
    for one in quantized_layers(network).values():
        one.absorb_affine_()
    save_quantized(network, qconfig, tmp_path / "bounded.safetensors", {})
    load_quantized(tmp_path / "bounded.safetensors")


def without_absorbed(path, made, into):
    """Rewrite a checkpoint in the format of older versions, without the absorbed γ."""
    with safe_open(path, "pt") as file:
        tensors = {
            name: file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
            if not name.endswith((".absorbed", ".input_scale", ".input_shift"))
        }
    header = {**read_header(path), "made": made}
    save_file(tensors, into, metadata={"ptq4vm": json.dumps(header)})
    return into


def test_absorbed_scales_are_kept_and_old_checkpoints_load(saved, tmp_path):
    name = "aspp.aspp1.0"
    network, qconfig = load_quantized(saved)
    layer = quantized_layers(network)[name]
    fresh = WeightQuantizer(layer.weight, layer.weight_quantizer.spec)
    assert layer.weight_quantizer.absorbed.shape == fresh.scale.shape
    assert layer.weight_quantizer.absorbed.log().abs().max() == pytest.approx(0.1, abs=0.02)
    old = without_absorbed(saved, {"phase": "block_reconstruction"}, tmp_path / "biq.safetensors")
    layer = quantized_layers(load_quantized(old)[0])[name]
    assert torch.equal(
        layer.weight_quantizer.absorbed, torch.ones_like(layer.weight_quantizer.scale)
    )
    old = without_absorbed(saved, {"phase": "gac", "flow": 0.0}, tmp_path / "gac.safetensors")
    for path in (old, tmp_path / "again.safetensors"):
        network, _ = load_quantized(path)
        quantizer = quantized_layers(network)[name].weight_quantizer
        assert quantizer.reference(layer.weight) is None
        with pytest.raises(PTQ4VMError, match="weight_lr to 0"):
            quantizer.start_latent(layer.weight, layer.weight)
        save_quantized(network, qconfig, tmp_path / "again.safetensors", {"phase": "gac"})


def test_scaled_inputs_are_kept(quantized, tmp_path):
    network, qconfig, src = quantized
    torch.manual_seed(0)
    plain = create_model("rvm_mobilenetv3")
    network = quantize_network(plain, qconfig)
    layer = quantized_layers(network)["aspp.aspp1.0"]
    shape = layer.input_scale.shape
    layer.scale_input_(torch.where(torch.rand(shape) < 0.5, 0.25, 1.0), torch.rand(shape))
    with torch.no_grad(), observing(activation_quantizers(network)):
        network.unroll(src)
    for one in quantized_layers(network).values():
        one.fix_()
    save_quantized(network, qconfig, tmp_path / "scaled.safetensors", {})
    loaded, _ = load_quantized(tmp_path / "scaled.safetensors")
    layer = quantized_layers(loaded)["aspp.aspp1.0"]
    assert layer.scales_input
    assert layer.shifts_input
    with torch.no_grad():
        assert torch.equal(loaded.unroll(src).pha, network.unroll(src).pha)


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
    assert cost.effective_flops == pytest.approx(cost.macs)
    assert cost.size_mb == pytest.approx(14.9, abs=0.2)


def test_garbage_is_refused(tmp_path):
    path = tmp_path / "q.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(PTQ4VMError, match="quantized checkpoint"):
        load_quantized(path)


def test_example_frame_is_on_the_networks_device():
    assert example_frame(create_model("rvm_mobilenetv3"), 32, 48).shape == (1, 3, 32, 48)


@pytest.fixture(scope="module")
def saved(quantized, tmp_path_factory):
    network, qconfig, _ = quantized
    network = copy.deepcopy(network)
    for layer in quantized_layers(network).values():
        layer.absorb_affine_()
    path = tmp_path_factory.mktemp("saved") / "q.safetensors"
    save_quantized(network, qconfig, path, {})
    return path


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil"),)


def rewritten(data, change):
    """Apply `change` to the safetensors header, with the ptq4vm header in it parsed."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = {"ptq4vm": json.loads(header["__metadata__"]["ptq4vm"])}
    change(header)
    header["__metadata__"]["ptq4vm"] = json.dumps(header["__metadata__"]["ptq4vm"])
    changed = json.dumps(header).encode()
    return len(changed).to_bytes(8, "little") + changed + data[8 + size :]


def test_a_checkpoint_with_the_former_names_of_settings_loads(tmp_path, saved):
    def former(header):
        qconfig = header["__metadata__"]["ptq4vm"]["qconfig"]
        qconfig["edge_bits"] = qconfig.pop("first_last_bits")
        qconfig["float_modules"] = qconfig.pop("ignored_modules")
        qconfig["equalize"] = False

    path = tmp_path / "former.safetensors"
    path.write_bytes(rewritten(saved.read_bytes(), former))
    network, qconfig = load_quantized(path)
    assert qconfig == network.qconfig
    assert (qconfig.first_last_bits, qconfig.ignored_modules) == (8, ("refiner",))


def test_an_equalized_checkpoint_is_refused(tmp_path, saved):
    def equalized(header):
        header["__metadata__"]["ptq4vm"]["qconfig"]["equalize"] = True

    path = tmp_path / "equalized.safetensors"
    path.write_bytes(rewritten(saved.read_bytes(), equalized))
    with pytest.raises(PTQ4VMError, match="Quantize the float network again"):
        load_quantized(path)


def ours(**changes):
    return lambda header: header["__metadata__"]["ptq4vm"].update(changes)


def renamed(header):
    header["../../../evil"] = header.pop("project_mat.conv.bias")


def reshaped(header):
    header["project_mat.conv.bias"]["shape"] = [2, 2]


def retyped(header):
    header["project_mat.conv.bias"]["dtype"] = "I32"


def too_large(header):
    header["project_mat.conv.bias"].update(shape=[2**40], data_offsets=[0, 2**42])


@pytest.mark.parametrize(
    "forge",
    [
        lambda data: (2**62).to_bytes(8, "little") + data[8:],
        lambda data: (10**8 + 1).to_bytes(8, "little") + data[8:],
        lambda data: pickle.dumps(Evil()),
        lambda data: data[:-1],
        lambda data: rewritten(data, renamed),
        lambda data: rewritten(data, reshaped),
        lambda data: rewritten(data, retyped),
        lambda data: rewritten(data, too_large),
        lambda data: rewritten(data, ours(network="../../evil")),
        lambda data: rewritten(data, ours(arguments={"weights": "/etc/passwd"})),
        lambda data: rewritten(data, ours(arguments=["downsample_ratio"])),
        lambda data: rewritten(data, ours(qconfig={"bits": "W4A4", "range_method": "../evil"})),
        lambda data: rewritten(data, ours(qconfig={"bits": "W99A4"})),
        lambda data: rewritten(data, ours(qconfig="W4A4")),
        lambda data: rewritten(data, lambda header: header["__metadata__"].update(ptq4vm=[])),
        lambda data: rewritten(data, ours(format_version=True)),
        lambda data: rewritten(data, ours(arguments={"report": "print"})),
        lambda data: rewritten(data, ours(arguments={"refiner": "/etc/passwd"})),
        lambda data: rewritten(data, ours(qconfig={"bits": "W4A4", "first_last_bits": 8.0})),
        lambda data: rewritten(data, ours(qconfig={"bits": "W4A4", "further": 1})),
        lambda data: rewritten(data, ours(layers={})),
        lambda data: rewritten(data, ours(layers={"project_mat.conv": "W9A9"})),
        lambda data: rewritten(
            data, lambda header: header["project_mat.conv.bias"].update(dtype="F4")
        ),
    ],
)
def test_a_forged_checkpoint_is_refused(forge, tmp_path, saved, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "q.safetensors"
    path.write_bytes(forge(saved.read_bytes()))
    with pytest.raises(PTQ4VMError):
        load_quantized(path)
    assert [one.name for one in tmp_path.iterdir()] == ["q.safetensors"]


def changed(data, name, value):
    """Replace the first value of a tensor in a checkpoint."""
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size])["__metadata__"]
    tensors = load(data)
    tensors[name].view(-1)[0] = value
    return save(tensors, metadata)


WEIGHTS, INPUTS = (
    "decoder.decode1.conv.0.weight_quantizer",
    "decoder.decode1.conv.0.input_quantizer",
)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (f"{WEIGHTS}.scale", [0.0, -1.0, 1e-40, 1e38, float("nan")]),
        (f"{WEIGHTS}.zero_point", [0.5, 300.0, -1e9, 1.0]),
        (f"{INPUTS}.log_scale", [-90.0, 90.0]),
        (f"{INPUTS}.offset", [-1.0, 2.0, -1e9]),
        (f"{INPUTS}.ready", [False]),
    ],
)
def test_values_that_a_grid_cannot_have_are_refused_by_name(name, values, tmp_path, saved):
    path = tmp_path / "q.safetensors"
    for value in values:
        path.write_bytes(changed(saved.read_bytes(), name, value))
        with pytest.raises(PTQ4VMError, match=name):
            load_quantized(path)


def calibrated(qconfig):
    torch.manual_seed(0)
    network = quantize_network(create_model("rvm_mobilenetv3"), qconfig)
    with torch.no_grad(), observing(activation_quantizers(network)):
        network.unroll(torch.rand(1, 2, 3, 64, 64))
    for layer in quantized_layers(network).values():
        layer.fix_()
    return network


def test_affine_weights_and_grids_of_channels_load_as_they_were_saved(tmp_path):
    grids = {"weight_grid": "affine", "depthwise_granularity": "per_channel"}
    qconfig = QConfig("W3A6", range_method="minmax", **grids)
    network, path = calibrated(qconfig), tmp_path / "q.safetensors"
    save_quantized(network, qconfig, path, {})
    loaded, wanted = load_quantized(path)[0].state_dict(), network.state_dict()
    assert loaded.keys() == wanted.keys()
    for name, value in loaded.items():
        torch.testing.assert_close(value, wanted[name], msg=name)
    name, spec = (
        "decoder.decode1.conv.0",
        quantized_layers(network)["decoder.decode1.conv.0"].weight_quantizer.spec,
    )
    assert (spec.bits, spec.grid) == (3, "affine")
    for part, value in (("zero_point", 8.0), ("zero_point", 2.5)):
        path.write_bytes(changed(path.read_bytes(), f"{name}.weight_quantizer.{part}", value))
        with pytest.raises(PTQ4VMError, match="integers from 0 to 7"):
            load_quantized(path)
    save_quantized(network, qconfig, path, {})
    path.write_bytes(changed(path.read_bytes(), f"{name}.weight", 0xFF))
    with pytest.raises(PTQ4VMError, match=r"codes of 3 bits, from 0 to 7, .*got some from 0 to 15"):
        load_quantized(path)
