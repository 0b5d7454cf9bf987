"""Tests of weights from ONNX files, which must not refer to external data."""

import numpy as np
import onnx
import pytest
import torch

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models import load_weights


def save_graph(path, weight):
    """Write an ONNX graph of one convolution with the given weight."""
    node = onnx.helper.make_node("Conv", ["x", weight.name], ["y"])
    kinds = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "graph", kinds[:1], kinds[1:], [weight])
    )
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def tiny():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1, bias=False))


def weight_proto(**changes):
    weight = onnx.numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "weight")
    for name, value in changes.items():
        setattr(weight, name, value)
    return weight


def test_onnx_of_one_convolution(tiny, tmp_path):
    load_weights(tiny, save_graph(tmp_path / "weights.ONNX", weight_proto()))
    assert torch.equal(tiny[0].weight, torch.ones(2, 3, 1, 1))


@pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "/etc/hostname", "absent.bin"])
def test_onnx_that_points_to_other_files(tiny, tmp_path, monkeypatch, location):
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "secret.bin").write_bytes(bytes(24))
    monkeypatch.chdir(folder)
    weight = weight_proto(data_location=onnx.TensorProto.EXTERNAL)
    weight.ClearField("raw_data")
    weight.external_data.add(key="location", value=location)
    before = tiny[0].weight.clone()
    with pytest.raises(PTQ4VMError, match=r"inside .*got weight in a file beside it"):
        load_weights(tiny, save_graph(folder / "weights.onnx", weight))
    assert torch.equal(tiny[0].weight, before)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (weight_proto(data_type=99), "got unknown type 99 in weight"),
        (weight_proto(data_type=0), "got UNDEFINED in weight"),
        (weight_proto(data_type=onnx.TensorProto.BFLOAT16), "got BFLOAT16 in weight"),
        (
            onnx.helper.make_tensor("weight", onnx.TensorProto.STRING, (2,), ["a", "b"]),
            "got STRING in weight",
        ),
        (weight_proto(raw_data=b"123"), "Expected the values of weight"),
    ],
    ids=["unknown", "undefined", "bfloat16", "string", "short"],
)
def test_onnx_of_other_types(tiny, tmp_path, weight, message):
    with pytest.raises(PTQ4VMError, match=message):
        load_weights(tiny, save_graph(tmp_path / "weights.onnx", weight))
