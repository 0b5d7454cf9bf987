"""Optical flow estimators: DIS (no weights needed) and RAFT (weights from a file)."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from torch import Tensor

from ptq4vm.errors import PTQ4VMError
from ptq4vm.flow.functional import forward_backward_mask, photometric_mask
from ptq4vm.flow.raft import RaftArch, load_raft
from ptq4vm.types import FlowEstimator

FlowName = Literal["dis", "raft"]

_VERSION = 2  # part of every cache key; increment when flow or mask change
_DIS_MIN_SIDE = 16  # DIS matches 8 x 8 patches at half resolution; OpenCV rejects smaller frames

FlowPair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function of frames t and t+1, (3, H, W) each.

It returns forward and backward flow, (2, H, W) each.
"""


def create_flow(
    name: str, weights: str | Path | None = None, arch: RaftArch = "auto"
) -> FlowEstimator:
    """Create an optical flow estimator.

    Args:
        name: ``dis``, OpenCV's dense inverse search, medium preset, on 8-bit grey frames on the CPU
            (Kroeger et al., ECCV 2016); or ``raft``, from torchvision (Teed and Deng, ECCV 2020),
            on the device of the frames.
        weights: RAFT's weights, a .pth or .safetensors file with torchvision's names; None for
            ``dis``.
        arch: ``large`` or ``small`` RAFT; ``auto`` detects it from the weights.

    Returns:
        The estimator. Its ``forward`` maps frames (T, 3, H, W), RGB floats in [0, 1], to backward
        flow (T-1, 2, H, W) in pixels and visible (T-1, 1, H, W), float32 on the device of the
        frames, without gradient; it raises PTQ4VMError on other frames. Its ``key`` changes with
        method, version and weights.

    Raises:
        PTQ4VMError: The name is unknown; or weights are missing, unreadable, of another network, or
            given to ``dis``.
    """
    if name not in get_args(FlowName):
        raise PTQ4VMError(
            f"Expected flow to be one of {', '.join(get_args(FlowName))}, got {name!r}. "
            "To train without optical flow, set the weight of its loss to 0."
        )
    if name == "dis":
        if weights is not None:
            raise PTQ4VMError(
                f"Expected no weights for flow 'dis', got {weights}. Leave them out, or choose "
                "'raft'."
            )
        return FlowEstimator(
            _estimator(dis_pair, _DIS_MIN_SIDE), f"dis-medium-opencv{cv2.__version__}-v{_VERSION}"
        )
    raft, identity = load_raft(weights, arch)
    return FlowEstimator(_estimator(raft, min_side=1), f"{identity}-v{_VERSION}")


def _estimator(flow_pair: FlowPair, min_side: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a clip estimator from a pairwise method.

    It processes one pair at a time, so that working memory does not grow with T.
    """

    def forward(src: Tensor) -> tuple[Tensor, Tensor]:
        _check_frames(src, min_side)
        steps, (height, width) = len(src) - 1, src.shape[-2:]
        frames = src.detach().float()
        flow, visible = (frames.new_empty(steps, channels, height, width) for channels in (2, 1))
        for t in range(steps):
            there, back = (one[None] for one in flow_pair(frames[t], frames[t + 1]))
            seen = photometric_mask(frames[t : t + 1], frames[t + 1 : t + 2], back)
            flow[t], visible[t] = back[0], (seen * forward_backward_mask(there, back))[0]
        return flow, visible

    return forward


def dis_pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return forward and backward flow by DIS; see :func:`create_flow`."""
    # One instance per pair, since it keeps buffers of the last frame size.
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    a, b = _grey8(first), _grey8(second)
    # calc(x, y, ...) maps p in x to p + flow(p) in y, so (b, a) yields the backward flow.
    there, back = dis.calc(a, b, None), dis.calc(b, a, None)  # type: ignore[call-overload]
    return _as_tensor(there).to(first.device), _as_tensor(back).to(first.device)


def _as_tensor(flow: np.ndarray) -> Tensor:
    return torch.from_numpy(flow).permute(2, 0, 1)


def _grey8(frame: Tensor) -> np.ndarray:
    rgb = (
        (frame * 255)
        .round()
        .clamp(0, 255)
        .to("cpu", torch.uint8)
        .permute(1, 2, 0)
        .contiguous()
        .numpy()
    )
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def _check_frames(src: Tensor, min_side: int) -> None:
    if src.ndim != 4 or src.shape[1] != 3 or len(src) == 0 or not src.is_floating_point():
        raise PTQ4VMError(
            f"Expected frames (T, 3, H, W) as floats in [0, 1], got {src.dtype} {tuple(src.shape)}."
        )
    if min(src.shape[-2:]) < min_side:
        raise PTQ4VMError(
            f"Expected frames of at least {min_side} pixels a side, got {tuple(src.shape[-2:])}. "
            "Take larger crops."
        )
