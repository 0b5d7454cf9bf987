import copy

import pytest
import torch
from safetensors.torch import save_file
from weight_files import NAME, save

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models import create_model, load_weights, weights_checksum


@pytest.fixture(scope="module")
def resnet():
    return create_model("rvm_resnet50")


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
    for part in (
        "1 missing: project_mat.conv.bias",
        "1 unexpected: surplus",
        "(5, 16, 1, 1)",
        "(4, 16, 1, 1)",
    ):
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
    with pytest.raises(
        PTQ4VMError, match=r"got 1 NaN or infinite values in aspp\.aspp2\.1\.weight"
    ):
        load_weights(blank, save(state, tmp_path / "weights.pth"))
    assert weights_checksum(blank) == before


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(1)], {"epoch": 3, "weights": {"a": torch.zeros(1)}}, {1: torch.zeros(1)}],
)
def test_no_state_dict(blank, tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(PTQ4VMError, match="Expected a PyTorch state dict of tensors"):
        load_weights(blank, tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "name", ["weights.pth", "WEIGHTS.PTH", "weights.pth.tar", "weights.Pt", "weights.ckpt"]
)
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
def test_checkpoints_of_other_tools(network, blank, tmp_path, name, key):
    state = network.state_dict()
    content = (
        state if key is None else {"epoch": 3, "optimizer": {"state": {}}, key: state, "best": 0.5}
    )
    torch.save(content, tmp_path / name)
    load_weights(blank, tmp_path / name)
    assert weights_checksum(blank) == weights_checksum(network)


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "SAFETENSORS"])
def test_prefixes_that_wrappers_give(network, blank, tmp_path, prefix, suffix):
    state = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    path = tmp_path / f"weights.{suffix}"
    save_file(state, path) if suffix.lower() == "safetensors" else torch.save(state, path)
    load_weights(blank, path)
    assert weights_checksum(blank) == weights_checksum(network)


def test_a_prefix_of_some_names_stays(network, blank, tmp_path):
    state = network.state_dict()
    state["module.project_mat.conv.bias"] = state.pop("project_mat.conv.bias")
    with pytest.raises(PTQ4VMError, match=r"1 unexpected: module\.project_mat\.conv\.bias"):
        load_weights(blank, save(state, tmp_path / "weights.pth"))


def test_a_prefix_of_the_networks_own_stays(tmp_path):
    network, other = (torch.nn.ModuleDict({"model": torch.nn.Linear(2, 2)}) for _ in range(2))
    load_weights(other, save(network.state_dict(), tmp_path / "weights.pth"))
    assert torch.equal(other["model"].weight, network["model"].weight)


BIAS = "project_mat.conv.bias"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(4).to_sparse(), "sparse"),
        (torch.eye(4).to_sparse_csr(), "sparse"),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(2)]), "nested"),
        (torch.empty(4, device="meta"), "meta device and has no values"),
        (torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8), "quantized"),
        (torch.zeros(4, dtype=torch.complex64), "torch.complex64, expected"),
        (torch.zeros(4, dtype=torch.float8_e4m3fn), "torch.float8_e4m3fn, expected"),
        (torch.zeros(4, dtype=torch.bool), "torch.bool, expected"),
        (torch.full((4,), 1e300, dtype=torch.float64), f"4 NaN or infinite values in {BIAS}"),
        (torch.zeros(1).expand(1 << 40), "another shape"),
    ],
    ids=[
        "sparse",
        "csr",
        "nested",
        "meta",
        "quantized",
        "complex",
        "float8",
        "bool",
        "large",
        "expanded",
    ],
)
def test_tensors_that_are_no_plain_floats(network, blank, tmp_path, tensor, message):
    before = weights_checksum(blank)
    with pytest.raises(PTQ4VMError, match=message) as caught:
        load_weights(blank, save(network.state_dict() | {BIAS: tensor}, tmp_path / "weights.pth"))
    assert BIAS in str(caught.value)
    assert weights_checksum(blank) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_other_widths(network, blank, tmp_path, dtype):
    stored = network.project_mat.conv.bias.detach().to(dtype)
    load_weights(blank, save(network.state_dict() | {BIAS: stored}, tmp_path / "weights.pth"))
    assert torch.equal(blank.project_mat.conv.bias, stored.float())


def test_path(blank, tmp_path):
    with pytest.raises(PTQ4VMError, match="not there"):
        load_weights(blank, tmp_path / "weights.pth")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(PTQ4VMError, match=r"\.safetensors or \.onnx"):
        load_weights(blank, tmp_path / "weights.bin")
