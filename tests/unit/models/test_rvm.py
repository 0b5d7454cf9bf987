import copy
from collections import Counter

import pytest
import torch
from torch import nn

from ptq4vm.errors import PTQ4VMError
from ptq4vm.models import RobustVideoMatting

VARIANTS = ("mobilenetv3", "resnet50")
REFINERS = ("deep_guided_filter", "fast_guided_filter")
STATES = {"mobilenetv3": (16, 20, 40, 64), "resnet50": (16, 32, 64, 128)}


def calibrated(*args, **kwargs) -> RobustVideoMatting:
    """Create a random network with BatchNorm statistics estimated on noise."""
    torch.manual_seed(0)
    network = RobustVideoMatting(*args, **kwargs)
    with torch.no_grad():
        network.train()(torch.rand(2, 1, 3, 64, 64))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=VARIANTS)
def network(request):
    return calibrated(request.param)


@pytest.mark.parametrize(
    ("variant", "count"), [("mobilenetv3", 3_748_633), ("resnet50", 26_890_461)]
)
def test_parameter_count(variant, count):
    network = RobustVideoMatting(variant)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert network.name == f"rvm_{variant}"


@pytest.mark.parametrize("size", [(64, 96), (45, 71), (33, 50), (17, 17)])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.37])
def test_shapes_at_any_size(network, size, ratio):
    network.downsample_ratio = ratio
    src = torch.rand(2, 3, *size)
    state = network.initial_state(src)
    values, new_state = network.forward_values(src, state)
    assert values["fgr"].shape == (2, 3, *size)
    assert values["pha"].shape == values["pha_unclamped"].shape == (2, 1, *size)
    assert [tensor.shape for tensor in state] == [tensor.shape for tensor in new_state]
    assert tuple(tensor.shape[1] for tensor in state) == STATES[network.variant]
    assert not any(tensor.any() for tensor in state)
    assert all(tensor.isfinite().all() for tensor in values.values())


@pytest.mark.parametrize("ratio", [0.29, 0.3, 0.125, 0.57, 0.7, 1 / 3])
def test_state_follows_the_rounding_of_the_resize(ratio):
    network = RobustVideoMatting(downsample_ratio=ratio)
    for side in range(32, 512):
        small = network._downsample(torch.zeros(1, 1, side, 9))[0]
        assert network._small_size(torch.zeros(1, 1, side, 9)) == small.shape[-2:]


def test_encoder_strides_and_channels(network):
    network.downsample_ratio = 1.0
    src = torch.rand(1, 3, 64, 96)
    values, _ = network.forward_values(src, network.initial_state(src))
    channels = {"mobilenetv3": (16, 24, 40, 960), "resnet50": (64, 256, 512, 2048)}[network.variant]
    for level, (count, stride) in enumerate(zip(channels, (2, 4, 8, 16), strict=True), start=1):
        assert values[f"f{level}"].shape == (1, count, 64 // stride, 96 // stride)


@pytest.mark.parametrize("refiner", REFINERS)
def test_refiners_work_at_the_frames_size(refiner):
    network = calibrated(refiner=refiner, downsample_ratio=0.5)
    src = torch.rand(1, 3, 47, 65)
    values, _ = network.forward_values(src, network.initial_state(src))
    assert values["pha_small"].shape == (1, 1, 23, 32)
    assert values["pha_unclamped"].shape == (1, 1, 47, 65)
    assert values["residual"].shape == (1, 3, 47, 65)


def test_fast_refiner_reproduces_a_matte_that_is_linear_in_the_image():
    src = torch.rand(1, 3, 48, 64)
    small = nn.functional.interpolate(src, scale_factor=0.5, mode="bilinear")
    refine = RobustVideoMatting(refiner="fast_guided_filter").refiner
    residual, pha = refine(src, small, 0.5 * small, small.mean(1, keepdim=True), torch.zeros(1))
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(residual[inner], 0.5 * src[inner], atol=2e-2, rtol=0)
    torch.testing.assert_close(pha[inner], src.mean(1, keepdim=True)[inner], atol=2e-2, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_every_executed_convolution_is_in_one_block(variant, ratio):
    network = RobustVideoMatting(variant, downsample_ratio=ratio)
    executed = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: executed.append(name))
    src = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        network.eval().forward_frame(src, network.initial_state(src))
    owners = Counter(
        name
        for block in network.blocks()
        for prefix in block.modules
        for name, module in network.get_submodule(prefix).named_modules(prefix=prefix)
        if isinstance(module, nn.Conv2d)
    )
    assert set(owners) == set(executed)
    assert set(owners.values()) == {1}
    in_order = [name for name, module in network.named_modules() if name in owners]
    assert list(dict.fromkeys(executed)) == in_order


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_blocks_are_well_formed(variant, ratio):
    blocks = RobustVideoMatting(variant, downsample_ratio=ratio).blocks()
    produced = ["src"]
    for block in blocks:
        assert set(block.inputs) <= set(produced)
        produced.extend(block.outputs)
    assert len(produced) == len(set(produced)), "a value would be overwritten"
    assert len({block.name for block in blocks}) == len(blocks)
    assert {block.name: block.state for block in blocks if block.state is not None} == {
        "decode4": 3, "decode3": 2, "decode2": 1, "decode1": 0}  # fmt: skip
    assert blocks[-1].name == "compose"
    assert ("refiner" in {block.name for block in blocks}) == (ratio < 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_equal_the_plain_backbone(variant):
    network = calibrated(variant)
    src = torch.rand(1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    values, _ = network.forward_values(src, network.initial_state(src))
    x = network._normalize(src)
    if variant == "mobilenetv3":
        expected = network.backbone.features(x)
    else:
        net = network.backbone
        x = nn.functional.max_pool2d(net.relu(net.bn1(net.conv1(x))), 3, 2, 1)
        expected = net.layer4(net.layer3(net.layer2(net.layer1(x))))
    assert torch.equal(values["f4"], expected)


def test_replaced_layers_of_a_copy_are_used():
    network = calibrated()
    src = torch.rand(1, 1, 3, 32, 32)
    before = network(src).pha
    changed = copy.deepcopy(network)
    changed.project_mat.conv = nn.Conv2d(16, 4, 1)
    with torch.no_grad():
        assert not torch.equal(changed(src).pha, before)
    assert torch.equal(network(src).pha, before)


def test_inputs_are_left_alone_and_gradients_flow():
    network = calibrated(downsample_ratio=0.5).requires_grad_(True)
    src = torch.rand(1, 3, 32, 48, requires_grad=True)
    state = tuple(
        torch.rand_like(tensor, requires_grad=True) for tensor in network.initial_state(src)
    )
    kept = [tensor.detach().clone() for tensor in (src, *state)]
    values, _ = network.forward_values(src, state)
    (values["pha_unclamped"].sum() + values["fgr"].sum()).backward()
    assert all(
        torch.equal(tensor, copied) for tensor, copied in zip((src, *state), kept, strict=True)
    )
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in (src, *state))
    unused = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert unused == {"project_seg.conv.weight", "project_seg.conv.bias"}


def test_unroll_in_two_parts_equals_one():
    network = calibrated()
    src = torch.rand(1, 4, 3, 32, 32)
    whole, first = network(src), network(src[:, :2])
    second = network(src[:, 2:], first.state)
    torch.testing.assert_close(torch.cat([first.pha, second.pha], 1), whole.pha)


@pytest.mark.parametrize("ratio", [0, -0.5, 1.5, float("nan"), True, "0.5"])
def test_bad_ratio(ratio):
    with pytest.raises(PTQ4VMError, match=r"Expected downsample_ratio in \(0, 1\], got"):
        RobustVideoMatting(downsample_ratio=ratio)
    network = RobustVideoMatting()
    with pytest.raises(PTQ4VMError, match="downsample_ratio"):
        network.downsample_ratio = ratio


def test_bad_choices_and_frames_that_vanish():
    with pytest.raises(
        PTQ4VMError, match="Expected variant to be one of mobilenetv3, resnet50, got 'vgg'"
    ):
        RobustVideoMatting("vgg")
    with pytest.raises(PTQ4VMError, match="Expected refiner to be one of"):
        RobustVideoMatting(refiner="none")
    with pytest.raises(PTQ4VMError, match="at least one pixel"):
        RobustVideoMatting(downsample_ratio=0.01).initial_state(torch.zeros(1, 3, 64, 64))
