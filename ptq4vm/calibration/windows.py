"""Windows of calibration clips, over which global calibration unrolls the network."""

import torch
from torch import Generator

from ptq4vm.types import CalibrationClip


def draw_window(clips: CalibrationClip, length: int | None, seed: int) -> CalibrationClip:
    """Draw successive frames out of a batch of clips, with the recurrent state before them.

    About half of the windows begin with the clips: what a network takes for a person in its first
    frames stays in its state. The others begin with the float network's state there.

    Args:
        clips: (B, T, C, H, W).
        length: frames of the window; the clips from their beginning, with their own first state, if
            None or not less than T.
        seed: of the draw; a generator of its own leaves the global one alone.
    """
    time = clips.src.shape[1]
    if length is None or length >= time:
        return clips
    generator = Generator().manual_seed(seed)
    last = time - length
    start = max(0, int(torch.randint(-last, last + 1, (), generator=generator)))
    frames, changes = slice(start, start + length), slice(start, start + length - 1)
    state = clips.first_state
    if start > 0:
        state = tuple(steps[:, start - 1] for steps in clips.teacher_state)
    return clips._replace(
        src=clips.src[:, frames],
        pha=clips.pha[:, frames],
        fgr=None if clips.fgr is None else clips.fgr[:, frames],
        teacher_pha=clips.teacher_pha[:, frames],
        teacher_state=tuple(steps[:, frames] for steps in clips.teacher_state),
        flow=clips.flow[:, changes],
        visible=clips.visible[:, changes],
        first_state=state,
    )
