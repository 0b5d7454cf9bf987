"""Tests of MODNet against a functional reference with the authors' parameter names."""

import pytest
import torch
from torch.nn import functional as F

from ptq4vm.errors import PTQ4VMError
from ptq4vm.graph import fold_batch_norm_, partition, quantize_network, quantized_layers
from ptq4vm.models import MODNet, create_model
from ptq4vm.quantizers import QConfig

SETTINGS = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]
"""MobileNetV2, table 2: expansion, channels, repetitions, stride."""


class Reference:
    """Functional MODNet that creates its state dict at random during the forward pass."""

    def __init__(self):
        self.state = {}
        torch.manual_seed(0)

    def get(self, name, *shape):
        fan_in = max(1, torch.Size(shape[1:]).numel())
        draw = (
            torch.rand(shape) + 0.5
            if name.endswith(("running_var", "norm.weight"))
            else torch.randn(shape)
        )
        return self.state.setdefault(name, draw if "norm" in name else draw / fan_in**0.5)

    def conv(self, x, name, out, kernel, stride=1, groups=1, bias=False):
        weight = self.get(f"{name}.weight", out, x.shape[1] // groups, kernel, kernel)
        bias = self.get(f"{name}.bias", out) if bias else None
        return F.conv2d(x, weight, bias, stride, kernel // 2, groups=groups)

    def norm(self, x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        values = [self.get(f"{name}.{key}", x.shape[1]) for key in keys]
        return F.batch_norm(x, *values)

    def ibn(self, x, name, out, kernel, stride=1):
        x = self.conv(x, f"{name}.layers.0", out, kernel, stride, bias=True)
        first, second = x.chunk(2, 1)
        mean, var = (
            second.mean((2, 3), keepdim=True),
            second.var((2, 3), keepdim=True, unbiased=False),
        )
        return torch.cat(
            [self.norm(first, f"{name}.layers.1.bnorm"), (second - mean) / (var + 1e-5).sqrt()], 1
        ).relu()

    def encoder(self, x):
        name = "backbone.model.features"
        x = self.norm(self.conv(x, f"{name}.0.0", 32, 3, 2), f"{name}.0.1").clamp(0, 6)
        taps, index = {}, 1
        for expansion, out, count, stride in SETTINGS:
            for step in range(count):
                y, part, hidden = x, 0, x.shape[1] * expansion
                steps = [(hidden, 1, 1, 1)] * (expansion > 1) + [
                    (hidden, 3, stride if step == 0 else 1, hidden)
                ]
                for channels, kernel, s, groups in steps:
                    y = self.conv(y, f"{name}.{index}.conv.{part}", channels, kernel, s, groups)
                    y = self.norm(y, f"{name}.{index}.conv.{part + 1}").clamp(0, 6)
                    part += 3
                y = self.norm(
                    self.conv(y, f"{name}.{index}.conv.{part}", out, 1),
                    f"{name}.{index}.conv.{part + 1}",
                )
                x = y + x if step else y
                taps[index], index = x, index + 1
        x = self.norm(self.conv(x, f"{name}.18.0", 1280, 1), f"{name}.18.1").clamp(0, 6)
        return taps[1], taps[3], x

    def __call__(self, src):
        def scaled(x, factor):
            return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

        x = (src - 0.5) / 0.5
        enc2x, enc4x, enc32x = self.encoder(x)
        gate = (
            enc32x.mean((2, 3)) @ self.get("lr_branch.se_block.fc.0.weight", 320, 1280).T
        ).relu()
        gate = (gate @ self.get("lr_branch.se_block.fc.2.weight", 1280, 320).T).sigmoid()
        lr = self.ibn(scaled(enc32x * gate[:, :, None, None], 2), "lr_branch.conv_lr16x", 96, 5)
        lr8x = self.ibn(scaled(lr, 2), "lr_branch.conv_lr8x", 32, 5)
        self.conv(lr8x, "lr_branch.conv_lr.layers.0", 1, 3, 2, bias=True)
        enc2x = self.ibn(enc2x, "hr_branch.tohr_enc2x", 32, 1)
        hr = self.ibn(torch.cat([scaled(x, 0.5), enc2x], 1), "hr_branch.conv_enc2x", 32, 3, 2)
        enc4x = self.ibn(enc4x, "hr_branch.tohr_enc4x", 32, 1)
        hr = self.ibn(torch.cat([hr, enc4x], 1), "hr_branch.conv_enc4x", 64, 3)
        hr = torch.cat([hr, scaled(lr8x, 2), scaled(x, 0.25)], 1)
        for i, out in enumerate((64, 64, 32)):
            hr = self.ibn(hr, f"hr_branch.conv_hr4x.{i}", out, 3)
        hr = torch.cat([scaled(hr, 2), enc2x], 1)
        for i, out in enumerate((64, 32, 32, 32)):
            hr = self.ibn(hr, f"hr_branch.conv_hr2x.{i}", out, 3)
        detail = self.ibn(torch.cat([scaled(hr, 2), x], 1), "hr_branch.conv_hr.0", 32, 3)
        self.conv(detail, "hr_branch.conv_hr.1.layers.0", 1, 1, bias=True)
        f = scaled(self.ibn(scaled(lr8x, 2), "f_branch.conv_lr4x", 32, 5), 2)
        f = self.ibn(torch.cat([f, hr], 1), "f_branch.conv_f2x", 32, 3)
        f = self.ibn(torch.cat([scaled(f, 2), x], 1), "f_branch.conv_f.0", 16, 3)
        return self.conv(f, "f_branch.conv_f.1.layers.0", 1, 1, bias=True).sigmoid()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return a checkpoint in the authors' layout, a frame, and its reference alpha."""
    reference, src = Reference(), torch.rand(1, 3, 64, 96)
    alpha = reference(src)
    doubled = {
        f"lr_branch.{name}": value
        for name, value in reference.state.items()
        if name.startswith("backbone.")
    }
    path = tmp_path_factory.mktemp("weights") / "modnet.ckpt"
    torch.save(
        {f"module.{name}": value for name, value in {**reference.state, **doubled}.items()}, path
    )
    return path, src, alpha


def test_published_names_and_what_they_compute(published):
    path, src, alpha = published
    network = create_model("modnet", weights=path)
    output = network.forward_frame(src, ())
    assert alpha.std() > 0.05
    torch.testing.assert_close(output.pha, alpha, rtol=0, atol=1e-5)
    assert torch.equal(output.fgr, src)
    assert output.state == ()


def test_own_names_load_too(published, tmp_path):
    network = create_model("modnet", weights=published[0])
    torch.save(network.state_dict(), tmp_path / "own.pth")
    again = create_model("modnet", weights=tmp_path / "own.pth").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in network.state_dict().items())


def test_a_file_that_lacks_a_tensor_is_refused(published, tmp_path):
    state = torch.load(published[0], weights_only=True)
    del state["module.f_branch.conv_f.0.layers.0.weight"]
    torch.save(state, tmp_path / "less.ckpt")
    with pytest.raises(PTQ4VMError, match=r"1 missing: f_branch\.conv_f\.0\.layers\.0\.weight"):
        create_model("modnet", weights=tmp_path / "less.ckpt")


def test_the_file_is_known_where_another_network_is_asked_for(published, tmp_path):
    state = torch.load(published[0], weights_only=True)
    torch.save(
        {name.removeprefix("module."): value for name, value in state.items()},
        tmp_path / "bare.pth",
    )
    with pytest.raises(PTQ4VMError, match="looks like modnet"):
        create_model("rvm_resnet50", weights=tmp_path / "bare.pth")


@pytest.mark.parametrize("ratio", [1.0, 0.4, 0.25])
@pytest.mark.parametrize("size", [(33, 65), (64, 64), (90, 160)])
def test_any_size_and_ratio(ratio, size):
    src = torch.rand(2, 2, 3, *size)
    with torch.no_grad():
        output = create_model("modnet", downsample_ratio=ratio).unroll(src)
    assert output.pha.shape == (2, 2, 1, *size)
    assert torch.equal(output.fgr, src)
    assert 0 <= output.pha.min() <= output.pha.max() <= 1


def test_the_body_works_at_the_ratio():
    values, _ = MODNet(0.4).eval().forward_values(torch.rand(1, 3, 720, 1280), ())
    assert values["image"].shape == (1, 3, 288, 512)
    assert values["enc32x"].shape == (1, 1280, 9, 16)
    with pytest.raises(PTQ4VMError, match=r"downsample_ratio in \(0, 1\]"):
        MODNet(0.0)


def test_all_that_is_executed_is_quantized(published):
    network = create_model("modnet", weights=published[0])
    folded = fold_batch_norm_(create_model("modnet", weights=published[0]))
    with torch.no_grad():
        a, b = (one.forward_frame(published[1], ()).pha for one in (network, folded))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    quantized = quantize_network(network, QConfig(range_method="minmax"))
    names = set(quantized_layers(quantized))
    assert len(names) == 52 + 2 + 2 + 11 + 4
    assert {"lr_branch.se_block.fc.0", "f_branch.conv_f.1.layers.0"} <= names
    assert not [name for name in names if "conv_lr." in name or "conv_hr." in name]
    assert len(partition(quantized)) == 30
