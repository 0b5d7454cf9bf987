import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates, uniform_filter
from torch.testing import assert_close

from ptq4vm.errors import PTQ4VMError
from ptq4vm.flow import forward_backward_mask, photometric_mask, warp

H, W = 45, 67


def image(n=2, c=3, dtype=torch.float32):
    return torch.rand(n, c, H, W, generator=torch.Generator().manual_seed(0)).to(dtype)


def constant_flow(dx, dy, n=2):
    return torch.tensor([float(dx), float(dy)]).view(1, 2, 1, 1).expand(n, 2, H, W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_zero_flow_changes_nothing(dtype):
    x = image(dtype=dtype)
    out = warp(x, torch.zeros(2, 2, H, W))
    assert out.dtype == dtype
    assert torch.equal(out, x)


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, 5), (-4, 2), (7, -6), (-1, -1)])
def test_whole_flow_moves_pixels_exactly(dx, dy):
    x = image()
    out = warp(x, constant_flow(dx, dy))
    rolled = x.roll((-dy, -dx), dims=(-2, -1))
    inside = (slice(max(0, -dy), H - max(0, dy)), slice(max(0, -dx), W - max(0, dx)))
    assert torch.equal(out[..., inside[0], inside[1]], rolled[..., inside[0], inside[1]])


def test_outside_reads_the_edge():
    x = image()
    out = warp(x, constant_flow(W, 0))
    assert torch.equal(out, x[..., -1:].expand_as(x))


def test_subpixel_flow_equals_scipy():
    x = image(1, 1, torch.float64)
    flow = 3 * torch.randn(
        1, 2, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    y, x_ = np.mgrid[:H, :W].astype(float)
    coordinates = [y + flow[0, 1].numpy(), x_ + flow[0, 0].numpy()]
    expected = map_coordinates(x[0, 0].numpy(), coordinates, order=1, mode="nearest")
    np.testing.assert_allclose(warp(x, flow)[0, 0].numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(warp(x.float(), flow.float())[0, 0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_gradient_reaches_the_image(shift):
    x = torch.rand(1, 1, 6, 7, dtype=torch.float64, requires_grad=True)
    flow = torch.full((1, 2, 6, 7), shift, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: warp(v, flow), (x,))


def test_consistent_flows_are_visible_inside_the_frame():
    visible = forward_backward_mask(constant_flow(-3, 2), constant_flow(3, -2))
    assert visible.shape == (2, 1, H, W)
    expected = torch.ones(2, 1, H, W)
    expected[..., :2, :] = 0
    expected[..., W - 3 :] = 0
    assert torch.equal(visible, expected)


def test_threshold_of_the_criterion():
    # |wf + wb|^2 = d^2 against 0.01 (3^2 + (3 - d)^2) + 0.5
    for d, expected in ((0.7, 1.0), (0.85, 0.0)):
        visible = forward_backward_mask(constant_flow(d - 3, 0, 1), constant_flow(3, 0, 1))
        assert visible[..., 20, 20] == expected
        assert (d**2 < 0.01 * (9 + (3 - d) ** 2) + 0.5) == bool(expected)


def test_occlusion_is_marked():
    # A block moves right by 6 over a still background and uncovers 6 columns.
    backward, forward = torch.zeros(1, 2, H, W), torch.zeros(1, 2, H, W)
    forward[:, 0, 10:30, 20:40] = 6
    backward[:, 0, 10:30, 26:46] = -6
    visible = forward_backward_mask(forward, backward)
    expected = torch.ones(1, 1, H, W)
    expected[..., 10:30, 20:26] = 0
    assert torch.equal(visible, expected)


def test_refuses():
    with pytest.raises(PTQ4VMError, match="floats"):
        warp(torch.zeros(3, H, W), torch.zeros(1, 2, H, W))
    with pytest.raises(PTQ4VMError, match="floats"):
        warp(torch.zeros(1, 1, H, W, dtype=torch.uint8), torch.zeros(1, 2, H, W))
    with pytest.raises(PTQ4VMError, match="flow"):
        warp(image(), torch.zeros(2, H, W, 2))
    with pytest.raises(PTQ4VMError, match="flow"):
        warp(image(), torch.zeros(1, 2, H, W))
    with pytest.raises(PTQ4VMError, match="forward_flow"):
        forward_backward_mask(torch.zeros(1, 2, H, 3), torch.zeros(1, 2, H, W))
    with pytest.raises(PTQ4VMError, match="backward_flow"):
        forward_backward_mask(torch.zeros(2, H, W), torch.zeros(2, H, W))


def test_kept_shapes():
    assert_close(warp(torch.zeros(1, 5, 1, 1), torch.zeros(1, 2, 1, 1)), torch.zeros(1, 5, 1, 1))


def test_photometric_mask_compares_mean_colours():
    generator = torch.Generator().manual_seed(0)
    previous, frame = torch.rand(2, 2, 3, 13, 17, generator=generator)
    flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(2, 2, 13, 17)
    difference = (warp(previous, flow) - frame).numpy()
    # scipy's "nearest" repeats the edge, as this mask does.
    means = np.abs(uniform_filter(difference, (0, 0, 5, 5), mode="nearest"))
    expected = (means < 0.06).all(1, keepdims=True)
    assert 0.05 < expected.mean() < 0.95
    assert_close(photometric_mask(previous, frame, flow) > 0, torch.from_numpy(expected))


def test_photometric_mask_rejects_what_has_been_uncovered_and_bears_noise():
    torch.manual_seed(0)
    background, square = torch.full((3, 40, 60), 0.3), torch.full((3, 20, 20), 0.6)
    frames = background.expand(2, -1, -1, -1).clone()
    for t, left in ((0, 10), (1, 18)):
        frames[t, :, 10:30, left : left + 20] = square
    frames += 0.03 * torch.randn_like(frames)
    flow = torch.zeros(1, 2, 40, 60)
    flow[:, 0, 10:30, 18:38] = -8
    visible = photometric_mask(frames[:1], frames[1:], flow)[0, 0]
    assert visible[10:30, 10:18].mean() < 0.2
    visible[8:32, 8:20] = 1.0  # but for its surroundings
    assert visible.mean() > 0.99


def test_photometric_mask_of_frames_of_other_sizes():
    with pytest.raises(PTQ4VMError, match="two frames of one shape"):
        photometric_mask(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9), torch.zeros(1, 2, 8, 9))
