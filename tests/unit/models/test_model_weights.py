import copy
import pickle

import onnx
import pytest
import torch
from safetensors.torch import save_file

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models import create_model, load_weights, weights_checksum

NAME = "rvm_mobilenetv3"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return create_model(NAME)


@pytest.fixture(scope="module")
def resnet():
    return create_model("rvm_resnet50")


@pytest.fixture
def blank():
    torch.manual_seed(2)
    return create_model(NAME)


def save(state, path):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
def test_round_trip(network, blank, tmp_path, suffix):
    assert weights_checksum(blank) != weights_checksum(network)
    load_weights(blank, save(network.state_dict(), tmp_path / f"weights.{suffix}"))
    assert weights_checksum(blank) == weights_checksum(network)


def test_checksum_sees_one_value(network):
    changed = copy.deepcopy(network)
    assert weights_checksum(changed) == weights_checksum(network)
    assert len(weights_checksum(network)) == 16
    changed.project_mat.conv.bias.data[0] += 1e-3
    assert weights_checksum(changed) != weights_checksum(network)


def test_onnx_fills_everything(official_weights):
    first, second = create_model(NAME, official_weights), create_model(NAME, official_weights)
    assert weights_checksum(first) == weights_checksum(second)
    norm = first.get_submodule("aspp.aspp1.1")
    x = torch.randn(1, 128, 2, 2)
    torch.testing.assert_close(norm(x), x + norm.bias.view(1, -1, 1, 1))
    assert not first.project_seg.conv.weight.any()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_the_other_variant(network, resnet, tmp_path, suffix):
    path = save(network.state_dict(), tmp_path / f"mobilenet.{suffix}")
    before = weights_checksum(resnet)
    with pytest.raises(PTQ4VMError, match=r"missing: backbone\.conv1.*looks like rvm_mobilenetv3"):
        load_weights(resnet, path)
    assert weights_checksum(resnet) == before
    with pytest.raises(PTQ4VMError, match="looks like rvm_resnet50"):
        load_weights(network, save(resnet.state_dict(), tmp_path / f"resnet.{suffix}"))


def test_onnx_of_the_other_variant(official_weights, resnet):
    with pytest.raises(PTQ4VMError, match=r"convolutions .*looks like rvm_mobilenetv3"):
        load_weights(resnet, official_weights)


def test_keys_and_shapes(network, blank, tmp_path):
    state = network.state_dict()
    del state["project_mat.conv.bias"]
    state["surplus"] = torch.zeros(1)
    state["project_mat.conv.weight"] = torch.zeros(5, 16, 1, 1)
    with pytest.raises(PTQ4VMError) as caught:
        load_weights(blank, save(state, tmp_path / "weights.pth"))
    for part in ("1 missing: project_mat.conv.bias", "1 unexpected: surplus", "(5, 16, 1, 1)", "(4, 16, 1, 1)"):
        assert part in str(caught.value)
    assert "looks like" not in str(caught.value)


def test_integer_weights(network, blank, tmp_path):
    state = network.state_dict() | {"project_mat.conv.bias": torch.zeros(4, dtype=torch.int8)}
    with pytest.raises(PTQ4VMError, match=r"torch\.int8"):
        load_weights(blank, save(state, tmp_path / "weights.pth"))


def test_refiners(network, tmp_path):
    path = save(network.state_dict(), tmp_path / "deep.pth")
    fast = create_model(NAME, path, refiner="fast_guided_filter")
    with pytest.raises(PTQ4VMError, match="fast_guided_filter"):
        create_model(NAME, save(fast.state_dict(), tmp_path / "fast.pth"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(network, blank, tmp_path, value):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["aspp.aspp2.1.weight"][3, 5] = value
    before = weights_checksum(blank)
    with pytest.raises(PTQ4VMError, match=r"got 1 NaN or infinite values in aspp\.aspp2\.1\.weight"):
        load_weights(blank, save(state, tmp_path / "weights.pth"))
    assert weights_checksum(blank) == before


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors", "onnx"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage", bytes(range(256)) * 8, b"<html>404</html>", b"PK\x03\x04zip", b"\x80\x02"]
)
def test_garbage(blank, tmp_path, suffix, content):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(PTQ4VMError, match=r"weights\."):
        load_weights(blank, path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated(network, blank, tmp_path, suffix):
    path = save(network.state_dict(), tmp_path / f"weights.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PTQ4VMError, match="anew"):
        load_weights(blank, path)


def test_truncated_onnx(official_weights, blank, tmp_path):
    path = tmp_path / "weights.onnx"
    path.write_bytes(official_weights.read_bytes()[:1_000_000])
    with pytest.raises(PTQ4VMError, match="ONNX"):
        load_weights(blank, path)


def test_changed_onnx(official_weights, blank, tmp_path):
    model = onnx.load(official_weights)
    for tensor in model.graph.initializer:
        if tensor.name == "project_mat.conv.weight":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)[:3], tensor.name))
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(PTQ4VMError, match=r"1 differ, the first: project_mat\.conv"):
        load_weights(blank, tmp_path / "other.onnx")


class Harmful:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_pickled_code_is_not_run(blank, tmp_path, dump):
    path = tmp_path / "weights.pth"
    if dump is torch.save:
        dump({"weight": Harmful(tmp_path / "ran")}, path)
    else:
        with path.open("wb") as file:
            dump(Harmful(tmp_path / "ran"), file, protocol=2)
    with pytest.raises(PTQ4VMError, match="more than tensors"):
        load_weights(blank, path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, {1: torch.zeros(1)}]
)
def test_no_state_dict(blank, tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(PTQ4VMError, match="Expected a PyTorch state dict of tensors"):
        load_weights(blank, tmp_path / "weights.pth")


def test_path(blank, tmp_path):
    with pytest.raises(PTQ4VMError, match="not there"):
        load_weights(blank, tmp_path / "weights.pth")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(PTQ4VMError, match=r"\.safetensors or \.onnx"):
        load_weights(blank, tmp_path / "weights.bin")
