"""Exported graphs behind the contract of a matting network, and what is no such graph."""

import importlib

import onnx
import pytest
import torch

from ptq4vm.errors import PTQ4VMError
from ptq4vm.export import export_onnx
from ptq4vm.inference import ExportedNetwork, is_exported, matte, measure_parity
from ptq4vm.models import create_model

SIZE = (48, 64)


@pytest.fixture(scope="module")
def graph(random_rvm, tmp_path_factory):
    return export_onnx(random_rvm, *SIZE, tmp_path_factory.mktemp("graphs") / "float.onnx", target="onnxruntime")


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
    path = export_onnx(random_rvm, *SIZE, tmp_path / "open.onnx", dynamic_size=True)
    exported = ExportedNetwork(path, "onnxruntime", threads=1)
    assert exported.size is None
    assert measure_parity(random_rvm, exported, torch.rand(2, 3, 50, 70)).highest < 1e-4


def test_parity_counts_what_differs(random_rvm, graph):
    other = create_model("rvm_mobilenetv3")
    parity = measure_parity(other, ExportedNetwork(graph, "onnxruntime", threads=1), torch.rand(2, 3, *SIZE))
    assert parity.frames == 2
    assert 0 < parity.mean < parity.highest <= 1
    assert 0 < parity.share <= 1


def test_frames_and_ratios_of_other_kinds_are_refused(graph):
    exported = ExportedNetwork(graph)
    assert exported.runtime == "onnxruntime", "what it was exported for"
    with pytest.raises(PTQ4VMError, match=r"Expected frames of 48 x 64 .*got \(1, 3, 64, 64\).*--dynamic_size"):
        list(matte(exported, [torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()]))
    with pytest.raises(PTQ4VMError, match="one at a time"):
        exported.initial_state(torch.zeros(2, 3, *SIZE))
    with pytest.raises(PTQ4VMError, match=r"Expected the downsample ratio 1 that .* got 0\.5"):
        exported.downsample_ratio = 0.5
    exported.downsample_ratio = 1.0
    with pytest.raises(PTQ4VMError, match="taken apart"):
        exported.blocks()


def test_what_is_no_graph_of_ours_is_refused(graph, tmp_path):
    assert is_exported(graph)
    (tmp_path / "text.onnx").write_text("no graph")
    model = onnx.load(graph)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    (tmp_path / "half.onnx").write_bytes(graph.read_bytes()[:1000])
    for name, message in (("text", "ONNX file"), ("other", "ptq4vm wrote"), ("half", "ONNX file"), ("none", "ONNX")):
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
