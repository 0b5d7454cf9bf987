"""Parity of two networks over a clip."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ptq4vm.quantizers import fake_quantize
from ptq4vm.types import FrameModel


class Parity(NamedTuple):
    """Difference of two networks' alphas over a clip, each with its own recurrent state."""

    frames: int
    mean: float
    """Mean |Δα|."""
    highest: float
    """Maximum |Δα|."""
    share: float
    """Share of pixels that differ by more than 1/255, one step of 8 bits."""


@torch.inference_mode()
def measure_parity(
    first: FrameModel,
    second: FrameModel,
    src: Tensor,
    progress: Callable[[int], None] | None = None,
    state_scale: float | None = None,
) -> Parity:
    """Compare the alphas of two networks over a clip.

    Args:
        first: reference network.
        second: network to compare, typically the exported graph.
        src: clip (T, 3, H, W), RGB in [0, 1].
        progress: callback, called with the number of frames done after each frame.
        state_scale: scale of int8 states; the states of ``first`` are rounded to it, as the graph
            of ``second`` does. None for float states.

    Returns:
        Mean and maximum |Δα|, and the share of pixels that differ visibly.
    """
    first_state, second_state = first.initial_state(src[:1]), second.initial_state(src[:1])
    total, highest, beyond = 0.0, 0.0, 0
    for number, frame in enumerate(src, 1):
        _, pha, first_state = first.forward_frame(frame[None], first_state)
        if state_scale is not None:
            grid = (torch.tensor(state_scale), torch.tensor(0.0), -128, 127)
            first_state = tuple(fake_quantize(one, *grid) for one in first_state)
        _, other, second_state = second.forward_frame(frame[None], second_state)
        difference = (pha - other).abs()
        total += float(difference.mean())
        highest = max(highest, float(difference.max()))
        beyond += int((difference > 1 / 255).sum())
        if progress is not None:
            progress(number)
    return Parity(len(src), total / len(src), highest, beyond / (len(src) * src[0, 0].numel()))
