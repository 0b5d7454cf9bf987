"""What rooms hand to each other: NamedTuples, since Lightning refuses frozen dataclasses inside batches."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

RecurrentState = tuple[Tensor, ...]
"""What a network carries from frame to frame; one (B, C, h, w) tensor each. A per-frame network has the empty tuple."""


class MattingOutput(NamedTuple):
    """What a network says of one frame (B, C, H, W), or of a sequence (B, T, C, H, W)."""

    fgr: Tensor
    """Foreground colour, 3 channels, RGB in [0, 1]."""
    pha: Tensor
    """Alpha, 1 channel in [0, 1]."""
    state: RecurrentState
    """The state to feed back with the next frame."""


class MattingClip(NamedTuple):
    """Successive frames of one clip, (T, C, H, W); a batch of clips is (B, T, C, H, W). Floats in [0, 1]."""

    src: Tensor
    """The frames as a camera sees them, RGB."""
    pha: Tensor | None = None
    """True alpha, 1 channel; None where nobody knows it."""
    fgr: Tensor | None = None
    """True foreground colour, RGB; None where nobody knows it."""
    flow: Tensor | None = None
    """Exact backward flow, (T-1, 2, H, W) in pixels (x, y): what is at p in frame t+1 was at p + flow[t](p) in t."""
    name: str = ""
    """`<set>/<clip>` of its source."""
    start: int = 0
    """Index within the clip of the first frame held here; 0 means: begin with a fresh recurrent state."""
    frames: tuple[str, ...] = ()
    """The frames' file names without suffix, where they come from files of their own."""
    float_pha: Tensor | None = None
    """The float network's alpha, where it was asked for."""


class CalibrationClip(NamedTuple):
    """One cached calibration sequence with all that is computed for it once. Batched: (B, T, C, H, W)."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """Number of the sequence in the calibration set, () or (B,) int64."""
    src: Tensor
    pha: Tensor
    """True alpha; the float network's where nobody knows it, or nobody may look."""
    fgr: Tensor | None
    teacher_pha: Tensor
    """The float network's alpha."""
    teacher_fgr: Tensor
    teacher_state: RecurrentState
    """The float network's state after each frame, (T, C, h, w) each."""
    flow: Tensor
    """Backward flow between neighbouring frames, (T-1, 2, H, W), as in :class:`MattingClip`."""
    visible: Tensor
    """(T-1, 1, H, W) float, 1 where the flow passes the forward-backward check, 0 where it is occluded."""


class Teacher(NamedTuple):
    """The float network as the data room sees it."""

    forward: Callable[..., MattingOutput]
    """src (B, T, 3, H, W), and a state to begin with or None -> fgr, pha (B, T, C, H, W) and every state after every
    frame, (B, T, C, h, w) each."""
    key: str
    """Changes when the network, its weights or its downsample ratio change. Caches are keyed with it."""


class FlowEstimator(NamedTuple):
    """An optical flow method as the data room sees it."""

    forward: Callable[[Tensor], tuple[Tensor, Tensor]]
    """src (T, 3, H, W) -> flow (T-1, 2, H, W), visible (T-1, 1, H, W), as in :class:`CalibrationClip`."""
    key: str
