import numpy as np
import pytest
import torch

from ptq4vm.calibration.losses import (
    alpha_loss,
    cosine,
    feature_loss,
    reconstruction_loss,
    temporal_loss,
)
from ptq4vm.quantizers import clamp_ste


def test_reconstruction_loss_sums_channels_and_averages_the_rest():
    generator = np.random.default_rng(0)
    shapes = [(2, 3, 5, 4, 6), (2, 3, 2, 2, 3)]
    outputs, targets = (
        [generator.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(2)
    )
    expected = sum(((y - t) ** 2).sum(2).mean() for y, t in zip(outputs, targets, strict=True))
    loss = reconstruction_loss(
        tuple(map(torch.from_numpy, outputs)), tuple(map(torch.from_numpy, targets))
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_clamped_alpha_learns_only_where_the_clamp_is_wrong():
    x = torch.tensor([-1.0, -1.0, 0.5, 2.0, 2.0], requires_grad=True)
    target = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0])
    alpha_loss(clamp_ste(x, 0.0, 1.0), target, l1_weight=1.0, mse_weight=1.0).backward()
    assert x.grad[[0, 2, 3]].tolist() == [0.0, 0.0, 0.0]
    assert x.grad[1] < 0 < x.grad[4]


def test_feature_loss_is_a_share_of_the_variance_and_leaves_pictures_out():
    generator = np.random.default_rng(0)
    shapes = {"src": (2, 3, 3, 8, 9), "f1": (2, 3, 16, 4, 5), "f2": (2, 3, 40, 2, 2)}
    outputs, targets = (
        {n: generator.normal(3.0, size=s).astype(np.float32) for n, s in shapes.items()}
        for _ in "ab"
    )
    targets["f2"] *= 100.0
    frames = [
        (outputs[n][place], targets[n][place]) for n in ("f1", "f2") for place in np.ndindex(2, 3)
    ]
    expected = np.mean(
        [((output - target) ** 2).mean() / target.var() for output, target in frames]
    )
    loss = feature_loss(
        *({n: torch.from_numpy(x) for n, x in side.items()} for side in (outputs, targets))
    )
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_temporal_loss_follows_the_flow_and_leaves_occlusions_out():
    previous = torch.rand(1, 1, 8, 10)
    flow = torch.zeros(1, 2, 8, 10)
    flow[:, 0] = -2.0  # the pixel at x was at x - 2 in the previous frame
    moved = torch.zeros_like(previous)
    moved[..., 2:] = previous[..., :-2]
    visible = torch.ones(1, 1, 8, 10)
    visible[..., :2] = 0.0
    assert temporal_loss(moved, previous, flow, visible).item() == pytest.approx(0.0, abs=1e-6)
    assert temporal_loss(moved + 0.1, previous, flow, visible).item() == pytest.approx(
        0.1, rel=1e-4
    )
    assert temporal_loss(moved, previous, flow, torch.zeros_like(visible)).item() == 0.0


def test_what_a_clip_costs_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    clips = (
        torch.rand(3, 2, 1, 8, 10),
        torch.rand(3, 2, 8, 10),
        (torch.rand(3, 1, 8, 10) > 0.5).float(),
    )

    def cost(part):
        alphas, flow, visible = (x[part] for x in clips)
        return temporal_loss(alphas[:, 0], alphas[:, 1], flow, visible)

    assert cost(slice(0, 3)).item() == pytest.approx(
        sum(cost(slice(i, i + 1)).item() for i in range(3)) / 3
    )


def test_cosine_ends():
    assert [cosine(p) for p in (-1.0, 0.0, 0.5, 1.0, 2.0)] == pytest.approx(
        [1.0, 1.0, 0.5, 0.0, 0.0]
    )
