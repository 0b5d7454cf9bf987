"""Data types shared between subpackages.

Data are NamedTuples because Lightning cannot move frozen dataclasses inside batches.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

WORKING_SIDE = 512
"""Length in pixels of a frame's longer side at which networks work, as RVM's authors advise."""

RecurrentState = tuple[Tensor, ...]
"""Recurrent state of a network, one (B, C, h, w) tensor each; empty for a per-frame network."""


class MattingOutput(NamedTuple):
    """Output of a network for one frame (B, C, H, W) or a sequence (B, T, C, H, W)."""

    fgr: Tensor
    """Foreground colour, 3 channels, RGB in [0, 1]."""
    pha: Tensor
    """Alpha, 1 channel in [0, 1]."""
    state: RecurrentState
    """Recurrent state to pass in with the next frame."""


class MattingClip(NamedTuple):
    """Successive frames of one clip, (T, C, H, W), as floats in [0, 1].

    A batch of clips is (B, T, C, H, W).
    """

    src: Tensor
    """Input frames, 3 channels, RGB."""
    pha: Tensor | None = None
    """Ground-truth alpha, 1 channel; None if unknown.

    Of an evaluation clip in which only some frames are annotated, NaN in the others.
    """
    fgr: Tensor | None = None
    """Ground-truth foreground colour, RGB; None if unknown."""
    flow: Tensor | None = None
    """Exact backward flow, (T-1, 2, H, W) in pixels (x, y).

    The point at p in frame t+1 was at p + flow[t](p) in frame t.
    """
    name: str = ""
    """Clip name, `<set>/<clip>`."""
    start: int = 0
    """Index within the clip of the first frame; 0 starts from the initial recurrent state."""
    frames: tuple[str, ...] = ()
    """File names of the frames without suffix, if each frame has its own file."""
    float_pha: Tensor | None = None
    """Alpha of the float network, if requested."""


class CalibrationClip(NamedTuple):
    """Cached calibration sequence with its precomputed targets; batched: (B, T, C, H, W)."""

    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, which is not needed
    """Index of the sequence in the calibration set, () or (B,) int64."""
    src: Tensor
    pha: Tensor
    """Ground-truth alpha; the float network's alpha if unknown or withheld."""
    fgr: Tensor | None
    teacher_pha: Tensor
    """Alpha of the float network."""
    teacher_state: RecurrentState
    """Recurrent state of the float network after each frame, (T, C, h, w) each."""
    flow: Tensor
    """Backward flow between adjacent frames, (T-1, 2, H, W), as in :class:`MattingClip`."""
    visible: Tensor
    """Visibility mask, (T-1, 1, H, W) float.

    1 where the flow passes the forward-backward check, 0 where it is occluded.
    """
    first_state: RecurrentState
    """Recurrent state before the first frame, (C, h, w) each: zero, or the float network's."""


class Teacher(NamedTuple):
    """Interface to the float network that produces the calibration targets."""

    forward: Callable[..., MattingOutput]
    """Function of src (B, T, 3, H, W) and an initial state or None.

    Returns fgr and pha, (B, T, C, H, W), and every state after every frame, (B, T, C, h, w) each.
    """
    key: str
    """Cache key; it changes with the network, its weights and its downsample ratio."""


class FlowEstimator(NamedTuple):
    """Interface to an optical flow method."""

    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Function from src (T, 3, H, W) to flow (T-1, 2, H, W) and visible (T-1, 1, H, W).

    The outputs are those of :class:`CalibrationClip`.
    """
    key: str


class NetworkFacts(NamedTuple):
    """Bits, size and compute of a network at one frame size."""

    bits: str
    """Bits as a label, e.g. ``W4A8``; ``W32A32`` for a float network."""
    placement: str
    """Placement of the quantizers; empty for a float network."""
    runtime: str
    """``torch``, ``onnxruntime`` or ``openvino``."""
    layers: str
    """Convolutions and linear layers by arithmetic, e.g. ``77 int8``; empty for torch."""
    size_mb: float
    """File size in 10^6 bytes; for torch, size of the weights at their bit widths."""
    bit_operations: float
    """Σ MACs x weight bits x activation bits of one frame, in 10^9."""
    effective_flops: float | None
    """Σ MACs x 2 W A / (W + A) / 32 of one frame, in 10^9; None in a file without it."""


class FrameModel(Protocol):
    """Interface to a matting network that is run frame by frame.

    A :class:`ptq4vm.models.MattingModel` in PyTorch and a
    :class:`ptq4vm.deploy.ExportedNetwork` in a runtime both have it.
    """

    name: str
    """Registry name of the network."""

    @property
    def runs_on(self) -> torch.device:
        """Device on which the network computes."""

    @property
    def fixed_ratio(self) -> float | None:
        """The only downsample ratio of the network; None if any can be set."""

    @property
    def facts(self) -> NetworkFacts | None:
        """Facts stored with the network; None if they are to be derived from its layers."""

    @property
    def downsample_ratio(self) -> float:
        """Scale of the network's body relative to the frame size, in (0, 1]."""

    @downsample_ratio.setter
    def downsample_ratio(self, ratio: float) -> None: ...

    def to(self, device: torch.device) -> Any:
        """Move the network, in place, if it can be moved."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context in which the network is in evaluation mode."""

    def initial_state(self, src: Tensor) -> RecurrentState:
        """Return the zero state for frames like ``src`` (B, 3, H, W)."""

    def forward_frame(self, src: Tensor, state: RecurrentState) -> MattingOutput:
        """Process one frame, (B, 3, H, W) RGB in [0, 1], given the previous state."""

    def unroll(self, src: Tensor, state: RecurrentState | None = None) -> MattingOutput:
        """Process a sequence, (B, T, 3, H, W), and return the state after its last frame."""
