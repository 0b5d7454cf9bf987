"""Optical flow: an exact backward warp, an occlusion check, and where flows come from."""

from ptq4vm.flow.functional import forward_backward_mask, warp
from ptq4vm.flow.providers import FlowName, create_flow
from ptq4vm.flow.raft import RaftArch

__all__ = ["FlowName", "RaftArch", "create_flow", "forward_backward_mask", "warp"]
