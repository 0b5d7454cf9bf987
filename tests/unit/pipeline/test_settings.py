import dataclasses
from pathlib import Path

import pytest

from ptq4vm.data import VideoMattingDataModule
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import quantize_network
from ptq4vm.models import create_model, float_network
from ptq4vm.phases import BlockReconstructionSettings, GACModule, GACSettings
from ptq4vm.pipeline import Method, QuantizeSettings
from ptq4vm.pipeline.settings import row_plan
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
        ({"scale": "1/0"}, "a scale above 0 and up to 1, such as 1/100, got '1/0'"),
        ({"scale": "tenth"}, "a scale above 0 and up to 1"),
        ({"scale": 1.5}, "a scale above 0 and up to 1, such as 1/100, got 1.5"),
        ({"scale": float("nan")}, "a scale above 0 and up to 1"),
        ({"budget": 0.1}, "a budget only with bits auto"),
        ({"target": "openvino", "qconfig": QConfig(placement="paper")}, "placement deploy, which"),
        (
            {"target": "tensorrt", "qconfig": QConfig(activation_grid="unsigned")},
            "activation_grid symmetric, which TensorRT executes, got unsigned",
        ),
        (
            {"rows": {"a": Method("A", options={"window": 2})}},
            "of the row 'A' to be settings of BlockReconstructionSettings, got window",
        ),
        ({"rows": {"a": Method("A", qconfig={"bits": "W1A1"})}}, "2 to 8 bits"),
        ({"rows": {"a": Method("A", qconfig={"placment": "full"})}}, "of QConfig, got placment"),
        ({"rows": {"float": Method("A")}}, "other than float, quantized, got 'float'"),
        ({"rows": {"quantized": Method("A")}}, "other than float, quantized"),
        ({"rows": {1: Method("A")}}, "got 1"),
        ({"rows": {"a": Method("A", qconfig={"weight_grid": "affine"})}}, "weights of 8 bits"),
        (
            {
                "rows": {"a": Method("A", options={"granularity": "layer"})},
                "qconfig": QConfig(placement="full"),
            },
            "Expected granularity block with placement full",
        ),
        (
            {"rows": {"a": Method("A", qconfig={"placement": "paper"})}, "target": "onnxruntime"},
            "Expected the result for W8A8 to be executed by ONNX Runtime, got placement paper",
        ),
        ({"qconfig": QConfig("W4A4")}, r"Write --bits \[W4A4\]"),
        ({"bits": "W4A8"}, r"a list of bits, e.g. \[W8A8\], got 'W4A8'"),
        ({"bits": ["W8A8", "w8a8"]}, "each once, got W8A8, W8A8"),
        ({"gac": {"lr": 1.0}}, "Expected gac to be GACSettings"),
        ({"scoring": "foo"}, "for scoring"),
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


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (GACSettings, {"window": 0}, "a window of at least 1 frame, got 0"),
        (GACSettings, {"average": 1.5}, r"average within \[0, 1\), got 1.5"),
        (GACSettings, {"affine": "foo"}, "for affine"),
        (GACSettings, {"truth_weight": -1.0}, "truth_weight of at least 0, got -1"),
        (GACSettings, {"lr": "abc"}, "for lr"),
        (GACSettings, {"flow": "raft"}, "flow_weights with flow raft, .* got none with raft"),
        (BlockReconstructionSettings, {"drop_prob": 2.0}, r"drop_prob within \[0, 1\]"),
        (BlockReconstructionSettings, {"granularity": "channel"}, "for granularity"),
        (BlockReconstructionSettings, {"flow_weights": Path("x")}, "none with dis, got x"),
    ],
)
def test_settings_of_a_phase_are_checked_at_once(kind, settings, message):
    with pytest.raises(PTQ4VMError, match=message):
        kind(**settings)


def test_a_row_with_fewer_bits_keeps_the_weight_grid():
    rows = {"a": Method("A", qconfig={"bits": "W4A4"}), "b": Method("B")}
    settings = QuantizeSettings(rows=rows, qconfig=QConfig(weight_grid="affine"))
    assert settings.plans(rows["a"])["W8A8"].weight_grid == "affine"
    run = settings.run_plans()["W8A8"]
    assert [row_plan(run, rows[name]).weight_grid for name in rows] == ["affine", "symmetric"]
    assert settings.plans(rows["b"])["W8A8"].weight_grid == "symmetric"


def test_the_budget_is_the_given_one():
    assert QuantizeSettings(bits=["auto"], budget=0.2).share == 0.2
    given, left_out = QuantizeSettings(bits=["auto"], budget=0.0), QuantizeSettings(bits=["auto"])
    assert given.plain() == left_out.plain()
    assert QuantizeSettings().plain()["budget"] is None


def test_the_result_has_the_changes_of_the_row_it_starts_from():
    rows = {"a": Method("A", qconfig={"bits": "W4A4"}), "b": Method("B", start="a")}
    (plan,) = QuantizeSettings(rows=rows).final_plans().values()
    assert (plan.bits, plan.fewest_activation_bits) == ("W4A4", 4)


def test_a_quantized_network_is_no_float_network():
    network = quantize_network(create_model("rvm_mobilenetv3"), QConfig())
    with pytest.raises(PTQ4VMError, match="Expected a float network, got rvm_mobilenetv3 quant"):
        float_network(network)


def test_a_scale_divides_counts_down_to_one():
    settings = QuantizeSettings(scale="1/100")
    assert [settings.scaled(count) for count in (20000, 55, 8)] == [200, 1, 1]
    assert QuantizeSettings().scaled(20000) == 20000
    assert QuantizeSettings(scale=0.1).scaled(20) == 2
