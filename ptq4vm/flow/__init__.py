"""Optical flow: backward warping, occlusion masks and flow estimators."""

from ptq4vm.flow.functional import forward_backward_mask, photometric_mask, warp
from ptq4vm.flow.providers import FlowName, create_flow
from ptq4vm.flow.raft import RaftArch

__all__ = [
    "FlowName",
    "RaftArch",
    "create_flow",
    "forward_backward_mask",
    "photometric_mask",
    "warp",
]
