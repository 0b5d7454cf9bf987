"""Backward warping and occlusion masks.

Flows are in pixels, (N, 2, H, W), channel 0 along x (right), channel 1 along y (down). A frame's
backward flow maps p to the point's previous position, p + flow(p). Pixel centres are at integer
coordinates, so zero flow is the identity and integer flow moves pixels without blending.
"""

import torch
from kornia.filters import box_blur
from kornia.geometry.transform import remap
from torch import Tensor

from ptq4vm.errors import PTQ4VMError


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Warp backward with bilinear sampling: ``out(p) = x(p + flow(p))``.

    Integer flows are exact. Where p + flow(p) is outside the frame, the nearest edge pixel is read;
    :func:`forward_backward_mask` marks such pixels as not visible, so losses should ignore them.

    Args:
        x: Image to warp, (N, C, H, W) floats, e.g. alpha of frame t.
        flow: (N, 2, H, W) in pixels (x, y), e.g. the backward flow of frame t+1.

    Returns:
        (N, C, H, W) in x's dtype, e.g. alpha of frame t aligned to frame t+1; differentiable in x.

    Raises:
        PTQ4VMError: Shapes do not match, or x is not floating.

    Example:
        >>> import torch
        >>> from ptq4vm.flow import warp
        >>> frame = torch.tensor([0.0, 1.0, 2.0, 3.0]).expand(1, 1, 2, 4)
        >>> flow = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 4)
        >>> warp(frame, flow)[0, 0, 0]  # each pixel reads its right neighbour
        tensor([1., 2., 3., 3.])
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise PTQ4VMError(f"Expected floats (N, C, H, W) to warp, got {x.dtype} {tuple(x.shape)}.")
    _check_flow(flow, (x.shape[0], *x.shape[-2:]), "flow")
    # Half precision cannot represent all coordinates above 2048, or fractions of large ones.
    image = x.float() if x.dtype != torch.float64 else x
    flow = flow.to(image.dtype)
    map_x, map_y = _source_coordinates(flow).unbind(dim=1)
    blended = remap(image, map_x, map_y, mode="bilinear", padding_mode="border", align_corners=True)
    # remap normalises coordinates to [-1, 1]. The rounding error would blend in 1e-5 of a neighbour
    # for an integer flow, where nearest-neighbour sampling of the same coordinates is exact.
    picked = remap(image, map_x, map_y, mode="nearest", padding_mode="border", align_corners=True)
    whole = (flow == flow.round()).all(dim=1, keepdim=True)
    return torch.where(whole, picked, blended).to(x.dtype)


def forward_backward_mask(
    forward_flow: Tensor, backward_flow: Tensor, relative: float = 0.01, absolute: float = 0.5
) -> Tensor:
    """Compute the visibility mask of a backward flow by the forward-backward check.

    A pixel is visible if its source is inside the frame and ``|wf + wb|^2 < relative (|wf|^2 +
    |wb|^2) + absolute``, with the forward flow wf read where the backward flow wb points. Source of
    check and default values: Sundaram, Brox and Keutzer, "Dense point trajectories by
    GPU-accelerated large displacement optical flow", ECCV 2010.

    Args:
        forward_flow: (N, 2, H, W) in pixels, frame t to t+1, on the grid of frame t.
        backward_flow: (N, 2, H, W) in pixels, frame t+1 to t, on the grid of frame t+1.
        relative: Tolerated squared difference relative to the squared length of the flows, >= 0.
        absolute: Tolerated squared difference in squared pixels, >= 0.

    Returns:
        (N, 1, H, W) on the grid of frame t+1, in backward_flow's dtype: 1 visible in frame t, 0
        occluded or outside.

    Raises:
        PTQ4VMError: Shapes do not match.
    """
    if backward_flow.ndim != 4:
        raise PTQ4VMError(f"Expected backward_flow (N, 2, H, W), got {tuple(backward_flow.shape)}.")
    _check_flow(backward_flow, (backward_flow.shape[0], *backward_flow.shape[-2:]), "backward_flow")
    _check_flow(forward_flow, (backward_flow.shape[0], *backward_flow.shape[-2:]), "forward_flow")
    backward = backward_flow.float() if backward_flow.dtype != torch.float64 else backward_flow
    # Both flows on the grid of frame t+1; along a visible point they cancel.
    forward = warp(forward_flow.to(backward.dtype), backward)
    disagreement = (forward + backward).square().sum(dim=1, keepdim=True)
    length = forward.square().sum(dim=1, keepdim=True) + backward.square().sum(dim=1, keepdim=True)
    visible = (disagreement < relative * length + absolute) & _in_frame(backward)
    return visible.to(backward_flow.dtype)


def photometric_mask(
    previous: Tensor, frame: Tensor, backward_flow: Tensor, tolerance: float = 0.06, window: int = 5
) -> Tensor:
    """Compute the visibility mask of a backward flow by the colours that it connects.

    A pixel is visible if the mean colour around its source differs from that around it by less than
    the tolerance in every channel. Flow is smooth over a strip that a moving object has uncovered,
    and consistent in both directions there, but connects the strip with the object.

    Args:
        previous: Frame t, (N, C, H, W) floats in [0, 1].
        frame: Frame t+1, of the same shape.
        backward_flow: (N, 2, H, W) in pixels, frame t+1 to t.
        tolerance: Smallest difference of mean colours of a pixel that isn't visible.
        window: Side of the square in pixels over which colours are averaged, odd.

    Returns:
        (N, 1, H, W) in the frames' dtype: 1 visible in frame t, 0 not.

    Raises:
        PTQ4VMError: Shapes do not match.
    """
    if frame.shape != previous.shape:
        raise PTQ4VMError(
            f"Expected two frames of one shape, got {tuple(previous.shape)} and "
            f"{tuple(frame.shape)}."
        )
    difference = (warp(previous, backward_flow) - frame).float()
    # The mean of differences is the difference of means.
    near = box_blur(difference, window, border_type="replicate").abs() < tolerance
    return near.all(dim=1, keepdim=True).to(frame.dtype)


def _source_coordinates(flow: Tensor) -> Tensor:
    """Return p + flow(p), (N, 2, H, W)."""
    height, width = flow.shape[-2:]
    ys = (
        torch.arange(height, dtype=flow.dtype, device=flow.device).view(-1, 1).expand(height, width)
    )
    xs = torch.arange(width, dtype=flow.dtype, device=flow.device).expand(height, width)
    # Broadcast over N: (N, 2, H, W) + (2, H, W).
    return flow + torch.stack((xs, ys))


def _in_frame(flow: Tensor) -> Tensor:
    """Return whether p + flow(p) lies between the outermost pixel centres, (N, 1, H, W) bool."""
    x, y = _source_coordinates(flow).split(1, dim=1)
    height, width = flow.shape[-2:]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _check_flow(flow: Tensor, size: tuple[int, ...], name: str) -> None:
    expected = (size[0], 2, *size[1:])
    if tuple(flow.shape) != expected or not flow.is_floating_point():
        raise PTQ4VMError(
            f"Expected {name} as floats {expected}, in pixels (x, y), got {flow.dtype} "
            f"{tuple(flow.shape)}. Fold batch and time into the first dimension."
        )
