"""Backward warping and the occlusion check, on one convention.

Flows are in pixels, (N, 2, H, W), channel 0 along x (right), channel 1 along y (down). A backward flow of a frame says
where what is seen at p was before: at p + flow(p). Pixel centres are at whole coordinates, so a zero flow changes
nothing and a whole-number flow moves pixels without blending them.
"""

import torch
from kornia.geometry.transform import remap
from torch import Tensor

from ptq4vm.errors import PTQ4VMError


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Backward warp: ``out(p) = x(p + flow(p))``, bilinear, exact where the flow is a whole number.

    Where p + flow(p) lies outside the frame, the nearest edge pixel is read; :func:`forward_backward_mask` counts such
    places as not visible, so nothing should be learned there.

    Args:
        x: what to warp, (N, C, H, W) floats, e.g. alpha of frame t.
        flow: (N, 2, H, W) in pixels (x, y), e.g. the backward flow of frame t+1.

    Returns:
        (N, C, H, W) of x's dtype, e.g. alpha of frame t as frame t+1 should show it. Differentiable in x.

    Raises:
        PTQ4VMError: shapes do not fit, or x is not floating.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise PTQ4VMError(f"Expected floats (N, C, H, W) to warp, got {x.dtype} {tuple(x.shape)}.")
    _check_flow(flow, (x.shape[0], *x.shape[-2:]), "flow")
    image = (
        x.float() if x.dtype != torch.float64 else x
    )  # half precision can't tell pixels beyond 2048, or their parts
    flow = flow.to(image.dtype)
    map_x, map_y = _source_coordinates(flow).unbind(dim=1)
    blended = remap(image, map_x, map_y, mode="bilinear", padding_mode="border", align_corners=True)
    # remap goes through [-1, 1], which loses the last digits: a whole-number flow would blend in 1e-5 of a neighbour.
    # Nearest-neighbour sampling of the same coordinates is exact there.
    picked = remap(image, map_x, map_y, mode="nearest", padding_mode="border", align_corners=True)
    whole = (flow == flow.round()).all(dim=1, keepdim=True)
    return torch.where(whole, picked, blended).to(x.dtype)


def forward_backward_mask(
    forward_flow: Tensor, backward_flow: Tensor, relative: float = 0.01, absolute: float = 0.5
) -> Tensor:
    """Where the backward flow can be trusted: inside the frame, and the forward flow leads back.

    ``|wf + wb|^2 < relative (|wf|^2 + |wb|^2) + absolute``, wf read where wb points to. Source: Sundaram, Brox and
    Keutzer, "Dense point trajectories by GPU-accelerated large displacement optical flow", ECCV 2010, with its values.

    Args:
        forward_flow: (N, 2, H, W) in pixels, frame t to t+1, on the grid of frame t.
        backward_flow: (N, 2, H, W) in pixels, frame t+1 to t, on the grid of frame t+1.
        relative: allowed squared disagreement per squared length of the flows, >= 0.
        absolute: allowed squared disagreement in squared pixels, >= 0.

    Returns:
        (N, 1, H, W) on the grid of frame t+1, of backward_flow's dtype: 1 visible in frame t, 0 occluded or outside.

    Raises:
        PTQ4VMError: shapes do not fit.
    """
    if backward_flow.ndim != 4:
        raise PTQ4VMError(f"Expected backward_flow (N, 2, H, W), got {tuple(backward_flow.shape)}.")
    _check_flow(backward_flow, (backward_flow.shape[0], *backward_flow.shape[-2:]), "backward_flow")
    _check_flow(forward_flow, (backward_flow.shape[0], *backward_flow.shape[-2:]), "forward_flow")
    backward = backward_flow.float() if backward_flow.dtype != torch.float64 else backward_flow
    forward = warp(forward_flow.to(backward.dtype), backward)
    disagreement = (forward + backward).square().sum(dim=1, keepdim=True)
    length = forward.square().sum(dim=1, keepdim=True) + backward.square().sum(dim=1, keepdim=True)
    visible = (disagreement < relative * length + absolute) & _in_frame(backward)
    return visible.to(backward_flow.dtype)


def _source_coordinates(flow: Tensor) -> Tensor:
    """p + flow(p), (N, 2, H, W)."""
    height, width = flow.shape[-2:]
    ys = (
        torch.arange(height, dtype=flow.dtype, device=flow.device).view(-1, 1).expand(height, width)
    )
    xs = torch.arange(width, dtype=flow.dtype, device=flow.device).expand(height, width)
    return flow + torch.stack((xs, ys))


def _in_frame(flow: Tensor) -> Tensor:
    """Whether p + flow(p) lies between the outermost pixel centres, (N, 1, H, W) bool."""
    x, y = _source_coordinates(flow).split(1, dim=1)
    height, width = flow.shape[-2:]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _check_flow(flow: Tensor, size: tuple[int, ...], name: str) -> None:
    expected = (size[0], 2, *size[1:])
    if tuple(flow.shape) != expected or not flow.is_floating_point():
        raise PTQ4VMError(
            f"Expected {name} as floats {expected}, in pixels (x, y), got {flow.dtype} {tuple(flow.shape)}. "
            "Fold batch and time into the first dimension."
        )
