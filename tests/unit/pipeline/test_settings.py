import dataclasses

import pytest

from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import quantize_network
from ptq4vm.models import create_model, float_network
from ptq4vm.phases import BlockReconstructionSettings, GACModule, GACSettings
from ptq4vm.pipeline import Method, QuantizeSettings
from ptq4vm.quantizers import QConfig


def test_plans_follow_the_target():
    plans = QuantizeSettings(bits=["W8A8", "W4A8"], target="openvino").plans()
    assert {bits: plan.bits for bits, plan in plans.items()} == {"W8A8": "W8A8", "W4A8": "W4A8"}
    assert {plan.depthwise_granularity for plan in plans.values()} == {"per_channel"}
    (plan,) = QuantizeSettings(target="onnxruntime").plans().values()
    assert plan.placement == "full"
    own = QConfig(placement="full")  # executed by OpenVINO too
    (plan,) = QuantizeSettings(target="openvino", qconfig=own).plans().values()
    assert (plan.placement, plan.depthwise_granularity) == ("full", "per_tensor")


def test_a_weight_grid_applies_below_8_bits_only():
    affine = QConfig(weight_grid="affine")
    settings = QuantizeSettings(bits=["W8A8", "W4A8"], qconfig=affine)
    grids = {bits: plan.weight_grid for bits, plan in settings.plans().items()}
    assert grids == {"W8A8": "symmetric", "W4A8": "affine"}
    with pytest.raises(PTQ4VMError, match="weight_grid symmetric with weights of 8 bits"):
        QuantizeSettings(qconfig=affine)
    network = create_model("rvm_mobilenetv3")
    with pytest.raises(PTQ4VMError, match="weight_grid symmetric with weights of 8 bits"):
        quantize_network(network, affine)
    quantize_network(network, QConfig(weight_grid="affine", layer_bits={"aspp.aspp1.0": "W4A8"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": []}, "at least one of bits"),
        ({"block_steps": 0}, "block_steps of at least 1, got 0"),
        ({"budget": 0.1}, "a budget only with bits auto"),
        ({"target": "openvino", "qconfig": QConfig(placement="paper")}, "placement deploy, which"),
        (
            {"target": "tensorrt", "qconfig": QConfig(activation_grid="unsigned")},
            "activation_grid symmetric, which TensorRT executes, got unsigned",
        ),
        ({"rows": {"a": Method("A", options={"window": 2})}}, "BlockReconstructionSettings in the"),
        ({"rows": {"a": Method("A", qconfig={"bits": "W1A1"})}}, "2 to 8 bits"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(PTQ4VMError, match=message):
        QuantizeSettings(**settings)


def test_rows_override_the_settings_of_their_phase():
    rows = {"brecq": Method("BRECQ", options={"drop_prob": 0.0}), "ours": Method("ours", "brecq")}
    settings = QuantizeSettings(rows=rows, gac=GACSettings(lr=0.5))
    assert settings.options(rows["brecq"]) == BlockReconstructionSettings(drop_prob=0.0)
    assert settings.options(rows["ours"]).lr == 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.gac_epochs = 3


def test_a_loss_against_the_truth_needs_labels(tmp_path):
    data = VideoMattingDataModule(labels=False, cache_dir=tmp_path)
    with pytest.raises(PTQ4VMError, match=r"truth_weight 0 without labels, got 0.5"):
        QuantizeSettings().require_data(data)
    QuantizeSettings(gac=GACSettings(truth_weight=0.0)).require_data(data)


def test_a_network_in_memory_brings_its_own_weights():
    network = create_model("rvm_mobilenetv3", downsample_ratio=0.5)
    assert float_network(network) is network
    with pytest.raises(PTQ4VMError, match="Leave them out"):
        float_network(network, weights="mine.pth")
    network.name = "unknown"
    with pytest.raises(PTQ4VMError, match="register_model"):
        float_network(network)


def test_unknown_settings_of_a_phase_are_refused(tmp_path):
    with pytest.raises(TypeError, match="learning_rate"):
        GACModule(tmp_path / "missing", learning_rate=1.0)
