"""Tests of exported graphs as matting networks, and of invalid graphs."""

import importlib
import json

import onnx
import pytest
import torch

from ptq4vm.deploy import (
    ExportedNetwork,
    ExportOptions,
    choose_downsample_ratio,
    export_onnx,
    is_exported,
    matte,
    measure_parity,
    open_network,
)
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import network_facts
from ptq4vm.models import create_model
from ptq4vm.phases import MattingModule

SIZE = (48, 64)


@pytest.fixture(scope="module")
def graph(random_rvm, tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "float.onnx"
    return export_onnx(random_rvm, *SIZE, path, ExportOptions(target="onnxruntime"))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_sequence_equals_pytorch(random_rvm, graph, runtime):
    exported = ExportedNetwork(graph, runtime, threads=1)
    src = torch.rand(1, 3, 3, *SIZE)
    with torch.no_grad():
        got, wanted = exported.unroll(src), random_rvm.unroll(src)
    torch.testing.assert_close(got.pha, wanted.pha, rtol=0, atol=1e-4)
    torch.testing.assert_close(got.fgr, wanted.fgr, rtol=0, atol=1e-4)
    for mine, theirs in zip(got.state, wanted.state, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    assert exported.layers == {"int8": 0, "float32": 78}


def test_open_size_takes_its_states_from_the_frames(random_rvm, tmp_path):
    path = export_onnx(random_rvm, *SIZE, tmp_path / "open.onnx", ExportOptions(dynamic_size=True))
    exported = ExportedNetwork(path, "onnxruntime", threads=1)
    assert exported.size is None
    assert measure_parity(random_rvm, exported, torch.rand(2, 3, 50, 70)).highest < 1e-4


def test_parity_counts_what_differs(random_rvm, graph):
    other = create_model("rvm_mobilenetv3")
    parity = measure_parity(
        other, ExportedNetwork(graph, "onnxruntime", threads=1), torch.rand(2, 3, *SIZE)
    )
    assert parity.frames == 2
    assert 0 < parity.mean < parity.highest <= 1
    assert 0 < parity.share <= 1


def test_frames_and_ratios_of_other_kinds_are_refused(graph, tmp_path):
    exported = ExportedNetwork(graph)
    assert exported.runtime == "onnxruntime", "what it was exported for"
    with pytest.raises(
        PTQ4VMError, match=r"Expected frames of 48 x 64 .*got \(1, 3, 64, 64\).*--dynamic_size"
    ):
        list(matte(exported, [torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()]))
    with pytest.raises(PTQ4VMError, match="one at a time"):
        exported.initial_state(torch.zeros(2, 3, *SIZE))
    with pytest.raises(PTQ4VMError, match=r"Expected the downsample ratio 1 that .* got 0\.5"):
        exported.downsample_ratio = 0.5
    exported.downsample_ratio = 1.0
    with pytest.raises(PTQ4VMError, match="taken apart"):
        export_onnx(exported, *SIZE, tmp_path / "again.onnx")


def test_a_graph_offers_what_a_network_in_pytorch_does(random_rvm, graph):
    exported = ExportedNetwork(graph, "onnxruntime", threads=1)
    wanted = network_facts(random_rvm, *SIZE)
    got = network_facts(exported, 1, 1)
    assert got == wanted._replace(
        runtime="onnxruntime", layers="78 float32", size_mb=graph.stat().st_size / 1e6
    )
    assert choose_downsample_ratio(exported, "auto", 1080, 1920) == exported.fixed_ratio == 1
    assert random_rvm.fixed_ratio is None
    exported.to(torch.device("meta"))
    assert exported.runs_on == random_rvm.runs_on == torch.device("cpu")
    module = MattingModule(exported)
    assert not list(module.parameters())
    assert module(torch.rand(1, 2, 3, *SIZE)).pha.shape == (1, 2, 1, *SIZE)


def test_what_is_no_graph_of_ours_is_refused(graph, tmp_path):
    assert is_exported(graph)
    (tmp_path / "text.onnx").write_text("no graph")
    model = onnx.load(graph)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    (tmp_path / "half.onnx").write_bytes(graph.read_bytes()[:1000])
    for name, message in (
        ("text", "ONNX file"),
        ("other", "ptq4vm wrote"),
        ("half", "ONNX file"),
        ("none", "ONNX"),
    ):
        assert not is_exported(tmp_path / f"{name}.onnx")
        with pytest.raises(PTQ4VMError, match=message):
            ExportedNetwork(tmp_path / f"{name}.onnx")
    with pytest.raises(PTQ4VMError, match="Expected a runtime of onnxruntime, openvino, got 'tvm'"):
        ExportedNetwork(graph, "tvm")


def test_a_runtime_that_is_not_installed_is_named_with_its_extra(graph, monkeypatch):
    def no_module(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", no_module)
    with pytest.raises(PTQ4VMError, match=r'package openvino .* pip install "ptq4vm\[openvino\]"'):
        ExportedNetwork(graph, "openvino")


def forged(graph, path, change=lambda description: None, rewire=lambda graph: None):
    """Write a copy of the graph with changed metadata or nodes."""
    model = onnx.load(graph)
    description = json.loads(model.metadata_props[0].value)
    change(description)
    model.metadata_props[0].value = json.dumps(description)
    rewire(model.graph)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(("key", "values"), [
    ("network", [None, 3]),
    ("arguments", ["refiner", None]),
    ("downsample_ratio", ["0.5", 0, 2, True, None]),
    ("target", [None, []]),
    ("size", ["48x64", [48], ["48", "64"], [0, 64], [48.0, 64], [48, 65], {}]),
    ("bits", [None, 8]),
    ("placement", [None]),
    ("bit_operations", ["many", -1]),
    ("effective_flops", ["many", -1]),
    ("state_scale", ["0.1", 0, -1, 0.1]),
    ("exact_sums", ["yes"]),
    ("format_version", [True, 2, "1"]),
])  # fmt: skip
def test_a_description_of_other_kinds_is_refused_by_its_key(graph, tmp_path, key, values):
    named = "format" if key == "format_version" else key
    for value in values:
        path = forged(
            graph,
            tmp_path / "forged.onnx",
            lambda description, value=value: description.update({key: value}),
        )
        with pytest.raises(PTQ4VMError, match=named):
            open_network(str(path))
    if key not in ("format_version", "state_scale", "exact_sums", "effective_flops"):
        path = forged(graph, tmp_path / "forged.onnx", lambda description: description.pop(key))
        with pytest.raises(PTQ4VMError, match=f"nothing for {key}"):
            open_network(str(path))


@pytest.mark.parametrize(
    "rewire",
    [
        lambda graph: graph.input.pop(),
        lambda graph: graph.output.pop(),
        lambda graph: setattr(graph.input[0], "name", "frame"),
        lambda graph: setattr(
            graph.input[1].type.tensor_type.shape.dim[1], "dim_param", "channels"
        ),
        lambda graph: setattr(graph.output[1].type.tensor_type, "elem_type", 10),
        lambda graph: graph.ClearField("node"),
        lambda graph: setattr(graph.initializer[0], "data_location", onnx.TensorProto.EXTERNAL),
    ],
)
def test_foreign_nodes_under_our_description_are_refused(graph, tmp_path, rewire):
    path = forged(graph, tmp_path / "forged.onnx", rewire=rewire)
    with pytest.raises(PTQ4VMError, match=r"graph|weights inside"):
        ExportedNetwork(path, "onnxruntime", threads=1)


def test_outputs_of_other_shapes_are_refused(graph, tmp_path):
    def turn(found):
        # Change the shape of alpha and keep its declared shape.
        (last,) = [node for node in found.node if "pha" in node.output]
        last.output[:] = ["whole"]
        found.node.append(onnx.helper.make_node("Concat", ["whole", "whole"], ["pha"], axis=1))

    path = forged(graph, tmp_path / "forged.onnx", rewire=turn)
    with pytest.raises(PTQ4VMError, match=r"Expected .*forged\.onnx"):
        ExportedNetwork(path, "onnxruntime", threads=1).unroll(torch.rand(1, 1, 3, *SIZE))


@pytest.mark.parametrize(
    "arguments", [{"weights": "/etc/passwd"}, {"report": "x"}, {"refiner": "../x"}, {"wide": 3}]
)
def test_a_description_cannot_name_files(random_rvm, tmp_path, arguments):
    graph = export_onnx(random_rvm, *SIZE, tmp_path / "open.onnx", ExportOptions(dynamic_size=True))
    path = forged(
        graph, tmp_path / "forged.onnx", lambda description: description.update(arguments=arguments)
    )
    with pytest.raises(PTQ4VMError, match=next(iter(arguments))):
        ExportedNetwork(path, "onnxruntime", threads=1).initial_state(torch.rand(1, 3, *SIZE))
