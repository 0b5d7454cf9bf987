import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import random_network
from torch import nn

from ptq4vm.deploy import ExportOptions, export_onnx
from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import quantize_network
from ptq4vm.models.base import Block, MattingModel
from ptq4vm.quantizers import QConfig

TOLERANCE = {"atol": 1e-4, "rtol": 0}


class PerFrame(MattingModel):
    """Matting network without a recurrent state."""

    name = "per_frame"

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def blocks(self):
        return (Block("all", ("src",), ("fgr", "pha"), self._matte, ("conv",)),)

    def _matte(self, src):
        matte = self.conv(src).sigmoid()
        return matte[:, :3], matte[:, 3:]

    def initial_state(self, src):
        return ()


def open_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def assert_parity(network, path, height, width, frames=5):
    """Compare PyTorch and ONNX Runtime frame by frame, each with its own state fed back."""
    session = open_session(path)
    src = torch.rand(frames, 1, 3, height, width)
    state = network.initial_state(src[0])
    fed = [tensor.numpy() for tensor in state]
    for frame in src:
        names = [node.name for node in session.get_inputs()]
        fgr, pha, *fed = session.run(None, dict(zip(names, [frame.numpy(), *fed], strict=True)))
        output = network.forward_frame(frame, state)
        state = output.state
        torch.testing.assert_close(torch.from_numpy(fgr), output.fgr, **TOLERANCE)
        torch.testing.assert_close(torch.from_numpy(pha), output.pha, **TOLERANCE)
        for got, wanted in zip(fed, state, strict=True):
            torch.testing.assert_close(torch.from_numpy(got), wanted, **TOLERANCE)
    assert float(output.pha.std()) > 1e-3, "an alpha that says something"


@pytest.mark.parametrize("settings", [
    {"downsample_ratio": 1.0}, {"downsample_ratio": 0.5},
    {"downsample_ratio": 0.5, "refiner": "fast_guided_filter"},
])  # fmt: skip
@pytest.mark.parametrize("size", [(64, 96), (77, 101)])
def test_five_frames_equal_pytorch(tmp_path, settings, size):
    network = random_network(**settings)
    path = export_onnx(network, *size, tmp_path / "new" / "float.onnx")
    assert_parity(network, path, *size)
    graph = onnx.load(path).graph
    assert [node.name for node in graph.input] == ["src", "r1i", "r2i", "r3i", "r4i"]
    assert [node.name for node in graph.output] == ["fgr", "pha", "r1o", "r2o", "r3o", "r4o"]
    shapes = [[axis.dim_value for axis in node.type.tensor_type.shape.dim] for node in graph.input]
    assert shapes[0] == [1, 3, *size]
    assert all(np.prod(shape) > 0 for shape in shapes), "static"
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert [entry.name for entry in path.parent.iterdir()] == ["float.onnx"]
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules()), (
        "the network is left alone"
    )


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_open_size_takes_other_frames(tmp_path, ratio):
    network = random_network(downsample_ratio=ratio)
    path = export_onnx(network, 64, 96, tmp_path / "float.onnx", ExportOptions(dynamic_size=True))
    assert_parity(network, path, 77, 101, frames=2)
    graph = onnx.load(path).graph
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes["src"] == shapes["fgr"] == [1, 3, "height", "width"]
    assert shapes["pha"] == [1, 1, "height", "width"]
    for number, channels in enumerate((16, 20, 40, 64), 1):
        expected = [1, channels, f"r{number}_height", f"r{number}_width"]
        assert shapes[f"r{number}i"] == shapes[f"r{number}o"] == expected


def test_network_without_a_state(tmp_path):
    network = PerFrame().requires_grad_(False)
    path = export_onnx(network, 24, 40, tmp_path / "float.onnx", ExportOptions(opset=18))
    assert_parity(network, path, 24, 40)
    model = onnx.load(path)
    assert [node.name for node in model.graph.input] == ["src"]
    assert model.opset_import[0].version == 18


def test_refusals_leave_nothing(tmp_path):
    network = random_network()
    with pytest.raises(PTQ4VMError, match="Expected an opset from 13 to 20, got 9"):
        export_onnx(network, 64, 96, tmp_path / "float.onnx", ExportOptions(opset=9))
    with pytest.raises(PTQ4VMError, match="at least 1 x 1 pixels, got 0 x 96"):
        export_onnx(network, 0, 96, tmp_path / "float.onnx")
    with pytest.raises(PTQ4VMError, match="Expected a calibrated network"):
        export_onnx(quantize_network(network, QConfig()), 64, 96, tmp_path / "float.onnx")
    with pytest.raises(
        PTQ4VMError, match="Expected a target of onnxruntime, openvino, tensorrt, got 'tpu'"
    ):
        export_onnx(network, 64, 96, tmp_path / "float.onnx", ExportOptions(target="tpu"))
    with pytest.raises(PTQ4VMError, match="Expected states of 8 or 32 bits, got 16"):
        ExportOptions(state_bits=16)
    (tmp_path / "file").touch()
    with pytest.raises(PTQ4VMError, match="Can't write"):
        export_onnx(network, 64, 96, tmp_path / "file" / "float.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_onnx_cannot_express_is_told(tmp_path):
    network = PerFrame()
    network._matte = lambda src: (torch.special.bessel_j0(src), src[:, :1])
    with pytest.raises(PTQ4VMError, match="can express"):
        export_onnx(network, 24, 40, tmp_path / "float.onnx")
    assert not list(tmp_path.iterdir())
