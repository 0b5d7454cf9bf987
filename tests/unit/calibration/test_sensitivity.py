import copy
import json

import numpy as np
import pytest
import torch

from ptq4vm.calibration import make_teacher
from ptq4vm.calibration.layer_errors import LayerError, LayerSensitivity, Sensitivity
from ptq4vm.calibration.sensitivity import _Walk, list_layers, measure_sensitivity
from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.flow import create_flow
from ptq4vm.graph import quantize_network, quantized_layers
from ptq4vm.models import create_model
from ptq4vm.quantizers import QConfig, activation_quantizers, disable_quantization, observing

QCONFIG = QConfig(range_method="minmax")
LAYERS = [
    "backbone.features.0.0",
    "backbone.features.12.block.3.0",
    "decoder.decode2.gru.hh.0",
    "project_mat.conv",
]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = create_model("rvm_mobilenetv3").train()
    # Estimate BatchNorm statistics; otherwise the activations of random weights vanish.
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for _ in range(3):
            network.unroll(torch.rand(2, 2, 3, 64, 64))
    # Move alpha to the middle of its range; otherwise the clamp hides differences.
    network.project_mat.conv.weight.data *= 0.3
    network.project_mat.conv.bias.data[3] = 0.5
    return network.eval()


@pytest.fixture(scope="module")
def data(network, tmp_path_factory):
    data = VideoMattingDataModule(
        num_sequences=3,
        seq_length=3,
        height=32,
        width=48,
        cache_dir=tmp_path_factory.mktemp("cache"),
    )
    data.attach(make_teacher(network), create_flow("dis"))
    return data


@pytest.fixture
def few(monkeypatch):
    """Restrict the measurement to four layers."""
    monkeypatch.setattr(_Walk, "layers", lambda walk, position: [
        name for name in LAYERS
        if any(name.startswith(f"{m}.") for m in walk.blocks["W4A4"][position].modules)
    ])  # fmt: skip


def measured_alone(network, data, name, bits):
    """Measure one layer by converting the network with all other layers float.

    Returns:
        MAD x10^3 and dtSSD x10^2 to the teacher's alpha.
    """
    others = tuple(
        layer.name
        for layer in list_layers(network, QCONFIG, *data.size).layers
        if layer.name != name
    )
    qconfig = QConfig(
        bits, range_method="minmax", ignored_modules=("refiner", *others), layer_bits={name: bits}
    )
    converted = quantize_network(network, qconfig)
    clips = [data.calibration_set[index] for index in range(2)]
    with torch.no_grad():
        # Observe with float weights: a GRU layer's own outputs are part of its input.
        with (
            observing(activation_quantizers(converted)),
            disable_quantization(quantized_layers(converted).values()),
        ):
            for clip in clips:
                converted.unroll(clip.src[None])
        errors = [
            (converted.unroll(clip.src[None]).pha[0] - clip.teacher_pha).double().numpy()
            for clip in clips
        ]
    steps = [np.diff(error, axis=0, prepend=error[:1]) for error in errors]
    dtssd = np.sqrt(np.square(np.concatenate(steps)).mean((1, 2, 3))).mean() * 1e2
    return np.abs(np.concatenate(errors)).mean() * 1e3, dtssd


def test_a_layer_alone_equals_conversion_with_all_others_float(network, data, few):
    found = measure_sensitivity(network, data, ["w4a4"], QCONFIG, sequences=2)
    errors = {layer.name: layer.errors["W4A4"] for layer in found.layers if layer.errors}
    assert set(errors) == set(LAYERS)
    for name, error in errors.items():
        assert error.mad > 0.01
        assert tuple(error) == pytest.approx(measured_alone(network, data, name, "W4A4"), rel=2e-3)


def test_layers_come_in_order_of_execution_and_the_edges_are_fixed(network):
    layers = list_layers(network, QConfig(layer_bits={"aspp.aspp1.0": "w6a8"}), 32, 48).layers
    assert len(layers) == 78
    assert {layer.name: layer.fixed for layer in layers if layer.fixed} == {
        "backbone.features.0.0": "W8A8", "aspp.aspp1.0": "W6A8", "project_mat.conv": "W8A8",
    }  # fmt: skip
    assert layers[0].macs == 16 * 24 * 432
    assert layers[0].weights == 432


def test_what_was_measured_is_not_measured_again(network, data, few, tmp_path, monkeypatch):
    path, seen = tmp_path / "sensitivity.json", []
    measure = _Walk.error

    def killed(walk, position, name, bits):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(name)
        return measure(walk, position, name, bits)

    with monkeypatch.context() as patch:
        patch.setattr(_Walk, "error", killed)
        with pytest.raises(KeyboardInterrupt):
            measure_sensitivity(network, data, ["W4A4"], QCONFIG, 2, path)
    assert sum(bool(layer["errors"]) for layer in json.loads(path.read_text())["layers"]) == 2
    told = []
    found = measure_sensitivity(
        network, data, ["W4A4"], QCONFIG, 2, path, lambda done, total, what: told.append(what)
    )
    assert [what.split()[0] for what in told[:-1]] == LAYERS[2:]
    assert found == measure_sensitivity(network, data, [], QCONFIG, 2, path)
    with pytest.raises(PTQ4VMError, match="sequences: 2 there, 1 now"):
        measure_sensitivity(network, data, ["W4A4"], QCONFIG, 1, path)
    other = copy.deepcopy(network)
    other.project_mat.conv.bias.data += 0.01
    with pytest.raises(PTQ4VMError, match=r"network: rvm_mobilenetv3-\w+-1 there"):
        measure_sensitivity(other, data, ["W4A4"], QCONFIG, 2, path)
    path.write_text("{}")
    with pytest.raises(PTQ4VMError, match="Remove it"):
        measure_sensitivity(network, data, ["W4A4"], QCONFIG, 2, path)


@pytest.mark.parametrize(
    ("bits", "sequences", "message"), [(["W4"], 1, "W<weights>"), (["W4A4"], 0, "at least one")]
)
def test_bad_arguments(network, data, bits, sequences, message):
    with pytest.raises(PTQ4VMError, match=message):
        measure_sensitivity(network, data, bits, QCONFIG, sequences)


def test_ranking_counts_mad_and_dtssd_the_same():
    errors = {"a": (30.0, 0.1), "b": (10.0, 0.5), "c": (20.0, 0.2)}
    found = Sensitivity(
        tuple(LayerSensitivity(n, 1, 1, None, {"W4A4": LayerError(*e)}) for n, e in errors.items())
    )
    assert [layer.name for layer in found.ranked("W4A4")] == ["b", "a", "c"]
